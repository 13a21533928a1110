"""Everything that is measured: one line per stem."""

from . import local_filter

CASES = (*local_filter.CASES,)
