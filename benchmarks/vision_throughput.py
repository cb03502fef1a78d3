"""Images per second of lowland, beside a loop of plain torch with the same network and settings.

    python benchmarks/vision_throughput.py --gpus 2 --out vision_throughput.json
    python benchmarks/vision_throughput.py --device cpu --tiny          a dry run

ResNet-50 (SGD) and ViT-B/16 (AdamW, clipped) at 224 x 224, bf16 by autocast on fp32 weights, channels last, compiled,
a fused optimizer, batches made in threads.  `memory`: images are decoded before the first step and mirrored, so that
data are no limit; `jpeg`: each step decodes and resizes random parts of JPEG files of 500 x 375.  The files are made
here.  Each loop is a process of its own, and with --rounds 2 they take turns; with --gpus 2 each network has a GPU of
its own and half of the cores.  lowland's loop is `lowland.trainers.fit` without Ray and MLflow; `waiting`, if --loops
names it, is the same where it reads every gradient norm before the optimizer steps, as it must with optimizers that
cannot leave out a step on the GPU.  A reading spans some steps and ends when the GPU has done them; the first third
does not count.  Fails if lowland is below 0.98 of the plain
loop, or waits for images for more than 2 % of a step.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from common import circumstances, middle, run_child, script, write_json
from image_pipeline import SHAPE, encoded, smooth
from vision_steps import CLASSES, Job, Timing

BAR, WAITING = 0.98, 0.02
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-5}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], float | None]] = {
    "resnet50": ({"model_type": "resnet"}, SGD, None),
    "vit-b/16": ({"model_type": "vit"}, ADAMW, 1.0),
}
"""By name: transformers' configuration, whose defaults these two are; optimizer; gradient norm to clip at."""
TINY = {
    "resnet50": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "vit-b/16": {
        "model_type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 8,
    },
}
KINDS, LOOPS = ("memory", "jpeg"), ("lowland", "plain")
HEAD = (
    *("network", "data", "loop", "images/s", "lowland / plain", "MFU", "step ms", "forward, backward ms"),
    *("optimizer ms", "GPU idle ms", "waiting for images", "peak GiB"),
)
WRITING = threading.Lock()
Runs = dict[str, dict[str, list[dict[str, Any]]]]
"""By network and loop: what each of its processes found, by kind of data."""


def main() -> int:
    """Measures what is missing, and prints."""
    options = arguments()
    models = [name for name in MODELS if any(part in name for part in options.models.split(","))]
    report = opened(options, models)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        data = write_data(folder, options)
        with ThreadPoolExecutor(options.gpus) as pool:
            places = [(index % options.gpus, name) for index, name in enumerate(models)]
            work_of = [[name for place, name in places if place == gpu] for gpu in range(options.gpus)]
            list(pool.map(lambda gpu: measure(options, folder, data, work_of[gpu], gpu, report), range(options.gpus)))
    print(f"\n{markdown(report)}")
    return 0 if options.tiny else bars(report)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="parts of names, separated by commas")
    parser.add_argument("--data", default=",".join(KINDS), help="which of these")
    parser.add_argument("--loops", default=",".join(LOOPS), help="which of these and waiting")
    parser.add_argument("--idle", action="store_true", help="profile a further window for how long the GPU is idle")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--window", type=int, default=10, help="steps per reading")
    parser.add_argument("--rounds", type=int, default=1, help="times that both loops are run, in turn")
    parser.add_argument("--gpus", type=int, default=1, help="networks measured at once, each on its own GPU")
    parser.add_argument("--threads", type=int, help="CPU threads of a process; the cores, shared by the GPUs")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs of the compiled network, in both loops")
    parser.add_argument("--timeout", type=float, default=240, help="seconds that one process may take")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds that this call may take")
    parser.add_argument("--out", type=Path, default=Path("vision_throughput.json"), help="results, after every process")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of no size, to try the benchmark itself")
    options = parser.parse_args()
    options.data, options.loops = options.data.split(","), options.loops.split(",")
    if unknown := {*options.data, *options.loops} - {*KINDS, *LOOPS, "waiting"}:
        parser.error(f"{', '.join(sorted(unknown))}: data are {', '.join(KINDS)}; loops {', '.join(LOOPS)}, waiting")
    if options.idle and options.device == "cpu":
        parser.error("--idle is about a GPU")
    options.threads = options.threads or max(1, (os.cpu_count() or 1) // options.gpus)
    if options.tiny:
        options.batch, options.steps, options.window, options.eager = 4, 6, 2, True
    if options.graphs and (options.eager or options.device == "cpu"):
        parser.error("--graphs is about compiled networks on a GPU")
    return options


def opened(options: argparse.Namespace, models: list[str]) -> dict[str, Any]:
    """What --out holds already of the same settings, or a new report."""
    names = ("data", "loops", "idle", "device", "batch", "steps", "window", "threads", "eager", "graphs", "tiny")
    settings = {name: getattr(options, name) for name in names}
    runs: Runs = {name: {loop: [] for loop in options.loops} for name in models}
    report = {"settings": settings, "runs": runs, "circumstances": circumstances(options.device, options.gpus)}
    if options.out.exists():
        held = json.loads(options.out.read_text(encoding="utf-8"))
        if held["settings"] != settings:
            sys.exit(f"{options.out}: holds runs with {held['settings']}, not {settings}; give --out another file")
        report["runs"] = runs | held["runs"]
    return report


def write_data(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Two folders of Parquet files: JPEG files of the size that the networks see, and of larger ones."""
    distinct, rows, side = (8, 16, 32) if options.tiny else (256, 2048, 224)
    found = {}
    shapes = {"memory": (side, side), "jpeg": (40, 50) if options.tiny else SHAPE}
    for kind, shape in ((kind, shapes[kind]) for kind in options.data):
        place = folder / kind
        place.mkdir()
        files = [encoded(smooth(seed, *shape)) for seed in range(distinct)]
        for name, amount in (("train", rows), ("test", 4)):
            images, labels = [files[i % distinct] for i in range(amount)], [i % CLASSES for i in range(amount)]
            pq.write_table(pa.table({"image": images, "label": labels}), place / f"{name}.parquet")
        found[kind] = str(place)
    return found


def measure(
    options: argparse.Namespace, folder: Path, data: dict[str, str], models: list[str], gpu: int, report: dict[str, Any]
) -> None:
    """Runs of some networks on one GPU, one after the other, as long as there is time."""
    begun = time.monotonic()
    for turn in range(options.rounds):
        for name in models:
            for loop in options.loops[::-1] if turn % 2 else options.loops:
                left = options.budget - (time.monotonic() - begun)
                if len(report["runs"][name][loop]) > turn or left <= 0:
                    continue
                job, result = (folder / f"{kind}-{gpu}.json" for kind in ("job", "result"))
                write_json(job, asdict(job_of(options, data, name, loop)))
                visible = {"CUDA_VISIBLE_DEVICES": str(gpu)} if options.device == "cuda" else {}
                command = script("vision_steps.py", str(job), str(result))
                error = run_child(
                    command, folder / f"{gpu}.log", timeout=min(options.timeout, left), environment=visible
                )
                if error is not None:
                    print(f"{name}, {loop}: failed: {error}", flush=True)
                    continue
                with WRITING:
                    report["runs"][name][loop].append(json.loads(result.read_text(encoding="utf-8")))
                    write_json(options.out, report)
                rates = {
                    kind: f"{run['samples_per_second']:.0f}" for kind, run in report["runs"][name][loop][-1].items()
                }
                print(f"{time.monotonic() - begun:4.0f} s  {name}, {loop}: {rates} images/s", flush=True)


def job_of(options: argparse.Namespace, data: dict[str, str], name: str, loop: Any) -> Job:
    """What a process is to time."""
    model, optimizer, norm = MODELS[name]
    return Job(
        loop=loop,
        model=TINY[name] if options.tiny else model,
        optimizer=optimizer,
        max_grad_norm=norm,
        data=data,
        size=32 if options.tiny else 224,
        batch=options.batch,
        steps=options.steps,
        window=options.window,
        threads=options.threads,
        device=options.device,
        bf16=options.device == "cuda",
        compile=not options.eager,
        graphs=options.graphs,
        idle=options.idle,
    )


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, Timing, float | None]]:
    """Network, data, loop, its medians over processes, and the rate of lowland's loops over the plain loop's."""
    found = []
    for name, loops in report["runs"].items():
        for kind in report["settings"]["data"]:
            rates = {
                loop: middle(run[kind]["samples_per_second"] for run in runs) for loop, runs in loops.items() if runs
            }
            for loop in rates:
                ratio = rates[loop] / rates["plain"] if loop != "plain" and "plain" in rates else None
                timings = [Timing(**run[kind]) for run in loops[loop]]
                split = {phase: middle(t.split[phase] for t in timings) for phase in timings[0].split}
                last = timings[-1]
                merged = Timing(rates[loop], [], split, last.memory_gib, last.mfu)
                found.append((name, kind, loop, merged, ratio))
    return found


def waiting(timing: Timing) -> float:
    """Share of a step in which the loop waits for images."""
    return timing.split["data"] / timing.split["step"]


def markdown(report: dict[str, Any]) -> str:
    """The table, with hardware and versions below it."""
    lines: list[tuple[str, ...]] = [HEAD, ("---",) * len(HEAD)]
    for name, kind, loop, timing, ratio in rows(report):
        phases = ("step", "forward_backward", "optimizer", "idle")
        times = [f"{1000 * timing.split[phase]:.1f}" if phase in timing.split else "-" for phase in phases]
        shown = (f"{timing.samples_per_second:,.0f}", "" if ratio is None else f"{ratio:.3f}")
        used = (f"{timing.mfu:.1%}" if timing.mfu else "-", *times, f"{waiting(timing):.1%}")
        memory = f"{timing.memory_gib:.1f}" if timing.memory_gib else "-"
        lines.append((name, kind, loop, *shown, *used, memory))
    settings = report["settings"]
    how = "eager" if settings["eager"] else "compiled with CUDA graphs" if settings["graphs"] else "compiled"
    note = f"{settings['batch']} images a step, {how}, "
    note += f"{settings['threads']} threads a process; {report['circumstances']}."
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", note])


def bars(report: dict[str, Any]) -> int:
    """Says what is not met: 1 if anything is not."""
    missed, seen = [], set[tuple[str, str, str]]()
    for name, kind, loop, timing, ratio in rows(report):
        seen.add((name, kind, loop))
        if loop == "lowland" and ratio is not None and ratio < BAR:
            missed.append(f"{name}, {kind}: lowland has {ratio:.3f} of the plain loop's rate, wanted {BAR}")
        if loop == "lowland" and waiting(timing) > WAITING:
            missed.append(f"{name}, {kind}: waits for images in {waiting(timing):.1%} of a step, wanted {WAITING:.0%}")
    wanted = [(name, kind, loop) for name in report["runs"] for kind in report["settings"]["data"] for loop in LOOPS]
    missed += [f"{', '.join(each)}: was not measured" for each in wanted if each not in seen]
    print("\n".join(missed) or "all bars are met")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
