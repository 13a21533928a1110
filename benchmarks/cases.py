"""Everything that is measured: one line per stem."""

from . import atoms, deform, displaced, local_filter

CASES = (*local_filter.CASES, *deform.CASES, *atoms.CASES, *displaced.CASES)
