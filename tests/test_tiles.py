"""Tiles: the bits of the whole, each array read and written once, and jobs that go on after a kill."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _contract import Call, each_with_halo, make_call, seeded_case, with_halo
from _processes import TESTS

import dynarray as dyn
from dynarray import Operator, tiles

RNG = np.random.default_rng


def _tile(operator: Operator, rng: np.random.Generator) -> Any:
    rows, columns = int(rng.integers(3, 20)), int(rng.integers(3, 25))
    return (rows, columns) if len(operator.reads.space.image) == 2 else 10 * columns


def _calls(operator: Operator, seeds: range) -> Any:
    """Calls on images of several tiles, in either dtype."""
    for seed in seeds:
        rng = RNG(seed)
        sizes = {"N": 1 + seed % 2, "H": int(rng.integers(20, 45)), "W": int(rng.integers(20, 60))}
        call = with_halo(make_call(operator, seeded_case(operator, seed, **sizes), seed))
        yield call.astype((np.float64, np.float32)[seed % 2]), _tile(operator, rng)


def _empty(call: Call) -> tuple[Any, ...]:
    return tuple(np.full_like(a, np.nan) if hasattr(a, "shape") else None for a in call.arrays)


@each_with_halo
def test_tiles_have_the_bits_of_the_whole(operator: Operator) -> None:
    for call, tile in _calls(operator, range(3)):
        whole = operator(call.arrays, **call.params)
        out = tiles.apply(operator, call.arrays, np.full_like(whole, np.nan), tile, params=call.params)
        assert out.tobytes() == whole.tobytes(), call.describe()


@each_with_halo
def test_gradients_by_tiles_are_those_of_the_whole(operator: Operator) -> None:
    for call, tile in _calls(operator, range(3)):
        whole = operator.backward_pass(call.grad_output, call.arrays, call.params, (True,) * len(call.arrays))
        outs = tiles.gradient(operator, call.arrays, call.grad_output, _empty(call), tile, params=call.params)
        for name, own, right in zip(operator.arrays, outs, whole):
            if right is not None:
                unit = np.finfo(right.dtype).eps * max(1.0, float(np.abs(right).max(initial=0)))
                np.testing.assert_allclose(
                    own,
                    right,
                    1e-3 if right.dtype == np.float32 else 1e-11,
                    400 * unit,
                    err_msg=f"{name} of {call.describe()}",
                )


def test_gradients_of_windows_that_begin_and_end_anywhere() -> None:
    """Drawn: wide and narrow paddings, steps, holes, every border and tiles of any size, also one of all."""
    rng, borders = RNG(0), ["constant", "edge", "reflect", "symmetric"]
    for number in range(60):
        size, k, stride, dilation = (int(rng.integers(1, n)) for n in (20, 5, 4, 4))
        padding = int(rng.integers(0, 9))
        outputs = (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        border = borders[number % len(borders)]
        if outputs < 1 or (border == "symmetric" and size == 1):
            continue
        arrays = rng.standard_normal((1, 1, size)), rng.standard_normal((1, 1, k, outputs))
        params = {"stride": stride, "dilation": dilation, "padding": padding, "border": border}
        grad, tile = rng.standard_normal((1, 1, outputs)), int(rng.integers(1, outputs + 3))
        with dyn.use_backend("reference"):
            whole = dyn.local_filter1d(*arrays, **params)
            out = tiles.apply(dyn.local_filter1d, (*arrays, None), np.empty_like(whole), tile, params=params)
            np.testing.assert_allclose(out, whole, 1e-12, 1e-12, err_msg=f"{size} {k} {params} {tile}")
            outs = *map(np.empty_like, arrays), None
            tiles.gradient(dyn.local_filter1d, (*arrays, None), grad, outs, tile, params=params)
            right = dyn.local_filter1d_backward(grad, *arrays, **params)
        for own, wanted in zip(outs, right[:2]):
            np.testing.assert_allclose(own, wanted, 1e-11, 1e-11, err_msg=f"{size} {k} {params} {tile}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["deform_conv2d", "displaced_conv2d", "far displaced_conv2d", "atom_conv2d"])
def test_kernels_that_add_up_fewer_channels_of_larger_images(name: str, dtype: Any) -> None:
    rng, high, wide, channels = RNG(0), 60, 1500, 96

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    x = some(1, channels, high, wide)
    operator = dyn.OPERATORS[name.removeprefix("far ")]
    params: dict[str, Any] = {}
    if name == "deform_conv2d":
        params["padding"] = 1
        arrays: tuple[Any, ...] = (
            x,
            3 * some(1, 1, 3, 3, 2, high, wide),
            some(8, channels, 3, 3),
            None,
            some(8),
        )
    elif name == "atom_conv2d":
        arrays = x, some(1, 4, 5, 5, high, wide), some(8, channels, 4), None
    else:
        spread = 20 if "far" in name else 2
        arrays = x, some(8, channels, 2), spread * some(8, channels, 2, 2), 0.5, None
    whole = operator(arrays, **params)
    out = tiles.apply(operator, arrays, np.full_like(whole, np.nan), (31, 400), params=params)
    assert out.tobytes() == whole.tobytes()


def test_rows_that_kernels_make_together_are_those_that_tiles_keep_together() -> None:
    from dynarray.cpu.displaced.tiles import UNIT_ROWS
    from dynarray.displaced import ROWS_TOGETHER

    assert ROWS_TOGETHER == UNIT_ROWS


class _Counted:
    """An array that counts how often each element is read and written."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.reads, self.writes = np.zeros(array.shape, int), np.zeros(array.shape, int)
        self.slices = 0

    def __getitem__(self, index: Any) -> np.ndarray:
        self.reads[index] += 1
        self.slices += 1
        return self.array[index]

    def __setitem__(self, index: Any, values: Any) -> None:
        self.writes[index] += 1
        self.array[index] = values


def _ddf() -> tuple[Any, ...]:
    rng = RNG(3)
    return (
        rng.standard_normal((1, 4, 40, 60)),
        rng.standard_normal((1, 4, 3, 3)),
        rng.standard_normal((1, 1, 3, 3, 40, 60)),
    )


def test_each_input_is_read_once_and_its_halo_and_each_output_written_once() -> None:
    x, channel, spatial = map(_Counted, _ddf())
    out = _Counted(np.empty((1, 4, 40, 60)))
    tiles.apply(dyn.ddf, (x, channel, spatial), out, (10, 20))
    assert out.array.tobytes() == dyn.ddf(*_ddf()).tobytes()
    assert (out.writes == 1).all() and not out.reads.any()
    assert (channel.reads == 1).all() and (spatial.reads == 1).all()
    assert x.slices == 12 and spatial.slices == 12
    rows, columns = np.ones(40, int), np.ones(60, int)
    for edge in (10, 20, 30):
        rows[edge - 1 : edge + 1] += 1
    for edge in (20, 40):
        columns[edge - 1 : edge + 1] += 1
    assert (x.reads == rows[:, None] * columns).all()


def test_gradients_read_each_input_once_and_twice_its_halo() -> None:
    arrays = tuple(map(_Counted, _ddf()))
    grad = _Counted(RNG(4).standard_normal((1, 4, 40, 60)))
    outs = tuple(_Counted(np.empty(a.shape)) for a in arrays)
    tiles.gradient(dyn.ddf, arrays, grad, outs, (10, 20))
    for array in (arrays[0], arrays[2], grad):
        assert array.slices == 12
        assert (array.reads[..., 3:7, 3:17] == 1).all() and array.reads.max() <= 4
    for out in outs:
        assert (out.writes == 1).all() and not out.reads.any()


def test_any_array_that_takes_slices(tmp_path: Path) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    whole = dyn.ddf(*_ddf())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for kind in ("memmap", "hdf5", "zarr"):
            inputs = []
            for i, array in enumerate(_ddf()):
                if kind == "memmap":
                    held = np.lib.format.open_memmap(tmp_path / f"{i}.npy", "w+", array.dtype, array.shape)
                elif kind == "hdf5":
                    held = file.create_dataset(f"in{i}", array.shape, array.dtype, chunks=True)
                else:
                    held = zarr.create_array(tmp_path / f"{i}.zarr", shape=array.shape, dtype=array.dtype)
                held[...] = array
                inputs.append(held)
            if kind == "memmap":
                out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", whole.dtype, whole.shape)
            elif kind == "hdf5":
                out = file.create_dataset("out", whole.shape, whole.dtype, chunks=True)
            else:
                out = zarr.create_array(tmp_path / "out.zarr", shape=whole.shape, dtype=whole.dtype)
            tiles.apply(dyn.ddf, inputs, out, 16)
            assert np.asarray(out[...]).tobytes() == whole.tobytes(), kind
    assert not list(tmp_path.glob("*.tiles*"))  # done


JOB = """
import os, signal, sys
import numpy as np, dynarray as dyn
folder, kill_at, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = np.random.default_rng(3)
x, channel, spatial = (rng.standard_normal(s) for s in ((1, 4, 40, 60), (1, 4, 3, 3), (1, 1, 3, 3, 40, 60)))
grad = rng.standard_normal(x.shape)

class Killing:
    shape, dtype, written = x.shape, x.dtype, 0
    def __init__(self, name):
        self.map = np.load(f"{folder}/{name}.npy", mmap_mode="r+")
        self.filename = f"{folder}/{name}.npy"
    def __getitem__(self, index):
        return self.map[index]
    def __setitem__(self, index, values):
        if Killing.written == kill_at:
            half = values.copy()
            half[..., half.shape[-1] // 2:] = 1e9  # a tile that was written in part
            self.map[index] = half
            os.kill(os.getpid(), signal.SIGKILL)
        Killing.written += 1
        self.map[index] = values

out = Killing("out")
if kind == "apply":
    dyn.tiles.apply(dyn.ddf, (x, channel, spatial), out, (10, 20))
else:
    sums = np.load(f"{folder}/sums.npy", mmap_mode="r+")
    dyn.tiles.gradient(dyn.ddf, (x, channel, spatial), grad, (out, sums, None), (10, 20))
print(Killing.written)
"""


def _job(folder: Path, kill_at: int, kind: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", JOB, str(folder), str(kill_at), kind],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["apply", "gradient"])
def test_a_job_that_is_killed_goes_on_where_it_was(tmp_path: Path, kind: str, seed: int) -> None:
    """Killed at any of its 12 tiles, and, going on, at any of those that are left."""
    draw = RNG(seed)
    first = int(draw.integers(12))
    second = int(draw.integers(12 - first))
    x, channel, spatial = _ddf()
    rng = RNG(3)
    x, channel, spatial = (rng.standard_normal(a.shape) for a in (x, channel, spatial))
    grad = rng.standard_normal(x.shape)
    np.save(tmp_path / "out.npy", np.full(x.shape, np.nan))
    np.save(tmp_path / "sums.npy", np.full(channel.shape, np.nan))
    journal = tmp_path / "out.npy.tiles"
    assert _job(tmp_path, first, kind).returncode == -signal.SIGKILL
    told = [json.loads(line)["tile"] for line in journal.read_text().splitlines()[1:]]
    assert told == list(range(first))
    with journal.open("a") as file:
        file.write('{"tile": 1')  # a line that was cut off
    last = _job(tmp_path, second, kind)
    assert last.returncode == -signal.SIGKILL, last.stderr
    done = _job(tmp_path, 99, kind)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 12 - first - second
    assert not list(tmp_path.glob("*.tiles*"))
    sums = np.empty(channel.shape)
    if kind == "apply":
        right = dyn.ddf(x, channel, spatial)
    else:
        right = np.empty(x.shape)
        tiles.gradient(dyn.ddf, (x, channel, spatial), grad, (right, sums, None), (10, 20))
        assert np.load(tmp_path / "sums.npy").tobytes() == sums.tobytes()
    assert np.load(tmp_path / "out.npy").tobytes() == right.tobytes()


class _Stopping(_Counted):
    """An output whose disk is full after a few tiles."""

    def __setitem__(self, index: Any, values: Any) -> None:
        if self.writes.any():
            raise OSError("no space left")
        super().__setitem__(index, values)


def _stopped(journal: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of a job that stopped after a tile."""
    job: dict[str, Any] = {
        "function": dyn.ddf,
        "arrays": _ddf(),
        "tile": 20,
        "params": {},
        "journal": journal,
    }
    with pytest.raises(OSError, match="no space left"):
        tiles.apply(out=_Stopping(np.zeros((1, 4, 40, 60))), **job)
    return job | changes


def _other(job: dict[str, Any], place: int, array: np.ndarray) -> tuple[Any, ...]:
    return tuple(array if i == place else own for i, own in enumerate(job["arrays"]))


CHANGES: dict[str, Any] = {
    "tiles": lambda job: {"tile": 10},
    "parameters": lambda job: {"params": {"combine": "add"}},
    "weights": lambda job: {"arrays": _other(job, 1, job["arrays"][1] + 1)},
    "function": lambda job: {
        "function": dyn.local_filter2d,
        "arrays": (*job["arrays"][::2], job["arrays"][1]),
    },
    "arrays": lambda job: {"arrays": _other(job, 2, np.ones((1, 2, 3, 3, 40, 60)))},
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_journal_of_another_job_is_refused(tmp_path: Path, what: str) -> None:
    job = _stopped(tmp_path / "journal")
    with pytest.raises(
        ValueError,
        match=rf"tiles.apply: .*journal of another job: {what}" if what != "weights" else "parameters",
    ):
        tiles.apply(out=np.zeros((1, 4, 40, 60)), **(job | CHANGES[what](job)))
    assert (tmp_path / "journal").exists()


def test_sums_that_are_gone_are_not_begun_anew(tmp_path: Path) -> None:
    job: dict[str, Any] = {"function": dyn.ddf, "arrays": _ddf(), "tile": 20, "journal": tmp_path / "j"}
    grad, whole = np.ones((1, 4, 40, 60)), np.empty((1, 4, 3, 3))
    with pytest.raises(OSError, match="no space left"):
        tiles.gradient(grad_output=grad, outs=(_Stopping(np.zeros((1, 4, 40, 60))), whole, None), **job)
    (tmp_path / "j.sums.npz").unlink()
    with pytest.raises(ValueError, match="the sums over them, is gone"):
        tiles.gradient(grad_output=grad, outs=(np.zeros((1, 4, 40, 60)), whole, None), **job)


def test_a_network_whose_weights_changed_is_another_job(tmp_path: Path) -> None:
    from autodiff.layers import Conv2d

    network, x = Conv2d(2, 2, 3, rng=0), RNG(0).standard_normal((1, 2, 20, 20)).astype(np.float32)
    job: dict[str, Any] = {
        "function": network,
        "arrays": (x,),
        "tile": 10,
        "halo": (1,),
        "journal": tmp_path / "j",
    }
    with pytest.raises(OSError, match="no space left"):
        tiles.apply(out=_Stopping(np.zeros_like(x)), **job)
    network.weight.data[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="journal of another job: parameters"):
        tiles.apply(out=np.zeros_like(x), **job)


def test_a_function_whose_network_holds_other_averages_is_another_job(tmp_path: Path) -> None:
    """Whether it refers to the network from inside of another function, or is partial; not by its weights."""
    from autodiff.layers import DDF, hold_averages

    x, other = RNG(0).standard_normal((2, 1, 4, 20, 20)).astype(np.float32)
    network = hold_averages(DDF(4, 3, rng=0), x)

    def inside(image: Any, factor: float = 1.0) -> Any:
        return network(image) * factor

    job: dict[str, Any] = {"arrays": (x,), "tile": 10, "halo": (1,), "journal": tmp_path / "j"}
    twice, thrice = (functools.partial(inside, factor=factor) for factor in (2.0, 3.0))
    for function in (inside, twice, network.forward):
        with pytest.raises(OSError, match="no space left"):
            tiles.apply(function, out=_Stopping(np.zeros_like(x)), **job)
        hold_averages(network, other)
        with pytest.raises(ValueError, match="journal of another job: parameters"):
            tiles.apply(function, out=np.zeros_like(x), **job)
        hold_averages(network, x)
        if function is twice:
            with pytest.raises(ValueError, match="journal of another job: parameters"):
                tiles.apply(thrice, out=np.zeros_like(x), **job)
        tiles.apply(function, out=np.zeros_like(x), **job)


def test_no_file_no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="no space left"):
        tiles.apply(dyn.ddf, _ddf(), _Stopping(np.zeros((1, 4, 40, 60))), 20)
    assert not list(tmp_path.iterdir())


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few arrays": ({"arrays": _ddf()[:2]}, ValueError, r"tiles\.apply: arrays must be those of ddf"),
    "no halo": ({"function": np.add}, TypeError, r"tiles\.apply: add is no operator .*halo"),
    "a halo too many": ({"halo": (1, None, 0)}, TypeError, r"ddf knows its halo"),
    "no function": ({"function": 3}, TypeError, r"tiles\.apply: function must be"),
    "tile 0": ({"tile": 0}, ValueError, r"tiles\.apply: tile must be at least 1"),
    "tile of floats": ({"tile": 1.5}, TypeError, r"tiles\.apply: tile must be an int"),
    "unknown parameter": ({"params": {"strode": 1}}, TypeError, r"ddf: unknown parameter 'strode'"),
    "dtype of out": (
        {"out": np.zeros((1, 4, 40, 60), np.float32)},
        ValueError,
        r"tiles\.apply: out .*float64.*float32",
    ),
    "channels of out": (
        {"out": np.zeros((1, 1, 40, 60))},
        ValueError,
        r"tiles\.apply: out must have the shape of the output, \(1, 4, 40, 60\)",
    ),
    "size of out": (
        {"out": np.zeros((1, 4, 39, 60))},
        ValueError,
        r"tiles\.apply: out must have the shape of the output",
    ),
    "progress": ({"progress": 1}, TypeError, r"tiles\.apply: progress must be a bool"),
}


@pytest.mark.parametrize("what", BAD)
def test_refusals_name_the_argument(what: str) -> None:
    changes, error, words = BAD[what]
    good: dict[str, Any] = {
        "function": dyn.ddf,
        "arrays": _ddf(),
        "out": np.zeros((1, 4, 40, 60)),
        "tile": 16,
    }
    with pytest.raises(error, match=words):
        tiles.apply(**(good | changes))


def test_the_backward_pass_of_a_function_is_given_or_missed() -> None:
    x, kernel = RNG(0).standard_normal((1, 2, 30, 30)), RNG(1).standard_normal((2, 2, 3, 3))
    from autodiff import functions as F
    from autodiff import vjp

    def backward(grad: Any, image: Any, weight: Any, *, needs: tuple[bool, ...]) -> Any:
        _, pull = vjp(lambda a, b: F.conv2d(a, b, padding=1), image, weight)
        return pull(grad)

    def forward(image: Any, weight: Any) -> Any:
        return F.conv2d(image, weight, padding=1)

    grad, outs = RNG(2).standard_normal(x.shape), (np.empty_like(x), np.empty_like(kernel))
    tiles.gradient(forward, (x, kernel), grad, outs, 8, halo=(1, None), backward=backward)
    for own, right in zip(outs, backward(grad, x, kernel, needs=(True, True))):
        np.testing.assert_allclose(own, right, 1e-11, 1e-11)
    with pytest.raises(TypeError, match=r"tiles\.gradient: backward must be given"):
        tiles.gradient(forward, (x, kernel), grad, outs, 8, halo=(1, None))


def test_a_bar_counts_the_tiles(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tqdm")
    tiles.apply(dyn.ddf, _ddf(), np.empty((1, 4, 40, 60)), 20, progress=True)
    assert "6/6" in capsys.readouterr().err
