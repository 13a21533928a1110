"""Readers of images and of optical flow, on files written by the description of their formats."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from _image_files import chunk, flo_bytes, kitti_bytes, png_bytes, ppm_bytes, write

from autodiff import data
from autodiff.files import FileError

KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]


def drawn(rng, kind, depth, height=9, width=13):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    return rng.integers(0, 2**depth, (height, width, channels))


def channels_first(values, depth):
    first = np.moveaxis(values, -1, 0).astype(np.uint16 if depth == 16 else np.uint8)
    return first[0] if len(first) == 1 else first


@pytest.mark.parametrize(("kind", "depth"), KINDS)
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0, 3, 4)])
def test_png_in_every_kind_and_filter(tmp_path, rng, kind, depth, filters):
    values = drawn(rng, kind, depth)
    path = write(tmp_path / "a.png", png_bytes(values, depth, kind, filters, parts=3))
    found = data.read_png(path)
    expected = channels_first(values, depth)
    assert found.dtype == expected.dtype and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_png_of_narrow_images(tmp_path, rng, size):
    values = drawn(rng, 2, 16, *size)
    found = data.read_png(write(tmp_path / "a.png", png_bytes(values, 16, 2, (4, 3, 1, 2))))
    np.testing.assert_array_equal(found, channels_first(values, 16))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_png_as_pillow_writes_it(tmp_path, rng, mode):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")
    smooth = np.add.outer(np.arange(40), np.arange(50))[..., None] * [3, 2, 1, 1] + rng.integers(
        0, 9, (40, 50, 4)
    )
    pixels = (smooth % 256).astype(np.uint8)
    if mode == "I;16":
        made = image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("P", "1"):
        made = image.fromarray(pixels[..., :3], "RGB").convert(mode)
    else:
        made = image.fromarray(pixels, "RGBA").convert(mode)
    made.save(tmp_path / "a.png")
    expected = np.asarray(made)
    found = data.read_png(tmp_path / "a.png")
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1) if found.ndim == 3 else found, expected)


def changed(content, place, value):
    return content[:place] + bytes([value]) + content[place + 1 :]


GREY = np.arange(12).reshape(3, 4, 1)
GOOD = png_bytes(GREY)
HEAD = GOOD[:8]
SHORT = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 8, 0, 0, 0, 0)) + chunk(
    b"IDAT", zlib.compress(bytes(14))
)
DAMAGED_PNG = {
    "empty": (b"", "is no PNG file"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(40), "is no PNG file"),
    "signature alone": (HEAD, "is cut short"),
    "cut in a chunk": (GOOD[:30], "is cut short in its chunk b'IHDR'"),
    "without its end": (GOOD[:-12], "is cut short"),
    "damaged header": (changed(GOOD, 19, 9), "is damaged in its chunk b'IHDR'"),
    "damaged pixels": (changed(GOOD, len(GOOD) - 20, 9), "is damaged in its chunk b'IDAT'"),
    "no header": (HEAD + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "does not begin with one header"),
    "two headers": (GOOD[:33] + GOOD[8:], "does not begin with one header"),
    "no pixels": (GOOD[:33] + chunk(b"IEND", b""), "has no pixels"),
    "no palette": (png_bytes(GREY, 8, 3).replace(b"PLTE", b"pLTE"), "is damaged in its chunk b'pLTE'"),
    "unknown chunk": (GOOD[:33] + chunk(b"ABCD", b"") + GOOD[33:], "has a chunk b'ABCD', which is not known"),
    "wrong kind": (
        HEAD
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 3, 4, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b""),
        "an unknown kind, 2 of 4 bits",
    ),
    "interlaced": (png_bytes(GREY, interlace=1), "is interlaced"),
    "unknown packing": (png_bytes(GREY, packing=1), "unknown kind"),
    "zero width": (png_bytes(GREY, width=0), "would be an image of 0 x 3 pixels"),
    "2**31 wide": (png_bytes(GREY, width=2**31 - 1), "would be an image of 2147483647 x 3 pixels"),
    "100 million pixels": (
        png_bytes(GREY, width=10**4, height=10**4),
        "is cut short: 10000 x 10000 pixels do not fit",
    ),
    "more rows": (png_bytes(GREY, height=4), "pixels of 15 bytes or more, but should have 20"),
    "fewer rows": (png_bytes(GREY, height=2), "pixels of 11 bytes or more, but should have 10"),
    "a row too short": (HEAD + SHORT + chunk(b"IEND", b""), "should have 15"),
    "no zlib": (GOOD[:33] + chunk(b"IDAT", b"abcdef") + chunk(b"IEND", b""), "has damaged pixels"),
    "filter 5": (
        GOOD[:33] + chunk(b"IDAT", zlib.compress(bytes([5, 0, 0, 0, 0]) * 3)) + chunk(b"IEND", b""),
        "a row of filter 5",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED_PNG.values(), ids=DAMAGED_PNG.keys())
def test_damaged_png_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.png", content)
    with pytest.raises(FileError, match=message) as caught:
        data.read_png(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", ["png", "ppm", "pfm", "flo", "kitti"])
def test_no_file_cut_short_is_read(tmp_path, kind):
    content = {
        "png": GOOD,
        "ppm": ppm_bytes(np.zeros((3, 2, 3), np.uint8)),
        "pfm": b"PF\n2 1\n-1.0\n" + bytes(24),
        "flo": flo_bytes(np.zeros((2, 2, 3))),
        "kitti": kitti_bytes(np.zeros((2, 2, 3)), np.ones((2, 3))),
    }[kind]
    read = {
        "png": data.read_png,
        "ppm": data.read_ppm,
        "pfm": data.read_pfm,
        "flo": data.read_flo,
        "kitti": data.read_kitti_flow,
    }[kind]
    path = write(tmp_path / "a", content)
    read(path)
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(FileError, match=f"^{path}: "):
            read(path)
    path.write_bytes(content + b"\0")
    if kind in ("ppm", "pfm", "flo"):
        with pytest.raises(FileError, match="too long"):
            read(path)


# ---- netpbm


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5)])
def test_ppm(tmp_path, rng, dtype, shape):
    image = rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    found = data.read_ppm(write(tmp_path / "a.ppm", ppm_bytes(image)))
    assert found.dtype == dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P3\n1 1\n255\n1 2 3\n", "is no binary PPM or PGM file"),
        (b"P6\n1 1\n", "a damaged header"),
        (b"P6\n-1 1\n255\n123", "a damaged header"),
        (b"P6\n1 1\n0\n123", "a damaged header"),
        (b"P6\n1 1\n65536\n123", "a damaged header"),
        (b"P6\n0 1\n255\n", "an image of 0 x 1 pixels"),
        (b"P6\n99999 99999\n255\n", "an image of 99999 x 99999 pixels"),
        (b"P6\n9999999999 1\n255\n", "a damaged header"),
        (b"P6\n1 1\n9\nabc", "values of 99, over its largest, 9"),
        (b"P5\n2 1\n255\na", "cut short: should have 2 bytes after its header, and has 1"),
    ],
)
def test_damaged_ppm_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.ppm", content)
    with pytest.raises(FileError, match=message):
        data.read_ppm(path)


def test_pfm_from_the_bottom_in_both_byte_orders(tmp_path):
    for order, scale in (("<", "-1.0"), (">", "2.5")):
        rows = struct.pack(f"{order}6f", 1, 2, 3, 4, 5, float("inf"))
        found = data.read_pfm(write(tmp_path / "a.pfm", f"Pf\n3 2\n{scale}\n".encode() + rows))
        assert found.dtype == np.float32 and found.tolist() == [[4, 5, float("inf")], [1, 2, 3]]
        found = data.read_pfm(write(tmp_path / "a.pfm", f"PF\n1 2\n{scale}\n".encode() + rows))
        assert found.tolist() == [[[4], [1]], [[5], [2]], [[float("inf")], [3]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"P6\n1 1\n255\nabc", "is no PFM file"),
        (b"Pf\n1 1\n0.0\n" + bytes(4), "has the scale b'0.0'"),
        (b"Pf\n1 1\n1e999\n" + bytes(4), "has the scale b'1e999'"),
        (b"Pf\n1 1\n--1\n" + bytes(4), "has the scale b'--1'"),
        (b"Pf\n1 0\n-1\n", "an image of 1 x 0 pixels"),
    ],
)
def test_damaged_pfm_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.pfm", content)
    with pytest.raises(FileError, match=message):
        data.read_pfm(path)


# ---- flow


def test_flo(tmp_path, rng):
    flow = rng.standard_normal((2, 4, 7)).astype(np.float32)
    found = data.read_flo(write(tmp_path / "a.flo", flo_bytes(flow)))
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, flow)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PIE", "does not begin with PIEH"),
        (b"HEIP" + bytes(16), "does not begin with PIEH"),
        (b"PIEH" + bytes(4), "is cut short"),
        (b"PIEH" + struct.pack("<2i", -1, 5) + bytes(40), "an image of -1 x 5 pixels"),
        (
            b"PIEH" + struct.pack("<2i", 10**4, 10**4),
            "cut short: 10000 x 10000 vectors take 800,000,012 bytes, not 12",
        ),
        (b"PIEH" + struct.pack(">2i", 2, 1) + bytes(16), "would be an image of 33554432 x 16777216 pixels"),
    ],
)
def test_damaged_flo_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "a.flo", content)
    with pytest.raises(FileError, match=message):
        data.read_flo(path)


def test_kitti_keeps_sixteen_bits(tmp_path):
    """The exact values of the format: steps of 1/64 pixel, which 8 bits cannot hold."""
    values = np.array([[[32768, 32769, 1], [0, 65535, 1], [32768 + 64, 32768 - 128, 1], [5, 6, 0]]])
    for filters in [(0,), (1,), (3,), (4,)]:
        path = write(tmp_path / "a.png", png_bytes(values, 16, 2, filters))
        flow, valid = data.read_kitti_flow(path)
        assert valid.tolist() == [[True, True, True, False]]
        assert flow.dtype == np.float32
        assert flow.tolist() == [[[0, -512, 1, 0]], [[1 / 64, 32767 / 64, -2, 0]]]


def test_kitti_through_its_own_coding(tmp_path, rng):
    flow = np.rint(rng.uniform(-500, 500, (2, 20, 31)) * 64) / 64
    valid = rng.random((20, 31)) < 0.5
    found = data.read_kitti_flow(write(tmp_path / "a.png", kitti_bytes(flow, valid)))
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.flow, np.where(valid, flow, 0))


def test_other_png_files_are_no_flow(tmp_path):
    for values, depth, kind in [
        (np.zeros((2, 2, 3)), 8, 2),
        (np.zeros((2, 2, 1)), 16, 0),
        (np.zeros((2, 2, 4)), 16, 6),
    ]:
        path = write(tmp_path / "a.png", png_bytes(values, depth, kind))
        with pytest.raises(FileError, match=r"a.png: is no flow of KITTI's: \(.*\) uint"):
            data.read_kitti_flow(path)


# ---- photographs


def jpeg_bytes(pixels, form="JPEG", **options):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")
    file = io.BytesIO()
    image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def test_photographs_by_what_is_in_them(tmp_path, rng):
    flat = np.empty((16, 24, 3), np.uint8)
    flat[...] = (200, 100, 50)
    found = data.read_image(write(tmp_path / "a.JPEG", jpeg_bytes(flat, quality=100, subsampling=0)))
    assert found.shape == (3, 16, 24) and abs(found.astype(int) - [[[200]], [[100]], [[50]]]).max() <= 2
    # ImageNet has a PNG file called JPEG.
    pixels = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    found = data.read_image(write(tmp_path / "b.JPEG", png_bytes(pixels, 8, 2)))
    np.testing.assert_array_equal(found, np.moveaxis(pixels, -1, 0))
    grey = data.read_image(write(tmp_path / "c.jpg", jpeg_bytes(flat[..., 0], quality=100)))
    assert grey.shape == (3, 16, 24) and (grey == grey[0]).all()
    palette = data.read_image(write(tmp_path / "d.png", png_bytes(pixels[..., :1], 8, 3)))
    # The palette of the test repeats 0..255 three times: entry i is (3i, 3i + 1, 3i + 2) modulo 256.
    expected = (3 * pixels[..., 0].astype(int) + np.arange(3)[:, None, None]) % 256
    np.testing.assert_array_equal(palette, expected)


def test_what_is_no_photograph(tmp_path):
    flat = np.zeros((16, 24, 3), np.uint8)
    for content, message in [
        (b"", "is empty"),
        (b"nothing", "is no image that can be read"),
        (jpeg_bytes(flat)[:200], "is no image that can be read"),
        (png_bytes(np.zeros((2, 2, 3)), 16, 2), "has 16 bits a channel"),
        (ppm_bytes(np.zeros((3, 2, 2), np.uint16)), "has 16 bits a channel"),
    ]:
        path = write(tmp_path / "a.jpg", content)
        with pytest.raises(FileError, match=message) as caught:
            data.read_image(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_without_pillow_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jpg", b"\xff\xd8\xff\xe0")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"read_image needs Pillow .* 'dynamic-filters\[data\]'"):
        data.read_image(path)


def test_interlaced_photographs_are_read(tmp_path):
    """Adam7: of 2 x 2 pixels, the first pass has the first, the sixth the one beside it, the last a row."""
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")
    pixels = [[(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (10, 11, 12)]]
    packed = bytes([0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 1))
    body = header + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    path = write(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n" + body)
    assert np.moveaxis(data.read_image(path), 0, -1).tolist() == [[list(p) for p in row] for row in pixels]
    with pytest.raises(FileError, match="is interlaced, which is not read"):
        data.read_png(path)
