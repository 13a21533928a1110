"""Dynamic filters for NumPy and CuPy arrays, with exact gradients. See `OPERATORS` for what there is."""

import typing as _typing
from types import ModuleType as _ModuleType

from rawkernels.tf32 import allow_tf32 as allow_tf32

from ._dispatch import use_backend as use_backend
from ._operator import OPERATORS as OPERATORS
from ._operator import Operator as Operator
from ._operator import load as _load
from ._warm_up import *
from .atom_bases import *
from .atoms import *
from .cpu.engine.parallel import get_num_threads as get_num_threads
from .cpu.engine.parallel import set_num_threads as set_num_threads
from .deform import *
from .displaced import *
from .dynamic_sampling import *
from .local_filter import *
from .local_filter_correlation import *
from .local_filter_faces import *
from .local_filter_mixed import *
from .regions import *

if _typing.TYPE_CHECKING:  # under this name type checkers know it
    from . import images as images
    from . import kernels as kernels
    from . import tiles as tiles
else:

    def __getattr__(name: str) -> _ModuleType:
        """The modules for photographs and for what is larger than memory, imported when first asked for."""
        if name in ("images", "kernels", "tiles"):
            return _load(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.2.0"

__all__ = sorted(
    name for name, value in globals().items() if name[0] != "_" and not isinstance(value, _ModuleType)
)
