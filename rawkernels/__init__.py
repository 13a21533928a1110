"""CUDA kernels and the one place that launches them.

The kernels run on CuPy arrays (compiled by NVRTC, on the current stream) or, from the same unchanged
sources, on NumPy arrays (compiled by g++ against a small shim: see :mod:`rawkernels.host`).
"""
