"""BatchNorm whose statistics are a function of the global batch: the same at every world size and on every rank.

Plain BatchNorm moves its running averages in each forward pass, on each rank by its own images.  Here a forward pass in
training only adds its batch's mean and variance to a sum; when the step is done, `RunningAverages` averages those of
all micro-batches of all ranks and moves once.  With one micro-batch on one rank that is what plain BatchNorm does.  The
passes of SAM and its relatives at displaced weights add nothing: `frozen_statistics` hides the running averages from
them, as from any BatchNorm.

Over which images activations are normalised is another question: each micro-batch by itself, or the micro-batches of
all ranks together (`synchronised`: two messages of C numbers forward and two backward).  The first depends on
`micro_batch`, the second on nothing if a step is one pass.

Running averages and all arithmetic on statistics are fp32 whatever the weights are.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.trainers.errors import RecipeError


class StepBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over images [B, C, H, W] with the parameters and buffers of `nn.BatchNorm2d`.

    Args:
        plain: whose parameters and buffers it takes over.
        synchronised: normalise over the micro-batches of all ranks.
    """

    def __init__(self, plain: nn.BatchNorm2d, *, synchronised: bool) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        self.weight, self.bias = plain.weight, plain.bias
        self._buffers.update(plain._buffers)
        self.synchronised = synchronised
        # No buffer: DDP would overwrite it with rank 0's, and a checkpoint would hold it.
        self._gathered = torch.zeros(2 * plain.num_features + 1)

    def forward(self, input: Tensor) -> Tensor:
        """Normalised activations, in the type of `input`."""
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        if not self.training:
            return functional.batch_norm(input, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        if self.synchronised and dist.is_initialized() and dist.get_world_size() > 1:
            normalised, mean, variance = _synchronised(input.float(), self.eps)
            if weight is not None and bias is not None:
                normalised = normalised * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
            normalised = normalised.to(input.dtype)
        else:
            mean, variance = (torch.zeros(self.num_features, device=input.device) for _ in range(2))
            # Momentum 1 leaves the batch's own statistics there, without a pass over the activations for them.
            normalised = functional.batch_norm(input, mean, variance, weight, bias, True, 1.0, self.eps)
        if self.running_mean is not None:
            with torch.no_grad():
                ones = mean.new_ones(1)
                self._gathered += torch.cat([mean.detach(), variance.detach(), ones])
        return normalised

    def gathered(self) -> Tensor:
        """Sums of means [C], of variances [C], and of the number of passes [1], of this step."""
        return self._gathered

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "StepBatchNorm2d":
        """Moves with the module, but keeps statistics in fp32."""
        names = ("running_mean", "running_var")
        kept = {name: self._buffers[name] for name in names}
        self._buffers.update(dict.fromkeys(names))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(self._gathered).device
        self._buffers.update({name: None if held is None else held.to(device) for name, held in kept.items()})
        self._gathered = self._gathered.to(device)
        return self


class StepBatchNormAct2d(StepBatchNorm2d):
    """The same with what timm's `BatchNormAct2d` does behind it.

    Args:
        plain: timm's.
        synchronised: normalise over the micro-batches of all ranks.
    """

    def __init__(self, plain: nn.BatchNorm2d, *, synchronised: bool) -> None:
        super().__init__(plain, synchronised=synchronised)
        self.drop, self.act = plain.get_submodule("drop"), plain.get_submodule("act")

    def forward(self, input: Tensor) -> Tensor:
        """Activations."""
        activations: Tensor = self.act(self.drop(super().forward(input)))
        return activations


def use_step_batch_norm(module: nn.Module, *, synchronised: bool) -> nn.Module:
    """The module with every `nn.BatchNorm2d` in it replaced; names and values of parameters and buffers stay.

    Raises:
        RecipeError: it has BatchNorm of another kind.
    """
    _replace(module, synchronised=synchronised)
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, StepBatchNorm2d):
            raise RecipeError(
                f"model: its layer {name} is a {type(layer).__name__}, whose running averages would differ between "
                "workers; of BatchNorm only BatchNorm2d, over images, can be trained: take another network"
            )
    return module


def _replace(module: nn.Module, *, synchronised: bool) -> None:
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, StepBatchNorm2d(child, synchronised=synchronised))
        elif isinstance(child, nn.BatchNorm2d) and type(child).__name__ == "BatchNormAct2d":  # timm need not be there
            setattr(module, name, StepBatchNormAct2d(child, synchronised=synchronised))
        else:
            _replace(child, synchronised=synchronised)


class RunningAverages:
    """Those of a network, which move once a step.

    Args:
        module: with any number of `StepBatchNorm2d`.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = (layer for layer in module.modules() if isinstance(layer, StepBatchNorm2d))
        # Found once: while the host looks for them, a GPU has nothing to do.
        self._layers = [layer for layer in layers if layer.track_running_stats]

    @torch.no_grad()
    def settle(self, *, applied: bool | Tensor) -> None:
        """Ends a step: all ranks' statistics become running averages, the same on all ranks; collective.

        Args:
            applied: whether the step was; the statistics of one that was not are forgotten.  If only the device knows,
                a bool [] there.
        """
        if not self._layers:
            return
        sums = self._sums()
        if applied is not False:
            gathered = torch.cat(sums)
            if dist.is_initialized() and dist.get_world_size() > 1:
                dist.all_reduce(gathered)
            self._move(gathered, applied)
        torch._foreach_zero_(sums)

    def _move(self, gathered: Tensor, applied: bool | Tensor) -> None:
        """All at once, since a GPU takes as long for a small kernel as for a larger one."""
        passes = gathered.index_select(0, _passes_at(tuple(map(len, self._sums())), gathered.device))
        olds = [layer.get_buffer(name) for layer in self._layers for name in ("running_mean", "running_var")]
        none = gathered.new_zeros(1)
        before = torch.cat([part for pair in zip(olds[::2], olds[1::2], strict=True) for part in (*pair, none)])
        # A layer that no pass came through has nothing to move to.
        after = torch.where((passes > 0) & applied, gathered / passes, before)
        sizes = [size for layer in self._layers for size in (layer.num_features, layer.num_features, 1)]
        news = [part for index, part in enumerate(after.split(sizes)) if index % 3 < 2]
        momenta = [0.1 if layer.momentum is None else layer.momentum for layer in self._layers for _ in range(2)]
        for momentum in dict.fromkeys(momenta):
            chosen = [index for index, own in enumerate(momenta) if own == momentum]
            torch._foreach_lerp_([olds[i] for i in chosen], [news[i] for i in chosen], momentum)
        counters = [layer.get_buffer("num_batches_tracked") for layer in self._layers]
        if isinstance(applied, Tensor):
            # Without alpha it would be taken for a number, which the host would wait for.
            torch._foreach_add_(counters, applied.to(counters[0].dtype), alpha=1)
        else:
            torch._foreach_add_(counters, 1)

    def _sums(self) -> list[Tensor]:
        return [layer.gathered() for layer in self._layers]


@lru_cache(maxsize=16)
def _passes_at(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """For each of the numbers that layers gathered, one after the other, where its layer's number of passes lies."""
    counts = torch.tensor(sizes)
    return (counts.cumsum(0) - 1).repeat_interleave(counts).to(device)


class _Total(Function):
    """The sum over ranks; its gradient is the sum over ranks of the gradients."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _total(tensor: Tensor) -> Tensor:
    total: Tensor = _Total.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def _synchronised(values: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values [B, C, H, W] normalised over all ranks' values, their mean [C] and unbiased variance [C].

    The mean comes first and deviations from it second: a variance from squares would cancel.
    """
    size = values.new_full((1,), values.numel() // values.shape[1])
    totals = _total(torch.cat([values.sum((0, 2, 3)), size]))
    count = totals[-1].detach()
    mean = totals[:-1] / count
    centred = values - mean.view(1, -1, 1, 1)
    squares = _total(centred.square().sum((0, 2, 3)))
    variance = squares / count
    normalised = centred * (variance + eps).rsqrt().view(1, -1, 1, 1)
    return normalised, mean.detach(), (squares / (count - 1).clamp(min=1)).detach()
