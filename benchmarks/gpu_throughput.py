"""Tokens per second of lowland, step by step, beside an anchor of plain FSDP2 and loops written by hand.

    python benchmarks/gpu_throughput.py --gpus 2 --out throughput.json
    python benchmarks/gpu_throughput.py --device cpu --tiny          a dry run of every variant

One Llama of 0.95 B parameters (bf16, sequence 2048, packed random tokens, fused AdamW, clipped at 1.0) is trained in
every variant, each in a process tree of its own; with --rounds 2 or more they alternate.  A reading spans 5 steps and
ends when the GPU has done them; readings in the first third of the steps do not count.  lowland's are those that its
run recorded in MLflow.  A variant that fails is recorded with the end of its output, and the rest goes on.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common import Measurement, Variant, Workload, circumstances, gpu_name, middle, write_data, write_json
from measure import MeasurementError, measure

from lowland.trainers.hardware import peak_flops

LLAMA_1B = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
TINY = LLAMA_1B | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}

_STEP = Variant("", "lowland")
_COMPILED = replace(_STEP, compile=True)
_FUSED = replace(_COMPILED, fused_loss=True)
_BIG = replace(_FUSED, micro_batch=16)
VARIANTS = {
    "anchor-8": Variant("", "fsdp2", compile=True),
    "anchor-16": Variant("", "fsdp2", compile=True, micro_batch=16),
    "naive-zero2": Variant("", "naive", recompute=True),
    "naive-zero3": Variant("", "naive", recompute=True, stage=3),
    # One thing more in each.
    "recompute": replace(_STEP, recompute=True),
    "keep": _STEP,
    "compile": _COMPILED,
    "fused": _FUSED,
    "mb16": _BIG,
    "mb32": replace(_BIG, micro_batch=32),
    # One thing changed in mb16.
    "no-overlap": replace(_BIG, overlap=False),
    "bucket-50m": replace(_BIG, bucket_elements=50_000_000),
    "bucket-500m": replace(_BIG, bucket_elements=500_000_000),
    "zero1": replace(_BIG, stage=1),
    "zero3": replace(_BIG, stage=3),
    "zero3-8": replace(_FUSED, stage=3),
    # The same settings as mb16, in a loop without lowland: what lowland itself costs.
    "hand-mb16": replace(_BIG, loop="hand"),
    # The same with other optimizers; a step of some takes several gradients.
    "adatamw": replace(_BIG, optimizer="adatamw"),
    "sam": replace(_BIG, optimizer="sam"),
    "lookbehind-2": replace(_BIG, optimizer="lookbehind-2"),
    "muon": replace(_BIG, optimizer="muon"),
    # By name only.
    "anchor-16-eager": Variant("", "fsdp2", micro_batch=16),
    "anchor-32": Variant("", "fsdp2", compile=True, micro_batch=32),
    "hand-8": replace(_FUSED, loop="hand"),
    "mb16-recompute": replace(_BIG, recompute=True),
    "mb24": replace(_BIG, micro_batch=24),
    "zero0": replace(_BIG, stage=0),
    "zero3-no-overlap": replace(_BIG, stage=3, overlap=False),
    "zero3-bucket-50m": replace(_BIG, stage=3, bucket_elements=50_000_000),
    "zero3-bucket-500m": replace(_BIG, stage=3, bucket_elements=500_000_000),
    "zero3-32": replace(_BIG, stage=3, micro_batch=32),
}
HEAD = (
    *("variant", "loop", "ZeRO", "micro-batch", "recompute", "compile", "fused loss"),
    *("tokens/s", "x anchor", "MFU", "peak GiB", "fwd+bwd ms", "optimizer ms", "data ms", "logging ms"),
)
BY_DEFAULT = list(VARIANTS)[: list(VARIANTS).index("hand-mb16") + 1]


def main() -> None:
    """Measures and prints."""
    options = arguments()
    variants = chosen(options.variants, options.also)
    folder = Path(options.work or tempfile.mkdtemp(prefix="throughput-")).absolute()
    workload = make_workload(options, folder)
    if options.tiny:
        variants = [tiny(variant) for variant in variants]
    if not (folder / "data").exists():
        rows = 8 * options.gpus * max(variant.micro_batch for variant in variants)
        held_out, length = options.gpus, workload.sequence_length
        vocab_size = workload.model["vocab_size"]
        write_data(folder / "data", rows=rows, held_out=held_out, sequence_length=length, vocab_size=vocab_size)
    print(f"logs: {folder}/logs", flush=True)
    if options.profile:
        from profile_step import profile

        profile(workload, variants[0], options.profile)
        return
    report = measure_all(options, workload, variants)
    print(f"\n{markdown(report)}")
    if not all(row["runs"] for row in report["rows"]):
        sys.exit(1)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(BY_DEFAULT), help=f"names or patterns, of {', '.join(VARIANTS)}")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=BASE,FIELD=VALUE,...",
        help="one more variant: another one with fields changed, for example big=mb16,bucket_elements=1000000000",
    )
    parser.add_argument("--gpus", type=int, default=1, help="workers, one GPU each")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--window", type=int, default=5, help="steps per reading")
    parser.add_argument("--rounds", type=int, default=1, help="times that all variants are run, in turn")
    parser.add_argument("--timeout", type=float, default=150, help="seconds that one run may take")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no run is started")
    parser.add_argument("--whole", action="store_true", help="wait for lowland's evaluation and checkpoint at the end")
    parser.add_argument("--threads", type=int, help="CPU threads per worker (4 with a GPU, else 1)")
    parser.add_argument("--out", type=Path, default=Path("gpu_throughput.json"), help="results, after every run")
    parser.add_argument("--work", help="folder for data, logs and runs; a new temporary one by default")
    parser.add_argument("--profile", type=Path, help="instead: profile a step of the first variant into this file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to try the benchmark itself")
    return parser.parse_args()


def chosen(patterns: str, also: list[str]) -> list[Variant]:
    """The variants that are asked for, in the order of the patterns, with their names."""
    names: list[str] = []
    for pattern in filter(None, patterns.split(",")):
        found = [name for name in VARIANTS if fnmatch(name, pattern)]
        if not found:
            sys.exit(f"no variant is called {pattern}; there are: {', '.join(VARIANTS)}")
        names += [name for name in found if name not in names]
    return [replace(VARIANTS[name], name=name) for name in names] + [changed(text) for text in also]


def changed(text: str) -> Variant:
    """A variant given as NAME=BASE,FIELD=VALUE,..."""
    (name, base), *changes = (part.split("=", 1) for part in text.split(","))
    kinds = {field.name: type(getattr(VARIANTS[base], field.name)) for field in fields(Variant)}
    values: dict[str, Any] = {
        key: value.lower() == "true" if kinds[key] is bool else kinds[key](value) for key, value in changes
    }
    return replace(VARIANTS[base], name=name, **values)


def make_workload(options: argparse.Namespace, folder: Path) -> Workload:
    """What all variants train."""
    model = TINY if options.tiny else LLAMA_1B
    return Workload(
        model=model,
        sequence_length=model["max_position_embeddings"],
        dtype="bfloat16",
        device=options.device,
        workers=options.gpus,
        steps=options.steps,
        window=options.window,
        folder=str(folder),
        threads=options.threads or (4 if options.device == "cuda" else 1),
    )


def tiny(variant: Variant) -> Variant:
    """The variant for a dry run: small buckets, and the fused loss only where its kernels run."""
    from importlib.util import find_spec

    fused = variant.fused_loss and find_spec("liger_kernel") is not None and gpu_name() is not None
    return replace(variant, micro_batch=variant.micro_batch // 8, bucket_elements=100_000, fused_loss=fused)


def measure_all(options: argparse.Namespace, workload: Workload, variants: list[Variant]) -> dict[str, Any]:
    """All rounds; what is known so far is written after every run."""
    begun = time.monotonic()
    name = gpu_name() if workload.device == "cuda" else None
    report: dict[str, Any] = {
        "circumstances": circumstances(workload.device, workload.workers),
        "workload": asdict(workload),
        "parameters": count_parameters(workload),
        "peak_flops": peak_flops(name) if name is not None else None,
        "rows": [{"variant": asdict(variant), "runs": [], "errors": []} for variant in variants],
    }
    for turn in range(options.rounds):
        order = list(zip(variants, report["rows"], strict=True))
        for variant, row in reversed(order) if turn % 2 else order:
            left = options.budget - (time.monotonic() - begun)
            run_once(options, workload, variant, turn, row, left)
            write_json(options.out, report)
    options.out.with_suffix(".md").write_text(markdown(report) + "\n", encoding="utf-8")
    return report


def run_once(
    options: argparse.Namespace, workload: Workload, variant: Variant, turn: int, row: dict[str, Any], left: float
) -> None:
    """One run of one variant, into its row."""
    if left <= 0:
        row["errors"].append("not started: --budget was spent")
        return
    try:
        found = measure(workload, variant, turn, timeout=min(options.timeout, left + 60), whole=options.whole)
        row["runs"].append(asdict(found))
        print(f"{variant.name}: {found.tokens_per_second:,.0f} tokens/s, run of {found.seconds:.0f} s", flush=True)
    except MeasurementError as error:
        row["errors"].append(str(error))
        print(f"{variant.name}: failed: {error}", flush=True)


def count_parameters(workload: Workload) -> int:
    """The model's parameters, what 6N FLOPs per token are counted with."""
    from transformers import AutoConfig

    from lowland.trainers.models import num_parameters

    return num_parameters(AutoConfig.for_model("llama", **workload.model))


def markdown(report: dict[str, Any]) -> str:
    """The table, with hardware and versions below it."""
    rows = [(Variant(**row["variant"]), [Measurement(**run) for run in row["runs"]]) for row in report["rows"]]
    rates = {v.name: middle(run.tokens_per_second for run in runs) for v, runs in rows if runs}
    anchor = max((rate for name, rate in rates.items() if name.startswith("anchor")), default=None)
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD)]
    lines += [" | ".join(cells(variant, runs, anchor, report)) for variant, runs in rows]
    workload = Workload(**report["workload"])
    notes = [
        f"{report['parameters'] / 1e9:.2f} B parameters, {workload.dtype}, sequence {workload.sequence_length}, "
        f"{workload.steps} steps; x anchor is against the fastest anchor here; MFU is of 6N FLOPs per token.",
        report["circumstances"] + ".",
    ]
    notes += [
        f"a step of {variant.optimizer} / of adamw: {rates['mb16'] / rates[variant.name]:.3f}"
        for variant, runs in rows
        if runs and variant.optimizer != "adamw" and "mb16" in rates
    ]
    notes += [
        f"lowland {name} / hand-written {hand}: {rates[name] / rates[hand]:.3f}"
        for hand, name in (("hand-mb16", "mb16"), ("hand-8", "fused"))
        if hand in rates and name in rates
    ]
    return "\n".join([*(f"| {line} |" for line in lines), "", *notes])


def cells(variant: Variant, runs: list[Measurement], anchor: float | None, report: dict[str, Any]) -> list[str]:
    """One row of the table."""
    stage = "-" if variant.loop == "fsdp2" else str(variant.stage)
    flags = ["yes" if flag else "no" for flag in (variant.recompute, variant.compile, variant.fused_loss)]
    start = [variant.name, variant.loop, stage, str(variant.micro_batch), *flags]
    if not runs:
        return [*start, "failed", *[""] * 7]
    rate = middle(run.tokens_per_second for run in runs)
    peak = report["peak_flops"]
    mfu = f"{6 * report['parameters'] * rate / (peak * report['workload']['workers']):.1%}" if peak else "-"
    memory = max((run.memory_gib for run in runs if run.memory_gib is not None), default=None)
    phases = ("forward_backward", "optimizer", "data", "logging")
    split = [f"{1000 * middle(run.split[p] for run in runs):.1f}" if p in runs[0].split else "-" for p in phases]
    relative = f"{rate / anchor:.3f}" if anchor else "-"
    return [*start, f"{rate:,.0f}", relative, mfu, f"{memory:.1f}" if memory else "-", *split]


if __name__ == "__main__":
    main()
