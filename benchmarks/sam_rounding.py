"""What is left of SAM's perturbation when weights are rounded to bf16.

    python benchmarks/sam_rounding.py

Master weights are normal with standard deviation 0.02; the perturbation e has length rho = 0.05 and is spread evenly
over all parameters, so that each moves by rho / sqrt(parameters).  Each row is measured on a sample of the elements.
"""

import argparse

import torch
from common import circumstances
from rich.console import Console
from rich.table import Table

SAMPLE = 20_000_000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e6, 1e8, 1e9, 7e9])
    parser.add_argument("--rho", type=float, default=0.05)
    parser.add_argument("--deviation", type=float, default=0.02, help="standard deviation of the weights")
    options = parser.parse_args()
    table = Table("parameters", "cosine", "length, relative", "left if added to bf16 weights")
    for count in options.parameters:
        cosine, ratio, added = measured(int(count), options.rho, options.deviation)
        table.add_row(f"{count:.0e}", f"{cosine:.2f}", f"{ratio:.1f}", f"{added:.0%}")
    Console(width=100).print(table)
    print(circumstances("cpu", 1))


def measured(parameters: int, rho: float, deviation: float) -> tuple[float, float, float]:
    """Cosine and relative length of what bf16 weights do against e, and what is left of e if it is added to them."""
    generator = torch.Generator().manual_seed(0)
    size = min(parameters, SAMPLE)
    masters = torch.randn(size, generator=generator) * deviation
    e = (torch.randint(0, 2, (size,), generator=generator).float() * 2 - 1) * (rho / parameters**0.5)
    weights = masters.bfloat16()
    shift = ((masters + e).bfloat16().float() - weights.float()).double()
    added = ((weights.float() + e).bfloat16().float() - weights.float()).double()
    e = e.double()
    cosine = e @ shift / (e.norm() * shift.norm())
    return float(cosine), float(shift.norm() / e.norm()), float(added @ e / (e @ e))


if __name__ == "__main__":
    main()
