"""Image classification."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lowland.trainers.data.images.batches import HeldOutImages, ImageBatch, TrainImages
from lowland.trainers.data.images.data import ImageData
from lowland.trainers.data.images.elsewhere import Apart, Elsewhere, ImagesApart
from lowland.trainers.data.images.kept import kept_images
from lowland.trainers.data.images.own import own_transform, tried
from lowland.trainers.data.images.places import places
from lowland.trainers.data.images.processes import Processes
from lowland.trainers.data.images.sources import read_column
from lowland.trainers.engines import Engine, Inputs
from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Method, Problem
from lowland.trainers.methods.build import Setting, build_methods, relabelled
from lowland.trainers.methods.classifier import classifier_of
from lowland.trainers.methods.stack import Methods
from lowland.trainers.models import (
    ImageClassifierLoss,
    ImageInput,
    RunningAverages,
    build_image_classifier,
    classifier_sizes,
    save_classifier,
)
from lowland.trainers.monitor import Monitor
from lowland.trainers.recipe import ImageClassificationConfig
from lowland.trainers.recipe.methods import cross_split
from lowland.trainers.tasks.image_metrics import Mistake, Tally, worst
from lowland.trainers.tasks.task import Sizes, StepInputs
from lowland.trainers.tasks.two_networks import TalliesAlone, TwoNetworks
from lowland.trainers.world import World


class ImageClassificationTask:
    """An image classifier, its images and its metrics."""

    def __init__(self, config: ImageClassificationConfig, world: World) -> None:
        self._config, self._world = config, world
        if (transform := config.augmentation.transform) is not None:
            own_transform(transform)  # before images are read
        self.data: ImageData = kept_images(config.data, larger_originals=config.augmentation.resized_crop is not None)
        data = self.data
        self._require_padding()
        if transform is not None:
            tried(transform, config.data.channels, data.size)
        self.seen = ImageInput(data.size, config.data.channels, data.mean, data.std, data.classes.names)
        self.sizes = self._sizes()
        methods = self._methods()
        self._two = TwoNetworks.of(config, methods, self.seen)
        self.methods = Methods(methods, world)
        self.bf16 = config.model.dtype == "bfloat16"
        self._tally: Tally | None = None
        self._averages: RunningAverages | None = None

    def build_module(self) -> nn.Module:
        """The network with its loss, on the CPU."""
        recipe = self._config.model
        # The torch engine computes in bf16 by autocast, on fp32 weights.
        dtype = torch.bfloat16 if self.bf16 and self._config.sharding.engine == "deepspeed" else torch.float32
        network: nn.Module = (
            self._two.networks(dtype)
            if self._two is not None
            else build_image_classifier(recipe, self.seen, dtype=dtype, seed=self._config.seed)
        )
        self.methods.build(network, self._problem())
        if self._two is not None and self.methods.objective is not None:
            return self._two.module(network, self.methods.objective)
        wanted = self.methods.of_features
        return ImageClassifierLoss(
            network,
            self.seen,
            label_smoothing=self._config.augmentation.label_smoothing,
            channels_last=recipe.channels_last,
            objective=self.methods.objective,
            features_of=classifier_of(network, wanted)[1] if wanted is not None else None,
        )

    def check(self, engine: Engine) -> None:
        """Nothing needs the built model."""

    def report(self, monitor: Monitor) -> None:
        """What was found in the data: counts as metrics of step 0, lines, and a file that names every row left out."""
        monitor.metrics(0, self.data.metrics())
        if bad := self.data.bad_rows():
            monitor.artifact("data/bad_rows.txt", "\n".join([*bad, ""]).encode())
        for line in self.data.lines():
            monitor.event(line)

    def steps(self, first_example: int, elsewhere: Elsewhere | None = None) -> Generator[StepInputs]:
        """The stream of this rank's steps from an example on."""
        examples = self.sizes.examples_per_step
        while True:
            sampling = self.methods.sampling
            with closing(iter(self.train_images(first_example, elsewhere))) as batches:
                for step in batches:
                    yield StepInputs(
                        [_inputs(micro) for micro in step.micro_batches],
                        examples,
                        f"examples {step.first_example} to {step.first_example + examples - 1}, "
                        f"images {step.rows.tolist()} of rank {self._world.rank}",
                    )
                    first_example += examples
                    if self.methods.sampling is not sampling:
                        break  # what was made ahead is of another order

    def train_images(self, first_example: int = 0, elsewhere: Elsewhere | None = None) -> TrainImages:
        """This rank's batches from an example on; made by `elsewhere` or processes, if the recipe wants it."""
        make = elsewhere if self._config.data.reader == "ray" else None
        if make is None and self._config.augmentation.transform is not None:
            make = Processes(self._config.data.threads or torch.get_num_threads())
        apart = Apart(make, ImagesApart(self.data.train, self._config.data)) if make is not None else None
        colour = (torch.tensor(self.seen.mean) * 255).round().to(torch.uint8)
        return TrainImages(
            self.data.train,
            self._config.augmentation,
            colour=colour,
            seed=self._config.seed,
            micro_batch=self._config.batch.micro_batch,
            accumulation=self.sizes.accumulation,
            rank=self._world.rank,
            world_size=self._world.size,
            start_example=first_example,
            prefetch=self._config.data.prefetch,
            pinned=self._world.device.type == "cuda",
            apart=apart,
            sampling=self.methods.sampling,
            halves=self._two.halves(self.sizes.examples_per_step) if self._two is not None else None,
        )

    def stepped(self, engine: Engine, *, applied: bool | Tensor) -> None:
        """BatchNorm's running averages move, on all ranks alike."""
        if self._averages is None:
            self._averages = RunningAverages(engine.module)
        self._averages.settle(applied=applied)

    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Loss (nats per image), accuracies and calibration error on the held-out images."""
        config, data, world = self._config.evaluation, self.data, self._world
        batches = HeldOutImages(
            data.held_out,
            micro_batch=config.micro_batch or self._config.batch.micro_batch,
            rank=world.rank,
            world_size=world.size,
            max_images=config.max_images,
        )
        groups = data.groups.names if data.groups is not None else ()
        tally = Tally(len(data.classes), len(groups))
        alone = TalliesAlone(data.classes.names) if self._two is not None else None
        with engine.evaluating():
            for batch, counted in batches:
                images = batch.images.to(world.device)
                logits = (
                    alone.logits(engine, images, counted, batch.labels, batch.rows)
                    if alone is not None
                    else engine.evaluate({"images": images})
                )
                of_groups = batch.groups[:counted] if batch.groups is not None else None
                tally.add(logits[:counted], batch.labels[:counted], batch.rows[:counted], of_groups)
        tally.replace(world.sum(tally.numbers()))
        found: list[Mistake] = [mistake for mistakes in world.gather(tally.mistakes) for mistake in mistakes]
        tally.mistakes = worst(found)
        self._tally = tally
        found_alone = alone.metrics([world.sum(counts) for counts in alone.numbers()]) if alone is not None else {}
        return tally.metrics(data.classes.names, groups) | found_alone

    def pictures(self) -> Mapping[str, bytes]:
        """Of the latest evaluation, as PNG files by name: what was taken for what, and the worst mistakes."""
        if self._tally is None or not self._config.evaluation.pictures:
            return {}
        from lowland.trainers.tasks.pictures import confusion_picture, mistakes_picture  # a second of imports

        classes, held_out, mistakes = self.data.classes.names, self.data.held_out, self._tally.mistakes
        found = {"pictures/confusion.png": confusion_picture(self._tally.confusion, classes)}
        if mistakes:
            images = held_out.pixels(np.array([mistake.row for mistake in mistakes]))
            places = [held_out.place(mistake.row) for mistake in mistakes]
            found["pictures/mistakes.png"] = mistakes_picture(images, mistakes, classes, places)
        return found

    def export(self, engine: Engine, folder: Path, card: str) -> None:
        """Writes safetensors, configuration, preprocessing, model card."""
        weights = {name.removeprefix("network."): tensor for name, tensor in engine.full_weights()}
        if self._world.rank == 0:
            assert isinstance(engine.module, ImageClassifierLoss)
            exported = self.methods.exported(weights)
            if self._two is not None:
                self._two.save(engine.module.network, exported, folder)
            else:
                save_classifier(engine.module.network, self._config.model, self.seen, exported, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")

    def _require_padding(self) -> None:
        augmentation, size = self._config.augmentation, self.data.size
        if augmentation.padding_mode == "reflect" and augmentation.padding >= size:
            raise RecipeError(
                f"augmentation.padding = {augmentation.padding}: an image of {size} pixels can be reflected by less "
                "than that; lower it, or set augmentation.padding_mode: zeros"
            )

    def _methods(self) -> list[Method]:
        """The methods of the recipe; label noise is put into the training labels here."""
        config, train = self._config, self.data.train
        clean = torch.from_numpy(train.labels).clone()
        train.labels = relabelled(config.methods, clean, len(self.data.classes), self._column).numpy()
        setting = Setting(
            classes=self.data.classes.names,
            groups=self.data.groups.names if self.data.groups is not None else (),
            labels=torch.from_numpy(train.labels),
            clean_labels=clean,
            images=self._plain_images,
            shape=(self.seen.channels, self.seen.size, self.seen.size),
            examples_per_step=self.sizes.examples_per_step,
            total_steps=config.length.in_steps(tokens_per_step=0, steps_per_epoch=self.sizes.steps_per_epoch),
            steps_per_epoch=self.sizes.steps_per_epoch,
            accumulation=self.sizes.accumulation,
        )
        return build_methods(config.methods, setting)

    def _plain_images(self, count: int | None) -> Iterable[tuple[ImageBatch, int]]:
        """This rank's part of so many random training images, or of all, without augmentation."""
        batch, world = self._config.evaluation.micro_batch or self._config.batch.micro_batch, self._world
        return HeldOutImages(
            self.data.train, micro_batch=batch, rank=world.rank, world_size=world.size, max_images=count
        )

    def _column(self, name: str) -> torch.Tensor:
        """Labels of the training images from another column."""
        data, place = self._config.data, f"methods: label_noise.column = {name}"
        found = read_column(places(data).path, name)
        if found is None:
            raise RecipeError(f"{place}: only Parquet files have columns, and {data.path} is none; set another kind")
        values = [found[row] for row in self.data.train.rows]
        numbers = [-1 if value is None else self.data.classes.number(value) for value in values]
        wrong = next((index for index, number in enumerate(numbers) if number is None or number < 0), None)
        if wrong is not None:
            raise RecipeError(
                f"{place}: {self.data.train.place(wrong)} has {values[wrong]!r} there, which is none of the "
                f"{len(self.data.classes)} classes; correct it, or leave the row out of the data"
            )
        return torch.tensor(numbers, dtype=torch.int64)

    def _problem(self) -> Problem:
        classes, groups = len(self.data.classes), self.data.groups
        return Problem(
            classes=classes,
            class_counts=tuple(torch.bincount(torch.from_numpy(self.data.train.labels), minlength=classes).tolist()),
            groups=len(groups) if groups is not None else 0,
            shape=(self.seen.channels, self.seen.size, self.seen.size),
            seed=self._config.seed,
        )

    def _sizes(self) -> Sizes:
        batch, workers = self._config.batch, self._world.size
        try:
            accumulation = batch.accumulation_steps(workers=workers)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        if self._config.model.batch_norm == "global" and accumulation > 1:
            raise RecipeError(
                f"model.batch_norm = global: a step of batch.global_images = {batch.global_images} is {accumulation} "
                f"passes of {workers} workers, and statistics are of one: raise batch.micro_batch or the workers, or "
                "set batch_norm: micro_batch"
            )
        examples = batch.micro_batch * accumulation * workers
        parameters, forward = classifier_sizes(self._config.model, self.seen)
        two = cross_split(self._config.methods)
        return Sizes(
            tokens_per_step=0,
            examples_per_step=examples,
            steps_per_epoch=len(self.data.train) / examples,
            accumulation=accumulation,
            parameters=parameters if two is None else 2 * parameters,
            # A backward pass is two forward passes.
            flops_per_step=float(forward * examples * (3 if two is None else two.forward_passes)),
        )


def _inputs(batch: ImageBatch) -> Inputs:
    return {name: values for name, values in vars(batch).items() if values is not None}
