"""Short trainings of a small Llama, and what they did."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from support.naive import naive_adatamw

from lowland.trainers.checkpoints import checkpointer
from lowland.trainers.errors import LowlandError
from lowland.trainers.fit import FitResult, Places, fit
from lowland.trainers.models import CausalLMLoss
from lowland.trainers.monitor import Progress
from lowland.trainers.recipe import CausalLMConfig, TrainConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

LLAMA = {
    "model_type": "llama",
    "hidden_size": 36,
    "intermediate_size": 107,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
"""Sizes by which ZeRO's partitions cut through tensors and padding occurs."""

TORCH = {"sharding": {"engine": "torch"}}
ADAMW = {"optimizer": {"name": "adamw", "lr": 1e-2}}
ADATAMW = {"optimizer": {"name": "adatamw", "lr": 1e-3}}
SGD = {"optimizer": {"name": "sgd", "lr": 0.5}}


def zero(stage: int, **fields: Any) -> dict[str, Any]:
    """The changes that make a recipe train at a ZeRO stage."""
    return {"sharding": {"stage": stage, **fields}}


def batch(micro_batch: int) -> dict[str, Any]:
    """The changes that cut the same global batch into other micro-batches."""
    return {"batch": {"micro_batch": micro_batch, "global_sequences": 8, "max_grad_norm": 0.5}}


def config(data: Path, /, **changes: Any) -> CausalLMConfig:
    """A recipe of 30 steps of 8 sequences; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "length": "30 steps",
        "model": {"config": LLAMA},
        "data": {"path": str(data)},
        **ADAMW,
        "schedule": {"name": "cosine", "warmup": "10%"},
        **batch(2),
        "evaluation": {"every": "10 steps"},
        "checkpoints": {"every": None, "export": False},
        "log_every": 1,
        "seed": 3,
    }
    return CausalLMConfig.model_validate({**sections, **changes})


class Recorder:
    """A monitor that keeps what it is told and asks to stop after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.values: dict[str, dict[int, float]] = {}
        self.events: list[str] = []
        self.files: dict[str, bytes] = {}
        self._stop_after, self._step = stop_after, 0

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keeps the metrics."""
        self._step = step
        for name, value in values.items():
            self.values.setdefault(name, {})[step] = value

    def progress(self, progress: Progress) -> None:
        """Notes the step."""
        self._step = progress.step

    def event(self, text: str) -> None:
        """Keeps the event."""
        self.events.append(text)

    def artifact(self, name: str, content: bytes) -> None:
        """Keeps the file."""
        self.files[name] = content

    def stop_requested(self) -> bool:
        """Whether the step to stop after is reached."""
        return self._stop_after is not None and self._step >= self._stop_after


def train(
    recipe: TrainConfig,
    folder: Path,
    *,
    stop_after: int | None = None,
    export: bool = False,
    until: Fraction = Fraction(1),
) -> tuple[FitResult, Recorder]:
    """One training in the current process group, or alone."""
    recorder = Recorder(stop_after)
    result = fit(
        recipe,
        world=World.current(torch.device("cpu")),
        monitor=recorder,
        places=Places(str(folder / "checkpoints"), folder / "model" if export else None),
        card=lambda metrics: "card",
        metadata={},
        until=until,
    )
    return result, recorder


@dataclass(frozen=True)
class Outcome:
    """What a training told its monitor and returned, on one rank."""

    values: dict[str, dict[int, float]]
    """Metrics by name and step; empty on every rank but 0."""
    events: list[str]
    result: FitResult

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by step."""
        return self.values["train/loss"]


def outcome(
    data: Path,
    folder: Path,
    changes: dict[str, Any],
    *,
    stop_after: int | None = None,
    export: bool = False,
    within: AbstractContextManager[None] | None = None,
) -> Outcome:
    """One training inside a context, as something that travels between processes."""
    with within or nullcontext():
        result, recorder = train(config(data, **changes), folder, stop_after=stop_after, export=export)
    return Outcome(recorder.values, recorder.events, result)


def outcome_until(data: Path, folder: Path, changes: dict[str, Any], stop_after: int) -> Outcome:
    """A training that is stopped after a step."""
    return outcome(data, folder, changes, stop_after=stop_after)


def interrupted(data: Path, folder: Path, changes: dict[str, Any], stop_after: int) -> tuple[Outcome, Outcome]:
    """A training that is stopped and one that goes on from there."""
    first = outcome(data, folder, changes, stop_after=stop_after)
    return first, outcome(data, folder, changes)


def failure(data: Path, folder: Path, changes: dict[str, Any], within: str, *arguments: Any) -> tuple[str, str]:
    """Type and message of the error that ends a training inside the context that `within` names."""
    try:
        inside(data, folder, changes, within, *arguments)
    except LowlandError as error:
        return type(error).__name__, str(error)
    raise AssertionError("the training did not fail")


def inside(data: Path, folder: Path, changes: dict[str, Any], within: str, *arguments: Any) -> Outcome:
    """A training inside the context that `within` names."""
    return outcome(data, folder, changes, within=_CONTEXTS[within](*arguments))


@contextmanager
def not_finite(
    kind: str, calls: set[int], rank: int | None = None, of: type[torch.nn.Module] = CausalLMLoss
) -> Iterator[None]:
    """Spoils some training forward passes, counted from 0.

    Args:
        kind: `loss`: loss and gradients are nan; `overflow`: the loss is inf, its gradients are finite;
            `gradient`: the loss is finite, its gradients are not.
        calls: which.
        rank: on which rank only; None for all.
        of: the module.
    """
    plain, count = of.forward, 0

    def forward(module: torch.nn.Module, *arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal count
        loss: torch.Tensor = plain(module, *arguments, **keywords)
        here = rank is None or not dist.is_initialized() or dist.get_rank() == rank
        hit = module.training and count in calls and here
        count += module.training
        if not hit:
            return loss
        if kind == "loss":
            return loss * torch.nan
        if kind == "overflow":
            return loss + torch.inf
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss * 1.0

    of.forward = forward
    try:
        yield
    finally:
        of.forward = plain


@contextmanager
def small_files(rank: int, limit: int) -> Iterator[None]:
    """No part of a checkpoint may grow beyond `limit` bytes on one rank, as if its disk were full."""
    import resource

    plain = checkpointer.write_part
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_part(*arguments: Any) -> None:
        # Only meanwhile: the file at which the ranks meet grows too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if dist.get_rank() == rank else soft, hard))
        try:
            plain(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    checkpointer.write_part = write_part
    try:
        yield
    finally:
        checkpointer.write_part = plain


_CONTEXTS: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "naive_adatamw": naive_adatamw,
    "not_finite": not_finite,
    "small_files": small_files,
}


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The whole fp32 weights of a checkpoint, flat, whichever ranks wrote them."""
    return states(folder, step)["weight"]


def states(folder: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """Each state of a checkpoint by parameter, flat: `weight`, `exp_avg` and so on."""
    pieces: dict[str, dict[str, list[tuple[int, torch.Tensor]]]] = {}
    for path in sorted((folder / "checkpoints" / f"step-{step:08d}").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, state, offset, name = key.split("|", 3)
                if kind != "rng":
                    pieces.setdefault(state, {}).setdefault(name, []).append((int(offset or 0), file.get_tensor(key)))
    return {state: {name: _joined(parts) for name, parts in held.items()} for state, held in pieces.items()}


def _joined(parts: list[tuple[int, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for _, tensor in sorted(parts, key=lambda part: part[0])])


def initial_weights(recipe: CausalLMConfig) -> dict[str, torch.Tensor]:
    """The weights before the first step, flat."""
    module = build_task(recipe, World.current(torch.device("cpu"))).build_module()
    return {name: parameter.detach().reshape(-1).clone() for name, parameter in module.named_parameters()}


def worst_loss(losses: dict[int, float], reference: dict[int, float]) -> float:
    """The largest relative difference of two loss trajectories; every step must be there."""
    assert losses.keys() == reference.keys()
    return max(abs(losses[step] - reference[step]) / abs(reference[step]) for step in reference)


def worst_update(
    trained: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]
) -> float:
    """The largest distance of a tensor from its reference, relative to how far training moved that one."""
    assert trained.keys() == reference.keys() == initial.keys()
    return max(
        float((trained[name] - reference[name]).norm() / (reference[name] - initial[name]).norm()) for name in reference
    )


def export(data: Path, folder: Path, changes: dict[str, Any], dtype: str = "float32") -> Outcome:
    """Five steps and the export of what they gave."""
    model = {"config": LLAMA, "dtype": dtype}
    short = {"length": "5 steps", "evaluation": {"every": None}, "checkpoints": {"every": None}, "model": model}
    return outcome(data, folder, {**short, **changes}, export=True)
