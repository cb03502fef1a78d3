"""Heads and neurons whose removal changes the rest least are taken out, and the smaller network computes the same."""

import copy
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import image_config, train_images
from support.vision import WITHOUT_NORM
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from lowland.optim import Layout
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Problem
from lowland.trainers.methods.optin import OPTIN
from lowland.trainers.methods.trajectory import Trajectory, importance
from lowland.trainers.methods.transformer_units import Candidates, kept_within
from lowland.trainers.models import ImageClassifierLoss, load_classifier
from lowland.trainers.models.image_classifier import ImageInput
from lowland.trainers.models.units import attention_heads, fit_units, hidden_neurons, without_units
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

WORLD = World(0, 1, 0, torch.device("cpu"), None)
SMALL = {"model": WITHOUT_NORM["model"]}


class Block(nn.Module):
    """Tokens of two numbers, to whose first the second is added by one neuron; another neuron adds nothing."""

    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(2, 2, bias=False)
        self.fc2.weight = nn.Parameter(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))

    def forward(self, tokens):
        return tokens + self.fc2(tokens)


def test_effects_by_hand():
    # The tokens (1, 0) and (0, 1) become (1, 0) and (1, 1), of cosine 1 / sqrt 2; without the second neuron it is 0.
    blocks = [Block(), nn.Identity()]
    trajectory = Trajectory(lambda tokens: blocks[1](blocks[0](tokens))[:, 1], blocks, torch.eye(2)[None])
    effects = trajectory.without(0, blocks[0].fc2, torch.tensor([[False, True], [True, False]]))
    # Twice in the matrix, and behind both blocks; predictions are (1/2, 1/2), and softmax(0, 1) without it.
    divergence = math.log(1 + math.e) - 0.5 - math.log(2)
    assert effects[0].tolist() == [0.0, 0.0]
    assert effects[1].tolist() == pytest.approx([4 * 0.5, divergence])
    assert importance(effects, 10.0).tolist() == pytest.approx([0.0, 2.0 + 0.2])


def vit():
    torch.manual_seed(0)
    config = ViTConfig(**{**WITHOUT_NORM["model"]["config"], "image_size": 8, "num_channels": 1, "num_labels": 3})
    network = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)).eval()


CASES = {
    "vit": (
        vit,
        lambda network: network.vit.layers,
        torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    ),
    "llama": (llama, lambda network: network.model.layers, torch.arange(12).view(2, 6) % 11),
}


@pytest.mark.parametrize("name", CASES)
def test_effects_are_those_of_networks_without_the_unit(name):
    make, blocks_of, inputs = CASES[name]
    network = make()
    units = [*attention_heads(network), *hidden_neurons(network)]
    assert len(units) == 4

    def outputs(of):
        made = []
        hooks = [block.register_forward_hook(lambda m, i, o: made.append(o)) for block in blocks_of(of)]
        with torch.no_grad():
            logits = of(inputs).logits
        for hook in hooks:
            hook.remove()
        tokens = [F.normalize(each.flatten(0, 1), dim=-1) for each in made]
        return [each @ each.T for each in tokens], F.log_softmax(logits, -1)

    whole, predictions = outputs(network)
    trajectory = Trajectory(lambda x: network(x).logits, blocks_of(network), inputs)
    for index, one in enumerate(units):
        of_unit = torch.arange(one.count) // one.width
        numbers = torch.tensor([0, int(of_unit.max())])
        kept = of_unit != numbers[:, None]
        found = trajectory.without(index % 2, network.get_submodule(one.consumer), kept)
        for row, flags in zip(found, kept, strict=True):
            others, changed = outputs(without_units(copy.deepcopy(network), {one.producer: flags}))
            moved = sum(float((a - b).square().sum()) for a, b in zip(whole, others, strict=True))
            divergence = float(F.kl_div(changed, predictions, log_target=True, reduction="sum"))
            assert moved > 1e-6
            assert row.tolist() == pytest.approx([moved, divergence], rel=1e-3, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_no_other_choice_within_the_budget_is_more_important(data):
    blocks, costs = 2, (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    counts = 2 * blocks, 3 * blocks
    values = [data.draw(st.lists(st.integers(0, 20), min_size=n, max_size=n)) for n in counts]
    of_block = [torch.arange(blocks).repeat_interleave(n // blocks) for n in counts]
    kinds = [
        Candidates(torch.tensor(v, dtype=torch.float64), b, c) for v, b, c in zip(values, of_block, costs, strict=True)
    ]
    budget = data.draw(st.integers(blocks * sum(costs), sum(n * c for n, c in zip(counts, costs, strict=True))))
    kept = kept_within(*kinds, budget)

    def total(chosen):
        return sum(sum(itertools.compress(v, flags)) for v, flags in zip(values, chosen, strict=True))

    def possible(chosen):
        cost = sum(c * sum(flags) for c, flags in zip(costs, chosen, strict=True))
        in_each = all(
            any(flags[b * len(flags) // blocks : (b + 1) * len(flags) // blocks])
            for flags in chosen
            for b in range(blocks)
        )
        return cost <= budget and in_each

    choices = itertools.product(*(itertools.product((False, True), repeat=n) for n in counts))
    assert possible([flags.tolist() for flags in kept])
    assert total([flags.tolist() for flags in kept]) == max(total(chosen) for chosen in choices if possible(chosen))


@pytest.mark.parametrize("at", ["100%", "3 steps"])
def test_the_export_is_smaller_and_says_what_the_trained_network_said(at, digits, tmp_path):
    method = {"name": "optin", "flops": 0.5, "at": at, "images": 12}
    recipe = image_config(digits, [method], **SMALL, checkpoints={"every": None})
    outcome = train_images(recipe, tmp_path, export=True)
    said = {name.rpartition("/")[2]: values for name, values in outcome.values.items() if "optin" in name}
    assert list(said["flops"]) == ([6] if at == "100%" else [3, 4, 5, 6])
    assert 0.4 < said["smaller_flops"][6] / said["flops"][6] <= 0.5
    network, _ = load_classifier(tmp_path / "model")
    again = image_config(digits, model={"path": str(tmp_path / "model")})
    task = build_task(again, WORLD)
    held_out = task.data.held_out
    with torch.no_grad():
        logits = task.build_module().eval()(held_out.pixels(np.arange(len(held_out))))
    loss = F.cross_entropy(logits, torch.from_numpy(held_out.labels))
    assert float(loss) == pytest.approx(outcome.result.metrics["eval/loss"], rel=1e-4)
    # As much of the weights is gone as of the multiplications, but for what is no layer.
    whole = build_task(image_config(digits, **SMALL), WORLD).build_module()
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network, whole)]
    assert sizes[0] < 0.65 * sizes[1]


def pruned(flops):
    """A network of which one method has taken out what is above a share, the method, and its engine."""
    seen = ImageInput(8, 1, (0.5,), (0.25,), ("a", "b", "c"))
    module = ImageClassifierLoss(vit(), seen)
    pixels = (torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
    # Not in the order of their rows, as with several ranks.
    batches = [(SimpleNamespace(images=pixels[at], rows=torch.tensor(at)), 2) for at in ([3, 1, 0], [5, 4, 0])]
    method = OPTIN(lambda count: batches, flops=flops, at=2, count=4, balance=10.0)
    method.build(module.network, Problem(3, (1, 1, 1), 0, (1, 8, 8), 7))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    layout = Layout.whole([list(module.named_parameters())])
    engine = TorchEngine(module, optimizer, layout, world=WORLD, max_grad_norm=None, autocast=False)
    method.attach(engine, WORLD)
    for step in range(2):
        step_of(method, engine, step)
    return module, method, engine


def step_of(method, engine, step):
    method.begin_step(step)
    images = torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8)
    engine.accumulate({"images": images, "labels": torch.arange(3)}, scale=1.0, last=True)
    engine.step(1.0)
    method.after_step(engine, WORLD, None)
    method.after_all(engine)


def test_what_is_removed_stays_so_and_a_resume_knows_it():
    module, method, engine = pruned(0.6)
    step_of(method, engine, 2)
    said = method.metrics()
    assert 0.5 < said["smaller_flops"] / said["flops"] <= 0.6
    assert said["removed_neurons"] > 0.2
    whole = {name: value.clone() for name, value in module.network.state_dict().items()}
    smaller = method.exported(whole)
    zeros = sum(int((p == 0).sum()) for p in module.network.parameters())
    assert zeros == sum(whole[name].numel() - tensor.numel() for name, tensor in smaller.items()) > 500
    network = copy.deepcopy(module.network).eval()
    fit_units(network, {name: tuple(tensor.shape) for name, tensor in smaller.items()})
    network.load_state_dict(smaller)
    images = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(images).logits, module.network.eval()(images).logits)
    _, again, _ = pruned(1.0)
    assert again.metrics()["removed_neurons"] == 0.0
    again.load_state(method.state())
    assert again.metrics() == said


def test_all_of_the_network_changes_no_bit():
    module, method, engine = pruned(1.0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    method.after_all(engine)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ({"flops": 0.05}, SMALL, r"optin.flops = 0.05: with one head and one neuron in each block 0\.\d+ of the"),
        ({"flops": 0.5}, {}, r"optin takes out heads .* the model is WideResNet"),
    ],
)
def test_what_optin_cannot_do_is_refused(method, changes, message, digits):
    task = build_task(image_config(digits, [{"name": "optin", **method}], **changes), WORLD)
    with pytest.raises(RecipeError, match=message):
        task.build_module()
