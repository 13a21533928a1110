"""Grid, block and arguments of the kernels in dynamic_sampling.cu.

Parameters arrive resolved and checked: all steps are (y, x) pairs of ints, and no position is farther than
2**30 pixels from the image. Arrays are all NumPy or all CuPy, of one dtype, with any strides:

- conv: x (N, C, H, W), weight (N, O, C, kh, kw, Ho, Wo).
- sampling: x, channel_kernel (N, O, C, Ho, Wo), spatial_kernel (N, O, kh, kw, Ho, Wo), sample_attention None
  or (N, O, S, S, Ho, Wo), position_attention None or (N, O, kh, kw, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Program, constants, program

FILE = "dynamic_sampling.cu"
BLOCK = 128  # as the launch bounds of the kernels
STRIP = 8  # as in dynamic_sampling.cu
FUSE = {"sum": 0, "max": 1, "stack": 2}
_THREADS_WANTED = 1 << 17  # enough to fill a large GPU twice
_MOST_SLOTS = 16
_MOST_MARGIN = 4  # times the image, for box sums


def choose_program(dtype: Any, samples: int, fuse: str, *, wide_index: bool = False) -> Program:
    """Program for one kind of call; one sample leaves a thread room for more output channels."""
    double = getattr(dtype, "name", dtype) == "float64"
    if samples == 1:
        outputs, tile = 4 if wide_index else 8, 1
    else:
        outputs, tile = (1 if wide_index else 2) if double else (2 if wide_index else 4), 8
    chosen = constants(OUTPUTS=outputs, TILE=tile, FUSE=FUSE[fuse])
    return program(FILE, type_constants(dtype, wide_index=wide_index) + chosen)


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    return [
        (f"{dtype} S{samples or 'any'} {fuse}", choose_program(dtype, samples, fuse, wide_index=wide_index))
        for samples in (1, 0)
        for fuse in FUSE
    ]


@dataclass(frozen=True)
class Call:
    """One call of `dynamic_sampling_conv2d`: its arrays, contiguous, and what its kernels are given."""

    arrays: tuple[Any, ...]
    params: dict[str, Any]
    lead: tuple[int, int] = (0, 0)  # the pixel of x on which the samples of the first output are centred
    plain: tuple[Any, ...] = ()  # x and the samples of which x has box sums

    @property
    def batch(self) -> int:
        """Images."""
        return int(self.arrays[0].shape[0])

    @property
    def channels(self) -> int:
        """Channels of x."""
        return int(self.arrays[0].shape[1])

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return int(self.arrays[1].shape[1])

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of x."""
        return tuple(self.arrays[0].shape[2:])

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width of the output."""
        return tuple(self.arrays[1].shape[3:])

    @property
    def regions(self) -> int:
        """Sampled regions."""
        return int(self.params["samples"]) ** 2

    @property
    def taps(self) -> int:
        """Values in one spatial kernel."""
        return prod(self.arrays[2].shape[2:4])

    def image_itself(self) -> tuple[Any, np.int32]:
        """The image and the samples of its regions, for results that are not finite: not the box sums."""
        x, samples = self.plain or (self.arrays[0], self.params["samples"])
        return x, np.int32(samples)

    def numbers(self) -> tuple[Any, ...]:
        """What every kernel takes last."""
        params, acc = self.params, accumulator_dtype(self.arrays[0].dtype).type
        sizes = (self.channels, self.outputs, *self.image, *self.plane, *self.arrays[2].shape[2:4])
        steps = (*params["sample_stride"], *params["dilation"], *params["stride"])
        integers = tuple(np.int32(value) for value in (*sizes, params["samples"], *steps, *self.lead))
        residual = params["kernel_residual"] / self.channels if self.channels else 0
        return *integers, acc(residual), acc(params["attention_residual"])

    def launch(self, entry: str, items: int | None, total: Any, before: tuple, after: tuple) -> None:
        """Run a kernel on as many threads as there are items; None: one for each pixel of OUTPUTS outputs."""
        pixels = self.batch * prod(self.plane)
        touched = (*self.arrays, *(a for a in (*before, *after) if hasattr(a, "size")))
        wide = needs_wide_index(*touched, work_items=pixels * self.outputs if items is None else items)
        params = self.params
        chosen = choose_program(self.arrays[0].dtype, params["samples"], params["fuse"], wide_index=wide)
        if items is None:
            items = pixels * blocks(self.outputs, int(chosen.constant("OUTPUTS")))
        index = (np.int64 if wide else np.int32)(items)
        arguments = (*before, *self.arrays, total, *after, index, *self.numbers())
        launch(chosen, f"dynamic_sampling_{entry}", (blocks(items, BLOCK),), (BLOCK,), arguments)

    def channel_sum(self) -> Any:
        """X1 (N, H, W)."""
        x = self.arrays[0]
        total = empty((self.batch, *self.image), x, accumulator_dtype(x.dtype))
        wide = needs_wide_index(x, work_items=total.size)
        index = np.int64 if wide else np.int32
        chosen = choose_program(x.dtype, 1, "sum", wide_index=wide)
        arguments = (x, total, index(total.size), np.int32(self.channels), index(prod(self.image)))
        launch(chosen, "dynamic_sampling_channel_sum", (blocks(total.size, BLOCK),), (BLOCK,), arguments)
        return total


def _boxed(arrays: tuple[Any, ...], params: dict[str, Any]) -> Call | None:
    """The call with one sample of box sums of x, where it gives the same; else None.

    The box sums are taken of an image with a margin, as wide as taps reach: where they reach far that would
    be more work than it saves. 16-bit types could not hold the sums.
    """
    x, _, spatial_kernel, *attention = arrays
    if any(each is not None for each in attention) or params["fuse"] != "sum" or params["samples"] == 1:
        return None
    if not x.size or x.dtype.itemsize < 4:
        return None
    lead = tuple(spatial_kernel.shape[2 + k] // 2 * params["dilation"][k] for k in range(2))
    sizes = tuple(x.shape[2 + k] + 2 * lead[k] for k in range(2))
    if prod(sizes) > _MOST_MARGIN * prod(x.shape[2:]):
        return None
    sums = _box_sums(x, sizes, lead, params)
    return Call((sums, *arrays[1:]), {**params, "samples": 1}, lead, (x, params["samples"]))


def _box_sums(image: Any, sizes: tuple[int, int], lead: tuple[int, int], params: dict[str, Any]) -> Any:
    """Sums over sample positions around the pixels of the image and `lead` more each side, (N, C, *sizes)."""
    n, c, *_ = image.shape
    for axis in range(2):
        reach = (params["samples"] - 1) // 2 * params["sample_stride"][axis]
        steps = -lead[axis] - reach, params["sample_stride"][axis], params["samples"]
        image = _axis_sum(image, (n, c, sizes[0], sizes[1] if axis else image.shape[3]), axis, steps)
    return image


def _box_sums_adjoint(grad: Any, sizes: tuple[int, int], lead: tuple[int, int], params: Any) -> Any:
    """The adjoint: from the gradient of `_box_sums` to that of the image."""
    n, c, *_ = grad.shape
    for axis in range(2):
        reach = (params["samples"] - 1) // 2 * params["sample_stride"][axis]
        steps = reach + lead[axis], -params["sample_stride"][axis], params["samples"]
        grad = _axis_sum(grad, (n, c, sizes[0], sizes[1] if axis else grad.shape[3]), axis, steps)
    return grad


def _axis_sum(image: Any, shape: tuple[int, ...], axis: int, steps: tuple[int, int, int]) -> Any:
    """The kernel of this name along axis 2 + `axis`; `steps` are (base, step, count)."""
    sums = empty(shape, image)
    wide = needs_wide_index(image, sums, work_items=sums.size)
    index = np.int64 if wide else np.int32
    inner = 1 if axis else shape[3]
    numbers = (index(sums.size), *map(np.int32, (image.shape[2 + axis], shape[2 + axis], inner, *steps)))
    chosen = choose_program(image.dtype, 1, "sum", wide_index=wide)
    entry = "dynamic_sampling_axis_sum"
    launch(chosen, entry, (blocks(sums.size, BLOCK),), (BLOCK,), (image, sums, *numbers))
    return sums


def sampling_forward(
    x: Any,
    channel_kernel: Any,
    spatial_kernel: Any,
    sample_attention: Any,
    position_attention: Any,
    **params: Any,
) -> tuple[Any, tuple]:
    """The output, and what `sampling_backward` needs: contiguous inputs and for "max" the samples chosen."""
    arrays = contiguous(x, channel_kernel, spatial_kernel, sample_attention, position_attention)
    call = _boxed(arrays, params) or Call(arrays, params)
    shape: tuple[int, ...] = (call.batch, call.outputs, *call.plane)
    if params["fuse"] == "stack":
        shape = (shape[0], params["samples"], params["samples"], *shape[1:])
    y = empty(shape, x)
    largest = empty((call.batch, call.outputs, *call.plane), x, np.int32) if params["fuse"] == "max" else None
    if y.size:
        call.launch("forward", None, call.channel_sum(), call.image_itself(), (y, largest))
    return y, arrays if largest is None else (*arrays, largest)


def sampling_backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], **params: Any) -> tuple:
    """Gradients of the five arrays; None where `needs` is False or the array was not given."""
    arrays = contiguous(*kept[:5])
    wanted = [needed and array is not None for needed, array in zip(needs, arrays, strict=True)]
    if not grad_output.size or not arrays[0].size:
        return tuple(
            zeros(array.shape, array) if want else None for array, want in zip(arrays, wanted, strict=True)
        )
    call, largest = _boxed(arrays, params) or Call(arrays, params), None
    if params["fuse"] == "max":
        largest = kept[5] if len(kept) > 5 else sampling_forward(*arrays, **params)[1][5]
    before, total = (*contiguous(grad_output), largest), call.channel_sum()
    pixels, plane = prod(call.image), prod(call.plane)
    per_output = call.batch * call.outputs
    threads = {
        "channel_kernel": per_output * blocks(call.channels, STRIP) * plane,
        "spatial_kernel": per_output * blocks(call.taps, STRIP) * plane,
        "sample_attention": None,
        "position_attention": per_output * blocks(call.taps, STRIP) * pixels,
    }
    grads: list[Any] = [_grad_x(call, before, total) if wanted[0] else None]
    if wanted[0] and call.arrays[0] is not arrays[0]:
        grads[0] = _box_sums_adjoint(grads[0], arrays[0].shape[2:], call.lead, params)
    for (name, items), array, want in zip(threads.items(), arrays[1:], wanted[1:], strict=True):
        grads.append(empty(array.shape, array) if want else None)
        if want:
            own = call.image_itself() if name in ("channel_kernel", "spatial_kernel") else ()
            call.launch(f"grad_{name}", items, total, (*before, *own), (grads[-1],))
    return tuple(grads)


def _grad_x(call: Call, before: tuple, total: Any) -> Any:
    """First what all channels have in common, summed in slots of the output channels."""
    x = call.arrays[0]
    wanted = _THREADS_WANTED // max(1, total.size)
    slots = max(1, min(_MOST_SLOTS, call.outputs, wanted))
    partial, grad = empty((slots, *total.shape), x, total.dtype), empty(x.shape, x)
    call.launch("grad_total", partial.size, total, before, (partial, np.int32(slots)))
    items = call.batch * blocks(call.channels, STRIP) * prod(call.image)
    call.launch("grad_x", items, total, before, (partial, np.int32(slots), grad))
    return grad


def conv2d_forward(x: Any, weight: Any, **steps: Any) -> tuple[Any, tuple]:
    """Output (N, O, Ho, Wo), and the arrays that `conv2d_backward` needs: contiguous inputs."""
    x, weight = contiguous(x, weight)
    y = empty((*weight.shape[:2], *weight.shape[5:]), x)
    if y.size:
        _launch_conv("forward", y.size, (x, weight, y), x, weight, steps)
    return y, (x, weight)


def conv2d_backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool], **steps: Any) -> tuple[Any, Any]:
    """Gradients of x and weight; None where `needs` is False."""
    grad_output, x, weight = contiguous(grad_output, *kept)
    grad_x = empty(x.shape, x) if needs[0] else None
    grad_weight = empty(weight.shape, weight) if needs[1] else None
    if needs[0] and x.size:
        _launch_conv("grad_x", x.size, (grad_output, weight, grad_x), x, weight, steps)
    if needs[1] and weight.size:
        items = weight.size // prod(weight.shape[3:5])
        _launch_conv("grad_weight", items, (grad_output, x, grad_weight), x, weight, steps)
    return grad_x, grad_weight


def _launch_conv(
    entry: str, items: int, arrays: tuple, x: Any, weight: Any, steps: dict[str, tuple[int, int]]
) -> None:
    wide = needs_wide_index(*arrays, weight, work_items=items)
    index = np.int64 if wide else np.int32
    sizes = (x.shape[1], weight.shape[1], *x.shape[2:], *weight.shape[5:], *weight.shape[3:5])
    pairs = (*steps["stride"], *steps["dilation"], *steps["padding"])
    numbers = tuple(np.int32(value) for value in (*sizes, *pairs))
    chosen = choose_program(x.dtype, 1, "sum", wide_index=wide)
    launch(
        chosen,
        f"dynamic_sampling_conv_{entry}",
        (blocks(items, BLOCK),),
        (BLOCK,),
        (*arrays, index(items), *numbers),
    )
