"""CrossSplit in whole trainings: limits, what a network is never told, resumes, evaluation and exports."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from support.images import image_config, train_images
from support.training import states

from lowland.trainers.data.order import HalvesOrder
from lowland.trainers.errors import RecipeError
from lowland.trainers.landscape import permutation_spec
from lowland.trainers.models import CrossSplitLoss, NetworkPair, load_classifier
from lowland.trainers.models.units import removable_units
from lowland.trainers.tasks import build_task
from lowland.trainers.tasks.two_networks import seeds_of_networks
from lowland.trainers.world import World

SPLIT = {
    "name": "cross_split",
    "warmup": "2 steps",
    "gamma": [0.6, 1.0],
    "gamma_until": ["2 steps"],
    "ramp": "2 steps",
    "confidence_penalty": 0.1,
}
NOISE = {"name": "label_noise", "rate": 0.4}
ALONE = {**SPLIT, "correction": False, "unlabelled": 0, "mixup": 0, "balance": 0, "confidence_penalty": 0}
"""The parameters at which each network trains for itself."""


def test_networks_that_tell_each_other_nothing_are_plain_trainings_on_their_halves_bit_by_bit(digits, tmp_path):
    """With BatchNorm's averages and momentum, and though each network predicts the other's half on the way."""
    table, seed = pq.read_table(digits), 3
    seeds = seeds_of_networks(seed)
    halves = HalvesOrder(len(table), seed, seeds).halves
    pair = train_images(_unscaled(digits, digits, seed, [ALONE], 6), tmp_path / "pair")
    ours, losses = states(tmp_path / "pair", 6), []
    for name, half, own in zip(("first", "second"), halves, seeds, strict=True):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table.take(half), path)
        alone = train_images(_unscaled(path, digits, own, [], 3), tmp_path / name)
        losses.append(alone.losses)
        for state, tensors in states(tmp_path / name, 6).items():
            for key, tensor in tensors.items():
                assert torch.equal(ours[state][key.replace("network.", f"network.{name}.")], tensor), (state, key)
    assert pair.losses == {step: pytest.approx((losses[0][step] + losses[1][step]) / 2) for step in pair.losses}


def _unscaled(path, digits, seed, methods, micro_batch):
    """A recipe of four micro-batches a step; what is measured on the images, or over both networks, is not there."""
    batch = {"micro_batch": micro_batch, "accumulation": 4, "max_grad_norm": None}
    recipe = image_config(path, methods, batch=batch, seed=seed)
    data = recipe.data.model_copy(update={"held_out_path": str(digits), "mean": (0.3,), "std": (0.4,)})
    return recipe.model_copy(update={"data": data})


def test_no_network_learns_a_label_of_the_other_half(digits):
    """Other labels there change no bit of its gradient, with all terms and blends across the halves."""
    task = build_task(
        image_config(digits, [NOISE, {**SPLIT, "warmup": "0 steps"}], batch={"micro_batch": 24}), _alone()
    )
    module = task.build_module()
    task.methods.attach(None)
    (micro,) = next(task.steps(0)).micro_batches
    assert {"partners", "views", "pixel_weights"} <= micro.keys()
    gradients = []
    for shift in (0, 1):
        task.methods.begin_step(3)
        labels = micro["labels"].clone()
        labels[1::2] = (labels[1::2] + shift) % 3
        module.zero_grad()
        module(**{**micro, "labels": labels}).backward()
        gradients.append(
            [[p.grad.clone() for p in net.parameters()] for net in (module.pair.first, module.pair.second)]
        )
    (first, second), (first_again, second_again) = gradients
    assert all(torch.equal(one, other) for one, other in zip(first, first_again, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(second, second_again, strict=True))
    assert all(bool(gradient.any()) for gradient in first)


def test_batches_that_do_not_know_of_the_end_of_the_warm_up_are_refused(digits):
    """Those of a training that goes on with other steps than it began with."""
    task = build_task(image_config(digits, [SPLIT], batch={"micro_batch": 24}), _alone())
    module = task.build_module()
    task.methods.attach(None)
    (micro,) = next(task.steps(0)).micro_batches
    without = {name: values for name, values in micro.items() if name != "views"}
    task.methods.begin_step(1)
    assert torch.isfinite(module(**without)), "in the warm-up they are not needed"
    task.methods.begin_step(2)
    with pytest.raises(RecipeError, match="another number of examples a step"):
        module(**without)


@pytest.mark.parametrize("average", [0.0, 0.7])
def test_a_resume_goes_on_as_if_nothing_had_been(average, digits, tmp_path):
    """From the middle of the epoch whose divergences are noted."""
    config = image_config(digits, [NOISE, {**SPLIT, "warmup": "4 steps", "average": average}])
    whole = train_images(config, tmp_path / "whole")
    train_images(config, tmp_path / "cut", stop_after=3)
    resumed = train_images(config, tmp_path / "cut")
    assert resumed.result.resumed_from == 3
    assert {step: resumed.losses[step] for step in (4, 5, 6)} == {step: whole.losses[step] for step in (4, 5, 6)}
    said = {name: values[6] for name, values in whole.values.items() if name.startswith("methods/")}
    assert {name: resumed.values[name][6] for name in said} == said
    known = {"beta_changed", "beta_unchanged", "gamma", "peer_right", "target_right", "unlabelled_loss"}
    assert {f"methods/cross_split/{name}" for name in known} <= said.keys()
    assert "methods/label_noise/memorised" in said
    before, after = states(tmp_path / "whole", 6), states(tmp_path / "cut", 6)
    for name, tensors in before.items():
        for key, tensor in tensors.items():
            assert torch.equal(after[name][key], tensor), (name, key)
    assert bool(before["cross_split/bounds"]["methods"].isfinite().any())


def test_averages_that_forget_all_are_the_networks_and_others_are_not(digits, tmp_path):
    found = {}
    for average in (0.0, 1e-12, 0.9):
        folder = tmp_path / str(average)
        train_images(image_config(digits, [NOISE, {**SPLIT, "average": average}]), folder)
        found[average] = states(folder, 6)["weight"]
    assert all(torch.equal(found[1e-12][name], value) for name, value in found[0.0].items())
    assert not all(torch.equal(found[0.9][name], value) for name, value in found[0.0].items())


@pytest.mark.parametrize(("optimizer", "micro_batch", "passes"), [({}, 6, 2), ({"sam": {"rho": 0.05}}, 24, 2)])
def test_the_peers_are_asked_once_a_step(optimizer, micro_batch, passes, digits, tmp_path, monkeypatch):
    """Targets are the same in the pass that collects numbers and in SAM's second one."""
    asked, targets = [], []
    predict, make = CrossSplitLoss._predictions, CrossSplitLoss._corrected
    monkeypatch.setattr(CrossSplitLoss, "_predictions", lambda self, views: (asked.append(1), predict(self, views))[1])

    def corrected(self, *arguments):
        found = make(self, *arguments)
        targets.append(found.targets)
        return found

    monkeypatch.setattr(CrossSplitLoss, "_corrected", corrected)
    batch = {"micro_batch": micro_batch, "global_images": 24}
    optimizer = {"name": "sgd", "lr": 0.05, **optimizer}
    methods = [{**SPLIT, "warmup": "0 steps"}]
    train_images(image_config(digits, methods, batch=batch, optimizer=optimizer, length="1 steps"), tmp_path)
    count = 24 // micro_batch
    assert len(asked) == count
    assert len(targets) == passes * count
    assert all(torch.equal(one, other) for one, other in zip(targets, targets[count:], strict=False))


def test_the_pair_is_evaluated_and_exported(digits, tmp_path):
    config = image_config(digits, [NOISE, SPLIT], checkpoints={"every": None})
    outcome = train_images(config, tmp_path, export=True)
    pair, seen = load_classifier(tmp_path / "model")
    assert isinstance(pair, NetworkPair)
    held_out = build_task(config, _alone()).data.held_out
    pixels = held_out.pixels(np.arange(len(held_out))).float() / 255
    images = (pixels - torch.tensor(seen.mean).view(1, -1, 1, 1)) / torch.tensor(seen.std).view(1, -1, 1, 1)
    labels = torch.from_numpy(held_out.labels)
    with torch.no_grad():
        each = [load_classifier(tmp_path / "model" / name)[0](images) for name in ("first", "second")]
        together = pair(images)
    mean = torch.stack([torch.softmax(logits, dim=1) for logits in each]).mean(dim=0)
    torch.testing.assert_close(together.exp(), mean)
    assert not torch.equal(each[0], each[1])
    found = outcome.result.metrics
    loss = torch.nn.functional.cross_entropy
    assert found["eval/loss"] == pytest.approx(float(loss(together, labels)), rel=1e-4)
    for name, logits in zip(("first", "second"), each, strict=True):
        assert found[f"eval/{name}_network_loss"] == pytest.approx(float(loss(logits, labels)), rel=1e-4)
        assert found[f"eval/{name}_network_accuracy"] == pytest.approx(
            float((logits.argmax(1) == labels).float().mean())
        )
    again = image_config(digits, model={"path": str(tmp_path / "model")})
    with pytest.raises(RecipeError, match=r"holds the two networks of cross_split; name one of them: .*model/first or"):
        build_task(again, _alone())
    one = build_task(image_config(digits, model={"path": str(tmp_path / "model" / "second")}), _alone()).build_module()
    assert torch.equal(one.network.fc.weight, pair.second.fc.weight)
    assert permutation_spec(one) is not None
    assert permutation_spec(pair) is None, "units of the first network alone would be matched"


@pytest.mark.full
def test_units_are_taken_out_of_both(digits, tmp_path):
    units = {"name": "magnitude_pruning", "structure": "units", "scope": "tensor", "sparsity": 0.5, "dense": "2 steps"}
    config = image_config(digits, [NOISE, SPLIT, units], checkpoints={"every": None})
    outcome = train_images(config, tmp_path, export=True)
    assert outcome.values["methods/magnitude_pruning/removed"][6] == 0.5
    pair, _ = load_classifier(tmp_path / "model")
    whole = [one.count for one in removable_units(build_task(image_config(digits), _alone()).build_module())]
    for network in (pair.first, pair.second):
        assert [2 * one.count for one in removable_units(network)] == whole


def test_sizes_are_those_of_two_networks(digits):
    one, two = (build_task(image_config(digits, methods), _alone()).sizes for methods in ([], [SPLIT]))
    assert two.parameters == 2 * one.parameters
    # Each network forward and backward, and one of them on two views.
    assert two.flops_per_step == one.flops_per_step * 8 / 3


def _alone():
    return World.current(torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": {"micro_batch": 7}}, "batch.micro_batch is 7: make it even"),
        (
            {"methods": [{**SPLIT, "average": 0.9}], "sharding": {"stage": 3}},
            "cross_split.average: 0.9 is of whole weights, which sharding.stage: 3 does not",
        ),
        ({"augmentation": {"mixup": 0.2}}, r"augmentation.mixup: 0.2 would change: set it to 0, and blend by its own"),
        ({"augmentation": {"label_smoothing": 0.1}}, "augmentation.label_smoothing: 0.1 would change: set it to 0"),
        ({"measures": {"names": ["ntk"], "every": "1 steps"}}, "measures.names: ntk looks at the last layer of one"),
        ({"methods": [SPLIT, {"name": "vrex"}]}, "vrex is about one network's: remove one"),
        ({"methods": [{**SPLIT, "gamma_until": []}]}, "2 gammas need 1 of it, but 0 are given"),
        ({"methods": [{**SPLIT, "gamma": [0.5, 1.5]}]}, "less than or equal to 1"),
        ({"methods": [{**SPLIT, "temperature": 0}]}, "greater than 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message, digits):
    with pytest.raises(ValidationError, match=message):
        image_config(digits, **{"methods": [SPLIT], **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": "6 steps"}, "warmup = 6 steps: is step 6, and the training has 6, so that no label"),
        ({"gamma": [0, 0.5, 1], "gamma_until": ["2 steps", "1 steps"]}, r"\[2 steps, 1 steps\]: must ascend"),
    ],
)
def test_what_does_not_go_with_the_length_is_refused(changes, message, digits):
    with pytest.raises(RecipeError, match=message):
        build_task(image_config(digits, [{**SPLIT, **changes}]), _alone())
