"""The kernels of `local_filter2d` on the CPU, and the records in which they get their plan."""

from typing import NamedTuple

import numpy as np

from .compile import cached_jit, jit
from .planes import accumulate, accumulate_term, aligned, dot, pack_rows, unpack_rows

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
    stride: tuple[int, int]
    padding: tuple[int, int]
    rows: int  # rows of the packed coordinate system
    width: int  # its row length
    halo: int  # largest shift_y
    lead: int  # largest shift_x
    block: int  # rows of a block
    bands: int  # work items along the rows; a band is a whole number of blocks
    channels: int  # channels of a work item
    plane: int  # elements of a plane of filters
    image_plane: int  # elements of a plane of an image
    image_size: int  # elements of all planes of an image
    output_plane: int  # elements of a plane of an output gradient
    output_size: int  # elements of all planes of an output gradient


class Inputs(NamedTuple):
    """What the backward pass reads."""

    grad_output: np.ndarray
    x: np.ndarray
    filters: np.ndarray
    scales: np.ndarray
    finite: np.ndarray  # whether all scales of a channel are


class Gradients(NamedTuple):
    """What the backward pass writes; arrays that are not needed have no elements."""

    x: np.ndarray
    filters: np.ndarray
    slots: np.ndarray  # gradients of the scales, one slot per band


class Scratch(NamedTuple):
    """Packed planes of one block of rows."""

    filters: np.ndarray
    grad_filters: np.ndarray
    images: np.ndarray  # of CHANNELS channels
    outputs: np.ndarray  # gradients of as many
    scale: np.ndarray
    acc: np.ndarray


@jit
def _pack_image(
    target: np.ndarray, at: int, image: np.ndarray, first: int, rows: int, layout: Layout
) -> None:
    """All stride phases of one image."""
    for source in range(layout.stride[0] * layout.stride[1]):
        plane = at + source * layout.image_plane
        pack_rows(target, plane, image, first, rows, layout.width, _origin(source, layout), layout.stride)


@jit
def _origin(source: int, layout: Layout) -> tuple:
    """The pixel at row 0, column 0 of a plane of an image."""
    y, x = source // layout.stride[1], source % layout.stride[1]
    return (y - layout.padding[0], x - layout.padding[1])


@jit
def _pack_filters(
    target: np.ndarray, filters: np.ndarray, terms: Terms, first: int, rows: int, layout: Layout
) -> None:
    """One plane per term; `filters` are those of one sample and group, (taps, Ho, Wo)."""
    step = (layout.upsample, layout.upsample)
    for term in range(len(terms.tap)):
        origin, plane = (terms.filter_y[term], terms.filter_x[term]), filters[terms.tap[term]]
        pack_rows(target, terms.filter_at[term], plane, first, rows, layout.width, origin, step)


@cached_jit
def forward_items(
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
    packed, image = aligned(len(terms.tap) * layout.plane, x), aligned(layout.image_size, x)
    acc = aligned(layout.plane, x)
    image[:] = 0
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
                    these = slice(phase * taps, (phase + 1) * taps)
                    filter_at, image_at = terms.filter_at[these], terms.image_at[these]
                    acc[:] = 0
                    accumulate(
                        acc, 0, rows * layout.width, packed, filter_at, image, image_at, scale[these], add
                    )
                    unpack_rows(acc, 0, y[n, c], first, rows, layout.width, (phase // u, phase % u), (u, u))


@jit
def _outputs_of(term: int, inputs: Inputs, first: int, rows: int, terms: Terms, layout: Layout) -> tuple:
    """Rows and columns of the block at which a term has outputs; elsewhere it meets packed zeros."""
    high = inputs.grad_output.shape[2] // layout.upsample
    wide = inputs.grad_output.shape[3] // layout.upsample
    top = max(0, terms.shift_y[term] - first)
    bottom = min(rows, terms.shift_y[term] - first + high)
    return top, bottom, terms.shift_x[term], wide


@jit
def _grad_image(
    grads: Gradients,
    inputs: Inputs,
    scratch: Scratch,
    k: int,
    n: int,
    c: int,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Rows of one channel's gradient of x: what each output that reads a pixel sends back to it."""
    outputs, scale = scratch.outputs[k * layout.output_size :], scratch.scale[k]
    for source in range(layout.stride[0] * layout.stride[1]):
        scratch.acc[:] = 0
        these = slice(terms.of_plane[source], terms.of_plane[source + 1])
        if inputs.finite[n % inputs.finite.shape[0], c % inputs.finite.shape[1]]:
            filter_at, output_at = terms.filter_at[these], terms.output_at[these]
            count = rows * layout.width
            accumulate(
                scratch.acc, 0, count, scratch.filters, filter_at, outputs, output_at, scale[these], add
            )
        else:  # the scale must not meet the zeros between rows: infinity or NaN times zero is NaN
            for term in range(these.start, these.stop):
                top, bottom, column, wide = _outputs_of(term, inputs, first, rows, terms, layout)
                for i in range(top, bottom):
                    at = i * layout.width + column
                    filter_at, output_at = terms.filter_at[term] + at, terms.output_at[term] + at
                    accumulate_term(
                        scratch.acc,
                        at,
                        wide,
                        scratch.filters,
                        filter_at,
                        outputs,
                        output_at,
                        scale[term],
                        add,
                    )
        unpack_rows(
            scratch.acc, 0, grads.x[n, c], first, rows, layout.width, _origin(source, layout), layout.stride
        )


@jit
def _grad_scale(
    slot: np.ndarray,
    inputs: Inputs,
    scratch: Scratch,
    k: int,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Add to one channel's gradient of its weights what a block of rows contributes."""
    image, outputs = scratch.images[k * layout.image_size :], scratch.outputs[k * layout.output_size :]
    for term in range(len(slot)):
        filter_at, output_at, image_at = terms.filter_at[term], terms.output_at[term], terms.image_at[term]
        total = dot(rows * layout.width, outputs, output_at, image, image_at, scratch.filters, filter_at, add)
        if not np.isfinite(total):  # was it a pixel outside this term's window, times a packed zero?
            total = slot.dtype.type(0)
            top, bottom, column, wide = _outputs_of(term, inputs, first, rows, terms, layout)
            for i in range(top, bottom):
                at = i * layout.width + column
                total += dot(
                    wide, outputs, output_at + at, image, image_at + at, scratch.filters, filter_at + at, add
                )
        slot[term] += total


@jit
def _grad_filters(
    scratch: Scratch, several: int, rows: int, terms: Terms, layout: Layout, add: bool | None
) -> None:
    """Add to the packed gradients of the filters what several packed channels contribute."""
    output_at, image_at = np.empty(several, np.intp), np.empty(several, np.intp)
    factor = np.ones(several, scratch.acc.dtype)
    for term in range(len(terms.tap)):
        for k in range(several):
            output_at[k] = k * layout.output_size + terms.output_at[term]
            image_at[k] = k * layout.image_size + terms.image_at[term]
            if add is None:
                factor[k] = scratch.scale[k, term]
        count, at = rows * layout.width, terms.filter_at[term]
        accumulate(
            scratch.grad_filters,
            at,
            count,
            scratch.outputs,
            output_at,
            scratch.images,
            image_at,
            factor,
            None,
        )


@jit
def _unpack_filters(
    grads: np.ndarray, grad_filters: np.ndarray, terms: Terms, first: int, rows: int, layout: Layout
) -> None:
    """The reverse of `_pack_filters`."""
    step = (layout.upsample, layout.upsample)
    for term in range(len(terms.tap)):
        origin, plane = (terms.filter_y[term], terms.filter_x[term]), grad_filters[terms.tap[term]]
        unpack_rows(grads, terms.filter_at[term], plane, first, rows, layout.width, origin, step)


@jit
def _pack_channel(
    scratch: Scratch,
    k: int,
    inputs: Inputs,
    n: int,
    c: int,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
) -> None:
    """Scales, image and output gradient of a channel, as the k-th of those at hand."""
    u = layout.upsample
    for term in range(len(terms.tap)):
        scratch.scale[k, term] = inputs.scales[n % inputs.scales.shape[0], c % inputs.scales.shape[1], term]
    for phase in range(u * u):
        at = k * layout.output_size + phase * layout.output_plane + layout.lead
        above, height, origin = first - layout.halo, rows + layout.halo, (phase // u, phase % u)
        pack_rows(scratch.outputs, at, inputs.grad_output[n, c], above, height, layout.width, origin, (u, u))
    _pack_image(scratch.images, k * layout.image_size, inputs.x[n, c], first, rows, layout)


@cached_jit
def backward_items(
    start: int,
    stop: int,
    inputs: Inputs,
    grads: Gradients,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Items (n, group, band)."""
    groups, size = inputs.filters.shape[1], len(terms.tap) * layout.plane
    per_group, blocks = inputs.x.shape[1] // groups, -(-layout.rows // layout.block)
    scratch = Scratch(
        aligned(size, inputs.x),
        aligned(size if grads.filters.size else 0, inputs.x),
        aligned(CHANNELS * layout.image_size, inputs.x),
        aligned(CHANNELS * layout.output_size, inputs.x),
        np.empty((CHANNELS, len(terms.tap)), inputs.x.dtype),
        aligned(layout.plane, inputs.x),
    )
    scratch.outputs[:] = 0
    for item in range(start, stop):
        n, group = item // (groups * layout.bands), item // layout.bands % groups
        band, end = item % layout.bands, (group + 1) * per_group
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            _pack_filters(scratch.filters, inputs.filters[n, group], terms, first, rows, layout)
            scratch.grad_filters[:] = 0
            for channel in range(group * per_group, end, CHANNELS):
                several = min(CHANNELS, end - channel)
                for k in range(several):
                    c = channel + k
                    _pack_channel(scratch, k, inputs, n, c, first, rows, terms, layout)
                    if grads.x.size:
                        _grad_image(grads, inputs, scratch, k, n, c, first, rows, terms, layout, add)
                    if grads.slots.size:
                        _grad_scale(
                            grads.slots[band, n, c], inputs, scratch, k, first, rows, terms, layout, add
                        )
                if grads.filters.size:
                    _grad_filters(scratch, several, rows, terms, layout, add)
            if grads.filters.size:
                _unpack_filters(scratch.grad_filters, grads.filters[n, group], terms, first, rows, layout)
