"""What `lowland tune` may be told of a search."""

from typing import Annotated

import typer

from lowland.platform.cli.arguments import option

SEARCH = "Search"

Spaces = Annotated[
    list[str] | None,
    option(
        "Search space: one that comes with lowland, a YAML file, or auto. Repeatable.",
        SEARCH,
        metavar="SPACE",
        shown="auto",
    ),
]
Trials = Annotated[
    int | None, typer.Option(min=1, help="Trials that begin at most.", rich_help_panel=SEARCH, show_default=False)
]
Metrics = Annotated[
    list[str] | None,
    option(
        "What is compared: a metric of trainings, or gpu-hours, cpu-hours or seconds of a trial. Repeatable: "
        "with several the search is for the best compromises.",
        SEARCH,
        metavar="METRIC[:maximize]",
        shown="eval/loss",
    ),
]
Direction = Annotated[
    str | None, option("Where a single metric is to go.", SEARCH, metavar="minimize|maximize", shown="minimize")
]
Constraints = Annotated[
    list[str] | None,
    option(
        "What trials must keep, as 'perf/gpu_memory_gib <= 70'; others are never the best. Repeatable.",
        SEARCH,
        metavar="'METRIC <= VALUE'",
    ),
]
Sampler = Annotated[
    str | None,
    option(
        "Proposes parameters: multi-fidelity, random, quasi-random, tpe, nsga2, ...",
        SEARCH,
        shown="multi-fidelity; tpe with several metrics",
    ),
]
PolicyName = Annotated[
    str | None,
    option(
        "How far trials are trained: promotion, stopping, median, hyperband, fixed, none (whole), or pbt (a "
        "population of --trials members, in which copies of the best replace the worst).",
        SEARCH,
        shown="promotion; none with several metrics",
    ),
]
FirstRung = Annotated[
    str | None,
    option(
        "Where in a training trials are first compared.",
        SEARCH,
        metavar="PERCENT",
        shown="6%, or where the longest warm-up that trials may have is over",
    ),
]
Intervals = Annotated[int | None, option("Parts of a training after which --policy pbt compares.", SEARCH, shown="8")]
Perturb = Annotated[
    list[str] | None,
    option(
        "What copies of --policy pbt change; by default all that may change during a training. Repeatable.",
        SEARCH,
        metavar="PARAMETER",
    ),
]
Seed = Annotated[int | None, option("Of the sampler.", SEARCH, shown="0")]
WarmStart = Annotated[
    list[str] | None,
    option(
        "Begin with the trainings of an earlier study (its name or folder), of an MLflow experiment "
        "(mlflow:NAME) or run (mlflow:ID): those that fit are trials, and cost nothing. Repeatable.",
        SEARCH,
        metavar="STUDY|mlflow:RUNS",
    ),
]
Related = Annotated[
    bool,
    option(
        "The trainings of --warm-start are of another task: they only tell where to look first.",
        SEARCH,
        flag="--related",
    ),
]
KnownRate = Annotated[
    str | None,
    option(
        "A learning rate that was good for another width, batch (tokens a step) or number of tokens: rules "
        "move it to this recipe, and it is where to look first.",
        SEARCH,
        metavar="2e-3@width=256,tokens=1e9",
    ),
]
Price = Annotated[
    str | None,
    option(
        "Of a GPU-hour (a CPU-hour if trainings hold no GPUs); --budget may then be in this currency.",
        SEARCH,
        metavar="2.5usd",
    ),
]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL|FILE",
        help="Where the trials lie, instead of a journal in the study's folder: sqlite:///trials.db, "
        "postgresql://user@host/name, or the file of a journal.",
        envvar="LOWLAND_DATABASE",
        show_envvar=True,
        rich_help_panel="Run",
        show_default=False,
    ),
]
StudyName = Annotated[str | None, option("Name of the study, instead of the recipe's.", "Recipe")]
Resume = Annotated[
    bool,
    option(
        "Go on with the study of this name; --trials, --budget and --parallel replace what it had.",
        "Run",
        flag="--resume",
    ),
]
