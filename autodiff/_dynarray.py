"""See that the package `dynarray` is the one that belongs here, before anything is asked of it."""

import dynarray

if not hasattr(dynarray, "OPERATORS"):
    found = getattr(dynarray, "__file__", None)
    raise ImportError(
        f"autodiff needs the dynarray that comes with it, and found another project's package of that name, "
        f"{found}: pip uninstall dynarray, then install dynamic-filters again"
    )
