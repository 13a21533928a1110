"""Everything that is measured: one line per stem."""

from . import atoms, deform, displaced, dynamic_sampling, local_filter

CASES = (*local_filter.CASES, *deform.CASES, *dynamic_sampling.CASES, *atoms.CASES, *displaced.CASES)
