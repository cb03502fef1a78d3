"""Pre-flight's judgements, without a cluster."""

from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpus import prepared
from support.vision import write_parquet

from lowland.platform.cluster import Cluster
from lowland.platform.node_checks import NodeReport, NodeRequest, check_node, installed_versions, marker
from lowland.platform.preflight import preflight, report_problems
from lowland.platform.recipe import CausalLMRecipe, ImageClassificationRecipe
from lowland.platform.resource_checks import resource_problems, shares
from lowland.platform.runs import RunFolder
from lowland.trainers.errors import UserError
from lowland.trainers.recipe import AugmentationConfig


def make_recipe(data: str = "data", **fields):
    scaling = {"workers": 2} | fields.pop("scaling", {})
    model = {"config": {"model_type": "llama"}} | fields.pop("model", {})
    return CausalLMRecipe.model_validate(
        {
            "task": "causal-lm",
            "name": "run",
            "length": "10 steps",
            "model": model,
            "data": {"path": data},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "batch": {"micro_batch": 2},
            "scaling": scaling,
            **fields,
        }
    )


def node(cpus: float, gpus: float = 0, kind: str | None = None):
    resources = {"CPU": cpus, "GPU": gpus}
    if kind:
        resources[f"accelerator_type:{kind}"] = 1.0
    return {"Resources": resources, "NodeManagerHostname": "host"}


def problems(recipe, alive, most=None):
    return list(resource_problems(recipe, alive, most))


def test_gpus_where_there_are_none_names_the_fix():
    (problem,) = problems(make_recipe(scaling={"gpus_per_worker": 1}), [node(8)])
    assert "asks for 2 GPUs (scaling.workers 2 x 1), the cluster has 0" in problem
    assert "scaling.gpus_per_worker: 0" in problem


def test_too_few_cpus_names_how_many_workers_fit():
    (problem,) = problems(make_recipe(scaling={"workers": 5, "cpus_per_worker": 2}), [node(8)])
    assert problem.endswith("set scaling.workers: 4")


def test_an_autoscaler_may_still_bring_the_gpus():
    asks = make_recipe(scaling={"workers": 16, "gpus_per_worker": 1})
    assert problems(asks, [node(8)], {"CPU": 400, "GPU": 16}) == []
    (problem,) = problems(asks, [node(32)], {"CPU": 400, "GPU": 8})
    assert "may grow to 8" in problem
    assert "set scaling.workers: 8" in problem


@given(
    workers=st.integers(1, 12),
    nodes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4),
    cpus=st.integers(1, 4),
    gpus=st.integers(0, 1),
)
def test_no_problem_exactly_when_all_workers_can_be_placed(workers, nodes, cpus, gpus):
    fits = sum(min(c // cpus, g if gpus else c) for c, g in nodes)
    asks = make_recipe(scaling={"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus})
    assert (problems(asks, [node(c, g) for c, g in nodes]) == []) == (fits >= workers)


@pytest.mark.parametrize(
    ("gpus", "each", "fit"),
    [(1, 0.1, 10), (1, 0.3, 3), (2, 0.3, 6), (3, 0.7, 3), (4, 1, 4), (0, 0.5, 0), (1, 0.0625, 16)],
)
def test_a_worker_takes_its_part_of_one_gpu(gpus, each, fit):
    assert shares(gpus, each) == fit


def test_a_part_of_a_gpu_is_asked_for_as_one():
    asks = make_recipe(scaling={"workers": 1, "gpus_per_worker": 0.25})
    assert problems(asks, [node(8, 1)]) == []
    (problem,) = problems(asks, [node(8)])
    assert "asks for 0.25 GPUs (scaling.workers 1 x 0.25), the cluster has 0" in problem


def of_images(**data):
    return ImageClassificationRecipe.model_validate(
        {
            "task": "image-classification",
            "name": "run",
            "length": "10 steps",
            "model": {"architecture": "wide-resnet-10-1"},
            "data": data,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "batch": {"micro_batch": 2},
            "scaling": {"workers": 2},
        }
    )


def test_processes_that_make_batches_need_cpus_beside_the_workers():
    asks = of_images(reader="ray", ray_tasks=3)
    assert problems(asks, [node(4), node(4)]) == []
    (problem,) = problems(asks, [node(7)])
    assert "data.reader: ray asks for 6 CPUs beside the workers' (scaling.workers 2 x data.ray_tasks 3)" in problem
    assert problem.endswith("the cluster has 5 left; set data.ray_tasks: 2, or data.reader: local")
    (problem,) = problems(asks, [node(3)])
    assert problem.endswith("has 1 left; set data.reader: local")
    (problem,) = problems(asks, [node(1)])
    assert "the run asks for 2 CPUs" in problem


@pytest.mark.parametrize(
    ("placement", "alive", "word"),
    [
        ("STRICT_PACK", [node(1), node(1)], "set scaling.placement: PACK"),
        ("STRICT_SPREAD", [node(4)], "set scaling.placement: SPREAD"),
    ],
)
def test_strict_placement(placement, alive, word):
    (problem,) = problems(make_recipe(scaling={"placement": placement}), alive)
    assert word in problem


def test_accelerator_type_that_no_node_has():
    asks = make_recipe(scaling={"gpus_per_worker": 1, "accelerator_type": "H100"})
    (problem,) = problems(asks, [node(8, 4, "A100")])
    assert "the cluster has A100" in problem


def test_bfloat16_on_gpus_without_it():
    asks = make_recipe(scaling={"gpus_per_worker": 1}, model={"dtype": "bfloat16"})
    (problem,) = problems(asks, [node(8, 4, "V100")])
    assert "V100" in problem
    assert "float32" in problem
    assert problems(asks, [node(8, 4, "V100"), node(8, 4, "A100")]) == []


def make_request(storage: Path, token: str = "abc", **fields):
    manifest = prepared(storage / "data") / "manifest.json"
    import hashlib

    sha = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (storage / marker(token)).write_text(token)
    files = {str(manifest): None} | fields.pop("files", {})
    uri = f"sqlite:///{storage}/mlflow.db"
    return NodeRequest(str(storage), token, str(manifest), sha, files, uri, "test", **fields)


@pytest.fixture
def no_tracking(monkeypatch):
    """The store has tests of its own, and making one takes seconds."""
    monkeypatch.setattr("lowland.platform.tracking.store.check_store", lambda uri, experiment: "0")


@pytest.mark.usefixtures("no_tracking")
def test_a_node_that_sees_everything(tmp_path):
    report = check_node(make_request(tmp_path), "node")
    assert report.problems == ()
    assert (tmp_path / marker("abc", "node")).read_text() == "abc"
    assert report.versions["python"]


@pytest.mark.usefixtures("no_tracking")
def test_a_node_with_a_folder_of_its_own(tmp_path):
    request = make_request(tmp_path)
    (tmp_path / marker("abc")).unlink()
    (problem,) = check_node(request, "node").problems
    assert "a folder of that node alone" in problem


@pytest.mark.usefixtures("no_tracking")
def test_missing_and_shortened_files(tmp_path):
    shard = next((tmp_path / "data").glob("*.arrow"), None) or tmp_path / "shard"
    request = make_request(tmp_path, files={str(tmp_path / "gone"): 3, str(shard): 1})
    shard.write_bytes(b"two")
    missing, short = check_node(request, "node").problems
    assert "gone is not there" in missing
    assert "has 3 bytes, elsewhere 1" in short


@pytest.mark.usefixtures("no_tracking")
def test_a_node_without_a_package_that_the_recipe_needs(tmp_path):
    packages = {"pytest": "pip install pytest", "no_such_package": "pip install it"}
    (problem,) = check_node(make_request(tmp_path, packages=packages), "node").problems
    assert problem == "no_such_package is not installed: pip install it"


@pytest.mark.usefixtures("no_tracking")
def test_an_edited_manifest(tmp_path):
    request = make_request(tmp_path)
    with Path(request.manifest).open("a") as file:
        file.write(" ")
    (problem,) = check_node(request, "node").problems
    assert "another one than the driver's" in problem


def test_reports_are_grouped_by_problem():
    here = installed_versions()
    good = NodeReport(here, (), True)
    bad = NodeReport(here | {"torch": "1.0"}, ("disk is full",), True)
    lines = list(report_problems({"a": good, "b": bad, "c": bad, "d": "no answer"}))
    assert "node b, c: disk is full" in lines
    assert "node d: no answer" in lines
    assert any(line.startswith("node b, c: torch is 1.0") for line in lines)
    assert len(lines) == 3
    assert list(report_problems({"a": good})) == []


@pytest.mark.usefixtures("no_tracking")
class TestPreflight:
    """All of it, with a described cluster in place of Ray's."""

    @pytest.fixture(autouse=True)
    def described(self, monkeypatch):
        monkeypatch.setattr("lowland.platform.preflight.nodes", lambda: [node(4)])
        monkeypatch.setattr("lowland.platform.preflight.growth", lambda: None)

    def run(self, recipe, storage):
        folder = RunFolder.open(str(storage), "run")
        preflight(recipe, Cluster("here", started=True), folder, "sqlite:///x.db")

    def test_passes_and_leaves_nothing_behind(self, tmp_path):
        data = prepared(tmp_path / "data")
        self.run(make_recipe(str(data)), tmp_path / "runs")
        assert list((tmp_path / "runs").iterdir()) == []

    def test_data_at_a_uri(self, tmp_path):
        """Its manifest and shards are looked at there; nothing is copied for it."""
        folder = prepared(tmp_path / "data")
        there, memory = f"memory://{tmp_path.name}/data", fsspec.filesystem("memory")
        memory.put(str(folder), f"/{tmp_path.name}/", recursive=True)
        self.run(make_recipe(there), tmp_path / "runs")
        memory.rm(f"/{tmp_path.name}/data/train-00000.arrow")
        with pytest.raises(UserError, match=rf"{there}/train-00000.arrow is not there"):
            self.run(make_recipe(there), tmp_path / "runs")
        with pytest.raises(UserError, match=r"data.path: memory://nothing: no manifest.json can be read"):
            self.run(make_recipe("memory://nothing"), tmp_path / "runs")

    def test_names_everything_at_once(self, tmp_path):
        recipe = make_recipe(str(tmp_path / "nothing"), scaling={"gpus_per_worker": 1})
        with pytest.raises(UserError) as caught:
            self.run(recipe, tmp_path / "runs")
        message = str(caught.value)
        assert message.startswith("pre-flight found 2 problems")
        for part in ("asks for 2 GPUs", "lowland data prepare"):
            assert part in message

    def test_a_text_of_which_nothing_is_held_out(self, tmp_path):
        data = prepared(tmp_path / "data", held_out=0)
        with pytest.raises(UserError, match=r"data.path: .*: the split 'held_out' is empty; prepare with more data"):
            self.run(make_recipe(str(data)), tmp_path / "runs")

    def test_columns_of_images(self, tmp_path):
        file = write_parquet(tmp_path / "a.parquet", [b""] * 2, [0, 1], side=["left", "right"])
        self.run(of_images(path=str(file)), tmp_path / "runs")
        with pytest.raises(
            UserError, match=r"data.path: .*a.parquet: no column `img`; its columns: image, label, side"
        ):
            self.run(of_images(path=str(file), image_column="img"), tmp_path / "runs")

    def test_a_transform_of_ones_own(self, tmp_path):
        file = write_parquet(tmp_path / "a.parquet", [b""] * 2, [0, 1])
        for transform, problem in (
            ("no_such_module.augment:build", r"every node: no_such_module is not installed|no_such_module is not"),
            ("support.own_transforms:missing", "has no attribute 'missing'"),
            ("support.own_transforms:smaller", r"makes a uint8 tensor \[3, 7, 7\]"),
        ):
            recipe = of_images(path=str(file), size=8)
            recipe = recipe.model_copy(update={"augmentation": AugmentationConfig(transform=transform)})
            with pytest.raises(UserError, match=problem) as caught:
                self.run(recipe, tmp_path / "runs")
            assert f"augmentation.transform = {transform}: " in str(caught.value)

    def test_storage_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written"):
            self.run(make_recipe(str(prepared(tmp_path / "data"))), tmp_path / "file" / "runs")
