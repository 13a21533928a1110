"""Jobs on tiles that stop, and outputs and journals that are not what they were when they go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynarray as dyn
from dynarray import tiles

RNG = np.random.default_rng
SHAPE, TILE, TILES = (1, 4, 40, 60), (10, 20), 12
X, CHANNEL = RNG(3).standard_normal(SHAPE), RNG(4).standard_normal((1, 4, 3, 3))
SPATIAL, GRAD = RNG(5).standard_normal((1, 1, 3, 3, 40, 60)), RNG(6).standard_normal(SHAPE)


class Stopping:
    """An input that cannot be read any more after some tiles; it counts how often it was."""

    shape, dtype, ndim = X.shape, X.dtype, X.ndim

    def __init__(self, after: int = 10**9, then: Callable[[], Any] | None = None) -> None:
        self.after, self.read, self.then = after, 0, then

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.read == self.after:
            if self.then is not None:
                self.then()
            raise OSError("unplugged")
        self.read += 1
        return X[index]


def _memmap(path: Path, shape: tuple[int, ...]) -> Any:
    return np.lib.format.open_memmap(path, "w+", np.float64, shape)


def _zarr(path: Path, shape: tuple[int, ...]) -> Any:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed (extra: test)")
    chunks = tuple(min(16, size) for size in shape)
    return zarr.create_array(store=path, shape=shape, chunks=chunks, dtype="float64", overwrite=True)


def _hdf5(path: Path, shape: tuple[int, ...]) -> Any:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra: data)")
    return h5py.File(path, "w").create_dataset("out", shape, np.float64, chunks=True)


FILES = {"memmap": _memmap, "zarr": _zarr, "hdf5": _hdf5}


def _apply(x: Any, out: Any, **options: Any) -> Any:
    return tiles.apply(dyn.ddf, (x, CHANNEL, SPATIAL), out, TILE, **options)


def _gradient(x: Any, outs: tuple[Any, ...], **options: Any) -> Any:
    return tiles.gradient(dyn.ddf, (x, CHANNEL, SPATIAL), GRAD, outs, TILE, **options)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("how", ["as it was", "damaged", "begun anew"])
def test_what_an_output_lost_is_made_anew_and_nothing_else(tmp_path: Path, kind: str, how: str) -> None:
    """Above all of a program that creates its output at its beginning, and is started again."""
    create, right = FILES[kind], dyn.ddf(X, CHANNEL, SPATIAL)
    out = create(tmp_path / "out", SHAPE)
    with pytest.raises(OSError, match="unplugged"):
        _apply(Stopping(7), out)
    assert len(list(tmp_path.glob("*.tiles"))) == 1
    if how == "damaged":
        out[0, 2, 15, 30] = np.nextafter(right[0, 2, 15, 30], 9)  # the fifth tile
    if how == "begun anew":
        if kind == "hdf5":
            out.file.close()
        out = create(tmp_path / "out", SHAPE)
    again = Stopping()
    _apply(again, out)
    assert again.read == TILES - {"as it was": 7, "damaged": 6, "begun anew": 0}[how]
    assert np.asarray(out[...]).tobytes() == right.tobytes()
    assert not list(tmp_path.glob("*.tiles*"))
    if kind == "hdf5":
        out.file.close()


@pytest.mark.parametrize("lost", [0, 2])
def test_gradients_that_an_output_lost_are_made_anew_and_sums_have_each_tile_once(
    tmp_path: Path, lost: int
) -> None:
    outs = [_memmap(tmp_path / f"{i}.npy", a.shape) for i, a in enumerate((X, CHANNEL, SPATIAL))]
    with pytest.raises(OSError, match="unplugged"):
        _gradient(Stopping(7), tuple(outs))
    outs[lost] = _memmap(tmp_path / f"{lost}.npy", outs[lost].shape)
    again = Stopping()
    _gradient(again, tuple(outs))
    assert again.read == TILES
    for own, right in zip(outs, dyn.ddf_backward(GRAD, X, CHANNEL, SPATIAL)):
        np.testing.assert_allclose(own, right, 1e-11, 1e-11)


def test_an_output_that_cannot_be_read_or_rounds_is_made_anew(tmp_path: Path) -> None:
    class Rounding:
        shape, dtype = X.shape, X.dtype
        array = np.zeros(SHAPE, np.float32)

        def __setitem__(self, index: Any, values: Any) -> None:
            self.array[index] = values

    class Readable(Rounding):
        def __getitem__(self, index: Any) -> np.ndarray:
            return self.array[index].astype(np.float64)

    for out in (Rounding(), Readable()):
        with pytest.raises(OSError, match="unplugged"):
            _apply(Stopping(7), out, journal=tmp_path / "journal")
        out.array[...] = 0
        _apply(Stopping(), out, journal=tmp_path / "journal")
        assert np.array_equal(out.array, dyn.ddf(X, CHANNEL, SPATIAL).astype(np.float32))


def _harmed(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes that were changed, lost, or put in; lines in another order."""
    lines, place, kind = content.splitlines(keepends=True), int(rng.integers(len(content))), rng.integers(6)
    if kind == 0:
        return content[:place] + rng.bytes(1) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[place:]
    if kind == 3:
        return content[:place] + rng.bytes(int(rng.integers(1, 40))) + content[place:]
    if kind == 4:
        return b"".join(lines[i] for i in rng.permutation(len(lines)))
    one, two = rng.integers(1, len(lines), 2)  # what a tile wrote is said of another one
    return content.replace(b'"tile": %d,' % (one - 1), b'"tile": %d,' % (two - 1))


@pytest.mark.parametrize("harmed", ["1.npy.tiles", "1.npy.tiles.sums.npz"])
def test_a_damaged_journal_is_refused_or_not_trusted(tmp_path: Path, harmed: str) -> None:
    """Drawn: whatever is left of it, no gradient is wrong."""
    arrays = X, CHANNEL, SPATIAL
    right, before, rng = dyn.ddf_backward(GRAD, *arrays), tmp_path / "before", RNG(7)
    before.mkdir()

    def outs(folder: Path, mode: Any) -> tuple[Any, ...]:
        for i, array in enumerate(arrays):
            if mode == "w+":
                np.save(folder / f"{i}.npy", np.full(array.shape, np.nan))
        x, channel, spatial = (np.load(folder / f"{i}.npy", mmap_mode="r+") for i in range(3))
        return channel, x, spatial

    def run(x: Any, folder: Path, mode: str) -> None:
        channel, grad_x, spatial = outs(folder, mode)
        _gradient(x, (grad_x, channel, spatial), journal=folder / "1.npy.tiles")

    with pytest.raises(OSError, match="unplugged"):
        run(Stopping(7), before, "w+")
    refused = 0
    for number in range(30):
        folder = tmp_path / str(number)
        shutil.copytree(before, folder)
        content = _harmed((folder / harmed).read_bytes(), rng)
        (folder / harmed).write_bytes(content)
        try:
            run(X, folder, "r+")
        except ValueError as error:
            assert "delete" in str(error) and "1.npy.tiles" in str(error), error
            refused += 1
            continue
        for i, wanted in enumerate(right):
            np.testing.assert_allclose(
                np.load(folder / f"{i}.npy"), wanted, 1e-11, 1e-11, err_msg=f"{number}"
            )
    assert 0 < refused < 30


def test_sums_that_are_older_than_the_journal_get_what_they_lack(tmp_path: Path) -> None:
    sums, outs = tmp_path / "j.sums.npz", (None, np.empty(CHANNEL.shape), None)
    for after in (3, 6):
        with pytest.raises(OSError, match="unplugged"):
            _gradient(Stopping(after), outs, journal=tmp_path / "j")
        if after == 3:
            shutil.copy(sums, tmp_path / "older")
    shutil.copy(tmp_path / "older", sums)
    _gradient(Stopping(), outs, journal=tmp_path / "j")
    np.testing.assert_allclose(outs[1], dyn.ddf_backward(GRAD, X, CHANNEL, SPATIAL)[1], 1e-11, 1e-11)


def test_two_calls_do_not_use_one_journal(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system knows of no locks on files")
    out, seen = _memmap(tmp_path / "out.npy", SHAPE), []

    def second() -> None:
        with pytest.raises(RuntimeError, match=r"tiles\.apply: .*out\.npy\.tiles is in use: another call"):
            _apply(X, np.load(tmp_path / "out.npy", mmap_mode="r+"))
        seen.append(len((tmp_path / "out.npy.tiles").read_text().splitlines()))

    with pytest.raises(OSError, match="unplugged"):
        _apply(Stopping(5, second), out)
    assert seen == [1 + 5]
    _apply(X, out)  # the first one has let it go
    assert out.tobytes() == dyn.ddf(X, CHANNEL, SPATIAL).tobytes()


def test_what_is_no_journal_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    for text in ("a line of somebody else\n", '{"tile": 3}\n', "[]\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"tiles\.apply: .*notes is no journal; delete it"):
            _apply(X, np.empty(SHAPE), journal=path)
        assert path.read_text() == text


def test_outputs_must_not_lie_where_inputs_do(tmp_path: Path) -> None:
    """Tiles would read of their neighbours what was written already."""
    both = _memmap(tmp_path / "a.npy", (2, *SHAPE))
    both[0] = X
    other = np.load(tmp_path / "a.npy", mmap_mode="r+")
    for x, out in ((both[0], both[0]), (both[0], other[0]), (plain := X.copy(), plain[:, ::1])):
        with pytest.raises(ValueError, match=r"tiles\.apply: out must not lie where x does"):
            _apply(x, out)
    _apply(both[0], other[1])  # the other half of the file
    assert other[1].tobytes() == dyn.ddf(X, CHANNEL, SPATIAL).tobytes()
    with pytest.raises(ValueError, match=r"the gradient of x must not lie where grad_output does"):
        tiles.gradient(dyn.ddf, (X, CHANNEL, SPATIAL), both[0], (other[0], None, None), TILE)
    with pytest.raises(
        ValueError, match=r"the gradient of arrays\[1\] must not lie where .* arrays\[0\] does"
    ):
        tiles.gradient(
            lambda x, y: x + y,
            (X, X),
            GRAD,
            (plain, plain),
            TILE,
            halo=(0, 0),
            backward=lambda *_, needs: None,
        )


def test_gradients_of_another_dtype_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"tiles\.gradient: outs must have the dtype of x, float64, got float32"
    ):
        _gradient(X, (np.empty(SHAPE, np.float32), None, None))
