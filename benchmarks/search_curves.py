"""Learning curves for simulated searches: the LCBench surrogate, or any table of recorded curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lowland.platform.search.objectives import Direction

Row = npt.NDArray[np.float64]
OUTPUTS = ("time", "val_accuracy", "val_cross_entropy", "val_balanced_accuracy")
DEVELOPED_ON = 16
"""The first tasks of the config space, on which methods may be developed; reports are on the others."""


class LCBench:
    """One task of the YAHPO surrogate of LCBench (Pfisterer et al., 2022): epochs 1 to 52, accuracy in percent.

    Args:
        folder: holds model.onnx, config_space.json, encoding.json.
        task: OpenML task id.
    """

    direction: Direction = "maximize"

    def __init__(self, folder: Path, task: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._code = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][task]
        self.space, self.full = _space(folder)
        self._cache: dict[tuple[Any, ...], Row] = {}

    def values(self, parameters: Mapping[str, Any], start: int, end: int) -> list[float]:
        """Validation accuracy after each epoch."""
        return [float(value) for value in self._table(parameters)[start:end, 1]]

    def seconds(self, parameters: Mapping[str, Any], start: int, end: int) -> float:
        """Training time of these epochs; the surrogate's time is cumulative."""
        time = np.maximum.accumulate(self._table(parameters)[:, 0])
        return float(time[end - 1] - (time[start - 1] if start else 0.0))

    def _table(self, parameters: Mapping[str, Any]) -> Row:
        """[epochs, OUTPUTS]"""
        key = tuple(parameters[name] for name in self.space)
        if key not in self._cache:
            epochs = np.arange(1, self.full + 1)
            inputs = np.zeros((self.full, 8), dtype=np.float32)
            inputs[:, 0] = epochs
            order = (
                "batch_size",
                "learning_rate",
                "momentum",
                "weight_decay",
                "num_layers",
                "max_units",
                "max_dropout",
            )
            inputs[:, 1:] = [parameters[name] for name in order]
            tasks = np.full((self.full, 1), self._code, dtype=np.int32)
            self._cache[key] = self._session.run(None, {"x_cat": tasks, "x_cont": inputs})[0][:, :4].astype(np.float64)
        return self._cache[key]


def tasks(folder: Path) -> list[str]:
    """The task ids, in the config space's order."""
    return list(_hyper_parameters(folder)["OpenML_task_id"]["choices"])


def _space(folder: Path) -> tuple[dict[str, BaseDistribution], int]:
    space: dict[str, BaseDistribution] = {}
    found = _hyper_parameters(folder)
    for name, field in found.items():
        if name in ("OpenML_task_id", "epoch"):
            continue
        kind = IntDistribution if field["type"] == "uniform_int" else FloatDistribution
        space[name] = kind(field["lower"], field["upper"], log=field["log"])
    return space, int(found["epoch"]["upper"])


def _hyper_parameters(folder: Path) -> dict[str, dict[str, Any]]:
    fields = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
    return {field["name"]: field for field in fields}


class CurveTable:
    """Recorded curves from a Parquet file: one row per configuration.

    Columns: the parameters; `curve`, a list with the metric after each unit of resource (lower is better); `seconds`,
    optional, the time of one unit.  A search is given the nearest recorded configuration to what it asks for.

    Args:
        path: the file.
    """

    direction: Direction = "minimize"

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        self._curves = np.array(table.column("curve").to_pylist(), dtype=np.float64)
        self.full = self._curves.shape[1]
        has_seconds = "seconds" in table.column_names
        self._seconds = np.array(table.column("seconds").to_pylist()) if has_seconds else np.ones(len(self._curves))
        names = [name for name in table.column_names if name not in ("curve", "seconds")]
        columns = {name: table.column(name).to_pylist() for name in names}
        self.space = {name: _distribution(values) for name, values in columns.items()}
        self._points = np.stack([_scaled(self.space[name], values) for name, values in columns.items()], axis=1)

    def values(self, parameters: Mapping[str, Any], start: int, end: int) -> list[float]:
        """The recorded metric."""
        return [float(value) for value in self._curves[self._nearest(parameters), start:end]]

    def seconds(self, parameters: Mapping[str, Any], start: int, end: int) -> float:
        """The recorded time."""
        return float(self._seconds[self._nearest(parameters)]) * (end - start)

    def _nearest(self, parameters: Mapping[str, Any]) -> int:
        point = np.array([_scaled(self.space[name], [parameters[name]])[0] for name in self.space])
        return int(((self._points - point) ** 2).sum(1).argmin())


def _distribution(values: list[Any]) -> BaseDistribution:
    """By what was recorded: text is categorical, whole numbers are integers, wide positive ranges are logarithmic."""
    if any(isinstance(value, str | bool) for value in values):
        return CategoricalDistribution(sorted(set(values)))
    low, high = min(values), max(values)
    log = low > 0 and high / low >= 100
    if all(isinstance(value, int) for value in values):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _scaled(distribution: BaseDistribution, values: list[Any]) -> Row:
    if isinstance(distribution, CategoricalDistribution):
        return np.array([distribution.choices.index(value) for value in values], dtype=np.float64)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    transform = np.log if distribution.log else np.asarray
    low, high = transform(distribution.low), transform(distribution.high)
    scaled: Row = (transform(np.array(values, dtype=np.float64)) - low) / max(high - low, 1e-12)
    return scaled
