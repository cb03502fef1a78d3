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
from lowland.trainers.methods.elements import flags_of
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.noise import normal_in_a_row
from lowland.trainers.methods.removal import Removal
from lowland.trainers.models.units import Units, removable_units
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
        self._norms: list[nn.Module] = []
        self._highest: dict[str, Tensor] = {}
        # Of all units, one behind the other: live in the last step, and live since the last removal.
        self._live = self._fired = torch.empty(0, dtype=torch.bool)
        self._removal: Removal | None = None
        self._cost: Multiplications | None = None

    @property
    def kept(self) -> dict[str, Tensor]:
        """By producer, bool [count]: the units that were not removed."""
        assert self._removal is not None
        return self._removal.kept

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Finds the units and watches their ReLUs."""
        self._seed = problem.seed
        self.units = removable_units(network)
        if not self.units:
            raise RecipeError(
                f"methods: demp: {type(network).__name__} has no removable units, which lie between two layers "
                "with a ReLU in an nn.Sequential, as in the ResNets of lowland: choose another "
                "model, or remove it"
            )
        self._cost = Multiplications(network, problem.shape)
        self._norms = [network.get_submodule(units.norm) for units in self.units if units.norm is not None]
        self._removal = Removal(network, self.units)
        self._live, self._fired = self._removal.flags.clone(), torch.zeros_like(self._removal.flags)
        for units in self.units:
            assert units.relu is not None
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
        assert self._removal is not None
        self._removal.attach()

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
        assert self._removal is not None
        weights = [piece.tensors["weight"] for piece in engine.pieces()]
        elements = self._removal.elements(engine)
        streams = [self._step * elements.tensors + number for number in elements.numbers]
        noise = normal_in_a_row(self._seed, streams, elements.starts, elements.sizes, elements.device)
        noise.mul_(deviation).mul_(elements.of(self._live))
        parts = [part.view_as(weight) for part, weight in zip(elements.cut(noise), weights, strict=True)]
        torch._foreach_add_(weights, parts)

    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        assert self._removal is not None
        self._removal.zero(engine)

    def _agreed(self, world: World) -> Tensor:
        """Bool [units]: live on any rank, the same on all."""
        live = torch.cat([self._highest[units.producer] for units in self.units]) > 0
        if world.size == 1:
            return live
        joined = live.to(torch.uint8)
        dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        return joined.bool()

    def _remove(self) -> None:
        assert self._removal is not None
        left = self._removal.flags & self._fired.cpu()
        for before, still in zip(self.kept.values(), flags_of(self.units, left).values(), strict=True):
            # A layer without any unit would be no layer.
            if not bool(still.any()):
                still.copy_(before)
        self._removal.keep(left)
        self._fired = torch.zeros_like(self._fired)

    def state(self) -> dict[str, Tensor]:
        """Which units are left, and which fired since the last removal."""
        found: dict[str, Tensor] = {}
        for prefix, flags in (("kept/", self.kept), ("fired/", flags_of(self.units, self._fired.cpu()))):
            found |= {prefix + name: part.to(torch.uint8) for name, part in flags.items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        assert self._removal is not None
        kept, self._fired = (
            torch.cat([state[prefix + units.producer] for units in self.units]).bool() for prefix in ("kept/", "fired/")
        )
        self._removal.keep(kept)

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the removed units."""
        assert self._removal is not None
        return self._removal.exported(weights)

    def metrics(self) -> dict[str, float]:
        """Shares of removable units that were removed and that are dead now, the penalty's factor, FLOPs."""
        assert self._removal is not None
        assert self._cost is not None
        return {
            "removed": self._removal.removed,
            "dead": 1 - int(self._live.sum()) / len(self._live),
            "strength": one_cycle(self._step, self._span, self._strength),
            **self._removal.multiplications(self._cost),
        }
