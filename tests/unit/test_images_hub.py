"""Data sets of the hub: found by their cards or names, fetched once, read offline, and refused with the way out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from support.hub import serving
from support.vision import encoded, noise, write_parquet

from lowland.platform.hub_data import require_settled, with_commit
from lowland.platform.recipe import load_recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import as_text
from lowland.trainers.data.images.hub import _told
from lowland.trainers.data.images.hub_tables import incomplete, split_files, tables
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.recipe import is_hub_id


@pytest.mark.parametrize(
    ("paths", "card", "expected"),
    [
        (["README.md", "data/a.txt"], {}, {}),
        (
            [f"{name}.parquet" for name in ("a/train-00000-of-00002", "a/train-00001-of-00002-0f", "f-00000-of-00001")],
            {},
            {"default": {"f": 1, "train": 2}},
        ),
        (["training.parquet", "x/val/1.parquet"], {}, {"default": {"train": 1, "validation": 1}}),
        (["a.parquet", "b.parquet"], {}, {"default": {"train": 2}}),
        (["a/train/0000.parquet", "a/train/0001.parquet", "b/x/0000.parquet"], {}, {"a": {"train": 2}, "b": {"x": 1}}),
        (
            ["a/train-1.parquet", "a/more/train-2.parquet", "b/eval.parquet"],
            {
                "configs": [
                    {"config_name": "a", "data_files": [{"split": "train", "path": ["a/train-*", "a/**/train-2*"]}]},
                    {"config_name": "b", "data_dir": "b"},
                    {"config_name": "c", "data_files": "c/*.jpg"},
                    {"config_name": "d", "data_dir": "a", "data_files": {"small": "train-*"}},
                ]
            },
            {"a": {"train": 2}, "b": {"test": 1}, "d": {"small": 1}},
        ),
    ],
)  # fmt: skip
def test_the_card_or_else_names_say_which_files_are_which_split(paths, card, expected):
    found = tables(paths, card)
    assert {
        config: {split: len(files) for split, files in splits.items()} for config, splits in found.items()
    } == expected


def test_a_configuration_is_asked_for_where_none_is_the_default():
    paths = ["fine/train/0000.parquet", "coarse/train/0000.parquet"]
    found = tables(paths, {})
    assert split_files(found, {}, config="fine", split="train", field="f") == (paths[0],)
    with pytest.raises(DataError, match=r"set data.hub.config to one of coarse, fine"):
        split_files(found, {}, config=None, split="train", field="f")
    card = {"configs": [{"config_name": "fine", "default": True}]}
    assert split_files(found, card, config=None, split="train", field="f") == (paths[0],)
    with pytest.raises(DataError, match=r"data.hub.config = gross: no such configuration .* coarse, fine"):
        split_files(found, {}, config="gross", split="train", field="f")
    with pytest.raises(DataError, match=r"f = test: no such split of configuration fine; there are train"):
        split_files(found, {}, config="fine", split="test", field="f")


@pytest.mark.parametrize(
    "configs",
    [
        "small",
        ["small"],
        [{"data_files": [{"split": "train"}]}],
        [{"data_files": [["train-*"], {"path": 3}]}],
        [{"data_files": 3}],
    ],
)
def test_what_a_card_says_oddly_is_passed_over(configs):
    paths = ["a/train/0000.parquet", "b/train/0000.parquet"]
    if isinstance(configs, list):
        good = {"config_name": "good", "data_files": "a/**"}
        assert tables(paths, {"configs": [*configs, good]}) == {"good": {"train": (paths[0],)}}
    else:
        assert tables(paths, {"configs": configs}) == tables(paths, {})
    two = {name: {"train": (name,)} for name in ("default", "x")}
    assert split_files(two, {"configs": configs}, config=None, split="train", field="f") == ("default",)


def test_numbers_in_names_tell_which_files_lack():
    whole = ["a/train-00000-of-00002.parquet", "a/train-00001-of-00002-0f.parquet", "b.parquet", "c/0001.parquet"]
    assert incomplete(whole) == []
    assert incomplete([*whole, "b/train-00001-of-00003.parquet"]) == ["1 of 3 files b/train-*"]


@pytest.mark.parametrize(
    "error", [httpx2.ReadError, httpx2.ProxyError, httpx2.RemoteProtocolError, httpx2.InvalidURL, ConnectionError]
)
def test_trouble_with_the_network_is_told(error):
    message = r"data.path = owner/birds: the hub's files cannot be had: cut off"
    with pytest.raises(DataError, match=message), _told("owner/birds", None):
        raise error("cut off")


def test_what_exists_here_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    wanted = {
        "mnist": False,
        "cifar10": True,
        "a/b": True,
        "a/b/c": False,
        "./a": False,
        "a*": False,
        "s3://a/b": False,
    }
    assert {path: is_hub_id(path) for path in wanted} == wanted


BASE = """\
task: image-classification
name: small
length: 3 epochs
model: {architecture: wide-resnet-10-1}
data: {path: owner/birds, channels: 1}
optimizer: {name: sgd, lr: 0.1}
batch: {micro_batch: 8}
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=digits", "data.hub.split=test"], "data.hub.split = test: data.path (digits) is no data set of"),
        (["data.held_out_path=owner/other"], "no such file or folder; give Parquet files"),
        (["data.hub.held_out_split=test", "data.held_out_path=."], "data.held_out_path names held-out images too"),
        (["data.path=./birds"], "data.path = ./birds: no such file or folder"),
    ],
)
def test_mistakes_that_need_no_hub(tmp_path, overrides, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)


OLDER, NEWER = "a" * 40, "b" * 40


def test_a_run_that_goes_on_keeps_its_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    recipe, main, newer = (load_recipe(path, [f"data.hub.revision={name}"]) for name in ("null", "main", NEWER))
    asked = []

    def found(name, hub):
        asked.append(hub.revision)
        return type("Found", (), {"commit": hub.revision or "newest"})

    monkeypatch.setattr("lowland.trainers.data.images.hub.find_images", found)
    assert with_commit(recipe).data.hub.revision == "newest"
    held = {"data.path": "owner/birds", "data.hub.revision": OLDER}
    assert [with_commit(asks, held).data.hub.revision for asks in (recipe, main, newer)] == [OLDER, OLDER, NEWER]
    assert with_commit(recipe, {**held, "data.path": "owner/fish"}).data.hub.revision == "newest"
    assert asked == [None, OLDER, OLDER, NEWER, None]
    assert with_commit(load_recipe(path, ["data.path=digits"])).data.hub.revision is None
    Path("owner/birds").mkdir(parents=True)
    assert with_commit(recipe, held).data.hub.revision == OLDER, "a folder of this name came later"
    assert with_commit(recipe, None).data.hub.revision is None


def test_a_run_that_began_with_a_folder_does_not_go_on_with_a_data_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, folder = tmp_path / "recipe.yaml", Path("owner/birds")
    path.write_text(BASE)
    folder.mkdir(parents=True)
    held = as_text(flatten(load_recipe(path)))
    assert with_commit(load_recipe(path), held).data.hub.revision is None
    folder.rmdir()
    with pytest.raises(DataError, match=r"data.path = owner/birds: there where the run began, and not on this node"):
        with_commit(load_recipe(path), held)


def test_a_worker_takes_neither_a_folder_for_a_data_set_nor_a_data_set_for_a_folder(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "owner" / "birds").mkdir(parents=True)
    there.mkdir()
    monkeypatch.chdir(here)
    folder, settled = load_recipe(path), load_recipe(path, ["data.hub.revision=0123abc"])
    assert (folder.data.on_hub, settled.data.on_hub) == (False, True)
    require_settled(folder)
    monkeypatch.chdir(there)
    require_settled(settled)
    with pytest.raises(DataError, match=r"data.path = owner/birds: there where the run began, and not on this node"):
        require_settled(folder)


# The client reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported: each case is a process.
SCRIPT = """
import json, sys
from lowland.trainers.data.images.hub import find_images
from lowland.trainers.data.images.sources import read_sources
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import ImageDataConfig

for fields in json.loads(sys.argv[1]):
    config = ImageDataConfig.model_validate(fields)
    try:
        rows, other = read_sources(config)
        commit = find_images(config.path, config.hub).commit
        print(json.dumps([rows.labels, rows.names, other and other.labels, commit]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def read(hub, folder, *configs, offline=False):
    """What a process reads of data sections (labels, names of classes, held-out labels, commit), or is told."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    places = {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {**known, **places, "HF_HUB_OFFLINE": "1" if offline else "0"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(configs)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def parquet(folder, labels, names=("hen", "owl"), label="fine_label"):
    """A file as Hugging Face's library writes it."""
    features = {"features": {label: {"names": names, "_type": "ClassLabel"}}}
    images = [encoded(noise(i, 8, 8, 3)) for i in range(len(labels))]
    path = write_parquet(folder / "made.parquet", images, labels)
    import pyarrow.parquet as pq

    table = pq.read_table(path).rename_columns(["img", label])
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": features})}), path)
    return path.read_bytes()


CARD = b"""---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: test, path: small/test-*}
- config_name: large
  data_files: large.parquet
---
# Birds
"""
COLUMNS = {"image_column": "img", "label_column": "fine_label"}
SMALL = {"path": "owner/birds", "hub": {"config": "small", "held_out_split": "test"}, **COLUMNS}
CONVERTED = {"path": "owner/scans", **COLUMNS}


def test_data_sets_are_read_from_the_hub_and_then_without_it(tmp_path):
    small = {"small/train-0.parquet": [0, 1, 1], "small/train-1.parquet": [0], "small/test-0.parquet": [1, 1]}
    with serving() as hub:
        files = {path: parquet(tmp_path, labels) for path, labels in small.items()}
        hub.sets["owner/birds"] = {"main": {"README.md": CARD, **files, "large.parquet": b"never fetched"}}
        converted = {"default/train/0000.parquet": parquet(tmp_path, [1, 0, 1])}
        hub.sets["owner/scans"] = {"main": {".gitattributes": b""}, "refs/convert/parquet": converted}
        hub.sets["owner/closed"] = {"main": {"README.md": b"# Closed", **files}}
        hub.sets["owner/pictures"] = {"main": {"a.jpg": b""}}
        hub.gated.add("owner/closed")
        shards = {f"train-{i:05}-of-00002.parquet": parquet(tmp_path, [i, 1]) for i in range(2)}
        hub.sets["owner/shards"] = {"main": {"README.md": b"# Shards", **shards}}
        part = {"path": "owner/shards", **COLUMNS}
        mistakes = {
            "owner/none": {"path": "owner/none"},
            "several": {"path": "owner/birds", **COLUMNS},
            "split": {"path": "owner/birds", "hub": {"config": "small", "split": "val"}, **COLUMNS},
            "revision": {"path": "owner/birds", "hub": {"revision": "v9"}, **COLUMNS},
            "columns": {"path": "owner/birds", "hub": {"config": "small"}},
            "labels": {"path": "owner/birds", "hub": {"config": "small"}, "image_column": "img"},
            "gated": {"path": "owner/closed"},
            "pictures": {"path": "owner/pictures"},
        }
        birds, scans, whole, *told = read(hub, tmp_path, SMALL, CONVERTED, part, *mistakes.values())
        assert birds[:3] == [[0, 1, 1, 0], ["hen", "owl"], [1, 1]]
        assert scans[:3] == [[1, 0, 1], ["hen", "owl"], None]
        assert not any("large.parquet" in line for line in hub.asked), "only the files of the split are fetched"
        wanted = {
            "owner/none": f"data.path = owner/none: no such file or folder here, and {hub.address} has no data set of",
            "several": "data.path = owner/birds: several configurations, none of them the default: set data.hub.config "
            "to one of small, large",
            "split": "data.hub.split = val: no such split of configuration small; there are train, test",
            "revision": "data.hub.revision = v9: no such branch, tag or commit",
            "columns": "no column `image`; its columns: img, fine_label; set data.image_column to one that fits: img",
            "labels": "no column `label`; its columns: img, fine_label; set data.label_column to one that fits: fine_",
            "gated": f"a gated data set: ask for access at {hub.address}/datasets/owner/closed, then log in",
            "pictures": "data.path = owner/pictures: no Parquet files there, nor converted ones; download the data set",
        }
        assert {name: text in told[i] for i, (name, text) in enumerate(wanted.items())} == dict.fromkeys(
            wanted, True
        ), told
    cache = tmp_path / "home/hub/datasets--owner--shards"
    shutil.rmtree(cache / "trees")  # as a program that knows no listings leaves it
    (cache / "snapshots" / whole[3] / "train-00001-of-00002.parquet").unlink()
    offline = read(hub, tmp_path, SMALL, CONVERTED, {"path": "owner/other"}, part, offline=True)
    assert offline[:2] == [birds, scans]
    assert "data.path = owner/shards: the cache holds only a part of it in" in offline[3]
    assert (
        "(1 of 2 files train-*): fetch it first, for example with `hf download --repo-type dataset owner/" in offline[3]
    )
    assert f"not (wholly) in the cache {tmp_path}/home/hub, and HF_HUB_OFFLINE is set" in offline[2]
    # A commit that is in the cache asks no hub, as workers do while they hold GPUs.
    known, away = read(hub, tmp_path, {**SMALL, "hub": {**SMALL["hub"], "revision": birds[3]}}, {"path": "owner/other"})
    assert known == birds
    assert f"{hub.address} cannot be reached" in away
