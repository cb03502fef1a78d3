"""Steps that the device leaves out by itself, whose outcome the host reads when the next one is under way."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import vision
from support.corpus import prepared
from support.training import ADAMW, TORCH, config, not_finite, outcome, states, train
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowland.optim import SGD, Layout, Lion, Whole, skips_on_device
from lowland.trainers.engines import UnreadOutcome, torch_engine
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.errors import NonFiniteError
from lowland.trainers.models import ImageClassifierLoss, RunningAverages, StepBatchNorm2d
from lowland.trainers.world import World

MOMENTUM = {"optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.9}}
SKIP = {"nonfinite": {"policy": "skip"}}
LATE = {**TORCH, **SKIP, "length": "9 steps", "evaluation": {"every": None}, "log_every": 9}
"""Nothing but the next step asks for an outcome, until the end."""


def forward_passes(*steps: int) -> set[int]:
    """One of each of these steps; there are four in each."""
    return {4 * (step - 1) + 1 for step in steps}


@contextmanager
def read_at_once() -> Iterator[None]:
    """The host reads every gradient norm before the optimizer steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "skips_on_device", lambda optimizer: False)
        yield


@contextmanager
def watched(seen: list[str]) -> Iterator[None]:
    """Notes steps, when they are taken, and readings."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in ((TorchEngine, "accumulate"), (TorchEngine, "step"), (UnreadOutcome, "read")):
            plain = getattr(kind, name)

            def noted(*arguments: Any, plain: Any = plain, name: str = name, **keywords: Any) -> Any:
                seen.append(name)
                return plain(*arguments, **keywords)

            patch.setattr(kind, name, noted)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


@pytest.mark.parametrize(
    ("optimizer", "kind", "spoiled"),
    [(ADAMW, "gradient", (1, 4, 5, 9)), (ADAMW, "overflow", (3,)), (MOMENTUM, "gradient", (1, 5, 6, 9))],
)
def test_a_training_is_the_same_to_the_bit(
    data: Path, tmp_path: Path, optimizer: dict[str, Any], kind: str, spoiled: tuple[int, ...]
) -> None:
    changes, calls = {**LATE, **optimizer}, forward_passes(*spoiled)
    found = outcome(data, tmp_path / "late", changes, within=not_finite(kind, calls))
    with read_at_once():
        expected = outcome(data, tmp_path / "at once", changes, within=not_finite(kind, calls))
    assert found.result.skipped == expected.result.skipped == len(spoiled)
    assert [event for event in found.events if "skipped" in event] == [e for e in expected.events if "skipped" in e]
    for name in ("train/loss", "train/skipped_steps", "train/lr"):
        assert found.values[name] == expected.values[name], name
    same_states(tmp_path / "late", tmp_path / "at once", 9)


def same_states(one: Path, other: Path, step: int) -> None:
    found, expected = states(one, step), states(other, step)
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert all(torch.equal(found[name][key], tensor) for key, tensor in tensors.items()), name


def test_running_averages_are_the_same_to_the_bit(tmp_path: Path) -> None:
    changes = {**SKIP, "length": "6 steps", "log_every": 6, "evaluation": {"every": None, "pictures": False}}
    calls = forward_passes(1, 3, 4)
    with not_finite("loss", calls, of=ImageClassifierLoss):
        found = vision.train(tmp_path / "late", changes)
    with read_at_once(), not_finite("loss", calls, of=ImageClassifierLoss):
        vision.train(tmp_path / "at once", changes)
    assert found.result.skipped == 3
    same_states(tmp_path / "late", tmp_path / "at once", 6)
    averages, expected = (vision.buffers(tmp_path / folder, 6) for folder in ("late", "at once"))
    assert averages.keys() == expected.keys()
    assert all(torch.equal(averages[name], value) for name, value in expected.items())
    assert {int(value) for name, value in averages.items() if name.endswith("num_batches_tracked")} == {3}


class _Readings(TorchDispatchMode):
    """Counts numbers that the host takes from tensors, which on a GPU it waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_nothing_but_the_outcome_is_read_in_a_step(tmp_path: Path) -> None:
    """Whatever else the host read, it would wait there for the whole step, and the GPU then for the host."""
    changes = {**vision.BATCH_NORM, **MOMENTUM, "augmentation": {}, "batch": {"micro_batch": 32}}
    with _Readings() as readings, pytest.MonkeyPatch.context() as patch:
        counts = list[int]()
        plain = TorchEngine.accumulate

        def noted(*arguments: Any, **keywords: Any) -> Tensor:
            counts.append(readings.count)
            return plain(*arguments, **keywords)

        patch.setattr(TorchEngine, "accumulate", noted)
        vision.train(tmp_path, {**changes, **LATE})
    assert len(counts) == 9
    assert {later - earlier for earlier, later in pairwise(counts[1:])} == {1}


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_stop_names_the_step_that_was_left_out_and_takes_no_later_one(data: Path, tmp_path: Path, kind: str) -> None:
    taken = list[str]()
    changes = {**LATE, "nonfinite": {"policy": "stop"}}
    with pytest.raises(NonFiniteError) as raised, watched(taken), not_finite(kind, forward_passes(3)):
        train(config(data, **changes), tmp_path)
    what = "a gradient" if kind == "gradient" else "the loss"
    assert str(raised.value).startswith(f"step 3: {what} is not finite (examples 16 to 23, rows [")
    assert taken.count("step") == 3
    assert taken.count("accumulate") == 16, "the fourth step's gradients were there"


def test_an_interrupted_training_goes_on_to_the_bit(data: Path, tmp_path: Path) -> None:
    """The step after which it is interrupted is left out, and the checkpoint knows that."""
    spoiled = forward_passes(5)
    whole = outcome(data, tmp_path / "whole", LATE, within=not_finite("loss", spoiled))
    first = outcome(data, tmp_path / "parts", LATE, stop_after=4, within=not_finite("loss", spoiled))
    assert (first.result.step, first.result.skipped) == (5, 1)
    second = outcome(data, tmp_path / "parts", LATE)
    assert (second.result.resumed_from, second.result.skipped) == (5, 1)
    same_states(tmp_path / "parts", tmp_path / "whole", 9)
    assert second.values["train/grad_norm"][9] == whole.values["train/grad_norm"][9]


@pytest.mark.parametrize(
    ("changes", "late"),
    [
        ({}, True),
        ({"log_every": 1}, False),
        ({"checkpoints": {"every": "1 steps", "export": False}}, False),
        ({"evaluation": {"every": "1 steps"}}, False),
    ],
    ids=["nothing", "metrics", "checkpoints", "evaluation"],
)
def test_an_outcome_is_read_behind_the_next_gradients_or_when_it_is_shown(
    data: Path, tmp_path: Path, changes: dict[str, Any], late: bool
) -> None:
    seen = list[str]()
    outcome(data, tmp_path, {**LATE, "length": "3 steps", **changes}, within=watched(seen))
    gradients, step = ["accumulate"] * 4, ["step"]
    one = [*gradients, *step]
    expected = [*one, *gradients, "read", *step, *gradients, "read", *step, "read"] if late else [*one, "read"] * 3
    assert seen == expected


def test_methods_are_told_before_the_next_gradients(tmp_path: Path) -> None:
    seen = list[str]()
    changes = {
        "length": "2 steps",
        "log_every": 9,
        "evaluation": {"every": None, "pictures": False},
        "methods": [{"name": "weight_balancing"}],
    }
    with watched(seen):
        vision.train(tmp_path, changes)
    assert seen == [*["accumulate"] * 4, "step", "read"] * 2


class Small(nn.Module):
    """A sum of losses of a network with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 1)
        self.norm = StepBatchNorm2d(nn.BatchNorm2d(3), synchronised=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x).view(len(x), 3, 2, 2)).relu()
        loss: Tensor = self.last(hidden.flatten(1)).square().sum()
        return loss


def engine_steps(device: str, make: Any) -> tuple[list[bool], list[float], dict[str, Tensor]]:
    """Outcomes, norms, weights, averages and optimizer state of a few steps; two have gradients that are not finite."""
    torch.manual_seed(0)
    module = Small().to(device)
    optimizer = make(module.parameters())
    layout = Layout.whole([module.named_parameters()])
    world = World.current(torch.device(device))
    engine = TorchEngine(module, optimizer, layout, world=world, max_grad_norm=0.5, autocast=False)
    outcomes = []
    for step in range(6):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(device)
        engine.accumulate({"x": x * torch.inf if step in (0, 3) else x}, scale=0.25, last=True)
        outcomes.append(engine.step(1.0))
        RunningAverages(module).settle(applied=outcomes[-1].applied)
    found = {**module.state_dict()}
    for index, p in enumerate(module.parameters()):
        found |= {f"{index} {name}": value for name, value in optimizer.state[p].items()}
    read = [outcome.read() for outcome in outcomes]
    return [each.applied for each in read], [each.grad_norm for each in read if each.applied], found


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
        lambda params: SGD(params, lr=0.1, momentum=0.9),
    ],
    ids=["adamw", "sgd"],
)
def test_an_engine_does_the_same_whenever_its_outcomes_are_read(device: str, make: Any) -> None:
    applied, norms, found = engine_steps(device, make)
    with read_at_once():
        applied_at_once, norms_at_once, expected = engine_steps(device, make)
    assert applied == applied_at_once == [step not in (0, 3) for step in range(6)]
    assert norms == norms_at_once
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 5), (7,))]


def stepped(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], gradient: float, found: float) -> None:
    for p in params:
        p.grad = torch.full_like(p, gradient)
    optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
    optimizer.step()


def held(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params] + [
        value.clone() for p in params for value in optimizer.state[p].values() if isinstance(value, Tensor)
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
        lambda params: torch.optim.Adam(params, lr=0.1, fused=True, amsgrad=True),
        lambda params: SGD(params, lr=0.1),
        lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    ],
)
def test_who_skips_on_the_device_changes_nothing_there_from_the_first_step_on(make: Any) -> None:
    params, other = parameters(), parameters()
    optimizer, reference = make(params), make(other)
    assert skips_on_device(optimizer)
    for gradient in (torch.nan, 1.0, torch.inf, 2.0, torch.nan):
        before = held(optimizer, params)
        finite = gradient in (1.0, 2.0)
        stepped(optimizer, params, gradient, float(not finite))
        if finite:
            stepped(reference, other, gradient, 0.0)
        elif len(before) > 2:  # else there was no state before
            assert all(map(torch.equal, held(optimizer, params), before))
        assert all(map(torch.equal, params, other))
    assert all(map(torch.equal, held(optimizer, params), held(reference, other)))


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.1),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
        lambda params: Lion(params, lr=0.1),
        lambda params: Whole(params, lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True)),
    ],
    ids=["not fused", "torch's SGD", "Lion", "inside another"],
)
def test_others_are_waited_for(make: Any) -> None:
    assert not skips_on_device(make(parameters()))
