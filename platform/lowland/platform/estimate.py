"""What `lowland estimate` prints."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from lowland.platform.recipe import ImageClassificationRecipe, Recipe

if TYPE_CHECKING:
    from lowland.trainers.estimate import Estimate
    from lowland.trainers.estimate.images import ImageEstimate

_PARTS = {
    "weights": "weights",
    "masters": "fp32 masters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "buffers": "reduction buckets",
    "activations": "activations, logits",
    "step": "in the step instead",
    "context": "CUDA, NCCL",
}


def print_estimate(recipe: Recipe, console: Console, *, device: str | None = None, mfu: float = 0.4) -> None:
    """Prints parameters, memory per GPU at every ZeRO stage, work and time of a run; allocates nothing.

    Args:
        recipe: the run.
        console: where to.
        device: name of the GPU, for example H100; None takes `scaling.accelerator_type`, else this machine's.
        mfu: part of the GPU's peak that the time assumes, in (0, 1].

    Raises:
        UserError: the data or the model cannot be read.
    """
    name, memory, peak = _device(device or recipe.scaling.accelerator_type)
    if isinstance(recipe, ImageClassificationRecipe):
        from lowland.platform.estimate_images import print_image_estimate

        print_image_estimate(recipe, console, device=name, peak_flops=peak, mfu=mfu)
        return
    from lowland.trainers.estimate import estimate  # imports torch and transformers: seconds

    numbers = estimate(
        recipe,
        workers=recipe.scaling.workers,
        device_memory=_share(memory, recipe),
        peak_flops=peak,
        mfu=mfu,
        # The fused kernel runs on GPUs only.
        fused_loss=None if recipe.scaling.gpus_per_worker or recipe.model.fused_loss == "always" else False,
    )
    console.print(_model_table(numbers))
    console.print(_memory_table(numbers, recipe))
    console.print(_work_table(numbers, name))


def _device(name: str | None) -> tuple[str | None, int | None, float | None]:
    """Name, bytes of memory and peak FLOP/s of a GPU; what is not known is None."""
    import torch

    from lowland.trainers.estimate import DEVICE_MEMORY_GIB
    from lowland.trainers.hardware import device_peak_flops, peak_flops

    if name is not None:
        gib = DEVICE_MEMORY_GIB.get(name)
        return name, gib * 2**30 if gib else None, peak_flops(name)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.name, properties.total_memory, device_peak_flops(torch.device("cuda", 0))
    return None, None, None


def _share(memory: int | None, recipe: Recipe) -> int | None:
    """Of a GPU's bytes, those that a worker may take."""
    each = recipe.scaling.gpus_per_worker
    return int(memory * each) if memory is not None and 0 < each < 1 else memory


def _model_table(numbers: "Estimate") -> Table:
    table = Table("parameters", "", title="Model", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("total", f"{numbers.parameters.total:,}")
    table.add_row("trainable", f"{numbers.parameters.trainable:,}")
    table.add_row("input embedding", f"{numbers.parameters.embedding:,}")
    return table


def _memory_table(numbers: "Estimate", recipe: Recipe) -> Table:
    """One column per stage at the recipe's checkpointing, and the peak at the other one."""
    way = {False: "kept", True: "recomputed"}
    title = f"GiB per worker, {numbers.workers} workers, activations {way[numbers.checkpointing]}"
    table = Table("", title=title, title_justify="left")
    stages = sorted(numbers.stages)
    add_stages(table, stages, numbers.stage, recipe)
    memories = [numbers.stages[stage][numbers.checkpointing] for stage in stages]
    on_gpus = recipe.scaling.gpus_per_worker > 0
    parts = _PARTS if on_gpus else {part: text for part, text in _PARTS.items() if part != "context"}
    for part, text in parts.items():
        table.add_row(text, *(gib(getattr(memory, part)) for memory in memories))
    table.add_section()
    table.add_row("[bold]peak", *(f"[bold]{gib(m.total if on_gpus else m.allocated)}" for m in memories))
    other = [numbers.stages[stage][not numbers.checkpointing] for stage in stages]
    table.add_row(
        f"peak, activations {way[not numbers.checkpointing]}",
        *(gib(m.total if on_gpus else m.allocated) for m in other),
    )
    if any(memory.host for memory in memories):
        table.add_row("host memory per worker", *(gib(memory.host) for memory in memories))
    if numbers.device_memory:
        fits = ["yes" if m.total <= numbers.device_memory else "no" for m in memories]
        table.add_row(f"fits in {gib(numbers.device_memory)} GiB", *fits)
    table.caption = "* the recipe's stage"
    return table


def _work_table(numbers: "Estimate", device: str | None) -> Table:
    table = Table("work", "", title="Run", title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("sequence length", f"{numbers.sequence_length:,}")
    table.add_row("tokens per step", f"{numbers.tokens_per_step:,}")
    table.add_row("steps", f"{numbers.steps:,}")
    table.add_row("tokens", f"{numbers.tokens:,}")
    table.add_row("one checkpoint", f"{gib(numbers.checkpoint_bytes)} GiB")
    table.add_row("FLOPs per token, 6 N", f"{numbers.flops_per_token:.3g}")
    table.add_row("  and attention, 12 L h T", f"{numbers.attention_flops_per_token:.3g}")
    add_time(table, numbers, device)
    return table


def add_stages(table: Table, stages: Iterable[int], own: int, recipe: Recipe) -> None:
    """A column for each ZeRO stage; the recipe's own is marked."""
    for stage in stages:
        label = "torch (DDP)" if recipe.sharding.engine == "torch" else f"ZeRO-{stage}"
        table.add_column(f"[bold]{label} *" if stage == own else label, justify="right")


def add_time(table: Table, numbers: "Estimate | ImageEstimate", device: str | None) -> None:
    """Rows for all FLOPs of the run and the time that they take."""
    table.add_row("FLOPs", f"{numbers.flops:.3g}")
    if numbers.seconds is None:
        table.add_row("time", "unknown: set scaling.accelerator_type")
    else:
        table.add_row(f"time at {numbers.mfu:.0%} MFU on {numbers.workers} x {device}", duration(numbers.seconds))


def gib(count: int) -> str:
    """Two significant digits at least: small models are estimated too."""
    gib = count / 2**30
    return f"{gib:.1f}" if gib >= 10 else f"{gib:.2f}" if gib >= 0.01 or count == 0 else f"{gib:.1g}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours} h {minutes} min"
