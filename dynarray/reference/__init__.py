"""The textbook definition of each operator and of its gradients, in NumPy: obvious, slow, transparent to complex steps."""
