"""The kernels of `local_filter2d` on the CPU, and the records in which they get their plan."""

from typing import Any, NamedTuple

import numpy as np

from .compile import cached_jit, jit
from .planes import accumulate, clear, correlate, dot, pack_rows, unpack_phases, unpack_rows
from .strips import CHANNELS, Filters, Scale, Source, Target, apply, lanes


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
    planes: np.ndarray  # the phases of the stride that are read, in order: a plane of the image for each
    of_plane: np.ndarray  # the terms that read plane s are of_plane[s] to of_plane[s + 1]


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
    filters: np.ndarray  # one slot per chunk of channels
    slots: np.ndarray  # gradients of the scales, one slot per band


class Scratch(NamedTuple):
    """Packed planes of one block of rows."""

    filters: np.ndarray
    grad_filters: np.ndarray
    images: np.ndarray  # of CHANNELS channels
    outputs: np.ndarray  # gradients of as many
    scale: np.ndarray
    acc: np.ndarray
    totals: np.ndarray


@jit
def _pack_image(
    target: np.ndarray, at: int, image: np.ndarray, first: int, rows: int, terms: Terms, layout: Layout
) -> None:
    """All planes of one image."""
    for s in range(len(terms.planes)):
        plane, origin = at + s * layout.image_plane, _origin(terms.planes[s], layout)
        pack_rows(target, plane, image, first, rows, layout.width, origin, layout.stride)


@jit
def _origin(source: int, layout: Layout) -> tuple:
    """The pixel at row 0, column 0 of a phase of the stride."""
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


@jit
def decode(item: int, groups: int, per_group: int, chunks: int, layout: Layout) -> tuple:
    """Sample, group, band of rows and chunk of channels of a work item, and the range of its channels."""
    rest, chunk = item // chunks, item % chunks
    n, group, band = rest // (layout.bands * groups), rest // layout.bands % groups, rest % layout.bands
    begin = group * per_group + chunk * layout.channels
    return (n, group, band, chunk), begin, min(begin + layout.channels, (group + 1) * per_group)


def forward_memory(terms: Terms, layout: Layout) -> int:
    """Elements that a thread needs for `forward_items`."""
    acc = layout.upsample * layout.plane
    return len(terms.tap) * layout.plane + CHANNELS * (layout.image_size + acc)


def backward_memory(terms: Terms, layout: Layout) -> int:
    """Elements that a thread needs for `backward_items`."""
    of_channel = layout.image_size + layout.output_size + layout.plane
    return 2 * len(terms.tap) * layout.plane + CHANNELS * of_channel


@cached_jit
def forward_items(
    start: int,
    stop: int,
    memory: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: Any,
    y: np.ndarray,
    terms: Terms,
    layout: Layout,
    chunks: int,
    add: bool | None,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, taps, u = filters.shape[1], filters.shape[2], layout.upsample
    per_group, blocks = x.shape[1] // groups, -(-layout.rows // layout.block)
    size, of_images = len(terms.tap) * layout.plane, CHANNELS * layout.image_size
    packed, images, acc = memory[:size], memory[size : size + of_images], memory[size + of_images :]
    totals = np.zeros(lanes(x), x.dtype)
    # What lies between rows comes to nothing, but should not be slow to multiply.
    clear(packed, 0, packed.size)
    for item in range(start, stop):
        (n, group, band, _), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            run = (0, max(rows * layout.width, lanes(x)))
            clear(images, 0, images.size)
            _pack_filters(packed, filters[n, group], terms, first, rows, layout)
            for c in range(begin, end, CHANNELS):
                several = min(CHANNELS, end - c)
                for k in range(several):
                    at = k * layout.image_size
                    _pack_image(images, at, x[n, c + k], first, rows + layout.halo, terms, layout)
                for row in range(u):
                    for column in range(u):
                        phase = slice((row * u + column) * taps, (row * u + column + 1) * taps)
                        apply(
                            Target(acc, column * layout.plane, u * layout.plane),
                            *(several, run),
                            Filters(packed, terms.filter_at[phase]),
                            Source(images, terms.image_at[phase], layout.image_size),
                            Scale(
                                scales, (n * x.shape[1] + c) * len(terms.tap) + phase.start, len(terms.tap)
                            ),
                            *(totals, add),
                        )
                    for k in range(several):
                        part = acc[k * u * layout.plane : (k + 1) * u * layout.plane]
                        unpack_phases(part, layout.plane, y[n, c + k], first, rows, layout.width, row, u)


@jit
def _outputs_of(term: int, extent: tuple, first: int, rows: int, terms: Terms, layout: Layout) -> tuple:
    """Where in the block a term has outputs: a range of starts of rows, and their length."""
    top = max(0, terms.shift_y[term] - first)
    bottom = min(rows, terms.shift_y[term] - first + extent[0])
    column = terms.shift_x[term]
    return top * layout.width + column, bottom * layout.width + column, extent[1]


@jit
def _pack_channels(
    scratch: Scratch,
    inputs: Inputs,
    n: int,
    channels: tuple,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
    images: bool,
) -> None:
    """Scales, output gradients and images of the channels from channels[0] to channels[1]."""
    u, size = layout.upsample, len(terms.tap)
    above, height = first - layout.halo, rows + layout.halo
    for k in range(channels[1] - channels[0]):
        c = channels[0] + k
        for term in range(size):
            scratch.scale[k, term] = inputs.scales[
                n % inputs.scales.shape[0], c % inputs.scales.shape[1], term
            ]
        grad_output = inputs.grad_output[n, c]
        for phase in range(u * u):
            at = k * layout.output_size + phase * layout.output_plane + layout.lead
            origin = (phase // u, phase % u)
            pack_rows(scratch.outputs, at, grad_output, above, height, layout.width, origin, (u, u))
        if images:
            at = k * layout.image_size
            _pack_image(scratch.images, at, inputs.x[n, c], first, rows, terms, layout)
    # Channels that a last set lacks are zero.
    missing = CHANNELS - (channels[1] - channels[0])
    clear(scratch.outputs, (CHANNELS - missing) * layout.output_size, missing * layout.output_size)
    clear(scratch.images, (CHANNELS - missing) * layout.image_size, missing * layout.image_size)


@jit
def _grad_x(
    grad_x: np.ndarray,
    scratch: Scratch,
    finite: np.ndarray,
    extent: tuple,
    n: int,
    channels: tuple,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Rows of the channels' gradients of x: what each output that reads a pixel sends back to it."""
    acc, filters, several = scratch.acc, scratch.filters, channels[1] - channels[0]
    # A scale that is not finite must not meet the zeros between rows: then term by term, row by row.
    together = True
    for c in range(channels[0], channels[1]):
        together = together and finite[n % finite.shape[0], c % finite.shape[1]]
    s = 0  # the next plane: what no term reads gets zeros
    for source in range(layout.stride[0] * layout.stride[1]):
        read = s < len(terms.planes) and terms.planes[s] == source
        these = slice(terms.of_plane[s], terms.of_plane[s + 1] if read else terms.of_plane[s])
        s += read
        if together and these.start < these.stop:
            apply(
                Target(acc, 0, layout.plane),
                *(several, (0, max(rows * layout.width, lanes(acc)))),
                Filters(filters, terms.filter_at[these]),
                Source(scratch.outputs, terms.output_at[these], layout.output_size),
                Scale(scratch.scale.reshape(-1), these.start, len(terms.tap)),
                *(scratch.totals, add),
            )
        else:
            clear(acc, 0, acc.size)
            for term in range(these.start, these.stop):
                _term_by_row(scratch, extent, several, first, rows, term, terms, layout, add)
        for k in range(several):
            origin = _origin(source, layout)
            image = grad_x[n, channels[0] + k]
            unpack_rows(acc, k * layout.plane, image, first, rows, layout.width, origin, layout.stride)


@jit
def _term_by_row(
    scratch: Scratch,
    extent: tuple,
    channels: int,
    first: int,
    rows: int,
    term: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Add one term to the gradients of x, only where it has outputs."""
    at, to, wide = _outputs_of(term, extent, first, rows, terms, layout)
    filter_at, output_at = terms.filter_at[term : term + 1], terms.output_at[term : term + 1]
    for k in range(channels):
        scale, outputs = scratch.scale[k, term : term + 1], scratch.outputs[k * layout.output_size :]
        for skip in range(at, to, layout.width):
            run = (skip, skip + wide)
            accumulate(
                scratch.acc, k * layout.plane, run, scratch.filters, filter_at, outputs, output_at, scale, add
            )


@jit
def _grad_filters(
    slots: np.ndarray,
    scratch: Scratch,
    extent: tuple,
    channels: tuple,
    first: int,
    rows: int,
    terms: Terms,
    layout: Layout,
    add: bool | None,
) -> None:
    """Add what a block of the channels contributes to the packed gradients of the filters and to those of the
    channels' scales, (C, terms), unless `slots` is empty.
    """
    several = channels[1] - channels[0]
    factor, totals = np.empty(CHANNELS, slots.dtype), np.empty(CHANNELS, slots.dtype)
    grads, filters, outputs, images = scratch.grad_filters, scratch.filters, scratch.outputs, scratch.images
    for term in range(len(terms.tap)):
        at, count = terms.filter_at[term], rows * layout.width
        output_at = (terms.output_at[term], layout.output_size)
        image_at = (terms.image_at[term], layout.image_size)
        for k in range(CHANNELS):
            factor[k] = scratch.scale[k, term] if add is None and k < several else 1
        correlate(grads, at, count, outputs, output_at, images, image_at, factor, filters, totals, add)
        for k in range(several if slots.size else 0):
            total = totals[k]
            if not np.isfinite(total):  # was it a pixel outside this term's window, times a packed zero?
                total = slots.dtype.type(0)
                start, stop, wide = _outputs_of(term, extent, first, rows, terms, layout)
                oa, ia = output_at[0] + k * output_at[1], image_at[0] + k * image_at[1]
                for skip in range(start, stop, layout.width):
                    total += dot((skip, skip + wide), outputs, oa, images, ia, filters, at, add)
            slots[channels[0] + k, term] += total


@jit
def _unpack_filters(
    grads: np.ndarray, grad_filters: np.ndarray, terms: Terms, first: int, rows: int, layout: Layout
) -> None:
    """The reverse of `_pack_filters`."""
    step = (layout.upsample, layout.upsample)
    for term in range(len(terms.tap)):
        origin, plane = (terms.filter_y[term], terms.filter_x[term]), grad_filters[terms.tap[term]]
        unpack_rows(grads, terms.filter_at[term], plane, first, rows, layout.width, origin, step)


@cached_jit
def backward_items(
    start: int,
    stop: int,
    memory: np.ndarray,
    inputs: Inputs,
    grads: Gradients,
    terms: Terms,
    layout: Layout,
    chunks: int,
    add: bool | None,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, size = inputs.filters.shape[1], len(terms.tap) * layout.plane
    per_group, blocks = inputs.x.shape[1] // groups, -(-layout.rows // layout.block)
    extent = (inputs.grad_output.shape[2] // layout.upsample, inputs.grad_output.shape[3] // layout.upsample)
    needs_x, needs_filters = grads.x.size > 0, grads.filters.size + grads.slots.size > 0
    of_grads = size if needs_filters else 0
    of_images, of_outputs = CHANNELS * layout.image_size, CHANNELS * layout.output_size
    ends = np.cumsum(np.array([size, of_grads, of_images, of_outputs, CHANNELS * layout.plane]))
    scratch = Scratch(
        memory[: ends[0]],
        memory[ends[0] : ends[1]],
        memory[ends[1] : ends[2]],
        memory[ends[2] : ends[3]],
        np.empty((CHANNELS, len(terms.tap)), inputs.x.dtype),
        memory[ends[3] : ends[4]],
        np.zeros(lanes(inputs.x), inputs.x.dtype),
    )
    for item in range(start, stop):
        (n, group, band, chunk), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            clear(scratch.filters, 0, scratch.filters.size)
            clear(scratch.grad_filters, 0, scratch.grad_filters.size)
            clear(scratch.images, 0, scratch.images.size)
            clear(scratch.outputs, 0, scratch.outputs.size)
            _pack_filters(scratch.filters, inputs.filters[n, group], terms, first, rows, layout)
            slots = grads.slots[band, n]
            for channel in range(begin, end, CHANNELS):
                several = (channel, min(channel + CHANNELS, end))
                _pack_channels(scratch, inputs, n, several, first, rows, terms, layout, needs_filters)
                if needs_x:
                    _grad_x(
                        grads.x, scratch, inputs.finite, extent, n, several, first, rows, terms, layout, add
                    )
                if needs_filters:
                    _grad_filters(slots, scratch, extent, several, first, rows, terms, layout, add)
            if grads.filters.size:
                _unpack_filters(
                    scratch.grad_filters, grads.filters[chunk, n, group], terms, first, rows, layout
                )
