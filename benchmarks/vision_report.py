"""The tables of `vision_quality.py`: no torch."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from vision_arms import ARMS
from vision_plain import Outcome

from lowland.platform.comparison.statistics import interval, paired

Values = dict[int, float]
"""By seed."""
HEAD = ("arm", "epochs", "gradients a step", "seeds", "test accuracy, %", "against its base", "seconds")


def tables(outcomes: Mapping[tuple[str, int], Outcome], *, as_markdown: bool) -> str:
    """One table for each task that something was trained of."""
    parts = []
    for task, (head, more) in EXTRA.items():
        rows = [_row(name, outcomes, more) for name in _names(task) if any(run[0] == name for run in outcomes)]
        if rows:
            parts.append(
                f"{task}\n\n{_markdown((*HEAD, *head), rows) if as_markdown else _plain((*HEAD, *head), rows)}"
            )
    return "\n\n".join(parts)


def _names(task: str) -> list[str]:
    """The arms of a task, and those that they are compared with."""
    own = {name: arm.base for name, arm in ARMS.items() if arm.task == task}
    return [name for name in ARMS if name in own or name in own.values()]


def _row(
    name: str,
    outcomes: Mapping[tuple[str, int], Outcome],
    more: Callable[[list[Outcome]], tuple[str, ...]],
) -> tuple[str, ...]:
    arm, own = ARMS[name], _of(name, outcomes)
    values = {seed: 100 * outcome.accuracy for seed, outcome in own.items()}
    difference = ""
    if arm.base is not None:
        base = {seed: 100 * outcome.accuracy for seed, outcome in _of(arm.base, outcomes).items()}
        difference = str(paired(values, base)) if values.keys() & base.keys() else ""
    seconds = f"{fmean(outcome.seconds for outcome in own.values()):.0f}"
    epochs = fmean(outcome.epochs for outcome in own.values())
    start = (name, f"{epochs:.3g}", str(arm.gradients), str(len(own)))
    return (*start, str(interval(list(values.values()))), difference, seconds, *more(list(own.values())))


def _of(name: str, outcomes: Mapping[tuple[str, int], Outcome]) -> dict[int, Outcome]:
    return {seed: outcome for (arm, seed), outcome in outcomes.items() if arm == name}


def _best(outcomes: list[Outcome]) -> tuple[str, ...]:
    """The best of all evaluations, which cannot be known without test labels, and its loss to the last."""
    best = [100 * max(accuracy for _, accuracy in outcome.curve) for outcome in outcomes]
    fall = [high - 100 * outcome.accuracy for high, outcome in zip(best, outcomes, strict=True)]
    return (str(interval(best)), str(interval(fall)))


def _smaller(outcomes: list[Outcome]) -> tuple[str, ...]:
    """Shares of weights or units that are gone, which of them, and shares of FLOPs that are left."""
    gone, left, what = [], [], ""
    for outcome in outcomes:
        # What one method says; its name does not matter.
        found = {name.split("/")[-1]: value for name, value in outcome.metrics.items() if name.startswith("methods/")}
        if "flops" not in found:
            return ("", "", "")
        what = "units" if "removed" in found else "weights"
        gone.append(100 * (found["removed"] if what == "units" else found["sparsity"]))
        left.append(100 * found["smaller_flops" if what == "units" else "sparse_flops"] / found["flops"])
    return (str(interval(gone)), what, str(interval(left)))


EXTRA: dict[str, tuple[tuple[str, ...], Callable[[list[Outcome]], tuple[str, ...]]]] = {
    "optimizers": ((), lambda outcomes: ()),
    "noise": (("best epoch, %", "lost since, %"), _best),
    "pruning": (("removed, %", "of the", "FLOPs left, %"), _smaller),
}
"""By task: further columns, and what they say."""


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    )
