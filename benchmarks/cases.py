"""Everything that is measured: one line per stem."""

from . import atoms, local_filter

CASES = (*local_filter.CASES, *atoms.CASES)
