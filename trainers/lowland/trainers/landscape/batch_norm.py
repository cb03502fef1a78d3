"""Running statistics of BatchNorm for weights that were not trained: between two networks the old ones are wrong."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["recompute_batch_norm"]


@torch.no_grad()
def recompute_batch_norm(module: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any]) -> None:
    """Sets running means and variances to the averages over batches; a module without BatchNorm is left alone.

    Args:
        module: in any mode; afterwards in the same.
        forward: runs the module on a batch.
        batches: equally large ones of training data, at least one.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return
    sums = [torch.zeros(2, layer.num_features, dtype=torch.float64) for layer in layers]

    def watch(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach().double().movedim(1, 0).flatten(1)
            sums[index] += torch.stack([seen.mean(1), seen.var(1)]).cpu()

        return see

    mode, count = module.training, 0
    hooks = [layer.register_forward_pre_hook(watch(index)) for index, layer in enumerate(layers)]
    module.train()
    try:
        for batch in batches:
            forward(batch)
            count += 1
    finally:
        module.train(mode)
        for hook in hooks:
            hook.remove()
    for layer, total in zip(layers, sums, strict=True):
        for buffer, value in zip((layer.running_mean, layer.running_var), total / count, strict=True):
            assert buffer is not None
            buffer.copy_(value)
