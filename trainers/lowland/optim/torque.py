"""AdaTAMW: AdamW with Torque-Aware Momentum (Malviya et al., arXiv 2412.18790).

With gradient g, momentum m, smoothed cosine s and learning rate eta:

    S_t = <m_{t-1}, g_t> / (|m_{t-1}| |g_t|)         0 where a norm is 0
    s_t = gamma s_{t-1} + (1 - gamma) S_t
    d_t = (1 + s_t) / 2
    m_t = beta1 m_{t-1} + (epsilon + d_t) g_t        no (1 - beta1), no bias correction
    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
    theta_t = (1 - eta lambda) theta_{t-1} - eta m_t / (sqrt(v_t) + eps)

The cosine is taken over the whole model (the paper's notation), over a parameter group, or over
each tensor.  A cosine does not change with a positive factor on g, so it may be taken from
gradients that are not yet unscaled and clipped.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.layout import Layout, Segment

__all__ = ["AdaTAMW", "Scope", "adatamw_"]

Scope = Literal["global", "group", "tensor"]


class AdaTAMW(Optimizer):
    """AdamW whose momentum takes in less of a gradient that turns against it.

    State: 2 tensors (momentum, second moment) per parameter, one number per scope.  No extra passes.
    On flat fragments (ZeRO) it needs `attach`; without, it refuses to step rather than compute the
    cosine over whatever a fragment happens to hold.

    Args:
        params: parameters or groups, as torch.optim takes them.
        lr: learning rate; a fifth to a tenth of AdamW's, since there is no (1 - beta1) factor.
        betas: decay of momentum and second moment, each in [0, 1).
        gamma: smoothing of the cosine, in [0, 1).
        eps: added to the root of the second moment, > 0.
        damping_floor: epsilon in the paper, >= 0.
        weight_decay: decoupled, times lr, >= 0.
        scope: over what the cosine is taken.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        gamma: float = 0.9,
        eps: float = 1e-8,
        damping_floor: float = 1e-8,
        weight_decay: float = 0.0,
        scope: Scope = "global",
    ) -> None:
        _require(lr >= 0, f"lr >= 0 must hold, got {lr}")
        _require(all(0 <= beta < 1 for beta in betas), f"betas in [0, 1) must hold, got {betas}")
        _require(0 <= gamma < 1, f"gamma in [0, 1) must hold, got {gamma}")
        _require(eps > 0, f"eps > 0 must hold, got {eps}")
        _require(damping_floor >= 0, f"damping_floor >= 0 must hold, got {damping_floor}")
        _require(weight_decay >= 0, f"weight_decay >= 0 must hold, got {weight_decay}")
        _require(scope in ("global", "group", "tensor"), f"scope must be global, group or tensor, got {scope!r}")
        self.gamma, self.scope = gamma, scope
        self.cosines: dict[str, float] = {}
        """The smoothed cosine by scope: key `global`, a group's index, or a parameter's name."""
        self._pending: dict[str, float] | None = None
        self._layout: Layout | None = None
        self._own: set[int] = set()
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "damping_floor": damping_floor,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does."""
        super().add_param_group(param_group)
        self._own.update(id(p) for p in self.param_groups[-1]["params"])

    def attach(self, layout: Layout) -> None:
        """Tells which pieces of which parameters the stepped tensors hold; called by an engine, once."""
        self._layout = layout

    def prepare(self, gradients: Iterable[tuple[Segment, Tensor, Tensor]]) -> None:
        """Takes the cosines before the first `step` of an optimizer step; engines that split `step` call it.

        Args:
            gradients: for each segment of this rank: the segment, its fragment, its gradient (1-D).
        """
        self._pending = self._cosines(gradients)

    def _cosines(self, gradients: Iterable[tuple[Segment, Tensor, Tensor]]) -> dict[str, float]:
        layout = self._require_layout()
        products = []
        for segment, fragment, gradient in gradients:
            momentum = segment.of(self._state_of(fragment)["exp_avg"])
            products.append((segment, ((momentum, gradient), (momentum, momentum), (gradient, gradient))))
        return self._smooth(layout, layout.sums(products, columns=3))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._pending is not None:
            self._apply(self._pending)
        else:
            if self._layout is not None and self._layout.all_reduce is not None:
                raise RuntimeError("on flat fragments `step` may run group by group: call `prepare` before it")
            self._apply(self._cosines(self._own_gradients(self._require_layout())))
        return loss

    def finish(self) -> None:
        """Ends an optimizer step that `prepare` began, whether it was applied or not."""
        self._pending = None

    def _apply(self, cosines: dict[str, float]) -> None:
        self.cosines = cosines
        layout = self._require_layout()
        for group in self.param_groups:
            self._step_group(group, layout)

    def _step_group(self, group: Mapping[str, Any], layout: Layout) -> None:
        params, grads, momenta, seconds, dampings = [], [], [], [], []
        for tensor in group["params"]:
            if tensor.grad is None:
                continue
            fragment = layout.fragment(tensor)
            if fragment is None:
                raise RuntimeError(_NO_LAYOUT.format(shape=tuple(tensor.shape)))
            state = self._state_of(tensor)
            for segment in fragment.segments:
                params.append(segment.of(tensor.data))
                grads.append(segment.of(tensor.grad))
                momenta.append(segment.of(state["exp_avg"]))
                seconds.append(segment.of(state["exp_avg_sq"]))
                dampings.append(group["damping_floor"] + (1 + self.cosines[self._key(layout, segment)]) / 2)
        if params:
            adatamw_(
                params,
                grads,
                momenta,
                seconds,
                dampings,
                lr=group["lr"],
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
            )

    def _smooth(self, layout: Layout, sums: Tensor) -> dict[str, float]:
        rows = sums.tolist()
        total: dict[str, list[float]] = {}
        for index, row in enumerate(rows):
            key = self._key(layout, Segment(index, 0, 0, 0))
            total[key] = [a + b for a, b in zip(total.get(key, [0.0] * 3), row, strict=True)]
        return {key: self.gamma * self.cosines.get(key, 0.0) + (1 - self.gamma) * _cosine(*total[key]) for key in total}

    def _key(self, layout: Layout, segment: Segment) -> str:
        parameter = layout.parameters[segment.parameter]
        return {"global": "global", "group": str(parameter.group), "tensor": parameter.name}[self.scope]

    def _state_of(self, tensor: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[tensor]
        for key in ("exp_avg", "exp_avg_sq"):
            if key not in state:
                state[key] = torch.zeros_like(tensor, dtype=torch.float32, memory_format=torch.contiguous_format)
        return state

    def _require_layout(self) -> Layout:
        if self._layout is not None:
            return self._layout
        foreign = [p for g in self.param_groups for p in g["params"] if id(p) not in self._own]
        if foreign:
            raise RuntimeError(_NO_LAYOUT.format(shape=tuple(foreign[0].shape)))
        groups = [
            [(name, p) for name, p in zip(_names(index, group), group["params"], strict=True)]
            for index, group in enumerate(self.param_groups)
        ]
        return Layout.whole(groups)

    def _own_gradients(self, layout: Layout) -> Iterable[tuple[Segment, Tensor, Tensor]]:
        for fragment in layout.fragments:
            if fragment.tensor.grad is not None:
                for segment in fragment.segments:
                    yield segment, fragment.tensor, segment.of(fragment.tensor.grad)

    def shared_state(self) -> dict[str, float]:
        """The smoothed cosines by scope."""
        return dict(self.cosines)

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores the smoothed cosines."""
        self.cosines = dict(state)

    def state_dict(self) -> dict[str, Any]:
        """torch's state plus the smoothed cosines."""
        return {**super().state_dict(), "cosines": dict(self.cosines)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        rest = {key: value for key, value in state_dict.items() if key != "cosines"}
        super().load_state_dict(rest)
        self.cosines = dict(state_dict["cosines"])
        # torch casts state to the parameter's type; moments stay fp32.
        params = [p for group in self.param_groups for p in group["params"]]
        indices = [index for group in rest["param_groups"] for index in group["params"]]
        for index, p in zip(indices, params, strict=True):
            for key, value in rest["state"].get(index, {}).items():
                self.state[p][key] = value.to(p.device, torch.float32, copy=True)


def adatamw_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    seconds: list[Tensor],
    dampings: list[float],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdaTAMW update, in place, on lists of equally shaped tensors; `dampings` is epsilon + d of each."""
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_mul_(momenta, betas[0])
    torch._foreach_add_(momenta, torch._foreach_mul(grads, dampings))
    torch._foreach_mul_(seconds, betas[1])
    torch._foreach_addcmul_(seconds, grads, grads, 1 - betas[1])
    denominators = torch._foreach_sqrt(seconds)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, momenta, denominators, -lr)


def _cosine(dot: float, first: float, second: float) -> float:
    """The cosine from a dot product and two squared norms, in [-1, 1]; 0 where a norm is 0."""
    if first <= 0 or second <= 0:
        return 0.0
    return max(-1.0, min(1.0, dot / math.sqrt(first) / math.sqrt(second)))


def _names(index: int, group: Mapping[str, Any]) -> list[str]:
    names = group.get("param_names")
    return list(names) if names is not None else [f"{index}.{i}" for i in range(len(group["params"]))]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


_NO_LAYOUT = (
    "AdaTAMW was handed a tensor of shape {shape} that it was not built with, as ZeRO does, and has no layout "
    "of it: call attach(layout) with the segments of every fragment before the first step"
)
