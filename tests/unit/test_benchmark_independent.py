"""The comparison with implementations by others: what needs no package that the tests do not have anyway."""

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import independent_optimizers as independent
import independent_trainings as by
import pytest
import torch
from independent_pairs import NONE, PAIRS, Pair

from lowland.optim.methods import AROUND, METHODS

AT_HAND = [pair for pair in PAIRS if pair.package in ("torch", "numpy", "scikit-learn")]
PLAIN = Pair("sgd", "torch", "SGD", by.ours("sgd", lr=0.1), by.theirs("SGD", lr=0.1))


def test_every_method_is_compared_or_said_to_have_nothing_beside_it() -> None:
    compared = {pair.method.partition(" ")[0] for pair in PAIRS}
    assert compared.isdisjoint(NONE)
    assert compared | set(NONE) == METHODS.keys() | AROUND.keys()


@pytest.mark.parametrize("pair", AT_HAND, ids=lambda pair: f"{pair.method}-{pair.what}")
def test_parts_of_torch_numpy_and_scikit_learn_give_the_same(pair: Pair) -> None:
    row = independent.compare(pair, steps=20)
    assert row.verdict == "equal"
    assert row.good


def test_another_rate_is_seen() -> None:
    row = independent.compare(replace(PLAIN, theirs=by.theirs("SGD", lr=0.1001)), steps=5)
    assert (row.verdict, row.good) == ("DIFFERS", False)
    assert row.distances[0] == pytest.approx(1e-3, rel=0.2)


def test_what_should_differ_and_does_not_is_seen() -> None:
    row = independent.compare(replace(PLAIN, differs="another method"), steps=5)
    assert (row.verdict, row.good) == ("EQUAL, and should not be", False)


def test_what_fails_is_named_and_fails() -> None:
    row = independent.compare(replace(PLAIN, theirs=by.theirs("SGD", lr=-1.0)), steps=5)
    assert row.verdict == "FAILED: ValueError: Invalid learning rate: -1.0"
    assert not row.good


def test_missing_packages_are_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    threads = torch.get_num_threads()
    monkeypatch.setattr(independent, "version", version)
    monkeypatch.setattr(sys, "argv", ["independent_optimizers.py"])
    try:
        with pytest.raises(SystemExit) as end:
            independent.main()
    finally:
        torch.set_num_threads(threads)
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert printed.count("| missing: pytorch-optimizer |") == sum(pair.package == "pytorch-optimizer" for pair in PAIRS)
    assert printed.splitlines()[-1] == f"missing: {' '.join(sorted({pair.package for pair in PAIRS}))}"
