"""How many sequences make an optimizer step, and how they are cut."""

from typing import Annotated

from pydantic import Field, model_validator

from lowland.trainers.recipe.section import Section

Count = Annotated[int, Field(ge=1)]


class BatchConfig(Section):
    """The global batch of an optimizer step; its cut into micro-batches never changes the result."""

    micro_batch: Count
    """Sequences per worker in one forward and backward pass."""
    accumulation: Count | None = None
    """Micro-batches per worker and optimizer step; 1 if no global size is given either."""
    global_sequences: Count | None = None
    """Sequences per optimizer step over all workers, instead of `accumulation`."""
    global_tokens: Count | None = None
    """Tokens per optimizer step over all workers, instead of `accumulation`."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null leaves them as they are."""

    @model_validator(mode="after")
    def _one_size(self) -> "BatchConfig":
        sizes = ("accumulation", "global_sequences", "global_tokens")
        given = [name for name in sizes if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(sizes)}; {' and '.join(given)} are given")
        return self

    def accumulation_steps(self, *, workers: int, sequence_length: int) -> int:
        """Micro-batches per worker and optimizer step.

        Raises:
            ValueError: the global size is not a whole number of micro-batches on every worker.
        """
        if self.global_sequences is None and self.global_tokens is None:
            return self.accumulation or 1
        per_pass = self.micro_batch * workers
        if self.global_tokens is not None:
            name, total, per_pass = "batch.global_tokens", self.global_tokens, per_pass * sequence_length
            parts = f"batch.micro_batch ({self.micro_batch}) x workers ({workers}) x tokens ({sequence_length})"
        else:
            assert self.global_sequences is not None
            name, total = "batch.global_sequences", self.global_sequences
            parts = f"batch.micro_batch ({self.micro_batch}) x workers ({workers})"
        return _divided(name, total, per_pass, parts)


class ImageBatchConfig(Section):
    """The global batch of an optimizer step; its cut into micro-batches changes what BatchNorm sees, and whom
    `cross_split` blends with whom; nothing else."""

    micro_batch: Count
    """Images per worker in one forward and backward pass."""
    accumulation: Count | None = None
    """Micro-batches per worker and optimizer step; 1 if no global size is given either."""
    global_images: Count | None = None
    """Images per optimizer step over all workers, instead of `accumulation`."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are scaled down to this global norm; null leaves them as they are."""

    @model_validator(mode="after")
    def _one_size(self) -> "ImageBatchConfig":
        if self.accumulation is not None and self.global_images is not None:
            raise ValueError("give one of accumulation, global_images; both are given")
        return self

    def accumulation_steps(self, *, workers: int) -> int:
        """Micro-batches per worker and optimizer step.

        Raises:
            ValueError: the global size is not a whole number of micro-batches on every worker.
        """
        if self.global_images is None:
            return self.accumulation or 1
        parts = f"batch.micro_batch ({self.micro_batch}) x workers ({workers})"
        return _divided("batch.global_images", self.global_images, self.micro_batch * workers, parts)


def _divided(name: str, total: int, per_pass: int, parts: str) -> int:
    """How many passes make the total, which must be a whole number."""
    if total % per_pass:
        below, above = total // per_pass * per_pass, -(-total // per_pass) * per_pass
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(f"{name} ({total}) must be a multiple of {parts} = {per_pass}; nearest: {nearest}")
    return total // per_pass
