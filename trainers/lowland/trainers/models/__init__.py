"""The networks that are trained."""

from lowland.trainers.models.batch_norm import StepBatchNorm2d, settle, use_step_batch_norm
from lowland.trainers.models.card import model_card
from lowland.trainers.models.causal_lm import (
    CausalLMLoss,
    build_causal_lm,
    model_config,
    num_parameters,
    prepare_for_training,
    save_model,
)
from lowland.trainers.models.image_classifier import ImageClassifierLoss, ImageInput
from lowland.trainers.models.image_folders import load_classifier, save_classifier
from lowland.trainers.models.image_networks import build_image_classifier, classifier_network, classifier_sizes
from lowland.trainers.models.initialisation import reshape_initial_weights

__all__ = [
    "CausalLMLoss",
    "ImageClassifierLoss",
    "ImageInput",
    "StepBatchNorm2d",
    "build_causal_lm",
    "build_image_classifier",
    "classifier_network",
    "classifier_sizes",
    "load_classifier",
    "model_card",
    "model_config",
    "num_parameters",
    "prepare_for_training",
    "reshape_initial_weights",
    "save_classifier",
    "save_model",
    "settle",
    "use_step_batch_norm",
]
