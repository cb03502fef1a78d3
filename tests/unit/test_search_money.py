"""What a search costs: a price, a budget in its currency, and where both are told."""

import io

import pyarrow.parquet
import pytest
from recipe_files import write_recipe
from rich.console import Console

from lowland.platform.recipe import load_recipe
from lowland.platform.search.export import export
from lowland.platform.search.leaderboard import print_study
from lowland.platform.search.ledger import Budget, Price, metrics_of, total
from lowland.platform.search.results import StudyResult, TrialResult
from lowland.platform.search.start import begin, changed
from lowland.platform.search.table import State, state_line, state_table
from lowland.platform.search.trials import TrialView
from lowland.trainers.errors import UserError


def account(seconds: float, gpus: int) -> dict[str, float]:
    same = {"startup": 0.0, "attempts": 1, "training": seconds, "step": 1, "tokens": 0.0, "epochs": 0.0}
    return {**same, "seconds": seconds, "gpus": gpus, "cpus": 8.0, "trainings": 1.0}


def trial(number: int, accounts: list[dict[str, float]], source: str = "") -> TrialResult:
    cost = sum(a["seconds"] * (a["gpus"] or a["cpus"]) for a in accounts)
    return TrialResult(
        number, "finished", {"x": 0.5}, {}, {51: 1.0 + number}, 51, "", source, accounts, cost, None, None
    )


@pytest.mark.parametrize(
    ("text", "amount", "currency"), [("2.5usd", 2.5, "usd"), (" 3 EUR ", 3.0, "EUR"), ("2", 2.0, ""), ("2$", 2.0, "$")]
)
def test_prices(text, amount, currency):
    assert Price.parse(text) == Price(amount, currency)


@pytest.mark.parametrize("text", ["", "$", "0usd", "-2usd", "usd", "2.5 us dollars", "two"])
def test_prices_that_are_none(text):
    with pytest.raises(UserError, match="write a positive number and the currency"):
        Price.parse(text)


def test_a_budget_may_be_money():
    price = Price.parse("2.5usd")
    budget = Budget.parse("40usd", price)
    assert budget.device_seconds == 40 / 2.5 * 3600
    ledger = total([[account(1800.0, 2), account(900.0, 0)]])
    assert ledger.device_seconds == 1800 * 2 + 900 * 8
    assert ledger.spent(budget) == 2.5 * 3
    assert Budget.parse("3gpu-hours", price).device_seconds == 3 * 3600
    assert Budget.parse("3 epochs", price).device_seconds is None
    for text, given in (("40usd", None), ("40eur", price), ("40money", price), ("40usd", Price.parse("2.5"))):
        with pytest.raises(UserError, match=r"--budget 40\w+: write a positive number and a unit"):
            Budget.parse(text, given)
    with pytest.raises(UserError, match=r"with --price 2\.5usd also usd"):
        Budget.parse("40usd")


def test_metrics_of_the_studys_run():
    ledger = total([[account(3600.0, 2)], [account(1800.0, 2)]])
    values = metrics_of(ledger, Price.parse("2usd"), 2)
    assert (values["search/money"], values["search/money_per_trial"]) == (6.0, 3.0)
    assert values["search/gpu_seconds"] == 3 * 3600
    assert "search/money" not in metrics_of(ledger, None, 2)


def test_money_is_shown_while_and_after_a_search(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "given"), [f"storage={tmp_path}"])
    setting = begin(recipe, ["adamw"], trials=4, price="2.5usd", budget="40usd")
    setting.write()
    assert changed(str(tmp_path), "small", budget="50usd").limit == Budget(50.0, "money", Price(2.5, "usd"))
    with pytest.raises(UserError, match="--budget 50eur"):
        changed(str(tmp_path), "small", budget="50eur")
    accounts = [[account(3600.0, 2)], [account(1800.0, 2)]]
    trials = [*(trial(n, a) for n, a in enumerate(accounts)), trial(2, [], source="study a, trial 0")]
    result = StudyResult("small", "eval/loss", "minimize", 51, trials, setting)
    stream = io.StringIO()
    print_study(result, [], Console(file=stream, width=120))
    shown = stream.getvalue()
    assert "7.50 usd, at 2.5 usd an hour of a GPU; 3.75 usd for each of 2 trials" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("1 ", "2 ", "3 "))][:3]
    assert [" ".join(row[4:]) for row in rows] == ["finished 5.00 usd", "finished 2.50 usd", "earlier -"]
    export(result, tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert (table["device_seconds"], table["money"]) == ([7200.0, 3600.0, None], [5.0, 2.5, None])
    state = State([], 1.0, total(accounts), 0.5, 0.0, 60.0, setting.prices)
    assert "spent 2.0 trainings, 1:30:00, 7.50 usd" in state_line(state, "eval/loss")


def test_the_live_table_fits_a_narrow_terminal():
    """With long numbers everywhere; and it says when the search is expected to end."""
    held = ["running"] * 12 + ["paused"] * 1040 + ["finished", "failed", "stopped"] * 300
    trials = [TrialView(n, {}, {51: 1.2345 + n}, status, 51) for n, status in enumerate(held)]
    ledger = total([[{**account(3e6, 64), "trainings": 1234.5}]])
    state = State(trials, 1.0, ledger, 0.4, 0.1, 300_000.0, Price(2.5, "usd"))
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=True).print(state_table(state, "eval/perplexity"))
    shown = stream.getvalue()
    assert "…" not in shown
    for text in ("1040", "600", "300", "1.2345 (trial 0)", "133333.33 usd", "40%", ", in 166:40:00"):
        assert text in shown
    done = State(trials, 1.0, ledger, 1.0, 0.1, 60.0)
    assert done.left is None


def test_a_budget_that_is_never_spent_is_refused(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path / "given"), [f"storage={tmp_path}", "name=small"])
    with pytest.raises(UserError, match="--budget 4gpu-hours: trainings of this recipe hold no GPU; take cpu-hours"):
        begin(recipe, ["adamw"], budget="4gpu-hours")
    begin(recipe, ["adamw"], trials=4).write()
    with pytest.raises(UserError, match="--budget 4gpu-hours: trainings of this recipe hold no GPU"):
        changed(str(tmp_path), "small", budget="4gpu-hours")
