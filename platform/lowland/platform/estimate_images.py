"""What `lowland estimate` prints of an image classifier."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lowland.platform.estimate import add_stages, add_time, gib
from lowland.platform.recipe import ImageClassificationRecipe

if TYPE_CHECKING:
    from lowland.trainers.estimate.images import ImageEstimate

_PARTS = ("weights", "masters", "optimizer", "gradients", "buffers", "step", "context")


def print_image_estimate(
    recipe: ImageClassificationRecipe, console: Console, *, device: str | None, peak_flops: float | None, mfu: float
) -> None:
    """Prints parameters, memory per GPU at every ZeRO stage but for activations, work and time of a run.

    Args:
        recipe: the run.
        console: where to.
        device: name of the GPU; None if it is not known.
        peak_flops: of it.
        mfu: part of the peak that the time assumes, in (0, 1].

    Raises:
        UserError: the data or the model cannot be read.
    """
    from lowland.trainers.estimate.images import estimate_images

    numbers = estimate_images(recipe, workers=recipe.scaling.workers, peak_flops=peak_flops, mfu=mfu)
    console.print(_memory(numbers, recipe))
    console.print(_work(numbers, device))


def _memory(numbers: "ImageEstimate", recipe: ImageClassificationRecipe) -> Table:
    table = Table("", title=f"GiB per worker, {numbers.workers} workers", title_justify="left")
    add_stages(table, numbers.stages, numbers.stage, recipe)
    memories = list(numbers.stages.values())
    for part in _PARTS:
        if part != "context" or recipe.scaling.gpus_per_worker:
            table.add_row(part, *(gib(getattr(memory, part)) for memory in memories))
    table.add_row("activations", *("not known" for _ in memories))
    table.add_section()
    on_gpus = recipe.scaling.gpus_per_worker > 0
    table.add_row("[bold]at least", *(f"[bold]{gib(m.total if on_gpus else m.allocated)}" for m in memories))
    table.caption = "* the recipe's stage; activations come on top: they depend on how the GPU convolves"
    return table


def _work(numbers: "ImageEstimate", device: str | None) -> Table:
    table = Table("work", "", title="Run", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("parameters", f"{numbers.parameters:,}")
    table.add_row("classes", f"{numbers.classes:,}")
    table.add_row("images of", f"{numbers.size} x {numbers.size}")
    table.add_row("images per step", f"{numbers.images_per_step:,}")
    table.add_row("steps", f"{numbers.steps:,}")
    table.add_row("one checkpoint", f"{gib(numbers.checkpoint_bytes)} GiB")
    table.add_row("FLOPs per image, forward", f"{numbers.forward_flops:.3g}")
    add_time(table, numbers, device)
    return table
