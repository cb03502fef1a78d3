"""What every optimizer of lowland shares: the layout, sums before the step, state by parameter name.

A method is a subclass that says which state it keeps (`_states`), which sums it takes over all gradients before
anything changes (`_measure`), and what it does to the pieces of a group (`_update`).  It never asks whether
the tensors are sharded.

An engine that shards calls `attach` once, and for each optimizer step `prepare` with all gradients, `step` as often as
it steps groups, and `finish`.  In anyone's own loop on whole parameters, under DDP or on FSDP2's DTensors, `step`
alone does all of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim import kernels
from lowland.optim.dtensor import dtensor_layout
from lowland.optim.layout import Fragment, Gradients, Layout, Segment

__all__ = ["LayoutOptimizer", "Pieces", "require"]

STEP = "step"
"""State of a fragment: how many steps it took, 0-d float32 on the CPU as torch's own optimizers keep it."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of a parameter group that are stepped together, as parallel lists of views."""

    layout: Layout
    segments: list[Segment]
    weights: list[Tensor]
    gradients: list[Tensor]
    states: dict[str, list[Tensor]]
    """By state, each piece's."""
    step: int
    """Which step of these pieces this is, from 1; 0 if the method does not count."""

    def of_parameters(self, values: Tensor) -> Tensor:
        """What `values` [parameters, ...] says of each piece's parameter: [pieces, ...], where the pieces lie."""
        device = self.weights[0].device
        rows = kernels.constant([segment.parameter for segment in self.segments], values.device)
        return values.index_select(0, rows).to(device)


class LayoutOptimizer(Optimizer):
    """Base of the optimizers.

    Args:
        params: parameters or groups of them, as torch.optim takes them; given as `named_parameters()` gives
            them, messages and state carry the names.
        defaults: hyper-parameters of the groups that do not say otherwise.

    Raises:
        TypeError: a parameter is complex or sparse.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._layout: Layout | None = None
        self._own_layout: Layout | None = None
        self._own: set[int] = set()
        self._prepared = self._settled = False
        self._squared_norm: Tensor | None = None
        super().__init__(params, defaults)

    # What a method says.

    _counts = False
    """Whether each fragment counts its steps, for methods that correct or schedule by them."""

    def _states(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of each parameter's state tensors: fp32, shaped like it, zero at first."""
        return ()

    def _measure(self, layout: Layout, gradients: Gradients) -> None:
        """Takes sums over all gradients before anything changes, and keeps them for `_update`.

        Gradients are averaged, and not yet clipped.  Every rank calls it and must take the same branches.
        A method that comes upon the squared norm of all gradients keeps it as `_squared_norm`.
        """

    def _settle(self) -> None:
        """Makes what `_measure` found part of the state: the step is applied; called once a step, before `_update`."""

    def _update(self, group: Mapping[str, Any], pieces: Pieces) -> None:
        """Changes weights and states of pieces of a group, in place."""
        raise NotImplementedError

    # What engines call.

    def attach(self, layout: Layout) -> None:
        """Tells which pieces of which parameters the stepped tensors hold; called by an engine, once."""
        self._layout = layout

    def prepare(self, gradients: Gradients) -> None:
        """Takes the sums over all gradients, before the first `step` of an optimizer step."""
        self._measure(self.layout, gradients)
        self._prepared, self._settled = True, False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient.

        Args:
            closure: evaluates the model anew and returns the loss.

        Raises:
            RuntimeError: a tensor is a flat fragment, as ZeRO makes them, and no layout of it is attached.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._prepared:
            self._step()
            return loss
        if self._is_rehearsal():
            return loss
        if self.layout.by_group:
            raise RuntimeError(f"{type(self).__name__}: an engine steps group by group; call `prepare` before it")
        self.prepare(self.layout.gradients())
        try:
            self._step()
        finally:
            self.finish()
        return loss

    def _is_rehearsal(self) -> bool:
        """Whether DeepSpeed's initialize steps fragments with gradients of zeros, before anyone can attach a layout."""
        tensors = [p for group in self.param_groups for p in group["params"]]
        if self._layout is not None or all(id(p) in self._own for p in tensors):
            return False
        return not any(p.grad is not None and bool(p.grad.any()) for p in tensors)

    def squared_norm(self) -> Tensor | None:
        """The squared norm of all gradients, 0-d float64 and equal on every rank, if `prepare` came upon it; else None.

        From `prepare` to `finish`; of gradients that are not clipped.  An engine need not take it again.
        """
        return self._squared_norm

    def finish(self) -> None:
        """Ends an optimizer step that `prepare` began, whether it was applied or not."""
        self._prepared = False
        self._squared_norm = None

    def create_state(self) -> None:
        """Makes all state that a step would make, zero, so that a checkpoint can be loaded into it."""
        for fragment in self.layout.fragments:
            self._create(self.param_groups[fragment.group], fragment)

    def shared_state(self) -> dict[str, float]:
        """State that belongs to no single parameter's tensor, by name, the same on every rank."""
        return {}

    def load_shared_state(self, state: Mapping[str, float]) -> None:
        """Restores `shared_state`."""

    def metrics(self) -> dict[str, float]:
        """What the method says of its last step, by name, to be recorded beside the loss; equal on every rank."""
        return {}

    def owned_state(self) -> dict[str, dict[str, Tensor | float]]:
        """State of whole parameters that this rank keeps for all, by parameter; see `lowland.optim.Whole`."""
        return {}

    def load_owned_state(self, read: Callable[[str], dict[str, Tensor | float]]) -> None:
        """Restores `owned_state`; `read` gives the state of a parameter by its name."""

    # torch.optim's own.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch.optim does."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.is_complex() or p.layout != torch.strided:
                raise TypeError(f"{type(self).__name__} takes real, dense parameters, not {p.dtype} {p.layout}")
            self._own.add(id(p))
        self._own_layout = None

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and `shared`."""
        return {**super().state_dict(), "shared": self.shared_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`; each tensor keeps its own type, where torch would give it the parameter's."""
        shared = state_dict.get("shared", {})
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "shared"})
        params = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            state = self.state[params[index]]
            for key, value in saved.items():
                if isinstance(value, Tensor) and state[key].dtype != value.dtype:
                    state[key] = value.detach().clone().to(state[key].device)
        self.load_shared_state(shared)

    # The shared way from groups to pieces.

    @property
    def layout(self) -> Layout:
        """The attached layout, or that of the parameters this optimizer was made with.

        Raises:
            RuntimeError: the parameters were replaced by tensors of which nothing is known.
        """
        if self._layout is not None:
            return self._layout
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self._own:
                    raise RuntimeError(_no_layout(self, p))
        if self._own_layout is None:
            named = [
                list(zip(_names(i, group), group["params"], strict=True)) for i, group in enumerate(self.param_groups)
            ]
            self._own_layout = dtensor_layout(named) or Layout.whole(named)
        return self._own_layout

    def _step(self) -> None:
        if not self._settled:
            self._settle()
            self._settled = True
        layout = self.layout
        for group in self.param_groups:
            fragments = [self._known(tensor) for tensor in group["params"] if tensor.grad is not None]
            for step, some in self._by_step(group, fragments).items():
                pieces = self._pieces(layout, group, some, step)
                if pieces.segments:
                    self._update(group, pieces)

    def _known(self, tensor: Tensor) -> Fragment:
        """What the layout says of a tensor that is to be stepped."""
        # Not `self.layout`, which looks at every parameter: that would be quadratic.
        fragment = (self._layout or self._own_layout or self.layout).fragment(tensor)
        if fragment is None:
            raise RuntimeError(_no_layout(self, tensor))
        return fragment

    def _by_step(self, group: Mapping[str, Any], fragments: Sequence[Fragment]) -> dict[int, list[Fragment]]:
        """The fragments by which step this is for them; they differ where one had no gradient before."""
        found: dict[int, list[Fragment]] = {}
        for fragment in fragments:
            state = self._create(group, fragment)
            if self._counts:
                state[STEP] += 1
            found.setdefault(int(state[STEP]) if self._counts else 0, []).append(fragment)
        return found

    def _create(self, group: Mapping[str, Any], fragment: Fragment) -> dict[str, Tensor]:
        """The state of a fragment; what is missing is made, since a partial load may leave holes."""
        state: dict[str, Tensor] = self.state[fragment.tensor]
        if self._counts and STEP not in state:
            state[STEP] = torch.zeros((), dtype=torch.float32)
        for name in self._states(group):
            if name not in state:
                # In the same order of memory, so that kernels can go through both side by side.
                state[name] = torch.zeros_like(fragment.tensor, dtype=torch.float32)
        return state

    def _pieces(self, layout: Layout, group: Mapping[str, Any], fragments: Sequence[Fragment], step: int) -> Pieces:
        names = self._states(group)
        pieces = Pieces(layout, [], [], [], {name: [] for name in names}, step)
        for fragment in fragments:
            gradient = fragment.tensor.grad
            assert gradient is not None
            if gradient.is_sparse:
                raise TypeError(
                    f"{type(self).__name__} takes no sparse gradients: make the embedding with sparse=False"
                )
            pieces.segments.extend(fragment.segments)
            pieces.weights.extend(fragment.cut(fragment.tensor.data))
            pieces.gradients.extend(fragment.cut(gradient))
            for name in names:
                pieces.states[name].extend(fragment.cut(self.state[fragment.tensor][name]))
        return pieces


def require(holds: bool, message: str) -> None:
    """Refuses a hyper-parameter.

    Raises:
        ValueError: it does not hold.
    """
    if not holds:
        raise ValueError(message)


def _names(index: int, group: Mapping[str, Any]) -> list[str]:
    names = group.get("param_names")
    return list(names) if names is not None else [f"{index}.{i}" for i in range(len(group["params"]))]


def _no_layout(optimizer: Optimizer, tensor: Tensor) -> str:
    return (
        f"{type(optimizer).__name__} was handed a tensor of shape {tuple(tensor.shape)} that it was not made with, as "
        "ZeRO does, and has no layout of it: call attach(layout) with the segments of every fragment before the first "
        "step (lowland.trainers.engines.attach does it for a DeepSpeed engine)"
    )
