"""What one rank does, in which order, without others: overlap, NCCL with the stand-in for CuPy, refusals."""

import copy
import inspect
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _standin import standing_in

from autodiff import Tape, Variable, differentiable, distributed
from autodiff import functions as F
from autodiff.distributed import _mpi
from autodiff.layers import BatchNorm2d
from autodiff.train import minibatches


class Noting(distributed.Communicator):
    """Two ranks, of which the other does exactly the same; it notes what is begun and waited for."""

    size = 2

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def all_gather(self, array: Any, what: str = "all_gather") -> Any:
        return np.stack([array, array])

    def start_sum(self, array: Any, what: str = "start_sum") -> distributed.Sum:
        self.log.append(("begun", array.size))
        array *= 2
        noting = distributed.Sum()
        noting.wait = lambda: self.log.append(("waited", array.size))  # type: ignore[method-assign]
        return noting


def chain(log: list[Any], sizes: tuple[int, ...]) -> tuple[Any, list[Variable]]:
    """A loss that uses parameters one after the other, and notes when the rule of each runs."""
    parameters = [Variable(np.full(size, 0.5)) for size in sizes]

    def rule(grad: Any, saved: Any) -> tuple:
        log.append(("rule", saved.p.size))
        return grad, np.full(saved.p.shape, float(grad))

    @differentiable("x p", joint=("p", lambda grad, saved, needs: rule(grad, saved)))
    def add(x: Any, p: Any) -> Any:
        return np.asarray(x + p.sum())

    loss: Any = Variable(np.array(1.0))
    with Tape() as tape:
        for parameter in parameters:
            loss = add(loss, parameter)
    return (tape, loss), parameters


def test_sums_begin_while_the_backward_pass_goes_on() -> None:
    log: list[Any] = []
    (tape, loss), parameters = chain(log, (3, 4, 5))
    found = distributed.value_and_gradient(tape, loss, parameters, Noting(log), bucket=1)
    assert log == [
        *(("rule", 5), ("begun", 6), ("rule", 4), ("begun", 5), ("rule", 3), ("begun", 4)),
        *(("waited", 6), ("waited", 5), ("waited", 4)),
    ]
    assert found.value == 1 + 0.5 * 12
    for gradient in found.gradients:
        np.testing.assert_array_equal(gradient, 1)  # half of 1 from each of two ranks


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_sums_begin_in_one_order_whichever_gradient_is_first(order: tuple[int, ...]) -> None:
    """Else ranks whose losses differ would add up what does not belong together."""
    log: list[Any] = []
    (tape, loss), used = chain(log, tuple((3, 4, 5)[place] for place in order))
    parameters = [used[order.index(place)] for place in range(3)]
    distributed.value_and_gradient(tape, loss, parameters, Noting(log), bucket=1)
    assert [size for kind, size in log if kind == "begun"] == [6, 5, 4]


@pytest.mark.parametrize(("bucket", "sums"), [(1, [2, 2, 2, 2]), (16, [4, 4]), (17, [5, 2]), (1000, [7])])
def test_gradients_travel_together_up_to_a_size(bucket: int, sums: list[int]) -> None:
    """Each of 8 bytes, and a number for each that says whether there is one."""
    log: list[Any] = []
    (tape, loss), parameters = chain(log, (1, 1, 1, 1))
    distributed.value_and_gradient(tape, loss, parameters, Noting(log), bucket=bucket)
    expected = {7: [8], 5: [6, 2]}.get(sums[0], sums)
    assert [size for kind, size in log if kind == "begun"] == expected


def test_bad_calls_are_refused() -> None:
    log: list[Any] = []
    (tape, loss), parameters = chain(log, (1,))
    comm = Noting(log)
    with tape, pytest.raises(ValueError, match="value_and_gradient: a tape still records"):
        distributed.value_and_gradient(tape, loss, parameters, comm)
    for options, message in (
        ({"weight": -1}, "weight must be a finite number of at least 0, got -1"),
        ({"weight": np.nan}, "weight must be a finite number of at least 0, got nan"),
        ({"unused": "never"}, "unused must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            distributed.value_and_gradient(tape, loss, parameters, comm, **options)
    with pytest.raises(ValueError, match=r"loss must be a Variable of a single number"):
        distributed.value_and_gradient(tape, Variable(np.ones(2)), parameters, comm)
    with pytest.raises(TypeError, match=r"sources must be Variables, got ndarray"):
        distributed.value_and_gradient(tape, loss, [np.ones(2)], comm)
    with pytest.raises(ValueError, match=r"minibatches: rank must be .* got 2 of 2"):
        minibatches(4, np.ones(8), rank=2, ranks=2)
    assert log == []


def test_one_process_is_a_communicator_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed.LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    comm = distributed.communicator()
    assert (comm.rank, comm.size, comm.gather(3), comm.sum(4.5), comm.first("a")) == (0, 1, [3], 4.5, "a")
    layer = BatchNorm2d(2)
    assert distributed.synchronize_batch_norm(layer, comm) is layer and layer.ranks is None
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(comm)
    assert copy.deepcopy(comm) is comm
    w = Variable(np.array([1.0, 2.0], np.float16))
    with Tape() as tape:
        loss = F.sum(w * w)
    value, (gradient,), _ = distributed.value_and_gradient(tape, loss, [w], comm, weight=7)
    assert value == 5 and gradient.dtype == np.float16 and gradient.tolist() == [2, 4]


def test_a_meeting_has_room_for_four_numbers() -> None:
    comm = distributed.Communicator()
    assert comm.meet("here", 1, 2, 3, 4).tolist() == [[1, 2, 3, 4]]
    assert comm.agree("here", ["a", "b"], 5, 6, 7).tolist() == [[5, 6, 7]]
    with pytest.raises(ValueError, match=r"^meet: at most 4 numbers, not 5; all_gather takes whole arrays$"):
        comm.meet("here", 1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"^agree: at most 3 numbers, not 4"):
        comm.agree("here", ["a"], 1, 2, 3, 4)


def test_a_launcher_that_mpi_does_not_know_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each process would train by itself, and all write one file."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(
        ImportError, match=r"OMPI_COMM_WORLD_SIZE=4: several .* pip install 'dynamic-filters\[mpi\]'"
    ):
        distributed.communicator()
    other = ModuleType("mpi4py")
    other.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(rank=0, size=1))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", other)
    with pytest.raises(RuntimeError, match="MPI knows of one"):
        distributed.communicator()
    with pytest.raises(ValueError, match="backend must be 'mpi' or 'nccl'"):
        distributed.communicator("gloo")
    with pytest.raises(ValueError, match="patience must be greater than 0"):
        distributed.communicator(patience=0)


# CuPy arrays: with the stand-in, and ranks that are played.


class World:
    """What is used of mpi4py: two ranks, of which the other has the same."""

    rank, size = 0, 2

    def Dup(self) -> "World":
        return self

    def allgather(self, value: Any) -> list[Any]:
        return [value, value._replace(rank=1, host="elsewhere")]

    def Iallgather(self, own: Any, out: Any) -> Any:
        out.reshape(2, -1)[:] = own
        return SimpleNamespace(Test=lambda: True)

    def Iprobe(self, tag: int) -> bool:
        return False


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in."""
    monkeypatch.setattr(_mpi, "guard", lambda watch: None)
    with standing_in() as module:
        yield module


def test_mpi_that_does_not_know_of_cuda_is_refused(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comm = _mpi.MPI(World(), 1.0)
    monkeypatch.setattr(_mpi, "knows_cuda", lambda: False)
    for call in (comm.all_gather, comm.start_sum, comm.send):
        with pytest.raises(RuntimeError, match=r"this MPI does not know of CUDA.*communicator\('nccl'\)"):
            call(cupy.ones(3))


class Group:
    """Of cupyx.distributed, with its signatures: the other rank does the same, and is slow."""

    def __init__(self, kind: Any, log: list[Any]) -> None:
        self.kind, self.log = kind, log

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **params: Any) -> None:
            given = inspect.signature(getattr(self.kind, name)).bind(self, *args, **params).arguments
            stream, asked = given["stream"], iter(range(100))
            if name == "all_reduce":
                assert given["in_array"] is given["out_array"]
                given["out_array"] *= 2
            stream.begun += 1
            stream.waits.append((stream.begun, lambda: next(asked) > 3))
            self.log.append((name, stream))

        return call


def world_of(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """MPI's word for how many ranks the program has."""
    other = ModuleType("mpi4py")
    other.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(rank=0, size=ranks))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", other)


def test_nccl_of_a_part_of_the_ranks_is_refused(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for the others for ever."""
    world_of(monkeypatch, 4)
    with pytest.raises(ValueError, match="NCCL connects all 4 ranks of the program, and comm has 2 of them"):
        distributed.communicator("nccl", comm=World())


def test_what_is_overwritten_must_be_contiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a copy would be overwritten."""
    monkeypatch.setattr(_mpi, "guard", lambda watch: None)
    with pytest.raises(ValueError, match=r"must be C-contiguous, got strides \(8, 24\)"):
        _mpi.MPI(World(), 1.0).send(np.ones((4, 3)).T)


def test_nccl_waits_for_kernels_and_kernels_for_nccl(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call on a stream of its own, behind what was begun before; what follows comes behind the call."""
    log: list[Any] = []
    nccl_of_cupy, waiting = sys.modules["cupyx.distributed"], cupy.cuda.Stream.wait_event

    def wait_event(stream: Any, event: Any) -> None:
        log.append((stream, event._stream, event.done))
        waiting(stream, event)

    monkeypatch.setattr(cupy.cuda.Stream, "wait_event", wait_event)
    monkeypatch.setattr(
        nccl_of_cupy, "NCCLBackend", lambda *args, kind=nccl_of_cupy.NCCLBackend, **_: Group(kind, log)
    )
    world_of(monkeypatch, 2)
    comm = distributed.communicator("nccl", comm=World())
    kernels, nccl = cupy.cuda.get_current_stream(), comm._stream
    assert nccl != kernels
    kernels.begun += 1  # a kernel that nobody has waited for
    before, after = (nccl, kernels, False), (kernels, nccl, True)  # True: the host has seen that it is over

    started = comm.start_sum(array := cupy.ones(2))
    assert log == [before, ("all_reduce", nccl)]
    started.wait()
    assert log[2:] == [after] and array.get().tolist() == [2, 2]
    log.clear()
    kernels.begun += 1
    comm.send(cupy.ones(2))
    assert log == [before, ("broadcast", nccl), after]
    log.clear()
    for xp in (np, cupy):  # by MPI
        assert comm.all_gather(xp.arange(2)).tolist() == [[0, 1], [0, 1]]
    assert log == []

    w = Variable(cupy.asarray(np.array([1.0, 2.0], np.float16)))
    with Tape() as tape:
        loss = F.sum(w * w)
    found = distributed.value_and_gradient(tape, loss, [w], comm)
    assert isinstance(found.gradients[0], cupy.ndarray) and found.gradients[0].dtype == np.float16
    assert found.gradients[0].get().tolist() == [2, 4]
