"""OPTIN: the heads and neurons of a transformer whose removal changes the rest of it least are taken out, once.

Khaki and Plataniotis, *The need for speed: pruning transformers with one recipe* (ICLR 2024).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Problem
from lowland.trainers.methods.cobalt import PlainImages
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.removal import Removal
from lowland.trainers.methods.trajectory import importance
from lowland.trainers.methods.transformer_units import TransformerUnits
from lowland.trainers.models.image_classifier import ImageClassifierLoss
from lowland.trainers.world import World


class OPTIN(Method):
    """Scores all units after a step, and takes out what is over the budget.

    Cost: for each unit, a forward pass of `count` images through its block and those behind it; ranks share them.

    Args:
        images: of the training set.
        flops: multiplications that are left, as a share of the whole network's.
        at: steps after which it is done; at least 1.
        count: images to score by.
        balance: of `importance`.
    """

    name = "optin"

    def __init__(self, images: PlainImages, *, flops: float, at: int, count: int, balance: float) -> None:
        self._images, self._flops, self._at, self._count, self._balance = images, flops, at, count, balance
        self._step, self._seed, self._done = 0, 0, False
        self._units: TransformerUnits | None = None
        self._removal: Removal | None = None
        self._cost: Multiplications | None = None

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Finds heads and neurons, and refuses budgets that are too small."""
        self._seed, self._cost = problem.seed, Multiplications(network, problem.shape)
        self._units = TransformerUnits(network, self._cost)
        of_type = getattr(getattr(network, "config", None), "model_type", None)
        if of_type != "vit" or not self._units.heads or not self._units.neurons:
            raise RecipeError(
                f"methods: optin takes out heads and neurons of vision transformers, and the model is "
                f"{type(network).__name__}: take model.architecture: vit-... or a model.path with model_type vit, or "
                "remove it"
            )
        self._removal = Removal(network, self._units.all)
        if self._flops < self._units.least:
            raise RecipeError(
                f"methods: optin.flops = {self._flops}: with one head and one neuron in each block "
                f"{self._units.least:.3f} of the multiplications are left; raise it"
            )

    def attach(self, engine: Engine, world: World) -> None:
        """Forgets where another engine's pieces lay."""
        assert self._removal is not None
        self._removal.attach()

    def begin_step(self, step: int) -> None:
        """Notes the step."""
        self._step = step

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Scores and removes, once; at or after its step, since at a step that was skipped this is not called."""
        if self._done or self._step + 1 < self._at:
            return
        assert self._units is not None
        assert self._removal is not None
        importances = importance(self._effects(engine, world), self._balance)
        self._removal.keep(self._units.within(importances, self._flops))
        self._done = True

    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        if self._done:
            assert self._removal is not None
            self._removal.zero(engine)

    @torch.no_grad()
    def _effects(self, engine: Engine, world: World) -> Tensor:
        """Of all units, the same on every rank; collective."""
        assert self._units is not None
        images, module = self._calibration(world), engine.module
        assert isinstance(module, ImageClassifierLoss)
        with engine.evaluating():
            seen, part = module.normalised(images), (world.rank, world.size)
            effects = self._units.effects(module.logits, seen, seed=self._seed, part=part)
        return torch.tensor(world.sum(effects.flatten().tolist()), dtype=torch.float64).view_as(effects)

    def _calibration(self, world: World) -> Tensor:
        """The images on every rank, in the order of the training set; collective."""
        mine = [(batch.rows[:counted], batch.images[:counted]) for batch, counted in self._images(self._count)]
        parts = [part for of_rank in world.gather(mine) for part in of_rank]
        rows, images = torch.cat([rows for rows, _ in parts]), torch.cat([images for _, images in parts])
        return images[rows.argsort()].to(world.device)

    def state(self) -> dict[str, Tensor]:
        """Which units are left, once that is known."""
        assert self._removal is not None
        return {"kept": self._removal.flags.to(torch.uint8)} if self._done else {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        assert self._removal is not None
        self._removal.keep(state["kept"])
        self._done = True

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the removed units."""
        assert self._removal is not None
        return self._removal.exported(weights)

    def metrics(self) -> dict[str, float]:
        """Once it is done, shares of heads and neurons that were removed, and FLOPs."""
        if not self._done:
            return {}
        assert self._units is not None
        assert self._removal is not None
        assert self._cost is not None
        kinds, kept = (self._units.heads, self._units.neurons), self._removal.kept
        heads, neurons = (torch.cat([kept[one.producer] for one in units]) for units in kinds)
        return {
            "removed_heads": 1 - float(heads.double().mean()),
            "removed_neurons": 1 - float(neurons.double().mean()),
            **self._removal.multiplications(self._cost),
        }
