"""Each operator once more, in elementary functions that a tape can differentiate as often as asked.

A composite is called as ``composite(functions, *arrays, **params)`` with the arrays and parameters that the
forms get, and returns the output. `functions` has NumPy's names, so that NumPy itself will do; arrays know the
arithmetic operators and slicing. It is slow and keeps an image per tap: it serves the gradients of gradients.
"""
