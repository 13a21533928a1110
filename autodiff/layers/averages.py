"""Averages over whole images inside networks: made anew by each call, or held.

A tile of an image has another average than the image. So a network that makes filters, or gates, from
averages gives tiles what the whole would get only if it is given the averages of the whole.
"""

from typing import Any

from .. import functions as F
from ..functions._common import plain
from .module import Module


class Held:
    """The average that a layer uses in the place of its own, once there is one."""

    value: Any = None


class Averaging(Module):
    """A layer that averages over images."""

    held: Held | None = None

    def average(self, x: Any) -> Any:
        """The mean over the image, or what is held in its place.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The image.

        Returns
        -------
        array or Variable, (N, C, 1, 1)
            A Variable if `x` is one and nothing is held.

        Raises
        ------
        ValueError
            If averages are held, of other numbers of images or channels.
        """
        if self.held is None:
            return F.global_avg_pool(x)
        if self.held.value is None:
            self.held.value = plain(F.global_avg_pool(x))
        elif tuple(self.held.value.shape[:2]) != tuple(x.shape[:2]):
            raise ValueError(
                f"{type(self).__name__}: the averages that are held are those of "
                f"{self.held.value.shape[:2]} images and channels, got x of shape {tuple(x.shape)}"
            )
        return self.held.value


def hold_averages(network: Module, *inputs: Any) -> Module:
    """Let a network use, from now on, the averages over images that one call of it makes.

    Then it has a halo, and may be given tiles: see `autodiff.halo`. Held averages are constants, and not part
    of the network's state.

    Parameters
    ----------
    network : Module
        The network; layers that average are `DDF` and `DDFUp`.
    *inputs : array
        What it is called with, in evaluation mode: the whole image, or a smaller copy of one that does not
        fit into memory. Without inputs, averages are made anew by each call, as at first.

    Returns
    -------
    Module
        The network.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DDF, hold_averages
    >>> x = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    >>> layer = hold_averages(DDF(4, rng=0), x)
    >>> np.array_equal(layer(x).data[:, :, :8], layer(x[:, :, :9]).data[:, :, :8])
    True
    """
    modules = [module for _, module in network.modules()]
    layers = [module for module in modules if isinstance(module, Averaging)]
    for layer in layers:
        layer.held = Held() if inputs else None
    if inputs:
        modes = [module.training for module in modules]
        try:
            network.eval()(*inputs)
        finally:
            for module, mode in zip(modules, modes):
                module.training = mode
    return network
