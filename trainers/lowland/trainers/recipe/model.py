"""Which language model is trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.section import Section


class LanguageModelConfig(Section):
    """A causal language model of transformers: read from a folder or hub id, or built from a configuration."""

    path: str | None = None
    """Local folder with safetensors, or a Hugging Face hub id, to start from."""
    config: dict[str, Any] | None = None
    """Configuration to build a freshly initialised model from: `model_type` (for example llama) and its fields."""
    init_scale: Annotated[float, Field(gt=0)] = 1.0
    """What the initial matrices of a model built from `config` are multiplied by; large ones make training lazy."""
    init_rank: Annotated[int, Field(ge=1)] | None = None
    """Largest rank of those matrices, their norms kept; null leaves them as they are."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations in the forward and backward pass; optimizers always update fp32 masters."""
    attention: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: Literal["never", "always", "auto"] = "auto"
    """Recompute activations in the backward pass; `auto` does so when the estimated memory exceeds the GPU's."""
    compile: bool = False
    """Compile each decoder layer with torch.compile; costs a minute at the start."""
    fused_loss: Literal["auto", "never", "always"] = "auto"
    """Fuse the LM head with the cross-entropy (liger-kernel), so that logits are never stored; `auto`: on GPUs."""
    trust_remote_code: bool = False
    """Run model code that comes with the folder or the hub id."""

    @model_validator(mode="after")
    def _one_source(self) -> "LanguageModelConfig":
        if (self.path is None) == (self.config is None):
            given = "both" if self.path is not None else "neither"
            raise ValueError(f"give either `path` or `config`; {given} is given")
        if self.path is not None and (self.init_scale != 1 or self.init_rank is not None):
            raise ValueError("`init_scale` and `init_rank` are for a model built from `config`; remove them, or `path`")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for example llama")
        return self
