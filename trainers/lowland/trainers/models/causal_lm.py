"""Causal language models of transformers, as modules whose forward returns a sum of losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lowland.trainers.blocks import repeated_blocks
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.models.fused_loss import fuse_head, fused_loss_available
from lowland.trainers.models.initialisation import reshape_initial_weights
from lowland.trainers.recipe import LanguageModelConfig


class CausalLMLoss(nn.Module):
    """A language model with its loss.

    Args:
        network: a transformers causal LM.
        fused: compute the loss inside the LM head, so that logits are never stored.
    """

    def __init__(self, network: PreTrainedModel, *, fused: bool) -> None:
        super().__init__()
        self.network = network
        self._head = fuse_head(network) if fused else None
        self._flatten = str(network.config._attn_implementation).startswith("flash")

    def forward(self, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The sum of cross-entropies (nats, fp32).

        Args:
            input_ids: int64 [B, L].
            labels: int64 [B, L]; the token to predict at each position, -100 for none.
            position_ids: int64 [B, L], restarting at 0 with each document; None for one document a row.
        """
        if self._flatten and position_ids is not None:
            # Variable-length flash attention finds document boundaries in one row only.
            input_ids, labels, position_ids = (x.reshape(1, -1) for x in (input_ids, labels, position_ids))
        if self._head is not None:
            hidden = self.network.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]
            return self._head.loss(hidden, labels)
        logits = self.network(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")


def model_config(
    recipe: LanguageModelConfig, *, vocab_size: int, special_tokens: Mapping[str, int | None]
) -> PretrainedConfig:
    """The transformers configuration of a recipe.

    Args:
        recipe: the model section.
        vocab_size: of the data's tokenizer; a built model takes it (rounded up to a multiple of 64)
            unless its configuration says otherwise.
        special_tokens: `bos_token_id` and so on, for a built model.

    Raises:
        DataError: the folder or hub id cannot be read.
        RecipeError: the configuration is refused by transformers, or its vocabulary is too small.
    """
    if recipe.path is not None:
        config = _read_config(recipe)
    else:
        config = _build_config(recipe, vocab_size, special_tokens)
    if config.vocab_size < vocab_size:
        raise RecipeError(
            f"model vocabulary ({config.vocab_size}) is smaller than the data's tokenizer ({vocab_size}): "
            "prepare the data with the model's own tokenizer, or set model.config.vocab_size"
        )
    return config


def _read_config(recipe: LanguageModelConfig) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(recipe.path, trust_remote_code=recipe.trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"model.path = {recipe.path}: no model configuration can be read there: {error}") from error


def _build_config(
    recipe: LanguageModelConfig, vocab_size: int, special_tokens: Mapping[str, int | None]
) -> PretrainedConfig:
    assert recipe.config is not None
    fields: dict[str, Any] = {
        "vocab_size": -(-vocab_size // 64) * 64,
        **{name: token for name, token in special_tokens.items() if token is not None},
        **recipe.config,
    }
    model_type = fields.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"model.config: {error}") from error


def num_parameters(config: PretrainedConfig) -> int:
    """The model's parameters, tied ones once; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def build_causal_lm(
    recipe: LanguageModelConfig, config: PretrainedConfig, *, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """The network on the CPU: read from its folder, or initialised alike on every rank.

    Raises:
        DataError: the weights cannot be read.
        RecipeError: the attention implementation is not available for this model here.
    """
    try:
        if recipe.path is not None:
            return AutoModelForCausalLM.from_pretrained(
                recipe.path,
                config=config,
                dtype=dtype,
                attn_implementation=recipe.attention,
                trust_remote_code=recipe.trust_remote_code,
                use_safetensors=True,
            )
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config, attn_implementation=recipe.attention, dtype=torch.float32)
        reshape_initial_weights(network, scale=recipe.init_scale, rank=recipe.init_rank)
        return network.to(dtype)
    except OSError as error:
        raise DataError(f"model.path = {recipe.path}: no safetensors weights can be read there: {error}") from error
    except (ImportError, ValueError) as error:
        raise RecipeError(f"model.attention = {recipe.attention}: {error}") from error


def prepare_for_training(
    network: PreTrainedModel, recipe: LanguageModelConfig, *, device: torch.device, checkpointing: bool
) -> CausalLMLoss:
    """Adds what a recipe asks for: recomputation, compiled layers, the fused loss."""
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if recipe.compile:
        for block in repeated_blocks(network):
            # Its forward, not its call: hooks, as ZeRO-3 sets them, would break the graph.
            block.forward = torch.compile(block.forward)
    return CausalLMLoss(network, fused=_use_fused_loss(recipe, network, device))


def _use_fused_loss(recipe: LanguageModelConfig, network: PreTrainedModel, device: torch.device) -> bool:
    reason = fused_loss_available(network, device)
    if recipe.fused_loss == "always" and reason is not None:
        raise RecipeError(f"model.fused_loss = always: {reason}; set it to auto or never")
    return recipe.fused_loss != "never" and reason is None


def save_model(config: PretrainedConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Writes configuration and safetensors, loadable by AutoModelForCausalLM.from_pretrained."""
    folder.mkdir(parents=True, exist_ok=True)
    # What `dtype="auto"` loads; the configuration may have been read or made for another type.
    config.dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    config.save_pretrained(folder)
    save_torch_state_dict(weights, folder)
