"""The files that tell what a search found."""

import io
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from lowland.platform.search.best import best_recipe
from lowland.platform.search.export import export
from lowland.platform.search.importance import importances
from lowland.platform.search.leaderboard import print_study
from lowland.platform.search.plots import page
from lowland.platform.search.results import StudyResult
from lowland.trainers.errors import UserError

PLOTS = "plots.html"


def write_report(study: StudyResult, folder: Path) -> list[Path]:
    """Writes summary, plots, trials and, if there is one, the best recipe.

    Args:
        study: what `read_study` gives.
        folder: made if need be.

    Raises:
        UserError: the folder cannot be written.

    Returns:
        The files: `summary.txt`, `plots.html`, `trials.parquet`, `best-recipe.yaml`; with several metrics, in place of
        the last, a recipe for each trial of the front in `front/`.
    """
    weights = importances(study)
    text = io.StringIO()
    print_study(study, weights, Console(file=text, width=120))
    files = {"summary.txt": text.getvalue(), PLOTS: page(study, weights)}
    with suppress(UserError):  # nothing was found, or the recipe's data are gone
        files |= {f"front/trial-{t.number:04}.yaml": best_recipe(study, t.number) for t in study.front}
        if not study.front:
            files["best-recipe.yaml"] = best_recipe(study)
    for name, content in files.items():
        _write(folder / name, content)
    export(study, folder / "trials.parquet")
    return [*(folder / name for name in files), folder / "trials.parquet"]


def write_plots(study: StudyResult, folder: Path) -> Path:
    """Writes the page of plots.

    Raises:
        UserError: the folder cannot be written.
    """
    _write(folder / PLOTS, page(study, importances(study)))
    return folder / PLOTS


def write_recipe(study: StudyResult, file: Path, number: int | None = None) -> None:
    """Writes the best recipe, or that of a trial.

    Raises:
        UserError: there is none, or the file cannot be written.
    """
    _write(file, best_recipe(study, number))


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error
