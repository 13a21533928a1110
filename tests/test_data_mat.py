"""Data sets whose labels are in MATLAB and HDF5 files: SBD, ImageNet's validation, NYU Depth; and ADE20K."""

import io
import struct
import zlib

import numpy as np
import pytest
from _image_files import png_bytes, write
from scipy.io import savemat

from autodiff import data
from autodiff.data import augment
from autodiff.data._mat import read_mat
from autodiff.files import FileError

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")


def jpeg(path, height, width):
    file = io.BytesIO()
    image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "JPEG")
    return write(path, file.getvalue())


def mat(path, **variables):
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    return write(path, file.getvalue())


def test_ade20k(tmp_path):
    labels = np.array([[0, 1, 150], [7, 7, 0]])[..., None]
    for split in ("training", "validation"):
        jpeg(tmp_path / f"images/{split}/ADE_1.jpg", 2, 3)
        write(tmp_path / f"annotations/{split}/ADE_1.png", png_bytes(labels))
    samples = data.ADE20K(tmp_path, "validation")
    assert samples.names == ["ADE_1"] and samples[0]["labels"].tolist() == labels[..., 0].tolist()
    path = write(tmp_path / "annotations/validation/ADE_1.png", png_bytes(labels + 1))
    with pytest.raises(FileError, match="has label 151, which is no class") as caught:
        samples[0]
    assert str(caught.value).startswith(f"{path}: ")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"ADE_1\.png"):
        samples[0]
    with pytest.raises(ValueError, match="split must be one of training, validation"):
        data.ADE20K(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="images/training: there is no such folder"):
        data.ADE20K(tmp_path / "images")


def test_sbd(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    jpeg(tmp_path / "img/2008_1.jpg", 3, 4)
    path = mat(tmp_path / "cls/2008_1.mat", GTcls={"Segmentation": labels, "CategoriesPresent": np.arange(3)})
    write(tmp_path / "train.txt", b"2008_1\n")
    samples = data.SBDSegmentation(tmp_path)
    assert samples[0]["labels"].dtype == np.uint8 and samples[0]["labels"].flags.c_contiguous
    np.testing.assert_array_equal(samples[0]["labels"], labels)
    good = path.read_bytes()
    for content, message in [
        (b"", "is no MATLAB file"),
        (b"\x89HDF\r\n\x1a\n", "is no MATLAB file"),
        (good[:130], "is damaged"),
        (good[:-20], "is damaged"),
        (mat(path, GTinst={"Segmentation": labels}).read_bytes(), "has no variable 'GTcls'"),
        (mat(path, GTcls={"Boundaries": labels}).read_bytes(), "has no field 'Segmentation'"),
        (mat(path, GTcls=labels).read_bytes(), "has no field 'Segmentation'"),
        (mat(path, GTcls={"Segmentation": labels.T}).read_bytes(), r"labels of shape \(4, 3\)"),
        (mat(path, GTcls={"Segmentation": labels + 15}).read_bytes(), "has label 21, which is no class"),
        (mat(path, GTcls={"Segmentation": labels * 1.5}).read_bytes(), "float64"),
    ]:
        path.write_bytes(content)
        with pytest.raises(FileError, match=message) as caught:
            samples[0]
        assert str(caught.value).startswith(f"{path}: ")


def element(kind, content):
    """An element of a MATLAB file."""
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind, name, content):
    """A 1 x 1 array of a class of MATLAB's."""
    about = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name)
    return element(14, about + content)


def nested(depth):
    """A number in that many cells."""
    found = matrix(6, b"", element(9, struct.pack("<d", 1.5)))
    for _ in range(depth):
        found = matrix(1, b"", found)
    return found


def mat_bytes(*elements, version=0x0100):
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H2s", version, b"IM") + b"".join(elements)


def test_hostile_mat_files_end_in_an_error(tmp_path):
    """SciPy reads cells in cells by calls in calls: some thousand end the process."""
    path = tmp_path / "a.mat"
    value = read_mat(write(path, mat_bytes(matrix(1, b"a", nested(20)))), "a")
    for _ in range(21):
        value = value[0, 0]
    assert value.tolist() == [[1.5]]
    packed = zlib.compress(matrix(1, b"a", nested(1000)))
    bomb = zlib.compress(bytes(2**26 + 2**10), 9)
    for content, message in (
        (mat_bytes(matrix(1, b"a", nested(1000))), "nested more than 32 deep"),
        (mat_bytes(element(15, packed)), "nested more than 32 deep"),
        (mat_bytes(element(15, bomb)), "would unpack to more than 67,108,864 bytes"),
        (mat_bytes(element(14, bytes(2))), "is damaged or cut short"),
        (mat_bytes(struct.pack("<II", 14, 2**31)), "is damaged or cut short"),
        (mat_bytes(version=0x0200), "is of version 7.3, which is HDF5"),
        (b"MATLAB 5.0".ljust(200), "it has no byte order"),
    ):
        with pytest.raises(FileError, match=message) as caught:
            read_mat(write(path, content), "a")
        assert str(caught.value).startswith(f"{path}: ")


def test_damaged_mat_files_are_file_errors(tmp_path, rng):
    """Bytes changed at random: read, or refused, and nothing else."""
    path = mat(tmp_path / "a.mat", GTcls={"Segmentation": np.zeros((3, 4), np.uint8)})
    good, refused = path.read_bytes(), 0
    for _ in range(200):
        content = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            data._mat.read_mat(path, "GTcls")
        except FileError:
            refused += 1
    assert refused > 100


SYNSETS = [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (4, "n00", 3)]  # the last is a group of the others


def synsets(entries):
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    return np.array(entries, dtype=kinds).reshape(-1, 1)


def test_imagenet_validation(tmp_path):
    for number in (1, 2, 3):
        jpeg(tmp_path / f"val/ILSVRC2012_val_0000000{number}.JPEG", 4, 5)
    folder = tmp_path / "devkit/data"
    mat(folder / "meta.mat", synsets=synsets(SYNSETS))
    listed = write(folder / "ILSVRC2012_validation_ground_truth.txt", b"3\n1\n2\n")
    samples = data.ImageNetValidation(tmp_path / "val", tmp_path / "devkit")
    assert samples.classes == ["n01", "n02", "n03"]
    assert samples.labels.tolist() == [1, 2, 0]  # n02, n03, n01
    assert samples[1]["label"] == 2 and samples[1]["image"].shape == (3, 4, 5)
    assert samples.names[0] == "ILSVRC2012_val_00000001.JPEG"
    for content, message in [
        (b"3\n1\n", "has 2 lines, but there are 3 images"),
        (b"3\n1\n4\n", "has the line '4', which is no class"),
        (b"3\n1\nx\n", "has the line 'x', which is no class"),
        (b"3\n1\n\xff\n", "is no text"),
    ]:
        listed.write_bytes(content)
        with pytest.raises(FileError, match=message) as caught:
            data.ImageNetValidation(tmp_path / "val", tmp_path / "devkit")
        assert str(caught.value).startswith(f"{listed}: ")
    mat(folder / "meta.mat", synsets=synsets([*SYNSETS, (5, "n01", 0)]))
    with pytest.raises(FileError, match=r"meta\.mat: gives a name twice"):
        data.ImageNetValidation(tmp_path / "val", tmp_path / "devkit")


@pytest.fixture
def nyu(tmp_path, rng):
    """As MATLAB writes it: the axes are turned around."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra: data)")
    images = rng.integers(0, 256, (3, 3, 640, 480)).astype(np.uint8)
    depths = rng.random((3, 640, 480)).astype(np.float32)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["images"], file["depths"] = images, depths
        file["labels"] = (depths * 800).astype(np.uint16)
    mat(tmp_path / "splits.mat", trainNdxs=np.array([[1], [3]]), testNdxs=np.array([[2]]))
    return path, images, depths


def test_nyu_depth(nyu):
    path, images, depths = nyu
    samples = data.NYUDepth(path)
    assert samples.names == ["0", "2"] and len(data.NYUDepth(path, "all")) == 3
    sample = samples[1]
    assert sample["image"].shape == (3, 480, 640) and sample["depth"].dtype == np.float32
    assert sample["image"][1, 5, 7] == images[2, 1, 7, 5] and sample["depth"][5, 7] == depths[2, 7, 5]
    assert sample["labels"][5, 7] == np.uint16(depths[2, 7, 5] * 800)
    (only,) = data.NYUDepth(path, "test", splits=path.parent / "splits.mat")
    np.testing.assert_array_equal(only["depth"], depths[1].T)
    mirrored = augment.mirror(sample)
    np.testing.assert_array_equal(mirrored["depth"], sample["depth"][:, ::-1])


def test_damaged_nyu_files_are_refused_by_name(nyu):
    import h5py

    path, *_ = nyu
    splits = mat(path.parent / "splits.mat", trainNdxs=np.array([[4]]))
    with pytest.raises(FileError, match=r"splits\.mat: has numbers of images that are not 1 to 3"):
        data.NYUDepth(path)
    with pytest.raises(FileError, match=r"splits\.mat: has no variable 'testNdxs'"):
        data.NYUDepth(path, "test")
    with pytest.raises(ValueError, match="split must be one of train, test, all"):
        data.NYUDepth(path, "val")
    with h5py.File(path, "r+") as file:
        del file["depths"]
        file["depths"] = np.zeros((2, 640, 480), np.float32)
    with pytest.raises(FileError, match="has not as many images as depths and labels"):
        data.NYUDepth(path, "all")
    with h5py.File(path, "r+") as file:
        del file["depths"]
    with pytest.raises(FileError, match=r"has no depths of shape \(N, 640, 480\)"):
        data.NYUDepth(path, "all")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(FileError, match=f"^{path}: is no HDF5 file, or damaged"):
        data.NYUDepth(path, "all")
    path.write_bytes(splits.read_bytes())
    with pytest.raises(FileError, match="is no HDF5 file, or damaged"):
        data.NYUDepth(path, "all")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        data.NYUDepth(path, "all")
