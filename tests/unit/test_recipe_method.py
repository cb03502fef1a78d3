"""What a checkpoint calls the optimizer that wrote it."""

from pydantic import TypeAdapter

from lowland.optim.methods import AROUND, METHODS
from lowland.trainers.recipe import OptimizerConfig, PlainOptimizer
from lowland.trainers.recipe.optimizers.around import AroundOptimizer


def method(fields: dict[str, object]) -> str:
    config: PlainOptimizer = TypeAdapter(OptimizerConfig).validate_python(fields)
    return config.method


def test_numbers_are_no_part_of_it() -> None:
    assert method({"name": "adamw", "lr": 1}) == method({"name": "adamw", "lr": 2, "eps": 1e-6}) == "adamw"
    assert method({"name": "adatamw", "lr": 1}) == "adatamw"


def test_sections_are_named_from_the_outermost_inwards() -> None:
    assert tuple(AroundOptimizer.model_fields) == tuple(AROUND), "one order of both"
    sections = {name: around.example for name, around in AROUND.items()}
    assert method({"name": "adamw", "lr": 1} | sections) == " around ".join([*reversed(AROUND), "adamw"])
    for name in AROUND:
        assert method({"name": "sgd", "lr": 1, name: sections[name]}) == f"{name} around sgd"


def test_every_method_has_a_name_of_its_own() -> None:
    names = {name: method({"name": name, "lr": 1}) for name in METHODS if name != "mixed"}
    assert names == {name: name for name in names}
