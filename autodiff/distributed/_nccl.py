"""Ranks with a GPU each: CuPy arrays go by NCCL, by way of cupyx.distributed, and all else by MPI.

NCCL wants all ranks to begin what it does in one order. Sums of buckets have one, and parameters are sent
when none is under way. What is gathered may come between other sums on one rank than on another, where their
losses are made in different ways: it goes through the host, by MPI, which keeps the two apart.
"""

from typing import Any

import numpy as np

from ..functions._common import library
from ._communicator import Sum
from ._mpi import MPI, memory


class NCCL(MPI):
    """Ranks that are connected by NCCL for CuPy arrays, and by MPI for NumPy's.

    Parameters
    ----------
    world : mpi4py communicator
        All ranks of the program: ``MPI.COMM_WORLD``, as cupyx.distributed has it.
    patience : float
        Seconds that a rank waits for others.
    """

    def __init__(self, world: Any, patience: float) -> None:
        from mpi4py import MPI as mpi

        if world.size != mpi.COMM_WORLD.size:
            raise ValueError(
                f"communicator: NCCL connects all {mpi.COMM_WORLD.size} ranks of the program, and comm has "
                f"{world.size} of them"
            )
        super().__init__(world, patience)
        import cupy
        from cupyx.distributed import init_process_group

        self._group = init_process_group(self.size, self.rank, backend="nccl", use_mpi=True)
        # What NCCL does lies on a stream of its own, beside the kernels of the backward pass.
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def all_gather(self, array: Any, what: str = "all_gather") -> Any:
        """The arrays of all ranks, stacked by rank: (size, ...)."""
        if library(array) is np:
            return super().all_gather(array, what)
        return library(array).asarray(super().all_gather(array.get(), what))

    def start_sum(self, array: Any, what: str = "start_sum") -> Sum:
        """Begin to add up an array over all ranks, in place."""
        if library(array) is np:
            return super().start_sum(array, what)
        return self._queued("all_reduce", what, array, array)

    def send(self, array: Any, root: int = 0) -> None:
        """Overwrite an array, C-contiguous, by that of rank `root`."""
        if library(array) is np:
            super().send(array, root)
        else:
            self._queued("broadcast", "send", memory(array), root).wait()

    def _queued(self, method: str, what: str, *arguments: Any) -> "_Queued":
        """Something for NCCL to do, after all that the current stream has been given."""
        import cupy

        self._stream.wait_event(cupy.cuda.get_current_stream().record())
        getattr(self._group, method)(*arguments, stream=self._stream)
        return _Queued(self, self._stream.record(), arguments, what)


class _Queued(Sum):
    def __init__(self, ranks: NCCL, event: Any, arrays: tuple, what: str) -> None:
        self.event, self.arrays, self.what = event, arrays, what  # whose memory NCCL uses until then
        self.watch, self.number = ranks.watch, ranks.watch.begin("sums")

    def wait(self) -> None:
        import cupy

        # The host looks too, not the stream alone: a dead rank would leave it waiting for ever.
        self.watch.wait(lambda: bool(self.event.done), self.what, self.number)
        cupy.cuda.get_current_stream().wait_event(self.event)
