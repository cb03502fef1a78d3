"""Peak memory of reading prepared data, for a data set and one many times larger.

    python benchmarks/data_memory.py [--rows 20000] [--times 20]

Each size is read in a process of its own: as many training steps, in the shuffled order, that every row
of the smaller set is read once.  Printed are the growth of the resident set from before the data is opened
to its peak, and of its anonymous part (RssAnon), which alone is memory that the process holds: the rest are
pages of the mapped shards, which the kernel shares between the ranks of a node and takes back when it needs
them.  Linux only (/proc/self/status).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import torch

from lowland.trainers.data.batches import TrainBatches
from lowland.trainers.data.manifest import Manifest, SplitInfo
from lowland.trainers.data.shards import Row, ShardWriter
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.tokenizers import load_tokenizer

SEQUENCE_LENGTH = 2048
BATCH = 16
MIB = 2**20


def write_split(folder: Path, rows: int) -> None:
    """A training split of random bytes, one document per row."""
    info = load_tokenizer("byte").info
    generator = np.random.default_rng(0)
    with ShardWriter(folder, "train", sequence_length=SEQUENCE_LENGTH, dtype="uint16", pad_id=info.pad_id) as writer:
        for _ in range(rows):
            tokens = generator.integers(0, 256, SEQUENCE_LENGTH, dtype=np.uint32)
            writer.write(Row([tokens], [1, SEQUENCE_LENGTH], SEQUENCE_LENGTH - 1))
    targets = rows * (SEQUENCE_LENGTH - 1)
    split = SplitInfo(
        rows=rows,
        tokens=rows * SEQUENCE_LENGTH,
        targets=targets,
        bytes=targets,
        documents=rows,
        shards=tuple(writer.shards),
    )
    Manifest(
        tokenizer=info,
        sequence_length=SEQUENCE_LENGTH,
        dtype="uint16",
        packing="fit",
        seed=0,
        held_out=0.0,
        splits={"train": split},
        sources=(),
        bad_rows={},
        document_lengths={SEQUENCE_LENGTH: rows},
    ).with_digest().write(folder)


def resident() -> dict[str, int]:
    """Bytes of this process: all of the resident set, and its anonymous part."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon")}


def read(folder: Path, steps: int) -> dict[str, float]:
    """Reads steps of training; growth of memory in MiB and milliseconds per step."""
    from time import perf_counter

    warm = torch.zeros(BATCH, SEQUENCE_LENGTH, dtype=torch.int64)  # torch's own start-up is not the data's
    del warm
    before = peak = resident()
    split = PackedSplit.open(folder, "train")
    batches = iter(TrainBatches(split, seed=0, micro_batch=BATCH))
    start = perf_counter()
    for i, _ in enumerate(islice(batches, steps)):
        if i % 10 == 0:
            now = resident()
            peak = {name: max(peak[name], now[name]) for name in peak}
    seconds = perf_counter() - start
    batches.close()
    growth = {name: (peak[name] - before[name]) / MIB for name in peak}
    return {**growth, "milliseconds": seconds / steps * 1000}


def measure(rows: int, steps: int) -> dict[str, float]:
    """Writes a split of so many rows and reads it in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), rows)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / MIB
        command = [sys.executable, __file__, "--read", folder, "--steps", str(steps)]
        result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return {"size": size, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the smaller set")
    parser.add_argument("--times", type=int, default=20, help="how many times larger the other set is")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(arguments.read, arguments.steps)))
        return
    steps = arguments.rows // BATCH
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, ", end="")
    print(f"pyarrow {pyarrow.__version__}, torch {torch.__version__}")
    print(f"{steps} steps of {BATCH} rows of {SEQUENCE_LENGTH} tokens; growth of memory at its peak, in MiB")
    print(f"{'data set':>12} {'resident':>12} {'anonymous':>12} {'ms/step':>10}")
    for rows in (arguments.rows, arguments.rows * arguments.times):
        found = measure(rows, steps)
        print(f"{found['size']:>8,.0f} MiB {found['VmRSS']:>12,.1f} {found['RssAnon']:>12,.1f} ", end="")
        print(f"{found['milliseconds']:>10.2f}")


if __name__ == "__main__":
    main()
