"""Several optimizers as one, the rules that share parameters out among them, and optimizers from outside."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from support.docs import ROOT, blocks
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lowland.optim import EMA, SAM, TAM, AdaTAMW, Fragment, Layout, LayoutOptimizer, Mixed, Parameter, Segment, Whole
from lowland.trainers.engines import state
from lowland.trainers.errors import RecipeError
from lowland.trainers.estimate import optimizer_memory
from lowland.trainers.kinds import parameter_kinds
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import Amount, OptimizerConfig, StepSize

STEP = StepSize(tokens=1000, samples=10)


class Outside(torch.optim.Optimizer):
    """An optimizer of one's own: normalised by the norm of each tensor."""

    def __init__(self, params: Any, lr: float, power: float = 1.0) -> None:
        if power <= 0:
            raise ValueError("power must be positive")
        super().__init__(params, {"lr": lr, "power": power})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves each tensor by lr."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad / p.grad.norm() ** group["power"])


class ByLayout(LayoutOptimizer):
    """One that knows its layout."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})


def section(**fields: Any) -> OptimizerConfig:
    config: OptimizerConfig = TypeAdapter(OptimizerConfig).validate_python(fields)
    return config


def mixed(*rules: dict[str, Any], **fields: Any) -> OptimizerConfig:
    return section(**{"name": "mixed", "lr": 1e-2, "rules": list(rules), **fields})


def everything(name: str, **fields: Any) -> dict[str, Any]:
    return {"match": "*", "optimizer": {"name": name, **fields}}


MUON = {"kinds": ["matrices"], "optimizer": {"name": "muon", "lr": 0.02}}


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for number in steps:
        for index, p in enumerate(params):
            p.grad = torch.sin(torch.arange(p.numel()).float() + index + number).view_as(p)
        optimizer.step()


def equal(ones: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


def members(params: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Three that see elements, sums, and whole tensors."""
    return [
        torch.optim.AdamW(params[:1], lr=1e-2),
        TAM(params[1:3], lr=1e-2),
        Whole(params[3:], lambda groups: torch.optim.Adafactor(groups, lr=1e-2)),
    ]


SHAPES = ((3, 4), (5,), (2, 2), (4, 3))


def test_each_member_steps_its_own_as_if_alone() -> None:
    together, alone = parameters(*SHAPES), parameters(*SHAPES)
    run(Mixed(members(together)), together, range(6))
    for member in members(alone):
        run(member, alone, range(6))
    assert equal(together, alone)


def test_groups_are_the_members_own_and_a_rate_set_in_them_is_theirs() -> None:
    p, q = parameters((2,), (2,))
    member = torch.optim.SGD([q], lr=1.0)
    optimizer = Mixed([AdaTAMW([p], lr=1e-3), member])
    assert optimizer.param_groups[1] is member.param_groups[0]
    state.set_lr(optimizer, 0.5)
    before = q.detach().clone()
    q.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(q, before - 0.5)


def test_sums_go_over_the_members_own_parameters() -> None:
    """The cosine of TAM over its part alone; a parameter of another member would change it."""
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    tam = TAM([p], lr=0.1)
    optimizer = Mixed([TAM([q], lr=0.1), tam])
    for gradient in ([1.0, 0.0], [-1.0, 0.0]):
        p.grad, q.grad = torch.tensor(gradient), torch.tensor([100.0, 0.0])
        optimizer.step()
    assert tam.cosines["global"] == pytest.approx(-0.1)
    assert optimizer.shared_state() == {"0/global": pytest.approx(0.1), "1/global": pytest.approx(-0.1)}
    assert state.metrics(optimizer) == {"0/cosine": pytest.approx(0.1), "1/cosine": pytest.approx(-0.1)}


def test_groups_may_be_shown_one_at_a_time_in_fragments() -> None:
    """As ZeRO does: one tensor per group, with padding, and each group in a call of its own."""
    whole = parameters(*SHAPES)
    expected = Mixed(members(whole))
    source = parameters(*SHAPES)
    flats = [
        nn.Parameter(torch.cat([p.detach().reshape(-1) for p in part] + [torch.full((2,), torch.nan)]))
        for part in (source[:1], source[1:3], source[3:])
    ]
    optimizer = Mixed(members(source))
    layout = flat_layout(source, flats)
    for group, flat in zip(optimizer.param_groups, flats, strict=True):
        group["params"] = [flat]
    optimizer.attach(layout)
    for number in range(5):
        run(expected, whole, range(number, number + 1))
        for flat, part in zip(flats, (whole[:1], whole[1:3], whole[3:]), strict=True):
            flat.grad = torch.cat([p.grad.reshape(-1) for p in part if p.grad is not None] + [torch.zeros(2)])
        optimizer.prepare(layout.gradients())
        groups = optimizer.param_groups
        for group in groups:
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = groups
        optimizer.finish()
    found = torch.cat([flat.detach()[:-2] for flat in flats])
    assert torch.allclose(found, torch.cat([p.detach().reshape(-1) for p in whole]), atol=1e-6)


def flat_layout(source: list[nn.Parameter], flats: list[nn.Parameter]) -> Layout:
    described = tuple(
        Parameter(str(i), tuple(p.shape), group) for (i, p), group in zip(enumerate(source), (0, 1, 1, 2), strict=True)
    )
    segments = (
        (Segment(0, 0, 12, 0),),
        (Segment(1, 0, 5, 0), Segment(2, 5, 4, 0)),
        (Segment(3, 0, 12, 0),),
    )
    held = ((0,), (1, 2), (3,))
    fragments = [Fragment(flats[i], segments[i], i, held[i]) for i in range(3)]
    return Layout(described, tuple(fragments), by_group=True)


def test_a_resume_goes_on_to_the_bit() -> None:
    first, second = parameters(*SHAPES), parameters(*SHAPES)
    one = EMA(Mixed(members(first)), 3)
    run(one, first, range(4))
    two = EMA(Mixed(members(second)), 3)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for p, q in zip(first, second, strict=True):
        q.data.copy_(p.data)
    state.set_lr(one, 0.5)
    state.set_lr(two, 0.5)
    run(one, first, range(4, 8))
    run(two, second, range(4, 8))
    assert equal(first, second)


def test_states_are_made_before_a_step_and_change_no_weight() -> None:
    params = parameters(*SHAPES)
    kept = [p.detach().clone() for p in params]
    optimizer = Mixed(members(params))
    state.create_state(optimizer, optimizer.layout)
    pieces = {piece.name: {*piece.tensors, *piece.scalars} for piece in state.pieces_of(optimizer, optimizer.layout)}
    assert list(pieces.values())[:3] == [
        {"weight", "exp_avg", "exp_avg_sq", "step"}, {"weight", "exp_avg"}, {"weight", "exp_avg"}
    ]  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))


class Elsewhere(LayoutOptimizer):
    """Evaluated at zero."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    def evaluation_weights(self, fragment: Fragment) -> Tensor:
        return torch.zeros_like(fragment.tensor)


def test_a_member_says_where_its_own_parameters_are_evaluated() -> None:
    p, q = parameters((2,), (3,))
    plain = torch.optim.SGD([p], lr=1.0)
    assert Mixed([plain]).evaluation_weights is None
    optimizer = Mixed([plain, Elsewhere([q])])
    find = optimizer.evaluation_weights
    assert find is not None
    assert torch.equal(find(optimizer.layout.fragments[0]), p.detach())
    assert torch.equal(find(optimizer.layout.fragments[1]), torch.zeros(3))


def test_what_takes_several_gradients_belongs_around_all() -> None:
    p, q = parameters((2,), (2,))
    with pytest.raises(TypeError, match="SAM cannot be a member: put it around the mixed optimizer"):
        Mixed([torch.optim.SGD([p], lr=1.0), SAM(torch.optim.SGD([q], lr=1.0))])
    with pytest.raises(ValueError, match="more than one parameter group"):
        Mixed([torch.optim.SGD([p], lr=1.0), torch.optim.SGD([p], lr=1.0)])


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
    run(optimizer, [p for group in optimizer.param_groups for p in group["params"]], range(2))


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


def custom(**fields: Any) -> OptimizerConfig:
    return section(**{"name": "custom", "lr": 0.1, "weight_decay": 0, "target": f"{__name__}:Outside", **fields})


def built(config: OptimizerConfig, *, in_pieces: bool = False) -> torch.optim.Optimizer:
    return build_optimizer(config, parameter_groups(nn.Linear(3, 2), config), in_pieces=in_pieces)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file under the name by which recipes here ask for it, as a module on the workers' path would be."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[Outside.__module__])


def test_an_optimizer_from_outside_is_built_whole_or_as_it_is() -> None:
    whole = built(custom(arguments={"power": 2.0}))
    assert isinstance(whole, Whole)
    assert all(group["power"] == 2.0 and group["lr"] == 0.1 for group in whole.param_groups)
    assert type(built(custom(sees="elements"))) is Outside
    assert type(built(custom(target=f"{__name__}:ByLayout"))) is ByLayout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "no.such_module:Thing"}, r"no\.such_module:Thing: .*importable on every worker"),
        ({"target": "math:Thing"}, r"optimizer\.target = math:Thing"),
        ({"target": "math:sin"}, "must be a subclass of torch.optim.Optimizer"),
        ({"arguments": {"power": -1.0}}, r"optimizer\.arguments: .*:Outside refuses them: power must be positive"),
        ({"arguments": {"powers": 1.0}}, r"optimizer\.arguments: .*unexpected keyword argument 'powers'"),
        ({"weight_decay": 0.1}, r"optimizer\.weight_decay = 0\.1: .*has no weight decay"),
    ],
)
def test_optimizers_from_outside_that_cannot_be_built(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        built(custom(**fields))


def test_only_what_is_exact_steps_pieces_of_tensors(tmp_path: Path) -> None:
    """At ZeRO 1 to 3: by its layout, whole, by the table, or with a certificate of this very class."""
    certificate = tmp_path / "outside.json"
    target = f"{__name__}:Outside"

    def certified(**values: Any) -> OptimizerConfig:
        certificate.write_text(json.dumps({"target": target, "sees": "elements", **values}))
        return custom(sees="elements", certificate=str(certificate))

    for config in (custom(), custom(target=f"{__name__}:ByLayout"), section(name="adamw", lr=1), certified()):
        built(config, in_pieces=True)
    with pytest.raises(RecipeError, match=r"optimizer\.sees = elements: nothing says .*set optimizer\.sees: tensors"):
        built(custom(sees="elements"), in_pieces=True)
    with pytest.raises(RecipeError, match="its sees is tensors, not elements"):
        built(certified(sees="tensors"), in_pieces=True)
    with pytest.raises(RecipeError, match="its target is other:Class, not"):
        built(certified(target="other:Class"), in_pieces=True)
    with pytest.raises(RecipeError, match="cannot be read"):
        built(custom(sees="elements", certificate=str(tmp_path / "none.json")), in_pieces=True)
    rule = {"match": "*", "optimizer": {"name": "custom", "target": target, "sees": "elements", "weight_decay": 0}}
    with pytest.raises(RecipeError, match=r"optimizer\.sees = elements"):
        built(mixed(rule), in_pieces=True)


def test_a_step_of_several_passes_is_averaged_once_and_at_its_end() -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = EMA(SAM(torch.optim.SGD([p], lr=0.1), rho=0.5), 1e6)
    seen = []
    for number in range(3):

        def closure(number: int = number) -> float:
            optimizer.zero_grad()
            loss = (p * p).sum() * (1 + math.sin(number))
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
        seen.append(p.detach().clone())
    assert optimizer.shared_state()["steps"] == 3
    average = optimizer.evaluation_weights(optimizer.layout.fragments[0])
    assert torch.allclose(average, torch.stack(seen).mean(0), atol=1e-5)


def test_a_group_that_is_no_members_is_refused() -> None:
    p, q = parameters((2,), (2,))
    optimizer = Mixed([torch.optim.SGD([p], lr=1.0)])
    with pytest.raises(ValueError, match="has the groups of its members"):
        optimizer.add_param_group({"params": [q]})


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
