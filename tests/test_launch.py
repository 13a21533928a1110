"""The launcher: every guard refuses with its message, on NumPy arrays and on the stand-in for CuPy."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _standin import launches, standing_in

from rawkernels import launch as launcher
from rawkernels.launch import (
    DTYPES,
    accumulator_dtype,
    contiguous,
    empty,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Parameter, Program, find_entries, inline, program

SCALE = """
extern "C" __global__ void __launch_bounds__(256) scale(
    const T* __restrict__ source, T* __restrict__ target, INDEX count, ACC factor) {
    const INDEX i = thread_index();
    if (i < count) store(target + i, load(source + i) * factor);
}
"""


def scale_program(dtype: Any = "float32", *, wide_index: bool = False) -> Program:
    """A kernel of one line, with every kind of parameter."""
    text = '#include "common.cuh"\n' + SCALE
    return Program("scale.cu", type_constants(dtype, wide_index=wide_index), override=text)


def good_call(**changes: Any) -> dict[str, Any]:
    """Arguments of a launch that works, but for `changes`."""
    source = np.arange(10, dtype=np.float32)
    call: dict[str, Any] = {
        "program": scale_program(),
        "entry": "scale",
        "grid": (1,),
        "block": (32,),
        "arguments": (source, np.zeros(10, np.float32), np.int32(10), np.float32(3)),
    }
    return call | changes


def with_argument(position: int, value: Any) -> dict[str, Any]:
    """A good call with one other argument."""
    call = good_call()
    arguments = list(call["arguments"])
    arguments[position] = value
    return call | {"arguments": tuple(arguments)}


def test_a_good_call_runs() -> None:
    call = good_call()
    launch(**call)
    assert np.array_equal(call["arguments"][1], 3 * np.arange(10, dtype=np.float32))


BAD = {
    "unknown kernel": (good_call(entry="scael"), ValueError, "scale.cu has no kernel scael: it has scale"),
    "too few arguments": (
        good_call(arguments=good_call()["arguments"][:3]),
        TypeError,
        "scale takes 4 arguments, got 3",
    ),
    "python int": (with_argument(2, 10), TypeError, "scale: count must be a numpy.int32 scalar, got int"),
    "python float": (
        with_argument(3, 3.0),
        TypeError,
        "scale: factor must be a numpy.float32 scalar, got float",
    ),
    "wrong integer type": (
        with_argument(2, np.int64(10)),
        TypeError,
        "scale: count must be a numpy.int32 scalar, got int64 of dtype int64",
    ),
    "wrong float type": (
        with_argument(3, np.float64(3)),
        TypeError,
        "scale: factor must be a numpy.float32 scalar, got float64 of dtype float64",
    ),
    "array for a scalar": (
        with_argument(2, np.zeros(1, np.int32)),
        TypeError,
        "scale: count must be a numpy.int32 scalar, got ndarray of dtype int32",
    ),
    "list for an array": (
        with_argument(0, [1.0]),
        TypeError,
        "scale: source must be an array of float32, got list",
    ),
    "scalar for an array": (
        with_argument(1, np.float32(1)),
        TypeError,
        "scale: target must be an array of float32, got float32 of dtype float32",
    ),
    "wrong dtype": (
        with_argument(0, np.zeros(10)),
        TypeError,
        "scale: source must have dtype float32, got float64",
    ),
    "wrong byte order": (
        with_argument(0, np.zeros(10, ">f4")),
        TypeError,
        "scale: source must have dtype float32, got >f4",
    ),
    "four sizes": (
        good_call(grid=(1, 1, 1, 7)),
        ValueError,
        "a grid and a block have 1 to 3 sizes, got (1, 1, 1, 7)",
    ),
    "no sizes": (good_call(block=()), ValueError, "a grid and a block have 1 to 3 sizes, got ()"),
    "strides": (
        with_argument(0, np.zeros(20, np.float32)[::2]),
        ValueError,
        "scale: source must be C-contiguous, got strides (8,)",
    ),
    "no array": (
        good_call(arguments=(None, None, np.int32(1), np.float32(1))),
        TypeError,
        "scale: no array among the arguments",
    ),
    "grid too large": (
        good_call(grid=(2**31,)),
        ValueError,
        "scale: grid size x = 2147483648 is not in 0..2147483647",
    ),
    "grid y too large": (
        good_call(grid=(1, 65536)),
        ValueError,
        "scale: grid size y = 65536 is not in 0..65535",
    ),
    "grid z too large": (
        good_call(grid=(1, 1, 65536)),
        ValueError,
        "scale: grid size z = 65536 is not in 0..65535",
    ),
    "negative grid": (good_call(grid=(-1,)), ValueError, "scale: grid size x = -1 is not in 0..2147483647"),
    "block too large": (good_call(block=(1025,)), ValueError, "scale: block size x = 1025 is not in 1..1024"),
    "block z too large": (
        good_call(block=(1, 1, 65)),
        ValueError,
        "scale: block size z = 65 is not in 1..64",
    ),
    "empty block": (good_call(block=(0,)), ValueError, "scale: block size x = 0 is not in 1..1024"),
    "block product": (
        good_call(block=(64, 32)),
        ValueError,
        "scale: a block of 64 x 32 x 1 has more than 1024 threads",
    ),
    "shared memory": (
        good_call(shared_bytes=49153),
        ValueError,
        "scale: 49153 bytes of shared memory, limit 49152",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_call_is_refused(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        launch(**call)


def test_a_size_that_is_refused_is_not_remembered() -> None:
    """17.0 is equal to 17, and finds what was remembered of it."""
    with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
        launch(**good_call(grid=(17.0,)))
    call = good_call(grid=(17,))
    launch(**call)
    assert np.array_equal(call["arguments"][1], 3 * np.arange(10, dtype=np.float32))


def test_empty_grid_does_nothing() -> None:
    call = good_call(grid=(0, 5))
    launch(**call)
    assert not call["arguments"][1].any()


@pytest.mark.parametrize(
    "dtype, accumulator",
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")],
)
@pytest.mark.parametrize("wide_index", [False, True])
def test_every_dtype_and_index(dtype: str, accumulator: str, wide_index: bool) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert accumulator_dtype(kind) == accumulator
    source, target = np.arange(40).astype(kind), np.zeros(40, kind)
    count = np.int64(40) if wide_index else np.int32(40)
    factor = np.dtype(accumulator).type(2)
    launch(scale_program(kind, wide_index=wide_index), "scale", (2,), (32,), (source, target, count, factor))
    assert np.array_equal(target.astype(float), 2.0 * np.arange(40))


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^no kernel for dtype int32: expected one of float64, float32"):
        type_constants(np.dtype(np.int32))


def test_wide_index_when_int_overflows() -> None:
    large = SimpleNamespace(size=2**31)
    small = SimpleNamespace(size=2**31 - 1)
    assert needs_wide_index(large) and not needs_wide_index(small, None)
    assert needs_wide_index(small, work_items=2**31 - 1024) and not needs_wide_index(small, work_items=2**30)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (3, 2), (0, 4), (2, 0)])
def test_empty_is_nan_on_the_host(dtype: Any, shape: tuple[int, ...]) -> None:
    made = empty(shape, np.zeros(1, dtype))
    assert made.shape == shape and made.dtype == dtype and np.isnan(made.astype(float)).all()
    assert empty(shape, np.zeros(1), np.int32).tolist() == np.full(shape, -1).tolist()
    assert not zeros(shape, made).astype(float).any()


def test_allocation_needs_an_array() -> None:
    with pytest.raises(TypeError, match=r"^expected a numpy or cupy array, got list$"):
        empty((1,), [1.0])


def test_contiguous_copies_only_what_it_must() -> None:
    array = np.arange(6.0).reshape(2, 3)
    same, none, copied = contiguous(array, None, array.T)
    assert same is array and none is None
    assert copied.flags.c_contiguous and np.array_equal(copied, array.T)


def test_signatures_are_parsed() -> None:
    found = find_entries(SCALE + '// extern "C" __global__ void comment(int a) {\n')
    assert found == {
        "scale": (
            Parameter("source", "T", pointer=True, const=True),
            Parameter("target", "T", pointer=True, const=False),
            Parameter("count", "INDEX", pointer=False, const=False),
            Parameter("factor", "ACC", pointer=False, const=False),
        )
    }


def test_headers_are_inlined_once() -> None:
    headers = {"a.cuh": '#pragma once\n#include "b.cuh"\nA\n', "b.cuh": "#pragma once\nB\n"}
    text = inline('#include <cuda_fp16.h>\n#include "a.cuh"\n  #include "b.cuh"  // again\nC\n', headers)
    assert text.split() == ["#include", "<cuda_fp16.h>", "B", "A", "C"]


def test_program_text_begins_with_its_constants() -> None:
    made = program("local_filter.cu", (*type_constants("float16"), ("KH", "3")))
    assert made.text.startswith("#define SCALAR __half\n#define ACCUMULATOR float\n#define INDEX_TYPE int\n")
    assert '#include "' not in made.text and "#define KH 3\n" in made.text
    assert program("local_filter.cu", made.defines) is made


# ---- on CuPy's arrays


@pytest.fixture
def cupy() -> Iterator[Any]:
    """The stand-in for CuPy."""
    with standing_in() as module:
        yield module


@pytest.fixture
def compiled(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Text and options of what is compiled."""
    found: list[tuple[Any, ...]] = []

    class Noted(cupy.RawModule):
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            found.append((code, options))
            super().__init__(code=code, options=options)

    monkeypatch.setattr(cupy, "RawModule", Noted)
    return found


def gpu_call(cupy: Any, **changes: Any) -> dict[str, Any]:
    """A good call on arrays of the current device."""
    source, target, *numbers = good_call()["arguments"]
    return good_call(arguments=(cupy.asarray(source), cupy.asarray(target), *numbers)) | changes


def test_cupy_arrays_go_to_cupy_and_compile_once(cupy: Any, compiled: list) -> None:
    call = gpu_call(cupy)
    for _ in range(2):
        launch(**call)
    assert call["arguments"][1].tolist() == list(range(0, 30, 3))
    assert compiled == [(call["program"].text, ("-std=c++17",))]
    with cupy.cuda.Device(1):
        launch(**gpu_call(cupy))
    assert len(compiled) == 2  # modules belong to a device


def test_cupy_gets_what_was_asked_for(cupy: Any) -> None:
    with launches() as found:
        launch(**gpu_call(cupy, grid=(2, 3), block=(4, 1, 8)), shared_bytes=64)
        launch(**gpu_call(cupy, grid=(0, 5)))  # does nothing
    ((entry, grid, block, arguments, shared_bytes),) = found
    assert (entry, grid, block, shared_bytes) == ("scale", (2, 3, 1), (4, 1, 8), 64)
    assert arguments[0].tolist() == list(range(10)) and arguments[2:] == (10, 3)


def test_what_was_prepared_is_not_compiled_at_a_launch(cupy: Any, compiled: list) -> None:
    call = gpu_call(cupy)
    launcher.prepare(call["program"])
    prepared = len(compiled)
    assert prepared and not any(call["arguments"][1].tolist())
    launch(**call)
    assert len(compiled) == prepared and any(call["arguments"][1].tolist())


def test_none_becomes_a_null_pointer(cupy: Any) -> None:
    """CuPy takes no None, and of a number its size."""
    _, *others = gpu_call(cupy)["arguments"]
    with launches() as found:
        launch(**gpu_call(cupy, arguments=(None, *others)))
    assert found[0].arguments[0] is None


def test_arrays_must_share_a_device(cupy: Any) -> None:
    source, *others = gpu_call(cupy)["arguments"]
    with cupy.cuda.Device(1):
        source = cupy.asarray(source.get())
    with pytest.raises(ValueError, match=r"^scale: arrays live on different devices: \[0, 1\]$"):
        launch(**gpu_call(cupy, arguments=(source, *others)))


def test_arrays_must_live_on_the_current_device(cupy: Any) -> None:
    call = gpu_call(cupy)
    with (
        cupy.cuda.Device(1),
        pytest.raises(ValueError, match=r"^scale: arrays live on device 0, the current device is 1$"),
    ):
        launch(**call)


def test_numpy_and_cupy_do_not_mix(cupy: Any) -> None:
    source, *others = good_call()["arguments"]
    with pytest.raises(TypeError, match=r"^scale: got numpy and cupy arrays together$"):
        launch(**gpu_call(cupy, arguments=(cupy.asarray(source), *others)))


def test_dtype_table_is_what_the_documents_say() -> None:
    assert DTYPES == ("float64", "float32", "float16", "bfloat16")
