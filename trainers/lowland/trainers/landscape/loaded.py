"""A model at the weights of a checkpoint, with the task that evaluates it, in one process."""

from collections.abc import Mapping
from itertools import islice

import torch
from torch import Tensor

from lowland.optim import Layout
from lowland.trainers.checkpoints import Checkpointer, CheckpointStore
from lowland.trainers.engines import Inputs, build_engine
from lowland.trainers.engines.torch_engine import TorchEngine
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.landscape.batch_norm import recompute_batch_norm
from lowland.trainers.recipe import ShardingConfig, StepSize, TrainConfig
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

__all__ = ["LoadedModel"]

STATISTICS_BATCHES = 8
"""Global batches of training data from which BatchNorm's statistics are taken anew."""


class LoadedModel:
    """The model of a training, in fp32 on one device, whichever world size and ZeRO stage trained it.

    Args:
        config: of the training.
        checkpoints: folder or URI of its checkpoints.
        step: whose weights; None takes the newest checkpoint that is whole.
        device: where it is evaluated.

    Raises:
        UserError: there is no such checkpoint, or data, model and checkpoint do not go together; or the training's
            worker groups have weights of their own.
    """

    def __init__(self, config: TrainConfig, checkpoints: str, step: int | None, device: torch.device) -> None:
        diloco = config.optimizer.diloco
        if diloco is not None and diloco.groups > 1:
            raise RecipeError(
                f"optimizer.diloco.groups = {diloco.groups}: a landscape is around one network's weights, and each "
                "group of workers has its own; set it to 1, which looks at those of the first group"
            )
        config = config.model_copy(update={"sharding": ShardingConfig(engine="torch"), "measures": None})
        self._world = World.current(device)
        self._task = build_task(config, self._world)
        self.module = self._task.build_module()
        self.step, self.weights = self._read(config, checkpoints, step)
        # Evaluation weights, averages for example, are weights of their own from here on.
        self._engine = TorchEngine(
            self.module,
            torch.optim.SGD(self.module.parameters(), lr=0.0),
            Layout.whole([list(self.module.named_parameters())]),
            world=self._world,
            max_grad_norm=None,
            autocast=False,
        )

    def evaluate(self, weights: Mapping[str, Tensor], *, own_statistics: bool = True) -> dict[str, float]:
        """The task's metrics on the held-out data at other weights.

        Args:
            weights: every parameter and persistent buffer by name.
            own_statistics: whether BatchNorm's statistics among them are right; else they are taken anew.
        """
        with torch.no_grad():
            for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
                if name in weights:
                    tensor.copy_(weights[name])
        if not own_statistics:
            self._recompute()
        return self._task.evaluate(self._engine)

    def _recompute(self) -> None:
        stream = self._task.steps(0)
        try:
            steps = list(islice(stream, STATISTICS_BATCHES))
        finally:
            stream.close()
        recompute_batch_norm(self.module, self._forward, (micro for step in steps for micro in step.micro_batches))

    def _forward(self, inputs: Inputs) -> None:
        self.module(**{k: None if x is None else x.to(self._world.device) for k, x in inputs.items()})

    def _read(self, config: TrainConfig, checkpoints: str, step: int | None) -> tuple[int, dict[str, Tensor]]:
        """The step and the weights that the training would evaluate there."""
        store, sizes = CheckpointStore(checkpoints), self._task.sizes
        engine = build_engine(
            self.module,
            config,
            bf16=False,
            accumulation=sizes.accumulation,
            world=self._world,
            step=StepSize(sizes.tokens_per_step, sizes.examples_per_step),
        )
        checkpointer = Checkpointer(
            store,
            engine,
            self._world,
            config.checkpoints,
            optimizer=config.optimizer.method,
            zero_stage=0,
            metadata={},
            before_commit=lambda: None,
            methods=self._task.methods,
        )
        self._task.methods.attach(engine)
        if step is None:
            step = checkpointer.latest()
        if step is None or step not in store.steps():
            steps = ", ".join(map(str, store.steps()))
            there = f"there are those of steps {steps}" if steps else "there are none"
            raise DataError(
                f"{checkpoints}: no checkpoint of {'any step' if step is None else f'step {step}'}; {there}"
            )
        checkpointer.load(step)
        try:
            # Copies: buffers are the model's own, which every evaluation overwrites.
            return step, {name: weight.clone() for name, weight in engine.full_weights()}
        finally:
            engine.close()
