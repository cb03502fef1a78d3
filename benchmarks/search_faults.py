"""Searches that lose processes: kill -9 at random moments, and what must hold afterwards.

    python benchmarks/search_faults.py --out faults                    30 searches; goes on where it ended
    python benchmarks/search_faults.py --out faults --only raylet --rounds 3 --seed 7

Searches of small trainings run on a Ray cluster of two nodes on this machine, without a dashboard, beside another Ray
cluster; those with `own cluster` start theirs.  In each, processes of one kind are killed at moments drawn from the
seed: the driver, a Ray Train controller, a worker, the second node's raylet, a process of Ray Tune that waits for a
segment, or the dispatcher.  Where the driver ends by that, the search goes on by --resume.  Then the study's journal,
the trials' logs, MLflow and the cluster are looked at (`faults_checks.py`); whatever is wrong is printed and makes the
command fail.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from common import circumstances, end, tail, write_data, write_json
from faults_checks import Found, check, written
from faults_cluster import Nodes, held, kill_one
from rich.console import Console
from rich.table import Table

KINDS = ("driver", "controller", "worker", "raylet", "driver, own cluster", "waiter", "dispatcher")
ORDER = ("driver", "controller", "worker", "raylet", "driver", "worker", "raylet", "controller", KINDS[4], KINDS[5])
"""What a round kills, by turns; `dispatcher` takes the place of `waiter` every second time."""
NAME, TRIALS, STEPS = "faulty", 5, 51
BACK_SECONDS = 5.0
"""After which a killed node is started again."""
QUIET_SECONDS = 60.0
"""In which everything must be gone after the end of a search."""
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
    kills: list[float] = field(default_factory=list)
    """Seconds after the beginning."""
    missed: int = 0
    """Kills for which the search ended too early."""
    drivers: int = 0
    seconds: float = 0.0
    found: Found = field(default_factory=Found)


def main() -> None:
    """Runs the rounds that are not there yet, and prints all."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes are ended
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    rounds = [read_round(r) for r in json.loads(results.read_text())] if results.exists() else []
    done = {r.number for r in rounds}
    left = [number for number in range(options.rounds) if number not in done]
    if left:
        if not (options.out / "data").exists():
            write_data(options.out / "data", rows=64, held_out=8, sequence_length=32, vocab_size=64)
        with Nodes(options.out.resolve(), options.workers, options.ports) as nodes:
            for number in left:
                rounds.append(play(number, nodes, options))
                write_json(results, rounds)
                told = rounds[-1]
                print(f"{number} {told.kind}: {told.seconds:.0f} s, {told.found.wrong or 'nothing wrong'}", flush=True)
    show(rounds, options)
    sys.exit(any(r.found.wrong for r in rounds))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything; a short path")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of all rounds")
    parser.add_argument("--only", choices=KINDS, help="kill nothing else")
    parser.add_argument("--span", type=float, default=60.0, help="seconds in which the moments lie")
    parser.add_argument("--workers", type=int, default=1, help="of a trial")
    parser.add_argument("--pause", type=float, default=0.15, help="seconds that a step waits")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a round may take")
    parser.add_argument("--ports", type=int, default=31000, help="first of 300 ports for Ray")
    return parser.parse_args()


def read_round(data: dict[str, object]) -> Round:
    """As it was written."""
    return Round(**{**data, "found": Found(**data["found"])})  # type: ignore[arg-type]


def kind_of(number: int, options: argparse.Namespace) -> str:
    """What a round kills."""
    if options.only:
        return str(options.only)
    kind = ORDER[number % len(ORDER)]
    return "dispatcher" if kind == "waiter" and number // len(ORDER) % 2 else kind


def play(number: int, nodes: Nodes, options: argparse.Namespace) -> Round:
    """One search, hurt once or twice, and looked at."""
    seed = 1000 * options.seed + number
    generator = random.Random(seed)
    this = Round(number, kind_of(number, options), seed)
    folder = options.out / f"round-{number:03}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    prepare(folder, options)
    moments = sorted(generator.uniform(0, options.span) for _ in range(generator.choice((1, 1, 2))))
    before = hurt(this, folder, moments, generator, nodes, options)
    try:
        kills = len(this.kills)
        this.found = check(folder / "runs", NAME, trials=TRIALS, kills=kills, before=before)
    except Exception as error:
        this.found.wrong.append(f"the study cannot be looked at: {type(error).__name__}: {error}")
    this.found.wrong += left_over(nodes)
    return this


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The recipe and the space."""
    recipe = {
        "name": NAME,
        "storage": str((folder / "runs").resolve()),
        "length": f"{STEPS} steps",
        "model": {"config": MODEL},
        "data": {"path": str((options.out / "data").resolve())},
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
        "scaling": {"workers": options.workers, "start_timeout": 120},
        "evaluation": {"every": None},
        "checkpoints": {"every": None, "export": False},
        "tracking": {"system_metrics": False},
        "log_every": 1,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "space.yaml").write_text(SPACE)


def start(this: Round, folder: Path, nodes: Nodes) -> psutil.Popen:
    """The driver; it goes on if there is something to go on with."""
    entry = [sys.executable, "-c", "from lowland.platform.cli import main; main()", "tune"]
    command = [*entry, str(folder / "recipe.yaml"), "--space", str(folder / "space.yaml"), "--sampler", "random"]
    command += ["--trials", str(TRIALS), "--parallel", "2"]
    command += [] if "own" in this.kind else ["--address", nodes.address]
    command += ["--resume"] if (folder / "runs" / NAME / "search.json").exists() else []
    log = folder / f"driver-{this.drivers}.log"
    this.drivers += 1
    with log.open("wb") as output:
        return psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=nodes.environment())


def hurt(
    this: Round,
    folder: Path,
    moments: list[float],
    generator: random.Random,
    nodes: Nodes,
    options: argparse.Namespace,
) -> list[tuple[dict[tuple[int, int], float], set[int]]]:
    """Runs the search to its end; what its journal had when something was killed."""
    began, back, had = time.monotonic(), 0.0, []
    driver = start(this, folder, nodes)
    while True:
        now = time.monotonic() - began
        if driver.poll() is not None:
            log = folder / f"driver-{this.drivers - 1}.log"
            if driver.returncode == 0:
                break
            if driver.returncode != -9 and this.kind != "dispatcher":
                this.found.wrong.append(f"the driver ended by itself: {tail(log, 3)}")
            if this.drivers > 5:
                break
            driver = start(this, folder, nodes)
        if now > options.timeout:
            this.found.wrong.append(f"not done after {options.timeout:.0f} s")
            end({driver})
            break
        if moments and now >= moments[0]:
            victims = [driver] if this.kind.startswith("driver") else nodes.called(this.kind)
            if kill_one(victims, generator):
                this.kills.append(round(now, 1))
                had.append(written(folder / "runs" / NAME / "trials.journal")[:2])
                moments.pop(0)
                back = now + BACK_SECONDS if this.kind == "raylet" else 0.0
        if back and now > back:
            nodes.start_second()
            back = 0.0
        time.sleep(0.05)
    this.seconds, this.missed = round(time.monotonic() - began, 1), len(moments)
    if back:
        nodes.start_second()
    return had


def left_over(nodes: Nodes) -> list[str]:
    """What is still there of the search, after a while."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        there = {**held(nodes.address), **nodes.working()}
        there = {name: count for name, count in there.items() if count}
        if not there or time.monotonic() > deadline:
            return [f"left behind: {there}"] if there else []
        time.sleep(0.5)


def show(rounds: list[Round], options: argparse.Namespace) -> None:
    """The table, by what was killed."""
    titles = ("killed", "searches", "kills", "trials", "rung values", "kept, once", "segments", "begun again")
    table = Table(*titles, "steps", "made again", "runs of trials", "wrong", title="searches that lost processes")
    for kind in KINDS:
        of = [r for r in rounds if r.kind == kind]
        if of:
            table.add_row(kind, *(str(cell) for cell in row(of)))
    table.add_section()
    table.add_row("all", *(str(cell) for cell in row(rounds)))
    console = Console(width=150)
    console.print(table)
    console.print(circumstances("cpu", options.workers), soft_wrap=True)
    for r in rounds:
        for text in r.found.wrong:
            console.print(f"round {r.number} ({r.kind}, killed after {r.kills} s): {text}", soft_wrap=True)


def row(rounds: list[Round]) -> list[int]:
    """Sums of a kind."""
    found = [r.found for r in rounds]
    values = sum(f.values for f in found)
    lost = sum("journal" in text or "written" in text for f in found for text in f.wrong)
    kills, steps = sum(len(r.kills) for r in rounds), sum(f.steps for f in found)
    begun, runs = sum(f.repeated for f in found), sum(f.runs for f in found)
    wrong = sum(bool(f.wrong) for f in found)
    again = sum(f.again for f in found)
    segments = sum(f.segments for f in found)
    trials = sum(f.trials for f in found)
    return [len(rounds), kills, trials, values, values - lost, segments, begun, steps, again, runs, wrong]


if __name__ == "__main__":
    main()
