"""The permutations of the networks that lowland knows: perceptrons, its own ResNets, and Llama-like transformers.

In a transformer the hidden size (the residual stream), the inner units of each MLP and the key-value heads of each
attention, with the query heads that share them, can be permuted.  Entries within a head cannot: rotary positions turn
them in fixed pairs.  Query heads of one key-value head keep their order.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from lowland.trainers.landscape.permutations import PermutationSpec
from lowland.trainers.models import NetworkPair
from lowland.trainers.models.resnets import ResNet, WideBlock, WideResNet

__all__ = ["permutation_spec"]

_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.Dropout, nn.Identity, nn.Flatten)
_LAYER = re.compile(r"(.*layers\.\d+)\.self_attn\.q_proj\.weight")
_NORM = ("weight", "bias", "running_mean", "running_var")


def permutation_spec(module: nn.Module) -> PermutationSpec | None:
    """The permutations of a network, wherever it is inside `module`; None if it is not one that is known, or two."""
    if any(isinstance(network, NetworkPair) for network in module.modules()):
        return None
    for name, network in module.named_modules():
        spec = _spec(network, f"{name}." if name else "")
        if spec is not None:
            # Biases may be left out, and tied weights are there once.
            return spec.of({**dict(module.named_parameters()), **dict(module.named_buffers())})
    return None


def _spec(network: nn.Module, prefix: str) -> PermutationSpec | None:
    if isinstance(network, ResNet):
        return _resnet(network, prefix)
    if isinstance(network, WideResNet):
        return _wide_resnet(network, prefix)
    if isinstance(network, nn.Sequential) and _is_perceptron(network):
        return _perceptron(network, prefix)
    return _llama(network, prefix) if _is_llama_like(network) else None


def _is_perceptron(network: nn.Sequential) -> bool:
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return len(linear) >= 2 and all(isinstance(layer, (nn.Linear, *_ELEMENTWISE)) for layer in network)


def _perceptron(network: nn.Sequential, prefix: str) -> PermutationSpec:
    spec = PermutationSpec()
    linear = [f"{prefix}{index}" for index, layer in enumerate(network) if isinstance(layer, nn.Linear)]
    for before, after in pairwise(linear):
        spec.add(before, 0, f"{before}.weight", f"{before}.bias")
        spec.add(before, 1, f"{after}.weight")
    return spec


def _resnet(network: ResNet, prefix: str) -> PermutationSpec:
    spec = PermutationSpec()
    stream = f"{prefix}stem"
    _convolved(spec, stream, f"{stream}.0", f"{stream}.1")
    for name, block in _blocks(network.stages, f"{prefix}stages"):
        assert isinstance(block.body, nn.Sequential)
        body = [index for index, layer in enumerate(block.body) if isinstance(layer, nn.Conv2d)]
        before = stream
        if not isinstance(block.shortcut, nn.Identity):
            stream = name
            spec.add(before, 1, f"{name}.shortcut.0.weight")
            _convolved(spec, stream, f"{name}.shortcut.0", f"{name}.shortcut.1")
        for index in body:
            spec.add(before, 1, f"{name}.body.{index}.weight")
            before = stream if index == body[-1] else f"{name}.body.{index}"
            _convolved(spec, before, f"{name}.body.{index}", f"{name}.body.{index + 1}")
    spec.add(stream, 1, f"{prefix}fc.weight")
    return spec


def _wide_resnet(network: WideResNet, prefix: str) -> PermutationSpec:
    spec = PermutationSpec()
    stream = f"{prefix}stem"
    spec.add(stream, 0, f"{stream}.weight")
    for index, block in network.blocks.named_children():
        assert isinstance(block, WideBlock)
        name = f"{prefix}blocks.{index}"
        _normalised(spec, stream, f"{name}.first.0")
        spec.add(stream, 1, f"{name}.body.0.weight")
        _convolved(spec, f"{name}.body", f"{name}.body.0", f"{name}.body.1")
        spec.add(f"{name}.body", 1, f"{name}.body.3.weight")
        if block.shortcut is not None:
            spec.add(stream, 1, f"{name}.shortcut.weight")
            stream = name
            spec.add(stream, 0, f"{name}.shortcut.weight")
        spec.add(stream, 0, f"{name}.body.3.weight")
    _normalised(spec, stream, f"{prefix}last.0")
    spec.add(stream, 1, f"{prefix}fc.weight")
    return spec


def _blocks(stages: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for stage, blocks in stages.named_children():
        for index, block in blocks.named_children():
            yield f"{prefix}.{stage}.{index}", block


def _convolved(spec: PermutationSpec, permutation: str, convolution: str, norm: str) -> None:
    """The outputs of a convolution and of the normalisation behind it."""
    spec.add(permutation, 0, f"{convolution}.weight")
    _normalised(spec, permutation, norm)


def _normalised(spec: PermutationSpec, permutation: str, norm: str) -> None:
    spec.add(permutation, 0, *(f"{norm}.{name}" for name in _NORM))


def _is_llama_like(network: nn.Module) -> bool:
    config = getattr(network, "config", None)
    names = {name for name, _ in network.named_parameters()}
    layers = [match[1] for name in names if (match := _LAYER.fullmatch(name))]
    return (
        getattr(config, "num_key_value_heads", None) is not None
        and len(layers) == getattr(config, "num_hidden_layers", None)
        and all(f"{layer}.mlp.{part}_proj.weight" in names for layer in layers for part in ("gate", "up", "down"))
    )


def _llama(network: nn.Module, prefix: str) -> PermutationSpec:
    spec = PermutationSpec()
    config: Any = network.config
    names = [name for name, _ in network.named_parameters()]
    hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    stream = f"{prefix}hidden"
    spec.add(stream, 1, *(prefix + name for name in names if name.endswith(("embed_tokens.weight", "lm_head.weight"))))
    spec.add(stream, 0, *(prefix + name for name in names if "norm" in name and "self_attn" not in name))
    for layer in (prefix + match[1] for name in names if (match := _LAYER.fullmatch(name))):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        for part, block in (("q", heads // groups * size), ("k", size), ("v", size)):
            spec.add(attention, 0, f"{attention}.{part}_proj.weight", f"{attention}.{part}_proj.bias", block=block)
            spec.add(stream, 1, f"{attention}.{part}_proj.weight")
        spec.add(attention, 1, f"{attention}.o_proj.weight", block=heads // groups * size)
        for part in ("gate", "up"):
            spec.add(mlp, 0, f"{mlp}.{part}_proj.weight", f"{mlp}.{part}_proj.bias")
            spec.add(stream, 1, f"{mlp}.{part}_proj.weight")
        spec.add(mlp, 1, f"{mlp}.down_proj.weight")
        for last in (f"{attention}.o_proj", f"{mlp}.down_proj"):
            spec.add(stream, 0, f"{last}.weight", f"{last}.bias")
    return spec
