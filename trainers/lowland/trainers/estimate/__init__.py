"""What a training will need, told before anything is allocated.

    activations   a forward and backward pass on the meta device, every allocation counted
    sharding      what ZeRO keeps of weights, masters, gradients and optimizer state, and where
    plan          both together, with tokens, steps, FLOPs and time

The model is built on torch's meta device: its tensors have shapes and no storage.
"""

from lowland.trainers.estimate.activations import ActivationTrace, NoEstimateError, trace_activations
from lowland.trainers.estimate.optimizers import OptimizerMemory, optimizer_memory
from lowland.trainers.estimate.plan import DEVICE_MEMORY_GIB, Estimate, Parameters, estimate, needs_checkpointing
from lowland.trainers.estimate.sharding import Memory, Plan, memory

__all__ = [
    "DEVICE_MEMORY_GIB",
    "ActivationTrace",
    "Estimate",
    "Memory",
    "NoEstimateError",
    "OptimizerMemory",
    "Parameters",
    "Plan",
    "estimate",
    "memory",
    "needs_checkpointing",
    "optimizer_memory",
    "trace_activations",
]
