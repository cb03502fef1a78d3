"""From a training's configuration to the numbers that `lowland estimate` shows."""

import importlib.util
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from lowland.trainers.data.manifest import Manifest
from lowland.trainers.data.store import manifest_of
from lowland.trainers.errors import RecipeError
from lowland.trainers.estimate.activations import NoEstimateError, meta_network, trace_activations
from lowland.trainers.estimate.optimizers import OptimizerMemory, optimizer_memory
from lowland.trainers.estimate.sharding import Memory, Plan, memory
from lowland.trainers.models import model_config
from lowland.trainers.optimizers import parameter_groups
from lowland.trainers.recipe import CausalLMConfig, TrainConfig

DEVICE_MEMORY_GIB = {
    "A10": 24,
    "A100": 80,
    "A100-40G": 40,
    "A100-80G": 80,
    "B200": 180,
    "GB200": 186,
    "H100": 80,
    "H200": 141,
    "L4": 24,
    "L40S": 48,
    "RTX 4090": 24,
}
"""Memory of common GPUs, from the vendor's data sheets."""

USABLE = 0.92
"""Part of a GPU's memory that a training may plan with; the allocator's fragmentation takes the rest."""


@dataclass(frozen=True)
class Parameters:
    """Counts of a model's parameters; a tied one counts once."""

    total: int
    trainable: int
    embedding: int
    """Of the input embedding."""
    largest: int
    """Of the largest single parameter."""


@dataclass(frozen=True)
class Estimate:
    """What a training will need."""

    parameters: Parameters
    workers: int
    stages: dict[int, dict[bool, Memory]]
    """Memory per GPU by ZeRO stage (only 0 for engine torch), without and with gradient checkpointing."""
    stage: int
    """The recipe's own stage."""
    checkpointing: bool
    """Whether the training will recompute activations."""
    device_memory: int | None
    """Bytes of one GPU; None if not known."""
    optimizer_state: float
    """Bytes of optimizer state per trainable parameter."""
    sequence_length: int
    tokens_per_step: int
    """Over all workers, padding included."""
    steps: int
    flops_per_token: int
    """6 N: forward and backward of every parameter."""
    attention_flops_per_token: int
    """12 L h T besides: the products of queries, keys and values, as if attention were not causal."""
    peak_flops: float | None
    """Of one GPU; None if not known."""
    mfu: float
    """Part of the peak that the time assumes."""

    @property
    def memory(self) -> Memory:
        """Of the recipe as it is."""
        return self.stages[self.stage][self.checkpointing]

    @property
    def checkpoint_bytes(self) -> int:
        """Of one checkpoint: fp32 weights and optimizer state."""
        return int(self.parameters.trainable * (4 + self.optimizer_state))

    @property
    def tokens(self) -> int:
        """Of the whole training."""
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        """Of the whole training: 6 N and attention; recomputation is not counted, as MFU does not."""
        return float(self.tokens) * (self.flops_per_token + self.attention_flops_per_token)

    @property
    def seconds(self) -> float | None:
        """At the stated MFU, without evaluation, checkpoints and start."""
        return self.flops / (self.peak_flops * self.workers * self.mfu) if self.peak_flops else None


def estimate(
    config: TrainConfig,
    *,
    workers: int,
    device_memory: int | None = None,
    peak_flops: float | None = None,
    mfu: float = 0.4,
    data: Manifest | None = None,
    fused_loss: bool | None = None,
) -> Estimate:
    """Estimates a training without allocating its model.

    Args:
        config: the training.
        workers: world size, >= 1.
        device_memory: bytes of one GPU; decides `gradient_checkpointing: auto`.
        peak_flops: of one GPU, dense, in the training's precision.
        mfu: part of the peak to assume, in (0, 1].
        data: manifest of the data; None reads it.
        fused_loss: whether the loss is fused with the head; None follows the recipe, `auto` meaning yes.

    Raises:
        UserError: the data or the model cannot be read, or the batch cannot be cut.
    """
    config = _causal_lm(config)
    data = data or manifest_of(config.data.path)
    model = _model_config(config, data)
    network = meta_network(model, dtype=torch.float32)
    accumulation = _accumulation(config, workers, data.sequence_length)
    examples = config.batch.micro_batch * accumulation * workers
    tokens_per_step = examples * data.sequence_length
    steps = config.length.in_steps(
        tokens_per_step=tokens_per_step, steps_per_epoch=data.splits["train"].rows / examples
    )
    parameters = count_parameters(network)
    fused = config.model.fused_loss != "never" if fused_loss is None else fused_loss
    optimizer = optimizer_memory(config.optimizer, network)
    stages = _stages(config, model, network, optimizer, workers, accumulation, data.sequence_length, fused)
    stage = config.sharding.zero_stage
    text = model.get_text_config()
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return Estimate(
        parameters=parameters,
        workers=workers,
        stages=stages,
        stage=stage,
        checkpointing=_decide(config, stages[stage][False], device_memory),
        device_memory=device_memory,
        optimizer_state=optimizer.state,
        sequence_length=data.sequence_length,
        tokens_per_step=tokens_per_step,
        steps=steps,
        flops_per_token=6 * parameters.total,
        attention_flops_per_token=12 * text.num_hidden_layers * width * data.sequence_length,
        peak_flops=peak_flops,
        mfu=mfu,
    )


def needs_checkpointing(
    config: TrainConfig, *, workers: int, device_memory: int | None, data: Manifest | None = None
) -> bool:
    """Whether the training recomputes activations: what `gradient_checkpointing` says, `auto` by the estimate.

    Args:
        config: the training.
        workers: world size.
        device_memory: bytes of one GPU; None for CPUs, where `auto` never recomputes.
        data: manifest of the data; None reads it.
    """
    config = _causal_lm(config)
    if config.model.gradient_checkpointing != "auto" or device_memory is None:
        return config.model.gradient_checkpointing == "always"
    # Asked where the training runs, so what is installed here counts.
    fused = config.model.fused_loss != "never" and importlib.util.find_spec("liger_kernel") is not None
    try:
        numbers = estimate(config, workers=workers, device_memory=device_memory, data=data, fused_loss=fused)
        return numbers.checkpointing
    except NoEstimateError:
        return True  # slower by a quarter, but it does not run out of memory


def count_parameters(network: PreTrainedModel) -> Parameters:
    """Counts of a network, on whatever device."""
    parameters = list(network.parameters())
    return Parameters(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        embedding=sum(p.numel() for p in network.get_input_embeddings().parameters()),
        largest=max(p.numel() for p in parameters),
    )


def _causal_lm(config: TrainConfig) -> CausalLMConfig:
    if not isinstance(config, CausalLMConfig):
        raise RecipeError(f"task = {config.task}: there is an estimate for causal-lm only")
    return config


def _model_config(config: CausalLMConfig, data: Manifest) -> PretrainedConfig:
    tokenizer = data.tokenizer
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return model_config(config.model, vocab_size=tokenizer.vocab_size, special_tokens=special)


def _accumulation(config: CausalLMConfig, workers: int, sequence_length: int) -> int:
    try:
        return config.batch.accumulation_steps(workers=workers, sequence_length=sequence_length)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _decide(config: CausalLMConfig, plain: Memory, device_memory: int | None) -> bool:
    match config.model.gradient_checkpointing:
        case "always":
            return True
        case "never":
            return False
        case _:
            return device_memory is not None and plain.total > USABLE * device_memory


def _stages(
    config: CausalLMConfig,
    model: PretrainedConfig,
    network: PreTrainedModel,
    optimizer: OptimizerMemory,
    workers: int,
    accumulation: int,
    sequence_length: int,
    fused: bool,
) -> dict[int, dict[bool, Memory]]:
    bf16 = config.model.dtype == "bfloat16"
    plan = Plan(workers, config.sharding, bf16, accumulation)
    groups = tuple(
        sum(p.numel() for p in group.parameters.values()) for group in parameter_groups(network, config.optimizer)
    )
    largest = count_parameters(network).largest
    result: dict[int, dict[bool, Memory]] = {}
    for checkpointing in (False, True):
        trace = trace_activations(
            model,
            micro_batch=config.batch.micro_batch,
            sequence_length=sequence_length,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            attention=config.model.attention,
            isolate=config.data.boundaries == "isolate",
            checkpointing=checkpointing,
            fused_loss=fused,
        )
        plans = [plan] if config.sharding.engine == "torch" else [plan.at_stage(stage) for stage in range(4)]
        for each in plans:
            needed = memory(each, groups, optimizer, trace, largest)
            result.setdefault(each.sharding.zero_stage, {})[checkpointing] = needed
    return result
