"""The engines that are compared: DeepSpeed with lowland's layout, and as one uses it without."""

from typing import Any

from lowland.optim import Fragment, Layout, LayoutOptimizer, Parameter, Segment
from lowland.trainers.engines.deepspeed_engine import DeepSpeedEngine

__all__ = ["MastersEngine", "NaiveEngine"]


class MastersEngine(DeepSpeedEngine):
    """Shows where the masters are; `pieces` would want state that checkpoints can hold as well."""

    @property
    def masters(self) -> Layout:
        """What the fragments hold."""
        return self._zero.layout


class NaiveEngine(MastersEngine):
    """Tells the optimizer of no tensor, shard or other rank: each of its fragments is taken for a parameter."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._true = self._zero.layout
        self._zero.layout = _fragments_alone(self._true)
        if isinstance(self._optimizer, LayoutOptimizer):
            self._optimizer.attach(self._zero.layout)

    @property
    def masters(self) -> Layout:
        """What the fragments really hold."""
        return self._true


def _fragments_alone(layout: Layout) -> Layout:
    parameters, fragments = [], []
    for index, fragment in enumerate(layout.fragments):
        parameters.append(Parameter(f"fragment {index}", tuple(fragment.tensor.shape), fragment.group))
        segments = tuple(Segment(index, s.start, s.numel, s.start) for s in fragment.segments)
        fragments.append(Fragment(fragment.tensor, segments, fragment.group, (index,)))
    return Layout(tuple(parameters), tuple(fragments), None, by_group=layout.by_group)
