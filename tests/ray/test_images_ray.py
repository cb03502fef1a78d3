"""The shipped recipe of the digits on Ray: what a run of an image classifier leaves."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.ray_runs import client, history, run
from torch import equal

from lowland.platform import ray_reader
from lowland.platform.recipe import load_recipe
from lowland.trainers.errors import DataError
from lowland.trainers.models import load_classifier

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

RECIPE = Path(__file__).parents[2] / "recipes" / "digits-resnet.yaml"


def test_the_digits_recipe(cluster: None, storage: Path):
    recipe = load_recipe(RECIPE, [f"storage={storage}", "length=2 epochs", "scaling.workers=2", "batch.micro_batch=32"])
    trained = run(recipe)
    outcome = trained.outcome
    assert outcome.status == "finished"
    assert outcome.metrics["eval/accuracy"] > 0.85
    assert "accuracy" in trained.output
    assert "samples/s" in trained.output
    store, run_id = client(storage), outcome.mlflow_run_id
    held = store.get_run(run_id)
    tags = {"task": "image-classification", "model": "wide-resnet-10-1", "optimizer": "sgd", "world_size": "2"}
    assert tags.items() <= held.data.tags.items()
    assert held.data.metrics["data/train_images"] == 1617
    assert history(storage, run_id, "eval/accuracy")[-1][1] == outcome.metrics["eval/accuracy"]
    assert history(storage, run_id, "perf/samples_per_second")
    (dataset,) = held.inputs.dataset_inputs
    assert dataset.dataset.name == "digits"
    pictures = {item.path for item in store.list_artifacts(run_id, "pictures")}
    assert pictures == {"pictures/confusion.png", "pictures/mistakes.png"}
    (output,) = held.outputs.model_outputs
    assert store.get_logged_model(output.model_id).params["location"] == f"{trained.folder}/model"
    assert load_classifier(trained.folder / "model")[1].classes == tuple("0123456789")


@pytest.mark.full
def test_steps_come_in_their_order_and_errors_as_they_are(
    cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A process dies on the way; another one makes its step."""
    died = tmp_path / "died"
    monkeypatch.setattr(ray_reader, "STEPS", 15)  # a second pipeline goes on where the first one ended

    def build(index: int) -> Any:  # nested, so that it travels by value
        import os
        import time

        import numpy as np

        from lowland.trainers.errors import DataError

        time.sleep(0.05 * (index % 3 == 0))
        if index == 7 and not died.exists():
            died.touch()
            os._exit(1)
        if index == 25:
            raise DataError("row 7 is corrupt")
        return {"step": np.array([index]), "pixels": np.full((2, 3), index, np.uint8)}

    with closing(ray_reader.RayReader(2)(build, 2)) as made:
        for index in range(15):
            step = next(made)
            assert step["step"].tolist() == [index]
            assert step["pixels"].tolist() == [[index] * 3] * 2
            assert step["pixels"].dtype == "uint8"
        assert [int(next(made)["step"][0]) for _ in range(15, 25)] == list(range(15, 25))
        with pytest.raises(DataError, match=r"^row 7 is corrupt$"):
            next(made)
    assert died.exists()


@pytest.mark.full
def test_batches_made_by_ray_data_are_the_workers_own(cluster: None, storage: Path):
    """Two workers with a process each that makes their batches; the weights are the same bit by bit."""
    common = [
        "length=9 steps",
        "scaling.workers=2",
        "batch.micro_batch=16",
        "batch.global_images=64",
        "data.ray_tasks=1",
    ]
    common += [f"storage={storage}", "augmentation={padding: 1, flip: 0.5, randaugment: {}, mixup: 0.5, cutmix: 1.0}"]
    weights = {}
    for reader in ("local", "ray"):
        trained = run(load_recipe(RECIPE, [*common, f"name=made-{reader}", f"data.reader={reader}"]))
        assert trained.outcome.status == "finished"
        logs = [file.read_text() for file in (trained.folder / "logs").glob("*-rank-*.log")]
        assert [("MapBatches(_Maker)" in log) for log in logs] == [reader == "ray"] * 2
        weights[reader] = load_file(trained.folder / "model" / "model.safetensors")
    assert weights["ray"].keys() == weights["local"].keys()
    assert all(equal(value, weights["local"][name]) for name, value in weights["ray"].items())
