"""Training by several processes, each with its share of every batch: over MPI, and NCCL for CuPy arrays.

A program that trains by one process trains by several, started as ``mpirun -n 4 python program.py``, with
four lines more::

    comm = distributed.communicator()
    distributed.broadcast(network, comm)                # all begin with the parameters of rank 0
    distributed.synchronize_batch_norm(network, comm)   # if there is any
    for x, y in minibatches(64, images, labels, rank=comm.rank, ranks=comm.size)(rng):
        with Tape() as tape:
            loss = F.cross_entropy(network(x), y)
        value, gradients, _ = distributed.value_and_gradient(
            tape, loss, optimizer.parameters, comm, weight=len(x)
        )
        optimizer.step(gradients)

The gradients are those of the whole batch, to rounding. `autodiff.train.Trainer` does this, given
``communicator=comm``.

An exception that nobody catches ends all ranks, with its traceback and the name of its rank. Whoever waits
for a rank that is dead, has ended or does not come, says so: `RankError`.
"""

import os
from typing import Any

from ..layers import BatchNorm2d, Module
from ._communicator import Communicator as Communicator
from ._communicator import Sum as Sum
from ._gradient import Reduced as Reduced
from ._gradient import value_and_gradient as value_and_gradient
from ._watch import RankError as RankError

__all__ = [
    "Communicator",
    "RankError",
    "Reduced",
    "Sum",
    "broadcast",
    "communicator",
    "shard",
    "synchronize_batch_norm",
    "value_and_gradient",
]

# Where launchers say how many processes they start: Open MPI, MPICH and its kin, Slurm.
LAUNCHERS = "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"


def communicator(backend: str = "mpi", *, comm: Any = None, patience: float = 600.0) -> Communicator:
    """The processes that this one was started with.

    Parameters
    ----------
    backend : {"mpi", "nccl"}
        How CuPy arrays travel: by an MPI that knows of CUDA, or by NCCL. NumPy's travel by MPI. A rank
        chooses its GPU before: ``cupy.cuda.Device(number).use()``.
    comm : mpi4py communicator, optional
        The ranks; all of the program by default. NCCL connects all of them.
    patience : float
        Seconds that a rank waits for others, in the longest evaluation of one of them for example, before
        it gives up with a `RankError` that names those that did not come.

    Returns
    -------
    Communicator
        Of one process, without MPI, if no launcher started this program.

    Raises
    ------
    ImportError
        If a launcher started several processes, and mpi4py (extra: mpi) is not installed.
    RuntimeError
        If a launcher started several processes, and MPI knows of one: it is another MPI than the launcher's.

    Examples
    --------
    >>> from autodiff import distributed
    >>> distributed.communicator()
    Communicator(rank 0 of 1)
    """
    if backend not in ("mpi", "nccl"):
        raise ValueError(f"communicator: backend must be 'mpi' or 'nccl', got {backend!r}")
    if not patience > 0:
        raise ValueError(f"communicator: patience must be greater than 0, got {patience!r}")
    sizes = {name: int(os.environ[name]) for name in LAUNCHERS if os.environ.get(name, "").isdigit()}
    if comm is None:
        if max(sizes.values(), default=1) == 1:
            return Communicator()
        try:
            from mpi4py import MPI as mpi
        except ImportError as error:
            raise ImportError(
                f"communicator: {_told(sizes)}, and mpi4py cannot be imported ({error}); "
                "pip install 'dynamic-filters[mpi]', beside an MPI library such as Debian's libopenmpi-dev"
            ) from None
        comm = mpi.COMM_WORLD
        if comm.size == 1:
            raise RuntimeError(
                f"communicator: {_told(sizes)}, but MPI knows of one: mpi4py uses another MPI library than "
                "the launcher belongs to"
            )
    if comm.size == 1:
        return Communicator()
    if backend == "mpi":
        from ._mpi import MPI as Connected
    else:
        from ._nccl import NCCL as Connected
    return Connected(comm, patience)


def _told(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) + ": several processes were started"


def broadcast(target: Any, comm: Communicator, root: int = 0) -> None:
    """Bring the state of a network, or of an optimiser, from one rank to all.

    Parameters
    ----------
    target : Module or Optimizer
        Or anything else with `state_dict` and `load_state_dict`. Random generators stay what they are: layers
        that draw should draw differently on each rank, as with ``rng=[seed, comm.rank]``.
    comm : Communicator
        The ranks.
    root : int
        Whose state it is.

    Raises
    ------
    ValueError
        If the states differ in names, shapes or dtypes; on all ranks.

    Examples
    --------
    >>> from autodiff import distributed
    >>> from autodiff.layers import Linear
    >>> network = Linear(2, 1, rng=0)
    >>> distributed.broadcast(network, distributed.communicator())  # all ranks: as rank 0
    """
    state = target.state_dict()
    name = type(target).__name__
    comm.agree(f"broadcast of {name}", [f"{key} {a.shape} {a.dtype}" for key, a in state.items()])
    for array in state.values():
        comm.send(array, root)
    target.load_state_dict(state)


def shard(length: int, comm: Communicator) -> slice:
    """The rows, out of `length`, that are this rank's: every ``size``-th one.

    Each row is some rank's. Ranks have one more or less than others, or none.

    Parameters
    ----------
    length : int
        How many rows there are.
    comm : Communicator
        The ranks.

    Returns
    -------
    slice
        From this rank on, ``comm.size`` apart.

    Examples
    --------
    >>> from autodiff import distributed
    >>> list(range(5))[distributed.shard(5, distributed.communicator())]
    [0, 1, 2, 3, 4]
    """
    return slice(comm.rank, length, comm.size)


def synchronize_batch_norm(network: Module, comm: Communicator | None) -> Module:
    """Let batch normalisation use, in training, the statistics of the batches of all ranks together.

    Outputs, gradients and running averages are those of the whole batch, to rounding. All ranks call the
    network as often as each other, also with an empty batch.

    Parameters
    ----------
    network : Module
        Whose `BatchNorm2d` are changed, in place.
    comm : Communicator or None
        The ranks; None: each rank for itself again.

    Returns
    -------
    Module
        The network.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import distributed
    >>> from autodiff.layers import BatchNorm2d
    >>> layer = distributed.synchronize_batch_norm(BatchNorm2d(2), distributed.communicator())
    >>> layer(np.ones((4, 2, 3, 3), np.float32)).shape
    (4, 2, 3, 3)
    """
    for _, module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.ranks = comm if comm is not None and comm.size > 1 else None
    return network
