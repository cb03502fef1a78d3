"""The networks that are trained."""

from lowland.trainers.models.card import model_card
from lowland.trainers.models.causal_lm import (
    CausalLMLoss,
    build_causal_lm,
    model_config,
    num_parameters,
    prepare_for_training,
    save_model,
)

__all__ = [
    "CausalLMLoss",
    "build_causal_lm",
    "model_card",
    "model_config",
    "num_parameters",
    "prepare_for_training",
    "save_model",
]
