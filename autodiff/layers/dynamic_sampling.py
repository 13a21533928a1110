"""A layer that makes a dense kernel for every pixel and applies it to many regions around it: DSCNN."""

from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import (
    arguments,
    choice,
    flag,
    floating,
    generator,
    integer,
    layer_input,
    number,
    optional,
    pair,
)
from .basic import Conv2d
from .module import Module


class DynamicSamplingConv(Module):
    """Dynamic sampling convolution (Wu et al., ECCV 2018) with its three branches.

    The feature branch gives what is filtered, the kernel branch a kernel for every output pixel, and the
    attention branch weights of the sampled regions and of the taps; each is one convolution of the input (of
    the attention branch, two: weights of taps belong to pixels of the input). With ``samples=1`` and without
    attention the layer is that of Dynamic Filter Networks (De Brabandere et al., NeurIPS 2016).

    Parameters
    ----------
    in_channels, out_channels : int
        Of the input, and O of the dynamic kernels.
    kernel_size : int or (y, x)
        Odd size of the dynamic kernels.
    features : int, optional
        C, channels of the feature branch; by default as many as the input has.
    samples : int
        S: regions per axis.
    sample_stride, dilation, stride : int or (y, x)
        Step between regions, between taps, and between outputs.
    attention : bool
        Whether there is an attention branch.
    kernel_residual, attention_residual : bool
        Whether 1/C is added to the kernels of the channels, and 1 to the attention.
    fuse : {"sum", "mean", "max"}
        What is made of the regions. The mean keeps the scale of the output whatever the number of regions.
    post_channels : int, optional
        If given, a 1 x 1 convolution to so many channels follows.
    feature_kernel, branch_kernel : int or (y, x)
        Odd size of the convolutions: that of the feature branch, and those of the other two.
    gain : float
        Scale of the initial weights of the kernel and the attention branch, relative to `Conv2d`. What they
        generate is multiplied with features, so they begin small, and the layer close to its residual.
    rng : Generator or int, optional
        For the initial weights.
    dtype : dtype
        Of the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DynamicSamplingConv
    >>> DynamicSamplingConv(4, 3, rng=0)(np.ones((1, 4, 8, 8), np.float32)).shape
    (1, 3, 8, 8)
    """

    @arguments(
        in_channels=integer(1),
        out_channels=integer(1),
        kernel_size=pair(1),
        features=optional(integer(1)),
        samples=integer(1),
        sample_stride=pair(1),
        dilation=pair(1),
        stride=pair(1),
        attention=flag,
        kernel_residual=flag,
        attention_residual=flag,
        fuse=choice("sum", "mean", "max"),
        post_channels=optional(integer(1)),
        feature_kernel=pair(1),
        branch_kernel=pair(1),
        gain=number(),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        *,
        features: int | None = None,
        samples: int = 3,
        sample_stride: Any = 1,
        dilation: Any = 1,
        stride: Any = 1,
        attention: bool = True,
        kernel_residual: bool = True,
        attention_residual: bool = True,
        fuse: str = "sum",
        post_channels: int | None = None,
        feature_kernel: Any = 3,
        branch_kernel: Any = 3,
        gain: float = 0.1,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        self.kernel_size = kh, kw = kernel_size
        self.features = in_channels if features is None else features
        self.out_channels, self.fuse, self.stride = out_channels, fuse, stride
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}

        def generating(outputs: int, stride: Any) -> Conv2d:
            branch = Conv2d(in_channels, outputs, branch_kernel, stride=stride, **options)
            for parameter in branch.parameters():
                parameter.data *= parameter.dtype.type(gain)
            return branch

        self.feature = Conv2d(in_channels, self.features, feature_kernel, **options)
        self.kernel = generating(out_channels * (self.features + kh * kw), stride)
        self.sample_attention = generating(out_channels * samples**2, stride) if attention else None
        self.position_attention = generating(out_channels * kh * kw, 1) if attention else None
        self.post = None if post_channels is None else Conv2d(out_channels, post_channels, 1, **options)
        self.params: dict[str, Any] = {
            "samples": samples,
            "sample_stride": sample_stride,
            "dilation": dilation,
            "stride": stride,
            "kernel_residual": kernel_residual,
            "attention_residual": attention_residual,
            "fuse": "sum" if fuse == "mean" else fuse,
        }

    def kernels(self, x: Any) -> tuple[Any, Any]:
        """The kernels that the kernel branch makes; see `dynarray.dynamic_sampling_conv2d`.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        channel_kernel : Variable, (N, O, C, Ho, Wo)
            Weights of the channels.
        spatial_kernel : Variable, (N, O, kh, kw, Ho, Wo)
            Weights of the taps.
        """
        made = self.kernel(x)
        n, _, high, wide = made.shape
        made = made.reshape((n, self.out_channels, -1, high, wide))
        spatial = made[:, :, self.features :]
        return made[:, :, : self.features], spatial.reshape(
            (n, self.out_channels, *self.kernel_size, high, wide)
        )

    def attention(self, x: Any) -> tuple[Any, Any]:
        """The weights that the attention branch makes.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        samples : Variable, (N, O, S, S, Ho, Wo), or None
            Of the sampled regions; None without an attention branch.
        positions : Variable, (N, O, kh, kw, H, W), or None
            Of the taps, at each pixel of `x`; None as above.
        """
        if self.sample_attention is None or self.position_attention is None:
            return None, None
        samples = self.params["samples"]
        by_sample, by_position = self.sample_attention(x), self.position_attention(x)
        n, _, *size = by_sample.shape
        return (
            by_sample.reshape((n, self.out_channels, samples, samples, *size)),
            by_position.reshape((n, self.out_channels, *self.kernel_size, *by_position.shape[2:])),
        )

    def forward(self, x: Any) -> Any:
        """Filter the features of images at sampled regions.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, O or post_channels, ceil(H/stride), ceil(W/stride))
            What is made of the regions, after the last convolution if there is one.
        """
        x = layer_input(self, "x", x, self.feature.weight)
        y = F.dynamic_sampling_conv2d(self.feature(x), *self.kernels(x), *self.attention(x), **self.params)
        if self.fuse == "mean":
            y = y * y.dtype.type(1 / self.params["samples"] ** 2)
        return y if self.post is None else self.post(y)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the samples: C + kh*kw for each output, of one sample where all samples share their box sums."""
        kh, kw = self.kernel_size
        outputs = output.size // output.shape[1] * self.out_channels
        shared = self.sample_attention is None and self.fuse != "max"
        regions = 1 if shared else self.params["samples"] ** 2
        return outputs * regions * (self.features + kh * kw)
