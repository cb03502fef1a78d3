"""lowland's optimizers beside implementations by others: how far two trainings of the same network part.

    pip install --no-deps --target independent pytorch-optimizer==4.1.0 torch-optimizer==0.3.0 pytorch-ranger==0.1.1 \\
        lion-pytorch==0.2.5 schedulefree==1.4.1 muon-optimizer==0.1.0 sam-pytorch==0.0.1 ema-pytorch==0.8.3
    PYTHONPATH=independent python benchmarks/independent_optimizers.py

None of these is a dependency of lowland.  A package that is missing is named, and the rest is compared.

Both start from the same weights of a small network and see the same batches, each taking gradients at its own weights.
Compared are all tensors after each step: the largest |theirs - ours| of a tensor, relative to how far it moved at
most; the worst tensor, with weights in float64 and in float32.  lowland keeps its states in float32 in either case.
`rounding` is the same between the float64 and the float32 training of lowland, and of the other.  Equal is at most
1e-5; with float32 also at most twice the larger rounding.
Fails if two that should agree do not, or if one that is known to be another method agrees.
"""

import argparse
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from independent_pairs import NONE, PAIRS, Pair
from independent_trainings import Closure, Training
from torch import Tensor, nn

TOLERANCE = 1e-5
WIDTH, BATCH = 8, 64
"""Square matrices and more samples than either side: only gradients of full rank determine SOAP's bases."""


@dataclass(frozen=True)
class Row:
    """What was found of a pair."""

    pair: Pair
    version: str = ""
    missing: str = ""
    """The package that is not there."""
    error: str = ""
    distances: tuple[float, ...] = ()
    """With float64 weights; with float32 weights; of lowland's two, and of the other's two, from one another."""

    @property
    def good(self) -> bool:
        """Whether it is as it should be; a missing package says nothing."""
        return bool(self.missing) or (not self.error and self._equal != bool(self.pair.differs))

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        if self.missing:
            return f"missing: {self.missing}"
        if self.error:
            return f"FAILED: {self.error}"
        if self._equal:
            return "EQUAL, and should not be" if self.pair.differs else "equal"
        return f"differs: {self.pair.differs}" if self.pair.differs else "DIFFERS"

    @property
    def _equal(self) -> bool:
        double, single, *rounding = self.distances
        return double <= TOLERANCE and single <= max(TOLERANCE, 2 * max(rounding))


def main() -> None:
    """Compares, and prints a table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="+", help="names of methods or packages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| Method | Beside | Settings | float64 | float32 | rounding | Verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for pair in PAIRS:
        if options.only is None or {pair.method, pair.package} & set(options.only):
            rows.append(compare(pair, options.steps))
            print(line(rows[-1]), flush=True)
    if options.only is None:
        for method in NONE:
            print(f"| `{method}` | no package has it | | | | | |")
    print(f"\n{options.steps} steps; Python {platform.python_version()}, torch {torch.__version__}")
    if absent := sorted({row.missing for row in rows if row.missing}):
        print(f"missing: {' '.join(absent)}")
    sys.exit(0 if all(row.good for row in rows) else 1)


def line(row: Row) -> str:
    """A row in markdown."""
    name, _, variant = row.pair.method.partition(" ")
    beside = f"`{row.pair.what}`, {row.pair.package} {row.version}"
    distances = [f"{distance:.0e}" for distance in row.distances] or [""] * 4
    cells = [f"`{name}` {variant}", beside, row.pair.settings, *distances[:2], "; ".join(distances[2:]), row.verdict]
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"


def compare(pair: Pair, steps: int) -> Row:
    """How far the two part, in both types."""
    try:
        found, module = version(pair.package), import_module(pair.module)
    except PackageNotFoundError:
        return Row(pair, missing=pair.package)
    except ModuleNotFoundError as error:
        return Row(pair, missing=str(error.name))
    try:
        return Row(pair, found, distances=distances(pair, module, steps))
    except Exception as error:
        return Row(pair, found, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def distances(pair: Pair, module: Any, steps: int) -> tuple[float, ...]:
    """Theirs from ours with float64 and with float32 weights; then ours, and theirs, between the two types."""
    ours, theirs = [], []
    for dtype in (torch.float64, torch.float32):
        model = network(dtype)
        ours.append(list(trained(model, pair.ours(model), steps)))
        model = network(dtype)
        theirs.append(list(trained(model, pair.theirs(model, module), steps)))
    pairs = ((ours[0], theirs[0]), (ours[1], theirs[1]), ours, theirs)
    return tuple(parted(a, b) for a, b in pairs)


def parted(ours: list[list[Tensor]], theirs: list[list[Tensor]]) -> float:
    """The worst tensor's largest distance over the steps, relative to how far ours moved at most."""
    start = [p.detach() for p in network(torch.float64).parameters()]
    start *= len(ours[0]) // len(start)
    apart, moved = farthest(ours, theirs), farthest(ours, [start] * len(ours))
    if not bool(moved.any()):
        raise RuntimeError("no weight moved")
    return float(torch.where(apart > 0, apart / moved, 0.0).max())


def farthest(ours: list[list[Tensor]], others: list[list[Tensor]]) -> Tensor:
    """By tensor, the largest distance over the steps [tensors]."""
    steps = zip(ours, others, strict=True)
    return torch.tensor([[float((a - b).norm()) for a, b in zip(*pair, strict=True)] for pair in steps]).amax(0)


def trained(model: nn.Module, training: Training, steps: int) -> Iterator[list[Tensor]]:
    """All tensors that are compared, after each step."""
    dtype = next(model.parameters()).dtype
    for number in range(steps):
        training.step(batch(model, number, dtype))
        seen = [*model.parameters(), *training.seen()]
        yield [tensor.detach().to(torch.float64, copy=True) for tensor in seen]


def network(dtype: torch.dtype) -> nn.Module:
    """The same initial weights in either type."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(dtype)


def batch(model: nn.Module, number: int, dtype: torch.dtype) -> Closure:
    """The closure of a step's batch: normal inputs, and products of neighbours as targets."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
    targets = (inputs.roll(1, 1) * inputs).to(dtype)
    inputs = inputs.to(dtype)

    def closure() -> Tensor:
        model.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        return loss.detach()

    return closure


if __name__ == "__main__":
    main()
