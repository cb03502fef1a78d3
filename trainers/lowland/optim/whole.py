"""Any optimizer of whole tensors, exact where tensors are sharded: each tensor is stepped by one rank.

Muon, SOAP, Adafactor, LARS and most optimizers people write look at a tensor's shape, rows or norm.  Under ZeRO
they get flat fragments and silently compute something else.  `Whole` gives the gradient and the weights of each
parameter to its owner (`lowland.optim.owners`), lets the optimizer step them there as in one process, and brings the
weights back.
Where tensors are not sharded the optimizer steps them as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim.base import LayoutOptimizer
from lowland.optim.layout import Fragment, Layout, Segment
from lowland.optim.owners import Owners

__all__ = ["Measured", "Whole", "dense_gradient"]

Groups = list[dict[str, Any]]


@runtime_checkable
class Measured(Protocol):
    """An optimizer of whole tensors that has something to say of each."""

    def measured(self) -> dict[str, list[float]]:
        """By name, a number for each tensor that has one; the names are the same wherever it is asked."""


def dense_gradient(gradient: Tensor) -> Tensor:
    """A gradient in float32, row by row in memory: matrix products round otherwise for another order."""
    return (gradient.to_dense() if gradient.is_sparse else gradient).float().contiguous()


class Whole(LayoutOptimizer):
    """An optimizer of whole tensors at their owners.

    Memory: the optimizer's own state, spread over the ranks by whole tensors.  Messages per step: weights, gradients
    and new weights, 12 bytes per parameter over all ranks.  Transient: the owned tensors of a group, twice.

    Args:
        params: parameters or groups, as torch.optim takes them.
        make: makes the optimizer of such groups, for example `lambda groups: torch.optim.Muon(groups, lr=1e-2)`.  It
            must treat each tensor by itself.

    Raises:
        TypeError: the optimizer keeps state that no checkpoint can hold: only tensors and numbers can be kept.
    """

    def __init__(self, params: Iterable[Any], make: Callable[[Groups], Optimizer]) -> None:
        groups = _as_groups(params)
        self._inner = make(groups)
        self._owners: Owners | None = None
        self._owned: dict[int, nn.Parameter] = {}
        super().__init__(self._inner.param_groups, self._inner.defaults)

    @property
    def inner(self) -> Optimizer:
        """The optimizer of whole tensors."""
        return self._inner

    def attach(self, layout: Layout) -> None:
        """Decides who owns what; collective where tensors are sharded."""
        if layout is not self._layout:
            self._owners = None
        super().attach(layout)

    def _step(self) -> None:
        if self.layout.ranks is None and not self.layout.by_group:
            self._inner.param_groups = self.param_groups
            self._inner.step()
            return
        for group in self.param_groups:
            fragments = [self._known(p) for p in group["params"] if p.grad is not None]
            if fragments:
                self._step_at_owners(group, fragments)

    def _step_at_owners(self, group: Mapping[str, Any], fragments: Sequence[Fragment]) -> None:
        owners, members = self._ownership(), [index for fragment in fragments for index in fragment.members]
        weights = owners.gather(members, _pieces(fragments, lambda fragment: fragment.tensor.data))
        gradients = owners.gather(members, _pieces(fragments, _gradient))
        for index, weight in weights.items():
            owned = self._parameter(index)
            owned.data, owned.grad = weight, gradients[index]
        owned_here = [self._parameter(index) for index in weights]
        self._inner.param_groups = [{**group, "params": owned_here}]
        if owned_here:
            self._inner.step()
        changed = owners.scatter(members, {index: self._parameter(index).data for index in weights})
        for fragment in fragments:
            for segment in fragment.segments:
                piece = segment.of(fragment.tensor.data)
                piece.copy_(changed[segment].view_as(piece))
        for parameter in owned_here:
            parameter.data, parameter.grad = parameter.data.new_empty(0), None

    def owned_state(self) -> dict[str, dict[str, Tensor | float]]:
        """The optimizer's state of the parameters that this rank owns."""
        found: dict[str, dict[str, Tensor | float]] = {}
        for index, key in self._keys().items():
            state = self._inner.state.get(key, {})
            for name, value in state.items():
                if not isinstance(value, (Tensor, int, float)):
                    raise TypeError(
                        f"{type(self._inner).__name__} keeps {name} as {type(value).__name__}: "
                        "a checkpoint can hold tensors and numbers, by name"
                    )
            if state:
                found[self.layout.parameters[index].name] = dict(state)
        return found

    def load_owned_state(self, read: Callable[[str], dict[str, Tensor | float]]) -> None:
        """Restores the state of the parameters that this rank owns."""
        device = self.layout.ranks.device if self.layout.ranks is not None else None
        for index, key in self._keys().items():
            state = read(self.layout.parameters[index].name)
            if state:
                place = device or key.device
                self._inner.state[key] = {
                    name: value.to(place) if isinstance(value, Tensor) and name != "step" else value
                    for name, value in state.items()
                }

    def metrics(self) -> dict[str, float]:
        """Means over all tensors of what a `Measured` optimizer says; collective where tensors are sharded."""
        if not isinstance(self._inner, Measured):
            return {}
        found = self._inner.measured()
        totals = torch.tensor([[sum(values), len(values)] for values in found.values()], dtype=torch.float64)
        if self.layout.ranks is not None:
            self.layout.ranks.add(totals)
        return {name: total / count for name, (total, count) in zip(found, totals.tolist(), strict=True) if count}

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own, for whole parameters."""
        return {**super().state_dict(), "inner": self._inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        self._inner.load_state_dict(state_dict["inner"])
        self._inner.param_groups = self.param_groups

    def _keys(self) -> dict[int, Tensor]:
        """By parameter that this rank owns, the tensor its state is kept under."""
        if self.layout.ranks is None and not self.layout.by_group:
            return {fragment.members[0]: fragment.tensor for fragment in self.layout.fragments}
        ownership = self._ownership()
        return {i: self._parameter(i) for i in range(len(self.layout.parameters)) if ownership.owns(i)}

    def _ownership(self) -> Owners:
        if self._owners is None:
            self._owners = Owners(self.layout)
        return self._owners

    def _parameter(self, index: int) -> nn.Parameter:
        """The tensor that stands for an owned parameter; the same object in each step, since state is kept by it."""
        if index not in self._owned:
            self._owned[index] = nn.Parameter(torch.empty(0), requires_grad=False)
        return self._owned[index]


def _as_groups(params: Iterable[Any]) -> Groups:
    members = list(params)
    return members if members and isinstance(members[0], dict) else [{"params": members}]


def _gradient(fragment: Fragment) -> Tensor:
    assert fragment.tensor.grad is not None
    return fragment.tensor.grad


def _pieces(fragments: Sequence[Fragment], find: Callable[[Fragment], Tensor]) -> dict[Segment, Tensor]:
    return {segment: segment.of(find(fragment)) for fragment in fragments for segment in fragment.segments}
