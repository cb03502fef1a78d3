"""Multiplications of a network's convolutions and linear layers, for one example."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

Counted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


class Multiplications:
    """Counts, in the network's first forward pass, what each layer multiplies for one example.

    A multiplication and its addition are 2 FLOPs.  What is not a convolution or a linear layer is left out, as is
    attention between tokens.

    Args:
        network: whose layers are watched until they have run once.
    """

    def __init__(self, network: nn.Module) -> None:
        self.by_layer: dict[str, int] = {}
        """Of each layer that has run, by name."""
        for name, layer in network.named_modules():
            if isinstance(layer, Counted):
                self._watch(name, layer)

    def _watch(self, name: str, layer: Counted) -> None:
        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # Output positions of an example, times the inputs of one output.
            inputs_of_one = math.prod(weight_shape(module)[1:])
            self.by_layer[name] = output[0].numel() * inputs_of_one
            handle.remove()

        handle = layer.register_forward_hook(count)

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


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, also where ZeRO stage 3 holds it in pieces."""
    weight: Any = layer.weight
    return tuple(getattr(weight, "ds_shape", weight.shape))
