"""Activation memory, by running the model's own code where tensors have no storage."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lowland.trainers.errors import UserError
from lowland.trainers.estimate.allocations import Allocations
from lowland.trainers.models import CausalLMLoss

_STAND_IN = "lowland-estimate"


class NoEstimateError(UserError):
    """The model cannot be run without data."""


@dataclass(frozen=True)
class ActivationTrace:
    """Memory over one forward and backward pass of a micro-batch, without weights."""

    points: tuple[tuple[int, int], ...]
    """(elements of gradients made so far, most bytes of activations while there were that many)."""

    def peak(self, bytes_per_gradient: float = 0.0, *, held: bool = False) -> int:
        """The most bytes at any moment, gradients made so far included.

        Args:
            bytes_per_gradient: what is kept of each gradient element once it is made.
            held: gradients are there from the beginning: they are accumulated or have a buffer.
        """
        total = self.points[-1][0]
        return max(
            activations + int(bytes_per_gradient * (total if held else made)) for made, activations in self.points
        )


def trace_activations(
    config: PretrainedConfig,
    *,
    micro_batch: int,
    sequence_length: int,
    dtype: torch.dtype,
    attention: str,
    isolate: bool,
    checkpointing: bool,
    fused_loss: bool,
) -> ActivationTrace:
    """Traces a training pass of a causal LM on the meta device; takes well under a second for most models.

    Args:
        config: the transformers configuration; nothing is read besides.
        micro_batch: sequences, >= 1.
        sequence_length: tokens per sequence.
        dtype: of weights and activations.
        attention: implementation by its transformers name; all but `eager` stand for kernels that keep no scores.
        isolate: documents are kept apart, which `sdpa` does by a mask of L x L per sequence.
        checkpointing: layers are recomputed in the backward pass.
        fused_loss: the LM head is fused with the loss.

    Raises:
        NoEstimateError: the model's operations depend on values, as routing in some mixtures of experts does.
    """
    network = meta_network(config, dtype=dtype, attention=attention, masked=isolate and attention == "sdpa")
    network.train()
    network.config.use_cache = False
    if checkpointing:
        with warnings.catch_warnings():
            # The newer name is not in every transformers that lowland takes.
            warnings.simplefilter("ignore", FutureWarning)
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = CausalLMLoss(network, fused=False)
    tokens = torch.zeros(micro_batch, sequence_length, dtype=torch.long, device="meta")
    points: dict[int, int] = {}
    with Allocations() as allocations, _gradients_dropped(model, allocations, points):
        try:
            loss = _fused(network, tokens) if fused_loss else model(tokens, tokens)
            loss.backward()
        except (RuntimeError, NotImplementedError) as error:
            raise NoEstimateError(
                f"the activations of {type(network).__name__} cannot be known without running it ({error})"
            ) from error
    return ActivationTrace(tuple(points.items()))


def meta_network(
    config: PretrainedConfig, *, dtype: torch.dtype, attention: str = "sdpa", masked: bool = False
) -> PreTrainedModel:
    """The network of a configuration without memory for its weights."""
    stand_in = _eager_attention if attention == "eager" else _masked_attention if masked else _attention
    AttentionInterface.register(_STAND_IN, stand_in)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=_STAND_IN, dtype=dtype)


@contextmanager
def _gradients_dropped(model: nn.Module, allocations: Allocations, points: dict[int, int]) -> Iterator[None]:
    """Notes the peak between two gradients, and drops each gradient: what becomes of it depends on the engine."""
    made = 0

    def note(parameter: Tensor) -> None:
        nonlocal made
        points[made] = allocations.peak
        made += parameter.numel()
        if parameter.grad is not None:
            allocations.forget(parameter.grad)
        parameter.grad = None
        allocations.peak = allocations.held

    hooks = [
        parameter.register_post_accumulate_grad_hook(note)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    yield
    points[made] = allocations.peak
    for hook in hooks:
        hook.remove()


class _Kernel(torch.autograd.Function):
    """Holds what a flash or memory-efficient kernel holds: its inputs, its output and a sum per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    out: Tensor = _Kernel.apply(query, key, value, None)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _masked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """sdpa with a mask: heads are repeated first, and torch turns the mask into a bias for each layer."""
    batch, length = query.shape[0], query.shape[2]
    bias = query.new_empty(batch, 1, length, length)
    repeated = _repeat(key, query), _repeat(value, query)
    out: Tensor = _Kernel.apply(query, *repeated, bias)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def _eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Scores in memory, their softmax in fp32, as transformers does it."""
    scores = query @ _repeat(key, query).transpose(2, 3) * query.shape[-1] ** -0.5
    probabilities = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = probabilities @ _repeat(value, query)
    return out.transpose(1, 2).contiguous(), None


def _repeat(heads: Tensor, query: Tensor) -> Tensor:
    """Keys or values [B, KV, L, D], one for each query head."""
    repeats = query.shape[1] // heads.shape[1]
    return heads.repeat_interleave(repeats, dim=1) if repeats > 1 else heads


class _FusedLoss(torch.autograd.Function):
    """Holds what the fused kernel does: both gradients, made in the forward pass, and one chunk of logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        grads = torch.empty_like(hidden), torch.empty_like(weight)
        tokens, width = hidden.shape
        # The kernel cuts the tokens so that a chunk of logits is about as large as the hidden states.
        chunks = -(-weight.shape[0] // width)
        hidden.new_empty(-(-tokens // chunks), weight.shape[0], dtype=torch.float32)
        ctx.save_for_backward(*grads)
        return hidden.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        return hidden, weight


def _fused(network: PreTrainedModel, tokens: Tensor) -> Tensor:
    hidden = network.base_model(input_ids=tokens, use_cache=False)[0]
    head = network.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    loss: Tensor = _FusedLoss.apply(hidden.flatten(0, 1), head.weight)  # type: ignore[no-untyped-call]
    return loss
