"""Units of a network that can be taken out: channels between two layers that nothing else reads, and heads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = [
    "Units",
    "attention_heads",
    "fit_units",
    "hidden_neurons",
    "removable_units",
    "sliced",
    "without_units",
]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Units:
    """Channels from a layer to the next one that reads them, by the names of modules."""

    producer: str
    norm: str | None
    """A norm between them."""
    relu: str | None
    """A ReLU between them."""
    consumer: str
    count: int
    beside: tuple[str, ...] = ()
    """Other layers that have these channels as outputs: keys and values beside queries, a gate's other half."""
    width: int = 1
    """Channels that go together: those of a head."""

    def tensors(self) -> dict[str, int]:
        """By name, each tensor of the network that has these channels as one of its dimensions, and which."""
        producers = (self.producer, *self.beside)
        found = {f"{layer}.{name}": 0 for layer in producers for name in ("weight", "bias")}
        found[f"{self.consumer}.weight"] = 1
        if self.norm is not None:
            found |= {f"{self.norm}.{name}": 0 for name in ("weight", "bias", "running_mean", "running_var")}
        return found


def removable_units(network: nn.Module) -> list[Units]:
    """Those with a ReLU: within each `nn.Sequential`, a layer, perhaps BatchNorm, ReLU and a layer of the same kind.

    What a residual sum reads is not among them, since its other summand has as many channels.
    """
    return [
        units
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        for units in _in_sequence(name, module)
    ]


def _in_sequence(name: str, sequence: nn.Sequential) -> Iterator[Units]:
    children = [(f"{name}.{key}" if name else key, child) for key, child in sequence.named_children()]
    for start, (producer, layer) in enumerate(children):
        rest = children[start + 1 :]
        if not isinstance(layer, _LAYERS) or getattr(layer, "groups", 1) != 1:
            continue
        norm = rest[0][0] if rest and isinstance(rest[0][1], _NORMS) else None
        rest = rest[norm is not None :]
        if len(rest) < 2 or not isinstance(rest[0][1], nn.ReLU):
            continue
        relu, (consumer, after) = rest[0][0], rest[1]
        if isinstance(after, _LAYERS) and type(after) is type(layer) and getattr(after, "groups", 1) == 1:
            yield Units(producer, norm, relu, consumer, layer.weight.shape[0])


def attention_heads(network: nn.Module) -> list[Units]:
    """The heads of transformers' attention, block by block; not where several heads share keys."""
    return _between(network, ("q_proj", "k_proj", "v_proj"), "o_proj", width="head_dim")


def hidden_neurons(network: nn.Module) -> list[Units]:
    """The neurons of transformers' feed-forward layers, block by block, gated or not."""
    return _between(network, ("fc1",), "fc2") or _between(network, ("gate_proj", "up_proj"), "down_proj")


def _between(network: nn.Module, producers: tuple[str, ...], consumer: str, width: str | None = None) -> list[Units]:
    """The channels from linear layers of these names to that one, in modules that have them as attributes."""
    found = []
    for name, module in network.named_modules():
        before = [layer for key in producers if isinstance(layer := getattr(module, key, None), nn.Linear)]
        after, together = getattr(module, consumer, None), getattr(module, width, None) if width is not None else 1
        if len(before) < len(producers) or not isinstance(after, nn.Linear) or not isinstance(together, int):
            continue
        if {layer.out_features for layer in before} == {after.in_features}:
            first, *beside = (f"{name}.{key}" for key in producers)
            found.append(Units(first, None, None, f"{name}.{consumer}", after.in_features, tuple(beside), together))
    return found


def _all_units(network: nn.Module) -> list[Units]:
    return [*removable_units(network), *attention_heads(network), *hidden_neurons(network)]


def sliced(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], units: list[Units]) -> dict[str, Tensor]:
    """The weights of the smaller network.

    Args:
        weights: of the whole one, by name.
        kept: by producer, bool [count]: which channels stay.  A layer may be cut on both sides.
        units: of the network.
    """
    smaller = dict(weights)
    for one in units:
        if one.producer in kept:
            index = kept[one.producer].nonzero()[:, 0]
            for name, dimension in one.tensors().items():
                if name in smaller:
                    smaller[name] = smaller[name].index_select(dimension, index.to(smaller[name].device))
    return smaller


def without_units(network: nn.Module, kept: Mapping[str, Tensor]) -> nn.Module:
    """Takes units out of a network, in place: its layers get smaller tensors.

    Args:
        network: whole.
        kept: by producer, bool [count]; at least one unit of each must stay.
    """
    weights = sliced(network.state_dict(), kept, _all_units(network))
    fit_units(network, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    network.load_state_dict(weights)
    return network


def fit_units(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives removable layers, in place, the sizes of weights of these shapes, by name; values are to follow."""
    for units in _all_units(network):
        count = shapes.get(f"{units.producer}.weight", (units.count,))[0]
        if count >= units.count:
            continue
        for name, dimension in units.tensors().items():
            holder, _, key = name.rpartition(".")
            module = network.get_submodule(holder)
            held = getattr(module, key)
            if held is None:
                continue
            smaller = held.detach().narrow(dimension, 0, count).clone()
            if isinstance(held, nn.Parameter):
                setattr(module, key, nn.Parameter(smaller, requires_grad=held.requires_grad))
            else:
                module._buffers[key] = smaller
        for producer in (units.producer, *units.beside):
            _resize(network.get_submodule(producer), "out", count)
        _resize(network.get_submodule(units.consumer), "in", count)
        if units.norm is not None:
            norm = network.get_submodule(units.norm)
            assert isinstance(norm, _NORMS)
            norm.num_features = count


def _resize(layer: nn.Module, side: str, count: int) -> None:
    setattr(layer, f"{side}_features" if isinstance(layer, nn.Linear) else f"{side}_channels", count)
