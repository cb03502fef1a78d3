"""Where the pieces of every parameter lie in the tensors that an optimizer steps.

Under ZeRO an optimizer is handed flat fragments: one 1-D tensor that holds pieces of many
parameters, and on another rank the other pieces.  A sum over a parameter, a group or the model is
then a sum over segments followed by one all-reduce.  `Layout` is the one place that knows both; an
engine makes it, and no optimizer contains a word about sharding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lowland.optim import kernels
from lowland.optim.ranks import Ranks

__all__ = ["Fragment", "Gradients", "Layout", "Parameter", "Segment", "local"]


@dataclass(frozen=True)
class Parameter:
    """One trainable parameter of the model, the same on every rank."""

    name: str
    shape: tuple[int, ...]
    group: int
    """Index of its parameter group."""

    @property
    def numel(self) -> int:
        """Elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Segment:
    """A piece of one parameter inside a fragment; padding belongs to no segment."""

    parameter: int
    """Index into `Layout.parameters`."""
    start: int
    """First element inside the flattened fragment."""
    numel: int
    offset: int
    """First element inside the flattened parameter."""

    def of(self, flat: Tensor) -> Tensor:
        """The piece of `flat` (the fragment or a tensor shaped like it), as a view; the whole keeps its shape."""
        flat = local(flat)
        if self.numel == flat.numel():
            return flat
        return flat.view(-1).narrow(0, self.start, self.numel)


@dataclass(frozen=True)
class Fragment:
    """One tensor that the optimizer steps on this rank, and the segments it holds."""

    tensor: Tensor
    segments: tuple[Segment, ...]
    group: int
    """Index of the parameter group it is stepped with."""
    members: tuple[int, ...]
    """The parameters of which it holds pieces here or on another rank; the same on every rank."""

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """Every segment's piece of the fragment or of a tensor shaped like it, as `Segment.of` gives it."""
        if len(self.segments) <= 1:
            return [segment.of(tensor) for segment in self.segments]
        # One call: a view of each segment by itself would take longer than a GPU's update of it.
        lengths, places = self._cuts
        parts = local(tensor).view(-1).split(lengths)
        return [parts[place] for place in places]

    @cached_property
    def _cuts(self) -> tuple[list[int], list[int]]:
        """Lengths that cut a fragment at all its segments, gaps included, and each segment's place among them."""
        lengths: list[int] = []
        places = [0] * len(self.segments)
        end = 0
        for index in sorted(range(len(self.segments)), key=lambda i: self.segments[i].start):
            segment = self.segments[index]
            lengths += [segment.start - end, segment.numel]
            places[index], end = len(lengths) - 1, segment.start + segment.numel
        return [*lengths, local(self.tensor).numel() - end], places


Gradients = Iterable[tuple[Segment, Tensor, Tensor]]
"""For each segment of this rank that has one: the segment, its fragment's tensor, its gradient."""


@dataclass
class Layout:
    """Every fragment of this rank, and how sums over ranks are made."""

    parameters: tuple[Parameter, ...]
    fragments: tuple[Fragment, ...]
    ranks: Ranks | None = None
    """The ranks that hold the other pieces; None where each rank holds everything."""
    by_group: bool = False
    """Whether the tensors are stepped group by group, as ZeRO does, so that no single `step` sees all gradients."""
    _by_id: dict[int, Fragment] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_id = {id(fragment.tensor): fragment for fragment in self.fragments}

    def fragment(self, tensor: Tensor) -> Fragment | None:
        """The fragment that is this very tensor; None if it is not one of the layout's."""
        return self._by_id.get(id(tensor))

    @classmethod
    def whole(cls, groups: Iterable[Iterable[tuple[str, Tensor]]]) -> "Layout":
        """The layout of whole parameters, as any unsharded training has them: groups of (name, tensor)."""
        parameters: list[Parameter] = []
        fragments: list[Fragment] = []
        for group, members in enumerate(groups):
            for name, tensor in members:
                segment = Segment(len(parameters), 0, tensor.numel(), 0)
                parameters.append(Parameter(name, tuple(tensor.shape), group))
                fragments.append(Fragment(tensor, (segment,), group, (segment.parameter,)))
        return cls(tuple(parameters), tuple(fragments))

    def gradients(self) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        """The gradients that the stepped tensors themselves hold."""
        for fragment in self.fragments:
            if fragment.tensor.grad is not None:
                for segment, gradient in zip(fragment.segments, fragment.cut(fragment.tensor.grad), strict=True):
                    yield segment, fragment.tensor, gradient

    def squares(self, pieces: Iterable[tuple[Segment, Tensor]]) -> Tensor:
        """The squared norm of every parameter's tensor, of which each rank gives its pieces.

        Returns:
            float64 [parameters], identical on every rank.
        """
        segments, tensors = _columns(pieces, 2)
        return self.total(segments, kernels.squares(tensors)[:, None])[:, 0]

    def products(self, pieces: Iterable[tuple[Segment, Tensor, Tensor]]) -> Tensor:
        """The squared norms and the dot product of two tensors of every parameter, in one pass over them.

        Args:
            pieces: for each segment of this rank two equally shaped tensors a and b.

        Returns:
            float64 [parameters, 3]: <a, a>, <a, b> and <b, b>, identical on every rank.
        """
        segments, first, second = _columns(pieces, 3)
        return self.total(segments, kernels.products(first, second))

    def total(self, segments: Sequence[Segment], values: Tensor) -> Tensor:
        """Values of segments, summed over the segments of each parameter and over ranks by one all-reduce.

        Args:
            segments: this rank's, maybe none.
            values: [segments, columns].

        Returns:
            float64 [parameters, columns], identical on every rank.
        """
        device = self.ranks.device if self.ranks is not None else values.device
        total = torch.zeros(len(self.parameters), values.shape[1], dtype=torch.float64, device=device)
        if segments:
            rows = kernels.constant([segment.parameter for segment in segments], device)
            total.index_add_(0, rows, values.to(device, torch.float64))
        if self.ranks is not None:
            self.ranks.add(total)
        return total


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be a DTensor."""
    to_local: Callable[[], Tensor] | None = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _columns(rows: Iterable[tuple[Any, ...]], count: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(count)]
