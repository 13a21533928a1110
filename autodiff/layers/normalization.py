"""Layers that bring their input to a standard scale."""

from typing import Any

import numpy as np

from .. import functions as F
from .._random import recomputing
from ..functions._arguments import arguments, floating, integer, layer_input, number
from ..functions._common import plain
from ..functions.normalization import batch_norm_of_ranks, statistics_of_ranks
from ..variable import Variable
from .module import Module


class BatchNorm2d(Module):
    """Batch normalisation: statistics of the batch in training, running averages in evaluation.

    Parameters
    ----------
    channels : int
        C.
    momentum : float
        Weight of the newest batch in the running averages (of the mean, and of the unbiased variance).
    epsilon : float
        Added to the variance.
    dtype : dtype
        Of parameters and running averages.

    Attributes
    ----------
    ranks : autodiff.distributed.Communicator or None
        Those whose batches are one, in training; see `autodiff.distributed.synchronize_batch_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import BatchNorm2d
    >>> x, layer = np.array([1.0, 3.0]).reshape(2, 1, 1, 1), BatchNorm2d(1, dtype=np.float64)
    >>> layer(x).data.ravel().round(3).tolist()  # by the mean and variance of the batch
    [-1.0, 1.0]
    >>> layer.eval()(x).data.ravel().round(3).tolist()  # by running averages
    [0.763, 2.67]
    """

    ranks: Any = None

    @arguments(channels=integer(0), momentum=number(0, most=1), epsilon=number(0), dtype=floating)
    def __init__(
        self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-5, dtype: Any = np.float32
    ) -> None:
        self.weight = Variable(np.ones(channels, dtype))
        self.bias = Variable(np.zeros(channels, dtype))
        self.running_mean = np.zeros(channels, dtype)
        self.running_variance = np.ones(channels, dtype)
        self.momentum, self.epsilon = momentum, epsilon

    def forward(self, x: Any) -> Any:
        """Normalise each channel.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, C, H, W)
            The normalised images.

        Raises
        ------
        ValueError
            In training, if each channel has one value only.
        """
        x = layer_input(self, "x", x, self.weight)
        if not self.training:
            return F.affine(
                x, self.running_mean, self.running_variance, self.weight, self.bias, epsilon=self.epsilon
            )
        if self.ranks is None:
            count = x.size // max(x.shape[1], 1)
            statistics = F.channel_statistics(plain(x)) if count > 1 else (None, None)
        else:
            statistics, count = statistics_of_ranks(plain(x), self.ranks)
        if count < 2:
            raise ValueError(
                f"BatchNorm2d: training needs more than one value per channel, got shape {tuple(x.shape)}"
            )
        centre, variance = statistics
        if not recomputing():  # a checkpoint runs its layers twice for one batch
            self._follow(self.running_mean, centre)
            self._follow(self.running_variance, variance * (count / (count - 1)))
        if self.ranks is None:
            return F.batch_norm(x, self.weight, self.bias, epsilon=self.epsilon, statistics=statistics)
        return batch_norm_of_ranks(x, self.weight, self.bias, self.epsilon, statistics, self.ranks, count)

    def _follow(self, running: Any, newest: Any) -> None:
        running *= 1 - self.momentum
        running += self.momentum * newest.ravel()


class GroupNorm(Module):
    """Group normalisation (Wu & He, 2018): statistics of a group of channels of one image, never of a batch.

    Parameters
    ----------
    groups : int
        Number of groups; 1 makes it layer normalisation, C instance normalisation.
    channels : int
        C, which groups divides.
    epsilon : float
        Added to the variance.
    dtype : dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If `groups` does not divide C.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import GroupNorm
    >>> x = np.array([1, 3, 10, 30], np.float32).reshape(1, 4, 1, 1)
    >>> GroupNorm(2, 4)(x).data.ravel().round(3).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    @arguments(groups=integer(1), channels=integer(0), epsilon=number(0), dtype=floating)
    def __init__(self, groups: int, channels: int, *, epsilon: float = 1e-5, dtype: Any = np.float32) -> None:
        if channels % groups:
            raise ValueError(f"GroupNorm: groups {groups} must divide channels {channels}")
        self.weight = Variable(np.ones(channels, dtype))
        self.bias = Variable(np.zeros(channels, dtype))
        self.groups, self.epsilon = groups, epsilon

    def forward(self, x: Any) -> Any:
        """Normalise each group of channels.

        Parameters
        ----------
        x : array, (N, C, ...)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, C, ...)
            The normalised images.
        """
        return F.group_norm(x, self.groups, self.weight, self.bias, epsilon=self.epsilon)
