"""The networks that are trained."""

from lowland.trainers.models.batch_norm import RunningAverages, StepBatchNorm2d, use_step_batch_norm
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
from lowland.trainers.models.image_folders import load_classifier, save_classifier, save_pair
from lowland.trainers.models.image_networks import build_image_classifier, classifier_network, classifier_sizes
from lowland.trainers.models.initialisation import reshape_initial_weights
from lowland.trainers.models.network_pair import CrossSplitLoss, NetworkPair, mean_prediction

__all__ = [
    "CausalLMLoss",
    "CrossSplitLoss",
    "ImageClassifierLoss",
    "ImageInput",
    "NetworkPair",
    "RunningAverages",
    "StepBatchNorm2d",
    "build_causal_lm",
    "build_image_classifier",
    "classifier_network",
    "classifier_sizes",
    "load_classifier",
    "mean_prediction",
    "model_card",
    "model_config",
    "num_parameters",
    "prepare_for_training",
    "reshape_initial_weights",
    "save_classifier",
    "save_model",
    "save_pair",
    "use_step_batch_norm",
]
