"""Image data with everything that can be wrong: named by row and file, counted, and left out only if asked."""

from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.vision import encoded, noise, write_parquet

from lowland.trainers.data.images import collection
from lowland.trainers.data.images.data import open_images
from lowland.trainers.data.images.encoded import Files
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.recipe import ImageDataConfig

GOOD = [encoded(noise(i, 8, 8, 3)) for i in range(12)]
LABELS = [i % 3 for i in range(12)]


def data(path, **changes):
    """A data section over a file, of which a sixth is held out."""
    return ImageDataConfig.model_validate({"path": str(path), "held_out": 1 / 6, "threads": 2, **changes})


def spoiled(tmp_path):
    """Rows of every kind, six of them bad."""
    images, labels = list(GOOD), list(LABELS)
    images[1] = b"no image at all"
    images[2] = encoded(noise(2, 64, 64, 3), "JPEG")[:1500]
    images[3] = None
    images[4] = encoded(noise(4, 1, 1, 3))
    labels[5], labels[6] = None, 7
    images += [
        encoded(noise(20, 8, 8)),
        encoded(noise(21, 8, 8, 3), "JPEG", "CMYK"),
        encoded(np.full((8, 8), 0x1234, np.uint16)),
        encoded(noise(23, 8, 8, 4)),
    ]
    return write_parquet(tmp_path / "spoiled.parquet", images, [*labels, 0, 1, 2, 0])


MESSAGES = [
    (1, "corrupt image (no image format that Pillow knows)"),
    (3, "missing image"),
    (4, "image too small (1 x 1, data.min_side is 2)"),
    (5, "missing label"),
    (6, "label out of range (7; there are 3 classes)"),
]


def test_an_error_names_rows_and_files_and_counts_all(tmp_path):
    path = spoiled(tmp_path)
    with pytest.raises(DataError) as caught:
        open_images(data(path, size=8, classes=3))
    told = str(caught.value)
    assert "5 of 16 rows cannot be used" in told
    for row, text in MESSAGES:
        assert f"{path} row {row}: {text}" in told
    assert "data.bad_rows: skip" in told


def test_what_only_decoding_shows_is_an_error_too(tmp_path):
    images = list(GOOD)
    images[2] = encoded(noise(2, 64, 64, 3), "JPEG")[:1500]
    path = write_parquet(tmp_path / "cut.parquet", images, LABELS)
    with pytest.raises(DataError, match=r"cut.parquet row 2: corrupt image \(.*truncated"):
        open_images(data(path, size=8, cache="always"))
    streamed = open_images(data(path, size=8, cache="never", mean=[0.5] * 3, std=[0.2] * 3)).train
    (number,) = np.flatnonzero(streamed.rows == 2)
    with pytest.raises(DataError, match=r"row 2: corrupt image .*data.cache: always"):
        streamed.pixels(np.array([number]))


def test_skipped_rows_are_counted_by_reason_and_the_others_are_used(tmp_path):
    found = open_images(data(spoiled(tmp_path), size=8, classes=3, bad_rows="skip"))
    assert found.metrics() == {
        "data/train_images": 8.0,
        "data/held_out_images": 2.0,
        "data/empty_classes": 0.0,
        "data/path/rows": 16.0,
        "data/path/bad_rows": 6.0,
        "data/path/bad/corrupt_image": 2.0,
        "data/path/bad/image_too_small": 1.0,
        "data/path/bad/label_out_of_range": 1.0,
        "data/path/bad/missing_image": 1.0,
        "data/path/bad/missing_label": 1.0,
        "data/path/converted/grey": 1.0,
        "data/path/converted/CMYK": 1.0,
        "data/path/converted/16_bits": 1.0,
        "data/path/converted/alpha": 1.0,
        "data/path/resized": 1.0,
    }
    used = sorted([*found.train.rows.tolist(), *found.held_out.rows.tolist()])
    assert used == [0, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    left_out, converted = found.lines()
    assert "6 of 16 rows left out" in left_out
    assert "row 5: missing label" in left_out
    assert [text.split(": ", 1)[1] for text in found.bad_rows()][-1].startswith("label out of range")
    assert converted.endswith("1 16 bits, 1 CMYK, 1 alpha, 1 grey")


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_other_colour_modes_are_left_out_if_asked(tmp_path, policy):
    images = [*GOOD, encoded(noise(20, 8, 8))]
    path = write_parquet(tmp_path / "grey.parquet", images, [*LABELS, 0])
    if policy == "error":
        with pytest.raises(DataError, match=r"row 12: colour mode \(grey, wanted colour; data.other_modes: convert"):
            open_images(data(path, other_modes="error"))
    else:
        found = open_images(data(path, other_modes="skip", bad_rows="skip"))
        assert 12 not in [*found.train.rows, *found.held_out.rows]
        assert found.metrics()["data/path/bad/colour_mode"] == 1


def test_sixteen_bits_keep_their_upper_eight_and_nothing_is_clipped(tmp_path):
    values = np.array([[0x0012, 0x1234], [0x80FF, 0xFFFF]], np.uint16).repeat(4, 0).repeat(4, 1)
    images = [encoded(values)] * 12
    path = write_parquet(tmp_path / "deep.parquet", images, LABELS)
    pixels = open_images(data(path, channels=1)).train.pixels(np.array([0]))
    assert pixels[0, 0, ::4, ::4].tolist() == [[0x00, 0x12], [0x80, 0xFF]]


@pytest.mark.parametrize("policy", ["skip", "error"])
def test_an_empty_class_is_named(tmp_path, policy):
    path = write_parquet(tmp_path / "a.parquet", GOOD, LABELS)
    if policy == "error":
        with pytest.raises(DataError, match="no training image of classes 3, 4"):
            open_images(data(path, classes=5))
    else:
        found = open_images(data(path, classes=5, bad_rows="skip"))
        assert found.metrics()["data/empty_classes"] == 2
        assert "no training image of classes 3, 4" in found.lines()[-1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5] * 12, "`label` holds double; it must hold whole numbers or names"),
        ([0] * 12, "1 classes; a classifier needs at least two"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    with pytest.raises(DataError, match=message):
        open_images(data(write_parquet(tmp_path / "a.parquet", GOOD, labels)))


def test_columns_that_are_missing_or_of_another_type(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", GOOD, LABELS, text=["x"] * 12)
    with pytest.raises(DataError, match="no column `picture`; its columns: image, label, text"):
        open_images(data(path, image_column="picture"))
    with pytest.raises(DataError, match="the column `text` holds string; it must hold encoded images"):
        open_images(data(path, image_column="text"))
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match="not a Parquet file"):
        open_images(data(tmp_path / "b.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither Parquet files nor a subfolder of images"):
        open_images(data(tmp_path / "empty"))


def test_images_may_be_plain_bytes(tmp_path):
    structs = pq.read_table(write_parquet(tmp_path / "structs.parquet", GOOD, LABELS))
    pq.write_table(structs.set_column(0, "image", [GOOD]), tmp_path / "plain.parquet")
    expected, found = (open_images(data(tmp_path / f"{name}.parquet")).train for name in ("structs", "plain"))
    assert torch.equal(found.pixels(np.arange(len(found))), expected.pixels(np.arange(len(expected))))


def test_images_of_several_sizes_need_one_given(tmp_path):
    images = [*GOOD[:-1], encoded(noise(1, 9, 7, 3))]
    path = write_parquet(tmp_path / "a.parquet", images, LABELS)
    with pytest.raises(RecipeError, match=r"data.size: give the side .*; the images have 7 x 9, 8 x 8 pixels"):
        open_images(data(path))
    assert open_images(data(path, size=6)).train.pixels(np.arange(3)).shape == (3, 3, 6, 6)


def folders(root: Path, **counts: int) -> Path:
    """A folder of images for each class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(noise(index, 8, 8, 3)).save(root / name / f"{index}.png")
    return root


def test_folders_are_classes_and_other_files_are_passed_over(tmp_path):
    train, held_out = folders(tmp_path / "train", cat=3, dog=4), folders(tmp_path / "test", dog=2)
    (train / "cat" / "notes.txt").write_text("x")
    found = open_images(data(train, held_out_path=str(held_out)))
    assert found.classes.names == ("cat", "dog")
    assert (found.train.labels.tolist(), found.held_out.labels.tolist()) == ([0] * 3 + [1] * 4, [1, 1])
    assert found.train.place(6).endswith("train/dog/3.png (row 6)")
    (train / "cat" / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"train/cat/1.png \(row 1\): corrupt image"):
        open_images(data(train, held_out_path=str(held_out)))
    with pytest.raises(DataError, match=r"classes that .*train does not have: bird"):
        open_images(data(train, held_out_path=str(folders(tmp_path / "other", bird=1, cat=1))))


def test_of_image_files_only_headers_are_read_at_the_start(tmp_path, monkeypatch):
    """On a remote store too; the pixels are read when they are asked for."""
    memory, ends, whole = fsspec.filesystem("memory"), list[int](), list[int]()
    image, plain = encoded(noise(0, 256, 256, 3)), collection.header
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        memory.pipe(f"/{tmp_path.name}/{name}", image)

    def header(stream):
        found = plain(stream)
        ends.append(stream.raw.tell())
        return found

    read = Files.read
    monkeypatch.setattr(collection, "header", header)
    monkeypatch.setattr(Files, "read", lambda files, row: (whole.append(row), read(files, row))[1])
    streamed = {"cache": "never", "mean": [0.5] * 3, "std": [0.2] * 3, "held_out": 0.25}
    found = open_images(data(f"memory://{tmp_path.name}", **streamed))
    assert found.size == 256
    assert (len(ends), whole) == (4, [])
    assert max(ends) < len(image) / 8
    assert torch.equal(found.train.pixels(np.array([0]))[0], torch.from_numpy(noise(0, 256, 256, 3)).permute(2, 0, 1))
    assert whole == found.train.rows[:1].tolist()


@pytest.mark.parametrize(
    ("labels", "held_out", "expected"),
    [
        (["cat", "dog", "fox"] * 4, ["dog", "fox"], [1, 2]),
        (list(range(12)), [str(i) for i in range(12)], [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
    ids=["names", "numbers"],
)
def test_held_out_folders_are_classes_of_parquet_files_by_name(tmp_path, labels, held_out, expected):
    path = write_parquet(tmp_path / "a.parquet", GOOD, labels)
    found = open_images(data(path, held_out_path=str(folders(tmp_path / "test", **dict.fromkeys(held_out, 1)))))
    assert found.held_out.labels.tolist() == expected
    other = folders(tmp_path / "other", bird=1, **{held_out[0]: 1})
    with pytest.raises(DataError, match=r"other: classes that .*a.parquet does not have: bird"):
        open_images(data(path, held_out_path=str(other)))


def test_names_and_groups_are_numbered_over_both_sets(tmp_path):
    names = ["ant", "bee", "cow"]
    labels = [names[i % 3] for i in range(12)]
    train = write_parquet(tmp_path / "a.parquet", GOOD, labels, place=[5, 7] * 6)
    held_out = write_parquet(tmp_path / "b.parquet", GOOD, labels, place=[9, 5] * 6)
    found = open_images(data(train, held_out_path=str(held_out), group_column="place"))
    assert found.classes.names == tuple(names)
    assert found.groups is not None
    assert found.groups.names == ("5", "7", "9")
    assert found.train.groups.tolist() == [0, 1] * 6
    assert found.held_out.groups.tolist() == [2, 0] * 6


def test_the_embedded_digits():
    found = open_images(ImageDataConfig(channels=1, threads=1))
    assert (len(found.train), len(found.held_out), found.size, len(found.classes)) == (1617, 180, 8, 10)
    assert set(found.train.rows).isdisjoint(found.held_out.rows)
    pixels = found.train.pixels(np.arange(1617))
    assert found.mean[0] == pytest.approx(float(pixels.double().mean()) / 255)
    assert found.std[0] == pytest.approx(float(pixels.double().std(correction=0)) / 255)
    assert found.lines() == []
