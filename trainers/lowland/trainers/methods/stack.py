"""All methods of a training together, as the loop and the checkpoints see them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowland.trainers.data.images.sampling import Sampling
from lowland.trainers.engines import Engine, StatePiece
from lowland.trainers.methods.base import Method, Problem, SeveralGradients
from lowland.trainers.methods.objective import AllRanks, Objective
from lowland.trainers.world import World


class Methods:
    """The methods, in the order of the recipe; none is the common case and does nothing.

    Args:
        methods: each of another name.
        world: the ranks.
    """

    def __init__(self, methods: Sequence[Method], world: World) -> None:
        self._methods, self._world = tuple(methods), world
        self.objective = Objective(self._methods, AllRanks(world)) if methods else None
        """What the task's module makes of its outputs; None is the sum of losses."""

    @property
    def of_features(self) -> str | None:
        """The first method that wants what the classifier is given; None if none does."""
        return next((method.name for method in self._methods if method.of_features), None)

    @property
    def names(self) -> tuple[str, ...]:
        """As the recipe has them."""
        return tuple(method.name for method in self._methods)

    @property
    def several_gradients(self) -> SeveralGradients | None:
        """The method that makes one gradient of several; None is the common case."""
        return next((method for method in self._methods if isinstance(method, SeveralGradients)), None)

    @property
    def sampling(self) -> Sampling | None:
        """How often training images come, if a method says it."""
        return next((method.sampling for method in self._methods if method.sampling is not None), None)

    def two_passes(self, micro_batches: int) -> bool:
        """Whether numbers of the batch must be collected before gradients are taken."""
        return self.objective is not None and self.objective.of_batch and micro_batches > 1

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Lets each change the network."""
        for method in self._methods:
            method.build(network, problem)

    def attach(self, engine: Engine) -> None:
        """Tells each of the engine."""
        for method in self._methods:
            method.attach(engine, self._world)

    def begin_step(self, step: int) -> None:
        """Before the gradients of a step, counted from 0."""
        if self.objective is not None:
            self.objective.begin_step()
        for method in self._methods:
            method.first_pass = True
            method.begin_step(step)

    def end_pass(self) -> None:
        """After each of a step's gradients: those that follow are not the first."""
        for method in self._methods:
            method.first_pass = False

    def after_step(self, engine: Engine) -> None:
        """After a step that was applied; collective."""
        batch = self.objective.batch if self.objective is not None else None
        for method in self._methods:
            method.after_step(engine, self._world, batch)
        for method in self._methods:
            method.after_all(engine)

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """Step and length at which the learning-rate schedule is read."""
        for method in self._methods:
            step, total = method.schedule(step, total)
        return step, total

    def metrics(self) -> dict[str, float]:
        """What each says of the last step, by its name; collective."""
        return {
            f"methods/{method.name}/{name}": value
            for method in self._methods
            for name, value in method.metrics().items()
        }

    def pieces(self, engine: Engine) -> Iterator[StatePiece]:
        """The engine's state with that of the methods, to be saved or loaded."""
        for piece in engine.pieces():
            own = {name: tensor for method in self._methods for name, tensor in method.piece_state(piece).items()}
            yield replace(piece, tensors={**piece.tensors, **own}) if own else piece

    def exported(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is exported of the network's weights, by name."""
        for method in self._methods:
            weights = method.exported(weights)
        return weights

    def state(self) -> dict[str, Tensor]:
        """State of no parameter, the same on every rank."""
        return {f"{method.name}/{name}": value for method in self._methods for name, value in method.state().items()}

    def load_state(self, state: Mapping[str, Tensor | float]) -> None:
        """Restores `state`; what is kept of it is a copy."""
        for method in self._methods:
            prefix = f"{method.name}/"
            own = {
                name.removeprefix(prefix): torch.as_tensor(value).clone()
                for name, value in state.items()
                if name.startswith(prefix)
            }
            if own:
                method.load_state(own)
