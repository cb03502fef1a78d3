"""Next-token prediction on packed text."""

import math
from collections.abc import Generator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowland.trainers.data.batches import IGNORED, Batch, HeldOutBatches, TrainBatches
from lowland.trainers.data.images.elsewhere import Elsewhere
from lowland.trainers.data.split import PackedSplit
from lowland.trainers.data.tokenizers import tokenizer_for
from lowland.trainers.engines import Engine, Inputs
from lowland.trainers.errors import RecipeError
from lowland.trainers.estimate import needs_checkpointing
from lowland.trainers.hardware import usable_memory
from lowland.trainers.methods.stack import Methods
from lowland.trainers.models import (
    CausalLMLoss,
    build_causal_lm,
    model_config,
    num_parameters,
    prepare_for_training,
    save_model,
)
from lowland.trainers.monitor import Monitor
from lowland.trainers.recipe import CausalLMConfig
from lowland.trainers.tasks.task import Sizes, StepInputs
from lowland.trainers.world import World


class CausalLMTask:
    """A causal language model, its text and its metrics."""

    def __init__(self, config: CausalLMConfig, world: World) -> None:
        self._config, self._world = config, world
        self.methods = Methods((), world)
        self._train = PackedSplit.open(config.data.path, "train")
        self._held_out = PackedSplit.open(config.data.path, "held_out")
        tokenizer = self._train.manifest.tokenizer
        special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        self._model_config = model_config(config.model, vocab_size=tokenizer.vocab_size, special_tokens=special)
        self.sizes = self._sizes()
        self.bf16 = config.model.dtype == "bfloat16"

    def build_module(self) -> nn.Module:
        """The network with its loss, on the CPU."""
        recipe = self._config.model
        # The torch engine computes in bf16 by autocast, on fp32 weights.
        dtype = torch.bfloat16 if self.bf16 and self._config.sharding.engine == "deepspeed" else torch.float32
        network = build_causal_lm(recipe, self._model_config, dtype=dtype, seed=self._config.seed)
        return prepare_for_training(network, recipe, device=self._world.device, checkpointing=self._checkpointing())

    def check(self, engine: Engine) -> None:
        """Verifies by the model itself that attention stops at document boundaries, if it is to."""
        if self._config.data.boundaries == "ignore":
            return
        first, second = (self._probe(engine, filler) for filler in (1, 2))
        if abs(first - second) > 1e-6 * abs(first):
            raise RecipeError(
                f"data.boundaries = isolate: {type(self._network(engine)).__name__} with attention "
                f"'{self._config.model.attention}' lets a document see the one before it in its row; "
                "choose another model.attention, or accept it with data.boundaries: ignore"
            )

    def report(self, monitor: Monitor) -> None:
        """Nothing: what was left out of the data was told when it was prepared."""

    def stepped(self, engine: Engine, *, applied: bool | Tensor) -> None:
        """Nothing is kept beside the weights."""

    def pictures(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def _probe(self, engine: Engine, filler: int) -> float:
        """The loss of a document behind another one of `filler` tokens."""
        length = min(16, self._train.sequence_length)
        # transformers' flash attention isolates a row given alone, and none of several.
        sizes = (self._config.batch.micro_batch, self._config.evaluation.micro_batch or 1)
        rows = min(2, max(sizes))
        tokens = torch.arange(length).remainder(7).add(3).repeat(rows, 1)
        positions = torch.arange(length).remainder(length // 2).repeat(rows, 1)
        tokens[:, : length // 2] = filler
        labels = tokens.roll(-1, 1).masked_fill(torch.arange(length) < length // 2, IGNORED)
        labels[:, -1] = IGNORED
        # Uncompiled: layers compiled for this shape first would be compiled for any shape, and be slower, after it.
        with torch.compiler.set_stance("force_eager"), engine.evaluating():
            inputs = {"input_ids": tokens, "labels": labels, "position_ids": positions}
            return float(engine.evaluate({name: x.to(self._world.device) for name, x in inputs.items()}))

    def steps(self, first_example: int, elsewhere: Elsewhere | None = None) -> Generator[StepInputs]:
        """The stream of this rank's steps from an example on; rows are mapped, so that there is nothing to make."""
        batches = TrainBatches(
            self._train,
            seed=self._config.seed,
            micro_batch=self._config.batch.micro_batch,
            accumulation=self.sizes.accumulation,
            rank=self._world.rank,
            world_size=self._world.size,
            start_example=first_example,
            boundaries=self._config.data.boundaries,
            prefetch=self._config.data.prefetch,
        )
        for batch in batches:
            yield StepInputs(
                [_inputs(micro, torch.device("cpu")) for micro in batch.micro_batches],
                batch.global_targets,
                f"examples {batch.first_example} to {batch.first_example + self.sizes.examples_per_step - 1}, "
                f"rows {batch.rows.tolist()} of rank {self._world.rank}",
            )

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Loss (nats per token), perplexity and bits per byte on the held-out rows."""
        config = self._config.evaluation
        batches = HeldOutBatches(
            self._held_out,
            micro_batch=config.micro_batch or self._config.batch.micro_batch,
            rank=self._world.rank,
            world_size=self._world.size,
            skip_sequences=config.skip_sequences,
            max_sequences=config.max_sequences,
            boundaries=self._config.data.boundaries,
        )
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        with engine.evaluating():
            for batch in batches:
                total += engine.evaluate(_inputs(batch, self._world.device)).double()
        nats = self._world.sum([float(total)])[0]
        loss = nats / batches.global_targets
        return {
            "eval/loss": loss,
            "eval/perplexity": math.exp(min(loss, 700.0)),
            "eval/bits_per_byte": nats / math.log(2) / batches.global_bytes,
        }

    def export(self, engine: Engine, folder: Path, card: str) -> None:
        """Writes a Hugging Face folder: safetensors, configuration, tokenizer, model card."""
        weights = {name.removeprefix("network."): tensor for name, tensor in engine.full_weights()}
        if self._world.rank == 0:
            save_model(self._network(engine).config, weights, folder)
            tokenizer_for(self._train.manifest.tokenizer).save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def _checkpointing(self) -> bool:
        """Whether activations are recomputed: if the recipe says so, or if memory would not suffice."""
        if self._config.model.gradient_checkpointing != "auto" or self._world.device.type != "cuda":
            return self._config.model.gradient_checkpointing == "always"
        memory = usable_memory(self._world.device)
        return needs_checkpointing(
            self._config, workers=self._world.size, device_memory=memory, data=self._train.manifest
        )

    def _network(self, engine: Engine) -> PreTrainedModel:
        assert isinstance(engine.module, CausalLMLoss)
        return engine.module.network

    def _sizes(self) -> Sizes:
        batch, length = self._config.batch, self._train.sequence_length
        try:
            accumulation = batch.accumulation_steps(workers=self._world.size, sequence_length=length)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        examples = batch.micro_batch * accumulation * self._world.size
        parameters = num_parameters(self._model_config)
        return Sizes(
            tokens_per_step=examples * length,
            examples_per_step=examples,
            steps_per_epoch=len(self._train) / examples,
            accumulation=accumulation,
            parameters=parameters,
            flops_per_step=6 * parameters * examples * length,
        )


def _inputs(batch: Batch, device: torch.device) -> Inputs:
    tensors = {"input_ids": batch.input_ids, "labels": batch.labels, "position_ids": batch.position_ids}
    return {name: None if x is None else x.to(device) for name, x in tensors.items()}
