"""What a checkpoint calls the optimizer that wrote it."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from lowland.optim.methods import AROUND
from lowland.trainers.recipe import OptimizerConfig, PlainOptimizer, SGDConfig
from lowland.trainers.recipe.optimizers.around import AroundOptimizer
from lowland.trainers.recipe.section import Section


def method(**fields: Any) -> str:
    config: PlainOptimizer = TypeAdapter(OptimizerConfig).validate_python({"lr": 1, **fields})
    return config.method


def test_numbers_are_no_part_of_it() -> None:
    assert method(name="adamw") == method(name="adamw", lr=2, eps=1e-6) == "adamw"
    assert method(name="adatamw") == "adatamw"


def test_recipes_have_the_sections_of_the_table_in_its_order() -> None:
    assert tuple(AroundOptimizer.model_fields) == tuple(AROUND)


@pytest.mark.parametrize("name", AROUND)
def test_what_is_around_it_is_named(name: str) -> None:
    assert SGDConfig.model_construct(name="sgd", **{name: Section()}).method == f"{name} around sgd"


def test_the_outermost_comes_first() -> None:
    every = SGDConfig.model_construct(name="sgd", **dict.fromkeys(AROUND, Section()))
    assert every.method == " around ".join([*reversed(AROUND), "sgd"])


def test_what_it_is_made_of_is_named() -> None:
    rules = [{"kinds": ["matrices"], "optimizer": {"name": "muon"}}, {"match": "*", "optimizer": {"name": "adamw"}}]
    assert method(name="mixed", rules=rules) == "mixed of muon, adamw"
    assert method(name="custom", target="package.module:Class") == "package.module:Class"
