"""Measures in a training of one process: what they are, and that the training does not know of them."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.corpus import prepared
from support.full import full
from support.training import LLAMA, TORCH, batch, config, interrupted, outcome, weights

from lowland.trainers.errors import RecipeError
from lowland.trainers.measures import TrainingMeasures, sam_sharpness, top_eigenvalue
from lowland.trainers.measures.predictions import Predictions, group_metrics, predictions
from lowland.trainers.measures.representation import last_layer
from lowland.trainers.models.heads import ETFClassifier
from lowland.trainers.recipe import MeasuresConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

NAMES = (
    "gradient_momentum_cosine",
    "sharpness",
    "top_eigenvalue",
    "effective_rank",
    "weight_movement",
    "representation",
    "ntk",
)
SHORT = {**TORCH, "length": "6 steps", "evaluation": {"every": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


def measuring(*names: str, every: str = "3 steps", **fields: Any) -> dict[str, Any]:
    return {"measures": {"names": list(names), "every": every, **fields}}


@pytest.mark.parametrize(
    "around", [{}, {"sam": {"rho": 0.05}}, full({"lookbehind": {}}), full({"ema": {"half_life": "3 steps"}})]
)
def test_the_training_is_bitwise_the_same_and_measures_start_where_they_must(
    data: Path, tmp_path: Path, around: dict[str, Any]
) -> None:
    # Dropout, so that a draw too many would be seen.
    model = {"config": {**LLAMA, "attention_dropout": 0.2}}
    changes = {**SHORT, "optimizer": {"name": "adamw", "lr": 1e-2, **around}, "model": model}
    plain = outcome(data, tmp_path / "plain", changes)
    found = outcome(data, tmp_path / "measured", {**changes, **measuring(*NAMES, examples=4, iterations=3)})
    assert found.losses == plain.losses
    for name, tensor in weights(tmp_path / "plain", 6).items():
        assert torch.equal(weights(tmp_path / "measured", 6)[name], tensor)
    measures = {name: by_step for name, by_step in found.values.items() if name.startswith("measure/")}
    assert measures.pop("measure/gradient_momentum_cosine").keys() == {3, 6}
    assert len(measures) == 10
    assert all(by_step.keys() == {0, 3, 6} for by_step in measures.values())
    assert not any(name.startswith("measure/") for name in plain.values)
    at_start = {"weight_movement": 0, "representation_alignment": 1, "ntk_alignment": 1}
    for name, value in at_start.items():
        by_step = measures[f"measure/{name}"]
        assert by_step[0] == pytest.approx(value, abs=1e-6)
        assert min(abs(by_step[step] - value) for step in (3, 6)) > 1e-5
    assert 0 < measures["measure/effective_rank_min"][0] <= measures["measure/effective_rank"][0] <= 1
    assert measures["measure/sharpness"][6] > 0


def test_curvature_is_that_of_double_backward_passes(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **batch(4), "length": "1 steps"}
    measures = measuring("sharpness", "top_eigenvalue", iterations=12, batches=2, rho=0.1)
    found = outcome(data, tmp_path, {**changes, **measures}).values
    world = World.current(torch.device("cpu"))
    task = build_task(config(data, **changes), world)
    module = task.build_module().eval()
    stream = task.steps(0)
    steps = [next(stream), next(stream)]
    stream.close()
    weight = sum(step.weight for step in steps)

    def loss() -> torch.Tensor:
        return sum(module(**micro) for step in steps for micro in step.micro_batches) / weight

    parameters = list(module.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused one has no second derivative
        expected = top_eigenvalue(loss, parameters, iterations=12, world=world)
    assert found["measure/top_eigenvalue"][0] == pytest.approx(expected.largest, rel=0.01)
    sharpness = sam_sharpness(loss, parameters, rho=0.1, world=world)
    assert found["measure/sharpness"][0] == pytest.approx(sharpness, rel=1e-3)


def test_the_cosine_is_the_one_that_torque_aware_momentum_takes(data: Path, tmp_path: Path) -> None:
    tam = {"optimizer": {"name": "tam", "lr": 0.05, "gamma": 0.0}}
    found = outcome(data, tmp_path, {**SHORT, **tam, **measuring("gradient_momentum_cosine", every="1 steps")}).values
    cosines = found["measure/gradient_momentum_cosine"]
    assert cosines.keys() == {2, 3, 4, 5, 6}
    assert cosines == pytest.approx({step: found["optimizer/cosine"][step] for step in cosines}, abs=1e-6)


def test_a_resumed_training_measures_from_the_same_start(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **measuring("weight_movement", "representation", every="6 steps")}
    whole = outcome(data, tmp_path / "whole", changes).values
    _, rest = interrupted(data, tmp_path / "resumed", changes, stop_after=2)
    for name in ("weight_movement", "representation_alignment", "representation_rank"):
        assert rest.values[f"measure/{name}"] == {6: whole[f"measure/{name}"][6]}


def test_nothing_is_measured_where_a_training_is_interrupted(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **measuring("weight_movement")}
    first, rest = interrupted(data, tmp_path, changes, stop_after=3)
    assert first.values["measure/weight_movement"].keys() == {0}
    assert rest.values["measure/weight_movement"].keys() == {6}


def test_examples_of_the_kernel_are_gathered_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = []
    plain = TrainingMeasures._examples
    monkeypatch.setattr(TrainingMeasures, "_examples", lambda self: gathered.append(1) or plain(self))
    found = outcome(data, tmp_path, {**SHORT, **measuring("ntk", examples=2)})
    assert found.values["measure/ntk_trace"].keys() == {0, 3, 6}
    assert len(gathered) == 1


def test_difficulty_is_of_every_predicted_token(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, **batch(4), "length": "1 steps"}
    found = outcome(data, tmp_path, {**changes, **measuring("difficulty")}).values
    task = build_task(config(data, **changes), World.current(torch.device("cpu")))
    module, stream = task.build_module().eval(), task.steps(0)
    step = next(stream)
    stream.close()
    scores = []
    for micro in step.micro_batches:
        with torch.no_grad():
            inputs = {name: micro[name] for name in ("input_ids", "position_ids")}
            logits = module.network(**inputs, use_cache=False).logits
        counted = micro["labels"] != -100
        errors = logits.softmax(-1)[counted]
        errors[torch.arange(len(errors)), micro["labels"][counted]] -= 1
        scores += errors.norm(dim=1).tolist()
    assert len(scores) == step.weight
    assert found["measure/el2n"][0] == pytest.approx(sum(scores) / len(scores), rel=1e-5)
    hardest = sorted(scores)[-math.ceil(len(scores) / 10) :]
    assert found["measure/el2n_hardest_tenth"][0] == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


def test_groups_are_needed_for_groups(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"give data\.group_column"):
        outcome(data, tmp_path, {**SHORT, **measuring("groups")})


def test_a_head_within_the_loss_gives_no_logits() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    batch = {"x": torch.randn(2, 3), "labels": torch.zeros(2, dtype=torch.int64)}
    engine: Any = SimpleNamespace(module=network, evaluate=lambda inputs: network(inputs["x"]))
    probe: Any = SimpleNamespace(inputs=lambda: [batch])
    with pytest.raises(RecipeError, match=r"model\.fused_loss: never"):
        next(predictions(probe, engine, "difficulty"))
    for head in (torch.nn.Linear(4, 5), ETFClassifier(torch.randn(5, 4), 16.0)):
        whole = torch.nn.Sequential(*network, head)
        engine = SimpleNamespace(module=whole, evaluate=lambda inputs, whole=whole: whole(inputs["x"]))
        assert next(predictions(probe, engine, "difficulty")).logits.shape == (2, 5)
        with last_layer(whole) as layers:
            whole(batch["x"])
        assert torch.equal(layers.features, network(batch["x"]))


def test_group_means_are_those_of_all_micro_batches() -> None:
    logits = torch.tensor([[10.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    first = Predictions(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 2, 2]))
    second = Predictions(logits[:1], torch.tensor([0]), torch.tensor([2]))
    found = group_metrics(iter([first, second]), World.current(torch.device("cpu")))
    assert found["accuracy/2"] == pytest.approx(2 / 3)
    assert found["loss/2"] == pytest.approx(10 / 3, rel=1e-3)
    assert found["loss_gap"] == pytest.approx(10 / 3, rel=1e-3)
    assert found["worst_accuracy"] == found["accuracy/2"]


def test_an_optimizer_without_momentum_is_told_in_the_second_step(data: Path, tmp_path: Path) -> None:
    plain_sgd = {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0}}
    with pytest.raises(RecipeError, match="keeps a momentum"):
        outcome(data, tmp_path, {**SHORT, **plain_sgd, **measuring("gradient_momentum_cosine", every="100 steps")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**measuring("ntk"), "sharding": {"stage": 3}}, "ntk needs whole weights on each worker"),
        (
            {**measuring("sharpness"), "optimizer": {"name": "sgd", "lr": 1, "diloco": {"every": 2, "groups": 2}}},
            "optimizer.diloco.groups: 2",
        ),
        (
            {**measuring("sharpness"), **TORCH, "optimizer": {"name": "sgd", "lr": 1, "sam": {"per_rank": True}}},
            "per_rank: true keeps gradients apart",
        ),
        (measuring(), "at least 1 item"),
        (measuring("sharpnes"), "Input should be"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(data, **changes)


def test_bf16_is_refused_where_it_rounds_displacements_away(data: Path, tmp_path: Path) -> None:
    model = {"model": {"config": LLAMA, "dtype": "bfloat16"}}
    with pytest.raises(RecipeError, match="top_eigenvalue looks at displacements"):
        outcome(data, tmp_path, {**SHORT, **model, **measuring("weight_movement", "top_eigenvalue")})
    assert MeasuresConfig(names=("ntk",)).rounded_in_bf16() is None
