"""ZeRO 0 to 3 by DeepSpeed, with any optimizer."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.optim import LayoutOptimizer, Parameter, Point, Weights, shared_state
from lowland.trainers.blocks import repeated_blocks
from lowland.trainers.engines import state
from lowland.trainers.engines.engine import Inputs, StatePiece
from lowland.trainers.engines.outcome import StepOutcome
from lowland.trainers.engines.zero_layout import ZeroLayout
from lowland.trainers.engines.zero_speed import batch_gradient_checks
from lowland.trainers.recipe import ShardingConfig
from lowland.trainers.world import World

# On CPUs DeepSpeed would compile a kernel that only inference uses: a minute and 3 GB of the compiler before the
# first run, and a process killed meanwhile leaves a lock for which all later runs wait without an end or a word.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def deepspeed_config(
    sharding: ShardingConfig,
    *,
    parameters: int,
    bf16: bool,
    micro_batch: int,
    accumulation: int,
    max_grad_norm: float | None,
) -> dict[str, Any]:
    """DeepSpeed's configuration of a run on a model of so many parameters."""
    fp32_gradients = sharding.gradient_dtype == "float32" or (sharding.gradient_dtype == "auto" and accumulation > 1)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        # Stage 0 in fp32 has no check for gradients that are not finite: the engine clips there itself.
        "gradient_clipping": 0.0 if sharding.stage == 0 and not bf16 else max_grad_norm or 0.0,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**12,
        # Both flags only say "this optimizer is not one of DeepSpeed's": what is not exact on pieces of tensors was
        # refused when it was built, and the layout is verified.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16 and fp32_gradients and sharding.stage < 2:
        # These stages sum over ranks what a whole step accumulated: in bf16 it would lose its digits there.
        config["communication_data_type"] = "fp32"
    if bf16 and sharding.stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32" if fp32_gradients else "bf16"}
    if sharding.stage > 0:
        config["zero_optimization"] = _zero_config(sharding, sharding.bucket(parameters))
    return config


def _zero_config(sharding: ShardingConfig, bucket: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": sharding.stage,
        "overlap_comm": sharding.overlap,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if sharding.stage == 3:
        # A block is gathered whole: less than one block of prefetch would hide nothing.
        zero["stage3_prefetch_bucket_size"] = bucket
        # DeepSpeed's own linear layer looks at each weight in Python, which breaks a compiled block into pieces.
        zero["memory_efficient_linear"] = False
    if sharding.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return zero


class DeepSpeedEngine:
    """A DeepSpeed engine whose state is known by parameter name."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        parameters: list[Parameter],
        config: dict[str, Any],
        *,
        world: World,
    ) -> None:
        deepspeed_logger.setLevel(logging.ERROR)
        self.module = module
        self._optimizer = optimizer
        self._world = world
        self._clip_here = math.inf
        self._stage: int = config.get("zero_optimization", {}).get("stage", 0)
        self.replicated = self._stage == 0
        if self._stage == 3:
            # Gathered block by block: DeepSpeed's hooks on every small module inside would break a compiled
            # block into pieces, and cost a collective each.
            if blocks := {type(block) for block in repeated_blocks(module)}:
                deepspeed.utils.set_z3_leaf_modules(module, list(blocks))
            # Part by part: a whole model need not fit on one device.
            deepspeed.zero.Init(module=module, config_dict_or_path=config, enabled=True)
        with state.dormant(optimizer):
            self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        batch_gradient_checks(self._engine, optimizer)
        self._zero = ZeroLayout(self._engine, parameters)
        if isinstance(optimizer, LayoutOptimizer):
            optimizer.attach(self._zero.layout)
        self._point = Point(optimizer, self._zero)

    @classmethod
    def build(
        cls,
        module: nn.Module,
        optimizer: Optimizer,
        parameters: list[Parameter],
        sharding: ShardingConfig,
        *,
        world: World,
        bf16: bool,
        micro_batch: int,
        accumulation: int,
        max_grad_norm: float | None,
    ) -> "DeepSpeedEngine":
        """The engine of a recipe's sharding section."""
        config = deepspeed_config(
            sharding,
            parameters=sum(parameter.numel for parameter in parameters),
            bf16=bf16,
            micro_batch=micro_batch,
            accumulation=accumulation,
            max_grad_norm=max_grad_norm,
        )
        engine = cls(module, optimizer, parameters, config, world=world)
        if sharding.stage == 0 and not bf16:
            engine._clip_here = max_grad_norm or math.inf
        return engine

    def accumulate(self, inputs: Inputs, *, scale: float, last: bool) -> Tensor:
        """Forward and backward; DeepSpeed averages over ranks, so the scale is multiplied by their number."""
        # At stage 0, gradients that are not to be averaged stay as they are; at other stages there are none.
        self._engine.set_gradient_accumulation_boundary(last and not self._point.per_rank)
        loss: Tensor = self._engine(**inputs)
        self._engine.backward(state.scaled(loss, scale * self._world.size), scale_wrt_gas=False)
        return loss.detach()

    def step(self, lr_factor: float) -> StepOutcome:
        """One DeepSpeed step, or a move of the point where the next gradients are taken.

        DeepSpeed itself discards a step whose gradient norm is not finite.
        """
        if not self._point.steps_now():
            ascended = self._point.ascend()
            return StepOutcome(ascended.finite, ascended.norm, ascended.finite)
        state.set_lr(self._optimizer, lr_factor)
        self._point.arrive()
        if self._stage == 0 and not self._engine.bfloat16_enabled():
            outcome = self._step_unwrapped()
        else:
            with state.reductions(self._optimizer, self._zero.gradients()):
                self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            outcome = StepOutcome(bool(self._engine.was_step_applied()), norm)
        return replace(outcome, again=self._point.go_on(outcome.applied))

    @property
    def several_passes(self) -> bool:
        """Whether a step may evaluate its batch more than once."""
        return self._point.several_passes

    @property
    def weights(self) -> Weights:
        """In DeepSpeed's tensors."""
        return self._zero

    def _step_unwrapped(self) -> StepOutcome:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = float(norm)
        if not math.isfinite(grad_norm):
            self._engine.zero_grad()
            return StepOutcome(False, grad_norm)
        with state.reductions(self._optimizer, self._zero.gradients()):
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_here, norm)
            self._engine.step()
        return StepOutcome(True, grad_norm)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients inside."""
        self._engine.eval()
        try:
            with torch.no_grad(), self._point.at_evaluation_weights():
                yield
        finally:
            self._engine.train()

    def evaluate(self, inputs: Inputs) -> Tensor:
        """The sum of losses of a micro-batch."""
        loss: Tensor = self._engine(**inputs)
        return loss

    def pieces(self) -> Iterator[StatePiece]:
        """This rank's masters and state, by segment."""
        return state.pieces_of(self._optimizer, self._zero.layout)

    def create_state(self) -> None:
        """Creates zero optimizer state."""
        state.create_state(self._optimizer, self._zero.layout)

    def optimizer_metrics(self) -> dict[str, float]:
        """What the optimizer says of its last step."""
        return state.metrics(self._optimizer) | self._point.metrics()

    def shared_state(self) -> dict[str, float]:
        """Optimizer state of no single parameter."""
        return shared_state(self._optimizer)

    def load_shared_state(self, shared: Mapping[str, float]) -> None:
        """Restores it."""
        state.load_shared_state(self._optimizer, shared)

    def owned_state(self) -> dict[str, dict[str, Tensor | float]]:
        """State of whole parameters that this rank keeps for all."""
        return {} if self.replicated and self._world.rank > 0 else state.owned_state(self._optimizer)

    def load_owned_state(self, read: Callable[[str], dict[str, Tensor | float]]) -> None:
        """Restores it."""
        state.load_owned_state(self._optimizer, read)

    def masters_changed(self) -> None:
        """Brings the model's weights in line with the masters."""
        self._zero.masters_changed()

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer; stage 3 gathers one parameter at a time."""
        with self._point.at_evaluation_weights():
            for name, parameter in self.module.named_parameters():
                gather = deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3)
                with gather:
                    whole = parameter.detach().cpu().clone() if self._world.rank == 0 else None
                if whole is not None:
                    yield name, whole
        if self._world.rank == 0:
            yield from ((name, buffer.cpu()) for name, buffer in state.persistent_buffers(self.module))

    def close(self) -> None:
        """Frees DeepSpeed's buffers and hooks."""
        self._engine.destroy()
