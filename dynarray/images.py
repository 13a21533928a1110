"""Photographs in, photographs out: dynamic filters, and sampling, of pictures as NumPy's users have them.

The functions take a picture with its axes as they come, (H, W), (H, W, C) or (N, H, W, C), or with the
channels anywhere else, as in scikit-image, by `channel_axis`. They take integers or floating-point numbers,
and give the same dtype and the same range: nothing is scaled to 0...1. Integers are computed with in float64,
rounded half to even as `numpy.rint` does, and clipped to what their dtype holds. Large photographs are worked
on in bands of rows, so that no copy in floating point is ever there as a whole.

Where anything is a Variable of the tape, the result is one too, and has gradients. Where anything is an array
of dask, the result is one too, in the chunks of the photograph or of the points.
"""

from typing import Any, NamedTuple

import numpy as np

from rawkernels.launch import module_of

from . import _photograph as ph
from ._dispatch import any_dask as _any_dask
from ._photograph import Layout
from .typing import Border

__all__ = ["filter", "sample", "warp"]

_WIDE = np.dtype(np.float64)  # in which points are computed with, and so what is read at them
_PLANE = 128 << 20  # bytes of channels that are copied at a time, unless one takes more


def filter(
    photo: Any,
    kernels: Any,
    mixture: Any = None,
    *,
    channel_axis: int | None = -1,
    border: Border = "reflect",
) -> Any:
    """Filter a photograph: with one kernel, with one for each pixel, or with kernels mixed at each pixel.

    ``y[p] = sum_t kernel_p[t] * photo[p + t - centre]``, a cross-correlation, as in all of this package and
    in `scipy.ndimage.correlate`, with the centre at ``(kh // 2, kw // 2)``. With `mixture` the kernel of a
    pixel is ``kernel_p = sum_b mixture[b, p] * kernels[b]``, and is never stored.

    Parameters
    ----------
    photo : array, (H, W), (H, W, C) or (N, H, W, C)
        One picture or several, of integers or floating-point numbers. No bool.
    kernels : array of real numbers
        Without `mixture`: (kh, kw), the same for all pixels; (kh, kw, H, W), one for each pixel; for several
        pictures (N, kh, kw, H, W), or (N, G, kh, kw, H, W) with kernels of their own for G groups of
        channels. With `mixture`: (B, kh, kw), or (B, C, kh, kw), which differ between channels.
    mixture : array, (B, H, W), (N, B, H, W) or (N, G, B, H, W), optional
        How much of each of the B kernels there is in that of a pixel: real numbers.
    channel_axis : int or None
        The axis of the channels, as in scikit-image; None if there is none, and then (H, W) or (N, H, W). The
        default is the last, where readers of files put it; (H, W) has no channels anyway.
    border : {"reflect", "constant", "symmetric", "edge", "wrap"}
        What lies outside of the picture, by the names of `numpy.pad`; zero for "constant". `scipy.ndimage`
        gives other names to the same: its "reflect" is "symmetric" here, and its "mirror" is "reflect".

    Returns
    -------
    array
        Of the shape and dtype of `photo`, C-contiguous.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or not all of one, dtypes that hold no real numbers, and
        shapes that do not fit; the message says how the axes of `photo` were understood. If the result is NaN
        somewhere and `photo` has integers, which cannot say so. If something is a Variable and `photo` has
        integers, which have no slope.

    Notes
    -----
    Arithmetic is in float64 for integers, so that they are the result of the formula, rounded once, and
    otherwise in the wider of the dtypes of `photo` and kernels; float16 is computed with in float32.
    A kernel for each pixel takes kh*kw numbers for it. B kernels and their mixture take B.

    Examples
    --------
    A blur that grows from left to right, of a photograph of bytes:

    >>> import numpy as np, dynarray as dyn
    >>> photo = np.zeros((40, 60, 3), np.uint8)
    >>> photo[:, ::4] = 200
    >>> sigma = np.broadcast_to(np.linspace(0.1, 3, 60), (40, 60))
    >>> y = dyn.images.filter(photo, dyn.kernels.gaussian(sigma))
    >>> y.shape, y.dtype, y[20, :5, 0].tolist(), y[20, 45:50, 0].tolist()
    ((40, 60, 3), dtype('uint8'), [200, 0, 0, 0, 199], [50, 50, 50, 50, 50])
    """
    if _any_dask((photo, kernels, mixture)):
        return _lazily_filtered(photo, kernels, mixture, channel_axis, border)
    layout = _checked("filter", photo, channel_axis)
    filters = _filters(layout, photo, kernels, mixture)
    margin = filters.margin(ph.check_border("filter", border))
    arrays = [photo, kernels] if mixture is None else [photo, kernels, mixture]
    dtype = ph.floating(*arrays)
    planes = layout.planes(photo)
    if any(map(ph.is_followed, arrays)):
        _has_slope("filter", photo)
        if not photo.size:
            raise ValueError(f"filter: photo is empty, its shape is {layout.shape}: there is no gradient")
        y = filters.apply(margin.whole(planes, dtype), 0, len(planes), slice(None), dtype)
        return layout.back(y).astype(photo.dtype)
    out = module_of(photo).empty(layout.shape, photo.dtype)
    target, sink = layout.planes(out), ph.Sink("filter", "photo", photo)
    width = planes.shape[1] * (planes.shape[3] + sum(margin.columns))
    in_row = 3 * width + filters.numbers * planes.shape[3]
    for n in range(len(planes) if out.size else 0):
        for rows in ph.bands(planes.shape[2], in_row * dtype.itemsize):
            x = margin.around(planes[n : n + 1], rows, dtype)
            sink.put(target[n : n + 1, :, rows], filters.apply(x, n, n + 1, rows, dtype))
    sink.finish()
    return out


def sample(photo: Any, points: Any, *, channel_axis: int | None = -1, border: Border = "reflect") -> Any:
    """Read a photograph at any points, with bilinear interpolation.

    Parameters
    ----------
    photo : array, (H, W), (H, W, C) or (N, H, W, C)
        As `filter` takes it.
    points : array, (P, 2) or (Ho, Wo, 2), for several pictures (N, P, 2) or (N, Ho, Wo, 2)
        Where to read, (y, x) in pixels, in the order of the axes and of all of this package; pixel centres
        have integer coordinates. Integers or floating-point numbers.
    channel_axis, border
        As `filter` takes them.

    Returns
    -------
    array
        Of the dtype of `photo`: the shape is that of `points` without its last axis, with the axis of
        channels where `photo` has it: the last one if it is the last there, otherwise the one of that number.

    Raises
    ------
    TypeError, ValueError
        As `filter`.

    Notes
    -----
    Points are computed with in float64, as everything is here. Where the next pixel lies outside, it is what
    `border` says. An infinite coordinate reads the edge with "edge", 0 with "constant" and NaN otherwise; a
    NaN coordinate reads NaN.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> photo = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    >>> dyn.images.sample(photo, np.array([[1.0, 2.0], [0.5, 0.5], [-1.0, 3.0]])).tolist()
    [120, 50, 140]
    """
    if _any_dask((photo, points)):
        from . import _dask_images as lazy

        known = lazy.forms("sample", photo=photo, points=points)
        reading, _ = _at_points(known[0], known[1], channel_axis, ph.check_border("sample", border))
        return lazy.sample(photo, points, reading.layout, reading.result, channel_axis, border)
    return _read(*_at_points(photo, points, channel_axis, border))


def _at_points(photo: Any, points: Any, channel_axis: Any, border: Any) -> tuple["_Reading", Any]:
    """How `sample` reads, and its points as (N, Ho, Wo, 2)."""
    layout = _checked("sample", photo, channel_axis)
    batch = "N" in layout.symbols
    ph.check_array("sample", "points", points, "iuf")
    ph.check_libraries("sample", {"photo": photo, "points": points})
    lines = points.ndim == batch + 2
    if (
        not (lines or points.ndim == batch + 3)
        or points.shape[-1] != 2
        or (batch and len(points) != layout.sizes["N"])
    ):
        several = f"({layout.sizes['N']}, " if batch else "("
        raise ValueError(
            f"sample: points must have shape {several}P, 2) or {several}Ho, Wo, 2), with (y, x) along the "
            f"last axis, got {tuple(points.shape)}; {layout.named('photo')}"
        )
    symbols = "N" * batch + ("W" if lines else "HW")
    extents = list(points.shape[:-1])
    if "C" in layout.symbols:
        last = layout.symbols.endswith("C")
        place = len(symbols) if last else layout.symbols.index("C")
        symbols = f"{symbols[:place]}C{symbols[place:]}"
        extents.insert(place, layout.sizes["C"])
    points = points if batch else points[None]
    points = points[:, None] if lines else points
    result = Layout(symbols, tuple(extents), channel_axis)
    return _Reading("sample", photo, layout, result, border), points


def warp(photo: Any, flow: Any, *, channel_axis: int | None = -1, border: Border = "reflect") -> Any:
    """Move the pixels of a photograph: each of the result is read where its flow points to.

    ``y[p] = photo(p + flow[p])``, with bilinear interpolation. This is backward warping, as by
    `skimage.transform.warp` and `cv2.remap`: a flow that says where each pixel of a first picture is found in
    a second one brings the second onto the first.

    Parameters
    ----------
    photo : array, (H, W), (H, W, C) or (N, H, W, C)
        As `filter` takes it.
    flow : array, (H, W, 2), for several pictures (N, H, W, 2)
        How far (dy, dx) to go from each pixel, in pixels: in the order of the axes, as everywhere in this
        package. OpenCV and files of optical flow have (dx, dy): give ``flow[..., ::-1]``.
    channel_axis, border
        As `filter` takes them.

    Returns
    -------
    array
        Of the shape and dtype of `photo`, C-contiguous.

    Raises
    ------
    TypeError, ValueError
        As `filter`.

    Notes
    -----
    As `sample`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> photo = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    >>> flow = np.zeros((3, 4, 2))
    >>> flow[..., 1] = 1  # one to the right: the picture moves to the left
    >>> dyn.images.warp(photo, flow, border="edge").tolist()
    [[20, 40, 60, 60], [100, 120, 140, 140], [180, 200, 220, 220]]
    """
    if _any_dask((photo, flow)):
        from . import _dask_images as lazy

        known = lazy.forms("warp", photo=photo, flow=flow)
        layout = _along_flow(known[0], known[1], channel_axis, ph.check_border("warp", border))[0].layout
        points = lazy.moved(photo, flow, layout)
        return lazy.sample(photo, points, layout, layout, channel_axis, border)
    return _read(*_along_flow(photo, flow, channel_axis, border))


def _along_flow(photo: Any, flow: Any, channel_axis: Any, border: Any) -> tuple["_Reading", Any]:
    """How `warp` reads, and its flow as (N, H, W, 2)."""
    layout = _checked("warp", photo, channel_axis)
    ph.check_array("warp", "flow", flow, "iuf")
    ph.check_libraries("warp", {"photo": photo, "flow": flow})
    sizes = layout.sizes
    several = (sizes["N"],) if "N" in layout.symbols else ()
    if tuple(flow.shape) != (*several, sizes["H"], sizes["W"], 2):
        raise ValueError(
            f"warp: flow must have shape {(*several, sizes['H'], sizes['W'], 2)}, with (dy, dx) along the "
            f"last axis, got {tuple(flow.shape)}; {layout.named('photo')}"
        )
    reading = _Reading("warp", photo, layout, layout, border, moves=True)
    return reading, flow if several else flow[None]


class _Reading(NamedTuple):
    """A picture that is read at points, or, if it `moves`, at points that lie so far from its pixels."""

    name: str
    photo: Any
    layout: Layout
    result: Layout
    border: str
    moves: bool = False

    def places(self, points: Any, rows: slice) -> Any:
        """The points (N, Ho, Wo, 2) of some rows as the operator takes them."""
        points = ph.cast(points[:, rows], _WIDE).transpose((0, 3, 1, 2))
        if self.moves:
            xp = ph.library_of_values(points)
            grid = xp.empty(points.shape[1:], _WIDE)
            grid[0] = xp.arange(rows.start, rows.stop)[:, None]
            grid[1] = xp.arange(points.shape[3])
            points = points + grid
        return points[:, None]


def _read(reading: _Reading, points: Any) -> Any:
    """The picture at points (N, Ho, Wo, 2)."""
    name, photo, layout, result, border, _ = reading
    planes = layout.planes(photo)
    if ph.check_border(name, border) != "constant" and not min(planes.shape[2:]) and points.size:
        raise ValueError(f"{name}: photo has no pixels to be read, its shape is {layout.shape}")
    if ph.is_followed(photo) or ph.is_followed(points):
        _has_slope(name, photo)
        given = ph.cast(planes, _WIDE), reading.places(points, slice(0, points.shape[1]))
        return result.back(ph.call("sample_points", given, border=border)[:, :, 0]).astype(photo.dtype)
    out = module_of(photo).empty(result.shape, photo.dtype)
    target, sink = result.planes(out), ph.Sink(name, "photo", photo)
    channels, height, width = planes.shape[1:]
    together = max(1, _PLANE // max(1, 8 * height * width))
    for n in range(len(planes) if out.size else 0):
        for first in range(0, channels, together):
            c = slice(first, min(first + together, channels))
            x = ph.cast(planes[n : n + 1, c], _WIDE)
            for rows in ph.bands(points.shape[1], 8 * points.shape[2] * (8 + 2 * (c.stop - c.start))):
                places = reading.places(points[n : n + 1], rows)
                y = ph.call("sample_points", (x, places), border=border)
                sink.put(target[n : n + 1, c, rows], y[:, :, 0])
    sink.finish()
    return out


def _lazily_filtered(photo: Any, kernels: Any, mixture: Any, channel_axis: Any, border: Any) -> Any:
    """`filter` of arrays of dask, once it is known that they fit."""
    from . import _dask_images as lazy

    forms = lazy.forms("filter", photo=photo, kernels=kernels, mixture=mixture)
    layout = _checked("filter", forms[0], channel_axis)
    filters = _filters(layout, *forms)
    ph.check_border("filter", border)
    several = -1 if filters.fixed is not None else kernels.ndim - 4
    among = -1 if mixture is None else mixture.ndim - 3
    arrays = photo, kernels, mixture
    return lazy.filter(layout, filters.size, arrays, (several, among), channel_axis, border)


def _checked(name: str, photo: Any, channel_axis: Any) -> Layout:
    """The layout of a photograph."""
    return ph.check_layout(name, "photo", ph.check_array(name, "photo", photo, "iuf"), channel_axis)


def _has_slope(name: str, photo: Any) -> None:
    if photo.dtype.kind in "iu":
        raise TypeError(
            f"{name}: photo has dtype {photo.dtype}, and what is rounded to integers has no gradient; "
            "give photo.astype(float)"
        )


class _Filters(NamedTuple):
    """Kernels as the operators take them: what is there for each pixel, and the fixed ones that it mixes."""

    maps: Any  # (N or 1, G, kh, kw, H, W), or (N or 1, G, B, H, W)
    fixed: Any  # None, or (B, kh, kw) or (B, C, kh, kw)

    @property
    def size(self) -> tuple[int, int]:
        """(kh, kw)."""
        kh, kw = self.maps.shape[2:4] if self.fixed is None else self.fixed.shape[-2:]
        return kh, kw

    @property
    def numbers(self) -> int:
        """How many numbers there are for a pixel."""
        return int(np.prod(self.maps.shape[1:-2]))

    def margin(self, border: str) -> ph.Margin:
        """What they read around a picture."""
        rows, columns = ((k // 2, k - 1 - k // 2) for k in self.size)
        return ph.Margin(rows, columns, border)

    def apply(self, x: Any, first: int, last: int, rows: slice, dtype: Any) -> Any:
        """Filter some rows of some pictures, x with its margin."""
        maps = self.maps[first:last] if len(self.maps) > 1 else self.maps
        maps = ph.cast(maps[..., rows, :], dtype)
        if len(maps) < last - first:
            maps = np.broadcast_to(maps, (last - first, *maps.shape[1:]))
        if self.fixed is None:
            return ph.call("local_filter2d", (x, maps, None), padding=0)
        return ph.call("mixed_filter2d", (x, ph.cast(self.fixed, dtype), maps), padding=0)


def _filters(layout: Layout, photo: Any, kernels: Any, mixture: Any) -> _Filters:
    """Check the kernels against the photograph."""
    if isinstance(kernels, tuple):  # as builders give them
        raise TypeError("filter: kernels must be an array, got a tuple; give kernels and mixture as *pair")
    given = {"photo": photo, "kernels": ph.check_array("filter", "kernels", kernels)}
    if mixture is not None:
        given["mixture"] = ph.check_array("filter", "mixture", mixture)
    ph.check_libraries("filter", given)
    sizes = layout.sizes
    c, h, w = (sizes[symbol] for symbol in "CHW")
    if mixture is None and kernels.ndim == 2:
        xp = ph.library_of_values(kernels)
        maps = xp.broadcast_to(xp.ones((), ph.values_of(kernels).dtype), (1, 1, 1, h, w))
        filters = _Filters(maps, kernels[None])
    elif mixture is None:
        forms = {4: (None, None), 5: (slice(None), None), 6: ()}
        if kernels.ndim not in forms:
            expected = f"(kh, kw), (kh, kw, {h}, {w}) or (N, G, kh, kw, {h}, {w}) where there is no mixture"
            raise _misfit(layout, "kernels", kernels, expected)
        filters = _Filters(kernels[forms[kernels.ndim]], None)
        _check_maps(layout, "kernels", kernels, filters.maps, "kh, kw, ")
    else:
        forms = {3: (None, None), 4: (slice(None), None), 5: ()}
        if kernels.ndim not in (3, 4) or (kernels.ndim == 4 and kernels.shape[1] != c):
            raise _misfit(
                layout, "kernels", kernels, f"(B, kh, kw) or (B, {c}, kh, kw) where there is a mixture"
            )
        if mixture.ndim not in forms or mixture.shape[-3] != len(kernels):
            raise _misfit(
                layout, "mixture", mixture, f"({len(kernels)}, {h}, {w}), for kernels {kernels.shape},"
            )
        filters = _Filters(mixture[forms[mixture.ndim]], kernels)
        _check_maps(layout, "mixture", mixture, filters.maps, f"{len(kernels)}, ")
    if min(filters.size) < 1:
        raise ValueError(f"filter: kernels must have sizes of at least 1, got {filters.size}")
    return filters


def _check_maps(layout: Layout, argument: str, given: Any, maps: Any, own: str) -> None:
    """One for each pixel, of each picture where there are several, and groups that divide the channels."""
    n, c, h, w = (layout.sizes[symbol] for symbol in "NCHW")
    fits = tuple(maps.shape[-2:]) == (h, w) and (len(maps) == n or maps.ndim - given.ndim == 2)
    if not fits:
        lead = {2: "", 1: f"{n}, ", 0: f"{n}, G, "}[maps.ndim - given.ndim]
        raise _misfit(layout, argument, given, f"({lead}{own}{h}, {w})")
    groups = maps.shape[1]
    if not groups or c % groups:
        raise ValueError(
            f"filter: {argument} has {groups} groups of channels, which must divide the {c} channels; "
            f"{layout.named('photo')}"
        )


def _misfit(layout: Layout, argument: str, given: Any, expected: str) -> ValueError:
    return ValueError(
        f"filter: {argument} must have shape {expected}, got {tuple(given.shape)}; {layout.named('photo')}"
    )
