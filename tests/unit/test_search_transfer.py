"""Conditions between fields, priors, rules that carry learning rates to other trainings, and `auto`."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import BASE, write_recipe

from lowland.platform.recipe import load_recipe
from lowland.platform.search.auto import auto
from lowland.platform.search.space import BoundSpace, open_space
from lowland.platform.search.transfer import setting
from lowland.search_spaces import Constraint, Key, Prior, Space, transfer
from lowland.search_spaces.priors import confidence
from lowland.trainers.errors import RecipeError

NUMBERS = st.floats(-1e3, 1e3)


@given(NUMBERS, NUMBERS, NUMBERS.filter(lambda d: abs(d) > 1e-3), NUMBERS)
def test_a_constraint_says_what_it_reads_like(a, b, d, e):
    values = {"a.b": a, "b": b, "c.0.d": d, "e": e}
    sides = (a + b * 2 / d - e, 3 * e - 0.5)
    for sign, holds in (("<=", sides[0] <= sides[1]), (">", sides[0] > sides[1]), ("==", sides[0] == sides[1])):
        constraint = Constraint.parse(f"a.b + b * 2 / c.0.d - e {sign} 3 * e - 5e-1")
        assert constraint.holds(values) == holds
    assert constraint.paths == ["a.b", "b", "c.0.d", "e"]


def test_a_constraint_on_what_is_not_there_holds():
    assert Constraint.parse("a / b <= 0").holds({"a": 1.0})
    assert Constraint.parse("a / b <= 0").holds({"a": 1.0, "b": 0.0})


@pytest.mark.parametrize("text", ["a", "a <= b <= c", "a <=", "a b <= c", "a ^ b <= c", "a<=b", "2x <= 1", "a = 1", ""])
def test_what_is_no_constraint_is_refused(text):
    with pytest.raises(ValueError, match="with blanks around each sign"):
        Constraint.parse(text)


@given(st.floats(1e-6, 0.999))
def test_a_field_and_what_is_searched_lead_to_each_other(value):
    for text in ("a.b", "1 - a.b", "log2 a.b"):
        key = Key.parse(text)
        assert key.path == "a.b"
        assert key.field_value(key.searched_value(value)) == pytest.approx(value, rel=1e-9, abs=1e-11)
    assert Key.parse("1 - a.b").searched_value(0.95) == 0.05
    assert Key.parse("log2 a.b").field_value(3) == 8
    assert isinstance(Key.parse("log2 a.b").field_value(3), int)


@given(st.floats(0.01, 0.99))
def test_confidence_and_deviation_are_one_thing(value):
    assert confidence(Prior(centre=1, confidence=value).deviation) == pytest.approx(value)


def test_rules_by_hand():
    # A quarter for four times the width, twice for four times the batch, 10^-0.32 for ten times the tokens.
    here = {"width": 256.0, "batch": 1e5, "tokens": 1e9}
    there = {"width": 1024.0, "batch": 4e5, "tokens": 1e10}
    factor, error = transfer(here, there, "adaptive")
    assert factor == pytest.approx(0.25 * 2 * 0.4786, rel=1e-3)
    assert error == pytest.approx(math.sqrt((1.3863 / 3) ** 2 + (1.3863 / 4) ** 2 + (2.3026 / 4) ** 2), rel=1e-3)
    assert transfer(here, there, "plain")[0] == pytest.approx(4 * 0.4786, rel=1e-3)


@given(st.floats(1e-3, 1e3), st.sampled_from(["width", "batch", "tokens"]), st.sampled_from(["adaptive", "plain"]))
def test_rules_lead_back(ratio, quantity, family):
    forth, error = transfer({quantity: 1.0}, {quantity: ratio}, family)
    back, same_error = transfer({quantity: ratio}, {quantity: 1.0}, family)
    assert forth * back == pytest.approx(1)
    assert error == pytest.approx(same_error)
    assert transfer({quantity: ratio}, {quantity: ratio}, family) == (1.0, 0.0)


KNOWN = {"centre": 2e-3, "known_at": {"width": 64}}
WIDE = BASE.replace("model_type: llama", "model_type: llama, hidden_size: 256")


def bound(recipe, prior, name="adamw"):
    lr = {"type": "float", "low": 1e-5, "high": 1e-2, "log": True, "prior": prior}
    parameters = {"optimizer.name": name, "optimizer.lr": lr}
    return BoundSpace(Space.model_validate({"description": "", "parameters": parameters}), recipe)


def test_a_known_rate_is_moved_to_the_recipe_and_believed_less(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, WIDE))
    prior = bound(recipe, KNOWN).priors()["optimizer.lr"]
    assert prior.centre == pytest.approx(5e-4)
    # Deviations as parts of the range: 0.1 / 0.67449 for confidence 0.5, and ln(4) / 3 over ln(1000).
    assert prior.confidence == pytest.approx(0.4613, abs=1e-3)
    assert bound(recipe, KNOWN, "sgd").priors()["optimizer.lr"].centre == pytest.approx(2e-3)
    near = bound(recipe, KNOWN | {"known_at": {"width": 256}}).priors()["optimizer.lr"]
    assert (near.centre, near.confidence) == (pytest.approx(2e-3), pytest.approx(0.5))


def test_a_centre_stays_within_the_range(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, WIDE))
    assert bound(recipe, KNOWN | {"known_at": {"width": 1e6}}).priors()["optimizer.lr"].centre == 1e-2


def test_what_a_training_is(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, WIDE), ["batch.accumulation=3", "scaling.workers=2"])
    step = 2 * 3 * 2 * 64
    assert setting(recipe) == {"width": 256, "batch": step, "tokens": 100 * step}
    epochs = load_recipe(tmp_path / "recipe.yaml", ["length=2 epochs"])
    assert setting(epochs)["tokens"] == 2 * 1000 * 64


def test_what_the_recipe_does_not_tell_is_a_mistake(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    with pytest.raises(
        RecipeError, match=r"optimizer\.lr\.prior\.known_at\.width: the recipe's own width cannot be told"
    ):
        bound(recipe, KNOWN)


RECIPES = [
    ("{name: adamw, lr: 1e-3}", "{name: cosine, warmup: 3%}"),
    ("{name: adamw, lr: 1, betas: [0.0, 0.9999], weight_decay: 0}", "{name: wsd, warmup: 10 steps, cooldown: 90%}"),
    ("{name: tam, lr: 0.1, sam: {rho: 0.05}}", "{name: linear, final: 0.5}"),
    ("{name: schedule_free_sgd, lr: 1, beta: 0.01, ema: {half_life: 100 tokens}}", "{name: constant}"),
    ("{name: soap, lr: 1e-9, lookbehind: {rho: 0.1, k: 20, alpha: 0.3}}", "{name: cosine}"),
    ("{name: critical_momenta, lr: 1e-3, buffer_size: 7}", "{name: cosine}"),
    ("{name: mixed, lr: 1e-3, rules: [{match: '*', optimizer: {name: adamw}}]}", "{name: cosine}"),
    ("{name: custom, target: 'torch.optim:Adam', lr: 1e-3}", "{name: cosine}"),
]


@pytest.mark.parametrize(("optimizer", "schedule"), RECIPES)
def test_auto_is_around_the_recipe(tmp_path, optimizer, schedule):
    text = BASE.replace("\n  name: adamw\n  lr: 1e-3", f" {optimizer}") + f"schedule: {schedule}\n"
    recipe = load_recipe(write_recipe(tmp_path, text), ["length=3 epochs", "batch.accumulation=4"])
    space = open_space(["auto"], recipe)
    generator = random.Random(0)
    drawn = [space.draw(generator) for _ in range(16)]
    assert any(space.allowed(parameters) for parameters in drawn)
    trial = space.apply(next(p for p in drawn if space.allowed(p)))
    assert trial.optimizer.method == recipe.optimizer.method
    assert trial.schedule.name == recipe.schedule.name
    priors = {name: prior.centre for name, prior in space.priors().items()}
    assert priors["optimizer.lr"] == recipe.optimizer.lr
    assert priors["log2 batch.accumulation"] == 2
    for name in priors.keys() - {"optimizer.nesterov", "optimizer.lookbehind.alpha"}:
        assert space.distributions()[name].low <= priors[name] <= space.distributions()[name].high


def test_auto_leaves_the_batch_where_it_would_change_the_data(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    assert recipe.length.unit == "steps"
    assert not [name for name in auto(recipe).parameters if "batch" in name]
