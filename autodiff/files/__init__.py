"""Arrays in files: safetensors, written and read, and what PyTorch saved, read without it.

Neither can run anything: a safetensors file holds names and numbers, and of a file of PyTorch's, which is a
program that builds objects, only the few steps are carried out that a network's weights need.
"""

from ._errors import FileError as FileError
from .pytorch import load_torch as load_torch
from .safe import CODES as CODES
from .safe import MAX_HEADER as MAX_HEADER
from .safe import METADATA as METADATA
from .safe import Contents as Contents
from .safe import Entry as Entry
from .safe import load as load
from .safe import load_module as load_module
from .safe import save as save
from .unpickle import Unread as Unread
