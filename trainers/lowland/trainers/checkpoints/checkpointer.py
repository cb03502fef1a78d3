"""Saving and loading the whole training state, by all ranks together."""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from safetensors import SafetensorError
from torch import Tensor

from lowland.trainers.checkpoints.manifest import CheckpointManifest, FileEntry, TrainState
from lowland.trainers.checkpoints.parts import (
    GO_ON,
    PartReader,
    generator_states,
    part_name,
    read_rng,
    restore_generators,
    write_part,
)
from lowland.trainers.checkpoints.retention import to_remove
from lowland.trainers.checkpoints.store import CheckpointStore
from lowland.trainers.engines import Engine
from lowland.trainers.engines.state import persistent_buffers
from lowland.trainers.errors import DataError, LowlandError, RunError
from lowland.trainers.methods.stack import Methods
from lowland.trainers.recipe import CheckpointConfig
from lowland.trainers.world import World

T = TypeVar("T")

_METHODS = "methods"
"""In the place of a parameter's name: the state of methods that belongs to none."""


class Checkpointer:
    """The checkpoints of a training; every method is collective.

    Args:
        store: where they lie.
        engine: whose state is saved and loaded.
        world: the ranks.
        config: what is kept.
        optimizer: the engine's, as the recipe calls it; a checkpoint of another one is refused.
        zero_stage: recorded in the manifest.
        metadata: recorded in the manifest.
        before_commit: called on every rank when its part is written.
        methods: whose state is saved and loaded too.
    """

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        world: World,
        config: CheckpointConfig,
        *,
        optimizer: str,
        zero_stage: int,
        metadata: dict[str, str],
        before_commit: Callable[[], None],
        methods: Methods,
    ) -> None:
        self._store, self._engine, self._world = store, engine, world
        self._config, self._metadata = config, metadata
        self._methods, self._stage = methods, zero_stage
        self._optimizer = " with ".join((optimizer, *methods.names))
        self._before_commit = before_commit

    def save(self, state: TrainState) -> str:
        """Writes and commits a checkpoint, then removes those no longer kept; returns its folder.

        Raises:
            RunError: a rank could not write its part; earlier checkpoints are untouched.
        """
        failed = f"checkpoint {self._store.path(state.step)} could not be written"
        self._together(lambda: self._begin(state.step), RunError, failed)
        entries = self._together(lambda: self._write_part(state.step), RunError, failed)
        self._together(lambda: self._commit(state, tuple(entries)), RunError, failed)
        return self._store.path(state.step)

    def _begin(self, step: int) -> None:
        if self._world.rank == 0:
            self._store.begin(step)

    def _write_part(self, step: int) -> FileEntry:
        rank = self._world.rank
        writes = rank == 0 or not self._engine.replicated
        pieces = self._methods.pieces(self._engine) if writes else iter(())
        owned: dict[str, dict[str, Tensor | float]] = self._engine.owned_state()
        if rank == 0 and (kept := self._methods.state()):
            owned = {**owned, _METHODS: {**kept}}
        rng = generator_states(self._world.device)
        buffers = list(persistent_buffers(self._engine.module)) if rank == 0 else []
        entry = self._store.add(step, part_name(rank), lambda path: write_part(path, pieces, owned, rng, buffers))
        self._before_commit()
        return entry

    def _commit(self, state: TrainState, entries: tuple[FileEntry, ...]) -> None:
        if self._world.rank > 0:
            return
        manifest = CheckpointManifest(
            state=state.model_copy(update={"shared_state": self._engine.shared_state()}),
            optimizer=self._optimizer,
            world_size=self._world.size,
            zero_stage=self._stage,
            metadata=self._metadata,
            files=entries,
        )
        self._store.commit(state.step, manifest)
        self._prune()

    def _together(self, action: Callable[[], T], error: type[LowlandError], message: str) -> list[T]:
        """Does something on every rank and returns every rank's result; if one fails, all raise the same error.

        Without this the ranks that succeeded would wait for the others until a timeout.
        """
        outcome: tuple[T | None, str | None]
        try:
            outcome = (action(), None)
        except (OSError, SafetensorError, DataError) as failure:
            outcome = (None, f"rank {self._world.rank}: {failure}")
        outcomes = self._world.gather(outcome)
        failures = [failure for _, failure in outcomes if failure is not None]
        if failures:
            raise error(f"{message}: {'; '.join(failures)}")
        return cast("list[T]", [value for value, _ in outcomes])

    def _prune(self) -> None:
        metrics: dict[int, float | None] = {}
        for step in self._store.steps():
            # A damaged manifest must not end a run that can save.
            with suppress(DataError):
                metrics[step] = self._store.manifest(step).state.metrics.get(self._config.metric)
        for step in to_remove(metrics, self._config):
            self._store.remove(step)
        self._store.remove_uncommitted()

    def newest(self) -> str | None:
        """The folder of the newest committed checkpoint; not collective."""
        steps = self._store.steps()
        return self._store.path(steps[-1]) if steps else None

    def latest(self) -> int | None:
        """The newest checkpoint whose files are whole; None if there is no checkpoint.

        Raises:
            DataError: there are checkpoints, and all are damaged.
        """
        # Rank 0's list, since file systems may show a folder at different times.
        steps = self._world.gather(self._store.steps())[0]
        for step in reversed(steps):
            if self._world.all(self._intact(step)):
                return step
        if steps:
            folders = ", ".join(self._store.path(step) for step in steps)
            raise DataError(f"every checkpoint is damaged: {folders}; remove them, or start anew under another name")
        return None

    def load(self, step: int) -> TrainState:
        """Restores weights, optimizer state and generators; returns the state to go on from.

        Raises:
            DataError: the checkpoint is of another model or optimizer.
        """
        path = self._store.path(step)
        self._engine.create_state()
        (manifest, *_) = self._together(lambda: self._read(step), DataError, f"checkpoint {path} cannot be resumed")
        self._engine.load_shared_state(manifest.state.shared_state)
        self._engine.masters_changed()
        return manifest.state

    def _read(self, step: int) -> CheckpointManifest:
        """Reads this rank's share of the tensors, and its generators."""
        manifest, world = self._store.manifest(step), self._world
        if manifest.optimizer != self._optimizer:
            raise DataError(f"it was written with {manifest.optimizer}, this run has {self._optimizer}; {GO_ON}")
        with self._store.local(step) as folder:
            with PartReader(folder / entry.name for entry in manifest.files) as reader:
                reader.check_parameters(self._parameters())
                for piece in self._methods.pieces(self._engine):
                    reader.load(piece)
                self._engine.load_owned_state(reader.owned)
                self._methods.load_state(reader.owned(_METHODS))
                reader.load_buffers(persistent_buffers(self._engine.module))
            if world.rank < manifest.world_size:
                restore_generators(read_rng(folder / part_name(world.rank)), world.device)
        return manifest

    def _parameters(self) -> set[str]:
        return {name for name, parameter in self._engine.module.named_parameters() if parameter.requires_grad}

    def _intact(self, step: int) -> bool:
        """Whether this rank's share of the files is as it was written."""
        try:
            files = self._store.manifest(step).files[self._world.rank :: self._world.size]
            return all(self._store.holds(step, entry) for entry in files)
        except (OSError, DataError):
            return False
