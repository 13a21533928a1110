"""`cupyx.distributed` on the memory of the host: what NCCL does between GPUs, MPI does between processes.

As NCCL's, its calls are for a stream, in an order that all ranks have, and over when an event behind them is.
"""

from typing import Any

from cupy import _array, _streams

DTYPES = "bBiIlLqQefdFD"
_HOST, _PORT = "127.0.0.1", 13333


class NCCLBackend:
    """The ranks of an MPI program."""

    def __init__(
        self, n_devices: int, rank: int, host: str = _HOST, port: int = _PORT, use_mpi: bool = False
    ) -> None:
        from mpi4py import MPI

        if not use_mpi:
            raise NotImplementedError("the stand-in has no store of its own")
        if n_devices != MPI.COMM_WORLD.size:
            raise RuntimeError(f"NCCL waits for {n_devices} ranks, and MPI has {MPI.COMM_WORLD.size}")
        self.rank, self._ranks = rank, MPI.COMM_WORLD.Dup()

    def all_reduce(self, in_array: Any, out_array: Any, op: str = "sum", stream: Any = None) -> None:
        """The sum over ranks."""
        own, out = _bytes(in_array), _bytes(out_array)
        if op != "sum":
            raise NotImplementedError(f"the stand-in adds up, and nothing else: {op}")
        from mpi4py import MPI

        _begin(stream, self._ranks.Iallreduce(MPI.IN_PLACE if own is out else own, out))

    def broadcast(self, in_out_array: Any, root: int = 0, stream: Any = None) -> None:
        """What a rank has, to all."""
        _begin(stream, self._ranks.Ibcast(_bytes(in_out_array), root))


def init_process_group(
    n_devices: int,
    rank: int,
    *,
    backend: str = "nccl",
    host: Any = None,
    port: Any = None,
    use_mpi: bool = False,
) -> NCCLBackend:
    """The communicator of this rank."""
    if backend != "nccl":
        raise ValueError(f"{backend} is not supported")
    return NCCLBackend(n_devices, rank, use_mpi=use_mpi)


def _bytes(array: Any) -> Any:
    if not isinstance(array, _array.ndarray):
        raise TypeError(f"NCCL takes arrays of CuPy, got {type(array).__name__}")
    if array.dtype.char not in DTYPES:
        raise TypeError(f"Unknown dtype {array.dtype} for NCCL")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise RuntimeError("NCCL requires arrays to be either c- or f-contiguous")
    return array._values


def _begin(stream: Any, request: Any) -> None:
    stream = _streams.current() if stream is None else stream
    stream.begun += 1
    stream.waits.append((stream.begun, request.Test))
