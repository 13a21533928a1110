"""Layers whose filters are computed from their input: DDF and DDFUp, CARAFE, Involution."""

import math
from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import (
    arguments,
    choice,
    floating,
    generator,
    integer,
    layer_input,
    number,
    optional,
    pair,
)
from ..functions.borders import MODES
from .averages import Averaging
from .basic import Conv2d
from .filter_norm import GAIN, FilterNorm
from .module import Module, Sequential
from .normalization import BatchNorm2d
from .residual import Bottleneck
from .stateless import ReLU


def _channel_branch(
    channels: int, taps: int, branches: int, se_ratio: float, rng: np.random.Generator, dtype: Any
) -> Sequential:
    """(N, C, 1, 1) -> (N, branches*C*taps, 1, 1) by a bottleneck; each branch has weights of its own."""
    middle = max(int(channels * se_ratio), 1)
    return Sequential(
        Conv2d(channels, branches * middle, 1, rng=rng, dtype=dtype),
        ReLU(),
        Conv2d(branches * middle, branches * channels * taps, 1, groups=branches, rng=rng, dtype=dtype),
    )


class DDF(Averaging):
    """Decoupled dynamic filter (Zhou et al., CVPR 2021): a drop-in for a depthwise convolution.

    Parameters
    ----------
    in_channels : int
        C, of input and output.
    kernel_size : int or (y, x)
        Odd size of the filters.
    stride, dilation : int or (y, x)
        Step between outputs and between taps.
    heads : int
        Number of spatial filters per pixel; it divides C.
    se_ratio : float
        Width of the bottleneck of the channel branch, relative to C.
    nonlinearity : {"relu", "linear"}
        What follows; sets the scale of the filters.
    combine : {"mul", "add"}
        How spatial and channel filters are combined.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the filters read outside of x, as for `dynarray.ddf`. The convolutions inside read zeros.
    rng : Generator or int, optional
        For the initial weights.
    dtype : dtype
        Of the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DDF
    >>> DDF(16, 3, stride=2, rng=0)(np.ones((1, 16, 8, 8), np.float32)).shape
    (1, 16, 4, 4)
    """

    @arguments(
        in_channels=integer(1),
        kernel_size=pair(1),
        stride=pair(1),
        dilation=pair(1),
        heads=integer(1),
        se_ratio=number(above=0),
        nonlinearity=choice(*GAIN),
        combine=choice("mul", "add"),
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        kernel_size: Any = 3,
        *,
        stride: Any = 1,
        dilation: Any = 1,
        heads: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "relu",
        combine: str = "mul",
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        kh, kw = kernel_size
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.spatial = Conv2d(in_channels, heads * kh * kw, 1, stride=stride, **options)
        self.spatial_norm = FilterNorm((kh, kw), nonlinearity=nonlinearity, **options)
        self.channel = _channel_branch(in_channels, kh * kw, 1, se_ratio, **options)
        self.channel_norm = FilterNorm((kh, kw), in_channels, nonlinearity=nonlinearity, **options)
        self.stride, self.dilation, self.combine, self.border = stride, dilation, combine, border

    def forward(self, x: Any) -> Any:
        """Filter images by the filters that they make.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, C, ceil(H/stride), ceil(W/stride))
            The filtered images.
        """
        x = layer_input(self, "x", x, self.spatial.weight)
        spatial = self.spatial_norm(self.spatial(x))
        channel = self.channel_norm(self.channel(self.average(x)))
        channel = channel.reshape(channel.shape[:4])
        steps = {"stride": self.stride, "dilation": self.dilation}
        return F.ddf(x, channel, spatial, combine=self.combine, **steps, border=self.border)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter itself: one per tap for each output."""
        return output.size * math.prod(self.spatial_norm.kernel_size)


class DDFUp(Averaging):
    """Upsampling by decoupled dynamic filters, one pair of filter branches per sub-pixel phase.

    Parameters
    ----------
    in_channels : int
        C, of input and output.
    kernel_size : int or (y, x)
        Odd size of the filters, in pixels of the input.
    scale : int
        Upsampling factor u.
    dilation, heads, se_ratio, nonlinearity, combine, border
        As for `DDF`.
    joint_channels : int, optional
        If given, the spatial filters come from a guide with this many channels and the height and width of x;
        otherwise from x, after a depthwise convolution per phase. The channel filters always come from x.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DDFUp
    >>> DDFUp(16, rng=0)(np.ones((1, 16, 4, 5), np.float32)).shape
    (1, 16, 8, 10)
    """

    @arguments(
        in_channels=integer(1),
        kernel_size=pair(1),
        scale=integer(1),
        dilation=pair(1),
        heads=integer(1),
        se_ratio=number(above=0),
        nonlinearity=choice(*GAIN),
        combine=choice("mul", "add"),
        border=choice(*MODES),
        joint_channels=optional(integer(1)),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        kernel_size: Any = 3,
        scale: int = 2,
        *,
        dilation: Any = 1,
        heads: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = "linear",
        combine: str = "mul",
        border: str = "constant",
        joint_channels: int | None = None,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        kernel, taps, phases = kernel_size, math.prod(kernel_size), scale * scale
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.depthwise = []
        if joint_channels is None:
            self.depthwise = [
                Conv2d(in_channels, in_channels, kernel, dilation=dilation, groups=in_channels, **options)
                for _ in range(phases)
            ]
        source, groups = (in_channels * phases, phases) if joint_channels is None else (joint_channels, 1)
        self.spatial = Conv2d(source, phases * heads * taps, 1, groups=groups, **options)
        self.spatial_norm = FilterNorm(kernel, nonlinearity=nonlinearity, **options)
        self.channel = _channel_branch(in_channels, taps, phases, se_ratio, **options)
        self.channel_norm = FilterNorm(kernel, phases * in_channels, nonlinearity=nonlinearity, **options)
        self.scale, self.heads, self.dilation = scale, heads, dilation
        self.combine, self.border = combine, border

    def forward(self, x: Any, guide: Any = None) -> Any:
        """Enlarge images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.
        guide : array, (N, joint_channels, H, W), optional
            What the spatial filters come from, for a layer with `joint_channels`.

        Returns
        -------
        Variable, (N, C, scale*H, scale*W)
            The larger images.

        Raises
        ------
        ValueError
            If a guide is missing, not expected, or of another size than `x`.
        """
        x = layer_input(self, "x", x, self.spatial.weight)
        n, c, h, w = x.shape
        u, (kh, kw) = self.scale, self.spatial_norm.kernel_size
        if (guide is None) != bool(self.depthwise):
            raise ValueError(
                f"DDFUp: a guide must be given exactly with joint_channels, got {type(guide).__name__}"
            )
        source = None if guide is None else layer_input(self, "guide", guide, self.spatial.weight)
        if source is None:
            source = F.concatenate([depthwise(x) for depthwise in self.depthwise], axis=1)
        elif tuple(source.shape[2:]) != (h, w):
            raise ValueError(
                f"DDFUp: guide must have the height and width of x, {h, w}, got {tuple(source.shape)}"
            )
        spatial = self.spatial_norm(self.spatial(source)).reshape((n, u, u, self.heads, kh, kw, h, w))
        # Phase (i, j) of every low-resolution pixel goes to its place: rows h*u + i, columns w*u + j.
        spatial = F.transpose(spatial, (0, 3, 4, 5, 6, 1, 7, 2)).reshape(
            (n, self.heads, kh, kw, u * h, u * w)
        )
        channel = self.channel_norm(self.channel(self.average(x))).reshape((n, u, u, c, kh, kw))
        params = {"combine": self.combine, "dilation": self.dilation, "border": self.border}
        return F.ddf_upsample(x, channel, spatial, **params)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter itself: one per tap for each output."""
        return output.size * math.prod(self.spatial_norm.kernel_size)


class CARAFE(Module):
    """Content-aware upsampling (Wang et al., ICCV 2019): each new pixel is a predicted average of a window.

    Parameters
    ----------
    in_channels : int
        C, of input and output.
    scale : int
        Upsampling factor.
    up_kernel : int
        Odd size of the window.
    groups : int
        Channels of one group share their weights; it divides C.
    encoder_kernel : int
        Size of the convolution that predicts the weights.
    compressed : int
        Number of channels it sees.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the filters read outside of x, as for `dynarray.carafe`. The convolutions inside read zeros.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import CARAFE
    >>> CARAFE(4, compressed=8, rng=0)(np.ones((1, 4, 5, 6), np.float32)).shape
    (1, 4, 10, 12)
    """

    @arguments(
        in_channels=integer(1),
        scale=integer(1),
        up_kernel=integer(1),
        groups=integer(1),
        encoder_kernel=pair(1),
        compressed=integer(1),
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        scale: int = 2,
        *,
        up_kernel: int = 5,
        groups: int = 1,
        encoder_kernel: int = 3,
        compressed: int = 64,
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        self.compress = Conv2d(in_channels, compressed, 1, rng=rng, dtype=dtype)
        outputs = up_kernel * up_kernel * groups * scale * scale
        self.encode = Conv2d(compressed, outputs, encoder_kernel, rng=rng, dtype=dtype)
        self.scale, self.up_kernel, self.groups, self.border = scale, up_kernel, groups, border

    def forward(self, x: Any) -> Any:
        """Enlarge images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, C, scale*H, scale*W)
            The larger images.
        """
        x = layer_input(self, "x", x, self.compress.weight)
        masks = F.pixel_shuffle(self.encode(self.compress(x)), self.scale)
        n, _, h, w = masks.shape
        masks = F.softmax(masks.reshape((n, self.groups, -1, h, w)), axis=2).reshape((n, -1, h, w))
        sizes = {"kernel_size": self.up_kernel, "groups": self.groups, "scale": self.scale}
        return F.carafe(x, masks, **sizes, border=self.border)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter itself: one per tap for each output."""
        return output.size * self.up_kernel**2


class Involution(Module):
    """Involution (Li et al., CVPR 2021): a filter per pixel, predicted from it, shared by groups of channels.

    Parameters
    ----------
    channels : int
        C, of input and output.
    kernel_size : int
        Odd size of the filters.
    stride : int
        Step between outputs. Filters are predicted from the input averaged over stride x stride cells.
    group_channels : int
        Channels that share a filter; it divides C.
    reduction : int
        C divided by the width of the bottleneck that predicts the filters.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the filters read outside of x, as for `dynarray.involution`. The convolutions inside read zeros.
    rng, dtype
        As for `Conv2d`.

    Raises
    ------
    ValueError
        If `group_channels` does not divide C.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Involution
    >>> Involution(16, 3, group_channels=8, rng=0)(np.ones((2, 16, 6, 6), np.float32)).shape
    (2, 16, 6, 6)
    """

    @arguments(
        channels=integer(1),
        kernel_size=integer(1),
        stride=integer(1),
        group_channels=integer(1),
        reduction=integer(1),
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        *,
        group_channels: int = 16,
        reduction: int = 4,
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if channels % group_channels:
            raise ValueError(f"Involution: group_channels {group_channels} must divide channels {channels}")
        middle = max(channels // reduction, 1)
        self.reduce = Sequential(
            Conv2d(channels, middle, 1, bias=False, rng=rng, dtype=dtype),
            BatchNorm2d(middle, dtype=dtype),
            ReLU(),
        )
        self.groups = channels // group_channels
        self.span = Conv2d(middle, self.groups * kernel_size * kernel_size, 1, rng=rng, dtype=dtype)
        self.kernel_size, self.stride, self.border = kernel_size, stride, border

    def forward(self, x: Any) -> Any:
        """Filter images by the filters that they make.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, C, ceil(H/stride), ceil(W/stride))
            The filtered images.
        """
        x = layer_input(self, "x", x, self.span.weight)
        k, (h, w) = self.kernel_size, x.shape[2:]
        high, wide = -(-h // self.stride), -(-w // self.stride)
        seen = x if self.stride == 1 else F.adaptive_avg_pool2d(x, (high, wide))
        weight = self.span(self.reduce(seen)).reshape((x.shape[0], self.groups, k, k, high, wide))
        return F.involution(x, weight, stride=self.stride, border=self.border)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter itself: one per tap for each output."""
        return output.size * self.kernel_size**2


class DDFBottleneck(Bottleneck):
    """The bottleneck of a ResNet with a `DDF` in place of its 3 x 3 convolution.

    Parameters
    ----------
    in_channels, middle_channels, out_channels : int
        Of the input, between the two 1 x 1 convolutions, and of the output.
    stride : int
        Step of the filter and of the shortcut.
    rng, dtype
        As for `Conv2d`.
    **options
        Passed on to `DDF`, as `border` is.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DDFBottleneck
    >>> DDFBottleneck(8, 16, 32, stride=2, rng=0)(np.ones((2, 8, 8, 8), np.float32)).shape
    (2, 32, 4, 4)
    """

    @arguments(rng=generator)
    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        rng: Any = None,
        dtype: Any = np.float32,
        **options: Any,
    ) -> None:
        middle = DDF(middle_channels, stride=stride, rng=rng, dtype=dtype, **options)
        super().__init__(
            in_channels, middle_channels, out_channels, stride=stride, middle=middle, rng=rng, dtype=dtype
        )
