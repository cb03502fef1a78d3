"""The measures that a recipe asks for, taken in a training at any world size and ZeRO stage.

Losses and gradients are those of a fixed batch, the first of the training's, in evaluation mode.  Hessian products are
central differences of gradients, H v = (g(theta + h v) - g(theta - h v)) / 2h with |h v| = `STEP`, so that no rank
needs more than its own part of the weights.  Every measure puts weights, gradients and generators back as they were.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from lowland.trainers.engines import Engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.measures.alignment import cka, kernel_alignment
from lowland.trainers.measures.curvature import lanczos
from lowland.trainers.measures.difficulty import el2n
from lowland.trainers.measures.ntk import projected_ntk
from lowland.trainers.measures.predictions import group_metrics, predictions
from lowland.trainers.measures.probe import Probe, Vector
from lowland.trainers.measures.rank import effective_rank
from lowland.trainers.measures.representation import last_layer
from lowland.trainers.recipe import MeasuresConfig, TrainConfig
from lowland.trainers.tasks import StepInputs, Task, build_task
from lowland.trainers.world import World

__all__ = ["TrainingMeasures"]

STEP = 1e-2
"""Length in weight space over which curvature is taken: rounding of fp32 is far below, SAM's rho above it."""
MOMENTA = ("exp_avg", "momentum_buffer")
"""What optimizers call a running mean of gradients that is shaped like its parameter."""
PROJECTIONS = 4
"""Of the tangent kernel; the same ones at every measurement, so that their noise is not taken for a change."""
FROM_START = {"weight_movement", "representation", "ntk"}
"""Measures that compare with the weights at initialisation."""


class TrainingMeasures:
    """What is measured of one training; every method is collective.

    Args:
        config: the recipe.
        measures: its section.
        task: of the training; its first batches are what is measured on.
        engine: of the training.
        world: the ranks.

    Raises:
        RecipeError: the model computes in bf16, which rounds away what a measure looks at.
    """

    def __init__(self, config: TrainConfig, measures: MeasuresConfig, task: Task, engine: Engine, world: World) -> None:
        if task.bf16 and (rounded := measures.rounded_in_bf16()):
            raise RecipeError(f"measures.names: {rounded} {measures.NEEDS_FP32}")
        self._recipe, self._config = config, measures
        self._task, self._engine, self._world = task, engine, world
        self._cosine: float | None = None
        self._started: _Start | None = None
        self._firsts: list[dict[str, Tensor | None]] | None = None
        self._probe = Probe(engine, self._batches(), world)
        self._takes: Mapping[str, Callable[[], dict[str, float]]] = {
            "gradient_momentum_cosine": self._gradient_momentum_cosine,
            "sharpness": self._sharpness,
            "top_eigenvalue": self._top_eigenvalue,
            "effective_rank": self._effective_rank,
            "weight_movement": self._weight_movement,
            "representation": self._representation,
            "ntk": self._ntk,
            "difficulty": self._difficulty,
            "groups": self._groups,
        }

    def see_gradients(self, steps: int) -> None:
        """Takes the cosine between a step's gradients and the momentum before it; called between the two.

        Args:
            steps: taken so far; before the first there is no momentum.

        Raises:
            RecipeError: the optimizer keeps no momentum.
        """
        if "gradient_momentum_cosine" not in self._config.names or steps == 0:
            return
        states = {(p.segment.parameter, p.segment.offset): p.tensors for p in self._engine.pieces()}
        pairs = [
            (segment, states[segment.parameter, segment.offset][name], gradient)
            for segment, _, gradient in self._engine.weights.gradients()
            for name in MOMENTA
            if name in states[segment.parameter, segment.offset]
        ]
        if not self._world.sum([float(len(pairs))])[0]:
            raise RecipeError(
                "measures.names: gradient_momentum_cosine needs an optimizer that keeps a momentum shaped like its "
                "parameters, and this one does not; remove it"
            )
        one, both, other = self._engine.weights.layout.products(pairs).sum(0).tolist()
        self._cosine = both / (one * other) ** 0.5 if one * other > 0 else None

    def take(self, steps: int) -> dict[str, float]:
        """The measures at the weights after so many steps, as `measure/<name>`, the same on every rank."""
        with self._probe.looking():
            if self._started is None and FROM_START & set(self._config.names):
                self._started = self._start(steps)
            values = [self._takes[name]() for name in dict.fromkeys(self._config.names)]
        return {f"measure/{name}": value for found in values for name, value in found.items()}

    def _gradient_momentum_cosine(self) -> dict[str, float]:
        return {} if self._cosine is None else {"gradient_momentum_cosine": self._cosine}

    def _sharpness(self) -> dict[str, float]:
        loss, gradient = self._probe.gradient()
        norm = self._probe.dot(gradient, gradient) ** 0.5
        with self._probe.displaced(gradient, self._config.rho / norm if norm else 0.0):
            return {"sharpness": self._probe.loss() - loss}

    def _top_eigenvalue(self) -> dict[str, float]:
        found = lanczos(self._hessian_product, self._probe.random(), self._probe.dot, self._config.iterations)
        return {"top_eigenvalue": found.largest, "least_eigenvalue": found.smallest}

    def _hessian_product(self, vector: Vector) -> Vector:
        """H times a unit vector."""
        with self._probe.displaced(vector, STEP):
            _, ahead = self._probe.gradient()
        with self._probe.displaced(vector, -STEP):
            _, behind = self._probe.gradient()
        return [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]

    def _effective_rank(self) -> dict[str, float]:
        """Of every matrix as a share of its full rank; rank 0 has the whole ones and tells the others."""
        parameters = {name for name, _ in self._engine.module.named_parameters()}
        shares = [
            effective_rank(weight.to(self._world.device)) / min(len(weight), weight[0].numel())
            for name, weight in self._engine.full_weights()
            if name in parameters and weight.dim() >= 2
        ]
        shares = self._world.gather(shares)[0]
        return {"effective_rank": sum(shares) / len(shares), "effective_rank_min": min(shares)} if shares else {}

    def _weight_movement(self) -> dict[str, float]:
        assert self._started is not None
        start = self._started.weights
        moved = [piece - before for piece, before in zip(self._probe.masters(), start, strict=True)]
        distance, _, length = self._probe.products(moved, start)
        return {"weight_movement": (distance / length) ** 0.5 if length else 0.0}

    def _representation(self) -> dict[str, float]:
        assert self._started is not None
        assert self._started.features is not None
        features = self._features()
        return {
            "representation_alignment": cka(self._started.features, features),
            "representation_rank": effective_rank(features - features.mean(0)),
        }

    def _ntk(self) -> dict[str, float]:
        assert self._started is not None
        assert self._started.kernel is not None
        kernel = self._kernel()
        return {
            "ntk_alignment": kernel_alignment(self._started.kernel, kernel),
            "ntk_trace": float(kernel.trace()),
        }

    def _difficulty(self) -> dict[str, float]:
        found = predictions(self._probe, self._engine, "difficulty")
        mine = [score for one in found for score in el2n(one.logits, one.labels).tolist()]
        scores = torch.tensor([score for of_rank in self._world.gather(mine) for score in of_rank]).sort().values
        if not len(scores):
            return {}
        tenth = math.ceil(len(scores) / 10)
        return {"el2n": float(scores.mean()), "el2n_hardest_tenth": float(scores[-tenth:].mean())}

    def _groups(self) -> dict[str, float]:
        found = group_metrics(predictions(self._probe, self._engine, "groups"), self._world)
        return {f"groups/{name}": value for name, value in found.items()}

    def _start(self, steps: int) -> "_Start":
        """What the training began with; after a resume made anew from the recipe."""
        if steps == 0:
            weights: Vector = [piece.clone() for piece in self._probe.masters()]
        else:
            # A task of its own: methods of the training's would follow the module that it builds.
            module = build_task(self._recipe, self._world).build_module()
            weights = self._probe.of(dict(module.named_parameters()))
        names = self._config.names
        with self._probe.showing(weights):
            return _Start(
                weights,
                self._features() if "representation" in names else None,
                self._kernel() if "ntk" in names else None,
            )

    @torch.no_grad()
    def _features(self) -> Tensor:
        """Of the batch's examples, on the CPU: [n, d]."""
        mine = []
        with last_layer(self._engine.module) as layers:
            for inputs in self._probe.inputs():
                self._engine.evaluate(inputs)
                mine.append(layers.features.float().cpu())
        return torch.cat([features for of_rank in self._world.gather(mine) for features in of_rank])

    def _kernel(self) -> Tensor:
        """The tangent kernel of the first examples; ranks share the projections."""
        if self._firsts is None:
            self._firsts = list(islice(self._examples(), self._config.examples))
        examples = self._firsts
        module, world = self._engine.module, self._world
        parameters = [p for p in module.parameters() if p.requires_grad]

        def forward(index: int) -> Tensor:
            with (
                torch.autocast(world.device.type, torch.bfloat16, enabled=self._task.bf16),
                last_layer(module) as layers,
            ):
                module(**{k: None if x is None else x.to(world.device) for k, x in examples[index].items()})
            return layers.output

        size = len(examples)
        mine = range(world.rank, PROJECTIONS, world.size)
        kernel = torch.zeros(size, size, dtype=torch.float64)
        if mine:
            with torch.enable_grad():
                kernel = projected_ntk(forward, size, parameters, mine) * len(mine)
        total = world.sum(kernel.flatten().tolist())
        return torch.tensor(total, dtype=torch.float64).view(size, size) / PROJECTIONS

    def _examples(self) -> Iterator[dict[str, Tensor | None]]:
        """Single examples of the batch, in its order: a micro-batch of each rank after the other."""
        here = [{k: None if x is None else x.cpu() for k, x in inputs.items()} for inputs in self._probe.inputs()]
        for turn in zip(*self._world.gather(here), strict=True):
            for micro in turn:
                rows = next(len(x) for x in micro.values() if x is not None)
                for row in range(rows):
                    yield {k: None if x is None else x[row : row + 1] for k, x in micro.items()}

    def _batches(self) -> list[StepInputs]:
        stream = self._task.steps(0)
        try:
            return list(islice(stream, self._config.batches))
        finally:
            stream.close()


@dataclass(frozen=True)
class _Start:
    """What is kept of the weights at initialisation."""

    weights: Vector
    features: Tensor | None
    kernel: Tensor | None
