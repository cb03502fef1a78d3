"""A search space for one recipe: from parameters to Optuna's distributions, from a trial to a recipe."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import ValidationError

from lowland.platform.recipe import Recipe, read_recipe
from lowland.platform.recipe.checks import find_conflicts
from lowland.platform.recipe.conflict import Conflict
from lowland.platform.recipe.document import Document
from lowland.platform.recipe.mistakes import Mistake, Value, recipe_error
from lowland.platform.recipe.translate import translate
from lowland.platform.search.auto import auto
from lowland.platform.search.changes import changed, schema_for
from lowland.platform.search.numbers import numbers
from lowland.platform.search.space_checks import find_mistakes
from lowland.platform.search.space_files import SpaceFile, merge, read_space
from lowland.platform.search.transfer import told, transferred
from lowland.search_spaces import Branch, Choice, Entry, Fixed, FloatRange, IntegerRange, Prior, Space, Unbounded


def open_space(names: Sequence[str], recipe: Recipe) -> "BoundSpace":
    """The spaces of these names or files together, checked against the recipe; `auto` is made from it.

    Raises:
        RecipeError: its message holds every mistake, a line each.
    """
    files = [SpaceFile(auto(recipe), "auto") if name == "auto" else read_space(name) for name in names]
    return BoundSpace(merge(files), recipe)


class BoundSpace:
    """A search space for one recipe.

    Args:
        space: the space, or its file, whose lines mistakes then name.
        recipe: what trials change.

    Raises:
        RecipeError: the space drives fields that the recipe does not have, or to values that they cannot have.
    """

    def __init__(self, space: Space | SpaceFile, recipe: Recipe) -> None:
        file = space if isinstance(space, SpaceFile) else SpaceFile(space, "")
        self.space, self.base = file.space, recipe
        self._entries = self.space.entries()
        self._searched = {e.name: e for e in self._entries if not isinstance(e.parameter, Fixed)}
        self._constraints = self.space.conditions()
        self._known = {_mark(conflict) for conflict in find_conflicts(dict(recipe))}
        if mistakes := find_mistakes(file, recipe):
            raise recipe_error(mistakes)
        self._require_some(file)
        self._priors = transferred(self._searched.values(), recipe, file)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter by name, those of all alternatives too; a branch is a choice of its alternatives' names.

        Optuna wants ends: those of what has none lie so far away that nobody comes there.
        """
        return {name: distribution_of(entry) for name, entry in self._searched.items()}

    def unbounded(self) -> dict[str, Unbounded]:
        """The parameters without ends."""
        return {name: e.parameter for name, e in self._searched.items() if isinstance(e.parameter, Unbounded)}

    def conditions(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """By parameter that counts in some alternatives only: the branches and the alternative of each."""
        return {name: entry.where for name, entry in self._searched.items() if entry.where}

    def active(self, parameters: Mapping[str, Any]) -> set[str]:
        """The names of the parameters that count, given the alternatives that are chosen."""
        return {name for name, entry in self._searched.items() if entry.active(parameters)}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Asks Optuna for a trial's parameters one after the other, and only for those that count."""
        found = dict[str, Any]()
        for name, entry in self._searched.items():
            if entry.active(found):
                found[name] = _suggest(trial, name, distribution_of(entry))
        return found

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """Random parameters, uniform on their scales, with those of all alternatives; constraints may not hold.

        Those without ends lie where a search sets out.
        """
        return {name: _draw(entry, generator) for name, entry in self._searched.items()}

    def recipe(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's fields and their values for a trial, by dotted path.

        Args:
            parameters: by name; those that do not count may be left out.
        """
        fields = dict[str, Any]()
        for entry in self._entries:
            if entry.active(parameters):
                fields |= dict.fromkeys(entry.paths, entry.field_value(parameters.get(entry.name)))
        return fields

    def apply(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial.

        Raises:
            RecipeError: the values do not go together.
        """
        recipe, mistakes = self._try(parameters)
        if recipe is None or mistakes:
            raise recipe_error(mistakes)
        return recipe

    def allowed(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the constraints hold and the recipe is right."""
        return self.why_not(parameters) == []

    def why_not(self, parameters: Mapping[str, Any]) -> list[str]:
        """What is wrong with a trial's parameters: constraints that do not hold, fields that do not go together."""
        recipe, mistakes = self._try(parameters)
        fields = numbers(recipe.model_dump(mode="json")) if recipe is not None else {}
        broken = [f"{c.text} does not hold" for c in self._constraints if not c.holds(fields)]
        return [*broken, *map(str, mistakes)]

    def priors(self) -> dict[str, Prior]:
        """What is believed beforehand, by parameter; learning rates that are known elsewhere moved to the recipe."""
        return dict(self._priors)

    def moved(self) -> list[str]:
        """A line for every learning rate that is known elsewhere and was moved to the recipe."""
        return list(told(self._entries, self._priors, self.base))

    def _try(self, parameters: Mapping[str, Any]) -> tuple[Recipe | None, list[Mistake]]:
        data = changed(self.base, self.recipe(parameters))
        try:
            recipe = read_recipe(data)
        except ValidationError as error:
            return None, translate(error, Document(data), schema_for(data))
        new = [c for c in find_conflicts(dict(recipe)) if _mark(c) not in self._known]
        return recipe, [Mistake("", c.path, c.text, Value(c.value)) for c in new]

    def _require_some(self, file: SpaceFile) -> None:
        """Refuses a space none of whose trials could run, with what is wrong with most of them."""
        generator = random.Random(0)
        reasons = list[str]()
        for _ in range(64):
            if not (wrong := self.why_not(self.draw(generator))):
                return
            reasons += wrong
        commonest = max(dict.fromkeys(reasons), key=reasons.count)
        text = f"none of 64 trials drawn from the space is a right recipe; most often: {commonest}"
        raise recipe_error([Mistake(file.source, (), text)])


def _mark(conflict: Conflict) -> tuple[Any, str]:
    return conflict.path, conflict.text


def distribution_of(entry: Entry) -> BaseDistribution:
    """A parameter as Optuna holds it."""
    match entry.parameter:
        case FloatRange(low=low, high=high, log=log, step=step):
            return FloatDistribution(low, high, log=log, step=step)
        case IntegerRange(low=low, high=high, log=log, step=step):
            return IntDistribution(low, high, log=log, step=step)
        case Unbounded(ends=(low, high), multiple=None):
            return FloatDistribution(low, high, log=True)
        case Unbounded(ends=(low, high)):
            return IntDistribution(int(low), int(high), log=True)
        case Choice(values=values):
            return CategoricalDistribution(values)
        case Branch(alternatives=alternatives):
            return CategoricalDistribution(tuple(alternatives))
        case Fixed():
            raise TypeError(f"{entry.name} is fixed")


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case _:
            raise TypeError(f"{name} has the distribution {distribution}")


def _draw(entry: Entry, generator: random.Random) -> Any:
    if isinstance(entry.parameter, Unbounded):
        low, high = map(math.log, entry.parameter.start)
        return entry.parameter.nearest(math.exp(generator.uniform(low, high)))
    distribution = distribution_of(entry)
    if isinstance(distribution, CategoricalDistribution):
        return generator.choice(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and not distribution.log:
        return generator.randrange(distribution.low, distribution.high + 1, distribution.step)
    if distribution.log:
        value = min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
        return round(value) if isinstance(distribution, IntDistribution) else value
    if step is not None:
        return min(low + step * generator.randint(0, round((high - low) / step)), high)
    return generator.uniform(low, high)
