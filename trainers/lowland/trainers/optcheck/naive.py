"""The same methods as one uses them without knowing what ZeRO hands over: each fragment taken for a parameter."""

from collections.abc import Iterator
from typing import Any

from lowland.optim import Fragment, Layout, LayoutOptimizer, Parameter, Segment
from lowland.trainers.engines import state
from lowland.trainers.engines.deepspeed_engine import DeepSpeedEngine
from lowland.trainers.engines.engine import StatePiece

__all__ = ["NaiveEngine"]


class NaiveEngine(DeepSpeedEngine):
    """A DeepSpeed engine that tells the optimizer of no tensor, shard or other rank: only of its own fragments."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._true = self._zero.layout
        self._zero.layout = _fragments_alone(self._true)
        if isinstance(self._optimizer, LayoutOptimizer):
            self._optimizer.attach(self._zero.layout)

    def pieces(self) -> Iterator[StatePiece]:
        """By what the fragments really hold."""
        return state.pieces_of(self._optimizer, self._true)


def _fragments_alone(layout: Layout) -> Layout:
    parameters, fragments = [], []
    for index, fragment in enumerate(layout.fragments):
        parameters.append(Parameter(f"fragment {index}", tuple(fragment.tensor.shape), fragment.group))
        segments = tuple(Segment(index, s.start, s.numel, s.start) for s in fragment.segments)
        fragments.append(Fragment(fragment.tensor, segments, fragment.group, (index,)))
    return Layout(tuple(parameters), tuple(fragments), None, by_group=layout.by_group)
