"""The kernels of `local_filter2d` on the CPU, and the records in which they get their plan."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import FALSE, cached_jit, jit
from ..engine.pixels import clear, pack_rows, unpack_phases, unpack_rows
from ..engine.strips import CHANNELS, STRIP_BYTES, Planes, Scale, Strips, Taps, apply, correlate, deal, lanes

_KEPT = FALSE  # in the caches, from where it is unpacked


class Terms(NamedTuple):
    """The (phase, tap) pairs: by sub-pixel phase of the output, then by the plane of the image they read."""

    tap: np.ndarray  # index a*kw + b
    phase: np.ndarray  # i*u + j
    shift_y: np.ndarray  # from output to input position, in rows and columns of the packed planes
    shift_x: np.ndarray
    filter_y: np.ndarray  # the output pixel whose filter lies at row 0, column 0 of the term's plane
    filter_x: np.ndarray
    filter_at: np.ndarray  # offset of the term's plane of filters; forward, all pass through one plane
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


class Gradients(NamedTuple):
    """What the backward pass writes; arrays that are not needed have no elements."""

    x: np.ndarray  # zeros, where there are phases of the stride that no tap reads
    filters: np.ndarray  # one slot per chunk of channels
    slots: np.ndarray  # gradients of the scales, one slot per band, all in a row


class Sizes(NamedTuple):
    """Elements of a thread's packed planes of one block of rows."""

    filters: int
    strips: int  # the same, as `apply` takes them
    images: int  # of CHANNELS channels
    outputs: int  # their gradients
    acc: int
    sums: int


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
    planes: np.ndarray,
    strips: np.ndarray,
    filters: np.ndarray,
    terms: Terms,
    first: int,
    rows: int,
    layout: Layout,
) -> None:
    """One plane per term, then its strips; `filters` are those of one sample and group, (taps, Ho, Wo)."""
    step, count = (layout.upsample, layout.upsample), max(rows * layout.width, lanes(planes))
    for term in range(len(terms.tap)):
        origin, plane = (terms.filter_y[term], terms.filter_x[term]), filters[terms.tap[term]]
        pack_rows(planes, terms.filter_at[term], plane, first, rows, layout.width, origin, step)
        deal(strips, term, len(terms.tap), planes, terms.filter_at[term], count)


@jit
def decode(item: int, groups: int, per_group: int, chunks: int, layout: Layout) -> tuple:
    """Sample, group, band of rows and chunk of channels of a work item, and the range of its channels."""
    rest, chunk = item // chunks, item % chunks
    n, group, band = rest // (layout.bands * groups), rest // layout.bands % groups, rest % layout.bands
    begin = group * per_group + chunk * layout.channels
    return (n, group, band, chunk), begin, min(begin + layout.channels, (group + 1) * per_group)


def sizes(terms: Terms, layout: Layout, *, backward: bool) -> Sizes:
    """What a thread needs."""
    acc = layout.plane * (1 if backward else layout.upsample)
    return Sizes(
        filters=len(terms.tap) * layout.plane if backward else layout.plane,
        strips=len(terms.tap) * (layout.plane + STRIP_BYTES),
        images=CHANNELS * layout.image_size,
        outputs=CHANNELS * layout.output_size if backward else 0,
        acc=CHANNELS * acc,
        sums=STRIP_BYTES + len(terms.tap),
    )


def memory(sizes: Sizes, *, backward: bool) -> int:
    """Elements of it all, with gradients of the filters and room for sums."""
    return sum(sizes) + (sizes.filters if backward else 0)


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
    sizes: Sizes,
    chunks: int,
    add: bool | None,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, taps, u = filters.shape[1], filters.shape[2], layout.upsample
    per_group, blocks, size = x.shape[1] // groups, -(-layout.rows // layout.block), len(terms.tap)
    pixels = lanes(memory)
    packed, strips = memory[: sizes.filters], memory[sizes.filters :]
    images = strips[sizes.strips :]
    acc = images[sizes.images :]
    totals = acc[sizes.acc :]
    # What lies between rows comes to nothing, but should not be slow to multiply.
    clear(packed, 0, sizes.filters)
    clear(totals, 0, lanes(totals))
    for item in range(start, stop):
        (n, group, band, _), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first = block * layout.block
            rows = min(layout.block, layout.rows - first)
            count = max(rows * layout.width, lanes(acc))
            clear(images, 0, sizes.images)
            _pack_filters(packed, strips, filters[n, group], terms, first, rows, layout)
            for c in range(begin, end, CHANNELS):
                several = min(CHANNELS, end - c)
                for k in range(several):
                    at = k * layout.image_size
                    _pack_image(images, at, x[n, c + k], first, rows + layout.halo, terms, layout)
                for phase in range(u * u):
                    row, column, these = phase // u, phase % u, slice(phase * taps, (phase + 1) * taps)
                    apply(
                        Planes(acc, column * layout.plane, u * layout.plane),
                        *(
                            several,
                            count,
                            Strips(strips, these.start * pixels, size * pixels, terms.image_at[these]),
                        ),
                        Planes(images, 0, layout.image_size),
                        Scale(scales, (n * x.shape[1] + c) * size + phase * taps, size),
                        *(totals, add, _KEPT),
                    )
                    if column == u - 1:
                        for k in range(several):
                            part = acc[k * u * layout.plane :]
                            unpack_phases(part, layout.plane, y[n, c + k], first, rows, layout.width, row, u)


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
def _pack_output(
    target: np.ndarray, at: int, grad_output: np.ndarray, first: int, rows: int, layout: Layout
) -> None:
    """The output gradient of one channel, with the rows above that taps lead to: a plane for each phase."""
    u = layout.upsample
    for phase in range(u * u):
        place, origin = at + phase * layout.output_plane + layout.lead, (phase // u, phase % u)
        above, high = first - layout.halo, rows + layout.halo
        pack_rows(target, place, grad_output, above, high, layout.width, origin, (u, u))


@jit
def _grad_x(
    grad_x: np.ndarray,
    acc: np.ndarray,
    source: int,
    first: int,
    rows: int,
    taps: Strips,
    pixels: Planes,
    scale: Scale,
    totals: np.ndarray,
    layout: Layout,
    add: bool | None,
) -> None:
    """One phase of the stride of some channels' gradients of x, summed in `acc`."""
    count = max(rows * layout.width, lanes(acc))
    apply(Planes(acc, 0, layout.plane), len(grad_x), count, taps, pixels, scale, totals, add, _KEPT)
    for k in range(len(grad_x)):
        unpack_rows(
            *(acc, k * layout.plane, grad_x[k], first, rows),
            *(layout.width, _origin(source, layout), layout.stride),
        )


@cached_jit
def backward_items(
    start: int,
    stop: int,
    memory: np.ndarray,
    grad_output: np.ndarray,
    x: np.ndarray,
    filters: np.ndarray,
    scales: Any,
    grads: Gradients,
    terms: Terms,
    layout: Layout,
    sizes: Sizes,
    chunks: int,
    add: bool | None,
) -> None:
    """Items (n, group, band, chunk of channels)."""
    groups, size, width = filters.shape[1], len(terms.tap), lanes(memory)
    per_group, blocks = x.shape[1] // groups, -(-layout.rows // layout.block)
    needs_filters = grads.filters.size + grads.slots.size > 0
    packed, grad_filters = memory[: sizes.filters], memory[sizes.filters :]
    strips = grad_filters[sizes.filters :]
    images = strips[sizes.strips :]
    outputs = images[sizes.images :]
    acc = outputs[sizes.outputs :]
    totals = acc[sizes.acc :]
    unwanted = Scale(totals[lanes(totals) :], 0, 0)
    clear(totals, 0, lanes(totals))
    for item in range(start, stop):
        (n, group, band, chunk), begin, end = decode(item, groups, per_group, chunks, layout)
        for block in range(blocks * band // layout.bands, blocks * (band + 1) // layout.bands):
            first, rows = block * layout.block, min(layout.block, layout.rows - block * layout.block)
            clear(memory, 0, 2 * sizes.filters + sizes.strips + sizes.images + sizes.outputs)
            _pack_filters(packed, strips, filters[n, group], terms, first, rows, layout)
            for channel in range(begin, end, CHANNELS):
                several = min(CHANNELS, end - channel)
                for k in range(several):
                    grad = grad_output[n, channel + k]
                    _pack_output(outputs, k * layout.output_size, grad, first, rows, layout)
                    if needs_filters:
                        at = k * layout.image_size
                        _pack_image(images, at, x[n, channel + k], first, rows, terms, layout)
                slot = ((band * x.shape[0] + n) * x.shape[1] + channel) * size
                for s in range(len(terms.planes)):
                    these = slice(terms.of_plane[s], terms.of_plane[s + 1])
                    taps = Taps(packed, terms.filter_at[these], terms.output_at[these])
                    pixels = Planes(outputs, 0, layout.output_size)
                    scale = Scale(scales, (n * x.shape[1] + channel) * size + these.start, size)
                    of_scale = Scale(grads.slots, slot + these.start, size) if grads.slots.size else unwanted
                    if needs_filters:
                        plane = Planes(images, s * layout.image_plane, layout.image_size)
                        count = rows * layout.width
                        correlate(grad_filters, several, count, taps, plane, pixels, scale, of_scale, add)
                    if grads.x.size:
                        target, source = grads.x[n, channel : channel + several], terms.planes[s]
                        of_plane = Strips(strips, these.start * width, size * width, terms.output_at[these])
                        _grad_x(
                            target, acc, source, first, rows, of_plane, pixels, scale, totals, layout, add
                        )
            if grads.filters.size:
                _unpack_filters(grad_filters, grads.filters[chunk, n, group], terms, first, rows, layout)
