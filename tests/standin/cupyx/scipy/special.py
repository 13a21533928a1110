"""Special functions, those that are listed."""

import standin_names
from cupy import _functions

globals().update({name: _functions.special(name) for name in standin_names.SPECIAL})
