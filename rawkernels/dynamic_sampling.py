"""Grid, block and arguments of the kernels in dynamic_sampling.cu.

Parameters arrive resolved and checked: all steps are (y, x) pairs of ints, and no position is farther than
2**30 pixels from the image. Arrays are all NumPy or all CuPy, of one dtype, with any strides:

- conv: x (N, C, H, W), weight (N, O, C, kh, kw, Ho, Wo).
- sampling: x, channel_kernel (N, O, C, Ho, Wo), spatial_kernel (N, O, kh, kw, Ho, Wo), sample_attention None
  or (N, O, S, S, Ho, Wo), position_attention None or (N, O, kh, kw, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    int32s,
    launch,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Program, constants, program

FILE = "dynamic_sampling.cu"
BLOCK = 128  # as the launch bounds of the kernels
WARP = 32
WARPS = 4  # of a block; three where that is all the rows of samples
TAPS = 9  # as in dynamic_sampling.cu
MOST_SUMS = 64  # in the registers of a thread
FUSE = {"sum": 0, "max": 1, "stack": 2}
# Samples and their horizontal distance that have a program of their own, where their sum is asked for.
KNOWN = tuple((samples, step) for samples in (3, 5, 7, 9) for step in (1, 2))
_THREADS_WANTED = 1 << 16  # about what a large GPU has at a time
_MOST_SLOTS = 32
_MOST_MARGIN = 4  # times the image, for box sums and margins,
_ANY_MARGIN = 1 << 20  # but for so many elements
_MOST_BLOCKS = 65535  # along the second and third axis of a grid


class Divisor(int):
    """A whole number among the arguments of a kernel that its threads divide by."""


class Work(NamedTuple):
    """What one thread makes: as much as its registers hold sums of."""

    outputs: int  # in the forward pass
    fewer: int  # where it has channels of each, as in dynamic_sampling.cu
    channels: int
    rows: int  # of x, in the gathers, as in dynamic_sampling.cu


def work(dtype: Any, samples: int, step: int, *, wide_index: bool = False) -> Work:
    """Where the number of samples is known, and is not too large, there is room for more output channels."""
    name = getattr(dtype, "name", dtype)
    fewer, channels = 2 if name == "float64" else 4, 16 if name == "float32" else 8
    outputs = fewer if wide_index or not (samples == 1 or step) else 2 * fewer
    return Work(6 if outputs * samples > MOST_SUMS else outputs, fewer, channels, fewer)


def choose_program(
    dtype: Any, samples: int, fuse: str, *, step: int = 0, wide_index: bool = False
) -> Program:
    """Program for one kind of call; `step` is the distance of samples, if the image has a margin for them."""
    of_a_thread = work(dtype, samples, step, wide_index=wide_index)
    chosen = constants(
        SAMPLES=samples if step or samples == 1 else 0,
        STEP=step,
        OUTPUTS=of_a_thread.outputs,
        CHANNELS=of_a_thread.channels,
        FUSE=FUSE[fuse],
    )
    return program(FILE, type_constants(dtype, wide_index=wide_index) + chosen)


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    kinds = [("S1 sum", 1, "sum", 0), *((f"Sany {fuse}", 0, fuse, 0) for fuse in FUSE)]
    kinds += [(f"S{samples} step {step} sum", samples, "sum", step) for samples, step in KNOWN]
    return [
        (f"{dtype} {label}", choose_program(dtype, samples, fuse, step=step, wide_index=wide_index))
        for label, samples, fuse, step in kinds
    ]


@dataclass(frozen=True)
class Call:
    """One call of `dynamic_sampling_conv2d`: its arrays, contiguous, and what its kernels are given."""

    arrays: tuple[Any, ...]
    params: dict[str, Any]
    lead: tuple[int, int] = (0, 0)  # the pixel of x on which the samples of the first output are centred
    plain: tuple[Any, ...] = ()  # x without a margin, and the samples of which x has box sums
    step: int = 0  # of samples, in programs that know it
    seen: Any = None  # X1, or in these programs what taps see, once it is known

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
    def samples(self) -> int:
        """Sampled regions along an axis."""
        return int(self.params["samples"])

    @property
    def taps(self) -> int:
        """Values in one spatial kernel."""
        return prod(self.arrays[2].shape[2:4])

    def image_itself(self) -> tuple[Any, np.int32]:
        """The image and the samples of its regions, for results not finite: no box sums, no margin."""
        x, samples = self.plain or (self.arrays[0], self.samples)
        return x, np.int32(samples)

    def numbers(self) -> tuple[Any, ...]:
        """What every kernel takes last."""
        params, acc = self.params, accumulator_dtype(self.arrays[0].dtype).type
        sizes = (self.channels, self.outputs, *self.image, *self.plane, *self.arrays[2].shape[2:4])
        steps = (*params["sample_stride"], *params["dilation"], *params["stride"])
        residual = params["kernel_residual"] / self.channels if self.channels else 0
        integers = int32s(*sizes, self.samples, *steps, *self.lead)
        return *integers, acc(residual), acc(params["attention_residual"])

    def launch(
        self,
        entry: str,
        arguments: tuple,
        area: tuple[int, int],
        *others: int,
        warps: int = 1,
        few: bool = False,
    ) -> None:
        """Run a kernel with a thread for each pixel of `area`, in blocks of so many warps, and by `others`.

        Where there are `few` threads, blocks are half as large. Whole numbers among the arguments are of the
        index type.
        """
        wide = needs_wide_index(*filter(_is_array, arguments), work_items=self.batch * prod(area))
        index = np.int64 if wide else np.int32
        fuse = self.params["fuse"]
        chosen = choose_program(self.arrays[0].dtype, self.samples, fuse, step=self.step, wide_index=wide)
        block = (WARP, warps) if warps > 1 else (BLOCK // 2 if few else BLOCK,)
        grid = (blocks(self.batch * prod(area), block[0]), *(min(count, _MOST_BLOCKS) for count in others))
        given: list[Any] = []
        for value in arguments:
            if isinstance(value, Divisor):
                given += _divisors(index, value)
            else:
                given.append(index(value) if isinstance(value, int) else value)
        numbers = (*_layout(self.batch, *area, index), *self.numbers())
        launch(chosen, f"dynamic_sampling_{entry}", grid, block, (*given, *numbers))

    @property
    def of_a_thread(self) -> Work:
        """What one thread makes."""
        return work(self.arrays[0].dtype, self.samples, self.step)

    @property
    def warps(self) -> int:
        """Warps that share the samples of a pixel."""
        return min(self.samples, WARPS) if self.step else WARPS


def _is_array(argument: Any) -> bool:
    return hasattr(argument, "shape") and not isinstance(argument, np.generic)


def _divisors(index: type, *divisors: int) -> tuple[Any, ...]:
    """Numbers that threads divide by, then a factor for each, then a shift: exact below 2**31.

    For that the factor, which is rounded up, has 31 bits more than the quotient needs.
    """
    shifts = tuple(31 + (divisor - 1).bit_length() for divisor in divisors)
    factors = ((1 << s) // d + 1 for s, d in zip(shifts, divisors, strict=True))
    return *map(index, divisors), *(np.uint32(factor & 0xFFFFFFFF) for factor in factors), *int32s(*shifts)


def _layout(images: int, height: int, width: int, index: type) -> tuple[Any, ...]:
    """The pixels of some images, as kernels are told which they have threads for."""
    return index(images * height * width), *_divisors(index, height * width, width)


def _channel_sum(x: Any, lead: tuple[int, int] = (0, 0)) -> tuple[Any, Any]:
    """X1 (N, H, W); with a margin x has one too, else it is x itself."""
    n, c, *image = x.shape
    height, width = (image[k] + 2 * lead[k] for k in range(2))
    placed = empty((n, c, height, width), x) if any(lead) else None
    total = empty((n, height, width), x, accumulator_dtype(x.dtype))
    wide = needs_wide_index(x, placed, work_items=total.size)
    numbers = (*_layout(n, height, width, np.int64 if wide else np.int32), *int32s(c, *image, *lead))
    chosen = choose_program(x.dtype, 1, "sum", wide_index=wide)
    grid, block = (blocks(total.size, WARP),), (WARP, WARPS)
    launch(chosen, "dynamic_sampling_channel_sum", grid, block, (x, placed, total, *numbers))
    return x if placed is None else placed, total


def _prepared(arrays: tuple[Any, ...], params: dict[str, Any]) -> Call:
    """How a call is computed: with one sample of box sums, with a margin around the image, or as it is."""
    if params["samples"] == 1:
        params = {**params, "fuse": "sum"}
    call = _boxed(arrays, params) or _with_margin(arrays, params)
    return call or Call(arrays, params, seen=_channel_sum(arrays[0])[1])


def _wider(x: Any, lead: tuple[int, int], planes: int) -> tuple[int, int] | None:
    """Sizes of the image with a margin, where so many planes of it are worth their memory."""
    height, width = (x.shape[2 + k] + 2 * lead[k] for k in range(2))
    image = prod(x.shape[2:])
    few = height * width <= _MOST_MARGIN * image or height * width * x.shape[0] * planes <= _ANY_MARGIN
    return (height, width) if few else None


def _reach(spatial_kernel: Any, params: dict[str, Any]) -> tuple[int, int]:
    """How far taps reach from the centre."""
    return tuple(spatial_kernel.shape[2 + k] // 2 * params["dilation"][k] for k in range(2))


def _with_margin(arrays: tuple[Any, ...], params: dict[str, Any]) -> Call | None:
    """The call on an image with a margin, where there is a program for it; else None."""
    x, _, spatial_kernel, _, position_attention = arrays
    samples, steps = params["samples"], params["sample_stride"]
    if params["fuse"] != "sum" or (samples, steps[1]) not in KNOWN or not x.size:
        return None
    reach = _reach(spatial_kernel, params)
    lead = tuple(samples // 2 * steps[k] + reach[k] for k in range(2))
    n, o, *kernel = spatial_kernel.shape[:4]
    planes = prod(kernel) + 1
    sizes = _wider(x, lead, max(x.shape[1], o * planes))
    if sizes is None:
        return None
    placed, seen = _channel_sum(x, lead)
    call = Call((placed, *arrays[1:]), params, lead, (x, samples), steps[1], seen)
    if position_attention is None:
        return call
    total, seen = seen, empty((n, o, planes, *sizes), seen)
    call.launch("see", (position_attention, total, seen), sizes, o)
    return replace(call, seen=seen)


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
    lead = _reach(spatial_kernel, params)
    sizes = tuple(x.shape[2 + k] + 2 * lead[k] for k in range(2))
    if prod(sizes) > _MOST_MARGIN * prod(x.shape[2:]):
        return None
    sums = _box_sums(x, sizes, lead, params)
    plain = (x, params["samples"])
    return Call((sums, *arrays[1:]), {**params, "samples": 1}, lead, plain, seen=_channel_sum(sums)[1])


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
    sizes = (shape[2], shape[3]) if axis == 0 else (shape[3], 1)
    layout = _layout(sums.size // prod(sizes), *sizes, np.int64 if wide else np.int32)
    numbers = int32s(image.shape[2 + axis], *steps)
    chosen = choose_program(image.dtype, 1, "sum", wide_index=wide)
    grid = (blocks(sums.size, BLOCK),)
    launch(chosen, "dynamic_sampling_axis_sum", grid, (BLOCK,), (image, sums, *layout, *numbers))
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
    n, o, _, *plane = arrays[1].shape
    stack = (params["samples"],) * 2 if params["fuse"] == "stack" else ()
    y, largest = empty((n, *stack, o, *plane), x), None
    if params["fuse"] == "max" and params["samples"] > 1:
        largest = empty((n, o, *plane), x, np.int32)
    if y.size:
        call = _prepared(arrays, params)
        groups = blocks(o, call.of_a_thread.outputs)
        given = (*call.image_itself(), *call.arrays, call.seen, y, largest)
        call.launch("forward", given, call.plane, groups, warps=call.warps)
    return y, arrays if largest is None else (*arrays, largest)


def sampling_backward(grad_output: Any, kept: tuple, needs: tuple[bool, ...], **params: Any) -> tuple:
    """Gradients of the five arrays; None where `needs` is False or the array was not given."""
    arrays = contiguous(*kept[:5])
    wanted = [needed and array is not None for needed, array in zip(needs, arrays, strict=True)]
    if not grad_output.size or not arrays[0].size:
        return tuple(
            zeros(array.shape, array) if want else None for array, want in zip(arrays, wanted, strict=True)
        )
    call, largest = _prepared(arrays, params), None
    if params["fuse"] == "max" and params["samples"] > 1:
        largest = kept[5] if len(kept) > 5 else sampling_forward(*arrays, **params)[1][5]
    before = (*contiguous(grad_output), largest)
    grads = [empty(array.shape, array) if want else None for array, want in zip(arrays, wanted, strict=True)]
    if wanted[0] or wanted[4]:
        boxed = call.plain and not call.step
        grads[0] = _gather(call, before, grads[0], grads[4], boxed)
        if wanted[0] and boxed:
            grads[0] = _box_sums_adjoint(grads[0], arrays[0].shape[2:], call.lead, params)
    _sum_samples(call, before, grads)
    return tuple(grads)


def _sum_samples(call: Call, before: tuple, grads: list[Any]) -> None:
    """Fill in the gradients that are sums over, or of, the samples of an output: of both kernels and `As`."""
    given, plane, outputs = (*before, *call.image_itself(), *call.arrays, call.seen), call.plane, call.outputs
    fewer, strips = call.of_a_thread.fewer, blocks(call.channels, call.of_a_thread.channels)
    if grads[1] is not None:
        warps = min(WARPS, strips)
        others = blocks(outputs, fewer), blocks(strips, warps)
        call.launch("grad_channel_kernel", (*given, grads[1]), plane, *others, warps=warps)
    if grads[2] is not None:
        call.launch("grad_spatial_kernel", (*given, grads[2]), plane, outputs, blocks(call.taps, TAPS))
    if grads[3] is not None:
        warps = 1 if call.samples == 1 else call.warps
        groups = blocks(outputs, fewer)
        call.launch("grad_sample_attention", (*given, grads[3]), plane, groups, warps=warps)


def _gather(call: Call, before: tuple, grad_x: Any, grad_attention: Any, boxed: Any) -> Any:
    """Fill in the gradient of position_attention, and return that of x or its box sums; each may be None."""
    if call.step:  # at the pixels of the image itself
        x = call.plain[0]
        seen = None if grad_attention is None else _channel_sum(x)[1]
        call = replace(call, arrays=(x, *call.arrays[1:]), lead=(0, 0), plain=(), seen=seen)
    x, image, batch = call.arrays[0], call.image, call.batch
    if boxed:
        grad_x = empty(x.shape, x)
    acc, given = accumulator_dtype(x.dtype), (*before, *call.arrays, call.seen)
    strips = blocks(call.channels, call.of_a_thread.channels)
    area, phases = _columns(call, image)
    share = _share(call, prod(area) * strips)
    slots = blocks(call.outputs, share)
    of_x = None if grad_x is None else empty((slots, *x.shape), x, acc)
    of_centre = None if grad_attention is None else empty((strips, batch, call.outputs, *image), x, acc)
    warps = min(WARPS, strips)
    after = (of_x, of_centre, batch, np.int32(share), Divisor(phases))
    call.launch("gather_channels", (*given, *after), area, blocks(strips, warps), slots, warps=warps)

    whole, reach = image, (0, 0)
    if grad_x is not None:
        reach = _reach(call.arrays[2], call.params)
        wider = _wider(x, reach, 1)
        whole, reach = (image, (-1, -1)) if wider is None else (wider, reach)
    area, phases = _columns(call, whole)
    groups = call.taps if reach[0] < 0 else blocks(call.taps, TAPS)
    share = _share(call, prod(area) * groups)
    tap_slots = blocks(call.outputs, share)
    of_total = None if grad_x is None else empty((tap_slots, batch, call.taps, *image), x, acc)
    after = (of_total, grad_attention, batch, np.int32(share), Divisor(phases), *int32s(whole[0], *reach))
    given = (*before, of_centre, np.int32(strips), *call.arrays, call.seen)
    call.launch("gather_taps", (*given, *after), area, groups, tap_slots, few=True)
    if grad_x is not None:
        slotted = (of_x, np.int32(slots), of_total, np.int32(tap_slots))
        given = (*before, *call.arrays, call.seen, *slotted, grad_x, batch)
        call.launch("grad_x", given, image, strips, few=True)
    return grad_x


def _columns(call: Call, image: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Rows and columns of threads that have pixels a sample's step below each other, and that step."""
    step = call.params["sample_stride"][0]
    phases = min(step, image[0])
    return (blocks(image[0], call.of_a_thread.rows * step) * phases, image[1]), phases


def _share(call: Call, threads: int) -> int:
    """Output channels of a slot, for as many threads as are wanted, with so many an image and slot."""
    slots = max(1, min(_MOST_SLOTS, call.outputs, _THREADS_WANTED // max(1, call.batch * threads)))
    return blocks(call.outputs, slots)


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
