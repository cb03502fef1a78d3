"""The kinds of training; a new one is a file here and a recipe class beside `CausalLMConfig`."""

from lowland.trainers.errors import RecipeError
from lowland.trainers.recipe import CausalLMConfig, ImageClassificationConfig, TrainConfig
from lowland.trainers.tasks.causal_lm import CausalLMTask
from lowland.trainers.tasks.image_classification import ImageClassificationTask
from lowland.trainers.tasks.task import Sizes, StepInputs, Task
from lowland.trainers.world import World

__all__ = ["CausalLMTask", "ImageClassificationTask", "Sizes", "StepInputs", "Task", "build_task"]


def build_task(config: TrainConfig, world: World) -> Task:
    """The task that a recipe names, with its data opened."""
    if isinstance(config, CausalLMConfig):
        return CausalLMTask(config, world)
    if isinstance(config, ImageClassificationConfig):
        return ImageClassificationTask(config, world)
    raise RecipeError(f"task = {config.task}: unknown task; the tasks are: causal-lm, image-classification")
