"""`lowland tune`."""

import json
import os
from typing import Any

import typer

from lowland.platform.cli import search_arguments as of_search
from lowland.platform.cli.arguments import Address, Budget, Overrides, Parallel, RecipeFile


def command(
    recipe: RecipeFile,
    space: of_search.Spaces = None,
    trials: of_search.Trials = None,
    budget: Budget = None,
    metric: of_search.Metrics = None,
    direction: of_search.Direction = None,
    constraint: of_search.Constraints = None,
    sampler: of_search.Sampler = None,
    policy: of_search.PolicyName = None,
    first_rung: of_search.FirstRung = None,
    intervals: of_search.Intervals = None,
    perturb: of_search.Perturb = None,
    parallel: Parallel = "auto",
    seed: of_search.Seed = None,
    warm_start: of_search.WarmStart = None,
    related: of_search.Related = False,
    known_lr: of_search.KnownRate = None,
    price: of_search.Price = None,
    database: of_search.Database = None,
    overrides: Overrides = None,
    name: of_search.StudyName = None,
    resume: of_search.Resume = False,
    address: Address = None,
) -> None:
    """Search for better values of a recipe's fields.

    Each trial is a training; most of them end early. Ctrl-C saves all trials and says how to go on.

    [bold]Examples[/bold]

    lowland tune recipes/stdlib-adamw.yaml --space adamw --trials 40

    lowland tune recipe.yaml --space auto --space mine.yaml --budget 40gpu-hours --address ray-head:6379
    """
    from lowland.platform.cli.console import output
    from lowland.platform.recipe import load_recipe
    from lowland.platform.search.same import refuse_another
    from lowland.platform.search.start import begin, changed
    from lowland.platform.search.tune import tune

    named = [f"name={json.dumps(name)}"] if name is not None else []
    loaded = load_recipe(recipe, [*(overrides or []), *named])
    said: dict[str, Any] = {
        "metric": metric, "direction": direction, "sampler": sampler, "policy": policy, "seed": seed,
        "first_rung": first_rung,
        "constraints": constraint, "intervals": intervals, "perturb": perturb, "price": price, "database": database,
        "warm_start": warm_start, "related": related or None, "known_lr": known_lr,
    }  # fmt: skip
    given = {option: value for option, value in said.items() if value not in (None, [])}
    if resume:
        if database == os.environ.get("LOWLAND_DATABASE"):
            given.pop("database", None)  # said for searches that begin; this one knows where its trials lie
        setting = changed(loaded.storage, loaded.name, trials=trials, budget=budget, parallel=parallel)
        refuse_another(setting, loaded, spaces=space, **given)
    else:
        setting = begin(loaded, space or ["auto"], trials=trials, budget=budget, parallel=parallel, **given)
    raise typer.Exit(tune(setting, address=address, console=output()).exit_code)
