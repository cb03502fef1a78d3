"""CoBalT: concepts are found without group labels, and images come more often the rarer theirs are in their class.

Arefin et al., *Unsupervised concept discovery mitigates spurious correlations* (ICML 2024).  The paper finds concepts
by object-centric self-supervision (slots, quantised by a learnt codebook); its code was not published.  Here cells of
a feature map take the place of slots, and k-means that of the codebook.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from lowland.trainers.data.images.sampling import Sampling
from lowland.trainers.engines import Engine
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.methods.base import Method, Problem
from lowland.trainers.methods.concepts import balanced_weights, concept_centres, concepts_of, feature_map
from lowland.trainers.world import World

_NUMBERS = 2**25
"""That k-means is given at most: cells times their width, gathered on every rank."""


class Plain(Protocol):
    """Images as they are stored, without augmentation."""

    @property
    def images(self) -> Tensor:
        """uint8 [B, C, S, S]."""

    @property
    def rows(self) -> Tensor:
        """int64 [B]: numbers of the images."""


PlainImages = Callable[[int | None], Iterable[tuple[Plain, int]]]
"""This rank's part of so many random training images, or of all, in batches that are equally many on every rank; the
second number is how many of a batch count."""


Cells = Callable[[Tensor], Tensor]
"""From images to the cells [B, T, d] of their feature maps, or from these to something [B, ...] of each image."""


class CoBalT(Method):
    """Finds concepts once, at a step, and balances them from the step after.

    Args:
        images: of the training set.
        labels: int64 [N], those trained on.
        examples: of a step, over all ranks.
        concepts: K, how many are looked for.
        least_share: of `concepts_of`.
        strength: of `balanced_weights`.
        start: step at which concepts are found.
        network: whose feature maps are clustered, given images as bytes; None is the one that is trained.
    """

    name = "cobalt"

    def __init__(
        self,
        images: PlainImages,
        labels: Tensor,
        examples: int,
        *,
        concepts: int = 8,
        least_share: float = 0.1,
        strength: float = 1.0,
        start: int = 0,
        network: nn.Module | None = None,
    ) -> None:
        self._images, self._labels, self._examples = images, labels, examples
        self._count, self._least_share, self._strength = concepts, least_share, strength
        self._start, self._network, self._seed = start, network, 0
        self._engine: Engine | None = None
        self._world: World | None = None
        self._concepts: Tensor | None = None

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Refuses networks without feature maps, and more concepts than images."""
        self._seed = problem.seed
        if self._count > len(self._labels):
            raise RecipeError(
                f"methods: cobalt.concepts = {self._count}: there are {len(self._labels)} training images; lower it"
            )
        looked_at, dtype = self._network, torch.uint8
        if looked_at is None:
            looked_at, dtype = network, next(network.parameters()).dtype
        if not _has_map(looked_at, torch.zeros(1, *problem.shape, dtype=dtype)):
            raise RecipeError(
                "methods: cobalt clusters the cells of a feature map, and the network makes no map of several cells of "
                f"images of {problem.shape[-1]} x {problem.shape[-1]} pixels: raise data.size, or take another model"
            )

    def attach(self, engine: Engine, world: World) -> None:
        """Notes whose feature maps there are."""
        self._engine, self._world = engine, world

    def begin_step(self, step: int) -> None:
        """Finds the concepts, once; collective."""
        if self._concepts is None and step >= self._start:
            self._concepts = self._found()
            self._network = None  # no longer needed, and as large as the trained one
            self._balance((step + 1) * self._examples)

    def _balance(self, first_example: int) -> None:
        assert self._concepts is not None
        weights = balanced_weights(self._concepts, self._labels, self._strength)
        self.sampling = Sampling(weights.numpy(), first_example)

    def _found(self) -> Tensor:
        """bool [N, K]: the concepts of all training images, the same on every rank."""
        with self._looking() as cells_of:
            centres = self._centres(cells_of)
            return self._of_all(cells_of, None, lambda cells: concepts_of(cells, centres, self._least_share))

    @contextmanager
    def _looking(self) -> Iterator[Cells]:
        """Gives what makes cells of images."""
        assert self._world is not None
        device = self._world.device
        if self._network is not None:
            network = self._network.to(device).eval()
            forward: Callable[[Tensor], object] = network
            looking: AbstractContextManager[None] = torch.no_grad()
        else:
            assert self._engine is not None
            engine = self._engine
            network, looking = engine.module, engine.evaluating()
            forward = lambda images: engine.evaluate({"images": images})  # noqa: E731
        with feature_map(network) as seen, looking:

            def cells_of(images: Tensor) -> Tensor:
                forward(images.to(device))
                assert seen.cells is not None
                return seen.cells

            yield cells_of

    def _centres(self, cells_of: Cells) -> Tensor:
        """Of the cells of as many random images as k-means may see; found on rank 0, for all."""
        assert self._world is not None
        batch, _ = next(iter(self._images(1)))
        images = max(self._count, _NUMBERS // cells_of(batch.images)[0].numel())
        cells = self._of_all(cells_of, images, lambda cells: cells.float().cpu())
        first = self._world.rank == 0
        centres = concept_centres(cells.flatten(0, 1), self._count, self._seed) if first else None
        whole = self._world.gather(centres)[0]
        assert whole is not None
        return whole

    def _of_all(self, cells_of: Cells, count: int | None, function: Cells) -> Tensor:
        """What a function makes of the cells of images, in ascending order of the images; collective."""
        assert self._world is not None
        mine = []
        for batch, counted in self._images(count):
            made = function(cells_of(batch.images))
            mine.append((batch.rows[:counted].cpu(), made[:counted]))
        parts = [part for of_rank in self._world.gather(mine) for part in of_rank]
        rows, made = torch.cat([rows for rows, _ in parts]), torch.cat([made for _, made in parts])
        return made[rows.argsort()]

    def state(self) -> dict[str, Tensor]:
        """The concepts, once they are found; the order follows from them."""
        if self._concepts is None or self.sampling is None:
            return {}
        return {"concepts": self._concepts.to(torch.uint8), "first_example": torch.tensor(self.sampling.start)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the concepts."""
        found = state["concepts"].bool()
        if found.shape != (len(self._labels), self._count):
            raise DataError(
                f"it has {found.shape[1]} concepts of {len(found)} images, this run has {self._count} of "
                f"{len(self._labels)}; go on with that one, or start anew under another name"
            )
        self._concepts, self._network = found, None
        self._balance(int(state["first_example"]))

    def metrics(self) -> dict[str, float]:
        """Of the balanced order: the largest weight, and of how many equal images it has the variance, as a share."""
        if self._concepts is None or self.sampling is None:
            return {}
        weights = self.sampling.weights
        return {
            "largest_weight": float(weights.max()),
            "effective_share": float(1 / (weights**2).mean()),
            "concepts_per_image": float(self._concepts.double().sum(1).mean()),
        }


@torch.no_grad()
def _has_map(network: nn.Module, images: Tensor) -> bool:
    training = network.training
    with feature_map(network.eval()) as seen:
        network(images)
    network.train(training)
    return seen.cells is not None
