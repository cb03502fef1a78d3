"""Permutations leave a network's function as it is, and matching finds those that were made."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lowland.trainers.landscape import PermutationSpec, Place, match_weights, permutation_spec, permuted
from lowland.trainers.models.resnets import ResNet, WideResNet

TOKENS = torch.arange(12).view(2, 6)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def perceptron() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 4))
    return network, lambda module: module(IMAGES)


def resnet(bottleneck: bool) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    return ResNet((2, 1, 0, 0), bottleneck=bottleneck, channels=3, classes=4), lambda module: module(IMAGES)


def wide_resnet() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    return WideResNet(2, 1, channels=3, classes=4), lambda module: module(IMAGES)


def transformer(model_type: str, **fields: object) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 50, "pad_token_id": None}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(model_type, **sizes, **heads, **fields)
    return AutoModelForCausalLM.from_config(config), lambda module: module(input_ids=TOKENS).logits


NETWORKS = {
    "perceptron": perceptron,
    "resnet": lambda: resnet(False),
    "bottleneck": lambda: resnet(True),
    "wide resnet": wide_resnet,
    "llama": lambda: transformer("llama"),
    "tied llama": lambda: transformer("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "qwen3": lambda: transformer("qwen3", head_dim=10),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    torch.manual_seed(0)
    made, forward = NETWORKS[request.param]()
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point() and "inv_freq" not in name:
                tensor.uniform_(0.5, 1.5)
    return made.eval(), forward


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    persistent = network.state_dict().keys()
    named = [*network.named_parameters(), *(pair for pair in network.named_buffers() if pair[0] in persistent)]
    return {name: tensor.detach().clone() for name, tensor in named}


@torch.no_grad()
def test_the_function_stays_and_the_permutations_are_found(network):
    module, forward = network
    spec = permutation_spec(nn.ModuleDict({"inside": module}))
    assert spec is not None
    weights = {f"inside.{name}": tensor for name, tensor in weights_of(module).items()}
    moved = {name for places in spec.places.values() for name in (place.weight for place in places)}
    fixed = {name for name in weights if name not in moved}
    assert not {name for name in fixed if weights[name].dim() > 1}, "every matrix has an axis that moves"
    other = permuted(weights, spec, spec.random(weights, seed=1))
    assert not any(torch.equal(other[name], weights[name]) for name in moved)
    before = forward(module)
    module.load_state_dict({name.removeprefix("inside."): t for name, t in other.items()}, strict=False)
    assert torch.allclose(forward(module), before, atol=1e-4 * float(before.abs().max()))
    back = permuted(other, spec, match_weights(spec, weights, other))
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor), name


def test_what_is_matched_already_stays():
    torch.manual_seed(0)
    module, _ = perceptron()
    weights, spec = weights_of(module), permutation_spec(module)
    assert spec is not None
    orders = match_weights(spec, weights, {name: t + 1e-3 * torch.randn_like(t) for name, t in weights.items()})
    assert [order.tolist() for order in orders.values()] == [list(range(20)), list(range(15))]


def test_matching_by_hand():
    spec = PermutationSpec()
    spec.add("units", 0, "in")
    spec.add("units", 1, "out", block=2)
    target = {"in": torch.tensor([[1.0], [2.0], [3.0]]), "out": torch.zeros(1, 6)}
    weights = {"in": torch.tensor([[3.0], [1.0], [2.0]]), "out": torch.tensor([[5.0, 6, 1, 2, 3, 4]])}
    orders = match_weights(spec, target, weights)
    assert orders["units"].tolist() == [1, 2, 0]
    assert permuted(weights, spec, orders)["out"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert spec.places["units"][1] == Place("out", 1, 2)


def test_places_that_do_not_agree_are_told():
    spec = PermutationSpec()
    spec.add("units", 0, "a", "b")
    with pytest.raises(ValueError, match="units do not agree"):
        spec.sizes({"a": torch.zeros(3), "b": torch.zeros(4)})


def test_networks_that_are_not_known_have_no_spec():
    assert permutation_spec(nn.Linear(3, 3)) is None
    assert permutation_spec(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))) is None
