"""A training that is cut into parts by `until` is the whole training."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from support.corpus import prepared
from support.training import TORCH, Outcome, config, states, train

PARTS = (Fraction(1, 7), Fraction(3, 7), Fraction(1))
"""Of 30 steps: to the 5th, the 13th, the end."""
CHANGES = {**TORCH, "evaluation": {"every": None}, "checkpoints": {"every": None, "keep_last": 9}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("until") / "data")


def part(data: Path, folder: Path, until: Fraction) -> Outcome:
    result, recorder = train(config(data, **CHANGES), folder, export=True, until=until)
    return Outcome(recorder.values, recorder.events, result)


@pytest.fixture(scope="module")
def parts(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    folder = tmp_path_factory.mktemp("parts")
    return folder, [part(data, folder, until) for until in PARTS]


def test_each_part_evaluates_saves_and_ends_at_its_step(parts: tuple[Path, list[Outcome]]):
    folder, outcomes = parts
    assert [o.result.step for o in outcomes] == [5, 13, 30]
    assert [o.result.resumed_from for o in outcomes] == [None, 5, 13]
    assert [list(o.values["eval/loss"]) for o in outcomes] == [[5], [13], [30]]
    assert not any(o.result.interrupted for o in outcomes)
    assert [(folder / "checkpoints" / f"step-{step:08d}").is_dir() for step in (5, 13, 30)] == [True] * 3


def test_the_parts_are_the_whole_bit_for_bit(parts: tuple[Path, list[Outcome]], data: Path, tmp_path: Path):
    whole = part(data, tmp_path, Fraction(1))
    rates = {step: rate for o in parts[1] for step, rate in o.values["train/lr"].items()}
    losses = {step: loss for o in parts[1] for step, loss in o.losses.items()}
    assert rates == whole.values["train/lr"], "the schedule belongs to the whole length"
    assert losses == whole.losses
    here, there = states(tmp_path, 30), states(parts[0], 30)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[kind][name], there[kind][name]) for kind in here for name in here[kind])


def test_only_the_end_exports(data: Path, tmp_path: Path):
    part(data, tmp_path, Fraction(1, 10))
    assert not (tmp_path / "model").exists()
    changed = config(data, **{**CHANGES, "checkpoints": {"every": None, "export": True}})
    train(changed, tmp_path, export=True)
    assert (tmp_path / "model").is_dir()


def test_a_part_that_was_reached_is_not_trained_again(data: Path, tmp_path: Path):
    first = part(data, tmp_path, Fraction(1, 10))
    again = part(data, tmp_path, Fraction(1, 10))
    assert "train/loss" not in again.values
    assert again.result.metrics == first.result.metrics
