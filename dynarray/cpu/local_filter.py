"""`local_filter2d` on the CPU.

Everything is brought into one form in which each tap is a single vectorised loop over long runs. The image
is packed, with its zero padding, into flat planes of a fixed row length, one plane per phase of the stride;
in them a tap is one offset. Filters and output gradients are packed with the same row length (one plane per
tap, and per phase when upsampling), so that rows need no special ends. With it forward and both dense
gradients are the same sum, ``acc[j] += sum over terms (scale o a[a_at + j]) * b[b_at + j]``:

===============  ===========================  ======================  ================================
result           terms                        a, scale                b
===============  ===========================  ======================  ================================
y                taps                         filters, channel's      image, offset by the tap
gradient of x    taps                         filters, channel's      grad_output, offset back
g. of weight     channels of the group        grad_output, channel's  image
===============  ===========================  ======================  ================================

The columns between rows hold garbage in results and are left behind on unpacking. Filters are packed once
per block of rows and serve all channels of the group; a block's planes stay in the L2 cache, an image and
its accumulator in L1.
"""

from typing import Any, NamedTuple

import numpy as np

from . import parallel
from .compile import cached_jit, flag, jit
from .planes import accumulate, accumulate_term, aligned, dot, pack_rows, unpack_rows

BLOCK_BYTES = 512 * 1024  # packed filters (and their gradients) of one block of rows: half of a common L2 cache
RUN = 1024  # elements of a run that make a loop's start-up cheap
ITEMS = 16  # work items wanted, whatever the number of threads
CHANNELS = 4  # channels whose contributions to the gradient of weight are summed in one loop


class Terms(NamedTuple):
    """The (phase, tap) pairs: by sub-pixel phase of the output, then by the plane of the image they read."""

    tap: np.ndarray  # index a*kw + b
    phase: np.ndarray  # i*u + j
    shift_y: np.ndarray  # from output to input position, in rows and columns of the packed planes
    shift_x: np.ndarray
    filter_y: np.ndarray  # the output pixel whose filter lies at row 0, column 0 of the term's plane
    filter_x: np.ndarray
    filter_at: np.ndarray  # offset of the term's plane of filters
    image_at: np.ndarray  # offset of what it reads of the packed image
    output_at: np.ndarray  # offset of what it reads of the packed output gradient
    of_plane: np.ndarray  # the terms that read image plane s are of_plane[s] to of_plane[s + 1]


class Layout(NamedTuple):
    """Sizes of the packed planes, and how work is divided."""

    upsample: int
    stride_y: int
    stride_x: int
    pad_y: int
    pad_x: int
    rows: int  # rows of the packed coordinate system
    width: int  # its row length
    halo: int  # largest shift_y
    lead: int  # largest shift_x
    block: int  # rows of a block
    bands: int  # work items along the rows; a band is a whole number of blocks
    channels: int  # channels of a work item
    plane: int  # elements of a plane of filters
    image_plane: int  # elements of a plane of an image
    output_plane: int  # elements of a plane of an output gradient


def _plan(
    x: np.ndarray, weight: np.ndarray, params: dict[str, Any], *, backward: bool
) -> tuple[Terms, Layout]:
    """Forward works in output coordinates, backward in input coordinates, to which it shifts the filters."""
    u, stride, dilation, padding = (params[name] for name in ("upsample", "stride", "dilation", "padding"))
    kh, kw, high, wide = weight.shape[2:]
    tap = np.arange(kh * kw)
    offset_y, offset_x = tap // kw * dilation[0], tap % kw * dilation[1]
    source = offset_y % stride[0] * stride[1] + offset_x % stride[1]
    order = np.argsort(source, kind="stable")
    columns = (tap, source, offset_y // stride[0], offset_x // stride[1])
    tap, source, shift_y, shift_x = (np.tile(column[order], u * u) for column in columns)
    phase = np.repeat(np.arange(u * u), kh * kw)

    halo, lead = int(shift_y.max()), int(shift_x.max())
    rows, width = high // u, wide // u + lead
    if backward:  # every position that a tap reads, and every pixel of x
        rows = max(rows + halo, (x.shape[2] - 1 + padding[0]) // stride[0] + 1)
        width = max(width, (x.shape[3] - 1 + padding[1]) // stride[1] + 1)
    groups, per_group = x.shape[0] * weight.shape[1], x.shape[1] // weight.shape[1]
    wanted = -(-ITEMS // groups)
    longest = BLOCK_BYTES // (len(tap) * width * x.itemsize * (2 if backward else 1))
    block = min(rows, max(1, longest), max(-(-rows // wanted), -(-RUN // width)))
    bands = min(-(-rows // block), wanted)
    channels = per_group if backward else max(min(per_group, 16), -(-per_group * bands // wanted))
    plane = (block * width + 15) // 16 * 16
    image_plane = plane if backward else (block + halo) * width
    output_plane = lead + (block + halo) * width

    sources = stride[0] * stride[1]
    terms = Terms(
        tap,
        phase,
        shift_y,
        shift_x,
        filter_y=phase // u - (shift_y * u if backward else 0),
        filter_x=phase % u - (shift_x * u if backward else 0),
        filter_at=np.arange(len(tap)) * plane,
        image_at=source * image_plane + (0 if backward else shift_y * width + shift_x),
        output_at=phase * output_plane + lead + (halo - shift_y) * width - shift_x,
        of_plane=np.searchsorted(source, np.arange(sources + 1)) if u == 1 else np.array([0, len(tap)]),
    )
    return terms, Layout(
        u,
        stride[0],
        stride[1],
        padding[0],
        padding[1],
        rows,
        width,
        halo,
        lead,
        block,
        bands,
        channels,
        plane,
        image_plane,
        output_plane,
    )


def _by_tap(weight: np.ndarray) -> np.ndarray:
    """(N, G, taps, Ho, Wo), contiguous."""
    n, groups, kh, kw = weight.shape[:4]
    return np.ascontiguousarray(weight).reshape(n, groups, kh * kw, *weight.shape[4:])


def _by_term(channel_weight: np.ndarray | None, terms: Terms, dtype: np.dtype) -> np.ndarray:
    """(N, C, terms): the factor or summand of each term; (1, 1, terms) of ones where there are none."""
    if channel_weight is None:
        return np.ones((1, 1, len(terms.tap)), dtype)
    n, u, _, channels, kh, kw = channel_weight.shape
    by_tap = channel_weight.reshape(n, u * u, channels, kh * kw)
    return np.ascontiguousarray(by_tap[:, terms.phase, :, terms.tap].transpose(1, 2, 0))


def forward(x: Any, weight: Any, channel_weight: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `local_filter2d`; keeps the inputs for the backward pass."""
    y = np.empty((*x.shape[:2], *weight.shape[4:]), x.dtype)
    if y.size:
        terms, layout = _plan(x, weight, params, backward=False)
        scales = _by_term(channel_weight, terms, x.dtype)
        chunks = -(-(x.shape[1] // weight.shape[1]) // layout.channels)
        items = x.shape[0] * weight.shape[1] * layout.bands * chunks
        operations = y.size * weight.shape[2] * weight.shape[3]
        arrays = (np.ascontiguousarray(x), _by_tap(weight), scales, y)
        add = flag(params["combine"] == "add" and channel_weight is not None)
        parallel.run(_forward_items, items, operations, *arrays, terms, layout, chunks, add)
    return y, (x, weight, channel_weight)


def backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool], **params: Any
) -> tuple[Any, Any, Any]:
    """Gradients of `local_filter2d` with respect to x, weight and channel_weight."""
    x, weight, channel_weight = kept
    if not grad_output.size or not x.size:
        zeros = (
            np.zeros(array.shape, x.dtype) if needed else None
            for array, needed in zip(kept, needs, strict=True)
        )
        return tuple(zeros)  # type: ignore[return-value]
    terms, layout = _plan(x, weight, params, backward=True)
    filters, scales = _by_tap(weight), _by_term(channel_weight, terms, x.dtype)
    grad_x = np.empty(x.shape if needs[0] else (0,) * 4, x.dtype)
    grad_filters = np.empty(filters.shape if needs[1] else (0,) * 5, x.dtype)
    # One slot per band, summed in order: the same bits however the bands were dealt out.
    slots = np.zeros((layout.bands, *(scales.shape if needs[2] else (0,) * 3)), x.dtype)
    arrays = (np.ascontiguousarray(grad_output), np.ascontiguousarray(x), filters, scales)
    items = x.shape[0] * weight.shape[1] * layout.bands
    operations = 3.0 * grad_output.size * weight.shape[2] * weight.shape[3]
    finite = np.isfinite(scales).all(axis=-1)
    add = flag(params["combine"] == "add" and channel_weight is not None)
    parallel.run(
        _backward_items, items, operations, *arrays, finite, grad_x, grad_filters, slots, terms, layout, add
    )
    grad_channel = None
    if needs[2]:
        n, u, _, channels, kh, kw = channel_weight.shape
        by_tap = np.empty((n, u * u, channels, kh * kw), x.dtype)
        by_tap[:, terms.phase, :, terms.tap] = slots.sum(axis=0).transpose(2, 0, 1)
        grad_channel = by_tap.reshape(channel_weight.shape)
    return (
        grad_x if needs[0] else None,
        grad_filters.reshape(weight.shape) if needs[1] else None,
        grad_channel,
    )


@jit
def _pack_image(
    target: np.ndarray, at: int, image: np.ndarray, first: int, rows: int, layout: Layout
) -> None:
    """All stride phases of one image."""
    step = (layout.stride_y, layout.stride_x)
    for source in range(layout.stride_y * layout.stride_x):
        origin = (source // layout.stride_x - layout.pad_y, source % layout.stride_x - layout.pad_x)
        pack_rows(target, at + source * layout.image_plane, image, first, rows, layout.width, origin, step)


@jit
def _pack_filters(
    target: np.ndarray, filters: np.ndarray, terms: Terms, first: int, rows: int, layout: Layout
) -> None:
    """One plane per term; `filters` are those of one sample and group, (taps, Ho, Wo)."""
    step = (layout.upsample, layout.upsample)
    for term in range(len(terms.tap)):
        origin = (terms.filter_y[term], terms.filter_x[term])
        pack_rows(
            target, terms.filter_at[term], filters[terms.tap[term]], first, rows, layout.width, origin, step
        )


@cached_jit
def _forward_items(
    start: int,
    stop: int,
    x: np.ndarray,
    filters: np.ndarray,
    scales: np.ndarray,
    y: np.ndarray,
    terms: Terms,
    layout: Layout,
    chunks: int,
    add: bool | None,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, taps, u = filters.shape[1], filters.shape[2], layout.upsample
    per_group, blocks = x.shape[1] // groups, -(-layout.rows // layout.block)
    packed = aligned(len(terms.tap) * layout.plane, x)
    image = aligned(layout.stride_y * layout.stride_x * layout.image_plane + layout.lead, x)
    image[:] = 0
    acc = aligned(layout.plane, x)
    for item in range(start, stop):
        chunk, band = item % chunks, item // chunks % layout.bands
        n, group = item // (chunks * layout.bands * groups), item // (chunks * layout.bands) % groups
        channel = group * per_group + chunk * layout.channels
        end = min(channel + layout.channels, (group + 1) * per_group)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            _pack_filters(packed, filters[n, group], terms, first, rows, layout)
            for c in range(channel, end):
                scale = scales[n % scales.shape[0], c % scales.shape[1]]
                _pack_image(image, 0, x[n, c], first, rows + layout.halo, layout)
                for phase in range(u * u):
                    at, to = phase * taps, (phase + 1) * taps
                    acc[:] = 0
                    accumulate(
                        acc,
                        0,
                        rows * layout.width,
                        packed,
                        terms.filter_at[at:to],
                        image,
                        terms.image_at[at:to],
                        scale[at:to],
                        add,
                    )
                    unpack_rows(acc, 0, y[n, c], first, rows, layout.width, (phase // u, phase % u), (u, u))


@jit
def _outputs_of(
    term: int, grad_output: np.ndarray, first: int, rows: int, terms: Terms, layout: Layout
) -> tuple:
    """Rows and columns of the packed block at which a term has outputs; elsewhere it meets packed zeros."""
    high, wide = grad_output.shape[2] // layout.upsample, grad_output.shape[3] // layout.upsample
    top = max(0, terms.shift_y[term] - first)
    bottom = min(rows, terms.shift_y[term] - first + high)
    return top, bottom, terms.shift_x[term], wide


@jit
def _grad_image(
    grad_x: np.ndarray,
    acc: np.ndarray,
    packed: np.ndarray,
    outputs: np.ndarray,
    scale: np.ndarray,
    finite: bool,
    block: tuple,
    grad_output: np.ndarray,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Rows of one channel's gradient of x: what each output that reads a pixel sends back to it."""
    first, rows = block
    step = (layout.stride_y, layout.stride_x)
    for source in range(len(terms.of_plane) - 1):
        at, to = terms.of_plane[source], terms.of_plane[source + 1]
        acc[:] = 0
        if finite:
            these = slice(at, to)
            accumulate(
                acc,
                0,
                rows * layout.width,
                packed,
                terms.filter_at[these],
                outputs,
                terms.output_at[these],
                scale[these],
                add,
            )
        else:  # the scale must not meet the zeros between rows: infinity or NaN times zero is NaN
            for term in range(at, to):
                top, bottom, column, wide = _outputs_of(term, grad_output, first, rows, terms, layout)
                filter_at, output_at = terms.filter_at[term], terms.output_at[term]
                for i in range(top, bottom):
                    skip = i * layout.width + column
                    accumulate_term(
                        acc, skip, wide, packed, filter_at + skip, outputs, output_at + skip, scale[term], add
                    )
        origin = (source // layout.stride_x - layout.pad_y, source % layout.stride_x - layout.pad_x)
        unpack_rows(acc, 0, grad_x, first, rows, layout.width, origin, step)


@jit
def _grad_scale(
    slot: np.ndarray,
    image: np.ndarray,
    outputs: np.ndarray,
    packed: np.ndarray,
    block: tuple,
    grad_output: np.ndarray,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Add to one channel's gradient of its weights what a block of rows contributes."""
    first, rows = block
    for term in range(len(slot)):
        filter_at, output_at, image_at = terms.filter_at[term], terms.output_at[term], terms.image_at[term]
        total = dot(rows * layout.width, outputs, output_at, image, image_at, packed, filter_at, add)
        if not np.isfinite(total):  # was it a pixel outside this term's window, times a packed zero?
            total = slot.dtype.type(0)
            top, bottom, column, wide = _outputs_of(term, grad_output, first, rows, terms, layout)
            for i in range(top, bottom):
                at = i * layout.width + column
                total += dot(wide, outputs, output_at + at, image, image_at + at, packed, filter_at + at, add)
        slot[term] += total


@jit
def _grad_filters(
    grads: np.ndarray,
    outputs: np.ndarray,
    output_size: int,
    images: np.ndarray,
    image_size: int,
    scale: np.ndarray,
    rows: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Add to the packed gradients of the filters what several packed channels contribute."""
    several = len(scale)
    output_at, image_at, factor = (
        np.empty(several, np.intp),
        np.empty(several, np.intp),
        np.ones(several, grads.dtype),
    )
    for term in range(len(terms.tap)):
        for k in range(several):
            output_at[k] = k * output_size + terms.output_at[term]
            image_at[k] = k * image_size + terms.image_at[term]
            if add is None:
                factor[k] = scale[k, term]
        count, at = rows * layout.width, terms.filter_at[term]
        accumulate(grads, at, count, outputs, output_at, images, image_at, factor, None)


@jit
def _unpack_filters(
    grads: np.ndarray, grad_filters: np.ndarray, terms: Terms, first: int, rows: int, layout: Layout
) -> None:
    """The reverse of `_pack_filters`."""
    step = (layout.upsample, layout.upsample)
    for term in range(len(terms.tap)):
        origin = (terms.filter_y[term], terms.filter_x[term])
        target = grad_filters[terms.tap[term]]
        unpack_rows(grads, terms.filter_at[term], target, first, rows, layout.width, origin, step)


@cached_jit
def _backward_items(
    start: int,
    stop: int,
    grad_output: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: np.ndarray,
    finite: np.ndarray,
    grad_x: np.ndarray,
    grad_filters: np.ndarray,
    slots: np.ndarray,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Items (n, group, band)."""
    groups, count, u = filters.shape[1], len(terms.tap), layout.upsample
    per_group, blocks = x.shape[1] // groups, -(-layout.rows // layout.block)
    image_size = layout.stride_y * layout.stride_x * layout.image_plane
    output_size = (u * u * layout.output_plane + 15) // 16 * 16
    packed = aligned(count * layout.plane, x)
    grads = aligned(count * layout.plane if grad_filters.size else 0, x)
    images, outputs = aligned(CHANNELS * image_size, x), aligned(CHANNELS * output_size, x)
    outputs[:] = 0
    acc, scale = aligned(layout.plane, x), np.empty((CHANNELS, count), x.dtype)
    for item in range(start, stop):
        n, group, band = item // (groups * layout.bands), item // layout.bands % groups, item % layout.bands
        for index in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = index * layout.block
            block = (first, min(layout.block, layout.rows - first))
            _pack_filters(packed, filters[n, group], terms, block[0], block[1], layout)
            grads[:] = 0
            for channel in range(group * per_group, (group + 1) * per_group, CHANNELS):
                several = min(CHANNELS, (group + 1) * per_group - channel)
                for k in range(several):
                    c = channel + k
                    for term in range(count):
                        scale[k, term] = scales[n % scales.shape[0], c % scales.shape[1], term]
                    for phase in range(u * u):
                        at = k * output_size + phase * layout.output_plane + layout.lead
                        origin = (phase // u, phase % u)
                        above, height = block[0] - layout.halo, block[1] + layout.halo
                        pack_rows(outputs, at, grad_output[n, c], above, height, layout.width, origin, (u, u))
                    output = outputs[k * output_size :]
                    if grad_x.size:
                        calm = finite[n % scales.shape[0], c % scales.shape[1]]
                        _grad_image(
                            grad_x[n, c],
                            acc,
                            packed,
                            output,
                            scale[k],
                            calm,
                            block,
                            grad_output,
                            terms,
                            layout,
                            add,
                        )
                    if grad_filters.size or slots.size:
                        _pack_image(images, k * image_size, x[n, c], block[0], block[1], layout)
                    if slots.size:
                        image = images[k * image_size :]
                        _grad_scale(
                            slots[band, n, c], image, output, packed, block, grad_output, terms, layout, add
                        )
                if grad_filters.size:
                    these = scale[:several]
                    _grad_filters(
                        grads, outputs, output_size, images, image_size, these, block[1], terms, layout, add
                    )
            if grad_filters.size:
                _unpack_filters(grads, grad_filters[n, group], terms, block[0], block[1], layout)
