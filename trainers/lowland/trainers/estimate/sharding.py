"""What each engine keeps of weights, masters, gradients and optimizer state on one GPU.

The arithmetic follows what DeepSpeed 0.19 allocates: flat buffers per parameter group, padded so that
every rank's part is equal; fp32 masters; gradient-reduction buckets; at stage 3 whole layers for a moment.
"""

from dataclasses import dataclass, replace

from lowland.trainers.estimate.activations import ActivationTrace
from lowland.trainers.estimate.optimizers import OptimizerMemory
from lowland.trainers.recipe import ShardingConfig

_FP32 = 4
_ALLREDUCE_ELEMENTS = 500_000_000
# DeepSpeed without ZeRO copies gradients into messages of at most this many elements.
_LIVE_ELEMENTS = 1_000_000_000
# stage3_max_live_parameters and stage3_max_reuse_distance: weights gathered and not yet given back.
_ALIGNMENT = 2
# Elements; each rank's part of a flat buffer starts at a multiple of it.

CONTEXT_BYTES = int(0.9 * 2**30)
"""What CUDA and NCCL take before a tensor is made; torch's memory statistics do not count it."""


@dataclass(frozen=True)
class Plan:
    """How a training is spread, in the terms that memory depends on."""

    workers: int
    sharding: ShardingConfig
    bf16: bool
    """Weights and activations in bf16 (engine deepspeed), or autocast to it (engine torch)."""
    accumulation: int
    """Micro-batches per worker and step."""

    @property
    def weight_bytes(self) -> int:
        """Bytes per weight in the forward pass."""
        return 2 if self.bf16 and self.sharding.engine == "deepspeed" else _FP32

    @property
    def gradient_bytes(self) -> int:
        """Bytes per element in which gradients are accumulated."""
        if self.weight_bytes == _FP32:
            return _FP32
        dtype = self.sharding.gradient_dtype
        return _FP32 if dtype == "float32" or (dtype == "auto" and self.accumulation > 1) else 2

    def at_stage(self, stage: int) -> "Plan":
        """The same training at another ZeRO stage."""
        offload = self.sharding.offload_optimizer and stage > 0
        sharding = self.sharding.model_copy(
            update={"engine": "deepspeed", "stage": stage, "offload_optimizer": offload}
        )
        return replace(self, sharding=sharding)


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by part, and on the host per worker."""

    weights: int
    """In the forward pass; at stage 3 with those that are gathered at a time."""
    masters: int
    """fp32 copies that the optimizer steps; none if the weights are fp32 and whole."""
    optimizer: int
    """Optimizer state, and what is held between the passes of a step."""
    gradients: int
    """As they are kept until the step."""
    buffers: int
    """Reduction buckets, while the backward pass runs."""
    activations: int
    """The most during forward and backward, with logits, beyond the gradients kept."""
    step: int
    """Held for a moment by the optimizer step, instead of buffers and activations."""
    context: int
    """CUDA and NCCL."""
    host: int
    """Host memory per worker, with offload."""

    @property
    def allocated(self) -> int:
        """The peak that torch.cuda.max_memory_allocated should show."""
        resident = self.weights + self.masters + self.optimizer + self.gradients
        return resident + max(self.buffers + self.activations, self.step)

    @property
    def total(self) -> int:
        """What the GPU must have free; fragmentation may add some percent."""
        return self.allocated + self.context


def memory(
    plan: Plan, groups: tuple[int, ...], optimizer: OptimizerMemory, trace: ActivationTrace, largest: int = 0
) -> Memory:
    """Memory of one worker.

    Args:
        plan: how the training is spread.
        groups: trainable parameters of each parameter group.
        optimizer: bytes per element of its state and step.
        trace: activations of a micro-batch, in the same precision.
        largest: elements of the largest parameter.
    """
    count, part = sum(groups), sum(partition(group, plan.workers) for group in groups)
    stage = plan.sharding.zero_stage
    stepped = count if stage == 0 else part
    masters = 0 if stage == 0 and plan.weight_bytes == _FP32 else _FP32 * stepped
    weights, gradients, buffers = _weights(plan, count, part), *_gradients(plan, count, part)
    # Between passes a copy of the masters is held only where the model computes with them.
    passes = max(0.0, optimizer.passes - (_FP32 if masters else 0))
    state = int((optimizer.state + passes) * stepped)
    step = _step(plan, groups) + int(optimizer.step * _largest_step(plan, groups))
    host = 0
    if plan.sharding.offload_optimizer:
        # Masters, state and fp32 gradients, and at stages 1 and 2 a pinned copy in the weights' type.
        copy = plan.weight_bytes if stage < 3 else plan.gradient_bytes
        host = masters + state + (_FP32 + copy) * part + int(optimizer.step * part)
        masters = state = step = 0
        gradients, buffers = 0, buffers + plan.weight_bytes * largest
    peak = trace.peak(gradients / count, held=_held(plan)) - gradients
    return Memory(weights, masters, state, gradients, buffers, max(peak, 0), step, CONTEXT_BYTES, host)


def partition(elements: int, workers: int) -> int:
    """Elements of a flat buffer on each rank: its length is padded to a multiple of twice the workers."""
    unit = _ALIGNMENT * workers
    return -(-elements // unit) * unit // workers


def _weights(plan: Plan, count: int, part: int) -> int:
    if plan.sharding.zero_stage == 3:
        gathered = min(count, _LIVE_ELEMENTS) if plan.workers > 1 else 0
        return plan.weight_bytes * (part + gathered)
    casts = 2 * count if plan.bf16 and plan.sharding.engine == "torch" else 0  # autocast keeps them for a step
    return plan.weight_bytes * count + casts


def _gradients(plan: Plan, count: int, part: int) -> tuple[int, int]:
    """Bytes kept until the step, and bytes of buckets during the backward pass."""
    stage, weight = plan.sharding.zero_stage, plan.weight_bytes
    bucket = plan.sharding.bucket(count)
    buckets = weight * bucket * (2 if plan.sharding.overlap else 1)
    match stage:
        case 0:
            return weight * count, 0
        case 1 if plan.gradient_bytes != weight:  # BF16_Optimizer: both types, whole, and no buckets
            return (weight + plan.gradient_bytes) * count, 0
        case 1:
            accumulated = weight * count if plan.accumulation > 1 else 0
            return weight * part + accumulated, buckets
        case 2:
            return plan.gradient_bytes * part, buckets
        case _:
            return plan.gradient_bytes * part, 2 * weight * bucket


def _held(plan: Plan) -> bool:
    """Whether memory for gradients is there before the backward pass makes them."""
    buffer = plan.sharding.zero_stage == 3 or plan.gradient_bytes != plan.weight_bytes
    replicated = plan.sharding.engine == "torch" and plan.workers > 1  # DDP's buckets are the gradients
    return plan.accumulation > 1 or buffer or replicated


def _step(plan: Plan, groups: tuple[int, ...]) -> int:
    """fp32 copies of gradients in the step; ZeRO makes them group by group."""
    count, stage = sum(groups), plan.sharding.zero_stage
    largest = partition(max(groups), plan.workers)
    if plan.sharding.engine == "torch":
        return 0
    if stage == 0:
        message = min(count, _ALLREDUCE_ELEMENTS) * plan.weight_bytes
        return max(message, _FP32 * count if plan.weight_bytes != _FP32 else 0)
    if stage < 3 and plan.gradient_bytes != plan.weight_bytes:
        return 0  # they are fp32 already, in one piece
    flat = plan.gradient_bytes * largest
    cast = _FP32 * largest if plan.gradient_bytes != _FP32 else 0
    return flat + cast + (plan.weight_bytes * plan.sharding.bucket(count) if stage == 3 else 0)


def _largest_step(plan: Plan, groups: tuple[int, ...]) -> int:
    """Elements in the largest call of the optimizer's step: all at once, or under ZeRO a group's part."""
    stage = plan.sharding.zero_stage
    return sum(groups) if stage == 0 else partition(max(groups), plan.workers)
