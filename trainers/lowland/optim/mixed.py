"""Several optimizers as one, each for some of the parameters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import LayoutOptimizer, require
from lowland.optim.layers import evaluation_weights, layers
from lowland.optim.layout import Fragment, Gradients, Layout, Parameter, Segment
from lowland.optim.passes import MultiPass
from lowland.optim.wrapper import create_state, shared_state

__all__ = ["Mixed"]

MEMBER = "member"
"""Key of a parameter group: the index of the optimizer that steps it; it survives `state_dict`."""


class Mixed(LayoutOptimizer):
    """One optimizer made of others; its groups are theirs, one after the other, and each steps its own alone.

    A member's sums go over its own parameters: a cosine over the whole model is one over the member's part.

    Memory, messages and passes: those of the members.

    Args:
        members: the optimizers; no parameter is in two of them.

    Raises:
        ValueError: there is no member, or a parameter is in two of them.
        TypeError: a member is itself mixed or takes several gradients per step: put such a wrapper around all of it.
    """

    def __init__(self, members: Sequence[Optimizer]) -> None:
        require(len(members) > 0, "at least one optimizer is needed")
        for index, member in enumerate(members):
            if refused := [layer for layer in layers(member) if isinstance(layer, (Mixed, MultiPass))]:
                raise TypeError(f"{type(refused[0]).__name__} cannot be a member: put it around the mixed optimizer")
            for group in member.param_groups:
                group[MEMBER] = index
        self._members = tuple(members)
        self._sizes = [len(member.param_groups) for member in members]
        self._layouts: list[_Part] = []
        super().__init__([group for member in members for group in member.param_groups], {})

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        """The members."""
        return self._members

    @property
    def evaluation_weights(self) -> Callable[[Fragment], Tensor] | None:
        """Each member's, where it has any; None if none has."""
        return self._find_weights if any(map(evaluation_weights, self._members)) else None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only groups of the members.

        Raises:
            ValueError: the group is no member's.
        """
        require(MEMBER in param_group, "a mixed optimizer has the groups of its members: make another with more")
        super().add_param_group(param_group)

    def attach(self, layout: Layout) -> None:
        """Tells each member of its own part."""
        super().attach(layout)
        if not self._layouts or self._layouts[0].whole is not layout:
            self._divide()

    def prepare(self, gradients: Gradients) -> None:
        """Takes every member's sums over its own gradients."""
        kept = list(gradients)
        super().prepare(kept)
        for member, part in self._divided():
            if isinstance(member, LayoutOptimizer):
                member.prepare(part.gradients(kept))

    def finish(self) -> None:
        """Ends the members' step too."""
        super().finish()
        for member in self._members:
            if isinstance(member, LayoutOptimizer):
                member.finish()

    def create_state(self) -> None:
        """Makes every member's state."""
        for member, part in self._divided():
            create_state(member, part.layout)

    def shared_state(self) -> dict[str, float]:
        """The members', below their index."""
        return {
            f"{index}/{key}": value
            for index, member in enumerate(self._members)
            for key, value in shared_state(member).items()
        }

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores `shared_state`."""
        for index, (member, _) in enumerate(self._divided()):
            prefix = f"{index}/"
            if isinstance(member, LayoutOptimizer):
                member.load_shared_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def state_dict(self) -> dict[str, Any]:
        """Groups, and each member's own."""
        return {**super().state_dict(), "members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "members"})
        for index, (member, saved) in enumerate(zip(self._members, state_dict["members"], strict=True)):
            member.load_state_dict(saved)
            member.param_groups = self._groups_of(index)

    def _step(self) -> None:
        for index, member in enumerate(self._members):
            # An engine may show some groups only, and a learning rate is set in these.
            groups = self._groups_of(index)
            if any(group["params"] for group in groups):
                kept, member.param_groups = member.param_groups, groups
                member.step()
                member.param_groups = kept

    def _groups_of(self, member: int) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group[MEMBER] == member]

    def _divided(self) -> Iterator[tuple[Optimizer, "_Part"]]:
        if not self._layouts or self._layouts[0].whole is not self.layout:
            self._divide()
        return zip(self._members, self._layouts, strict=True)

    def _divide(self) -> None:
        ends = list(accumulate(self._sizes))
        self._layouts = [_Part(self.layout, range(end - n, end)) for end, n in zip(ends, self._sizes, strict=True)]
        for member, part in zip(self._members, self._layouts, strict=True):
            if isinstance(member, LayoutOptimizer):
                member.attach(part.layout)

    def _find_weights(self, fragment: Fragment) -> Tensor:
        for member, part in self._divided():
            own, find = part.layout.fragment(fragment.tensor), evaluation_weights(member)
            if own is not None and find is not None:
                return find(own)
        return fragment.tensor.detach()


class _Part:
    """A layout cut down to some consecutive groups, with indices of its own."""

    def __init__(self, whole: Layout, groups: range) -> None:
        self.whole = whole
        kept = [index for index, parameter in enumerate(whole.parameters) if parameter.group in groups]
        new = {index: position for position, index in enumerate(kept)}
        first = groups.start
        self._segments: dict[Segment, Segment] = {}
        fragments = []
        for fragment in whole.fragments:
            if fragment.group in groups:
                segments = tuple(Segment(new[s.parameter], s.start, s.numel, s.offset) for s in fragment.segments)
                self._segments |= zip(fragment.segments, segments, strict=True)
                members = tuple(new[index] for index in fragment.members)
                fragments.append(Fragment(fragment.tensor, segments, fragment.group - first, members))
        parameters = tuple(
            Parameter(p.name, p.shape, p.group - first) for p in (whole.parameters[index] for index in kept)
        )
        self.layout = Layout(parameters, tuple(fragments), whole.ranks, whole.by_group)

    def gradients(self, whole: Gradients) -> Gradients:
        """Those of this part."""
        return [(self._segments[s], tensor, gradient) for s, tensor, gradient in whole if s in self._segments]
