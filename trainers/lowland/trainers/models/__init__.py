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
from lowland.trainers.models.initialisation import reshape_initial_weights

__all__ = [
    "CausalLMLoss",
    "build_causal_lm",
    "model_card",
    "model_config",
    "num_parameters",
    "prepare_for_training",
    "reshape_initial_weights",
    "save_model",
]
