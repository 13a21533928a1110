"""ONNX's DeformConv beside `deform_conv2d`: a model of one node, run by ONNX's own reference evaluator.

ONNX takes offsets as (N, 2*D*kh*kw, Ho, Wo) and masks as (N, D*kh*kw, Ho, Wo), in the memory order that
`deform_conv2d` takes too. So a network that was learned here is written as it is.

    python examples/interop/onnx_deform.py

needs onnx (the extra `interop`).
"""

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

import dynarray as dyn


def model(
    arrays: dict[str, np.ndarray], *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> ModelProto:
    """A model that makes y of x, weight, offset, bias and mask by one node of DeformConv."""
    kernel = arrays["weight"].shape[2:]
    node = helper.make_node(
        "DeformConv",
        ["x", "weight", "offset", "bias", "mask"],
        ["y"],
        kernel_shape=kernel,
        strides=[stride] * 2,
        pads=[padding] * 4,
        dilations=[dilation] * 2,
        group=groups,
        offset_group=arrays["mask"].shape[1] // (kernel[0] * kernel[1]),
    )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "one node", inputs, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    checker.check_model(made)
    return made


def draw(
    rng: np.random.Generator,
    d: int = 1,
    groups: int = 1,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> dict[str, np.ndarray]:
    """Arrays for a call with kernels of 3 x 2 and d groups of offsets, on an image of four channels."""
    n, c, o, h, w, kh, kw = 1, 4, 2, 6, 5, 3, 2
    ho = (h + 2 * padding - dilation * (kh - 1) - 1) // stride + 1
    wo = (w + 2 * padding - dilation * (kw - 1) - 1) // stride + 1
    shapes = {
        "x": (n, c, h, w),
        "weight": (o, c // groups, kh, kw),
        "offset": (n, 2 * d * kh * kw, ho, wo),
        "bias": (o,),
        "mask": (n, d * kh * kw, ho, wo),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def compare(arrays: dict[str, np.ndarray], groups: int = 1, **params: int) -> float:
    """The largest difference between ONNX's answer and ours."""
    theirs = ReferenceEvaluator(model(arrays, groups=groups, **params)).run(None, arrays)[0]
    ours = dyn.deform_conv2d(
        arrays["x"], arrays["offset"], arrays["weight"], mask=arrays["mask"], bias=arrays["bias"], **params
    )
    return float(np.abs(theirs - ours).max())


CALLS = {
    "plain": {},
    "padded": {"padding": 1},
    "stride 2": {"stride": 2, "padding": 1},
    "dilation 2": {"dilation": 2, "padding": 2},
    "two groups of offsets": {"d": 2, "padding": 1},
    "two groups of channels": {"groups": 2, "padding": 1},
}


def main() -> None:
    """Compare calls of several kinds."""
    rng = np.random.default_rng(0)
    for title, call in CALLS.items():
        params = {key: value for key, value in call.items() if key != "d"}
        print(f"{title:24} largest difference {compare(draw(rng, **call), **params):.1e}")


if __name__ == "__main__":
    main()
