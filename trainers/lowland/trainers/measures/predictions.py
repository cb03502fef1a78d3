"""What a network says of the examples of a batch, one by one, beside what they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.measures.groups import GroupTotals
from lowland.trainers.measures.probe import Probe
from lowland.trainers.measures.representation import last_layer
from lowland.trainers.world import World

__all__ = ["Predictions", "group_metrics", "predictions"]


@dataclass(frozen=True)
class Predictions:
    """Of one micro-batch, on the CPU; of text each predicted token is an example."""

    logits: Tensor
    """float32 [n, C]."""
    labels: Tensor
    """int64 [n]."""
    groups: Tensor | None
    """int64 [n]; None where examples have none."""


@torch.no_grad()
def predictions(probe: Probe, engine: Engine, measure: str) -> Iterator[Predictions]:
    """Those of this rank's micro-batches; collective at ZeRO stage 3.

    Args:
        probe: whose batch.
        engine: of the training.
        measure: who asks, for messages.

    Raises:
        RecipeError: the network's last layer gives no logits, or the batch has no labels.
    """
    with last_layer(engine.module) as layers:
        for inputs in probe.inputs():
            engine.evaluate(inputs)
            labels, output = inputs.get("labels"), layers.output
            if labels is None or not layers.has_head or output.shape[:-1] != labels.shape:
                raise RecipeError(
                    f"measures.names: {measure} needs a network whose last layer gives logits for each label: "
                    "remove it, or set model.fused_loss: never where the head is part of the loss"
                )
            counted = labels >= 0
            groups = inputs.get("groups")
            yield Predictions(
                output[counted].float().cpu(),
                labels[counted].cpu(),
                None if groups is None else groups[counted].cpu(),
            )


def group_metrics(found: Iterator[Predictions], world: World) -> dict[str, float]:
    """`GroupTotals.metrics` of predictions; collective.

    Raises:
        RecipeError: the examples have no groups.
    """
    held = list(found)
    if any(one.groups is None for one in held):
        raise RecipeError("measures.names: groups needs examples with groups: give data.group_column, or remove it")
    largest = max((int(one.groups.max()) for one in held if one.groups is not None and len(one.groups)), default=-1)
    totals = GroupTotals(max(world.gather(largest)) + 1)
    for one in held:
        assert one.groups is not None
        losses = functional.cross_entropy(one.logits, one.labels, reduction="none")
        totals.add(losses, one.logits.argmax(-1) == one.labels, one.groups)
    return totals.metrics(world)
