"""The stand-in for CuPy: is what it has CuPy's, and does it refuse what CuPy refuses?"""

import copy
import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from _standin import FOLDER, standing_in


@pytest.fixture(scope="module")
def cupy() -> Iterator[Any]:
    """The stand-in, imported for these tests alone."""
    with standing_in() as module:
        yield module


@pytest.fixture
def names(cupy: Any) -> Any:
    """What is known of CuPy's names."""
    return sys.modules["standin_names"]


@pytest.fixture
def x(cupy: Any) -> Any:
    """Six numbers."""
    return cupy.asarray(np.arange(6.0).reshape(2, 3))


def found(path: str) -> Any:
    """What the stand-in has at a place."""
    first, *rest = path.split(".")
    return reduce(getattr, rest, sys.modules[first])


# The same names, with the same signatures, as CuPy.


def test_every_name_is_one_of_both_versions_of_cupy(names: Any) -> None:
    recorded = names.recorded()
    assert [name.split(".")[0] for name in recorded] == ["13", "14"]
    for version_, known in recorded.items():
        assert set(known) == set(names.paths()), f"python standin_names.py write, with CuPy {version_}"
        assert "missing" not in known.values()


def test_every_name_that_is_listed_is_there(names: Any) -> None:
    for path, kind in names.paths().items():
        if path not in ("cupy.cuda.Device.id", "cupy.cuda.Stream.null"):  # of instances
            assert (value := found(path)) is None or kind == "plain" or callable(value), path


def test_nothing_is_there_that_is_not_listed(cupy: Any, names: Any) -> None:
    def public(owner: Any) -> set[str]:
        return {name for name in vars(owner) if not name.startswith("_")}

    listed = {path.removeprefix("cupy.") for path in names.paths() if path.startswith("cupy.")}
    at_top = {name.split(".")[0] for name in listed} | {"ndarray"}
    assert public(cupy) - {"sys"} <= at_top | {"Any"}
    assert public(cupy.ndarray) == {name.split(".")[1] for name in listed if name.startswith("ndarray.")} - {
        "__array__"
    }
    # Of streams and the pool, what is public serves the stand-in too; CuPy's own is listed.
    with pytest.raises(AttributeError, match=r"^the stand-in for CuPy has no bincount: if CuPy has it"):
        cupy.bincount  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'partition'"):
        cupy.zeros(3).partition  # noqa: B018


def test_signatures_that_are_spelled_out_are_those_of_the_newer_cupy(names: Any) -> None:
    newest = list(names.recorded().values())[-1]
    for name in names.SPELLED:
        path = name if name.startswith("cupyx") else f"cupy.{name}"
        if path == "cupy.cuda.MemoryHook":  # neither takes anything
            continue
        mine = inspect.signature(found(path))
        shown = [(p.name, p.kind, p.default is p.empty) for p in mine.parameters.values()]
        theirs = names.parsed(newest[path])
        assert shown == [(p.name, p.kind, p.default is p.empty) for p in theirs.parameters.values()], path


def test_ufuncs_have_as_many_inputs_and_outputs(names: Any) -> None:
    for path, kind in names.paths().items():
        if kind == "ufunc":
            mine = found(path)
            assert all(known[path] == f"ufunc {mine.nin} {mine.nout}" for known in names.recorded().values())


def test_what_is_recorded_is_what_cupy_says(names: Any, tmp_path: Path) -> None:
    """In a process of its own, which imports CuPy: one that is installed, or that `make test` brought."""
    beside = [str(place) for place in (FOLDER.parents[1] / ".venv" / "cupy",) if (place / "cupy").is_dir()]
    code = (
        "import sys, json, importlib.util as u\n"
        f"sys.path += {beside!r}\n"
        "if u.find_spec('cupy') is None: sys.exit(3)\n"
        f"s = u.spec_from_file_location('standin_names', {str(FOLDER / 'standin_names.py')!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m); print(json.dumps(m.of_installed()))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=clean
    )
    if done.returncode == 3:
        pytest.skip("CuPy is not installed: names.json stands as it was written")
    assert done.returncode == 0, done.stderr
    version, found = json.loads(done.stdout)
    known = {name.split(".")[0]: name for name in names.recorded()}
    if version.split(".")[0] not in known:
        pytest.skip(f"CuPy {version} is installed; recorded are {', '.join(known.values())}")
    assert found == names.recorded()[known[version.split(".")[0]]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cp, x: x.sum(where=x > 1), "unexpected keyword argument 'where'"),
        (lambda cp, x: x.max(initial=0), "unexpected keyword argument 'initial'"),
        (lambda cp, x: x.item(0), "takes 1 positional argument|too many positional"),
        (lambda cp, x: x.reshape(6, copy=True), "unexpected keyword argument 'copy'"),  # CuPy 13
        (lambda cp, x: np.clip(x, 0), "missing a required argument: 'a_max'"),
        (lambda cp, x: np.exp(x, where=x > 1), "Wrong arguments"),
        (lambda cp, x: cp.zeros(3, like=x), "unexpected keyword argument 'like'"),
    ],
)
def test_arguments_that_cupy_does_not_take_are_refused(cupy: Any, x: Any, call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(cupy, x)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(str code=None, *, tuple options=(), bool on=False)", "(code=None, *, options=(), on=False)"),
        ("(unicode order=u'C', Py_ssize_t k=0)", "(order='C', k=0)"),
        (
            "(shape: '_ShapeLike', dtype: 'A | None' = <class 'float'>) -> 'NDArray[Any]'",
            "(shape, dtype=...)",
        ),
        ("(shape: Union[int, Sequence[int]], order: Literal[None, 'C'] = 'C')", "(shape, order='C')"),
        ("(x1, x2, /, out=None, \\*, casting='same_kind')", "(x1, x2, /, out=None, *, casting='same_kind')"),
    ],
)
def test_signatures_are_read_in_all_the_ways_that_cupy_writes_them(
    names: Any, text: str, expected: str
) -> None:
    assert names._normal(text) == expected


# What CuPy refuses.


def test_nothing_becomes_a_numpy_array_by_itself(cupy: Any, x: Any) -> None:
    for convert in (
        np.asarray,
        np.array,
        lambda a: np.zeros(3).dot(a[0]),
        lambda a: np.zeros((2, 3)).__setitem__(0, a[0]),
    ):
        with pytest.raises(
            TypeError,
            match=r"Implicit conversion to a NumPy array is not allowed|Unsupported type|no implementation",
        ):
            convert(x)
    assert np.array_equal(x.get(), np.arange(6).reshape(2, 3)) and float(x[1, 2]) == 5 and int(x.sum()) == 15
    for wrong in (float, int, bool):
        with pytest.raises((TypeError, ValueError)):
            wrong(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda cp, x, n: x + n,
        lambda cp, x, n: n * x,
        lambda cp, x, n: x + np.array(2.0),
        lambda cp, x, n: x @ n.T,
        lambda cp, x, n: n.T @ x,
        lambda cp, x, n: np.maximum(x, n),
        lambda cp, x, n: np.where(x > 1, x, n),
        lambda cp, x, n: cp.where(n > 1, x, 0),
        lambda cp, x, n: cp.concatenate([x, n]),
        lambda cp, x, n: np.concatenate([x, n]),
        lambda cp, x, n: cp.ascontiguousarray(n),
        lambda cp, x, n: x.__iadd__(n),
    ],
)
def test_numpy_arrays_do_not_mix_with_those_of_the_device(cupy: Any, x: Any, call: Any) -> None:
    with pytest.raises(TypeError):
        call(cupy, x, np.ones((2, 3)))


def test_values_of_the_host_are_assigned_one_by_one_or_not_at_all(cupy: Any, x: Any) -> None:
    x[0] = np.array(7.0)
    x[1, 1:] = 2
    assert x.tolist() == [[7, 7, 7], [3, 2, 2]]
    with pytest.raises(ValueError, match="non-scalar"):
        x[0] = np.ones(3)
    with pytest.raises(TypeError, match="float32 array cannot be set to float64 array"):
        x.set(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="Shape mismatch"):
        x.set(np.zeros(3))


def test_what_has_no_axes_is_an_array_and_not_a_number(cupy: Any, x: Any) -> None:
    for made in (x.sum(), x[0, 0], np.exp(x[0, 0]), x.sum() + 1):
        assert type(made) is cupy.ndarray and made.shape == ()
    assert type(x.sum() > 3) is cupy.ndarray and bool(x.sum() > 3)
    with pytest.raises(TypeError):
        hash(x)


def test_there_are_no_flags_but_those_of_the_layout(cupy: Any, x: Any) -> None:
    assert x.flags.c_contiguous and x.T.flags.f_contiguous and not x.T.flags.owndata
    with pytest.raises(AttributeError):
        x.flags.writeable = False


def test_indices_turn_round_at_the_end(cupy: Any, x: Any) -> None:
    assert x[:, cupy.asarray([3, -1, 4])].tolist() == [[0, 2, 1], [3, 5, 4]]
    assert x[x > 3].tolist() == [4, 5]
    assert x[..., None, cupy.asarray([5])].shape == (2, 1, 1)


def test_views_share_their_memory_and_copies_do_not(cupy: Any, x: Any) -> None:
    view = x.T[1:].reshape(2, 2)
    view[...] = -1
    assert x.tolist() == [[0, -1, -1], [3, -1, -1]]
    assert x.ravel().base is x and x.base is None and cupy.ascontiguousarray(x) is x
    assert x.astype(float, copy=False) is x and x.astype(float) is not x
    for same in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.copy()):
        same[...] = 9
        assert type(same) is cupy.ndarray and x[0, 0] == 0


def test_layouts_are_those_that_numpy_makes(cupy: Any) -> None:
    here = np.arange(24.0).reshape(2, 3, 4)
    there = cupy.asarray(here)
    for call in (
        lambda a: a.transpose(2, 0, 1) + 1,
        lambda a: a[::-1, ::2] * 2,
        lambda a: a.T.copy(),
        lambda a: a.sum(1),
    ):
        assert call(there).strides == call(here).strides and np.array_equal(call(there).get(), call(here))


# Memory.


def test_fresh_memory_holds_nan(cupy: Any, x: Any) -> None:
    assert np.isnan(cupy.empty((3, 4)).get()).all()
    del x
    assert np.isnan(cupy.empty((2, 3)).get()).all()  # that of x, given back


def test_the_pool_asks_the_device_once(cupy: Any) -> None:
    class Counter(cupy.cuda.MemoryHook):
        sizes: ClassVar[list[int]] = []

        def alloc_preprocess(self, **given: Any) -> None:
            self.sizes.append(given["mem_size"])

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before, free = pool.total_bytes(), cupy.cuda.Device().mem_info[0]
    with Counter() as counter:
        for _ in range(3):
            made = cupy.zeros(1000)
            del made
        assert counter.sizes == [8192]
        kept = [cupy.zeros(1000) for _ in range(2)]
        assert counter.sizes == [8192] * 2
    assert pool.total_bytes() == before + 2 * 8192 == before + free - cupy.cuda.Device().mem_info[0]
    assert kept[0].data.ptr % 512 == 0 and kept[0].data.ptr != kept[1].data.ptr
    kept.clear()
    pool.free_all_blocks()
    assert pool.total_bytes() == before
    with pytest.raises(MemoryError):
        cupy.empty(1 << 30)


def test_arrays_live_on_the_device_that_was_current(cupy: Any, x: Any) -> None:
    with cupy.cuda.Device(1):
        other = cupy.ones((2, 3))
        assert other.device.id == 1 == cupy.cuda.runtime.getDevice()
        with pytest.raises(ValueError, match="array device = 0 while current = 1"):
            x + 1
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        x + other
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        cupy.cuda.Device(2)


# Streams and graphs.


def test_a_stream_is_busy_until_somebody_waits(cupy: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True) as stream:
        x = cupy.ones(3)
        x += 1
        assert not stream.done and x.sum().item() == 6 and stream.done
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        x *= 2
        stop.record()
        with pytest.raises(RuntimeError, match="NotReady"):
            cupy.cuda.get_elapsed_time(start, stop)
        stop.synchronize()
        assert cupy.cuda.get_elapsed_time(start, stop) >= 0
    with pytest.raises(RuntimeError, match="InvalidResourceHandle"):
        cupy.cuda.get_elapsed_time(start, cupy.cuda.Event())


def test_a_graph_does_again_what_was_captured(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.asarray(np.arange(4.0))
        stream.begin_capture()
        y = cupy.sqrt(x) + 1
        total = y[1:].sum()
        y[0] = total
        graph = stream.end_capture()
        assert np.isnan(y.get()).all()  # nothing was done
        for values in ([0, 1, 4, 9.0], [0, 16, 25, 36.0]):
            x.set(np.array(values))
            graph.launch(stream)
            expected = np.sqrt(values) + 1
            assert total.item() == expected[1:].sum()
            assert y.tolist() == [expected[1:].sum(), *expected[1:]]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda cp, x: x @ x.T, NotImplementedError),
        (lambda cp, x: np.einsum("ij,kj->ik", x, x), NotImplementedError),
        (lambda cp, x: x.get(), RuntimeError),
        (lambda cp, x: float(x.sum()), RuntimeError),
        (lambda cp, x: x[x > 1], RuntimeError),
        (lambda cp, x: cp.cuda.get_current_stream().synchronize(), RuntimeError),
        (lambda cp, x: x.set(np.zeros((2, 3))), RuntimeError),
    ],
)
def test_what_waits_or_calls_cublas_cannot_be_captured(cupy: Any, x: Any, call: Any, error: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(error, match=r"cuBLAS API during stream capture|StreamCaptureUnsupported"):
                call(cupy, x)
        finally:
            stream.end_capture()
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream.null.begin_capture()


# Kernels.

SCALE = """
extern "C" __global__ void scale(const float* x, float* y, const int count, const float factor) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) y[at] = factor * x[at];
}
"""


def test_kernels_run_in_cupys_way(cupy: Any) -> None:
    kernel = cupy.RawModule(code=SCALE, options=("-std=c++17",)).get_function("scale")
    x = cupy.asarray(np.arange(40, dtype=np.float32))
    y = cupy.zeros_like(x)
    kernel((2,), (32,), (x, y, np.int32(40), np.float32(3)))
    assert np.array_equal(y.get(), 3 * np.arange(40))
    for position, wrong, message in (
        (0, x.get(), "Unsupported type"),
        (0, cupy.zeros((40, 2), np.float32)[:, 0], "not contiguous"),
        (0, cupy.zeros(161, np.uint8)[1:].view(np.float32), "MisalignedAddress"),
        (2, 40, "no certain size"),
    ):
        given: list[Any] = [x, y, np.int32(40), np.float32(3)]
        given[position] = wrong
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            kernel((2,), (32,), tuple(given))
    with pytest.raises(RuntimeError, match="symbol not found"):
        cupy.RawKernel(SCALE, "scales")


def test_a_reduction_goes_through_all_elements_with_their_places(cupy: Any) -> None:
    total = cupy.ReductionKernel(
        "uint64 word", "uint64 total", "word * (_i + 1)", "a + b", "total = a", "0", "weighed"
    )
    assert total(cupy.asarray(np.array([5, 7, 11], np.uint64))).item() == 5 + 2 * 7 + 3 * 11


def test_another_machine_takes_the_place_of_the_host_build(
    cupy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module with a `run` of the same arguments, named by the environment when the stand-in is imported."""
    seen: list[tuple] = []
    machine = ModuleType("another_machine")
    machine.run = lambda *args: seen.append(args)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, machine.__name__, machine)
    monkeypatch.setattr(sys.modules["cupy._kernels"], "MACHINE", machine.__name__)
    x = cupy.zeros(40, np.float32)
    cupy.RawKernel(SCALE, "scale")((2,), (32,), (x, x, np.int32(40), np.float32(3)), shared_mem=16)
    ((program, *rest),) = seen
    assert program.text == SCALE and rest[:3] == ["scale", (2, 1, 1), (32, 1, 1)] and rest[-1] == 16
    assert all(type(array) is np.ndarray for array in rest[3][:2])
