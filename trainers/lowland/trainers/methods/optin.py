"""OPTIN: the heads and neurons of a transformer whose removal changes the rest of it least are taken out, once.

Khaki and Plataniotis, *The need for speed: pruning transformers with one recipe* (ICLR 2024).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.trainers.blocks import repeated_blocks
from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Problem
from lowland.trainers.methods.cobalt import PlainImages
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.removal import Removal
from lowland.trainers.methods.trajectory import Candidates, Trajectory, importance, kept_within
from lowland.trainers.models.image_classifier import ImageClassifierLoss
from lowland.trainers.models.units import Units, attention_heads, hidden_neurons
from lowland.trainers.world import World

_AT_ONCE = 256
"""Images in a forward pass, copies counted."""


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
        self._blocks: list[nn.Module] = []
        self._heads: list[Units] = []
        self._neurons: list[Units] = []
        self._removal: Removal | None = None
        self._cost: Multiplications | None = None
        self._network: nn.Module | None = None

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Finds heads and neurons, and refuses budgets that are too small."""
        if getattr(getattr(network, "config", None), "model_type", None) != "vit":
            raise RecipeError(
                f"methods: optin takes out heads and neurons of vision transformers, and the model is "
                f"{type(network).__name__}: take model.architecture: vit-... or a model.path with model_type vit, or "
                "remove it"
            )
        self._network, self._seed = network, problem.seed
        self._blocks = repeated_blocks(network)
        self._heads, self._neurons = attention_heads(network), hidden_neurons(network)
        self._removal = Removal(network, self._units)
        self._cost = Multiplications(network, problem.shape)
        least = sum(self._cost_of(one) for one in self._units)
        if self._budget() < least:
            share = (least + self._rest()) / sum(self._cost.by_layer.values())
            raise RecipeError(
                f"methods: optin.flops = {self._flops}: with one head and one neuron in each block {share:.3f} of the "
                "multiplications are left; raise it"
            )

    @property
    def _units(self) -> list[Units]:
        return [*self._heads, *self._neurons]

    def attach(self, engine: Engine, world: World) -> None:
        """Forgets where another engine's pieces lay."""
        assert self._removal is not None
        self._removal.attach()

    def begin_step(self, step: int) -> None:
        """Notes the step."""
        self._step = step

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Scores and removes, once; at or after its step, since at a step that was skipped this is not called."""
        if not self._done and self._step + 1 >= self._at:
            scores = importance(self._effects(engine, world), self._balance)
            self._choose(scores)
            self._done = True

    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        if self._done:
            assert self._removal is not None
            self._removal.zero(engine)

    def _choose(self, scores: Tensor) -> None:
        assert self._removal is not None
        heads, neurons = scores.split([_count(self._heads), _count(self._neurons)])
        kept = kept_within(
            self._candidates(self._heads, heads), self._candidates(self._neurons, neurons), self._budget()
        )
        widths = torch.cat([torch.full((one.count // one.width,), one.width) for one in self._units])
        self._removal.keep(torch.cat(kept).repeat_interleave(widths))

    def _candidates(self, units: Sequence[Units], scores: Tensor) -> Candidates:
        blocks = torch.tensor([index for one, index in self._placed(units) for _ in range(one.count // one.width)])
        return Candidates(scores, blocks, self._cost_of(units[0]))

    def _placed(self, units: Sequence[Units]) -> Iterator[tuple[Units, int]]:
        """Units with the block that they are in."""
        assert self._network is not None
        for one in units:
            consumer = self._network.get_submodule(one.consumer)
            yield one, next(i for i, block in enumerate(self._blocks) if consumer in block.modules())

    def _cost_of(self, units: Units) -> int:
        """Multiplications of one of them."""
        assert self._cost is not None
        layers = (units.producer, *units.beside, units.consumer)
        return sum(self._cost.by_layer[name] for name in layers) * units.width // units.count

    def _rest(self) -> int:
        """Multiplications of what is never removed."""
        assert self._cost is not None
        removable = sum(self._cost_of(one) * one.count // one.width for one in self._units)
        return sum(self._cost.by_layer.values()) - removable

    def _budget(self) -> int:
        assert self._cost is not None
        return int(self._flops * sum(self._cost.by_layer.values())) - self._rest()

    @torch.no_grad()
    def _effects(self, engine: Engine, world: World) -> Tensor:
        """float64 [units, 2] as of `Trajectory.without`, the same on every rank; collective."""
        assert self._network is not None
        images, module = self._calibration(world), engine.module
        assert isinstance(module, ImageClassifierLoss)
        effects = torch.zeros(_count(self._units), 2, dtype=torch.float64)
        at_once = max(1, _AT_ONCE // len(images))
        with engine.evaluating():
            trajectory = Trajectory(module.logits, self._blocks, module.normalised(images), seed=self._seed)
            first = 0
            for one, block in self._placed(self._units):
                consumer = self._network.get_submodule(one.consumer)
                of_unit = torch.arange(one.count, device=images.device) // one.width
                for turn, some in enumerate(of_unit.unique().split(at_once)):
                    if turn % world.size == world.rank:
                        found = trajectory.without(block, consumer, of_unit != some[:, None])
                        effects[first + some.cpu()] = found.cpu()
                first += one.count // one.width
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
        assert self._removal is not None
        assert self._cost is not None
        kept = self._removal.kept
        heads, neurons = (torch.cat([kept[one.producer] for one in units]) for units in (self._heads, self._neurons))
        return {
            "removed_heads": 1 - float(heads.double().mean()),
            "removed_neurons": 1 - float(neurons.double().mean()),
            **self._removal.multiplications(self._cost),
        }


def _count(units: Sequence[Units]) -> int:
    return sum(one.count // one.width for one in units)
