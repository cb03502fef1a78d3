"""A study as a table for other tools."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.platform.search.results import StudyResult, TrialResult
from lowland.trainers.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".parquet", ".csv")


def export(result: StudyResult, file: Path) -> int:
    """Writes a row for every trial and every resource at which it was measured, as Parquet or CSV.

    A trial without a measurement has one row, without resource and value.  Columns are `study`, `trial`, `status`,
    `resource`, `share` (of a whole training), `value`, `reason`, `device_seconds` and `money` (of the trial, over all
    its rows; of GPUs, or of CPUs where it held none), `began`, `ended`, then `parameter.<name>`, and where a search has
    them `metric.<name>` of further and bounded metrics, `broken` constraints, and `forked_from`, a trial.

    Returns:
        The number of rows.

    Raises:
        UserError: the file's name ends otherwise, or it cannot be written.
    """
    if file.suffix not in FORMATS:
        raise UserError(f"--out {file}: the name must end in {' or '.join(FORMATS)}")
    table = as_table(result)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(table, file)
    except OSError as error:
        raise UserError(f"--out {file} cannot be written: {error.strerror or error}") from error
    return int(table.num_rows)


def as_table(result: StudyResult) -> "pa.Table":
    """The rows as an Arrow table."""
    import pyarrow as pa

    names = _metrics(result)
    rows = [row for trial in result.trials for row in _rows(result, trial, names)]
    times, text = pa.timestamp("us"), pa.string()
    fixed = {
        "study": text,
        "trial": pa.int64(),
        "status": text,
        "resource": pa.int64(),
        "share": pa.float64(),
        "value": pa.float64(),
        "reason": text,
        "device_seconds": pa.float64(),
        "money": pa.float64(),
        "began": times,
        "ended": times,
    }
    columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in fixed.items()}
    for name in result.parameters:
        columns[f"parameter.{name}"] = _parameter([row[f"parameter.{name}"] for row in rows])
    for name in names:
        columns[f"metric.{name}"] = pa.array([row[f"metric.{name}"] for row in rows], pa.float64())
    if result.setting is not None and result.setting.constraints:
        columns["broken"] = pa.array([row["broken"] for row in rows], text)
    if result.replaced:
        columns["forked_from"] = pa.array([row["forked_from"] for row in rows], pa.int64())
    return pa.table(columns)


def _metrics(result: StudyResult) -> list[str]:
    """Names of what was measured besides the first metric."""
    return list(dict.fromkeys(name for t in result.trials for values in t.measured.values() for name in values))


def _rows(result: StudyResult, trial: TrialResult, names: list[str]) -> list[dict[str, Any]]:
    same = {
        "study": result.name,
        "trial": trial.number,
        "status": trial.status,
        "reason": trial.reason or None,
        "device_seconds": trial.cost if trial.accounts else None,
        "money": result.price.of(trial.cost) if trial.accounts and result.price is not None else None,
        "began": trial.began,
        "ended": trial.ended,
        "forked_from": trial.origin.parent if trial.origin is not None else None,
        **{f"parameter.{name}": trial.parameters.get(name) for name in result.parameters},
    }
    points: list[tuple[int | None, float | None]] = [*sorted(trial.curve.items())] or [(None, None)]
    return [
        {
            **same,
            "resource": resource,
            "share": None if resource is None else resource / result.full,
            "value": value,
            "broken": "; ".join(trial.breaks.get(resource or 0, ())) or None,
            **{f"metric.{name}": trial.measured.get(resource or 0, {}).get(name) for name in names},
        }
        for resource, value in points
    ]


def _parameter(values: list[Any]) -> "pa.Array":
    """Numbers, truth values or text where all values are; else JSON."""
    import pyarrow as pa

    for kind, column in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (str, pa.string())):
        if all(value is None or type(value) is kind for value in values):
            return pa.array(values, column)
    if all(type(value) in (int, float, type(None)) for value in values):
        return pa.array(values, pa.float64())
    return pa.array([json.dumps(value) for value in values], pa.string())


def _write(table: "pa.Table", file: Path) -> None:
    from pyarrow import csv, parquet

    if file.suffix == ".csv":
        csv.write_csv(table, str(file))
    else:
        parquet.write_table(table, str(file))
