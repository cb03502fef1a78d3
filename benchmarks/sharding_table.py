"""The sharding table of docs/optimizers.md: how far each optimizer ends from the unsharded training.

    python benchmarks/sharding_table.py [--only NAME ...] > table.md

Short trainings of a small awkward model in gloo processes on this machine, 20 steps each; some minutes in all.
"""

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from lowland.optim.conformance import subjects
from lowland.optim.methods import METHODS
from lowland.trainers.optcheck.cases import FSDP2, ZERO, Case
from lowland.trainers.optcheck.processes import Processes
from lowland.trainers.optcheck.table import Cell, Trainings, examine
from lowland.trainers.optcheck.target import tried

WORLDS = (1, 2, 4)
ALL = frozenset(["accumulation", "clipping", "groups", "frozen", "tied"])


def main() -> None:
    """Prints the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(subjects()), help="names of optimizers")
    names = parser.parse_args().only
    groups = {world: Processes(world, timeout=1800, quiet=True) for world in WORLDS}
    try:
        trainings = Trainings(groups, lambda done, total: print(f"\r{done}/{total} ", end="", file=sys.stderr))
        print("| Optimizer | rounding | ZeRO 0 | ZeRO 1 | ZeRO 2 | ZeRO 3 | FSDP2 | bf16 | naive |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in names:
            print(row(name, trainings), flush=True)
    finally:
        for group in groups.values():
            group.close()
    print(f"\n{hardware()}")


def row(name: str, trainings: Trainings) -> str:
    """An optimizer's line."""
    target = tried(name)

    def cells(*cases: Case) -> list[Cell]:
        return examine([(target, case) for case in cases], trainings)

    plain = [Case(ZERO[1], 2)]
    noise = cells(*plain)[0].noise
    stages = [
        worst(cells(*(Case(where, world, features=some) for world in WORLDS for some in (frozenset(), ALL))))
        for where in ZERO
    ]
    fsdp2 = worst(cells(Case(FSDP2, 2), Case(FSDP2, 2, features=frozenset(["groups", "tied"]))))
    half = cells(*(Case(where, 2, bf16=True) for where in ZERO))
    naive = worst(cells(*(Case(where, 2, naive=True) for where in ZERO[1:])))
    rounded = f"{worst(half)} ({half[0].allowed / 2:.0e})"
    if name in METHODS and METHODS[name].sees == "elements":
        naive += " (same method)"
    return f"| `{name}` | {noise:.0e} | {' | '.join(stages)} | {fsdp2} | {rounded} | {naive} |"


def worst(cells: list[Cell]) -> str:
    """The largest distance; where an optimizer refused, that."""
    if any(cell.error for cell in cells):
        return "refuses"
    return f"{max(cell.distance for cell in cells):.0e}"


def hardware() -> str:
    """What the numbers depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed"))
    return f"Measured on {model}, gloo, Python {platform.python_version()}, {packages}."


if __name__ == "__main__":
    main()
