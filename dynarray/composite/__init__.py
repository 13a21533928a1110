"""Each operator once more, in elementary functions that a tape can differentiate as often as asked.

A composite is called as ``composite(functions, *arrays, **params)`` with the arrays and parameters that the
forms get, and returns the output. `functions` has functions under NumPy's names, for example NumPy itself;
arrays have arithmetic operators and slicing. It is slow and keeps several images per tap: it is there for the
gradients of gradients alone.
"""
