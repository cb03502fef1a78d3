"""Searches that lose processes: kill -9 at random moments, and what must hold afterwards.

    python benchmarks/search_faults.py --out faults                    30 searches; goes on where it ended
    python benchmarks/search_faults.py --out faults --only raylet --rounds 3 --seed 7
    python benchmarks/search_faults.py --out faults --only "driver, own cluster" --workers 2

Searches of small trainings run on a Ray cluster of two nodes on this machine, without a dashboard, beside another Ray
cluster; those with `own cluster` are commands `lowland tune` that start theirs.  In each, processes of one kind are
killed, at moments drawn from the seed: when so many steps have been made, and up to a second later.  Kinds are the
driver, a Ray Train controller, a worker, the second node's raylet, a process of Ray Tune that waits for a segment, and
the dispatcher.  Where the driver ends by that, another one goes on.  Then the study's journal, the trials' logs, MLflow
and the cluster are looked at (`faults_checks.py`); whatever is wrong is printed and makes the command fail.
"""

import argparse
import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from common import circumstances, write_data, write_json
from faults_checks import MADE, Found, check, written
from faults_cluster import Driver, Nodes, kill_one
from rich.console import Console
from rich.table import Table

OWN = "driver, own cluster"
KINDS = ("driver", "controller", "worker", "raylet", OWN, "waiter", "dispatcher")
ORDER = ("worker", "controller", "raylet", "driver", "worker", "waiter", "controller", "raylet", "driver", "dispatcher")
"""What a round kills, by turns."""
TRIALS, STEPS = 5, 51
MOST_STEPS = 60
"""An undisturbed search makes 63."""
BACK_SECONDS = 5.0
"""After which a killed node is started again."""
GROUPS = 2
"""Of workers; between searches nothing else may hold a placement group."""
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}
SPACE = "description: A rate.\nparameters:\n  optimizer.lr: {type: float, low: 3.0e-4, high: 3.0e-2, log: true}\n"


@dataclass
class Round:
    """One search."""

    number: int
    kind: str
    seed: int
    workers: int = 1
    """Of a trial."""
    kills: list[int] = field(default_factory=list)
    """Steps that had been made."""
    drivers: int = 0
    seconds: float = 0.0
    found: Found = field(default_factory=Found)

    @property
    def name(self) -> str:
        """Of the study."""
        return f"search-{self.number:03}"


def main() -> None:
    """Runs the rounds that are not there yet, and prints all."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes are ended
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    rounds = [read_round(r) for r in json.loads(results.read_text())] if results.exists() else []
    left = sorted(set(range(options.rounds)) - {r.number for r in rounds})
    if left:
        prepare(options.out, options)
        with Nodes(options.out, options.workers, options.ports) as nodes:
            driver = Driver(nodes, options.out, TRIALS)
            for number in left:
                rounds.append(play(number, driver, nodes, options))
                write_json(results, rounds)
                told = rounds[-1]
                what = f"killed {told.kind} after {told.kills} steps, {told.seconds:.0f} s"
                print(f"{number} {what}: {told.found.wrong or 'nothing wrong'}", flush=True)
            rounds[-1].found.wrong += driver.finish()
            write_json(results, rounds)
    for folder in options.also:
        rounds += [read_round(r) for r in json.loads((folder / "results.json").read_text())]
    show(rounds, options)
    sys.exit(any(r.found.wrong for r in rounds))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; a short path")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of all rounds")
    parser.add_argument("--also", type=Path, action="append", default=[], help="another --out, shown as well")
    parser.add_argument("--only", choices=KINDS, help="kill nothing else")
    parser.add_argument("--workers", type=int, default=1, help="of a trial")
    parser.add_argument("--pause", type=float, default=0.15, help="seconds that a step waits")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a round may take")
    parser.add_argument("--ports", type=int, default=31000, help="first of 300 ports for Ray")
    return parser.parse_args()


def read_round(data: dict[str, object]) -> Round:
    """As it was written."""
    return Round(**{**data, "found": Found(**data["found"])})  # type: ignore[arg-type]


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The data, the recipe and the space."""
    if not (folder / "data").exists():
        write_data(folder / "data", rows=64, held_out=8, sequence_length=32, vocab_size=64)
    recipe = {
        "name": "search",
        "storage": str(folder / "runs"),
        "length": f"{STEPS} steps",
        "model": {"config": MODEL},
        "data": {"path": str(folder / "data")},
        "optimizer": {
            "name": "custom",
            "lr": 1e-3,
            "weight_decay": 0,
            "target": "faults_optimizer:Told",
            "arguments": {"pause": options.pause},
        },
        "schedule": {"name": "constant"},
        "batch": {"micro_batch": 2, "global_sequences": 2 * options.workers},
        "sharding": {"engine": "torch", "stage": 0},
        "scaling": {"workers": options.workers, "start_timeout": 300},
        "evaluation": {"every": None},
        "checkpoints": {"every": None, "export": False},
        "tracking": {"system_metrics": False},
        "log_every": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "space.yaml").write_text(SPACE)


def play(number: int, driver: Driver, nodes: Nodes, options: argparse.Namespace) -> Round:
    """One search, hurt once or twice, and looked at."""
    seed = 1000 * options.seed + number
    generator = random.Random(seed)
    kind = options.only or ORDER[number % len(ORDER)]
    this = Round(number, kind, seed, options.workers)
    if driver.own != (kind == OWN):
        this.found.wrong += driver.finish()
        driver.own = kind == OWN
    moments = sorted(generator.randrange(MOST_STEPS) for _ in range(generator.choice((1, 1, 2))))
    before = hurt(this, moments, generator, driver, nodes, options)
    try:
        kills = len(this.kills)
        found = check(options.out / "runs", this.name, trials=TRIALS, workers=this.workers, kills=kills, before=before)
        found.wrong = [*this.found.wrong, *found.wrong]
        this.found = found
    except Exception as error:
        this.found.wrong.append(f"the study cannot be looked at: {type(error).__name__}: {error}")
    this.found.wrong += driver.between_searches(GROUPS)
    return this


def hurt(
    this: Round, moments: list[int], generator: random.Random, driver: Driver, nodes: Nodes, options: argparse.Namespace
) -> list[tuple[dict[tuple[int, int], float], set[int]]]:
    """Runs the search to its end; what its journal had when something was killed."""
    began, back, had = time.monotonic(), 0.0, []
    folder = options.out / "runs" / this.name
    driver.lead(this.name)
    while not driver.done(this.name):
        now = time.monotonic() - began
        if driver.ended() and not driver.done(this.name):
            code = driver.code
            if code != -9 and this.kind != "dispatcher":
                this.found.wrong.append(f"the driver ended by itself, {code}: {driver.last_words()}")
            this.drivers += 1
            if this.drivers > 5:
                break
            this.found.wrong += driver.after_death()
            driver.lead(this.name)
        if now > options.timeout:
            this.found.wrong.append(f"not done after {options.timeout:.0f} s")
            driver.kill()
            break
        if moments and steps_made(folder) >= moments[0]:
            time.sleep(generator.random())
            steps = steps_made(folder)
            victims = driver.process() if this.kind in ("driver", OWN) else nodes.called(this.kind)
            if not driver.done(this.name) and kill_one(victims, generator):
                this.kills.append(steps)
                had.append(written(folder / "trials.journal")[:2])
                moments.pop(0)
                back = time.monotonic() - began + BACK_SECONDS if this.kind == "raylet" else 0.0
        if back and now > back:
            nodes.start_second()
            back = 0.0
        time.sleep(0.2)
    this.seconds = round(time.monotonic() - began, 1)
    if back:
        nodes.start_second()
    return had


def steps_made(folder: Path) -> int:
    """By all trials of a study, those that were made again too."""
    return sum(len(MADE.findall(file.read_text(errors="replace"))) for file in folder.glob("trial-*/logs/*rank-0.log"))


def show(rounds: list[Round], options: argparse.Namespace) -> None:
    """The table, by what was killed."""
    titles = (
        "killed",
        "workers",
        "searches",
        "kills",
        "trials",
        "rung values",
        "kept, once",
        "segments",
        "begun again",
    )
    table = Table(*titles, "steps", "made again", "runs of trials", "wrong", title="searches that lost processes")
    for workers, kind in sorted({(r.workers, KINDS.index(r.kind)) for r in rounds}):
        of = [r for r in rounds if (r.workers, KINDS.index(r.kind)) == (workers, kind)]
        table.add_row(KINDS[kind], str(workers), *(str(cell) for cell in row(of)))
    table.add_section()
    table.add_row("all", "", *(str(cell) for cell in row(rounds)))
    console = Console(width=150)
    console.print(table)
    console.print(circumstances("cpu", options.workers), soft_wrap=True)
    for r in rounds:
        for text in r.found.wrong:
            console.print(f"round {r.number} ({r.kind}, killed after {r.kills} steps): {text}", soft_wrap=True)


def row(rounds: list[Round]) -> list[int]:
    """Sums of a kind."""
    found = [r.found for r in rounds]
    values = sum(f.values for f in found)
    lost = sum(f.lost for f in found)
    kills, steps = sum(len(r.kills) for r in rounds), sum(f.steps for f in found)
    begun, runs = sum(f.repeated for f in found), sum(f.runs for f in found)
    wrong = sum(bool(f.wrong) for f in found)
    again = sum(f.again for f in found)
    segments = sum(f.segments for f in found)
    trials = sum(f.trials for f in found)
    return [len(rounds), kills, trials, values, values - lost, segments, begun, steps, again, runs, wrong]


if __name__ == "__main__":
    main()
