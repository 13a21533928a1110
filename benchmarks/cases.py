"""Everything that is measured: one line per stem."""

from . import atoms, deform, displaced, dynamic_sampling, local_filter
from .case import Case

CASES = (*local_filter.CASES, *deform.CASES, *dynamic_sampling.CASES, *atoms.CASES, *displaced.CASES)

# What keeps two cores busy for a millisecond is next to nothing to a GPU.
BATCH = 16


def cases(backend: str) -> tuple[Case, ...]:
    """What is measured on a backend, each operator of the registry at least once."""
    if backend != "cuda":
        return CASES
    return (*local_filter.CUDA_CASES, *(case.times(BATCH) for case in CASES))
