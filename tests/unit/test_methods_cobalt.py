"""CoBalT: concepts that are found without labels, weights that balance them, and trainings in which they do."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import image_config, train_images, trained_weights, write_digits
from support.vision import WITHOUT_NORM, config
from torch import nn

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Problem
from lowland.trainers.methods.cobalt import CoBalT
from lowland.trainers.methods.concepts import balanced_weights, concept_centres, concepts_of, feature_map
from lowland.trainers.models.resnets import resnet_cifar, wide_resnet
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

ONE_PATCH = {**WITHOUT_NORM, "model": {"config": {**WITHOUT_NORM["model"]["config"], "patch_size": 8}}}
SWIN_SIZES = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 1}
SWIN = {**WITHOUT_NORM, "model": {"config": {**SWIN_SIZES, "window_size": 2}}}
ALONE = World.current(torch.device("cpu"))


def one_each(concepts, count):
    return torch.nn.functional.one_hot(torch.tensor(concepts), count).bool()


def test_a_rare_concept_of_a_class_is_drawn_as_often_as_the_common_one():
    """90 images with one concept and 10 with the other; the other class has both alike."""
    concepts, labels = one_each([0] * 90 + [1] * 10 + [0, 1] * 10, 2), torch.tensor([0] * 100 + [1] * 20)
    weights = balanced_weights(concepts, labels)
    assert float(weights[:90].sum()) == pytest.approx(50)
    assert float(weights[90:100].sum()) == pytest.approx(50)
    assert weights[90:100].tolist() == pytest.approx([5] * 10)
    assert weights[100:].tolist() == pytest.approx([1] * 20)


def test_an_image_weighs_by_the_mean_over_its_concepts():
    """Concepts 0, 1, 2 are in 3, 1 and 1 images: rarities 1/3, 1 and 1, whose means are 2/3, 1/3 and 2/3."""
    concepts = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()
    weights = balanced_weights(concepts, torch.zeros(3, dtype=torch.int64))
    assert weights.tolist() == pytest.approx([1.2, 0.6, 1.2])
    half = balanced_weights(concepts, torch.zeros(3, dtype=torch.int64), 0.5)
    root = 3**-0.5
    total = (root + 1) + root
    assert half.tolist() == pytest.approx([3 * x / total for x in ((root + 1) / 2, root, (root + 1) / 2)])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 15)), min_size=1, max_size=60), st.floats(0, 1))
def test_classes_come_as_often_as_they_did(images, strength):
    labels = torch.tensor([label for label, _ in images])
    concepts = torch.tensor([[bool(bits >> bit & 1) for bit in range(4)] for _, bits in images])
    weights = balanced_weights(concepts, labels, strength)
    assert bool((weights > 0).all())
    for label in set(labels.tolist()):
        assert float(weights[labels == label].mean()) == pytest.approx(1)
    assert torch.equal(balanced_weights(concepts, labels, 0.0), torch.ones(len(labels), dtype=torch.float64))


def test_concepts_are_directions_with_enough_of_an_image():
    ways = torch.eye(3)
    cells = torch.stack([ways[[0, 0, 0, 1]], 5 * ways[[2, 2, 1, 1]]])
    centres = concept_centres(torch.cat([cells.flatten(0, 1), 0.1 * ways]), 3, seed=0)
    assert sorted(centres.round().int().tolist(), reverse=True) == torch.eye(3).int().tolist()
    order = [int(centres[:, way].argmax()) for way in range(3)]
    assert concepts_of(cells, centres, 0.25)[:, order].tolist() == [[True, True, False], [False, True, True]]
    assert concepts_of(cells, centres, 0.3)[:, order].tolist() == [[True, False, False], [False, True, True]]
    assert concepts_of(cells, centres, 1.0).sum(1).tolist() == [1, 1], "each has its commonest one"
    assert concepts_of(cells, centres, 0.0)[:, order].tolist()[0] == [True, True, False], "none that it has no cell of"


def test_the_same_cells_give_the_same_centres():
    cells = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    centres = concept_centres(cells, 5, seed=3)
    assert torch.equal(concept_centres(cells, 5, seed=3), centres)
    torch.testing.assert_close(concept_centres(3 * cells, 5, seed=3), centres)


@pytest.mark.parametrize(
    ("network", "cells"),
    [
        (lambda: wide_resnet(10, 1, channels=1, classes=3), (2, 4, 64)),
        (lambda: resnet_cifar(18, channels=1, classes=3), (2, 4, 256)),  # the last stage has a single cell
        (lambda: build_task(config(**WITHOUT_NORM), ALONE).build_module().network, (2, 4, 24)),  # no class token
        (lambda: build_task(config(**SWIN), ALONE).build_module().network, (2, 16, 16)),  # its pooled tokens are no map
    ],
)
def test_the_last_map_of_several_cells_is_seen(network, cells):
    network = network().eval()
    with feature_map(network) as seen, torch.no_grad():
        network(torch.randn(2, 1, 8, 8))
    assert seen.cells is not None
    assert seen.cells.shape == cells
    with torch.no_grad():
        network(torch.randn(3, 1, 8, 8))
    assert len(seen.cells) == 2, "nothing is left behind"


@dataclass
class Batch:
    images: torch.Tensor
    rows: torch.Tensor


class Colours(nn.Module):
    """Its feature map are the colours."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, images):
        return self.same(images.float()).mean((2, 3))


def test_it_balances_alone():
    """Of the first class one image in ten is blue; of the second all are half red, half blue."""
    red, blue = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)
    red[0], blue[2] = 200, 200
    both = torch.where(torch.arange(4) < 2, red, blue)
    pixels = torch.stack([*[red] * 18, *[blue] * 2, *[both] * 10])
    labels = torch.tensor([0] * 20 + [1] * 10)

    def images(count):
        rows = torch.arange(30)[torch.randperm(30, generator=torch.Generator().manual_seed(0))][:count]
        return [
            (Batch(pixels[part], part), min(7, len(rows) - i))
            for i in range(0, len(rows), 7)
            for part in [rows[i : i + 7]]
        ]

    network, other = Colours(), Colours()
    kept = [weakref.ref(network), weakref.ref(other)]
    method = CoBalT(images, labels, examples=5, concepts=2, start=3, network=network)
    method.build(nn.Linear(1, 1), Problem(2, (20, 10), 0, (3, 4, 4), seed=0))
    method.attach(None, ALONE)
    method.begin_step(2)
    assert method.sampling is None
    assert (method.state(), method.metrics()) == ({}, {})
    method.begin_step(3)
    assert method.sampling.start == 20
    assert method.sampling.weights.tolist() == pytest.approx([10 / 18] * 18 + [5] * 2 + [1] * 10)
    assert method.metrics()["largest_weight"] == pytest.approx(5)
    again = CoBalT(images, labels, examples=5, concepts=2, start=3, network=other)
    again.load_state(method.state())
    del network, other
    gc.collect()
    assert [each() for each in kept] == [None, None], "a network is not kept once its concepts are found"
    again.begin_step(7)
    assert again.sampling.start == 20
    assert again.sampling.weights.tolist() == method.sampling.weights.tolist()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "digits.parquet")


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    """Losses of a training without methods."""
    return train_images(image_config(digits, augmentation={"flip": 0.5}), tmp_path_factory.mktemp("plain")).losses


@pytest.mark.parametrize("start", ["2 steps", "4 steps"])
def test_a_resume_before_and_after_concepts_are_found(start, digits, plain, tmp_path):
    method = {"name": "cobalt", "start": start, "least_share": 0.3}
    recipe = image_config(digits, [method], augmentation={"flip": 0.5})
    whole = train_images(recipe, tmp_path / "whole")
    assert whole.values["methods/cobalt/largest_weight"][6] > 1.5
    train_images(recipe, tmp_path / "cut", stop_after=3)
    resumed = train_images(recipe, tmp_path / "cut")
    assert {step: resumed.losses[step] for step in (4, 5, 6)} == {step: whole.losses[step] for step in (4, 5, 6)}
    for name, weight in trained_weights(tmp_path / "whole").items():
        assert torch.equal(trained_weights(tmp_path / "cut")[name], weight), name
    same = [step for step in plain if plain[step] == whole.losses[step]]
    assert same == list(range(1, int(start[0]) + 2)), "from the step after that at which they are found"


def test_concepts_of_another_network(digits, tmp_path):
    short = image_config(digits, length="2 steps", checkpoints={"every": None})
    train_images(short, tmp_path, export=True)
    methods = [{"name": "cobalt", "start": "0%", "path": str(tmp_path / "model")}]
    outcome = train_images(image_config(digits, methods, length="2 steps"), tmp_path / "balanced")
    assert outcome.values["methods/cobalt/largest_weight"][1] > 1
    larger = image_config(digits, methods)
    larger = larger.model_copy(update={"data": larger.data.model_copy(update={"size": 12})})
    with pytest.raises(RecipeError, match=r"takes images of 1 x 8 x 8, the data's are 1 x 12 x 12: set data.channels"):
        build_task(larger, ALONE)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ({"start": "1%"}, {}, r"start = 1%: is step 0, where the network has learnt nothing"),
        ({"start": "5 steps"}, {}, r"start = 5 steps: is step 5, and the training has 6, so that no step would come"),
        ({"concepts": 100}, {}, r"concepts = 100: there are 86 training images; lower it"),
        ({}, ONE_PATCH, r"makes no map of several cells of images of 8 x 8 pixels: raise data.size"),
    ],
)
def test_what_cannot_be_balanced_is_refused(method, changes, message, digits):
    with pytest.raises(RecipeError, match=message):
        build_task(image_config(digits, [{"name": "cobalt", **method}], **changes), ALONE).build_module()
