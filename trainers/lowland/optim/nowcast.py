"""Nowcasting: from time to time the weights jump to where their trajectory seems to lead.

As NiNo does (Knyazev et al., arXiv 2409.04434): snapshots w_1 ... w_c are taken every period/c steps, before the step;
every `period` steps, with the c-th snapshot, the weights become a prediction k snapshots ahead instead of an
optimizer step.  That step's gradient is discarded, moments stay as they are, the learning-rate schedule goes on, and
the next snapshots are taken from there.

    linear     w_c + k s, with s the least-squares slope of each element's snapshots
    fit        the same line, at its own value instead of w_c: mean + s (c + k - (c + 1) / 2)
    geometric  w_c + d (r + r^2 + ... + r^k), d = w_c - w_{c-1}: each difference is r times the one before, with r
               the least-squares ratio over each tensor, no less than -1 and no more than 1
    network    one of NiNo's published networks that predicts each weight by itself; see `lowland.optim.nino`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.layout import Fragment, Layout, Segment
from lowland.optim.nino import EPS, load_scalar_net, tensor_type
from lowland.optim.wrapper import Wrapper

__all__ = ["Nowcast", "NowcastMethod", "geometric_change", "horizons", "linear_change"]

NowcastMethod = Literal["linear", "fit", "geometric", "network"]


class Nowcast(Wrapper):
    """Predicted jumps between the steps of any optimizer.

    Memory: 4 (c - 1) bytes per parameter, which with `offload` lie in the host's memory.  No extra passes; a jump
    costs one pass over the snapshots, `network` about 100 thousand operations per parameter.  Where tensors are
    sharded, `geometric` and `network` sum two or three numbers per tensor over the ranks.

    Args:
        base: the optimizer inside.
        period: steps from one jump to the next; a multiple of `snapshots`.
        snapshots: how many a prediction is made from (c), >= 2, `geometric` >= 3; a network has its own number, 5.
        method: how the prediction is made.
        horizon: snapshots ahead (k), >= 1; a network goes up to 40.
        jumps: over how many jumps the horizon falls to 1 as a square, as NiNo's does from 40 over the whole training;
            None keeps it.
        network: path of the file that holds the network.
        offload: whether snapshots are kept in the host's memory.

    Raises:
        ValueError: an argument is outside its range, or the file holds no such network; the message says which.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        period: int = 1000,
        snapshots: int = 5,
        method: NowcastMethod = "linear",
        horizon: int = 1,
        jumps: int | None = None,
        network: str | Path | None = None,
        offload: bool = False,
    ) -> None:
        least = 3 if method == "geometric" else 2
        require(method in _METHODS, f"method must be one of {', '.join(_METHODS)}, got {method!r}")
        require(snapshots >= least, f"snapshots >= {least} must hold for {method}, got {snapshots}")
        require(
            period > 0 and period % snapshots == 0,
            f"period must be a multiple of snapshots ({snapshots}), got {period}",
        )
        require(horizon >= 1, f"horizon >= 1 must hold, got {horizon}")
        require(jumps is None or jumps >= 1, f"jumps >= 1 must hold, got {jumps}")
        require(
            (network is not None) == (method == "network"),
            f"a network's file is needed for method network and for no other, got {network} for {method}",
        )
        self.period, self.snapshots, self.method, self.offload = period, snapshots, method, offload
        self.horizons = horizons(horizon, jumps)
        self._network = None if network is None else load_scalar_net(network)
        if self._network is not None:
            c, k = self._network.context, self._network.horizons
            require(snapshots == c, f"snapshots must be {c}, which {network} takes, got {snapshots}")
            require(horizon <= k, f"horizon must be at most {k}, as far as {network} predicts, got {horizon}")
        self._steps = 0
        super().__init__(base)

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"snapshot_{number}" for number in range(1, self.snapshots))

    def _create(self, group: Mapping[str, Any], fragment: Fragment) -> dict[str, Tensor]:
        state = super()._create(group, fragment)
        if self.offload:
            state |= {name: tensor.cpu() for name, tensor in state.items()}
        return state

    def _settle(self) -> None:
        self._steps += 1

    def _step(self) -> None:
        if not self._settled:
            self._settle()
            self._settled = True
        number, rest = divmod((self._steps - 1) % self.period + 1, self.period // self.snapshots)
        if not rest and number == self.snapshots:
            self._jump(self.layout)
            return
        if not rest:
            for group, fragment in self._fragments():
                self._create(group, fragment)[f"snapshot_{number}"].copy_(fragment.tensor.data)
        super()._step()

    def _fragments(self) -> Iterator[tuple[dict[str, Any], Fragment]]:
        """All that is stepped now, whether it has a gradient or not."""
        for group in self.param_groups:
            for p in group["params"]:
                yield group, self._known(p)

    def _jump(self, layout: Layout) -> None:
        segments: list[Segment] = []
        weights: list[Tensor] = []
        pasts: list[list[Tensor]] = []
        for group, fragment in self._fragments():
            state = self._create(group, fragment)
            for segment in fragment.segments:
                weight = segment.of(fragment.tensor.data)
                segments.append(segment)
                weights.append(weight)
                pasts.append([segment.of(state[name]).to(weight.device) for name in self._states(group)])
        k = self.horizons[min(self._steps // self.period, len(self.horizons)) - 1]
        trajectories = [[*past, weight.float()] for past, weight in zip(pasts, weights, strict=True)]
        for weight, predicted in zip(weights, self._predicted(layout, segments, trajectories, k), strict=True):
            weight.copy_(predicted)

    def _predicted(
        self, layout: Layout, segments: Sequence[Segment], trajectories: Sequence[Sequence[Tensor]], k: int
    ) -> Iterator[Tensor]:
        """The pieces' predicted weights, from each one's snapshots."""
        if self.method == "geometric":
            ratios = _ratios(layout, segments, trajectories)
            for segment, past in zip(segments, trajectories, strict=True):
                yield past[-1] + geometric_change(past, ratios[segment.parameter], k)
        elif self._network is not None:
            scales = _scales(layout, segments, trajectories)
            for segment, past in zip(segments, trajectories, strict=True):
                mean, deviation = scales[segment.parameter]
                scaled = [(w - mean) / (deviation + EPS) for w in past]
                parameter = layout.parameters[segment.parameter]
                network = self._network.to(past[-1].device)
                change = network.change(scaled, tensor_type(parameter.name, parameter.shape), k)
                yield (scaled[-1] + change) * deviation + mean
        else:
            for past in trajectories:
                yield past[-1] + linear_change(past, k, from_last=self.method == "linear")

    def _shared(self) -> dict[str, float]:
        return {"steps": float(self._steps)}

    def _load_shared(self, state: Mapping[str, float]) -> None:
        self._steps = int(state.get("steps", 0))

    def metrics(self) -> dict[str, float]:
        """How often the weights have jumped."""
        return {"jumps": float(self._steps // self.period)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        super().load_state_dict(state_dict)
        if self.offload:
            for state in self.state.values():
                state |= {name: tensor.cpu() for name, tensor in state.items()}


_METHODS = ("linear", "fit", "geometric", "network")


def horizons(first: int, jumps: int | None) -> list[int]:
    """Snapshots ahead of each jump: from `first` to 1, linear in their root; after the last jump they stay."""
    if jumps is None or jumps == 1:
        return [first]
    roots = (first**0.5 + (1 - first**0.5) * j / (jumps - 1) for j in range(jumps))
    return [round(root**2) for root in roots]


def linear_change(past: Sequence[Tensor], k: int, *, from_last: bool = True) -> Tensor:
    """How far each element's least-squares line goes from its last snapshot in k snapshots.

    Args:
        past: c >= 2 snapshots of equal shape, the oldest first.
        k: >= 0.
        from_last: whether the line is moved so that it goes through the last snapshot.
    """
    centre = (len(past) - 1) / 2
    # Differences from the last snapshot: a constant trajectory has none, to the bit.
    offsets = [w - past[-1] for w in past]
    spread = sum((i - centre) ** 2 for i in range(len(past)))
    slope = _combined(offsets, lambda i: (i - centre) / spread)
    if from_last:
        return slope * k
    return _combined(offsets, lambda i: 1 / len(past)) + slope * (len(past) - 1 + k - centre)


def geometric_change(past: Sequence[Tensor], ratio: float, k: int) -> Tensor:
    """How far the elements go in k snapshots if each difference is `ratio` times the one before."""
    return (past[-1] - past[-2]) * sum(ratio**i for i in range(1, k + 1))


def _combined(tensors: Sequence[Tensor], weight: Callable[[int], float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for i, tensor in enumerate(tensors):
        total.add_(tensor, alpha=weight(i))
    return total


def _ratios(layout: Layout, segments: Sequence[Segment], trajectories: Sequence[Sequence[Tensor]]) -> list[float]:
    """By parameter, the least-squares ratio of each difference of snapshots to the one before."""
    rows = []
    for segment, past in zip(segments, trajectories, strict=True):
        steps = [after - before for before, after in pairwise(past)]
        rows += [(segment, before, after) for before, after in pairwise(steps)]
    products = layout.products(rows)
    return (products[:, 1] / products[:, 0]).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1).tolist()


def _scales(
    layout: Layout, segments: Sequence[Segment], trajectories: Sequence[Sequence[Tensor]]
) -> list[tuple[float, float]]:
    """By parameter, mean and standard deviation over the elements of all snapshots."""
    rows = [
        torch.stack([torch.stack(list(past)).double().sum(), torch.stack(list(past)).double().square().sum()])
        for past in trajectories
    ]
    sums = layout.total(segments, torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.float64)).tolist()
    found = []
    for parameter, (total, squares) in zip(layout.parameters, sums, strict=True):
        count = parameter.numel * (len(trajectories[0]) if trajectories else 1)
        mean = total / max(count, 1)
        variance = max(squares - count * mean**2, 0.0) / max(count - 1, 1)
        found.append((mean, variance**0.5))
    return found
