"""CIFAR-10 with lowland: optimizers, wrong labels and pruning, each beside its base over seeds, with intervals.

    python benchmarks/vision_quality.py --images cifar10/ --gpus 2 --jobs 4 --out vision.json
    python benchmarks/vision_quality.py --device cpu --tiny        a dry run of every arm, on scikit-learn's digits

The folder holds train.parquet and test.parquet, with the columns image and label.  Arms are what recipes say that are
shipped, but for what `vision_arms.py` changes.  Optimizers take as many passes over the data, forward and backward;
`plain torch` is a loop without lowland.  --jobs trainings share a GPU.  A call goes on from the finished trainings in
--out; first all arms are trained with one seed, then with the next.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from fnmatch import fnmatch
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
from common import circumstances, write_json
from quality_tasks import prepare
from vision_arms import ARMS
from vision_plain import Outcome
from vision_report import tables
from vision_runs import start_worker, train

Run = tuple[str, int]
"""An arm's name and a seed."""
TINY: dict[str, Any] = {
    "model": {"architecture": "wide-resnet-10-1", "dtype": "float32", "channels_last": False},
    "data": {"size": 8, "channels": 1},
    "augmentation": {"padding": 1, "flip": 0.0},
    "batch": {"micro_batch": 32},
    "evaluation": {"micro_batch": 100},
}
"""What a dry run changes."""
GRAPHS: dict[str, Any] = {"compile": True, "cuda_graphs": True}
"""What --graphs changes of the network."""


class Store:
    """Finished trainings in a file, which a later call goes on from.

    Args:
        path: the file; None keeps nothing.
        settings: what all trainings in it have in common.

    Raises:
        SystemExit: it holds trainings of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path, self.outcomes = path, dict[Run, Outcome]()
        self._content: dict[str, Any] = {"settings": settings, "circumstances": [], "runs": []}
        if path is None or not path.exists():
            return
        self._content = json.loads(path.read_text(encoding="utf-8"))
        if self._content["settings"] != settings:
            held = self._content["settings"]
            raise SystemExit(f"{path}: holds trainings of {held}, not of {settings}; give --out another file")
        for run in self._content["runs"]:
            self.outcomes[run["arm"], run["seed"]] = Outcome(**run["outcome"])

    def add(self, run: Run, outcome: Outcome) -> None:
        """Keeps a finished training."""
        self.outcomes[run] = outcome
        self._content["runs"].append({"arm": run[0], "seed": run[1], "outcome": asdict(outcome)})
        self._write()

    def close(self, where: str) -> None:
        """Notes on what this call trained."""
        self._content["circumstances"].append(where)
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_json(self._path, self._content)


def main() -> int:
    """Trains what is missing, and prints."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        images, changes = gather(options, Path(folder))
        settings = {"epochs": options.epochs, "images": options.images.name if options.images else "digits"}
        settings |= {"graphs": True} if options.graphs else {}
        store = Store(options.out, settings)
        finished = run_all(options, images, changes, store)
    where = circumstances(options.device, options.gpus)
    store.close(where)
    print(tables(store.outcomes, as_markdown=options.markdown))
    how = ", compiled with CUDA graphs" if options.graphs else ""
    print(f"\n{where}; {options.jobs} trainings at once on each{how}.")
    if not finished:
        print("not all was trained: call again with the same --out")
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of train.parquet and test.parquet")
    parser.add_argument("--tasks", default="*", help="patterns of optimizers, noise, pruning")
    parser.add_argument("--arms", default="*", help=f"names or patterns, separated by commas, of {', '.join(ARMS)}")
    parser.add_argument("--epochs", type=float, help="passes over the data, forward and backward; the recipes' own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once on each GPU")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--graphs", action="store_true", help="compile, and start kernels by CUDA graphs")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds that this call may take")
    parser.add_argument("--tiny", action="store_true", help="a dry run: digits, a small network, a part of an epoch")
    parser.add_argument("--out", type=Path, help="JSON file that finished trainings are kept in and taken from")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    options = parser.parse_args()
    if options.images is None and not options.tiny:
        parser.error("--images: give a folder with train.parquet and test.parquet")
    if options.tiny:
        options.epochs = options.epochs or 3.0
    if options.graphs and options.device == "cpu":
        parser.error("--graphs is about GPUs")
    return options


def gather(options: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with the images as Parquet and as arrays, and what a dry run changes."""
    if options.images is None:
        _write_digits(folder)
    else:
        for name in ("train.parquet", "test.parquet"):
            (folder / name).symlink_to((options.images / name).absolute())
    if any(ARMS[name].by_hand for name, _ in plan(options)):
        prepare(folder, "images", folder / "arrays.npz")
    changes = TINY if options.tiny else {}
    return folder, changes | ({"model": {**changes.get("model", {}), **GRAPHS}} if options.graphs else {})


def _write_digits(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for name, part in (("train", slice(0, 300)), ("test", slice(300, 400))):
        rows = []
        for pixels in (digits.images[part] * (255 / 16)).astype(np.uint8):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            rows.append({"bytes": stream.getvalue()})
        pq.write_table(pa.table({"image": rows, "label": digits.target[part]}), folder / f"{name}.parquet")


def run_all(options: argparse.Namespace, images: Path, changes: dict[str, Any], store: Store) -> bool:
    """Trains what is missing, as long as there is time for it; whether all is done."""
    begun, longest = time.monotonic(), 0.0
    running: dict[Future[Outcome | str], Run] = {}
    waiting = [run for run in plan(options) if run not in store.outcomes]
    workers = min(options.gpus * options.jobs, max(1, len(waiting)))
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for place in chain.from_iterable(repeat(range(options.gpus), options.jobs)):
        devices.put("cpu" if options.device == "cpu" else f"cuda:{place}")
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed = 0
    with ProcessPoolExecutor(workers, context, start_worker, (devices, images, threads)) as pool:
        while waiting or running:
            while waiting and len(running) < workers and time.monotonic() - begun + longest < options.budget:
                run = waiting.pop(0)
                running[pool.submit(train, *run, options.epochs, changes)] = run
            if not running:
                return False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, found = running.pop(future), future.result()
                shown = found if isinstance(found, str) else f"{found.accuracy:.4f} in {found.seconds:.0f} s"
                print(f"{time.monotonic() - begun:6.0f} s  {run[0]}, seed {run[1]}: {shown}", flush=True)
                if isinstance(found, str):
                    failed += 1
                    continue
                longest = max(longest, found.seconds)
                store.add(run, found)
    return not failed


def plan(options: argparse.Namespace) -> list[Run]:
    """What is to be trained, seed by seed."""
    chosen = [name for name, arm in ARMS.items() if _matches(name, options.arms) and _matches(arm.task, options.tasks)]
    bases = {base for name in chosen if (base := ARMS[name].base)}
    names = [name for name in ARMS if name in chosen or name in bases]
    if not names:
        raise SystemExit(f"no arm is called {options.arms} in {options.tasks}; there are: {', '.join(ARMS)}")
    return [(name, seed) for seed in range(1, options.seeds + 1) for name in names]


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern.strip()) for pattern in patterns.split(","))


if __name__ == "__main__":
    sys.exit(main())
