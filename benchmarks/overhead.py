"""What lowland itself costs: `lowland train` against a hand-written DeepSpeed loop, alternating in one run.

    python benchmarks/overhead.py                     2 CPU workers; the ratio is to be at least 0.97
    python benchmarks/overhead.py --device cuda --workers 2     a Llama of 0.95 B parameters; at least 0.98

Both train the same model on the same prepared rows with the same ZeRO-2 settings.  The loop by hand (`hand` in
baselines.py) reads the rows through numpy and neither logs, tracks nor checks anything; lowland runs whole, on Ray with
MLflow and system metrics.  Each pair of runs gives a ratio of the median speeds after the warm-up; the median of the
ratios counts, and the order within the pairs changes each time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from common import Measurement, Variant, Workload, circumstances, middle, write_data, write_json
from gpu_throughput import LLAMA_1B, VARIANTS
from measure import measure
from rich.console import Console
from rich.table import Table

# The model of recipes/stdlib-adamw.yaml on byte tokens.
SMALL = {
    "vocab_size": 320,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
BAR = {"cpu": 0.97, "cuda": 0.98}


def main() -> None:
    """Measures, prints, and fails below the bar."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        workload = make_workload(options, Path(scratch, "work"))
        variant = VARIANTS["mb16"] if options.device == "cuda" else Variant("", "lowland", bucket_elements=10_000_000)
        write_data(
            Path(workload.folder, "data"),
            rows=4096,
            held_out=64,
            sequence_length=workload.sequence_length,
            vocab_size=workload.model["vocab_size"],
        )
        pairs = [measure_pair(workload, variant, turn, options.timeout) for turn in range(options.pairs)]
    show(workload, pairs)
    ratio = middle(lowland.tokens_per_second / hand.tokens_per_second for lowland, hand in pairs)
    if options.out:
        write_json(options.out, {"ratio": ratio, "pairs": pairs, "workload": workload})
    bar = BAR[options.device]
    print(f"ratio {ratio:.3f}, to be at least {bar}\n{circumstances(options.device, options.workers)}")
    sys.exit(ratio < bar)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run (120 on CPUs, 40 on GPUs)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def make_workload(options: argparse.Namespace, folder: Path) -> Workload:
    """What both train; readings span ten steps, as a recipe's do by default."""
    on_gpus = options.device == "cuda"
    model = LLAMA_1B if on_gpus else SMALL
    return Workload(
        model=model,
        sequence_length=model["max_position_embeddings"],
        dtype="bfloat16" if on_gpus else "float32",
        device=options.device,
        workers=options.workers,
        steps=options.steps or (40 if on_gpus else 120),
        window=10,
        folder=str(folder),
        threads=4 if on_gpus else 1,
    )


def measure_pair(workload: Workload, variant: Variant, turn: int, timeout: float) -> tuple[Measurement, Measurement]:
    """lowland's run and the one by hand; which goes first changes."""
    found: dict[str, Measurement] = {}
    for loop in ("lowland", "hand") if turn % 2 else ("hand", "lowland"):
        changed = Variant(**{**vars(variant), "name": loop, "loop": loop})
        # Evaluation and checkpoint at the end are not measured; on GPUs their time is saved.
        found[loop] = measure(workload, changed, turn, timeout=timeout, whole=workload.device == "cpu")
        print(f"pair {turn + 1}, {loop}: {found[loop].tokens_per_second:,.0f} tokens/s", flush=True)
    return found["lowland"], found["hand"]


def show(workload: Workload, pairs: list[tuple[Measurement, Measurement]]) -> None:
    """The pairs as a table."""
    table = Table("pair", "lowland tokens/s", "by hand tokens/s", "ratio", title=f"{workload.workers} workers, ZeRO-2")
    for number, (lowland, hand) in enumerate(pairs, 1):
        ratio = lowland.tokens_per_second / hand.tokens_per_second
        rates = (f"{run.tokens_per_second:,.0f}" for run in (lowland, hand))
        table.add_row(str(number), *rates, f"{ratio:.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
