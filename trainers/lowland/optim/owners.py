"""Whole tensors from their pieces, each at one rank: for methods that need matrices or order, not only sums."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowland.optim.layout import Layout, Segment

__all__ = ["Owners"]


class Owners:
    """Which rank puts which parameter together, and the way there and back.

    Every parameter has one owner, the largest given out first to the rank that owns least; where tensors are not
    sharded, every rank owns all.  What a call sends is each element once: N/W elements per rank and direction.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._ranks = layout.ranks
        if self._ranks is None:
            return
        mine = [segment for fragment in layout.fragments for segment in fragment.segments]
        self._segments: list[list[Segment]] = self._ranks.gather(mine)
        """By rank, in the order of its fragments."""
        self._owner = [0] * len(layout.parameters)
        load = [0] * self._ranks.size
        for index in sorted(range(len(layout.parameters)), key=lambda i: (-layout.parameters[i].numel, i)):
            rank = load.index(min(load))
            self._owner[index] = rank
            load[rank] += layout.parameters[index].numel

    def owns(self, parameter: int) -> bool:
        """Whether this rank puts the parameter together."""
        return self._ranks is None or self._owner[parameter] == self._ranks.rank

    def gather(self, members: Sequence[int], pieces: Mapping[Segment, Tensor]) -> dict[int, Tensor]:
        """Puts tensors together at their owners; collective.

        Args:
            members: indices of parameters, the same on every rank.
            pieces: this rank's pieces of these, one for each of its segments.

        Returns:
            By parameter, those this rank owns: float32, in the parameter's shape, where `Layout.ranks` sends from.
        """
        parameters, wanted = self._layout.parameters, set(members)
        if self._ranks is None:
            return {s.parameter: piece.reshape(parameters[s.parameter].shape) for s, piece in pieces.items()}
        me, size = self._ranks.rank, self._ranks.size
        mine = self._of(me, wanted)
        empty = torch.empty(0, device=self._ranks.device)
        parts = [_joined([pieces[s] for s in mine if self._owner[s.parameter] == to], empty) for to in range(size)]
        coming = [[s for s in self._of(rank, wanted) if self._owner[s.parameter] == me] for rank in range(size)]
        got = self._ranks.exchange(parts, [sum(s.numel for s in segments) for segments in coming])
        whole = {i: torch.empty(parameters[i].numel, device=self._ranks.device) for i in members if self.owns(i)}
        for segments, part in zip(coming, got, strict=True):
            for segment, piece in zip(segments, part.split([s.numel for s in segments]), strict=True):
                whole[segment.parameter].narrow(0, segment.offset, segment.numel).copy_(piece)
        return {i: tensor.view(parameters[i].shape) for i, tensor in whole.items()}

    def scatter(self, members: Sequence[int], whole: Mapping[int, Tensor]) -> dict[Segment, Tensor]:
        """The way back: this rank's pieces of tensors that their owners give whole; collective."""
        wanted = set(members)
        if self._ranks is None:
            return {
                segment: whole[segment.parameter]
                for fragment in self._layout.fragments
                for segment in fragment.segments
                if segment.parameter in wanted
            }
        me, size = self._ranks.rank, self._ranks.size
        empty = torch.empty(0, device=self._ranks.device)
        parts = []
        for rank in range(size):
            going = [s for s in self._of(rank, wanted) if self._owner[s.parameter] == me]
            pieces = [whole[s.parameter].reshape(-1).narrow(0, s.offset, s.numel) for s in going]
            parts.append(_joined(pieces, empty))
        coming = [[s for s in self._of(me, wanted) if self._owner[s.parameter] == rank] for rank in range(size)]
        got = self._ranks.exchange(parts, [sum(s.numel for s in segments) for segments in coming])
        found: dict[Segment, Tensor] = {}
        for segments, part in zip(coming, got, strict=True):
            found |= dict(zip(segments, part.split([s.numel for s in segments]), strict=True))
        return found

    def _of(self, rank: int, wanted: set[int]) -> list[Segment]:
        assert self._ranks is not None
        return [segment for segment in self._segments[rank] if segment.parameter in wanted]


def _joined(pieces: Sequence[Tensor], empty: Tensor) -> Tensor:
    return torch.cat([piece.reshape(-1).to(empty.device, torch.float32) for piece in pieces]) if pieces else empty
