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

from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs, Problem
from lowland.trainers.methods.flops import Multiplications
from lowland.trainers.methods.noise import normal_at
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
        self._prefix = ""
        self._live: dict[str, Tensor] = {}
        self._fired: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        """By producer, bool [count]: the units that were not removed."""
        self._cost: Multiplications | None = None

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
        for units in self.units:
            self.kept[units.producer] = torch.ones(units.count, dtype=torch.bool)
            self._fired[units.producer] = torch.zeros(units.count, dtype=torch.bool)
            self._watch(units)

    def _watch(self, units: Units) -> None:
        assert self._network is not None

        def note(module: nn.Module, inputs: object, output: Tensor) -> None:
            if module.training and self.first_pass:
                live = (output.detach() > 0).transpose(0, 1).flatten(1).any(dim=1)
                before = self._live.get(units.producer)
                self._live[units.producer] = live if before is None else before | live

        self._network.get_submodule(units.relu).register_forward_hook(note)

    def attach(self, engine: Engine, world: World) -> None:
        """Notes under which prefix the engine's module has the network."""
        self._prefix = next(name for name, module in engine.module.named_modules() if module is self._network)
        self._prefix += "." if self._prefix else ""

    def begin_step(self, step: int) -> None:
        """Forgets which units were live."""
        self._step, self._live = step, {}

    def extra(self, outputs: Outputs) -> Tensor:
        """The penalty, once for each example, so that its mean is the penalty."""
        assert self._network is not None
        total = torch.zeros((), device=outputs.losses.device)
        for units in self.units:
            if units.norm is not None:
                scale = self._network.get_submodule(units.norm).weight
                assert isinstance(scale, Tensor)
                total = total + scale.float().abs().sum()
        return one_cycle(self._step, self._span, self._strength) * total.expand(len(outputs.losses))

    @torch.no_grad()
    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Noise, and removal if it is due."""
        self._agree(world)
        for producer, live in self._live.items():
            self._fired[producer] |= live
        if (self._step + 1) % self._every == 0:
            self._remove()
        deviation = one_cycle(self._step, self._span, self._noise)
        if deviation == 0:
            return
        shapes = _shapes(engine)
        numbers = {name: index for index, name in enumerate(sorted(shapes))}
        for piece in engine.pieces():
            name = piece.name.removeprefix(self._prefix)
            row, column, places = _indices(piece, shapes[piece.name])
            stream = self._step * len(numbers) + numbers[piece.name]
            noise = normal_at(self._seed, stream, places) * deviation
            if (alive := self._of(name, self._live, row, column)) is not None:
                noise = noise * alive
            piece.tensors["weight"].add_(noise.view(piece.tensors["weight"].shape))

    @torch.no_grad()
    def after_all(self, engine: Engine) -> None:
        """Removed units back to 0."""
        shapes = _shapes(engine)
        for piece in engine.pieces():
            name = piece.name.removeprefix(self._prefix)
            row, column, _ = _indices(piece, shapes[piece.name])
            if (kept := self._of(name, self.kept, row, column)) is not None:
                for tensor in piece.tensors.values():
                    tensor.mul_(kept.view(tensor.shape))
        engine.masters_changed()

    def _agree(self, world: World) -> None:
        """A unit that was live on any rank is live on all."""
        names = sorted(self._live)
        joined = torch.cat([self._live[name] for name in names]).to(torch.uint8)
        if world.size > 1:
            dist.all_reduce(joined, op=dist.ReduceOp.MAX)
        sizes = [len(self._live[name]) for name in names]
        self._live = {name: part.bool().cpu() for name, part in zip(names, joined.split(sizes), strict=True)}

    def _remove(self) -> None:
        for producer, fired in self._fired.items():
            left = self.kept[producer] & fired
            # A layer without any unit would be no layer.
            self.kept[producer] = left if bool(left.any()) else self.kept[producer]
            self._fired[producer] = torch.zeros_like(fired)

    def _of(self, name: str, flags: Mapping[str, Tensor], row: Tensor, column: Tensor) -> Tensor | None:
        """The flags of the units that each element of a parameter belongs to, all of which must hold; None: to none."""
        found: Tensor | None = None
        for units in self.units:
            dimension = units.tensors().get(name)
            if dimension is None or units.producer not in flags:
                continue
            own = flags[units.producer].to(row.device)[row if dimension == 0 else column]
            found = own if found is None else found & own
        return found

    def state(self) -> dict[str, Tensor]:
        """Which units are left, and which fired since the last removal."""
        kept = {f"kept/{name}": value.to(torch.uint8) for name, value in self.kept.items()}
        return kept | {f"fired/{name}": value.to(torch.uint8) for name, value in self._fired.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        for held, prefix in ((self.kept, "kept/"), (self._fired, "fired/")):
            for name in held:
                held[name] = state[prefix + name].bool()

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the removed units."""
        return sliced(weights, self.kept, self.units)

    def metrics(self) -> dict[str, float]:
        """Shares of removable units that were removed and that are dead now, the penalty's factor, FLOPs."""
        total = sum(len(kept) for kept in self.kept.values())
        left = sum(int(kept.sum()) for kept in self.kept.values())
        live = sum(int(flags.sum()) for flags in self._live.values())
        shares = {name: float(kept.double().mean()) for name, kept in self.kept.items()}
        assert self._cost is not None
        return {
            "removed": 1 - left / total,
            "dead": 1 - live / total,
            "strength": one_cycle(self._step, self._span, self._strength),
            **self._cost.without(shares, {units.consumer: shares[units.producer] for units in self.units}),
        }


def _shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def _indices(piece: StatePiece, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """For each element of a piece its index along the parameter's first and second dimension, and its place."""
    weight, start = piece.tensors["weight"], piece.segment.offset
    places = torch.arange(start, start + weight.numel(), device=weight.device)
    row = piece.numel // shape[0] if shape else 1
    column = row // shape[1] if len(shape) > 1 else 1
    return places // row, places % row // column, places
