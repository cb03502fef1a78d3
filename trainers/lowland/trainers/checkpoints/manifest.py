"""What a checkpoint says of itself; writing it commits the checkpoint."""

from typing import Literal

from pydantic import ConfigDict

from lowland.trainers.recipe.section import Section


class FileEntry(Section):
    """One file of a checkpoint."""

    name: str
    size: int
    """Bytes."""
    sha256: str


class TrainState(Section):
    """Where a training stands, besides its tensors; the same on every rank."""

    # JSON has no nan; a skipped step's gradient norm is one, and as null it could not be read again.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    step: int = 0
    """Optimizer steps done, applied or skipped."""
    examples: int = 0
    """Examples of the endless stream that are used up: the next one is the position in the data."""
    tokens: int = 0
    """Tokens trained on, padding included."""
    skipped: int = 0
    """Steps whose gradient was not finite."""
    consecutive_skips: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    """Time spent training, over all attempts."""
    metrics: dict[str, float] = {}
    """The latest metrics, training and evaluation."""
    shared_state: dict[str, float] = {}
    """Optimizer state that belongs to no single parameter."""


class CheckpointManifest(Section):
    """The description of a committed checkpoint."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    format_version: Literal[1] = 1
    state: TrainState
    optimizer: str
    """The optimizer, and what is around it: states of the same names may mean another thing to another one."""
    world_size: int
    """Ranks that wrote it; any other number can read it."""
    zero_stage: int
    metadata: dict[str, str]
    """What the caller wants to find again, for example an MLflow run id."""
    files: tuple[FileEntry, ...]
