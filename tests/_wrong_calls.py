"""One good call of each function and layer, and values that each kind of argument must refuse."""

import numpy as np

from autodiff import Variable
from autodiff import functions as F


class Thing:
    """No array, no number, nothing."""

    def __repr__(self):
        return "Thing()"


HUGE = 2**70
STRUCTURED = np.zeros(3, [("a", float), ("b", int)])
NO_ARRAYS = [
    None,
    "text",
    b"bytes",
    {"a": 1},
    {1.0},
    Thing(),
    len,
    np.ma.masked_array(np.ones((2, 3)), mask=True),
    STRUCTURED,
    np.array(["a", "b"]),
    np.array([Thing(), None], dtype=object),
    np.array(["2020-01-01"], "M8[D]"),
    [[1.0, 2.0], [3.0]],
    ["a", 1.0],
    [None, 1.0],
    [Variable(1.0), "b"],
]
NO_INTS = [None, 1.5, 2.0, "2", True, np.True_, HUGE, -HUGE, np.nan, [1, [2]], {}, Thing(), np.ones(2)]
NO_FLAGS = [None, 1, 0, "yes", 1.0, [], np.ones(1), Thing()]
NO_NUMBERS = [
    None,
    "1",
    True,
    10**400,
    np.nan,
    np.inf,
    -np.inf,
    1j,
    [1.0],
    {},
    Thing(),
    np.ones(2),
    Variable(1.0),
]
NO_PAIRS = [None, 1.5, "2", True, (True, True), (1, 2, 3), (1,), (1, 1.5), (), HUGE, (1, HUGE), {}, Thing()]
NO_AXES = [1.5, "0", True, HUGE, -HUGE, 99, -99, [0, [1]], {}, Thing(), np.ones(2)]

WRONG = {
    "array": NO_ARRAYS,
    "images": [*NO_ARRAYS, 1.0, np.ones(3), np.ones((2, 3, 4)), np.ones((1,) * 5)],
    "labels": [*NO_ARRAYS, np.ones(4), np.zeros((4, 1), int), np.full(4, 7), np.full(4, -1)],
    "indices": [*NO_ARRAYS, 1.5, [0.5], [True, False], [99], [-99], [HUGE]],
    "index": ["a", 1.5, 99, -99, HUGE, Thing(), (0, 0, 0, 0), [0, 99], {}, np.ones(3), np.array(["a"])],
    "arrays": [
        None,
        1.0,
        "ab",
        [],
        [np.ones((2, 3)), "b"],
        [np.ones((2, 3)), np.ones((3, 5, 1))],
        {},
        Thing(),
    ],
    "int": NO_INTS,
    "int from 0": [*NO_INTS, -1],
    "int from 1": [*NO_INTS, -1, 0],
    "optional int from 1": [*NO_INTS[1:], -1, 0],
    "pair from 0": [*NO_PAIRS, -1, (0, -1)],
    "pair from 1": [*NO_PAIRS, -1, 0, (1, 0), (-1, 2)],
    "optional pair from 1": [*NO_PAIRS[1:], 0, (1, 0)],
    "optional pair from 0": [*NO_PAIRS[1:], -1, (0, -1)],
    "axis": [None, *NO_AXES, (0, 1)],
    "some axes": NO_AXES,
    "optional axis": [*NO_AXES, (0, 1)],
    "axes": [*NO_AXES, (0, 0), (0, -2), (0, 99)],
    "needed axes": [None, *NO_AXES, (0, 0), (0, 99)],
    "order of axes": [1.5, "01", True, (0,), (0, 0), (0, 1, 2), (0, 5), (0, HUGE), {}, Thing()],
    "shape": [None, 1.5, "ab", True, (2, -3), (-1, -1), (7, 3), (HUGE, 1), (True, 6), {}, Thing()],
    "widths": [
        None,
        1.5,
        "1",
        True,
        -1,
        (1, -1),
        (1, 2, 3),
        ((1, 2),) * 3,
        HUGE,
        ((1, True), (0, 0)),
        {},
        Thing(),
    ],
    "counts": [None, 1.5, "1", True, -1, (1, -1), (1, HUGE), {}, Thing()],
    "flag": NO_FLAGS,
    "number": NO_NUMBERS,
    "number from 0": [*NO_NUMBERS, -1e-5],
    "number from 0 to 1": [*NO_NUMBERS, -1e-5, 1.1],
    "share": [*NO_NUMBERS, -1e-5, 1, 1.0, 2],
    "positive number": [*NO_NUMBERS, 0, 0.0, -1],
    "optional positive number": [*NO_NUMBERS[1:], 0, -1],
    "choice": [None, "nonsense", 3, "", ["constant"], True, Thing()],
    "dtype": ["nonsense", object, "U5", Thing(), [("a", float)], 7],
    "parameters' dtype": [int, bool, complex, "nonsense", object, "U5", Thing(), 7],
    "rng": ["seed", -1, 1.5, True, Thing(), {}],
    "needed rng": [None, 0, "seed", Thing()],
    "contraction": [
        None,
        1.5,
        "1",
        True,
        -1,
        3,
        ([0],),
        ([0], [0, 1]),
        ([5], [0]),
        ([0], [0]),
        ([0, 0], [0, 1]),
        Thing(),
    ],
    "order of a norm": ["nuc", 0, -1, np.nan, True, [2], Thing()],
    "statistics": [1, (1,), ("a", "b"), Thing(), [np.ones(1)] * 3],
    "subscripts": [None, 3, "ij", "ij,jk->ij,", "ij,kl->ijm", "i1,jk", "ijk,jk", Thing()],
    "function": [None],
}


def ones(*shape):
    return np.ones(shape)


MATRIX, IMAGES, CHANNELS = ones(2, 3), ones(2, 4, 6, 5), ones(4)
X = {"x": (MATRIX, "array")}
REDUCED = {**X, "axis": (0, "axes"), "keepdims": (False, "flag")}
BINARY = {"x": (MATRIX, "array"), "y": (MATRIX, "array")}
PARAMETERS = {"weight": (CHANNELS, "array"), "bias": (CHANNELS, "array")}
EPSILON = {"epsilon": (1e-5, "number from 0")}
NEIGHBOURS = {
    "size": (3, "int from 1"),
    "alpha": (1e-4, "number from 0"),
    "beta": (0.75, "number from 0"),
    "k": (1.0, "positive number"),
}
LOSS = {"prediction": (MATRIX, "array"), "target": (MATRIX, "array")}
WINDOWS = {
    "x": (IMAGES, "images"),
    "kernel_size": (2, "pair from 1"),
    "stride": (None, "optional pair from 1"),
    "padding": (0, "pair from 0"),
}
SCALED = {"x": (IMAGES, "images"), "scale": (1, "int from 1")}
STEPS = {"stride": (1, "pair from 1"), "dilation": (1, "pair from 1"), "groups": (1, "int from 1")}


def _each(names, arguments):
    return dict.fromkeys(names.split(), arguments)


# Of each argument a good value, and its kind.
FUNCTIONS = {
    **_each("abs cos erf exp gelu log log1p negative relu sigmoid silu sin softplus sqrt square tanh", X),
    **_each("add arctan2 divide hypot maximum minimum multiply power subtract", BINARY),
    **_each("sum mean max min prod logsumexp", REDUCED),
    **_each("var std", {**REDUCED, "ddof": (0, "int from 0")}),
    **_each("softmax log_softmax", {**X, "axis": (0, "axis")}),
    **_each("mse l1", LOSS),
    **_each("tril triu", {**X, "k": (0, "int")}),
    **_each("pixel_shuffle pixel_unshuffle upsample_nearest", SCALED),
    **_each("avg_pool2d max_pool2d", WINDOWS),
    **_each("global_avg_pool channel_statistics", {"x": (IMAGES, "images")}),
    "adaptive_avg_pool2d": {"x": (IMAGES, "images"), "output_size": (2, "pair from 1")},
    "affine": {
        "x": (IMAGES, "images"),
        "mean": (CHANNELS, "array"),
        "variance": (CHANNELS, "array"),
        **PARAMETERS,
        **EPSILON,
    },
    "array": {"values": ([1.0, [2.0]][:1], "array"), "dtype": (None, "dtype")},
    "astype": {**X, "dtype": (np.float32, "dtype")},
    "batch_norm": {"x": (IMAGES, "images"), **PARAMETERS, **EPSILON, "statistics": (None, "statistics")},
    "broadcast_to": {**X, "shape": ((4, 2, 3), "shape")},
    "clip": {**X, "min": (0.0, "number or array"), "max": (MATRIX, "number or array")},
    "concatenate": {"arrays": ([MATRIX, MATRIX], "arrays"), "axis": (0, "optional axis")},
    "conv2d": {
        "x": (IMAGES, "images"),
        "weight": (ones(3, 4, 3, 3), "images"),
        "bias": (ones(3), "optional array"),
        "padding": (0, "pair from 0"),
        **STEPS,
    },
    "conv_transpose2d": {
        "x": (IMAGES, "images"),
        "weight": (ones(4, 3, 3, 3), "images"),
        "bias": (ones(3), "optional array"),
        "padding": (0, "pair from 0"),
        "output_padding": (0, "pair from 0"),
        **STEPS,
    },
    "cross_entropy": {
        "logits": (ones(4, 3), "array"),
        "labels": (np.zeros(4, int), "labels"),
        "ignore_index": (None, "optional int"),
    },
    "cumsum": {**X, "axis": (0, "optional axis")},
    "dropout": {**X, "rate": (0.5, "share"), "rng": (np.random.default_rng(0), "needed rng")},
    "end_point_error": {
        "flow": (ones(1, 2, 3), "array"),
        "target": (ones(1, 2, 3), "array"),
        "valid": (ones(1, 3), "optional array"),
    },
    "expand_dims": {**X, "axis": (0, "needed axes")},
    "flatten": {**X, "start": (1, "axis")},
    "flip": {**X, "axis": (0, "axes")},
    "getitem": {**X, "index": (0, "index")},
    "group_norm": {"x": (IMAGES, "array"), "groups": (2, "int from 1"), **PARAMETERS, **EPSILON},
    "inv": {"a": (np.eye(3), "square")},
    "leaky_relu": {**X, "slope": (0.1, "number")},
    "linear": {"x": (MATRIX, "array"), "weight": (ones(4, 3), "array"), "bias": (ones(4), "optional array")},
    "local_response_norm": {"x": (IMAGES, "array"), **NEIGHBOURS},
    "matmul": {"x": (MATRIX, "array"), "y": (ones(3, 2), "array")},
    "moveaxis": {**X, "source": (0, "needed axes"), "destination": (1, "needed axes")},
    "norm": {**X, "ord": (None, "order of a norm"), "axis": (0, "axes"), "keepdims": (False, "flag")},
    "normalize": {
        **X,
        "weight": (ones(3), "array"),
        "bias": (ones(3), "array"),
        "axes": ((1,), "needed axes"),
        **EPSILON,
        "statistics": (None, "statistics"),
    },
    "outer": BINARY,
    "pad": {
        **X,
        "pad_width": (1, "widths"),
        "mode": ("constant", "choice"),
        "constant_values": (0, "number"),
    },
    "repeat": {**X, "repeats": (2, "int from 0"), "axis": (0, "optional axis")},
    "reshape": {**X, "shape": ((3, 2), "shape")},
    "resize": {"x": (IMAGES, "images"), "size": (3, "pair from 1"), "align_corners": (False, "flag")},
    "roll": {**X, "shift": (1, "int"), "axis": (0, "some axes")},
    "smooth_l1": {**LOSS, "beta": (1.0, "positive number")},
    "solve": {"a": (np.eye(3), "square"), "b": (ones(3), "array")},
    "sort": {**X, "axis": (0, "optional axis")},
    "squeeze": {"x": (ones(1, 3), "array"), "axis": (0, "axes")},
    "stack": {"arrays": ([MATRIX, MATRIX], "arrays"), "axis": (0, "axis")},
    "swapaxes": {**X, "axis1": (0, "axis"), "axis2": (1, "axis")},
    "take": {**X, "indices": ([0, 1], "indices"), "axis": (0, "optional axis")},
    "take_along_axis": {**X, "indices": (np.zeros((2, 1), int), "indices"), "axis": (1, "optional axis")},
    "tensordot": {"x": (MATRIX, "array"), "y": (ones(3, 2), "array"), "axes": (1, "contraction")},
    "tile": {**X, "reps": (2, "counts")},
    "transpose": {**X, "axes": (None, "order of axes")},
    "where": {"condition": (MATRIX > 0, "array"), **BINARY},
    "einsum": {"subscripts": ("ij,jk->ik", "subscripts")},
}
WRONG["number or array"] = WRONG["optional array"] = NO_ARRAYS[1:]
WRONG["optional int"] = NO_INTS[1:]
WRONG["square"] = [*NO_ARRAYS, 1.0, ones(3), MATRIX, np.zeros((3, 3))]

KINDS = {
    "in_channels": (4, "int from 1"),
    "out_channels": (4, "int from 1"),
    "kernel_size": (3, "pair from 1"),
    "stride": (1, "pair from 1"),
    "dilation": (1, "pair from 1"),
    "padding": (None, "optional pair from 0"),
    "groups": (1, "int from 1"),
    "bias": (True, "flag"),
    "rng": (0, "rng"),
    "dtype": (np.float32, "parameters' dtype"),
    "heads": (1, "int from 1"),
    "se_ratio": (0.2, "positive number"),
    "nonlinearity": ("relu", "choice"),
    "combine": ("mul", "choice"),
    "border": ("reflect", "choice"),
}


def _layer(names, **others):
    return {**{name: KINDS[name] for name in names.split()}, **others}


CONVOLUTION = "in_channels out_channels kernel_size stride padding dilation groups bias rng dtype"
DYNAMIC = "in_channels kernel_size dilation heads se_ratio nonlinearity combine border rng dtype"
INT = (4, "int from 1")
NONE_TOO = {"in_channels": (4, "int from 0"), "out_channels": (4, "int from 0")}

LAYERS = {
    "ASPP": _layer(
        "in_channels out_channels rng dtype", dilations=((1, 2), "dilations"), image_pooling=(True, "flag")
    ),
    "AdaptiveAvgPool2d": {"output_size": (2, "pair from 1")},
    "AtomConv": _layer(
        "in_channels out_channels stride padding dilation bias border rng dtype",
        kernel_size=(3, "int from 1"),
        num_atoms=(2, "int from 1"),
        num_bases=(2, "int from 1"),
        hidden_channels=(4, "optional int from 1"),
        learn_bases=(False, "flag"),
    ),
    "AvgPool2d": {name: kind for name, kind in WINDOWS.items() if name != "x"},
    "BatchNorm2d": {
        "channels": (4, "int from 0"),
        "momentum": (0.1, "number from 0 to 1"),
        **EPSILON,
        "dtype": KINDS["dtype"],
    },
    "Bottleneck": _layer("in_channels out_channels rng dtype", middle_channels=INT, stride=(1, "int from 1")),
    "CARAFE": _layer(
        "in_channels groups border rng dtype",
        scale=(2, "int from 1"),
        up_kernel=(3, "int from 1"),
        encoder_kernel=(3, "pair from 1"),
        compressed=INT,
    ),
    "CGDS": _layer("out_channels kernel_size border rng dtype", low_channels=INT, guide_channels=INT),
    "Conv2d": _layer(CONVOLUTION, **NONE_TOO),
    "ConvTranspose2d": {
        **_layer(CONVOLUTION, **NONE_TOO),
        "padding": (0, "pair from 0"),
        "output_padding": (0, "pair from 0"),
    },
    "DDF": _layer(DYNAMIC + " stride"),
    "DDFBottleneck": _layer(
        "in_channels out_channels rng dtype", middle_channels=INT, stride=(1, "int from 1")
    ),
    "DDFUp": _layer(DYNAMIC, scale=(2, "int from 1"), joint_channels=(None, "optional int from 1")),
    "DeformConv": _layer(
        CONVOLUTION + " border",
        modulated=(True, "flag"),
        offset_groups=(1, "int from 1"),
        guide_channels=(None, "optional int from 1"),
    ),
    "DisplacedConv": _layer(
        "bias rng dtype",
        **NONE_TOO,
        units=(2, "pair from 1"),
        extent=(1.0, "number from 0"),
        sigma=(0.5, "positive number"),
        learn_sigma=(False, "flag"),
        displacement_rate=(1.0, "positive number"),
        bound=(None, "optional positive number"),
        displacement_gradient=("exact", "choice"),
    ),
    "Dropout": {"rate": (0.5, "share"), "rng": KINDS["rng"]},
    "DynamicSamplingConv": _layer(
        "in_channels out_channels kernel_size dilation stride rng dtype",
        features=(2, "optional int from 1"),
        samples=(2, "int from 1"),
        sample_stride=(1, "pair from 1"),
        attention=(True, "flag"),
        kernel_residual=(True, "flag"),
        attention_residual=(True, "flag"),
        fuse=("sum", "choice"),
        post_channels=(2, "optional int from 1"),
        feature_kernel=(3, "pair from 1"),
        branch_kernel=(3, "pair from 1"),
        gain=(0.1, "number"),
    ),
    "FilterNorm": _layer("kernel_size nonlinearity rng dtype", channels=(None, "optional int from 1")),
    "Flatten": {"start": (1, "int")},
    "GELU": {},
    "GlobalAvgPool": {},
    "GroupNorm": {
        "groups": (2, "int from 1"),
        "channels": (4, "int from 0"),
        **EPSILON,
        "dtype": KINDS["dtype"],
    },
    "Involution": _layer(
        "border rng dtype",
        channels=INT,
        kernel_size=(3, "int from 1"),
        stride=(1, "int from 1"),
        group_channels=(2, "int from 1"),
        reduction=(2, "int from 1"),
    ),
    "LeakyReLU": {"slope": (0.1, "number")},
    "Linear": _layer("bias rng dtype", in_features=(4, "int from 0"), out_features=(4, "int from 0")),
    "LocalResponseNorm": NEIGHBOURS,
    "LogSoftmax": {"axis": (1, "int")},
    "MaxPool2d": {name: kind for name, kind in WINDOWS.items() if name != "x"},
    "ReLU": {},
    "SiLU": {},
    "Sigmoid": {},
    "Softmax": {"axis": (1, "int")},
    "Softplus": {},
    "Tanh": {},
}
WRONG["dilations"] = [1, None, "ab", (0, 1), (1.5,), ((1, 2, 3),), (True,), (HUGE,), Thing()]


def call_function(name, arguments):
    if name == "einsum":
        return F.einsum(arguments["subscripts"], MATRIX, ones(3, 2))
    return getattr(F, name)(**arguments)
