"""What the stand-in for CuPy offers: names, and how CuPy lets them be called.

The names are listed here; `names.json` holds what CuPy itself says of each, in two of its versions. A call
must fit all of them. ``python standin_names.py write``, run where a CuPy is installed, writes its part anew.
"""

import functools
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("names.json")

# Functions that do what NumPy's of the same name do.
FUNCTIONS = (
    *("any", "arange", "argsort", "array", "asarray", "ascontiguousarray", "broadcast_to", "clip"),
    *("concatenate", "einsum", "empty", "eye", "flip", "full", "full_like", "linalg.inv"),
    *("linalg.solve", "matmul", "ones", "ones_like", "result_type", "roll", "split", "take"),
    *("take_along_axis", "tri", "where", "zeros", "zeros_like"),
)
UFUNCS = (
    *("absolute", "add", "arctan2", "bitwise_and", "bitwise_or", "cos", "divide", "equal", "exp"),
    *("floor", "greater", "greater_equal", "hypot", "invert", "isfinite", "isinf", "isnan", "less"),
    *("less_equal", "log", "log1p", "logical_or", "maximum", "minimum", "multiply", "negative"),
    *("not_equal", "power", "remainder", "rint", "sign", "sin", "sqrt", "square", "subtract"),
    *("tanh",),
)
SPECIAL = ("erf",)
METHODS = (
    *("all", "astype", "clip", "copy", "cumsum", "max", "mean", "min", "ravel", "repeat"),
    *("reshape", "sum", "swapaxes", "transpose", "view"),
)
# Classes and functions that the stand-in spells out; their signatures are compared by a test.
SPELLED = (
    *("RawKernel", "RawModule", "RawModule.get_function", "ReductionKernel"),
    *("get_default_memory_pool", "cuda.Device", "cuda.Device.synchronize", "cuda.Event", "cuda.Event.record"),
    *("cuda.Event.synchronize", "cuda.Graph.launch", "cuda.MemoryHook", "cuda.MemoryHook.alloc_preprocess"),
    *("cuda.MemoryPointer.copy_from_device_async", "cuda.MemoryPool.free_all_blocks"),
    *(
        "cuda.MemoryPool.total_bytes",
        "cuda.MemoryPool.used_bytes",
        "cuda.Stream",
        "cuda.Stream.begin_capture",
    ),
    *("cuda.Stream.end_capture", "cuda.Stream.is_capturing", "cuda.Stream.synchronize"),
    *("cuda.Stream.record", "cuda.Stream.wait_event"),
    *("cuda.get_current_stream", "cuda.get_elapsed_time", "cuda.set_allocator"),
    *("cuda.nvrtc.getVersion", "cuda.runtime.driverGetVersion", "cuda.runtime.getDevice"),
    *("cuda.runtime.getDeviceCount", "cuda.runtime.getDeviceProperties", "cuda.runtime.runtimeGetVersion"),
    *("ndarray.__array__", "ndarray.get", "ndarray.item", "ndarray.set", "ndarray.tolist"),
    *("_core._routines_linalg.get_compute_type", "_core._routines_linalg.set_compute_type"),
    *("random.Generator.standard_normal", "random.Generator.uniform", "random.default_rng"),
    "cupyx.scatter_add",
    *("cupyx.distributed.NCCLBackend", "cupyx.distributed.NCCLBackend.all_reduce"),
    *("cupyx.distributed.NCCLBackend.broadcast", "cupyx.distributed.init_process_group"),
)
# Neither called nor compared: that CuPy has them is all.
PLAIN = (
    *("__version__", "cuda.Device.attributes", "cuda.Device.id", "cuda.Device.mem_info", "cuda.Event.done"),
    *("cuda.MemoryPointer.device_id", "cuda.MemoryPointer.ptr", "cuda.Stream.done", "cuda.Stream.null"),
    *("cuda.runtime.CUDARuntimeError", "cuda.runtime.cudaDevAttrL2CacheSize", "linalg"),
    *("ndarray.T", "ndarray.base", "ndarray.data", "ndarray.device", "ndarray.dtype", "ndarray.flags"),
    *("ndarray.imag", "ndarray.itemsize", "ndarray.nbytes", "ndarray.ndim", "ndarray.real", "ndarray.shape"),
    *("ndarray.size", "ndarray.strides", "cupyx.scipy.special"),
    *("float32", "float64", "uint8", "random", "cuda"),
    *(f"_core._routines_linalg.COMPUTE_TYPE_{name}" for name in ("DEFAULT", "FP32", "PEDANTIC", "TF32")),
)


def paths() -> dict[str, str]:
    """Every name with its place, and of what kind it is."""
    found = {f"cupy.{name}": "function" for name in FUNCTIONS}
    found |= {f"cupy.{name}": "ufunc" for name in UFUNCS}
    found |= {f"cupyx.scipy.special.{name}": "ufunc" for name in SPECIAL}
    found |= {f"cupy.ndarray.{name}": "function" for name in METHODS}
    for kind, names in (("function", SPELLED), ("plain", PLAIN)):
        found |= {name if name.startswith("cupyx") else f"cupy.{name}": kind for name in names}
    return found


@functools.cache
def recorded() -> dict[str, dict[str, str]]:
    """What each version of CuPy said of each name."""
    return json.loads(FILE.read_text())


@functools.cache
def signatures(path: str) -> tuple[inspect.Signature, ...]:
    """How CuPy lets a name be called, one for each version in which it differs."""
    return tuple(map(parsed, dict.fromkeys(version[path] for version in recorded().values())))


def bind(path: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise TypeError where a version of CuPy would for a call with these arguments."""
    for signature in signatures(path):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{path}{signature}: {error}") from None


def parsed(text: str) -> inspect.Signature:
    """A signature from what `described` made of it."""
    namespace: dict[str, Any] = {}
    exec(f"def function{text}: pass", namespace)
    return inspect.signature(namespace["function"])


def described(value: Any, kind: str) -> str:
    """What is recorded of an object of CuPy: numbers of a ufunc, or a signature with literal defaults."""
    if kind == "ufunc":
        return f"ufunc {value.nin} {value.nout}"
    if kind == "plain":
        return "there"
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        text = _from_documentation(value)
    return _normal(text)


def _from_documentation(value: Any) -> str:
    """Compiled functions and classes begin their documentation with their C signature."""
    first = (value.__doc__ or "").strip().split("\n")[0]
    found = re.match(r"[\w.]*(\(.*\))(?: ->.*)?$", first)
    if found is None:
        raise ValueError(f"no signature in the documentation of {value!r}: {first!r}")
    return found[1]


def _normal(text: str) -> str:
    """A signature without types, and with ... where a default is no literal."""
    inside = text[1 : text.rindex(")")] if "->" not in text else text[1 : text.index(") ->")]
    return f"({', '.join(_parameter(part) for part in _split(inside))})"


def _parameter(text: str) -> str:
    head, equals, default = text.partition("=")
    if equals and head.count("[") != head.count("]"):
        raise ValueError(text)
    name = (
        head.split(":")[0].split()[-1].replace("\\", "") if head.strip() not in ("*", "/") else head.strip()
    )
    if not equals:
        return name
    default = re.sub(r"^u'", "'", default.strip())
    literal = re.fullmatch(r"None|True|False|-?[\d.]+|'[^']*'|\(\)", default)
    return f"{name}={default if literal else '...'}"


def _split(text: str) -> list[str]:
    """Parts between commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}")
        depth -= character == ">" and not parts[-1].endswith("-")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def of_installed() -> tuple[str, dict[str, str]]:
    """Version of the CuPy that is imported here, and what it says of each name."""
    import cupy
    import cupyx.distributed
    import cupyx.scipy.special

    roots = {"cupy": cupy, "cupyx": cupyx}
    found = {}
    for path, kind in sorted(paths().items()):
        first, *names = path.split(".")
        try:
            value = functools.reduce(getattr, names, roots[first])
        except AttributeError:
            found[path] = "missing"
            continue
        found[path] = described(value, kind)
    return cupy.__version__, found


def write() -> None:
    """Put what the installed CuPy says into `names.json`, beside other versions."""
    version, found = of_installed()
    versions = json.loads(FILE.read_text()) if FILE.exists() else {}
    versions = {
        other: names for other, names in versions.items() if other.split(".")[0] != version.split(".")[0]
    }
    FILE.write_text(json.dumps(dict(sorted((versions | {version: found}).items())), indent=1) + "\n")
    missing = [path for path, text in found.items() if text == "missing"]
    print(f"CuPy {version}: {len(found)} names, missing: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    if sys.argv[1:] != ["write"]:
        sys.exit(__doc__)
    sys.path = [place for place in sys.path if Path(place).resolve() != FILE.parent]
    write()
