"""Preparing data as a whole, by any way of mapping a function over work units."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from lowland.trainers.data.assembly import Assembly, Prepared, check_out
from lowland.trainers.data.plan import Plan, PrepareSettings, make_plan
from lowland.trainers.data.tokenizers import load_tokenizer
from lowland.trainers.data.unit import UnitResult, prepare_unit
from lowland.trainers.data.units import Unit

UnitTask = Callable[[Unit], UnitResult]
UnitMap = Callable[[UnitTask, Sequence[Unit]], Generator[UnitResult]]
"""Applies the task to the units, in whatever processes, and gives back the results in their order.

It is closed when no more results are wanted, and has then ended what it started."""


def one_by_one(task: UnitTask, units: Sequence[Unit]) -> Generator[UnitResult]:
    """Prepares the units in this process, one after another."""
    yield from map(task, units)


def prepare(
    settings: PrepareSettings, out: str | Path, *, overwrite: bool = False, map_units: UnitMap = one_by_one
) -> Prepared:
    """Reads, tokenises and packs the sources into the folder `out`, which appears only when it is complete.

    The result depends on inputs and settings alone, not on `map_units`.

    Raises:
        DataError: a setting, a source or the tokenizer is wrong, `out` exists, or nothing usable was read.
    """
    check_out(Path(out), overwrite=overwrite)
    plan, sources, units = make_plan(settings, load_tokenizer(settings.tokenizer))
    while True:
        with Assembly(Path(out)) as assembly:
            _collect(assembly, plan, units, map_units)
            # Known only now; so few documents that none falls below the bound are soon prepared again.
            below = assembly.held_out_below(plan)
            if below == plan.held_out_below:
                return assembly.finish(plan, sources)
        plan = replace(plan, held_out_below=below)


def _collect(assembly: Assembly, plan: Plan, units: Sequence[Unit], map_units: UnitMap) -> None:
    task = partial(prepare_unit, plan, folder=assembly.folder)
    with closing(map_units(task, units)) as results:
        for unit, result in zip(units, results, strict=True):
            assembly.add(unit, result, strict=plan.settings.strict)
