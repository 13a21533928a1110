"""What ranks do together, and how it is when there is one of them."""

import copy
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

MEETING = 4  # numbers that a rank brings to a meeting, at most


class Communicator:
    """The processes that work together: `size` of them, of which this one is `rank`.

    All ranks call the same methods in the same order, each from one thread. Arrays are NumPy's or CuPy's, of
    one shape and dtype on all ranks.

    This class is one process alone, so that a program runs without a launcher too; `communicator` makes those
    of several.

    Examples
    --------
    >>> from autodiff.distributed import Communicator
    >>> comm = Communicator()  # one process, which needs no MPI; `communicator` gives those of mpirun
    >>> comm.rank, comm.size
    (0, 1)
    """

    rank = 0
    size = 1

    def all_gather(self, array: Any, what: str = "all_gather") -> Any:
        """The arrays of all ranks, stacked by rank.

        Parameters
        ----------
        array : array, any shape
            Of this rank.
        what : str
            What messages of errors call this.

        Returns
        -------
        array, (size, ...)
            A new array of the dtype of `array`.
        """
        return array[None].copy()

    def start_sum(self, array: Any, what: str = "start_sum") -> "Sum":
        """Begin to add up an array over all ranks, in place.

        Parameters
        ----------
        array : array, any shape
            C-contiguous; it becomes the sum, and must not be touched before `Sum.wait`.
        what : str
            What messages of errors call this.

        Returns
        -------
        Sum
            The sum that has begun.
        """
        return Sum()

    def send(self, array: Any, root: int = 0) -> None:
        """Overwrite an array by that of one rank.

        Parameters
        ----------
        array : array, any shape
            C-contiguous; on rank `root` it stays as it is.
        root : int
            The rank whose array all get.
        """

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives.

        Parameters
        ----------
        value : object
            Anything that can be pickled.

        Returns
        -------
        list
            Copies of the values, by rank.
        """
        return [copy.deepcopy(value)]

    def sum(self, value: Any) -> Any:
        """The sum over all ranks, in the order of ranks: the same bits on all.

        Parameters
        ----------
        value : number or array, any shape
            Of this rank.

        Returns
        -------
        number or array
            As `value`: a number, or an array of its shape, with the dtype that `numpy.sum` gives.
        """
        whole = self.all_gather(np.asarray(value) if np.isscalar(value) else value, "sum").sum(axis=0)
        return whole.item() if np.isscalar(value) else whole

    def first(self, value: Any) -> Any:
        """What rank 0 gives.

        Parameters
        ----------
        value : object
            On rank 0 anything that can be pickled; those of other ranks are not looked at.

        Returns
        -------
        object
            A copy of it.
        """
        return self.gather(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.meet("barrier")

    def meet(self, what: str, *numbers: float) -> np.ndarray:
        """A few numbers of each rank, if all ranks are at the same.

        Parameters
        ----------
        what : str
            What this rank is at.
        *numbers : float
            At most four, as many on all ranks.

        Returns
        -------
        array of float64, (size, len(numbers))
            Those of all ranks.

        Raises
        ------
        ValueError
            If there are more numbers.
        RuntimeError
            On all ranks, if they are at different things.
        """
        _refuse_more("meet", numbers, MEETING)
        own = np.zeros(1 + MEETING)
        own[: 1 + len(numbers)] = zlib.crc32(what.encode()), *numbers
        met = self._met(own, what)
        if (met[:, 0] != own[0]).any():
            raise RuntimeError(f"ranks do not do the same: {grouped(self._exchanged(what))}")
        return met[:, 1 : 1 + len(numbers)]

    def agree(self, what: str, entries: Iterable[str], *numbers: float) -> np.ndarray:
        """As `meet`, for ranks that must also have the same entries.

        Parameters
        ----------
        what : str
            What this rank is at.
        entries : iterable of str
            Those of this rank, in order.
        *numbers : float
            At most three, as many on all ranks.

        Returns
        -------
        array of float64, (size, len(numbers))
            The numbers of all ranks.

        Raises
        ------
        ValueError
            On all ranks, with the differences, if they have different entries; if there are more numbers.
        RuntimeError
            As for `meet`.
        """
        _refuse_more("agree", numbers, MEETING - 1)  # of those of a meeting, one says which entries
        own = list(entries)
        met = self.meet(what, zlib.crc32("\n".join(own).encode()), *numbers)
        if (met[:, 0] != met[0, 0]).any():
            everyone = self._exchanged(own)
            told = [sorted(set(e) - set.intersection(*map(set, everyone))) for e in everyone]
            alike = ["the same in another order" if not t else ", ".join(t) for t in told]
            raise ValueError(f"{what}: ranks differ: {grouped(alike)}")
        return met[:, 1:]

    def _met(self, own: np.ndarray, what: str) -> np.ndarray:
        return self.all_gather(own, what)

    def _exchanged(self, value: Any) -> list[Any]:
        """As `gather`, without a meeting."""
        return [value]

    def __deepcopy__(self, memo: Any) -> "Communicator":
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a {type(self).__name__} communicator belongs to its process, and is not pickled; "
            "synchronize_batch_norm(network, None) takes it out of a network"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank {self.rank} of {self.size})"


class Sum:
    """A sum over ranks that has begun. With one rank it is there.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import distributed
    >>> gradient = np.array([1.0, 2.0])
    >>> begun = distributed.communicator().start_sum(gradient)  # goes on while something else is done
    >>> begun.wait()
    >>> gradient
    array([1., 2.])
    """

    def poke(self) -> None:
        """Let it go on; MPI needs that, where it has no thread of its own."""

    def wait(self) -> None:
        """Until it is there, on this rank."""


def _refuse_more(name: str, numbers: tuple[float, ...], most: int) -> None:
    """Refuse more numbers than a meeting has room for."""
    if len(numbers) > most:
        raise ValueError(f"{name}: at most {most} numbers, not {len(numbers)}; all_gather takes whole arrays")


def grouped(values: list[str]) -> str:
    """What each rank says, ranks that say the same together."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return "; ".join(
        f"{value} (rank{'s' * (len(r) > 1)} {', '.join(map(str, r))})" for value, r in ranks.items()
    )
