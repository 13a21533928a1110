"""Calls that a type checker must take or refuse: `test_types.py` runs mypy over this file.

A line that must be refused says with which of mypy's codes; all others must pass, in strict mode.
"""

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import dynarray as dyn
from dynarray.typing import Array

Float32 = NDArray[np.float32]


class Other:
    """An array of another library: what `Array` asks for, and no relation of NumPy's."""

    shape: tuple[int, ...]
    ndim: int
    dtype: Any

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any, /) -> Any: ...


def taken(x: Float32, w: Float32, g: Float32, y: Other, v: Other, h: NDArray[np.float16]) -> None:
    """Right calls: the arrays of one kind, and results of that kind."""
    assert_type(dyn.involution(x, w), Float32)
    assert_type(dyn.involution(y, v), Other)
    assert_type(dyn.ddf(x, w, w, combine="add", stride=(2, 1), dilation=np.int64(2)), Float32)
    assert_type(dyn.carafe(x, masks=w, kernel_size=[3, 5], groups=2, scale=np.uint8(2)), Float32)
    assert_type(dyn.deform_conv2d(x, w, w, mask=w, bias=None, padding=None, deterministic=True), Float32)
    assert_type(dyn.displaced_conv2d(x, w, w, sigma=1, displacement_gradient="smooth"), Float32)
    assert_type(dyn.displaced_conv2d(y, v, v, sigma=v), Other)
    assert_type(dyn.dynamic_sampling_conv2d(x, w, w, None, w, samples=5, fuse="stack"), Float32)
    assert_type(dyn.compose_atoms(y, v), Other)
    assert_type(dyn.ddf_backward(g, x, w, w), dyn.DdfGradients[Float32])
    assert_type(dyn.ddf_backward(g, x, w, w, combine="mul", needs=(True, False, True)).x, Float32)
    assert_type(dyn.local_filter2d_backward(v, y, v).channel_weight, Other | None)
    assert_type(
        dyn.displaced_conv2d_backward(grad_output=g, x=x, weight=w, displacement=w).sigma, Float32 | None
    )
    grad_x, grad_weight = dyn.involution_backward(g, x, w, needs=[True, True])
    assert_type(grad_x, Float32)
    assert_type(grad_weight, Float32)
    anything: Array = dyn.sample_points(x, w)
    anything = dyn.sample_points(y, v)
    anything = dyn.sample_points(h, w)
    assert_type(anything.shape, tuple[int, ...])
    with dyn.use_backend("reference"):
        assert_type(dyn.OPERATORS["ddf"]((x, w, w), combine="mul"), Float32)
    assert_type(dyn.__version__, str)


def refused(x: Float32, w: Float32, g: Float32, y: Other) -> None:
    """Wrong calls, each refused for the reason beside it."""
    dyn.involution([1.0], w)  # type-var
    dyn.involution(1.0, 2.0)  # type-var
    dyn.involution(x, None)  # type-var
    dyn.involution(x)  # call-arg
    dyn.involution(x, w, 2)  # call-arg
    dyn.involution(x, w, strides=2)  # call-arg
    dyn.involution(x, w, stride=1.5)  # arg-type
    dyn.involution(x, w, stride="2")  # arg-type
    dyn.involution(x, w, stride=(1, 2, 3))  # arg-type
    dyn.involution(x, w, padding="same")  # arg-type
    dyn.local_filter2d(x, w, combine="sub")  # arg-type
    dyn.local_filter2d(x, w, upsample=2.0)  # arg-type
    dyn.ddf(x, w, w, combine=None)  # arg-type
    dyn.carafe(x, w)  # call-arg
    dyn.carafe(x, w, kernel_size=None)  # arg-type
    dyn.displaced_conv2d(x, w, w, 0.5)  # call-arg
    dyn.displaced_conv2d(x, w, w, displacement_gradient="rough")  # arg-type
    dyn.displaced_conv2d(x, w, w, sigma="1")  # arg-type
    dyn.deform_conv2d(x, w, w, deterministic=1)  # arg-type
    dyn.dynamic_sampling_conv2d(x, w, w, fuse="mean")  # arg-type
    dyn.dynamic_sampling_conv2d(x, w, w, samples=(2, 2))  # arg-type
    dyn.ddf_backward(x, w, w)  # call-arg
    dyn.ddf_backward(g, x, w, w, needs=True)  # arg-type
    dyn.ddf_backward(g, x, w, w, needs=(1, 0, 1))  # arg-type
    dyn.ddf_backward(g, x, w, w, stride=None)  # arg-type
    dyn.ddf_backward(g, x, w, w).weight  # attr-defined
    dyn.local_filter2d_backward(g, x, w).channel_weight.sum()  # union-attr
    number: int = dyn.involution(x, w)  # assignment
    other: Other = dyn.involution(x, w)  # assignment
    mixed: Float32 = dyn.involution(x, y)  # arg-type
    dyn.no_such_filter(x, w)  # attr-defined
