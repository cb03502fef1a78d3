"""The recipe of a causal language model."""

from typing import Literal

from lowland.trainers.recipe.batch import BatchConfig
from lowland.trainers.recipe.data import PackedTextConfig
from lowland.trainers.recipe.evaluation import EvaluationConfig
from lowland.trainers.recipe.model import LanguageModelConfig
from lowland.trainers.recipe.train import TrainConfig


class CausalLMConfig(TrainConfig):
    """Training of a causal language model on packed text."""

    task: Literal["causal-lm"] = "causal-lm"
    """Next-token prediction."""
    model: LanguageModelConfig
    """The language model."""
    data: PackedTextConfig
    """The prepared text."""
    batch: BatchConfig
    """The global batch and its cut."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and on how much to evaluate."""
