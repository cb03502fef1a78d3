"""Multiplications of a network's convolutions and linear layers, for one example."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Counted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Multiplications:
    """What each layer multiplies for one example, counted in a forward pass in evaluation mode.

    A multiplication and its addition are 2 FLOPs.  What is not a convolution or a linear layer is left out, as is
    attention between tokens.

    Args:
        network: on the CPU, whole.
        shape: of an example.
    """

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        self.by_layer: dict[str, int] = {}
        """Of each layer that runs, by name."""
        handles = [
            layer.register_forward_hook(self._count(name))
            for name, layer in network.named_modules()
            if isinstance(layer, Counted)
        ]
        training, dtype = network.training, next(network.parameters()).dtype
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network.eval()(torch.zeros(1, *shape, dtype=dtype))
        network.train(training)
        for handle in handles:
            handle.remove()

    def _count(self, name: str) -> Callable[[Any, Any, Tensor], None]:
        def count(layer: Counted, inputs: Any, output: Tensor) -> None:
            # Output positions of an example, times the inputs of one output.
            self.by_layer[name] = output[0].numel() * math.prod(layer.weight.shape[1:])

        return count

    def without(self, outputs: Mapping[str, float], inputs: Mapping[str, float]) -> dict[str, float]:
        """`flops` of the whole network, and `smaller_flops` of one with fewer channels.

        Args:
            outputs: share of a layer's outputs that is left, by layer; all of them where it says nothing.
            inputs: likewise of its inputs.
        """
        whole = sum(self.by_layer.values())
        smaller = sum(n * outputs.get(name, 1.0) * inputs.get(name, 1.0) for name, n in self.by_layer.items())
        return {"flops": 2.0 * whole, "smaller_flops": 2.0 * smaller}

    def at(self, sparsity: Mapping[str, float]) -> dict[str, float]:
        """`flops` of the dense network, and `sparse_flops` if zeros in weights cost nothing.

        Args:
            sparsity: share of zeros in weights, by parameter name, which may have a prefix before the layer's.
        """
        dense = sparse = 0.0
        for name, count in self.by_layer.items():
            ending = f"{name}.weight"
            own = next((s for key, s in sparsity.items() if key == ending or key.endswith(f".{ending}")), 0.0)
            dense += 2 * count
            sparse += 2 * count * (1 - own)
        return {"flops": dense, "sparse_flops": sparse}
