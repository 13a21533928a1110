"""Operators on arrays of dask: lazy, with the bits of the whole, and right when a worker dies."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from _contract import Call, each_with_halo, make_call, seeded_case, with_halo

import dynarray as dyn
from autodiff import Variable
from dynarray import Operator

dask = pytest.importorskip("dask", reason="dask is not installed (extra: dask)")
da = pytest.importorskip("dask.array", reason="dask is not installed (extra: dask)")
PATIENCE = 100  # seconds after which a cluster that has not moved will not move


@pytest.fixture(autouse=True)
def _in_this_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def _lazy(call: Call, *, whole: bool) -> tuple[Any, ...]:
    """The arrays in chunks; `whole`: those without places too, unless their values say what is read."""
    operator, axes = call.operator, len(call.operator.reads.space.image)
    reaches, made = operator.halo(call.params, call.arrays), list[Any]()
    for name, array in zip(operator.arrays, call.arrays):
        if array is None or (reaches[name] is None and (not whole or name in operator.reads.values.split())):
            made.append(array)
        elif reaches[name] is None:
            made.append(da.from_array(array))
        else:
            chunks = (7, 9) if axes == 2 else (40,)
            made.append(da.from_array(array, chunks=(1, *[-1] * (array.ndim - 1 - axes), *chunks)))
    return tuple(made)


def _ragged(size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Chunks of any sizes, of a single row or column too: smaller than what is read around them."""
    edges = np.unique(rng.integers(1, max(size, 2), 1 + size // 6))
    return tuple(np.diff([0, *edges[edges < size], size]).tolist())


@each_with_halo
@pytest.mark.slow
def test_ragged_chunks_of_each_array_for_itself(operator: Operator) -> None:
    rng = np.random.default_rng(9)
    for seed in (11, 12):
        call = with_halo(make_call(operator, seeded_case(operator, seed, N=3, H=13, W=17), seed))
        reaches = operator.halo(call.params, call.arrays)
        arrays = tuple(
            a
            if a is None or (n != "x" and reaches[n] is None)
            else da.from_array(a, chunks=tuple(_ragged(size, rng) for size in a.shape))
            for n, a in zip(operator.arrays, call.arrays)
        )
        whole = operator(call.arrays, **call.params)
        assert operator(arrays, **call.params).compute().tobytes() == whole.tobytes(), call.describe()
        positional, by_keyword = operator.arguments(arrays)
        grad = da.from_array(call.grad_output, chunks=tuple(_ragged(n, rng) for n in whole.shape))
        found = getattr(dyn, f"{operator.name}_backward")(grad, *positional, **by_keyword, **call.params)
        right = operator.backward_pass(call.grad_output, call.arrays, call.params, (True,) * len(arrays))
        for name, own, wanted in zip(operator.arrays, dask.compute(*found), right):
            if wanted is not None:
                unit = 1e-11 * max(1.0, float(np.abs(wanted).max(initial=0)))
                np.testing.assert_allclose(own, wanted, 1e-11, unit, err_msg=f"{name} {call.describe()}")


def _calls(operator: Operator) -> Iterator[Call]:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        sizes = {"N": 2, "H": int(rng.integers(12, 30)), "W": int(rng.integers(12, 30))}
        yield with_halo(make_call(operator, seeded_case(operator, seed, **sizes), seed))


@each_with_halo
def test_outputs_have_the_bits_of_the_whole(operator: Operator) -> None:
    for seed, call in enumerate(_calls(operator)):
        whole = operator(call.arrays, **call.params)
        lazy = operator(_lazy(call, whole=bool(seed)), **call.params)
        assert isinstance(lazy, da.Array) and lazy.shape == whole.shape and lazy.dtype == whole.dtype
        assert lazy.compute().tobytes() == whole.tobytes(), call.describe()


@each_with_halo
def test_gradients_are_those_of_the_whole_in_the_chunks_of_their_arrays(operator: Operator) -> None:
    backward = getattr(dyn, f"{operator.name}_backward")
    for seed, call in enumerate(_calls(operator)):
        arrays = _lazy(call, whole=bool(seed))
        positional, by_keyword = operator.arguments(arrays)
        grad = da.from_array(call.grad_output)
        lazy = backward(grad, *positional, **by_keyword, **call.params)
        whole = operator.backward_pass(call.grad_output, call.arrays, call.params, (True,) * len(arrays))
        for name, array, own, right in zip(operator.arrays, arrays, lazy, whole):
            if right is None:
                assert own is None, name
                continue
            assert isinstance(own, da.Array)
            if isinstance(array, da.Array):
                assert own.chunks == array.chunks, name
            unit = 1e-11 * max(1.0, float(np.abs(right).max(initial=0)))
            np.testing.assert_allclose(own.compute(), right, 1e-11, unit, err_msg=f"{name} {call.describe()}")


def _ddf(chunks: int = 16) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(3)
    shapes = (1, 4, 64, 96), (1, 4, 3, 3), (1, 1, 3, 3, 64, 96)
    x, channel, spatial = map(rng.standard_normal, shapes)
    return (
        da.from_array(x, chunks=(1, 4, chunks, chunks)),
        channel,
        da.from_array(spatial, chunks=(1, 1, 3, 3, chunks, chunks)),
    )


def test_chunks_stay_as_they_are() -> None:
    x, channel, spatial = _ddf()
    assert dyn.ddf(x, channel, spatial).chunks == x.chunks
    assert dyn.ddf(x, channel, spatial[..., ::2, ::2], stride=2).chunks[2:] == ((8,) * 4, (8,) * 6)
    masks = da.zeros((1, 9, 128, 192), chunks=(1, 9, 50, 50))
    assert dyn.carafe(x, masks, kernel_size=3).chunks[2:] == ((32,) * 4, (32,) * 6)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    def never(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    x, channel, spatial = _ddf()
    lazy = x.map_blocks(never, dtype=x.dtype, meta=x._meta)
    y = dyn.ddf(lazy, channel, spatial)
    dyn.ddf_backward(y, lazy, channel, spatial)
    with pytest.raises(AssertionError, match="computed"):
        y.compute()


def test_a_chunk_needs_its_neighbours_and_no_others() -> None:
    seen: list[tuple[int, ...]] = []

    def counted(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info:
            seen.append(tuple(block_info[0]["chunk-location"][2:]))
        return block

    x, channel, spatial = _ddf()
    lazy = x.map_blocks(counted, dtype=x.dtype, meta=x._meta)
    dyn.ddf(lazy, channel, spatial).blocks[0, 0, 1, 2].compute()
    assert sorted(seen) == [(i, j) for i in range(3) for j in range(1, 4)]


def test_blocks_have_the_kind_of_the_inputs() -> None:
    x, channel, spatial = _ddf()
    y = dyn.ddf(x, channel, spatial)
    assert type(y._meta) is np.ndarray and y._meta.dtype == x.dtype
    single = dyn.ddf(x.astype(np.float32), channel.astype(np.float32), spatial.astype(np.float32))
    assert single.dtype == single.compute().dtype == np.float32


def test_refusals_name_operator_and_argument() -> None:
    x, channel, spatial = _ddf()
    with pytest.raises(ValueError, match=r"ddf: spatial_filter must have shape"):
        dyn.ddf(x, channel, spatial[..., 1:])
    with pytest.raises(ValueError, match=r"ddf: grad_output must have the shape of the output"):
        dyn.ddf_backward(x[..., 1:], x, channel, spatial)
    with pytest.raises(TypeError, match=r"ddf: unknown parameter|ddf\(\) got an unexpected"):
        dyn.ddf(x, channel, spatial, strode=2)  # type: ignore[call-arg]
    for bad, words in (
        (x.astype(int), r"ddf: channel_filter has dtype float64 but x has int64"),
        (x.compute().tolist(), r"ddf: x must be a numpy\.ndarray or cupy\.ndarray, got list"),
        (Variable(x.compute()), r"ddf: x must be a numpy\.ndarray .*, got autodiff\.variable\.Variable"),
    ):
        with pytest.raises(TypeError, match=words):
            dyn.ddf(bad, channel, spatial)
    with pytest.raises(TypeError, match=r"ddf: grad_output has dtype float32 but x has float64"):
        dyn.ddf_backward(x.astype(np.float32), x, channel, spatial)
    with pytest.raises(
        ValueError, match=r"ddf: x must have chunks of known sizes, got shape \(1, 4, nan, 96\)"
    ):
        dyn.ddf(x[:, :, x[0, 0, :, 0] > 0], channel, spatial)
    with pytest.raises(TypeError, match=r"displaced_conv2d: displacement must be no dask array"):
        dyn.displaced_conv2d(x, np.ones((1, 4, 1)), da.zeros((1, 4, 1, 2)))


def test_no_outputs() -> None:
    x = da.zeros((1, 2, 0, 5), chunks=(1, 2, 1, 5))
    weight = da.zeros((1, 1, 3, 3, 0, 5))
    assert dyn.local_filter2d(x, weight).compute().shape == (1, 2, 0, 5)
    assert dyn.local_filter2d_backward(x, x, weight).weight.compute().shape == (1, 1, 3, 3, 0, 5)


def _slow(block: np.ndarray, log: str) -> np.ndarray:
    """A chunk that takes a while, and leaves a line when it is there."""
    time.sleep(0.02)
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")
    return block


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_cluster_of_processes_of_which_one_is_killed(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")
    log = tmp_path / "log"
    log.touch()
    x, channel, spatial = _ddf(8)
    whole = dyn.ddf(x.compute(), channel, spatial.compute())
    settings = {"distributed.scheduler.allowed-failures": 10, "distributed.worker.daemon": True}
    with (
        mock.patch.dict(os.environ),  # what dask tells its workers by it, it leaves there
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=tmp_path,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=PATIENCE)
        lazy = x.map_blocks(_slow, str(log), dtype=x.dtype, meta=x._meta)
        y = dyn.ddf(lazy, channel, spatial)
        gradients = dyn.ddf_backward(y, lazy, channel, spatial)
        futures = client.compute([y, gradients.x, gradients.channel_filter])
        begin, workers = time.monotonic(), []
        while len(workers) < 10:
            assert time.monotonic() < begin + PATIENCE, "the cluster does nothing"
            time.sleep(0.05)
            workers = log.read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        output, grad_x, grad_channel = client.gather(futures)
    done = log.read_text().split()
    assert len(done) >= 96  # every chunk was made, some of them twice
    assert output.tobytes() == whole.tobytes()
    right = dyn.ddf_backward(whole, x.compute(), channel, spatial.compute())
    np.testing.assert_allclose(grad_x, right.x, 1e-11, 1e-11)
    np.testing.assert_allclose(grad_channel, right.channel_filter, 1e-11, 1e-9)
