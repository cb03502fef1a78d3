"""What lowland itself costs: `lowland train` against hand-written DeepSpeed loops, alternating in one run.

    python benchmarks/overhead.py                     on CPUs, a core left to Ray; to be at least 0.97
    python benchmarks/overhead.py --device cuda --workers 2     a Llama of 0.95 B parameters; at least 0.98
    python benchmarks/overhead.py --loops lowland,hand          two of the three loops

All train the same model on the same prepared rows with the same ZeRO-2 settings.  The loop by hand (`hand` in
baselines.py) reads the rows through numpy and neither logs, tracks nor checks anything; `ray` is that loop inside a
bare Ray TorchTrainer; lowland runs whole, on Ray with MLflow and system metrics.  So `ray / hand` is what Ray costs,
`lowland / ray` what lowland adds to it, and `lowland / hand`, which has the bar, both.  Each round of runs gives
ratios of the median speeds after the warm-up; the median of the ratios counts, and the order within a round changes.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
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
LOOPS = ("lowland", "ray", "hand")
RATIOS = (("lowland", "hand"), ("ray", "hand"), ("lowland", "ray"))

Round = dict[str, Measurement]
"""One run of each loop."""


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
        rounds = [
            measure_round(workload, variant, options.loops, turn, options.timeout) for turn in range(options.rounds)
        ]
    found = {f"{one} / {other}": middle(each) for one, other, each in ratios(options.loops, rounds)}
    show(workload, options.loops, rounds)
    if options.out:
        write_json(options.out, {"ratios": found, "rounds": rounds, "workload": workload})
    print(circumstances(workload.device, workload.workers))
    bar, ratio = BAR[options.device], found.get("lowland / hand")
    if ratio is not None:
        print(f"lowland / hand {ratio:.3f}, to be at least {bar}")
        sys.exit(ratio < bar)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, help="2; on CPUs at most one less than there are cores")
    parser.add_argument("--loops", type=loops, default=LOOPS, help=f"which of {','.join(LOOPS)} (all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each loop")
    parser.add_argument("--steps", type=int, help="of each run (120 on CPUs, 40 on GPUs)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that one run may take")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


def loops(text: str) -> tuple[str, ...]:
    """The named loops."""
    names = tuple(text.split(","))
    if unknown := set(names) - set(LOOPS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the loops are {', '.join(LOOPS)}")
    return names


def workers(options: argparse.Namespace) -> int:
    """As many as asked for; else two, and on CPUs one core is left to Ray's own processes."""
    cores = 3 if options.device == "cuda" else os.cpu_count() or 1
    return options.workers or max(1, min(2, cores - 1))


def make_workload(options: argparse.Namespace, folder: Path) -> Workload:
    """What all train; readings span ten steps, as a recipe's do by default."""
    on_gpus = options.device == "cuda"
    model = LLAMA_1B if on_gpus else SMALL
    return Workload(
        model=model,
        sequence_length=model["max_position_embeddings"],
        dtype="bfloat16" if on_gpus else "float32",
        device=options.device,
        workers=workers(options),
        steps=options.steps or (40 if on_gpus else 120),
        window=10,
        folder=str(folder),
        threads=4 if on_gpus else 1,
    )


def measure_round(workload: Workload, variant: Variant, names: tuple[str, ...], turn: int, timeout: float) -> Round:
    """One run of each loop; which goes first changes."""
    first = turn % len(names)
    found: Round = {}
    for loop in names[first:] + names[:first]:
        changed = Variant(**{**vars(variant), "name": loop, "loop": loop})
        # Evaluation and checkpoint at the end are not measured; on GPUs their time is saved.
        found[loop] = measure(workload, changed, turn, timeout=timeout, whole=workload.device == "cpu")
        print(f"round {turn + 1}, {loop}: {found[loop].tokens_per_second:,.0f} tokens/s", flush=True)
    return found


def ratios(names: tuple[str, ...], rounds: list[Round]) -> Iterator[tuple[str, str, list[float]]]:
    """Of each two loops that were measured, the ratios of their speeds by round."""
    for one, other in RATIOS:
        if one in names and other in names:
            yield one, other, [each[one].tokens_per_second / each[other].tokens_per_second for each in rounds]


def show(workload: Workload, names: tuple[str, ...], rounds: list[Round]) -> None:
    """The rounds as a table, and the medians."""
    found = list(ratios(names, rounds))
    heads = [*(f"{name} tokens/s" for name in names), *(f"{one} / {other}" for one, other, _ in found)]
    table = Table("round", *heads, title=f"{workload.workers} workers, ZeRO-2")
    for number, measured in enumerate(rounds):
        rates = (f"{measured[name].tokens_per_second:,.0f}" for name in names)
        table.add_row(str(number + 1), *rates, *(f"{values[number]:.3f}" for *_, values in found))
    medians = (f"{middle(each[name].tokens_per_second for each in rounds):,.0f}" for name in names)
    table.add_row("median", *medians, *(f"{middle(values):.3f}" for *_, values in found))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
