"""Priors of learning rates that are known for another training, moved to the recipe's."""

import math
from collections.abc import Iterable, Iterator, Mapping

from lowland.platform.recipe import CausalLMRecipe, Recipe
from lowland.platform.recipe.local_files import model_config, read_manifest
from lowland.platform.recipe.mistakes import Mistake, recipe_error
from lowland.platform.search.changes import changed
from lowland.platform.search.space_checks import typical_fields
from lowland.platform.search.space_files import SpaceFile
from lowland.search_spaces import Entry, Family, Fixed, FloatRange, Key, Prior, Unbounded, transfer
from lowland.search_spaces.priors import confidence

WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
"""What the configurations of models call their width."""
PLAIN = ("sgd", "tam", "schedule_free_sgd")
"""Optimizers whose steps are proportional to gradients."""


def setting(recipe: Recipe) -> dict[str, float]:
    """What the rules ask of a training: `width`, `batch` and `tokens`, as far as the recipe and its files say."""
    found = dict[str, float]()
    if not isinstance(recipe, CausalLMRecipe):
        return found  # the rules are of language models
    config, manifest = model_config(recipe.model), read_manifest(recipe.data)
    if width := next((config[name] for name in WIDTHS if isinstance(config.get(name), int)), 0):
        found["width"] = width
    if recipe.length.unit == "tokens" and recipe.length.value:
        found["tokens"] = recipe.length.value
    if manifest is None:
        return found
    accumulation = recipe.batch.accumulation_steps(
        workers=recipe.scaling.workers, sequence_length=manifest.sequence_length
    )
    sequences = recipe.batch.micro_batch * recipe.scaling.workers * accumulation
    found["batch"] = batch = sequences * manifest.sequence_length
    if train := manifest.splits.get("train"):
        steps = recipe.length.in_steps(tokens_per_step=batch, steps_per_epoch=train.rows / sequences)
        found["tokens"] = steps * batch
    return found


def transferred(entries: Iterable[Entry], recipe: Recipe, file: SpaceFile) -> dict[str, Prior]:
    """The priors of all parameters, by name, those that are known elsewhere moved by the rules.

    Raises:
        RecipeError: a prior is known at what the recipe does not tell, or is not that of a learning rate.
    """
    priors, mistakes = dict[str, Prior](), list[Mistake]()
    there = setting(recipe)
    for entry in entries:
        prior = None if isinstance(entry.parameter, Fixed | Unbounded) else entry.parameter.prior
        if prior is None:
            continue
        if wrong := list(_wrong(entry, prior, there, file)):
            mistakes += wrong
        else:
            priors[entry.name] = _moved(entry, prior, there, _family(entry, recipe, file))
    if mistakes:
        raise recipe_error(mistakes)
    return priors


def told(entries: Iterable[Entry], priors: Mapping[str, Prior], recipe: Recipe) -> Iterator[str]:
    """A line for every rate that was moved: from where, and to what."""
    there = setting(recipe)
    for entry in entries:
        prior = None if isinstance(entry.parameter, Fixed | Unbounded) else entry.parameter.prior
        if prior is not None and prior.known_at is not None:
            moved = priors[entry.name]
            places = [f"{name} {value:g}, here {there[name]:g}" for name, value in prior.known_at.given.items()]
            yield (
                f"prior of {entry.name}: {prior.centre:g} is known at {'; '.join(places)}: "
                f"{moved.centre:.4g} with confidence {moved.confidence:.2f}"
            )


def _wrong(entry: Entry, prior: Prior, there: dict[str, float], file: SpaceFile) -> Iterator[Mistake]:
    if prior.known_at is None:
        return
    path, place = (entry.name, "prior", "known_at"), file.place((*entry.trail, "prior", "known_at"))
    key = Key.parse(entry.key)
    if not isinstance(entry.parameter, FloatRange) or not entry.parameter.log or not key.path.endswith(".lr"):
        yield Mistake(place, path, "there are rules for learning rates on a log scale alone; remove it")
        return
    for name in prior.known_at.given:
        if name not in there:
            yield Mistake(place, (*path, name), f"the recipe's own {name} cannot be told from its files; remove it")


def _moved(entry: Entry, prior: Prior, there: dict[str, float], family: Family) -> Prior:
    parameter = entry.parameter
    if prior.known_at is None or not isinstance(parameter, FloatRange):
        return prior
    factor, error = transfer(prior.known_at.given, there, family)
    centre = min(max(float(prior.centre or 0) * factor, parameter.low), parameter.high)
    spread = math.hypot(prior.deviation, error / math.log(parameter.high / parameter.low))
    return Prior(centre=centre, confidence=confidence(spread))


def _family(entry: Entry, recipe: Recipe, file: SpaceFile) -> Family:
    """By the optimizer in the alternative that the parameter belongs to."""
    data = changed(recipe, typical_fields(file.space.entries(), dict(entry.where)))
    return "plain" if data["optimizer"]["name"] in PLAIN else "adaptive"
