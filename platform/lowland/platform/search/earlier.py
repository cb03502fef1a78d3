"""Earlier trainings for a new search: turned into points of its space, and told what became of each.

Of the same task they are trials that the search begins with, of a related one beliefs about where to look.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lowland.platform.recipe import Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.recipe.local_files import local_folder
from lowland.platform.runs import as_text
from lowland.platform.search.choices import AIMS
from lowland.platform.search.points import Fields, differences, located
from lowland.platform.search.recorded import Recorded, recorded
from lowland.platform.search.setting import Setting
from lowland.platform.search.space import BoundSpace
from lowland.platform.search.trials import Earlier
from lowland.platform.search.warm_start import beliefs, misfit
from lowland.platform.tracking.store import first_line
from lowland.search_spaces import Prior, Space, Unbounded
from lowland.trainers.data.manifest import Manifest
from lowland.trainers.errors import DataError, RecipeError, UserError

RATE = "optimizer.lr"


def warmed(setting: Setting, sources: Sequence[str], *, related: bool) -> Setting:
    """A search that begins with what earlier trainings told.

    Args:
        setting: the search.
        sources: what `recorded` finds.
        related: whether they are of another task: then the best quarter of each source tells where to look; else each
            is a trial of this search.

    Raises:
        UserError: a source is not there, or none of the trainings is of use.
    """
    if related and setting.sampler not in AIMS:
        raise UserError(
            f"--related gives priors, which --sampler {setting.sampler} does not use; {', '.join(AIMS)} use them"
        )
    if not related and (setting.others or setting.constraints or setting.policy == "pbt"):
        raise UserError(
            "--warm-start: earlier trainings are known by one metric and have no checkpoints to go on from: they can "
            "be no trials of a search with several metrics, with constraints or with --policy pbt"
        )
    found = {source: recorded(source, setting) for source in sources}
    space = setting.bound()
    if related:
        return _believing(setting, space, found)
    return _with_trials(setting, space, [training for every in found.values() for training in every])


def _with_trials(setting: Setting, space: BoundSpace, trainings: Sequence[Recorded]) -> Setting:
    used, told = list[Earlier](), dict[str, list[str]]()
    for training in trainings:
        point = training.problem or fit(space, training)
        if isinstance(point, Earlier):
            used.append(point)
        fate = f"used of {training.group}" if isinstance(point, Earlier) else f"skipped of {training.group}, {point}"
        told.setdefault(fate, []).append(training.name)
    lines = [f"{fate}: {', '.join(names)}" for fate, names in sorted(told.items(), key=lambda item: item[0] < "u")]
    if not used:
        raise UserError(f"--warm-start: none of {len(trainings)} trainings can be used:\n{_some(lines)}")
    return setting.with_(earlier=tuple(used), warm_start=tuple(lines))


def _believing(setting: Setting, space: BoundSpace, found: Mapping[str, Sequence[Recorded]]) -> Setting:
    usable = {source: [t for t in trainings if not t.problem and t.curve] for source, trainings in found.items()}
    tasks = [
        [Earlier(t.source, max(located(space.space, t.fields), key=len), t.curve) for t in trainings]
        for trainings in usable.values()
    ]
    lines = [f"used of {source}: {len(usable[source])} of {len(found[source])} trainings" for source in found]
    priors = beliefs(space.distributions(), tasks, rising=setting.direction == "maximize")
    if not priors:
        raise UserError(
            "--warm-start --related tells nothing: of no parameter are three values of the best quarter known that lie "
            f"in its range\n{_some(lines)}"
        )
    for name, prior in priors.items():
        centre = f"{prior.centre:.4g}" if isinstance(prior.centre, float) else prior.centre
        open_ended = name in space.unbounded()
        lines.append(
            f"centre of {name}: {centre}"
            if open_ended
            else f"prior of {name}: {centre} with confidence {prior.confidence:.2f}"
        )
    return setting.with_(space=with_priors(setting.space, priors), warm_start=tuple(lines))


def _some(lines: Sequence[str], most: int = 12) -> str:
    return "\n".join([*lines[:most], *(["..."] if len(lines) > most else [])])


def with_known_rate(space: Space, text: str) -> Space:
    """The space with a learning rate that is known for another training as the prior of its own.

    Args:
        space: has the parameter `optimizer.lr`.
        text: the rate and what is known of the training, as `2e-3@width=256,batch=65536,tokens=1e9`.

    Raises:
        UserError: it reads otherwise, or the space has no such parameter.
    """
    rate, _, places = text.partition("@")
    try:
        given = dict(place.split("=", 1) for place in places.split(",") if place)
        known = {"centre": float(rate), "known_at": {name.strip(): float(value) for name, value in given.items()}}
        prior = Prior.model_validate(known)
    except ValueError:
        raise UserError(
            f"--known-lr {text}: write the rate and at least one of width (hidden size), batch (tokens a step) and "
            "tokens (of the whole training), as 2e-3@width=256,tokens=1e9"
        ) from None
    if any(entry.name == RATE and isinstance(entry.parameter, Unbounded) for entry in space.entries()):
        raise UserError(f"--known-lr {text}: {RATE} is unbounded in the space: write the rate as its centre")
    if RATE not in {entry.name for entry in space.entries()}:
        names = ", ".join(entry.name for entry in space.entries() if entry.key == RATE) or "none"
        raise UserError(
            f"--known-lr {text}: the space has no parameter {RATE} of its own; in alternatives: {names}. Write it as "
            "the prior of one of these into a space file"
        )
    return with_priors(space, {RATE: prior})


def with_priors(space: Space, priors: Mapping[str, Prior]) -> Space:
    """The space with these priors in place of its own, by parameter; what is unbounded gets another centre."""
    data = space.model_dump(mode="json", exclude_unset=True)
    for entry in space.entries():
        if entry.name in priors:
            inner: Any = data
            for key in entry.trail:
                inner = inner[key]
            prior = priors[entry.name]
            if isinstance(entry.parameter, Unbounded):
                inner["centre"] = prior.centre
            else:
                inner["prior"] = prior.model_dump(exclude_unset=True)
    return Space.model_validate(data)


def fit(space: BoundSpace, training: Recorded) -> Earlier | str:
    """The training as a trial; why it is none."""
    reasons = list[str]()
    for parameters in located(space.space, training.fields):
        point = Earlier(training.source, parameters, training.curve)
        why = misfit(space.distributions(), point, space.conditions()) or _other(space, parameters, training.fields)
        if not why:
            return point
        reasons.append(why)
    return reasons[0]


def _other(space: BoundSpace, parameters: Mapping[str, Any], fields: Fields) -> str:
    """How the recipe of a trial with these parameters differs from the training's."""
    try:
        recipe = space.apply(parameters)
    except RecipeError as error:
        return first_line(error)
    if broken := space.why_not(parameters):
        return broken[0]
    differing = [path for path in differences(as_text(flatten(recipe)), fields) if not _same_data(path, recipe, fields)]
    shown = [f"{path} is {_short(fields, path)} there and {_short(flatten(recipe), path)} here" for path in differing]
    return "; ".join(shown[:3]) + ("; ..." if len(shown) > 3 else "")


def _same_data(path: str, recipe: Recipe, fields: Fields) -> bool:
    """Whether the data at another path are the same."""
    if path != "data.path":
        return False
    folders = [local_folder(recipe.data.path), local_folder(fields.get(path, ""))]
    try:
        digests = {Manifest.read(folder).digest for folder in folders if folder is not None}
    except DataError:
        return False
    return None not in folders and len(digests) == 1


def _short(fields: Mapping[str, Any], path: str) -> str:
    text = str(fields.get(path, "absent"))
    return text if len(text) <= 40 else f"{text[:37]}..."
