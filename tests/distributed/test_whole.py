"""Methods that need whole tensors compute the same under ZeRO, where no rank has any, as in one process."""

from pathlib import Path
from typing import Any

import pytest
from support.full import full
from support.processes import Ranks
from support.training import TORCH, batch, config, initial_weights, outcome, outcome_until, weights, worst_update, zero

pytestmark = pytest.mark.processes

STEPS, STOP = 20, 11
SHORT = {"length": f"{STEPS} steps", "evaluation": {"every": None}}
MUON = {
    "name": "mixed",
    "lr": 1e-3,
    "rules": [
        {"kinds": ["matrices"], "optimizer": {"name": "muon"}},
        {"match": "*", "optimizer": {"name": "adamw"}},
    ],
}
EXACT = {
    "adafactor": {"name": "adafactor", "lr": 1e-2},
    "rotated layers": {"name": "rotated_adam", "lr": 1e-3, "basis": "layer", "block": 64},
    "weight sharing": {"name": "adamw", "lr": 1e-3, "weight_sharing": {"strength": 1.0, "l1": 1e-5}},
}
"""Where rounding stays rounding."""
AMPLIFYING = {
    "soap": {"name": "soap", "lr": 1e-3, "precondition_frequency": 5, "eps": 1e-5},
    "singular basis": {"name": "rotated_adam", "lr": 1e-3, "basis": "svd", "refresh": 5, "eps": 1e-4},
    "muon": MUON,
}
"""Where rounding grows: singular vectors of nearly equal singular values turn with the last digit of a gradient, and
torch's Muon iterates in bfloat16.  How much is measured: the same training in one process with the batch cut otherwise.
"""


def changes(optimizer: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**SHORT, "optimizer": optimizer, **others}


class Reference:
    """A training in one process without any library around it."""

    def __init__(self, data: Path, folder: Path, optimizer: dict[str, Any]) -> None:
        self._data, self._folder, self._optimizer = data, folder, optimizer
        self._initial = initial_weights(config(data))
        outcome(data, folder / "reference", changes(optimizer, **TORCH))
        self._weights = weights(folder / "reference", STEPS)

    def distance(self, folder: Path) -> float:
        """Of another training's weights, relative to how far they moved."""
        return worst_update(weights(folder, STEPS), self._weights, self._initial)

    def noise(self) -> float:
        """What other cuts of the batch into micro-batches change."""
        found = []
        for size in (1, 4, 8):
            folder = self._folder / f"micro-batches of {size}"
            outcome(self._data, folder, changes(self._optimizer, **TORCH, **batch(size)))
            found.append(self.distance(folder))
        return max(found)


@pytest.mark.parametrize("name", list(map(full, EXACT)))
def test_the_same_at_every_stage(two: Ranks, name: str, data: Path, tmp_path: Path) -> None:
    reference = Reference(data, tmp_path, EXACT[name])
    for stage in (0, 1, 2, 3):
        folder = tmp_path / str(stage)
        two(outcome, data, folder, changes(EXACT[name], **zero(stage)))
        assert reference.distance(folder) < 1e-5, stage


@pytest.mark.parametrize("name", ["soap", *map(full, sorted(AMPLIFYING.keys() - {"soap"}))])
def test_the_same_at_every_stage_as_far_as_it_is_defined(two: Ranks, name: str, data: Path, tmp_path: Path) -> None:
    reference = Reference(data, tmp_path, AMPLIFYING[name])
    noise = reference.noise()
    assert noise < 0.1, "or the comparison would say nothing"
    for stage in (0, 1, 2, 3):
        folder = tmp_path / str(stage)
        two(outcome, data, folder, changes(AMPLIFYING[name], **zero(stage)))
        assert reference.distance(folder) < max(2 * noise, 1e-5), stage


RESUMED = {
    **EXACT,
    **AMPLIFYING,
    "nowcast": {"name": "adamw", "lr": 1e-3, "nowcast": {"period": 15, "snapshots": 5, "method": "geometric"}},
}
"""With nowcast, three snapshots are taken before the stop, and the jump comes after it."""


@pytest.mark.parametrize("name", [full("adafactor"), full("soap"), full("muon"), "nowcast"])
def test_state_saved_by_two_ranks_goes_on_elsewhere(
    one: Ranks, two: Ranks, name: str, data: Path, tmp_path: Path
) -> None:
    optimizer = RESUMED[name]
    reference = Reference(data, tmp_path, optimizer)
    allowed = max(2 * reference.noise(), 1e-5) if name in AMPLIFYING else 1e-5
    for other in ("stage 3", "torch"):
        folder = tmp_path / other
        two(outcome_until, data, folder, changes(optimizer, **zero(2)), STOP)
        if other == "torch":
            resumed = outcome(data, folder, changes(optimizer, **TORCH))
        else:
            (resumed,) = one(outcome, data, folder, changes(optimizer, **zero(3)))
        assert resumed.result.resumed_from == STOP
        assert reference.distance(folder) < allowed, other
