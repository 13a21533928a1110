"""Numba kernels: a folder an operator family, and `engine`, which all of them stand on."""
