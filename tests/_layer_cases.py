"""Every layer with shapes to try it on, and a way to put values in place of its parameters."""

from contextlib import contextmanager

import numpy as np
from _function_cases import Case

from autodiff import Variable
from autodiff.layers import (
    ASPP,
    CARAFE,
    CGDS,
    DDF,
    GELU,
    AdaptiveAvgPool2d,
    AtomConv,
    AvgPool2d,
    BatchNorm2d,
    Bottleneck,
    Conv2d,
    ConvTranspose2d,
    DDFBottleneck,
    DDFUp,
    DeformConv,
    DisplacedConv,
    Dropout,
    DynamicSamplingConv,
    FilterNorm,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    Involution,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    LogSoftmax,
    MaxPool2d,
    ReLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@contextmanager
def substituted(module):
    """A function that puts values, plain arrays too, in place of the parameters of a module until the end."""
    places = [
        (owner, name, value)
        for _, owner in module.modules()
        for name, value in vars(owner).items()
        if isinstance(value, Variable)
    ]

    def put(values):
        for (owner, name, _), value in zip(places, values, strict=True):
            setattr(owner, name, value)

    try:
        yield put
    finally:
        put([variable for _, _, variable in places])


def off_grid(layer):
    """The layer with no parameter all zero, and no unit on a pixel: there, as of relu at 0, slopes jump."""
    for parameter in layer.parameters():
        if not parameter.data.any():
            parameter.data[...] = 0.3 * array(*parameter.shape)
        elif parameter is getattr(layer, "displacement", None):
            parameter.data += 0.07
    return layer


OPTIONS = {"rng": 0, "dtype": np.float64}

LAYERS = {
    "Conv2d": (Conv2d(4, 6, 3, stride=2, groups=2, **OPTIONS), [(2, 4, 5, 4)], (2, 6, 3, 2)),
    "Linear": (Linear(4, 3, **OPTIONS), [(2, 4)], (2, 3)),
    "BatchNorm2d": (BatchNorm2d(3, dtype=np.float64), [(2, 3, 2, 3)], (2, 3, 2, 3)),
    "BatchNorm2d eval": (BatchNorm2d(3, dtype=np.float64).eval(), [(2, 3, 2, 3)], (2, 3, 2, 3)),
    "ConvTranspose2d": (
        ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, **OPTIONS),
        [(2, 4, 3, 2)],
        (2, 6, 6, 4),
    ),
    "GroupNorm": (GroupNorm(2, 6, dtype=np.float64), [(2, 6, 2, 3)], (2, 6, 2, 3)),
    "FilterNorm": (FilterNorm(3, **OPTIONS), [(2, 18, 2, 2)], (2, 2, 3, 3, 2, 2)),
    "FilterNorm learned": (FilterNorm((3, 1), 4, **OPTIONS), [(2, 12)], (2, 4, 3, 1)),
    "DDF": (DDF(6, heads=2, stride=2, **OPTIONS), [(2, 6, 5, 4)], (2, 6, 3, 2)),
    "DDF add": (DDF(5, (3, 5), combine="add", dilation=2, **OPTIONS), [(1, 5, 4, 4)], (1, 5, 4, 4)),
    "DDFUp": (DDFUp(4, heads=2, **OPTIONS), [(2, 4, 3, 2)], (2, 4, 6, 4)),
    "DDFUp joint": (
        DDFUp(5, scale=3, joint_channels=2, **OPTIONS),
        [(1, 5, 2, 3), (1, 2, 2, 3)],
        (1, 5, 6, 9),
    ),
    "CARAFE": (CARAFE(4, up_kernel=3, groups=2, compressed=3, **OPTIONS), [(1, 4, 3, 2)], (1, 4, 6, 4)),
    "Involution": (Involution(8, 3, group_channels=4, **OPTIONS), [(2, 8, 3, 4)], (2, 8, 3, 4)),
    "Involution strided": (Involution(8, 3, 2, group_channels=4, **OPTIONS), [(2, 8, 5, 4)], (2, 8, 3, 2)),
    "DeformConv": (
        off_grid(DeformConv(4, 6, stride=2, groups=2, offset_groups=2, **OPTIONS)),
        [(2, 4, 5, 4)],
        (2, 6, 3, 2),
    ),
    "DeformConv modulated, guided": (
        off_grid(DeformConv(2, 3, (3, 1), modulated=True, guide_channels=4, **OPTIONS)),
        [(2, 2, 3, 4), (2, 4, 3, 4)],
        (2, 3, 3, 4),
    ),
    "CGDS": (off_grid(CGDS(2, 4, 3, **OPTIONS)), [(1, 2, 5, 6), (1, 4, 2, 3)], (1, 10, 5, 6)),
    "ASPP": (off_grid(ASPP(3, 2, (1, 2), **OPTIONS)).eval(), [(2, 3, 4, 3)], (2, 2, 4, 3)),
    "DDFBottleneck": (DDFBottleneck(8, 5, 12, stride=2, **OPTIONS), [(2, 8, 4, 4)], (2, 12, 2, 2)),
    "DisplacedConv": (off_grid(DisplacedConv(2, 3, (2, 1), **OPTIONS)), [(2, 2, 4, 3)], (2, 3, 4, 3)),
    "DisplacedConv bounded": (
        off_grid(DisplacedConv(2, 2, 3, sigma=0.77, learn_sigma=True, bound=0.5, **OPTIONS)),
        [(1, 2, 3, 4)],
        (1, 2, 3, 4),
    ),
    "AtomConv": (
        AtomConv(2, 3, num_atoms=2, num_bases=3, hidden_channels=3, learn_bases=True, **OPTIONS).eval(),
        [(1, 2, 4, 3)],
        (1, 3, 4, 3),
    ),
    "Bottleneck": (Bottleneck(4, 2, 6, stride=2, **OPTIONS).eval(), [(2, 4, 3, 4)], (2, 6, 2, 2)),
    "DynamicSamplingConv": (
        DynamicSamplingConv(2, 3, features=2, gain=1.0, **OPTIONS),
        [(1, 2, 4, 3)],
        (1, 3, 4, 3),
    ),
    "AdaptiveAvgPool2d": (AdaptiveAvgPool2d((2, 3)), [(2, 2, 5, 4)], (2, 2, 2, 3)),
    "AvgPool2d": (AvgPool2d(2, padding=1), [(2, 2, 5, 4)], (2, 2, 3, 3)),
    "Dropout": (Dropout(0.3, rng=0).eval(), [(3, 4)], (3, 4)),
    "Flatten": (Flatten(), [(2, 3, 2)], (2, 6)),
    "GELU": (GELU(), [(3, 4)], (3, 4)),
    "GlobalAvgPool": (GlobalAvgPool(), [(2, 3, 2, 2)], (2, 3, 1, 1)),
    "LeakyReLU": (LeakyReLU(0.2), [(3, 4)], (3, 4)),
    "LocalResponseNorm": (LocalResponseNorm(3, alpha=0.5), [(2, 4, 3)], (2, 4, 3)),
    "LogSoftmax": (LogSoftmax(1), [(3, 4)], (3, 4)),
    "MaxPool2d": (MaxPool2d(2), [(2, 2, 5, 4)], (2, 2, 2, 2)),
    "ReLU": (ReLU(), [(3, 4)], (3, 4)),
    "SiLU": (SiLU(), [(3, 4)], (3, 4)),
    "Sigmoid": (Sigmoid(), [(3, 4)], (3, 4)),
    "Softmax": (Softmax(axis=0), [(3, 4)], (3, 4)),
    "Softplus": (Softplus(), [(3, 4)], (3, 4)),
    "Tanh": (Tanh(), [(3, 4)], (3, 4)),
    "Sequential": (Sequential(Linear(4, 3, **OPTIONS), Tanh(), Linear(3, 2, **OPTIONS)), [(2, 4)], (2, 2)),
}


def _case(name, layer, shapes):
    """A layer as a function of its inputs and parameters, at the values that it begins with."""
    inputs = tuple(array(*shape, seed=i + 1) for i, shape in enumerate(shapes))

    def call(*values):
        with substituted(layer) as put:
            put(values[len(inputs) :])
            return layer(*values[: len(inputs)])

    # Complex steps, except where running averages or absolute values stand in the way.
    averaging = any(isinstance(m, BatchNorm2d) and m.training for _, m in layer.modules())
    method = "central" if averaging or name == "Softplus" else "complex"
    return Case(call, (), method=method, given=(*inputs, *(p.data for p in layer.parameters())))


LAYER_CASES = {name: _case(name, layer, shapes) for name, (layer, shapes, _) in LAYERS.items()}
