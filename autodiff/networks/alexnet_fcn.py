"""Segmentation by AlexNet: fully convolutional, at 1/8 of the size, with kernels or displaced units."""

from typing import Any

import numpy as np

from .. import functions as F
from ..layers import Conv2d, ConvTranspose2d, DisplacedConv, Module
from ..layers.module import generator
from .dau_alexnet import AlexNet, alexnet, dau_alexnet

STRIDE = 8  # of the first convolution and the pooling behind it


class AlexNetFCN(Module):
    """AlexNet as a fully convolutional network (Long et al., CVPR 2015), without its last two poolings.

    What lies behind a pooling that is gone sees the image at twice the resolution: kernels are dilated by 2
    (the third to fifth convolution) and by 4 (the first linear layer, a 6 x 6 convolution here), and units
    are moved as far apart by `DisplacedConv.rescale` (Tabernik et al., CVPR 2018). The classifier begins at
    zero, so that the first loss is the logarithm of the number of classes; a transposed convolution, at first
    bilinear interpolation, brings its scores to the size of the image.

    Parameters
    ----------
    network : AlexNet
        Whose convolutions it takes, as `alexnet` or `dau_alexnet` make it or as it was trained. It cannot be
        used any more itself.
    classes : int
        Of the output.
    hidden : int
        Channels of the two layers before the classifier.
    rng
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import AlexNetFCN, dau_alexnet
    >>> tiny = dau_alexnet(channels=(4, 4, 4, 4, 4), hidden=8, rng=0)
    >>> AlexNetFCN(tiny, 21, hidden=8, rng=1)(np.zeros((1, 3, 50, 41), np.float32)).shape
    (1, 21, 50, 41)
    """

    def __init__(self, network: AlexNet, classes: int, *, hidden: int = 4096, rng: Any = None) -> None:
        self.convolutions, self.norms = network.convolutions, network.norms
        first: Any = self.convolutions[0]
        options: dict[str, Any] = {"rng": generator(rng), "dtype": first.weight.dtype}
        first.padding = (5, 5)  # as many outputs as there are fourths of the image, rounded up
        layer: Any
        for layer in self.convolutions[2:]:
            if isinstance(layer, DisplacedConv):
                layer.rescale(2)
            else:
                layer.dilation, layer.padding = (2, 2), (2, 2)
        channels = layer.weight.shape[0]
        self.sixth = Conv2d(channels, hidden, 6, dilation=4, padding=10, **options)
        self.seventh = Conv2d(hidden, hidden, 1, **options)
        self.classify = Conv2d(hidden, classes, 1, **options)
        for parameter in self.classify.parameters():
            parameter.data *= 0
        self.enlarge = ConvTranspose2d(
            classes, classes, 2 * STRIDE, stride=STRIDE, padding=STRIDE // 2, bias=False, **options
        )
        tent = 1 - abs(np.arange(2 * STRIDE) - STRIDE + 0.5) / STRIDE
        kernels = np.eye(classes)[:, :, None, None] * np.outer(tent, tent)
        self.enlarge.weight.data = kernels.astype(first.weight.dtype)

    def forward(self, x: Any) -> Any:
        """Find the class of each pixel.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, classes, H, W)
            Logarithms of probabilities up to a constant.
        """
        high, wide = x.shape[2:]
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = F.relu(self.norms[number](x) if self.norms else x)
            if number < 2 and not self.norms:
                x = F.local_response_norm(x, 5)
            if number == 0:
                x = F.max_pool2d(x, 3, 2, 1)
        x = F.relu(self.seventh(F.relu(self.sixth(x))))
        return self.enlarge(self.classify(x))[:, :, :high, :wide]


def alexnet_fcn(classes: int = 21, *, hidden: int = 4096, rng: Any = None, **options: Any) -> AlexNetFCN:
    """`AlexNetFCN` over `alexnet`, whose kernels are dilated; options as for `AlexNet`.

    Parameters
    ----------
    classes : int
        Of the output.
    hidden : int
        Channels of the two layers before the classifier.
    rng : Generator or int, optional
        For the initial weights.
    **options
        As for `AlexNet`, such as ``channels``.

    Returns
    -------
    AlexNetFCN
        x (N, 3, H, W) -> (N, classes, H, W).

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import alexnet_fcn
    >>> network = alexnet_fcn(5, hidden=8, rng=0, channels=(4, 4, 4, 4, 4))
    >>> network(np.zeros((1, 3, 50, 41), np.float32)).shape
    (1, 5, 50, 41)
    """
    rng = generator(rng)
    return AlexNetFCN(alexnet(hidden=1, classes=1, rng=rng, **options), classes, hidden=hidden, rng=rng)


def dau_alexnet_fcn(
    classes: int = 21, *, size: str = "medium", hidden: int = 4096, rng: Any = None, **options: Any
) -> AlexNetFCN:
    """`AlexNetFCN` over `dau_alexnet`, whose units are rescaled; options as for that.

    Parameters
    ----------
    classes : int
        Of the output.
    size : str
        How many units, as for `dau_alexnet`.
    hidden : int
        Channels of the two layers before the classifier.
    rng : Generator or int, optional
        For the initial weights.
    **options
        As for `dau_alexnet`.

    Returns
    -------
    AlexNetFCN
        x (N, 3, H, W) -> (N, classes, H, W).

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import dau_alexnet_fcn
    >>> network = dau_alexnet_fcn(5, hidden=8, rng=0, channels=(4, 4, 4, 4, 4))
    >>> network(np.zeros((1, 3, 50, 41), np.float32)).shape
    (1, 5, 50, 41)
    """
    rng = generator(rng)
    network = dau_alexnet(size, hidden=1, classes=1, rng=rng, **options)
    return AlexNetFCN(network, classes, hidden=hidden, rng=rng)
