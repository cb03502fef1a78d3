"""The hand-written loops that lowland is compared with; one variant in processes of its own.

    python benchmarks/baselines.py JOB.json RESULT.json     (started by the benchmarks)

No logging, tracking, checkpoints, schedule or checks: what one writes to see how fast it goes.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from common import Measurement, Variant, Workload, free_port, middle, read_tokens, write_json
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

IGNORED = -100
RATE, BETAS, DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


class Loop(NamedTuple):
    """The two halves of a step."""

    forward_backward: Callable[[Tensor, Tensor], None]
    """From token ids and labels, int64 [B, L]."""
    update: Callable[[], None]


class Clock:
    """Reads the time every few steps, when the GPU has come to their end."""

    def __init__(self, workload: Workload, tokens_per_step: int, device: torch.device) -> None:
        self._workload, self._tokens, self._device = workload, tokens_per_step, device
        self.rates: dict[int, float] = {}
        self.phases: dict[str, dict[int, float]] = {"forward_backward": {}, "optimizer": {}}
        self._marks: list[list[Any]] = []
        self._last = self._now()

    def mark(self) -> Any:
        """A point in the GPU's time, or the CPU's."""
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step(self, step: int, marks: list[Any]) -> None:
        """Takes the marks before, between and after the halves of a step; steps count from 1."""
        self._marks.append(marks)
        if step % self._workload.window:
            return
        now = self._now()
        self.rates[step] = self._tokens * self._workload.window / (now - self._last)
        for place, phase in enumerate(self.phases.values()):
            phase[step] = sum(_seconds(m[place], m[place + 1]) for m in self._marks) / self._workload.window
        self._marks, self._last = [], now

    def measurement(self) -> Measurement:
        """What the readings after the warm-up say."""
        readings = self._workload.measured(self.rates)
        split = {name: middle(self._workload.measured(phase)) for name, phase in self.phases.items()}
        memory = torch.cuda.max_memory_allocated(self._device) / 2**30 if self._device.type == "cuda" else None
        return Measurement(middle(readings), readings, split, memory)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _seconds(first: Any, last: Any) -> float:
    return float(last - first if isinstance(first, float) else first.elapsed_time(last) / 1000)


def build_model(workload: Workload, dtype: torch.dtype, device: torch.device) -> Any:
    """The network, initialised alike on every rank."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **workload.model, use_cache=False)
    with device:
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).train()


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW, no decay on vectors."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)


def fsdp2(workload: Workload, variant: Variant, device: torch.device) -> Loop:
    """FSDP2 on each decoder layer and the rest, fp32 masters, ordinary cross-entropy."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = build_model(workload, torch.float32, device)
    mesh = init_device_mesh(device.type, (workload.workers,))
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, workload.dtype), reduce_dtype=torch.float32)
    for layer in model.model.layers:
        if variant.compile:
            # The forward alone, so that FSDP's hooks stay outside of the compiled code.
            layer.forward = torch.compile(layer.forward, dynamic=False)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = build_optimizer(model)

    def forward_backward(tokens: Tensor, labels: Tensor) -> None:
        logits = model(input_ids=tokens).logits
        functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return Loop(forward_backward, update)


def naive(workload: Workload, variant: Variant, device: torch.device) -> Loop:
    """DeepSpeed with its own defaults and transformers' own loss, as one writes it first."""
    model = build_model(workload, getattr(torch, workload.dtype), device)
    if variant.recompute:
        model.gradient_checkpointing_enable()
    config = {
        "train_micro_batch_size_per_gpu": variant.micro_batch,
        "gradient_clipping": CLIP,
        "bf16": {"enabled": workload.dtype == "bfloat16"},
        "zero_optimization": {"stage": variant.stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }
    return _deepspeed(model, config, lambda tokens, labels, run: run(input_ids=tokens, labels=tokens).loss)


def hand(workload: Workload, variant: Variant, device: torch.device) -> Loop:
    """DeepSpeed with the very settings that lowland uses for the variant."""
    from lowland.trainers.engines.deepspeed_engine import deepspeed_config
    from lowland.trainers.recipe import ShardingConfig

    model = build_model(workload, getattr(torch, workload.dtype), device)
    if variant.recompute:
        model.gradient_checkpointing_enable()
    if variant.compile:
        for layer in model.model.layers:
            layer.compile()
    sharding = ShardingConfig.model_validate(sharding_fields(variant))
    config = deepspeed_config(
        sharding,
        parameters=sum(p.numel() for p in model.parameters()),
        bf16=workload.dtype == "bfloat16",
        micro_batch=variant.micro_batch,
        accumulation=1,
        max_grad_norm=CLIP,
    )
    return _deepspeed(_WithLoss(model, variant.fused_loss), config, lambda tokens, labels, run: run(tokens, labels))


class _WithLoss(nn.Module):
    """A model and its mean cross-entropy, fused with the head or not."""

    def __init__(self, model: Any, fused: bool) -> None:
        super().__init__()
        self.model, self._kernel = model, None
        if fused:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            self._kernel = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The loss of token ids and labels, int64 [B, L]."""
        if self._kernel is None:
            logits = self.model(input_ids=tokens).logits
            return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        hidden = self.model.model(input_ids=tokens)[0]
        loss: Tensor = self._kernel(self.model.lm_head.weight, hidden.flatten(0, 1), labels.flatten())
        return loss


def sharding_fields(variant: Variant) -> dict[str, Any]:
    """The variant as lowland's `sharding` section."""
    names = ("stage", "bucket_elements", "overlap", "gradient_dtype")
    return {name: getattr(variant, name) for name in names}


def _deepspeed(model: nn.Module, config: dict[str, Any], loss_of: Callable[[Tensor, Tensor, Any], Tensor]) -> Loop:
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, optimizer=build_optimizer(model), config=config)

    def forward_backward(tokens: Tensor, labels: Tensor) -> None:
        engine.backward(loss_of(tokens, labels, engine))

    return Loop(forward_backward, engine.step)


BUILDERS: dict[str, Callable[[Workload, Variant, torch.device], Loop]] = {
    "fsdp2": fsdp2,
    "naive": naive,
    "hand": hand,
    "ray": hand,
}


def start(rank: int, workload: Workload, variant: Variant, port: int, result: Path) -> None:
    """One rank, in a process of its own."""
    device = join(workload, rank, port)
    train(rank, workload, variant, device, result)
    dist.barrier()
    dist.destroy_process_group()


def train(rank: int, workload: Workload, variant: Variant, device: torch.device, result: Path) -> None:
    """One rank of a process group; rank 0 writes the measurement."""
    rows = read_tokens(Path(workload.folder, "data"))
    loop = BUILDERS[variant.loop](workload, variant, device)
    per_step = variant.micro_batch * workload.workers
    clock = Clock(workload, per_step * workload.sequence_length, device)
    for step in range(workload.steps):
        first = step * per_step + rank * variant.micro_batch
        tokens, labels = batch(rows[np.arange(first, first + variant.micro_batch) % len(rows)], device)
        before = clock.mark()
        loop.forward_backward(tokens, labels)
        between = clock.mark()
        loop.update()
        clock.step(step + 1, [before, between, clock.mark()])
    if rank == 0:
        write_json(result, asdict(clock.measurement()))


def batch(rows: npt.NDArray[np.uint16], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and labels, int64 [B, L], on their way to the device."""
    tokens = torch.from_numpy(rows.astype(np.int64))
    if device.type == "cuda":
        tokens = tokens.pin_memory().to(device, non_blocking=True)
    labels = tokens.roll(-1, 1)
    labels[:, -1] = IGNORED
    return tokens, labels


def join(workload: Workload, rank: int, port: int) -> torch.device:
    """Joins the process group of the workers, all on this machine; the rank's device."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(workload.workers),
        LOCAL_WORLD_SIZE=str(workload.workers),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(workload.threads)
    if workload.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    arguments = (Workload(**job["workload"]), Variant(**job["variant"]), free_port(), Path(sys.argv[2]))
    start_processes(start, arguments, nprocs=arguments[0].workers)
