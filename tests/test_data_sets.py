"""Data sets, on miniatures written as they were published; what is mixed up is refused by name."""

import io

import numpy as np
import pytest
from _image_files import flo_bytes, kitti_bytes, png_bytes, ppm_bytes, write

from autodiff import data, metrics
from autodiff.files import FileError

image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")


def jpeg(path, height, width, colour=(10, 200, 30)):
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[...] = colour
    file = io.BytesIO()
    image.fromarray(pixels).save(file, "JPEG", quality=95)
    return write(path, file.getvalue())


# ---- PASCAL VOC

ANNOTATION = """<annotation>
  <folder>VOC2012</folder><filename>{name}.jpg</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  {objects}
</annotation>
"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
  <bndbox><xmax>{3}</xmax><xmin>{1}</xmin><ymax>{4}</ymax><ymin>{2}</ymin></bndbox>
  <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>"""


def annotation(*objects, name="2007_000001", width=30, height=20):
    boxes = "".join(OBJECT.format(None, *box, name=kind, difficult=hard) for kind, box, hard in objects)
    return ANNOTATION.format(name=name, width=width, height=height, objects=boxes).encode()


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    labels = np.zeros((20, 30, 1), np.uint8)
    labels[5:10], labels[10] = 15, 255
    for name in ("2007_000001", "2007_000002"):
        jpeg(root / f"JPEGImages/{name}.jpg", 20, 30)
        write(root / f"SegmentationClass/{name}.png", png_bytes(labels, 8, 3))
        objects = [("person", (1, 1, 30, 20), 0), ("dog", (3, 4, 5.5, 6), 1)]
        write(root / f"Annotations/{name}.xml", annotation(*objects, name=name))
    write(root / "ImageSets/Segmentation/train.txt", b"2007_000001\n2007_000002\n")
    write(root / "ImageSets/Segmentation/val.txt", b"2007_000002\r\n\r\n")
    write(root / "ImageSets/Main/train.txt", b"2007_000001\n")
    write(root / "ImageSets/Main/person_train.txt", b"2007_000001 -1\n2007_000002  1\n")
    return root


def test_voc_segmentation(voc):
    samples = data.VOCSegmentation(voc)
    assert len(samples) == 2 and samples.names == ["2007_000001", "2007_000002"]
    sample = samples[-1]
    assert sample["image"].shape == (3, 20, 30) and sample["image"].dtype == np.uint8
    assert abs(sample["image"][:, 0, 0].astype(int) - [10, 200, 30]).max() < 4
    assert np.unique(sample["labels"]).tolist() == [0, 15, 255]
    assert (sample["labels"][5:10] == 15).all() and data.VOC_CLASSES[15 - 1] == "person"
    assert len(data.VOCSegmentation(voc, "val")) == 1
    assert len(samples[1:]) == 1 and samples[:1].names == ["2007_000001"]
    assert len(list(samples)) == 2
    with pytest.raises(IndexError):
        samples[2]
    assert metrics.mean_iou(sample["labels"].clip(0, 20), sample["labels"], 21, ignore=255) == 1


def test_voc_detection(voc):
    samples = data.VOCDetection(voc)
    sample = samples[0]
    assert sample["boxes"].tolist() == [[0, 0, 29, 19], [2, 3, 4.5, 5]]
    assert [data.VOC_CLASSES[label] for label in sample["box_labels"]] == ["person", "dog"]
    assert sample["difficult"].tolist() == [False, True]
    assert sample["boxes"].dtype == np.float32 and sample["box_labels"].dtype == np.int64
    truth = metrics.Truth(sample["boxes"], sample["box_labels"], sample["difficult"])
    found = metrics.Detections(sample["boxes"], [0.5, 0.6], sample["box_labels"])
    assert metrics.mean_average_precision([found], [truth], 20) == 1
    assert data.VOCDetection(voc, "person_train").names == ["2007_000001", "2007_000002"]
    write(voc / "Annotations/2007_000001.xml", annotation())
    assert samples[0]["boxes"].shape == (0, 4)


def test_mixed_up_voc_folders_are_refused_by_name(voc):
    label = voc / "SegmentationClass/2007_000001.png"
    samples = data.VOCSegmentation(voc)
    for content, message in [
        (
            png_bytes(np.zeros((30, 20, 1)), 8, 3),
            r"labels of shape \(30, 20\), uint8, for an image of \(20, 30\)",
        ),
        (png_bytes(np.full((20, 30, 1), 21), 8, 3), "has label 21, which is no class"),
        (png_bytes(np.zeros((20, 30, 3)), 8, 2), r"labels of shape \(3, 20, 30\)"),
        (png_bytes(np.zeros((20, 30, 1)), 16, 0), "uint16"),
        (jpeg(voc / "x.jpg", 20, 30).read_bytes(), "is no PNG file"),
    ]:
        label.write_bytes(content)
        with pytest.raises(FileError, match=message) as caught:
            samples[0]
        assert str(caught.value).startswith(f"{label}: ")
    label.unlink()
    with pytest.raises(FileNotFoundError, match=r"2007_000001.png"):
        samples[0]
    with pytest.raises(FileNotFoundError, match=r"nothing.txt"):
        data.VOCSegmentation(voc, "nothing")
    with pytest.raises(FileNotFoundError, match="JPEGImages: there is no such folder"):
        data.VOCSegmentation(voc.parent)


HOSTILE = b'<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotation><object>&c;</object></annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no XML"),
        (annotation()[:-20], "is no XML"),
        (b"<?xml version='1.0' encoding='nonsense'?>" + annotation(), "is no XML: unknown encoding"),
        (b"<html/>", "is no annotation of PASCAL VOC, but a 'html'"),
        (HOSTILE, "has XML declarations, which no annotation needs"),
        (annotation(("unicorn", (1, 1, 2, 2), 0)), "an object 'unicorn', which is no class"),
        (annotation(("dog", (5, 1, 2, 2), 0)), "an object 'dog' whose box ends before it begins"),
        (annotation(("dog", ("x", 1, 2, 2), 0)), "has no number 'xmin'"),
        (annotation(("dog", ("nan", 1, 2, 2), 0)), "the number nan as 'xmin'"),
        (annotation(("dog", (1, 1, "1e30", 2), 0)), r"the number 1e\+30 as 'xmax'"),
        (annotation(("dog", (1, 1, 2, 2), 0)).replace(b"bndbox", b"box"), "an object 'dog' without a box"),
        (annotation(width=20, height=30), r"is of an image of \(30.0, 20.0\), but the image has \(20, 30\)"),
    ],
)
def test_damaged_annotations_are_refused_by_name(voc, content, message):
    path = write(voc / "Annotations/2007_000001.xml", content)
    with pytest.raises(FileError, match=message) as caught:
        data.VOCDetection(voc)[0]
    assert str(caught.value).startswith(f"{path}: ")


# ---- classification


def cifar(rng, count):
    labels = rng.integers(0, 10, count).astype(np.uint8)
    images = rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    return (
        labels,
        images,
        b"".join(bytes([label]) + pixels.tobytes() for label, pixels in zip(labels, images)),
    )


def test_cifar10(tmp_path, rng):
    parts = [cifar(rng, 4) for _ in range(6)]
    for number, (*_, content) in enumerate(parts[:5], 1):
        write(tmp_path / f"data_batch_{number}.bin", content)
    write(tmp_path / "test_batch.bin", parts[5][2])
    for train, chosen in ((True, parts[:5]), (False, parts[5:])):
        samples = data.CIFAR10(tmp_path, train=train)
        np.testing.assert_array_equal(samples.labels, np.concatenate([part[0] for part in chosen]))
        np.testing.assert_array_equal(samples.images, np.concatenate([part[1] for part in chosen]))
        sample = samples[3]
        np.testing.assert_array_equal(sample["image"], chosen[0][1][3])
        assert sample["label"] == chosen[0][0][3] and samples.classes[3] == "cat"


def test_other_files_are_no_cifar10(tmp_path, rng):
    for content, message in [
        (b"", "has 0 bytes: no file of CIFAR-10"),
        (bytes(3072), "has 3,072 bytes: no file of CIFAR-10, whose images take 3,073 each"),
        (bytes([10]) + bytes(3072), "has label 10: no file of CIFAR-10"),
    ]:
        path = write(tmp_path / "data_batch_1.bin", content)
        with pytest.raises(FileError, match=message) as caught:
            data.CIFAR10(tmp_path)
        assert str(caught.value).startswith(f"{path}: ")
    path.write_bytes(cifar(rng, 1)[2])
    with pytest.raises(FileNotFoundError, match=r"data_batch_2.bin"):
        data.CIFAR10(tmp_path)


def test_image_folders(tmp_path):
    for name, colour in (("n02", (0, 250, 0)), ("n01", (250, 0, 0))):
        for index in (10, 2):
            jpeg(tmp_path / name / f"{name}_{index}.JPEG", 8, 9, colour)
    write(tmp_path / "n01" / "notes.txt", b"no image")
    write(tmp_path / "list.txt", b"no class")
    samples = data.ImageFolder(tmp_path)
    assert samples.classes == ["n01", "n02"] and samples.labels.tolist() == [0, 0, 1, 1]
    assert samples.names == ["n01/n01_10.JPEG", "n01/n01_2.JPEG", "n02/n02_10.JPEG", "n02/n02_2.JPEG"]
    assert samples[0]["label"] == 0 and samples[0]["image"][0, 0, 0] > 200
    assert samples[3]["label"] == 1 and samples[3]["image"][1, 0, 0] > 200
    write(tmp_path / "n01/n01_2.JPEG", b"damaged")
    with pytest.raises(FileError, match=r"n01_2.JPEG: is no image"):
        samples[1]
    (tmp_path / "n03").mkdir()
    with pytest.raises(FileNotFoundError, match="n03: has no images"):
        data.ImageFolder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: has no folders"):
        data.ImageFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        data.ImageFolder(tmp_path / "nowhere")


# ---- flow


@pytest.fixture
def chairs(tmp_path, rng):
    root = tmp_path / "FlyingChairs_release"
    for number in range(1, 4):
        flow = rng.standard_normal((2, 6, 8)).astype(np.float32)
        flow[0, 0, 0] = number
        write(root / f"data/{number:05d}_flow.flo", flo_bytes(flow))
        for which in (1, 2):
            write(
                root / f"data/{number:05d}_img{which}.ppm",
                ppm_bytes(np.full((3, 6, 8), 10 * number + which, np.uint8)),
            )
    write(root / "FlyingChairs_train_val.txt", b"1\n2\n1\n")
    return root


def test_flying_chairs(chairs):
    assert data.FlyingChairs(chairs).names == ["00001", "00003"]
    assert data.FlyingChairs(chairs, "val").names == ["00002"]
    assert len(data.FlyingChairs(chairs, "all")) == 3
    sample = data.FlyingChairs(chairs)[1]
    assert sample["flow"][0, 0, 0] == 3 and sample["flow"].shape == (2, 6, 8)
    assert (sample["image"] == 31).all() and (sample["second"] == 32).all()
    listed = chairs / "FlyingChairs_train_val.txt"
    listed.rename(chairs.parent / listed.name)
    assert len(data.FlyingChairs(chairs)) == 2
    other = write(chairs.parent / "mine.txt", b"2\n2\n2\n")
    assert len(data.FlyingChairs(chairs, "val", split=other)) == 3


def test_mixed_up_chairs_are_refused_by_name(chairs):
    samples = data.FlyingChairs(chairs)
    path = write(chairs / "data/00001_img2.ppm", ppm_bytes(np.zeros((3, 8, 6), np.uint8)))
    with pytest.raises(
        FileError, match=r"00001_img2.ppm: has \(8, 6\) pixels, but 00001_img1.ppm has \(6, 8\)"
    ):
        samples[0]
    path.write_bytes((chairs / "data/00001_flow.flo").read_bytes())
    with pytest.raises(FileError, match=r"00001_img2.ppm: is no image"):
        samples[0]
    write(chairs / "data/00003_flow.flo", flo_bytes(np.zeros((2, 8, 6))))
    with pytest.raises(FileError, match=r"00003_flow.flo: has \(8, 6\) pixels"):
        samples[1]
    listed = write(chairs / "FlyingChairs_train_val.txt", b"1\n2\n")
    with pytest.raises(FileError, match=r"FlyingChairs_train_val.txt: should have 3 lines of 1 or 2"):
        data.FlyingChairs(chairs)
    listed.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"FlyingChairs_train_val.txt: is not there; give it as split"
    ):
        data.FlyingChairs(chairs)
    with pytest.raises(ValueError, match="part must be one of train, val, all, got 'test'"):
        data.FlyingChairs(chairs, "test")
    with pytest.raises(FileNotFoundError, match="data: there is no such folder"):
        data.FlyingChairs(chairs.parent)


def test_sintel(tmp_path, rng):
    flow = rng.standard_normal((2, 5, 7)).astype(np.float32)
    for scene in ("market_2", "alley_1"):
        for number in (1, 2, 3):
            frame = png_bytes(np.full((5, 7, 3), number), 8, 2)
            write(tmp_path / f"training/clean/{scene}/frame_{number:04d}.png", frame)
        for number in (1, 2):
            write(tmp_path / f"training/flow/{scene}/frame_{number:04d}.flo", flo_bytes(flow))
    samples = data.Sintel(tmp_path)
    assert samples.names == [
        f"{scene}/frame_000{number}" for scene in ("alley_1", "market_2") for number in (1, 2)
    ]
    sample = samples[1]
    assert (sample["image"] == 2).all() and (sample["second"] == 3).all() and sample["valid"].all()
    np.testing.assert_array_equal(sample["flow"], flow)
    unknown = np.zeros((5, 7, 1))
    unknown[0, 1] = 255
    mask = write(tmp_path / "training/invalid/alley_1/frame_0002.png", png_bytes(unknown))
    assert np.argwhere(~samples[1]["valid"]).tolist() == [[0, 1]]
    mask.write_bytes(png_bytes(unknown[1:]))
    with pytest.raises(FileError, match=r"frame_0002.png: has \(4, 7\) pixels, but the flow has \(5, 7\)"):
        samples[1]
    with pytest.raises(FileNotFoundError, match="final: there is no such folder"):
        data.Sintel(tmp_path, "final")
    with pytest.raises(ValueError, match="rendering must be one of clean, final"):
        data.Sintel(tmp_path, "albedo")


@pytest.mark.parametrize("folder", ["image_2", "colored_0"])
def test_kitti(tmp_path, rng, folder):
    flow = np.rint(rng.uniform(-9, 9, (2, 5, 7)) * 64) / 64
    valid = rng.random((5, 7)) < 0.5
    for kind, known in (("flow_occ", valid), ("flow_noc", valid & False)):
        write(tmp_path / f"training/{kind}/000007_10.png", kitti_bytes(flow, known))
    for number in (10, 11):
        write(
            tmp_path / f"training/{folder}/000007_{number}.png", png_bytes(np.full((5, 7, 3), number), 8, 2)
        )
    (sample,) = data.KITTIFlow(tmp_path)
    np.testing.assert_array_equal(sample["valid"], valid)
    np.testing.assert_array_equal(sample["flow"], np.where(valid, flow, 0))
    assert (sample["image"] == 10).all() and (sample["second"] == 11).all()
    assert metrics.end_point_error(sample["flow"], np.where(valid, flow, np.nan), sample["valid"]) == 0
    assert not data.KITTIFlow(tmp_path, occluded=False)[0]["valid"].any()
    path = write(tmp_path / "training/flow_occ/000007_10.png", png_bytes(np.zeros((5, 7, 3)), 8, 2))
    with pytest.raises(FileError, match="is no flow of KITTI's") as caught:
        data.KITTIFlow(tmp_path)[0]
    assert str(caught.value).startswith(f"{path}: ")
