"""Numba kernels: serial over a range of work items, which `parallel` splits over threads."""
