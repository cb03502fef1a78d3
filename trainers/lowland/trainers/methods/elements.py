"""All elements of an engine's pieces in a row, and which units of the network each belongs to."""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lowland.trainers.engines import StatePiece
from lowland.trainers.models.units import Units


class Elements:
    """Places of a rank's pieces, found once, so that what is done to weights is a few operations for all of them.

    Memory: 8 bytes an element.

    Args:
        pieces: in the engine's order, which stays the same.
        shapes: of whole parameters, by the pieces' names.
        prefix: what these names have before those of the units' network.
        units: an element belongs to one of each of these at most, and to at most two.
    """

    def __init__(
        self,
        pieces: Sequence[StatePiece],
        shapes: Mapping[str, tuple[int, ...]],
        prefix: str,
        units: Sequence[Units],
    ) -> None:
        self.names = [piece.name for piece in pieces]
        self.inside = [name.removeprefix(prefix) for name in self.names]
        """By piece, the parameter's name in the units' network."""
        numbers = {name: number for number, name in enumerate(sorted(shapes))}
        self.tensors = len(numbers)
        self.numbers = [numbers[name] for name in self.names]
        """By piece, which of all parameters it is of, in the order of their names."""
        self.sizes = [piece.tensors["weight"].numel() for piece in pieces]
        self.starts = [piece.segment.offset for piece in pieces]
        self.device = pieces[0].tensors["weight"].device
        # The flag behind all units' is that of elements which belong to none.
        self._units = nobody = sum(one.count for one in units)
        self._rows, self._columns = (
            torch.full((sum(self.sizes),), nobody, dtype=torch.int32, device=self.device) for _ in range(2)
        )
        firsts = _firsts(units)
        parts = zip(self.inside, pieces, self.cut(self._rows), self.cut(self._columns), strict=True)
        for name, piece, rows, columns in parts:
            row, column = _indices(piece, shapes[piece.name])
            for index, kept, first in ((row, rows, firsts[0].get(name)), (column, columns, firsts[1].get(name))):
                if first is not None:
                    kept.copy_(index + first)

    def cut(self, row: Tensor) -> list[Tensor]:
        """A row of all elements by pieces, as views."""
        return list(row.split(self.sizes))

    def of(self, flags: Tensor) -> Tensor:
        """For each element whether all units that it belongs to have their flag.

        Args:
            flags: bool [units], one behind the other.

        Returns:
            bool [elements].
        """
        flags = flags.to(self.device, non_blocking=True)
        flags = torch.cat([flags, flags.new_ones(1)])
        return flags.index_select(0, self._rows).logical_and_(flags.index_select(0, self._columns))

    def row_norms(self, pieces: Sequence[StatePiece], names: Collection[str]) -> Tensor:
        """By unit the L1 norm of what the pieces hold of some parameters' rows, which are units.

        On the CPU in float64 and in the order of the pieces, so that it has the same bits whenever it is computed.

        Args:
            pieces: those that this was made of.
            names: of the parameters, in the units' network.

        Returns:
            float64 [units].
        """
        found = torch.zeros(self._units, dtype=torch.float64)
        for name, piece, rows in zip(self.inside, pieces, self.cut(self._rows), strict=True):
            if name in names:
                sizes = piece.tensors["weight"].detach().flatten().double().abs().cpu()
                found += torch.bincount(rows.cpu(), sizes, minlength=self._units)
        return found


def _firsts(units: Sequence[Units]) -> tuple[dict[str, int], dict[str, int]]:
    """By the dimension and the name of a parameter, where the flags of its units begin."""
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for one, first in zip(units, accumulate((one.count for one in units), initial=0), strict=False):
        for name, dimension in one.tensors().items():
            found[dimension][name] = first
    return found


def _indices(piece: StatePiece, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """For each element of a piece its index along the parameter's first and second dimension."""
    weight, start = piece.tensors["weight"], piece.segment.offset
    places = torch.arange(start, start + weight.numel(), device=weight.device)
    row = piece.numel // shape[0] if shape else 1
    column = row // shape[1] if len(shape) > 1 else 1
    return places // row, places % row // column


def flags_of(units: Sequence[Units], flags: Tensor) -> dict[str, Tensor]:
    """Flags of all units, one behind the other, by producer, as views."""
    parts = flags.split([one.count for one in units])
    return {one.producer: part for one, part in zip(units, parts, strict=True)}
