"""`cupy.linalg`: filled by `cupy` itself."""
