"""Predicted against measured peak memory of training on one GPU.

    python benchmarks/estimate_memory.py [--output estimate_memory.json]

Trains three steps of Llamas of about 0.1, 0.4 and 1 B parameters (bf16, sequence 2048, AdamW) with lowland's own
engine at ZeRO 1, 2 and 3, activations kept and recomputed, and compares what `lowland.trainers.estimate` said with
torch.cuda.max_memory_allocated.  Each training has a process of its own: what an engine leaves behind would count
against the next.  About five minutes on one GPU of 40 GB or more; without a GPU it says so and ends.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from lowland.trainers.data.manifest import Manifest, SplitInfo, TokenizerInfo
from lowland.trainers.engines import build_engine
from lowland.trainers.estimate import Estimate, estimate
from lowland.trainers.models import model_config, prepare_for_training
from lowland.trainers.models.fused_loss import fused_loss_available
from lowland.trainers.recipe import CausalLMConfig
from lowland.trainers.world import World

SIZES = {
    "0.1 B": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "0.4 B": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1 B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "num_attention_heads": 16},
}
SEQUENCE_LENGTH, MICRO_BATCH, STEPS = 2048, 4, 3


@dataclass(frozen=True)
class Row:
    """One training."""

    model: str
    parameters: int
    stage: int
    checkpointing: bool
    fused_loss: bool
    predicted: int
    measured: int
    resident_predicted: int
    """Weights, masters and optimizer state, between steps."""
    resident_measured: int

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def main() -> None:
    """Measures every case, or the one that is asked for."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=Path, default=Path("estimate_memory.json"))
    arguments.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    arguments.add_argument("--case", nargs=3, metavar=("SIZE", "STAGE", "RECOMPUTED"), help="one training, as JSON")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: peak memory can be measured on a GPU only")
    if chosen.case:
        size, stage, recomputed = chosen.case
        print(json.dumps(asdict(measure(size, int(stage), recomputed == "True", start()))))
        return
    cases = [(size, stage, way) for size in chosen.sizes for stage in (1, 2, 3) for way in (False, True)]
    rows = [in_own_process(*case) for case in cases]
    show(rows)
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "sequence_length": SEQUENCE_LENGTH,
        "micro_batch": MICRO_BATCH,
        "rows": [asdict(row) | {"error": row.error} for row in rows],
    }
    chosen.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_own_process(size: str, stage: int, recomputed: bool) -> Row:
    """One case in a process that ends with it."""
    command = [sys.executable, __file__, "--case", size, str(stage), str(recomputed)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Row(**json.loads(output.splitlines()[-1]))


def start() -> World:
    """One process per GPU; DeepSpeed wants a process group for a single one too."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29511")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return World.current(device)


def measure(name: str, stage: int, checkpointing: bool, world: World) -> Row:
    """Trains a few steps and compares."""
    config, data = make_config(name, stage, checkpointing), make_data()
    model = model_config(config.model, vocab_size=data.tokenizer.vocab_size, special_tokens={})
    with world.device:
        network = AutoModelForCausalLM.from_config(model, attn_implementation="sdpa", dtype=torch.bfloat16)
    fused = fused_loss_available(network, world.device) is None
    expected = estimate(config, workers=world.size, data=data, fused_loss=fused)
    module = prepare_for_training(network, config.model, device=world.device, checkpointing=checkpointing)
    engine = build_engine(module, config, bf16=True, accumulation=1, world=world)
    tokens = torch.randint(model.vocab_size, (MICRO_BATCH, SEQUENCE_LENGTH), device=world.device)
    for step in range(STEPS):
        if step == 1:  # the first step makes the optimizer's state
            torch.cuda.reset_peak_memory_stats(world.device)
        engine.accumulate({"input_ids": tokens, "labels": tokens}, scale=1 / tokens.numel(), last=True)
        engine.step(1e-4)
    torch.cuda.synchronize(world.device)
    measured = torch.cuda.max_memory_allocated(world.device)
    resident = torch.cuda.memory_allocated(world.device)
    return make_row(name, expected, fused, measured, resident)


def make_row(name: str, expected: Estimate, fused: bool, measured: int, resident: int) -> Row:
    """What was said beside what was."""
    memory = expected.memory
    kept = memory.weights + memory.masters + memory.optimizer
    total, stage, way = expected.parameters.total, expected.stage, expected.checkpointing
    return Row(name, total, stage, way, fused, memory.allocated, measured, kept, resident)


def make_config(name: str, stage: int, checkpointing: bool) -> CausalLMConfig:
    """The recipe of one training."""
    fields = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": SEQUENCE_LENGTH}
    return CausalLMConfig.model_validate(
        {
            "length": f"{STEPS} steps",
            "model": {
                "config": fields | SIZES[name],
                "dtype": "bfloat16",
                "gradient_checkpointing": "always" if checkpointing else "never",
            },
            "data": {"path": "none", "boundaries": "ignore"},
            "optimizer": {"name": "adamw", "lr": 1e-4},
            "batch": {"micro_batch": MICRO_BATCH},
            "sharding": {"stage": stage},
        }
    )


def make_data() -> Manifest:
    """A manifest of no data: only the sequence length matters."""
    return Manifest(
        tokenizer=TokenizerInfo(kind="byte", digest="", vocab_size=258, bos_id=256, eos_id=256, pad_id=257),
        sequence_length=SEQUENCE_LENGTH,
        dtype="uint16",
        packing="split",
        seed=0,
        held_out=0.0,
        splits={"train": SplitInfo(rows=MICRO_BATCH * STEPS)},
        sources=(),
        bad_rows={},
        document_lengths={},
    )


def show(rows: list[Row]) -> None:
    """The table, and the largest error."""
    names = ("model", "parameters", "ZeRO", "activations", "predicted GiB", "measured GiB", "error", "resident GiB")
    table = Table(*names, title=f"{torch.cuda.get_device_name()}, one GPU, sequence {SEQUENCE_LENGTH}")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.parameters / 1e6:.0f} M",
            str(row.stage),
            "recomputed" if row.checkpointing else "kept",
            f"{row.predicted / 2**30:.2f}",
            f"{row.measured / 2**30:.2f}",
            f"{row.error:+.1%}",
            f"{row.resident_predicted / 2**30:.2f} / {row.resident_measured / 2**30:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    worst = max(rows, key=lambda row: abs(row.error))
    console.print(f"largest error {worst.error:+.1%}: {worst.model}, ZeRO-{worst.stage}")


if __name__ == "__main__":
    main()
