"""Files of MATLAB: those up to version 7, by SciPy; those of version 7.3 are HDF5."""

import io
import zlib
from typing import Any

import numpy as np

from ..files import FileError
from ._reading import PathLike, content_of, naming

# The files of data sets that are read here have some kilobytes; what is packed in them is not checked.
MOST_BYTES = 2**22


def read_mat(path: PathLike, name: str) -> Any:
    """A variable of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with naming(path):
        content = content_of(path)
        if len(content) > MOST_BYTES:
            raise FileError(f"has {len(content):,} bytes, more than any file of this kind")
        if content[:6] != b"MATLAB":
            raise FileError("is no MATLAB file of version 5 to 7")
        try:
            found = loadmat(io.BytesIO(content), variable_names=[name])
        except MemoryError:
            raise FileError("is damaged: it needs more memory than there is") from None
        except (MatReadError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError) as error:
            raise FileError(f"is damaged: {error}") from None
        except (NotImplementedError, AttributeError, OverflowError, zlib.error) as error:
            raise FileError(f"is damaged, or of another version: {error}") from None
        if name not in found:
            raise FileError(f"has no variable {name!r}")
        return found[name]


def field(array: Any, name: str) -> np.ndarray:
    """A field of a structure, or of an array of structures."""
    if array.dtype.names is None or name not in array.dtype.names or not array.size:
        raise FileError(f"has no field {name!r}")
    return array[name]
