"""`--space auto`: the recipe's optimizer, schedule and batch, around the recipe's own values."""

from typing import Any

from lowland.platform.recipe import Recipe
from lowland.platform.search.changes import split
from lowland.platform.search.numbers import number
from lowland.platform.search.space_files import load_space
from lowland.search_spaces import Branch, Choice, Fixed, FloatRange, IntegerRange, Key, Parameter, Prior, Space, shipped
from lowland.trainers.recipe import BatchConfig

_AROUND = ("lookbehind", "ema")
"""What is around the recipe's optimizer and has a space of its own without alternatives."""
_REACH = 3.0
"""How far a range of learning rates extends beyond a recipe's that lies outside it."""


def auto(recipe: Recipe) -> Space:
    """The spaces that come with lowland for the recipe's optimizer, schedule and batch; their priors lie at its values.

    Ranges that do not hold the recipe's value are extended to it.  Of an optimizer that has no space the learning rate
    is searched a decade to either side of the recipe's.  The batch is searched if `length` is in tokens or epochs: in
    steps, larger batches would be trained on more.
    """
    parameters = _optimizer(recipe) | _parameters(recipe.schedule.name)
    constraints = load_space(recipe.schedule.name).constraints
    for name in _AROUND:
        if getattr(recipe.optimizer, name) is not None:
            parameters |= _parameters(name)
    if recipe.optimizer.sam is not None:
        sam = load_space("sam").parameters["perturbation"]
        assert isinstance(sam, Branch)
        kind = "sam" if recipe.optimizer.sam.adaptive == "none" else "asam"
        parameters |= {key: p for key, p in sam.alternatives[kind].items() if not isinstance(p, Fixed)}
    data = recipe.model_dump(mode="json")
    around = {key: _around(key, parameter, data) for key, parameter in parameters.items()}
    if recipe.length.unit != "steps":
        around |= _batch(recipe)
    description = f"{recipe.optimizer.name}, {recipe.schedule.name} schedule and batch, around the recipe's values"
    return Space(description=description, parameters=around, constraints=constraints)


def _parameters(name: str) -> dict[str, Parameter]:
    """The parameters of a space that comes with lowland, without what it fixes: the recipe has it."""
    return {key: p for key, p in load_space(name).parameters.items() if not isinstance(p, Fixed)}


def _optimizer(recipe: Recipe) -> dict[str, Parameter]:
    if recipe.optimizer.name in shipped():
        return _parameters(recipe.optimizer.name)
    lr = recipe.optimizer.lr
    return {"optimizer.lr": FloatRange(type="float", low=lr / 10, high=lr * 10, log=True)}


def _around(key: str, parameter: Parameter, data: Any) -> Parameter:
    """The parameter with its prior at the recipe's value, if the value is on its scale."""
    value = _field(key, data)
    if isinstance(parameter, Choice):
        known = value in parameter.values and not isinstance(value, list | dict)
        return parameter.model_copy(update={"prior": Prior(centre=value)}) if known else parameter
    if not isinstance(parameter, FloatRange | IntegerRange):
        return parameter
    centre = _centre(key, parameter, value)
    return parameter if centre is None else _holding(key, parameter, centre)


def _centre(key: str, parameter: FloatRange | IntegerRange, value: Any) -> float | None:
    field = number(value)
    if field is None or (isinstance(value, str) and not value.endswith(parameter.unit or " ")):
        return None
    centre = Key.parse(key).searched_value(field)
    if centre is None or (parameter.log and centre <= 0):
        return None
    return round(centre) if isinstance(parameter, IntegerRange) else centre


def _holding(key: str, parameter: FloatRange | IntegerRange, centre: float) -> FloatRange | IntegerRange:
    """The parameter with that prior, its range extended if need be; then any step within it may be tried."""
    reach = _REACH if key.endswith(".lr") else 1.0
    changes = dict[str, Any](prior=Prior(centre=centre))
    if centre < parameter.low:
        changes["low"] = centre / reach
    if centre > parameter.high:
        changes["high"] = centre * reach
    if len(changes) > 1:
        changes["step"] = None if isinstance(parameter, FloatRange) else 1
    return type(parameter).model_validate(parameter.model_dump() | changes)


def _batch(recipe: Recipe) -> dict[str, Parameter]:
    """The space of batches, around the recipe's accumulation where that is given."""
    parameters = dict(load_space("batch").parameters)
    if not isinstance(recipe.batch, BatchConfig):
        for name in ("global_sequences", "global_tokens"):
            del parameters[f"batch.{name}"]
        parameters["batch.global_images"] = Fixed(type="fixed", value=None)
    accumulation = recipe.batch.accumulation
    if accumulation is None:
        batch = recipe.batch
        whole = batch.global_sequences if isinstance(batch, BatchConfig) else batch.global_images
        per_pass = recipe.batch.micro_batch * recipe.scaling.workers
        accumulation = whole // per_pass if whole is not None else None
    if accumulation is not None:
        key = "log2 batch.accumulation"
        middle = round(Key.parse(key).searched_value(accumulation) or 0)
        low = max(0, middle - 2)
        parameters[key] = IntegerRange(type="integer", low=low, high=low + 4, prior=Prior(centre=middle))
    return parameters


def _field(key: str, data: Any) -> Any:
    for name in split(Key.parse(key).path):
        try:
            data = data[name]
        except (KeyError, IndexError, TypeError):
            return None
    return data
