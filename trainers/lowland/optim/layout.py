"""Where the pieces of every parameter lie in the tensors that an optimizer steps.

Under ZeRO an optimizer is handed flat fragments: one 1-D tensor that holds pieces of many
parameters, and on another rank the other pieces.  A sum over a parameter, a group or the model is
then a sum over segments followed by one all-reduce.  `Layout` is the one place that knows both; an
engine makes it, and no optimizer contains a word about sharding.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Fragment", "Layout", "LayoutAware", "Parameter", "Segment"]


@dataclass(frozen=True)
class Parameter:
    """One trainable parameter of the model, the same on every rank."""

    name: str
    numel: int
    group: int
    """Index of its parameter group."""


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


@runtime_checkable
class LayoutAware(Protocol):
    """An optimizer that takes sums over parameters or the model.

    The engine calls `attach` once, and around each optimizer step `prepare`, then `step` as often as
    it steps groups, then `finish`.
    """

    def attach(self, layout: "Layout") -> None:
        """Tells which pieces of which parameters the stepped tensors hold."""

    def prepare(self, gradients: Iterable[tuple[Segment, Tensor, Tensor]]) -> None:
        """Takes the sums, from (segment, fragment's tensor, the segment's gradient); gradients may be unscaled."""

    def finish(self) -> None:
        """Ends the optimizer step, whether it was applied or not."""


@dataclass
class Layout:
    """Every fragment of this rank, and how sums over ranks are made."""

    parameters: tuple[Parameter, ...]
    fragments: tuple[Fragment, ...]
    all_reduce: Callable[[Tensor], None] | None = None
    """Sums a tensor over the ranks that hold the other pieces, in place; None where each rank holds everything."""
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
                parameters.append(Parameter(name, tensor.numel(), group))
                fragments.append(Fragment(tensor, (segment,), group))
        return cls(tuple(parameters), tuple(fragments))

    def sums(self, products: Iterable[tuple[Segment, tuple[tuple[Tensor, Tensor], ...]]], columns: int) -> Tensor:
        """Dot products per parameter, summed over all ranks by one all-reduce.

        Args:
            products: for each segment of this rank, `columns` pairs of equally shaped tensors.
            columns: pairs per segment, the same on every rank.

        Returns:
            float64 [parameters, columns], identical on every rank.
        """
        rows: list[int] = []
        dots: list[Tensor] = []
        for segment, pairs in products:
            rows.append(segment.parameter)
            dots.extend(_dot(a, b) for a, b in pairs)
        device = dots[0].device if dots else self.fragments[0].tensor.device if self.fragments else None
        total = torch.zeros(len(self.parameters), columns, dtype=torch.float64, device=device)
        if dots:
            total.index_add_(0, torch.tensor(rows, device=device), torch.stack(dots).view(len(rows), columns))
        if self.all_reduce is not None:
            self.all_reduce(total)
        return total


_CHUNK = 1 << 16
"""Elements summed in fp32 before the sum goes on in fp64: a longer fp32 sum loses digits."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.reshape(-1).float(), b.reshape(-1).float()
    if a.numel() <= _CHUNK:
        return torch.dot(a, b).double()
    cut = a.numel() // _CHUNK * _CHUNK
    head: Tensor = torch.linalg.vecdot(a[:cut].view(-1, _CHUNK), b[:cut].view(-1, _CHUNK)).double().sum()
    return head + torch.dot(a[cut:], b[cut:]).double()
