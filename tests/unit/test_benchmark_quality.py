"""The comparison of optimizers: intervals, an equal tuning budget, going on, and gradients that are really counted."""

import json
from collections.abc import Callable
from math import log2
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quality_methods import ENTRIES, _at, build, factor, train
from quality_statistics import (
    RATES,
    TUNING_SEED,
    Cell,
    Interval,
    Result,
    Results,
    Store,
    interval,
    markdown,
    next_cells,
    paired,
    row,
)
from quality_tasks import TASKS, Images, Text, tiny

SEEDS = 3


def result(quality: float | None, error: str = "") -> Result:
    return Result(quality, quality, 1.0, 10, 20, 0.5, error)


def everything(
    centre: float, quality: Callable[[Cell], Result], *, larger: bool, results: Results, method: str = "m"
) -> list[Cell]:
    trained = []
    while cells := next_cells("t", method, centre, SEEDS, results, larger=larger):
        trained += cells
        results |= {cell: quality(cell) for cell in cells}
    return trained


def test_an_interval_is_students() -> None:
    # s = sqrt(2.5), t(0.975, 4) = 2.776445, half = 2.776445 * 1.581139 / sqrt(5)
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(1.963243, abs=1e-6)


def test_an_interval_of_two_values_has_one_degree_of_freedom() -> None:
    # t(0.975, 1) = 12.7062, s / sqrt(2) = 1
    assert interval([1.0, 3.0]).half == pytest.approx(12.7062, abs=1e-4)


def test_one_value_has_no_interval() -> None:
    assert interval([2.0]) == Interval(2.0, None)


def test_differences_are_taken_seed_by_seed() -> None:
    # Differences 1, 2, 3; t(0.975, 2) = 4.302653, s / sqrt(3) = 0.577350
    found = paired({3: 33.0, 1: 11.0, 2: 22.0, 4: 7.0}, {1: 10.0, 2: 20.0, 3: 30.0, 9: 1.0})
    assert found.mean == 2.0
    assert found.half == pytest.approx(2.484138, abs=1e-6)


@given(peak=st.floats(-8, 8), larger=st.booleans(), broken=st.integers(-8, 8))
def test_every_method_tries_as_many_rates_and_trains_with_the_best(peak: float, larger: bool, broken: int) -> None:
    def quality(cell: Cell) -> Result:
        power = log2(cell.rate / 0.01)
        distance = abs(power - peak)
        return result(None if power > broken else -distance if larger else distance)

    results = Results()
    trained = everything(0.01, quality, larger=larger, results=results)
    tried = [cell for cell in trained if cell.seed == TUNING_SEED]
    finals = [cell for cell in trained if cell.seed != TUNING_SEED]
    assert len(tried) == len(set(tried)) == RATES
    assert sorted(cell.seed for cell in finals) == [1, 2, 3]
    sound = {cell.rate: value for cell in tried if (value := results[cell].tuning) is not None}
    if sound:
        assert sound[finals[0].rate] == (max if larger else min)(sound.values())
    else:
        assert finals[0].rate == min(cell.rate for cell in tried)


def test_a_second_call_trains_only_what_is_missing(tmp_path: Path) -> None:
    path, whole = tmp_path / "q.json", Results()
    everything(1.0, lambda cell: result(abs(log2(cell.rate)) + cell.seed), larger=False, results=whole)
    first = Store(path, {"t": {"steps": 10}})
    for cell in list(whole)[:4]:
        first.add(cell, whole[cell])
    second = Store(path, {"t": {"steps": 10}})
    assert second.results == dict(list(whole.items())[:4])
    rest = everything(1.0, whole.__getitem__, larger=False, results=second.results)
    assert rest == list(whole)[4:]


def test_what_failed_is_trained_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "q.json", {})
    store.add(Cell("t", "m", 1.0, 0), result(None, "TypeError: no"))
    store.add(Cell("t", "m", 4.0, 0), result(None))
    assert set(Store(tmp_path / "q.json", {}).results) == {Cell("t", "m", 4.0, 0)}


def test_cells_of_other_settings_are_refused(tmp_path: Path) -> None:
    Store(tmp_path / "q.json", {"t": {"steps": 10}}).add(Cell("t", "m", 1.0, 0), result(1.0))
    with pytest.raises(SystemExit, match="'steps': 10"):
        Store(tmp_path / "q.json", {"t": {"steps": 11}})


@pytest.mark.parametrize(
    ("shift", "noise", "larger", "verdict"),
    [
        (0.5, 0.0, True, "better"),
        (0.5, 0.0, False, "worse"),
        (-0.5, 0.0, True, "worse"),
        (-0.5, 0.0, False, "better"),
        (0.1, 1.0, True, "not told apart"),
    ],
)
def test_losses_are_told_as_gains_are(shift: float, noise: float, larger: bool, verdict: str) -> None:
    results = Results()
    everything(1.0, lambda cell: result(float(cell.seed)), larger=larger, results=results, method="base")
    everything(
        1.0,
        lambda cell: result(cell.seed + shift + noise * (cell.seed - 2)),
        larger=larger,
        results=results,
    )
    found = row("t", "m", "base", results, larger=larger)
    assert found is not None
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(shift)
    assert found.verdict == verdict
    assert verdict in markdown([found])


def test_a_diverged_seed_is_not_averaged_away() -> None:
    results = Results()
    everything(1.0, lambda cell: result(1.0), larger=True, results=results, method="base")
    everything(1.0, lambda cell: result(None if cell.seed == 2 else 9.0), larger=True, results=results)
    found = row("t", "m", "base", results, larger=True)
    assert found is not None
    assert (found.verdict, found.without) == ("diverged", 1)


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    results = Results()
    everything(1.0, lambda cell: result(None if cell.seed > 1 else 2.0), larger=True, results=results)
    store = Store(tmp_path / "q.json", {})
    for cell, value in results.items():
        store.add(cell, value)
    found = row("t", "m", None, results, larger=True)
    assert found is not None
    store.close([found], {"device": "CPU"})
    json.loads((tmp_path / "q.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_rates_rise_then_fall_to_zero_or_stay() -> None:
    falling = [factor(step, 100, constant=False) for step in range(100)]
    assert falling[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert falling[10] == 1.0
    assert falling[55] == pytest.approx(0.5)
    assert falling[99] < 1e-3
    assert [factor(step, 100, constant=True) for step in range(9, 100)] == [1.0] * 91


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    path = tmp_path_factory.mktemp("data") / "text.npz"
    np.savez(path, text=np.arange(8000, dtype=np.uint8))
    return Text(path, tiny(TASKS["lm"]), torch.device("cpu"))


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.rows_exist])
def test_gradients_are_as_many_as_stated(name: str, text: Text) -> None:
    entry, task = ENTRIES[name], tiny(TASKS["lm"])
    found = train(entry, task, text, Cell("lm", name, entry.centre(task), 1), torch.device("cpu"))
    assert found.error == ""
    assert found.quality is not None
    assert found.gradients == entry.steps(task) * entry.gradients
    if entry.equal_gradients:
        assert task.steps - entry.gradients < found.gradients <= task.steps


def test_a_seed_fixes_weights_and_batches_for_every_method(text: Text) -> None:
    task, device = tiny(TASKS["lm"]), torch.device("cpu")
    losses = []
    for name in ("adamw", "sgd"):
        entry = ENTRIES[name]
        losses.append(train(entry, tiny(TASKS["lm"]), text, Cell("lm", name, 0.0, 7), device).train_loss)
    assert losses[0] == losses[1] != train(ENTRIES["sgd"], task, text, Cell("lm", "sgd", 0.0, 8), device).train_loss


def test_weights_come_back_to_the_bit(text: Text) -> None:
    model = text.model()
    optimizer = build(ENTRIES["tam"], model, 0.1, 0.0)
    before = [p.detach().clone() for p in model.parameters()]
    with _at(optimizer, lambda fragment: torch.full_like(fragment.tensor, 3.0)):
        assert all((p == 3.0).all() for p in model.parameters())
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))


def test_images_are_cropped_and_flipped_but_not_mixed(tmp_path: Path) -> None:
    # Every image has one grey of its own, which is its label.
    greys = np.arange(10, dtype=np.uint8).repeat(4)
    images = np.broadcast_to(greys[:, None, None, None] + 1, (40, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", train=images, train_labels=greys, test=images, test_labels=greys)
    data = Images(tmp_path / "i.npz", tiny(TASKS["resnet"]), torch.device("cpu"))
    seen = []

    def model(batch: torch.Tensor) -> torch.Tensor:
        seen.append((batch * data._deviation[:, None, None] + data._mean[:, None, None]).round().amax((1, 2, 3)).long())
        return 50.0 * torch.nn.functional.one_hot(seen[-1] - 1, 10).float()

    loss = data.loss(model, torch.Generator().manual_seed(0))
    assert float(loss()) == pytest.approx(0.0, abs=1e-6)
    assert float(loss()) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(seen[0], seen[1])
    assert data.quality(model, "test") == 100.0
