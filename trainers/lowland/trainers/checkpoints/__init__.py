"""The training state on disk: by parameter name, in parts, committed by a manifest."""

from lowland.trainers.checkpoints.checkpointer import Checkpointer
from lowland.trainers.checkpoints.manifest import CheckpointManifest, TrainState
from lowland.trainers.checkpoints.store import CheckpointStore

__all__ = ["CheckpointManifest", "CheckpointStore", "Checkpointer", "TrainState"]
