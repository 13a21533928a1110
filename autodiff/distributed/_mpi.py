"""Ranks that are connected by MPI, by way of mpi4py."""

import ctypes
import pickle
from typing import Any

import numpy as np

from ..functions._common import library
from ._communicator import Communicator, Sum
from ._watch import Watch, guard

MOST = 1 << 30  # bytes sent at a time: MPI counts by 32 bits


class MPI(Communicator):
    """Ranks of an MPI program. CuPy arrays need an MPI that knows of CUDA.

    Parameters
    ----------
    world : mpi4py communicator
        The ranks.
    patience : float
        Seconds that a rank waits for others.
    """

    def __init__(self, world: Any, patience: float) -> None:
        self.rank, self.size = world.rank, world.size
        # Apart, since sums that overlap with the backward pass may come in another order than what it needs;
        # and so that ranks that are at different things wait, and notice.
        self._calls, self._sums, self._meetings = world.Dup(), world.Dup(), world.Dup()
        self.watch = Watch(world.Dup(), patience)
        guard(self.watch)

    def all_gather(self, array: Any, what: str = "all_gather") -> Any:
        """The arrays of all ranks, stacked by rank: (size, ...)."""
        return self._gathered(self._calls, array, what)

    def _gathered(self, calls: Any, array: Any, what: str) -> Any:
        array = _ready(array if array.flags.c_contiguous else array.copy())
        stacked = library(array).empty((self.size, *array.shape), array.dtype)
        self._wait(calls.Iallgather(memory(array), memory(stacked)), what)
        return stacked

    def start_sum(self, array: Any, what: str = "start_sum") -> Sum:
        """Begin to add up an array over all ranks, in place."""
        array = _ready(array)
        from mpi4py import MPI as mpi

        return _Started(self, self._sums.Iallreduce(mpi.IN_PLACE, array), array, what)

    def send(self, array: Any, root: int = 0) -> None:
        """Overwrite an array, C-contiguous, by that of rank `root`."""
        flat = memory(_ready(array))
        for start in range(0, len(flat), MOST):
            self._wait(self._calls.Ibcast(flat[start : start + MOST], root), "send")

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, by rank: anything that can be pickled."""
        self.meet("gather")
        return self._exchanged(value)

    def _met(self, own: np.ndarray, what: str) -> np.ndarray:
        return self._gathered(self._meetings, own, what)

    def _exchanged(self, value: Any) -> list[Any]:
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        longest = int(self.all_gather(np.array(own.size), "gather").max())
        parts = self.all_gather(np.pad(own, (0, longest - own.size)), "gather")
        return [pickle.loads(part.tobytes()) for part in parts]  # what lies after the end is not looked at

    def _wait(self, request: Any, what: str) -> None:
        self.watch.wait(request.Test, what, self.watch.begin("calls"))


class _Started(Sum):
    def __init__(self, ranks: MPI, request: Any, array: Any, what: str) -> None:
        self.request, self.array, self.what = request, array, what  # MPI writes to the array
        self.watch, self.number = ranks.watch, ranks.watch.begin("sums")

    def poke(self) -> None:
        self.request.Test()

    def wait(self) -> None:
        self.watch.wait(self.request.Test, self.what, self.number)


def memory(array: Any) -> Any:
    """The bytes of an array: MPI has no 16-bit numbers, and NCCL not all."""
    if not array.flags.c_contiguous:
        raise ValueError(
            f"ranks: an array that is overwritten must be C-contiguous, got strides {array.strides}"
        )
    return array.reshape(-1).view(np.uint8)


def _ready(array: Any) -> Any:
    """The array, once MPI may read it."""
    if library(array) is not np:
        if not knows_cuda():
            raise RuntimeError(
                "this MPI does not know of CUDA, and cannot read CuPy arrays: use communicator('nccl'), or "
                "an MPI that is built with CUDA"
            )
        library(array).cuda.get_current_stream().synchronize()
    return array


def knows_cuda() -> bool:
    """Whether the MPI library of this process takes pointers to memory of a GPU; otherwise it would crash."""
    query = getattr(ctypes.CDLL(None), "MPIX_Query_cuda_support", None)
    return query is not None and query() == 1
