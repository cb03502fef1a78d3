"""DemP: units are encouraged to die, and dead units are taken out.

Dufort-Labbe et al., *Maxwell's demon at work: efficient pruning by leveraging saturation of neurons* (2024).  A
penalty on the scales of norms, which rises and falls once, and noise on the weights of live units alone push units to
where their ReLU never lets anything through.  A dead unit takes no noise, and its gradients are 0: it stays dead.
"""

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs, Problem
from lowland.trainers.methods.elements import Elements, flags_of
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.noise import normal_in_a_row
from lowland.trainers.models.units import Units, removable_units, sliced
from lowland.trainers.world import World


def one_cycle(step: int, span: int, peak: float) -> float:
    """Half a cosine from peak / 25 up to the peak at 0.3 span, and down to peak / 250000 at span; constant after it."""
    low, lowest, top = peak / 25, peak / 25e4, 0.3 * span
    if step >= span:
        return lowest
    if step < top:
        return _between(low, peak, step / top)
    return _between(peak, lowest, (step - top) / (span - top))


def _between(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


class DemP(Method):
    """The penalty, the noise and the removal.

    A unit is live in a step if its ReLU lets anything through for any example of the global batch, at the weights
    before the step: else all gradients of its weights are 0.  One that was not live in any step since the last removal
    is removed: its weights and their optimizer state are kept at 0, and the exported model does not have it.  One unit
    of each layer is always left.

    A step takes a few operations for all weights together and waits for no result of them; a removal waits once.

    Args:
        strength: peak of the penalty on the sum of |scale| of the norms of removable units.
        noise: peak of the deviation of the noise that is added to trainable weights after each step, not times the
            rate.
        span: steps of the cycle.
        every: steps between removals.
    """

    name = "demp"

    def __init__(self, strength: float, noise: float, *, span: int, every: int) -> None:
        self._strength, self._noise, self._span, self._every = strength, noise, span, every
        self._step, self._seed = 0, 0
        self.units: list[Units] = []
        self._network: nn.Module | None = None
        self._norms: list[nn.Module] = []
        self._highest: dict[str, Tensor] = {}
        # Of all units, one behind the other: live in the last step, live since the last removal, and not removed.
        self._live = self._fired = self._kept = torch.empty(0, dtype=torch.bool)
        self._elements: Elements | None = None
        self._numbers: dict[str, int] = {}
        self._masks: list[Tensor | None] | None = None
        self._cost: Multiplications | None = None

    @property
    def kept(self) -> dict[str, Tensor]:
        """By producer, bool [count]: the units that were not removed."""
        return flags_of(self.units, self._kept)

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Finds the units and watches their ReLUs."""
        self._network, self._seed = network, problem.seed
        self.units = removable_units(network)
        if not self.units:
            raise RecipeError(
                f"methods: demp: {type(network).__name__} has no removable units, which lie between two layers "
                "with a ReLU in an nn.Sequential, as in the ResNets of lowland: choose another "
                "model, or remove it"
            )
        self._cost = Multiplications(network, problem.shape)
        self._norms = [network.get_submodule(units.norm) for units in self.units if units.norm is not None]
        self._kept = torch.ones(sum(units.count for units in self.units), dtype=torch.bool)
        self._live, self._fired = self._kept.clone(), torch.zeros_like(self._kept)
        for units in self.units:
            self._watch(network.get_submodule(units.relu), units.producer)

    def _watch(self, relu: nn.Module, producer: str) -> None:
        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            if module.training and self.first_pass:
                highest = output.detach().amax(dim=[0, *range(2, output.dim())])
                before = self._highest.get(producer)
                self._highest[producer] = highest if before is None else torch.maximum(before, highest)

        relu.register_forward_hook(note)

    def attach(self, engine: Engine, world: World) -> None:
        """Forgets where another engine's pieces lay."""
        self._elements = self._masks = None

    def begin_step(self, step: int) -> None:
        """Forgets what units let through."""
        self._step, self._highest = step, {}

    def extra(self, outputs: Outputs) -> Tensor:
        """The penalty, once for each example, so that its mean is the penalty."""
        total = torch.zeros((), device=outputs.losses.device)
        if self._norms:
            total = torch.cat([norm.get_parameter("weight").float() for norm in self._norms]).abs().sum()
        return one_cycle(self._step, self._span, self._strength) * total.expand(len(outputs.losses))

    @torch.no_grad()
    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Noise, and removal if it is due."""
        self._live = self._agreed(world)
        self._fired = self._fired.to(self._live.device) | self._live
        if (self._step + 1) % self._every == 0:
            self._remove()
        deviation = one_cycle(self._step, self._span, self._noise)
        if deviation == 0:
            return
        weights = [piece.tensors["weight"] for piece in engine.pieces()]
        elements = self._placed(engine)
        streams = [self._step * len(self._numbers) + self._numbers[name] for name in elements.names]
        noise = normal_in_a_row(self._seed, streams, elements.starts, elements.sizes, elements.device)
        noise.mul_(deviation).mul_(elements.of(self._live))
        parts = [part.view_as(weight) for part, weight in zip(elements.cut(noise), weights, strict=True)]
        torch._foreach_add_(weights, parts)

    @torch.no_grad()
    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        if self._masks is None:
            self._masks = self._masks_of(self._placed(engine))
        tensors, masks = [], []
        for piece, mask in zip(engine.pieces(), self._masks, strict=True):
            if mask is not None:
                tensors += piece.tensors.values()
                masks += [mask.view_as(tensor) for tensor in piece.tensors.values()]
        if tensors:
            torch._foreach_mul_(tensors, masks)
        engine.masters_changed()

    def _placed(self, engine: Engine) -> Elements:
        """Where the pieces' elements belong, found once."""
        if self._elements is None:
            named = dict(engine.module.named_parameters())
            prefix = next(name for name, module in engine.module.named_modules() if module is self._network)
            prefix += "." if prefix else ""
            self._numbers = {name: index for index, name in enumerate(sorted(named))}
            shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in named.items()}
            self._elements = Elements(list(engine.pieces()), shapes, prefix, self.units)
        return self._elements

    def _masks_of(self, elements: Elements) -> list[Tensor | None]:
        """By piece, bool: what is not removed of it; None is all."""
        cut = {name for one in self.units if not bool(self.kept[one.producer].all()) for name in one.tensors()}
        if not cut:
            return [None] * len(elements.names)
        masks = zip(elements.cut(elements.of(self._kept)), elements.inside, strict=True)
        return [mask if name in cut else None for mask, name in masks]

    def _agreed(self, world: World) -> Tensor:
        """Bool [units]: live on any rank, the same on all."""
        live = torch.cat([self._highest[units.producer] for units in self.units]) > 0
        if world.size == 1:
            return live
        joined = live.to(torch.uint8)
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return joined.bool()

    def _remove(self) -> None:
        left = self._kept & self._fired.cpu()
        for kept, still in zip(self.kept.values(), flags_of(self.units, left).values(), strict=True):
            # A layer without any unit would be no layer.
            if bool(still.any()):
                kept.copy_(still)
        self._fired = torch.zeros_like(self._fired)
        self._masks = None

    def state(self) -> dict[str, Tensor]:
        """Which units are left, and which fired since the last removal."""
        found = {}
        for prefix, flags in (("kept/", self._kept), ("fired/", self._fired.cpu())):
            found |= {prefix + name: part.to(torch.uint8) for name, part in flags_of(self.units, flags).items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._kept, self._fired = (
            torch.cat([state[prefix + units.producer] for units in self.units]).bool() for prefix in ("kept/", "fired/")
        )
        self._masks = None

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the removed units."""
        return sliced(weights, self.kept, self.units)

    def metrics(self) -> dict[str, float]:
        """Shares of removable units that were removed and that are dead now, the penalty's factor, FLOPs."""
        shares = {name: float(kept.double().mean()) for name, kept in self.kept.items()}
        assert self._cost is not None
        return {
            "removed": 1 - int(self._kept.sum()) / len(self._kept),
            "dead": 1 - int(self._live.sum()) / len(self._live),
            "strength": one_cycle(self._step, self._span, self._strength),
            **self._cost.without(shares, {units.consumer: shares[units.producer] for units in self.units}),
        }
