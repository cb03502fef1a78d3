"""The rules by which a recipe shares parameters out among optimizers, and what is put around them."""

from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from support.docs import ROOT, blocks
from support.rules import MUON, everything, mixed, section
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lowland.optim import EMA, Mixed
from lowland.trainers.errors import RecipeError
from lowland.trainers.estimate import optimizer_memory
from lowland.trainers.kinds import parameter_kinds
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import Amount, StepSize

STEP = StepSize(tokens=1000, samples=10)


def llama(tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            attention_bias=True,
        )
    )


def test_kinds_of_a_language_model() -> None:
    kinds = parameter_kinds(llama(tied=False))
    assert kinds["model.embed_tokens.weight"] == "embeddings"
    assert kinds["lm_head.weight"] == "head"
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == "matrices"
    assert kinds["model.layers.0.self_attn.q_proj.bias"] == "biases"
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"norms"}
    tied = parameter_kinds(llama(tied=True))
    assert tied["model.embed_tokens.weight"] == "embeddings"
    assert "lm_head.weight" not in tied


def test_kinds_come_from_modules_and_not_from_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.Linear(3, 2)
            self.words = nn.Embedding(5, 3)
            self.bias = nn.BatchNorm1d(2)
            self.conv = nn.Conv1d(3, 2, 4)
            self.score = nn.Linear(2, 4)
            self.scale = nn.Parameter(torch.ones(()))

    assert parameter_kinds(Named()) == {
        "scale": "biases", "norm.weight": "matrices", "norm.bias": "biases", "words.weight": "embeddings",
        "bias.weight": "norms", "bias.bias": "norms", "conv.weight": "tensors", "conv.bias": "biases",
        "score.weight": "head", "score.bias": "biases",
    }  # fmt: skip


def test_the_first_rule_that_fits_takes_a_parameter_and_groups_are_split_by_decay() -> None:
    config = mixed(
        {"match": "*.q_proj.*", "optimizer": {"name": "sgd", "lr": 0.5}},
        {"regex": r"k_proj\.(weight)$", "kinds": ["matrices"], "optimizer": {"name": "adamw", "weight_decay": 0}},
        MUON,
        everything("adamw"),
        weight_decay=0.03,
    )
    groups = parameter_groups(llama(tied=True), config)
    by_rule = [(group.rule, group.weight_decay, len(group.parameters)) for group in groups]
    assert by_rule == [(0, 0.03, 1), (0, 0.0, 1), (1, 0.0, 1), (2, 0.03, 5), (3, 0.03, 1), (3, 0.0, 6)]
    optimizer = build_optimizer(config, groups)
    assert isinstance(optimizer, Mixed)
    assert [type(part).__name__ for part in optimizer.parts] == ["SGD", "AdamW", "Whole", "AdamW"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5, 0.01, 0.02, 0.01, 0.01]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([MUON], r"no rule takes model\.embed_tokens\.weight \(embeddings\), .*q_proj\.bias \(biases\).* and 4 more; "
                 r"the nearest to model\.embed_tokens\.weight is rules\.0 \(kinds: matrices\); a last rule"),
        ([MUON, {"match": "model.embed_token.*", "optimizer": {"name": "sgd"}}],
         r"is rules\.1 \(match: model\.embed_token\.\*\)"),
        ([everything("adamw"), MUON],
         r"rules\.1 \(kinds: matrices\) takes no parameter: .*q_proj\.weight and others that fit are taken by "
         r"rules\.0 before; move the rule up"),
        ([{"match": "matrices", "optimizer": {"name": "sgd"}}, everything("adamw")],
         r"rules\.0 \(match: matrices\) .*match is a pattern of names; .* write kinds: \[matrices\]"),
        ([{"match": "lm_haed.weight", "optimizer": {"name": "sgd"}}, everything("adamw")],
         r"rules\.0 \(match: lm_haed\.weight\) takes no parameter of this model; nearest: lm_head\.weight \(head\)"),
        ([everything("muon")], r"optimizer\.name = muon: it is for matrices alone, and 7 of its parameters are none"),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit_the_model(rules: list[dict[str, Any]], message: str) -> None:
    module, config = llama(tied=False), mixed(*rules)
    with pytest.raises(RecipeError, match=message):
        build_optimizer(config, parameter_groups(module, config))


def test_muon_alone_is_refused_with_a_recipe_that_works() -> None:
    module, config = llama(tied=True), section(name="muon", lr=1e-2)
    with pytest.raises(RecipeError, match="matrices alone") as caught:
        build_optimizer(config, parameter_groups(module, config))
    way_out = "{name: mixed, lr: ..., rules: [{kinds: [matrices], optimizer: {name: muon}}, {match: '*'"
    assert way_out in str(caught.value)
    works = mixed({"kinds": ["matrices"], "optimizer": {"name": "muon"}}, everything("adamw"))
    optimizer = build_optimizer(works, parameter_groups(module, works))
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"optimizer": {"name": "sgd"}}, "give match, regex or kinds"),
        ({"regex": "(", "optimizer": {"name": "sgd"}}, "is no regular expression"),
        ({"match": "*", "optimizer": {"name": "sgd", "ema": {"half_life": "1 steps"}}}, r"give it as optimizer\.ema"),
        ({"match": "*", "optimizer": {"name": "mixed", "rules": []}}, "does not match any of the expected tags"),
    ],
)
def test_rules_that_are_wrong_in_themselves(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        mixed(rule)


def test_a_recipe_that_is_written_out_is_the_same() -> None:
    config = mixed(MUON, everything("adamw"), ema={"half_life": "20_000 samples"}, diloco={"every": 5})
    assert section(**config.model_dump(mode="json")) == config


def test_half_lives_become_steps_by_the_size_of_a_step() -> None:
    for amount, steps in (("1M tokens", 1000), ("20_000 samples", 2000), ("30 steps", 30)):
        config = section(name="sgd", lr=0.1, ema={"half_life": amount})
        optimizer = build_optimizer(config, parameter_groups(llama(tied=True), config), step=STEP)
        assert isinstance(optimizer, EMA)
        assert optimizer.decay == pytest.approx(2 ** (-1 / steps))
    assert Amount(5, "samples").steps(STEP) == 0.5


def test_the_estimate_counts_what_each_rule_and_what_is_around_keeps() -> None:
    model = llama(tied=True)
    matrices = sum(p.numel() for name, p in model.named_parameters() if parameter_kinds(model)[name] == "matrices")
    total = sum(p.numel() for p in model.parameters())
    config = mixed(MUON, everything("adamw"), ema={"half_life": "20 samples"}, diloco={"every": 1, "groups": 2})
    found = optimizer_memory(config, model).state
    assert found == pytest.approx((4 * matrices + 8 * (total - matrices)) / total + 4 + 8)
    on_cpu = mixed(everything("sgd"), ema={"half_life": "20 samples", "cpu": True})
    assert optimizer_memory(on_cpu, model).state == 4
    halved = section(name="sgd", lr=1, ema={"half_life": "20 samples", "dtype": "bfloat16"})
    assert optimizer_memory(halved).state == 6


def test_what_the_page_shows_is_right() -> None:
    page = ROOT / "docs" / "mixing.md"
    shown = [yaml.safe_load(text)["optimizer"] for text in blocks(page, "yaml")]
    assert [config["name"] for config in shown] == ["mixed", "mixed", "adamw", "adamw", "custom"]
    module = llama(tied=True)
    for config in (section(**fields) for fields in shown[:4]):
        build_optimizer(config, parameter_groups(module, config), step=STEP)
    section(**shown[4])
