"""What Critical Momenta and Critical Gradients share: the buffer, who may enter it, and the base optimizer's step."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.optim import kernels
from lowland.optim.base import LayoutOptimizer, Pieces, require
from lowland.optim.critical_updates import adam_, recalled, rmsprop_, sgd_
from lowland.optim.layout import Fragment, Gradients, Layout, Segment
from lowland.optim.ranking import Ranking, Turn

__all__ = ["Buffered", "Priority", "Variant"]

Variant = Literal["adam", "adamw", "sgd", "rmsprop"]
Priority = Literal["tensor_norms", "global_norm", "tensor"]

WHOLE = "global"
"""Name of the buffer that all tensors share."""


class Buffered(LayoutOptimizer):
    """An optimizer with a buffer of its past; arguments as `CriticalMomenta` has them."""

    _counts = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        variant: Variant = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        buffer_size: int = 5,
        priority_decay: float = 0.7,
        kappa: float = 1.0,
        priority: Priority = "tensor_norms",
        buffer_dtype: Literal["float32", "bfloat16"] = "float32",
        buffer_device: str | None = None,
    ) -> None:
        require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        require(
            variant in ("adam", "adamw", "sgd", "rmsprop"), f"variant: adam, adamw, sgd or rmsprop, got {variant!r}"
        )
        require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        require(eps > 0, f"eps > 0 must hold, got {eps}")
        require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        require(buffer_size >= 1, f"buffer_size >= 1 must hold, got {buffer_size}; kappa=0 keeps no buffer")
        require(0 <= priority_decay <= 1, f"priority_decay in [0, 1] must hold, got {priority_decay}")
        require(kappa >= 0, f"kappa >= 0 must hold, got {kappa}")
        require(
            priority in ("tensor_norms", "global_norm", "tensor"),
            f"priority must be tensor_norms, global_norm or tensor, got {priority!r}",
        )
        require(
            buffer_dtype in ("float32", "bfloat16"), f"buffer_dtype must be float32 or bfloat16, got {buffer_dtype!r}"
        )
        self.variant, self.kappa, self.priority = variant, kappa, priority
        self._slots = tuple(f"buffer_{slot}" for slot in range(buffer_size)) if kappa else ()
        self._buffer_dtype, self._buffer_device = getattr(torch, buffer_dtype), buffer_device
        self._ranking = Ranking(buffer_size, priority_decay)
        self._pending: tuple[list[str], Tensor] | None = None
        self._turns: dict[str, Turn] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @property
    def priorities(self) -> dict[str, list[float]]:
        """The decayed priorities by filled slot: of the buffer `global`, or of each parameter's by its name."""
        return {name: self._ranking.priorities(name) for name in self._buffers(self.layout)}

    def _move(self, group: Mapping[str, Any], pieces: Pieces, past: list[Tensor] | None) -> list[Tensor]:
        """Moves the weights, given b, which is None while the buffer is empty; returns what is offered to it."""
        raise NotImplementedError

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        moments = ("exp_avg",) if self.variant == "sgd" else ("exp_avg", "exp_avg_sq")
        return (*moments, *self._slots)

    def _create(self, group: Mapping[str, Any], fragment: Fragment) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[fragment.tensor]
        device = self._buffer_device or fragment.tensor.device
        for name in self._slots:
            if name not in state:
                state[name] = torch.zeros_like(
                    fragment.tensor,
                    dtype=self._buffer_dtype,
                    device=device,
                    memory_format=torch.contiguous_format,
                )
        return super()._create(group, fragment)

    def _measure(self, layout: Layout, gradients: Gradients) -> None:
        if not self.kappa:
            return
        kept = [(segment, gradient) for segment, _, gradient in gradients]
        squares = kernels.squares([gradient for _, gradient in kept])
        # A parameter without a gradient has no part in the step, unlike one whose gradient is zero.
        sums = layout.total([segment for segment, _ in kept], torch.stack([squares, torch.ones_like(squares)], dim=1))
        self._squared_norm = sums[:, 0].sum()
        if self.priority == "global_norm":
            sums = sums.sum(0, keepdim=True)
        sums[:, 0].sqrt_()
        if self.priority == "tensor_norms":
            sums = sums.sum(0, keepdim=True)
        self._pending = self._buffers(layout), sums

    def _settle(self) -> None:
        if self._pending is None:
            return
        buffers, sums = self._pending
        rows = zip(buffers, sums.tolist(), strict=True)
        self._turns = {buffer: self._ranking.take(buffer, norm) for buffer, (norm, present) in rows if present}
        self._pending = None

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        pieces = replace(pieces, gradients=self._decayed(group, pieces))
        if not self.kappa:
            self._step_base(group, pieces, pieces.gradients)
            return
        for turn, some in self._by_turn(pieces):
            past = None
            if turn.filled:
                past = recalled([some.states[name] for name in self._slots[: turn.filled]], some.weights, self.kappa)
            newcomers = self._move(group, some, past)
            if turn.slot is not None:
                torch._foreach_copy_(some.states[self._slots[turn.slot]], newcomers)

    def _decayed(self, group: Mapping[str, Any], pieces: Pieces) -> list[Tensor]:
        """The gradients in fp32, with coupled weight decay; decoupled decay is applied."""
        gradients, decay = [gradient.float() for gradient in pieces.gradients], group["weight_decay"]
        if self.variant == "adamw":
            torch._foreach_mul_(pieces.weights, 1 - group["lr"] * decay)
        elif decay:
            gradients = list(torch._foreach_add(gradients, pieces.weights, alpha=decay))
        return gradients

    def _step_base(self, group: Mapping[str, Any], pieces: Pieces, gradients: list[Tensor]) -> None:
        """The step of the base optimizer."""
        lr, betas, momenta = group["lr"], group["betas"], pieces.states["exp_avg"]
        if self.variant == "sgd":
            sgd_(pieces.weights, gradients, momenta, None, lr=lr, momentum=betas[0])
            return
        seconds, eps = pieces.states["exp_avg_sq"], group["eps"]
        if self.variant == "rmsprop":
            rmsprop_(pieces.weights, gradients, momenta, seconds, lr=lr, betas=betas, eps=eps)
        else:
            adam_(pieces.weights, gradients, momenta, seconds, lr=lr, betas=betas, eps=eps, step=pieces.step)

    def _by_turn(self, pieces: Pieces) -> Iterator[tuple[Turn, Pieces]]:
        """The pieces whose buffers are alike."""
        found: dict[Turn, list[int]] = {}
        for index, segment in enumerate(pieces.segments):
            found.setdefault(self._turns[self._buffer(pieces.layout, segment)], []).append(index)
        if len(found) == 1:
            yield next(iter(found)), pieces
            return
        for turn, indices in found.items():
            yield turn, _select(pieces, indices)

    def _buffers(self, layout: Layout) -> list[str]:
        return [p.name for p in layout.parameters] if self.priority == "tensor" else [WHOLE]

    def _buffer(self, layout: Layout, segment: Segment) -> str:
        return layout.parameters[segment.parameter].name if self.priority == "tensor" else WHOLE

    def metrics(self) -> dict[str, float]:
        """Share of the slots that are filled, and of the newcomers that were let in by the last step."""
        if not self._turns:
            return {}
        filled = sum(len(self._ranking.priorities(name)) for name in self._turns)
        accepted = sum(turn.slot is not None for turn in self._turns.values())
        count = len(self._turns)
        return {"buffer_filled": filled / (count * len(self._slots)), "buffer_accepted": accepted / count}

    def shared_state(self) -> dict[str, float]:
        """The priorities by slot; they tell which slots are filled."""
        return self._ranking.state()

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores the priorities."""
        self._ranking.load(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`; the buffer goes where it is kept, where torch would put it beside the weights."""
        super().load_state_dict(state_dict)
        if self._buffer_device is not None:
            for state in self.state.values():
                state |= {name: state[name].to(self._buffer_device) for name in self._slots if name in state}


def _select(pieces: Pieces, indices: list[int]) -> Pieces:
    """Some of the pieces."""

    def pick(column: list[Any]) -> list[Any]:
        return [column[i] for i in indices]

    return replace(
        pieces,
        segments=pick(pieces.segments),
        weights=pick(pieces.weights),
        gradients=pick(pieces.gradients),
        states={name: pick(column) for name, column in pieces.states.items()},
    )
