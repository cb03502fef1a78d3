"""What is said of an image classifier before it is trained."""

import io

import pytest
from rich.console import Console
from support.vision import config, encoded, noise, write_parquet

from lowland.platform.estimate import print_estimate
from lowland.platform.recipe import ImageClassificationRecipe
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.estimate.images import estimate_images

SPLIT = {"name": "cross_split", "warmup": "2 steps"}


def test_counts_by_hand():
    changes = {"length": "3 epochs", "batch": {"micro_batch": 8, "accumulation": 2}, "sharding": {"stage": 2}}
    found = estimate_images(config(**changes), workers=2, peak_flops=1e12, mfu=0.5)
    assert (found.parameters, found.classes, found.size) == (77_562, 10, 8)
    assert (found.images_per_step, found.steps) == (32, 152)  # 1617 images are 50.5 steps
    assert found.flops == 3 * found.forward_flops * 32 * 152
    assert found.seconds == found.flops / 1e12
    assert found.checkpoint_bytes == 77_562 * 8  # weights and momentum
    assert found.stages.keys() == {0, 1, 2, 3}
    whole, sharded = found.stages[0], found.stages[2]
    assert (whole.weights, whole.optimizer) == (4 * 77_562, 4 * 77_562)
    assert sharded.optimizer == pytest.approx(2 * 77_562, abs=16)
    assert whole.activations == 0


def test_two_networks_count_twice():
    one, two = (estimate_images(config(augmentation={}, methods=methods), workers=1) for methods in ([], [SPLIT]))
    assert two.parameters == 2 * one.parameters
    assert two.stages[0].weights == 2 * one.stages[0].weights
    assert two.checkpoint_bytes == 2 * one.checkpoint_bytes
    # Both forward and backward, and each image's two views by one of them.
    assert two.flops / one.flops == pytest.approx(8 / 3)


def test_averaged_weights_count_whole_at_every_stage():
    changes = {"augmentation": {}, "sharding": {"stage": 2}}
    plain, averaged = (
        estimate_images(config(**changes, methods=[{**SPLIT, "average": decay}]), workers=2) for decay in (0.0, 0.9)
    )
    for stage, memory in averaged.stages.items():
        assert memory.weights == plain.stages[stage].weights + 4 * plain.parameters
    assert averaged.checkpoint_bytes == plain.checkpoint_bytes + 4 * plain.parameters


def test_it_is_printed_and_says_what_is_not_in_it():
    screen = Console(file=io.StringIO(), width=120)
    fields = config(length="3 epochs").model_dump(mode="json", exclude_unset=True)
    print_estimate(ImageClassificationRecipe.model_validate({"name": "x", **fields}), screen, device="H100")
    told = screen.file.getvalue()
    for text in ("77,562", "not known", "at least", "activations come on top", "x H100"):
        assert text in told


def test_data_and_batches_that_are_wrong(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [b"broken", encoded(noise(0, 8, 8))], [0, 1])
    with pytest.raises(DataError, match=r"a.parquet row 0: corrupt image"):
        estimate_images(config(data={"path": str(path)}), workers=1)
    path = write_parquet(tmp_path / "wide.parquet", [encoded(noise(i, 7, 9)) for i in range(2)], [0, 1])
    with pytest.raises(RecipeError, match=r"data.size: give the side .*; the images have 9 x 7 pixels"):
        estimate_images(config(data={"path": str(path)}), workers=1)
    with pytest.raises(RecipeError, match="must be a multiple"):
        estimate_images(config(batch={"micro_batch": 8, "global_images": 12}), workers=1)
