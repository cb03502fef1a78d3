"""Search spaces: read, held against a recipe, and turned into trials of it."""

import json
import random
import re
from textwrap import dedent

import jsonschema
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from recipe_files import BASE, write_recipe
from support.docs import ROOT, blocks

from lowland.optim.methods import METHODS
from lowland.optim.suggest import suggest_lr
from lowland.platform.recipe import load_recipe
from lowland.platform.recipe.document import parse
from lowland.platform.recipe.dump import dump
from lowland.platform.search import reference
from lowland.platform.search.space import BoundSpace, open_space
from lowland.platform.search.space_files import load_space
from lowland.search_spaces import Space, shipped
from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import Amount

PAGE = ROOT / "docs" / "search-spaces.md"
SHIPPED = pytest.mark.parametrize("name", shipped())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return load_recipe(write_recipe(tmp_path_factory.mktemp("recipe")))


def space(text: str) -> Space:
    """The space with these parameters, as its file has them."""
    return Space.model_validate({"description": "", "parameters": parse(dedent(text), "space").data})


def mistakes(folder, recipe, text: str) -> list[str]:
    """The lines of the error that a file with this text makes."""
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        open_space([str(path)], recipe)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def values_of(distribution):
    """All values of a distribution, its ends included."""
    if isinstance(distribution, CategoricalDistribution):
        return st.sampled_from(distribution.choices)
    if isinstance(distribution, FloatDistribution):
        return st.floats(distribution.low, distribution.high)
    return st.sampled_from(range(distribution.low, distribution.high + 1, distribution.step))


@SHIPPED
def test_any_trial_of_a_shipped_space_is_a_right_recipe(recipe, name):
    bound = open_space([name], recipe)

    @settings(max_examples=8, deadline=None)
    @given(st.fixed_dictionaries({name: values_of(d) for name, d in bound.distributions().items()}))
    def check(parameters):
        reasons = bound.why_not(parameters)
        assert all(reason.endswith("does not hold") for reason in reasons)
        assert reasons == [] or bound.space.constraints

    check()


@SHIPPED
def test_a_space_that_is_written_out_is_read_back(name):
    assert Space.model_validate(parse(dump(load_space(name)), "space").data) == load_space(name)


NUMBERS = st.floats(1e-6, 1e6)
PRIORS = st.none() | st.fixed_dictionaries({"centre": st.just(0.5), "confidence": st.floats(0.01, 0.99)})
RANGE = {"type": st.just("float"), "low": st.floats(1e-9, 0.5), "high": st.floats(0.6, 1e9), "log": st.booleans()}
OPTIONAL = {"prior": PRIORS, "unit": st.sampled_from(["%", "steps"])}
RANGES = st.fixed_dictionaries(RANGE, optional=OPTIONAL)
DRIVING = st.fixed_dictionaries(RANGE, optional={**OPTIONAL, "drives": st.just(["b.c"])})
CHOICES = st.lists(NUMBERS | st.booleans() | st.text(), min_size=1, unique_by=repr).map(
    lambda values: {"type": "choice", "values": values}
)
PLAIN = NUMBERS | st.none() | st.text() | st.lists(st.integers())
INNER = st.dictionaries(st.sampled_from(["x.y", "1 - x.z", "log2 x.n"]), RANGES | CHOICES | PLAIN, max_size=2)
BRANCHES = st.dictionaries(st.text("abc", min_size=1), INNER, min_size=1, max_size=3).map(
    lambda alternatives: {"type": "branch", "alternatives": alternatives}
)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({"a.b": DRIVING | CHOICES | PLAIN, "kind": BRANCHES}))
def test_any_space_that_is_written_out_is_read_back(parameters):
    made = Space.model_validate({"description": "", "parameters": parameters})
    assert Space.model_validate(parse(dump(made), "space").data) == made


def test_every_optimizer_has_a_space_at_its_own_scale():
    assert set(METHODS) <= set(shipped())
    for method in METHODS:
        found = load_space(method).parameters["optimizer.lr"]
        known = "sgd" if method in ("sgd", "tam", "schedule_free_sgd") else "adamw"
        low, high = {"sgd": (1e-3, 1.0), "adamw": (1e-5, 1e-2)}[known]
        assert found.low == pytest.approx(suggest_lr(method, known, low).low, rel=0.01), method
        assert found.high == pytest.approx(suggest_lr(method, known, high).high, rel=0.01), method


@SHIPPED
def test_every_range_says_where_it_comes_from(name):
    lines = shipped()[name].read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.search(r"type: (float|integer)", line):
            above = (other.strip() for other in reversed(lines[:number]) if not re.search(r": \{|:$|: null", other))
            assert next(above).startswith("# "), line


def test_a_trial_changes_the_recipe(recipe):
    bound = BoundSpace(
        space(
            """
        optimizer.lr: {type: float, low: 1e-4, high: 1e-2, log: true}
        1 - optimizer.betas.1: {type: float, low: 1e-3, high: 0.1, log: true}
        log2 batch.accumulation: {type: integer, low: 0, high: 3}
        schedule.warmup: {type: float, low: 0, high: 10, unit: "%"}
        optimizer.sam.rho: 0.1
        optimizer.weight_decay: {type: choice, values: [0.01, 0.1], drives: [optimizer.eps]}
        """
        ),
        recipe,
    )
    names = ["optimizer.lr", "1 - optimizer.betas.1", "log2 batch.accumulation", "schedule.warmup"]
    parameters = dict(zip(names, (1e-3, 0.01, 3, 2.5), strict=True)) | {"optimizer.weight_decay": 0.01}
    assert bound.recipe(parameters) == {
        "optimizer.lr": 1e-3,
        "optimizer.betas.1": 0.99,
        "batch.accumulation": 8,
        "schedule.warmup": "2.5%",
        "optimizer.sam.rho": 0.1,
        "optimizer.weight_decay": 0.01,
        "optimizer.eps": 0.01,
    }
    trial = bound.apply(parameters)
    assert trial.optimizer.betas == (0.9, 0.99)
    assert (trial.optimizer.sam.rho, trial.optimizer.eps, trial.optimizer.weight_decay) == (0.1, 0.01, 0.01)
    assert (trial.batch.accumulation, trial.schedule.warmup) == (8, Amount(2.5, "%"))
    assert recipe.optimizer.sam is None


BRANCH = """
        optimizer.name:
          type: branch
          prior: {centre: tam}
          alternatives:
            adamw: {optimizer.lr: {type: float, low: 1e-4, high: 1e-2}}
            tam:
              optimizer.lr: {type: float, low: 1e-2, high: 1}
              1 - optimizer.momentum: {type: float, low: 0.01, high: 0.5}
"""


def test_parameters_of_an_alternative_count_only_there(recipe):
    bound = BoundSpace(space(BRANCH), recipe)
    everything = {"optimizer.name", "adamw/optimizer.lr", "tam/optimizer.lr", "tam/1 - optimizer.momentum"}
    assert set(bound.distributions()) == everything
    assert bound.active({"optimizer.name": "adamw"}) == {"optimizer.name", "adamw/optimizer.lr"}
    assert bound.active({"optimizer.name": "tam"}) == everything - {"adamw/optimizer.lr"}
    assert bound.recipe({"optimizer.name": "adamw", "adamw/optimizer.lr": 1e-3, "tam/optimizer.lr": 1.0}) == {
        "optimizer.name": "adamw",
        "optimizer.lr": 1e-3,
    }
    assert bound.priors()["optimizer.name"].centre == "tam"


def test_optuna_is_asked_only_for_what_counts(recipe):
    bound = BoundSpace(space(BRANCH), recipe)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for _ in range(8):
        trial = study.ask()
        parameters = bound.suggest(trial)
        assert parameters == trial.params
        assert set(parameters) == bound.active(parameters)
        kinds.add(bound.apply(parameters).optimizer.name)
    assert kinds == {"adamw", "tam"}


def test_another_optimizer_keeps_what_all_have_and_nothing_else(tmp_path):
    text = BASE.replace("  lr: 1e-3", "  lr: 1e-3\n  betas: [0.8, 0.9]\n  weight_decay: 0.3\n  sam: {rho: 0.2}")
    bound = open_space(["adatamw"], load_recipe(write_recipe(tmp_path, text)))
    trial = bound.apply(bound.draw(random.Random(0)) | {"1 - optimizer.betas.0": 0.1, "1 - optimizer.betas.1": 0.05})
    assert (trial.optimizer.name, trial.optimizer.betas) == ("adatamw", (0.9, 0.95))
    assert trial.optimizer.sam.rho == 0.2
    fixed = BoundSpace(
        space("""
        optimizer.name: adatamw
        seed: {type: integer, low: 0, high: 9}
        """),
        load_recipe(tmp_path / "recipe.yaml"),
    ).apply({"seed": 1})
    assert (fixed.optimizer.lr, fixed.optimizer.weight_decay, fixed.optimizer.betas) == (1e-3, 0.3, (0.9, 0.999))


def test_rules_of_a_mixed_optimizer_still_take_over_the_rate(tmp_path):
    rules = "[{kinds: [matrices], optimizer: {name: muon, lr: 0.5}}, {match: '*', optimizer: {name: adamw}}]"
    text = BASE.replace("name: adamw", f"name: mixed\n  rules: {rules}")
    bound = open_space(["auto"], load_recipe(write_recipe(tmp_path, text)))
    trial = bound.apply(bound.draw(random.Random(0)) | {"optimizer.lr": 2e-3})
    assert [rule.optimizer.lr for rule in trial.optimizer.rules] == [0.5, 2e-3]


def test_constraints_count_fields_that_are_not_searched(recipe):
    text = "\nschedule.name: wsd\nschedule.warmup: {type: float, low: 0, high: 50, unit: '%'}\n"
    limited = space(text).model_copy(update={"constraints": ("schedule.warmup + schedule.cooldown * 2 <= 60",)})
    bound = BoundSpace(limited, recipe)
    assert bound.allowed({"schedule.warmup": 20.0})
    assert bound.why_not({"schedule.warmup": 20.5}) == ["schedule.warmup + schedule.cooldown * 2 <= 60 does not hold"]


def test_what_is_wrong_only_together_is_not_tried(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["scaling.workers=3"])
    bound = BoundSpace(space("\nbatch.global_sequences: {type: integer, low: 6, high: 16}\n"), recipe)
    allowed = [n for n in range(6, 17) if bound.allowed({"batch.global_sequences": n})]
    assert allowed == [6, 12]
    with pytest.raises(RecipeError, match=r"must be a multiple of batch\.micro_batch"):
        bound.apply({"batch.global_sequences": 7})
    with pytest.raises(RecipeError, match=r"none of 64 trials .* must be a multiple of"):
        BoundSpace(space("\nbatch.global_sequences: {type: integer, low: 7, high: 11}\n"), recipe)


WRONG = [
    ("optimizer.lr: {type: float, low: -1, high: 1e-2}",
     "optimizer.lr.low = -1.0: must be a number greater than 0"),
    ("optimizer.learning_rat: {type: float, low: 1e-3, high: 1e-2}",
     "optimizer.learning_rat: unknown field of optimizer adamw; nearest: lr"),
    ("learning_rate: {type: float, low: 1e-3, high: 1e-2}",
     "learning_rate: unknown field; nearest: optimizer.lr, optimizer.diloco.lr"),
    ("optimizr.lr: {type: float, low: 1e-3, high: 1e-2}",
     "optimizr.lr: optimizr: unknown field; nearest: optimizer"),
    ("optimizer.momentum: {type: float, low: 0.5, high: 0.9}",
     "optimizer.momentum: unknown field of optimizer adamw; muon, sgd, tam have it"),
    ("optimizer.decay: {type: choice, values: [matrices, none]}",
     "optimizer.decay = none: must be one of matrices, all"),
    ("schedule.warmup: {type: float, low: 0, high: 10}",
     "schedule.warmup: must be a number and a unit (%, steps, tokens): give the parameter `unit`"),
    ("1 - optimizer.betas.0: {type: float, low: -0.1, high: 0.2}",
     "1 - optimizer.betas.0.low = -0.1: optimizer.betas.0 would be 1.1: must be a number at least 0 and less than 1"),
    ("optimizer.betas.2: {type: float, low: 0.1, high: 0.2}",
     "optimizer.betas.2: optimizer.betas is a list of 2: write an index, counted from 0"),
    ("optimizer.lr.x: 3", "optimizer.lr.x: optimizer.lr = 0.001 has no fields"),
    ("batch.micro_batch: {type: float, low: 1, high: 5}",
     "batch.micro_batch = 2.528: must be a whole number at least 1"),
    ("schedule.name: {type: branch, alternatives: {cosin: }}",
     "schedule.name = cosin: must be one of constant, cosine, linear, wsd; nearest: cosine"),
    ("kind: {type: branch, alternatives: {tam: {optimizer.name: tam, optimizer.momentun: 0.9}}}",
     "tam/optimizer.momentun: unknown field of optimizer tam; nearest: momentum"),
    ("optimizer.lr: {type: float, low: 1e-2, high: 1e-3}",
     "parameters.optimizer.lr: low < high must hold, got low: 0.01 and high: 0.001"),
    ("optimizer.lr: {type: float, low: 0, high: 1e-3, log: true}",
     "parameters.optimizer.lr: with log, low > 0 must hold, got low: 0"),
    ("optimizer.lr: {type: float, low: 1e-3, high: 1e-2, lg: true}",
     "parameters.optimizer.lr.lg = true: unknown field of optimizer.lr float; nearest: log"),
    ("optimizer.lr: {type: flaot, low: 1e-3, high: 1e-2}",
     "parameters.optimizer.lr.type = flaot: must be one of branch, choice, fixed, float, integer, unbounded; "
     "nearest: float"),
    ("seed: {type: integer, low: 0, high: 10, step: 3}",
     "parameters.seed: high must be low plus a multiple of step, got high: 10; nearest: 9 or 12"),
    ("optimizer.lr: {type: float, low: 1e-3, high: 1e-2, prior: {centre: 1}}",
     "parameters.optimizer.lr: the prior's centre must lie between low (0.001) and high (0.01), got 1"),
    ("optimizer..lr: 3",
     "parameters.optimizer..lr = optimizer..lr: must be a recipe field's dotted path, `1 - path` or `log2 path`; "
     "of a branch also any name without dots"),
    ("seed: {type: choice, values: [1], drives: [seed]}",
     "seed is driven twice, by seed and by seed: keep one"),
    ("seed: {type: choice, values: [1], prior: {centre: 1, known_at: {width: 1}}}",
     "seed.prior.known_at: there are rules for learning rates on a log scale alone; remove it"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_mistake_is_told_with_its_line(tmp_path, recipe, line, message):
    told = mistakes(tmp_path, recipe, f"description: wrong\nparameters:\n  {line}\n")
    line_of_all = "1" if message.startswith("seed is driven") else "3"
    assert told == [f"space.yaml:{line_of_all}: {message}"]


def test_all_mistakes_are_told_at_once_and_in_order(tmp_path, recipe):
    lines = [f"  {line}" for line, _ in WRONG[:5]]
    text = "description: wrong\nparameters:\n" + "\n".join(lines) + "\nconstraints: [a.b <= 1, optimizer.lr.low > 1]\n"
    told = mistakes(tmp_path, recipe, text)
    expected = [f"space.yaml:{number}: {message}" for number, (_, message) in enumerate(WRONG[:5], start=3)]
    assert told[:5] == expected
    assert told[5:] == [
        "space.yaml:8: constraints.0 = a.b <= 1: a.b is no field",
        "space.yaml:8: constraints.1 = optimizer.lr.low > 1: optimizer.lr.low is no field",
    ]


def test_spaces_are_put_together(recipe):
    bound = open_space(["adamw", "wsd", "sam", "batch"], recipe)
    assert {"optimizer.lr", "schedule.cooldown", "perturbation", "log2 batch.accumulation"} <= set(
        bound.distributions()
    )
    assert bound.space.constraints == ("schedule.warmup + schedule.cooldown <= 65",)
    with pytest.raises(RecipeError) as caught:
        open_space(["adamw", "causal-lm"], recipe)
    first = "causal-lm.yaml:7: optimizer.lr: driven by adamw.yaml:6 too; keep one, in a space file of your own"
    assert str(caught.value).splitlines()[0] == first
    with pytest.raises(RecipeError, match=r"most often: .*sam and lookbehind exclude each other"):
        open_space(["sam", "lookbehind"], recipe)
    with pytest.raises(RecipeError, match=r"--space adamW: no such space and no such file; nearest: adamw"):
        open_space(["adamW"], recipe)


def test_a_space_says_which_recipes_it_is_made_for(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, BASE.replace("adamw", "sgd")))
    with pytest.raises(RecipeError) as caught:
        open_space(["causal-lm"], recipe)
    assert str(caught.value).startswith("causal-lm.yaml:3: optimizer.name = sgd: the space is made for adamw, ")
    with pytest.raises(RecipeError, match=r"optimizer\.name = sgd: the space is made for adamw, "):
        open_space(["causal-lm", "ema"], recipe)


def test_the_same_fixed_value_in_two_spaces_is_no_mistake(recipe):
    assert set(open_space(["schedule_free_adamw", "constant"], recipe).distributions()) >= {"schedule.warmup"}


def test_the_reference_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference.markdown(), (
        "run: lowland schema --spaces --markdown > docs/search-spaces.md"
    )


def test_the_examples_of_the_reference_are_right(tmp_path, recipe):
    for text in blocks(PAGE, "yaml"):
        (tmp_path / "space.yaml").write_text(text)
        text_model = BASE.replace("model_type: llama", "model_type: llama, hidden_size: 64")
        bound = open_space([str(tmp_path / "space.yaml")], load_recipe(write_recipe(tmp_path, text_model)))
        assert bound.apply(bound.draw(random.Random(1)))
    shown = blocks(PAGE, "text")[0].splitlines()
    told = mistakes(
        tmp_path,
        recipe,
        "description: wrong\nparameters:\n"
        + "".join(f"  {line}\n" for line, message in WRONG if any(s.endswith(message) for s in shown)),
    )
    assert told == shown


def test_the_schema_for_editors_accepts_the_shipped_spaces_and_refuses_wrong_ones():
    schema = json.loads(reference.json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in shipped().values():
        jsonschema.validate(parse(path.read_text(encoding="utf-8"), "space").data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"description": "", "parameters": {"a": {"type": "float", "low": 1}}}, schema)
