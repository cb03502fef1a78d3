"""Which images are trained on, and what is done to them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.hub import HubDataConfig, is_hub_id, is_written_as_hub_id
from lowland.trainers.recipe.section import TARGET, Section

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

DIGITS = "digits"
"""Names the 1797 digits of 8 x 8 pixels that come with scikit-learn."""
SHAPES = "shapes"
"""Names birds on land and water that lowland makes."""
EMBEDDED = (DIGITS, SHAPES)
"""Names of images that are in no file."""
SHAPES_GROUPS = ("group", "ground")
"""What `group_column` may be of shapes: bird and ground together, or the ground alone."""


class ShapesConfig(Section):
    """Birds, which are simple shapes, on land or water; in training most birds of a kind are on the same ground."""

    images: Annotated[int, Field(ge=8)] = 2000
    """Images to train on, half of them of each bird."""
    held_out: Annotated[int, Field(ge=8)] = 800
    """Images to evaluate on: each bird as often on land as on water."""
    correlation: Share = 0.95
    """Part of each bird's training images that are on its own ground; 0.5 ties no bird to a ground."""
    size: Annotated[int, Field(ge=8)] = 16
    """Side of the images, in pixels."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which images; not the training's seed, so that trainings of any seed have the same ones."""


class LongTailConfig(Section):
    """Training images are left out so that each class has fewer than the one before (Cui et al., 2019)."""

    ratio: Annotated[float, Field(ge=1)]
    """Images of the first class for one of the last; those between fall exponentially."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which images; not the training's seed, so that trainings of any seed have the same ones."""


class ImageDataConfig(Section):
    """Images with their classes: Parquet files, folders, Hugging Face's hub, or digits or shapes in no file."""

    path: str = "digits"
    """`digits` or `shapes`; a Parquet file, folder or glob; a folder with one for each class; or a hub id."""
    hub: HubDataConfig = HubDataConfig()
    """Which part, where `path` is a hub id."""
    held_out_path: str | None = None
    """The images to evaluate on, files or folders likewise; null draws them from `path`."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of `path` that is drawn as held-out images, whatever the seed, where `held_out_path` is null."""
    image_column: str = "image"
    """Column of Parquet files: encoded bytes, or Hugging Face's struct with `bytes`."""
    label_column: str = "label"
    """Column with the class: whole numbers from 0, or names."""
    group_column: str | None = None
    """Column by which accuracy is told apart besides: whole numbers or names; of shapes `group` or `ground`."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes; null takes the data's: named classes, folders, or the largest label and one."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Side of the square that the network sees, in pixels; null takes the images' own, if all are equal squares."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for grey."""
    bad_rows: Literal["error", "skip"] = "error"
    """What happens to images that cannot be read or are too small, and to labels that are missing or out of range."""
    other_modes: Literal["convert", "skip", "error"] = "convert"
    """What happens to images of other colour modes than `channels` says: grey, CMYK, 16 bits and so on."""
    min_side: Annotated[int, Field(ge=1)] = 2
    """Images with a shorter side than this count as bad rows, in pixels."""
    evaluation_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the central square that evaluation sees, as a part of the image's shorter side."""
    cache: Literal["auto", "always", "never"] = "auto"
    """Decode once and keep pixels in memory; `auto`: up to 2 GiB, and not where crops want the larger originals."""
    mean: tuple[float, ...] | None = None
    """What is taken from each channel, on the scale from 0 to 1; null measures it on the training images."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """What each channel is divided by then; null measures it."""
    shapes: ShapesConfig | None = None
    """How `path: shapes` is made; null takes the defaults."""
    long_tail: LongTailConfig | None = None
    """Makes classes of very unequal size of the training images; null leaves all in; those held out stay."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of each worker that decode; null takes as many as torch computes with."""
    prefetch: Annotated[int, Field(ge=0)] = 4
    """Steps made ready ahead, each in a thread of its own; 0 makes them in the step."""

    reader: Literal["local", "ray"] = "local"
    """Where batches are made: in the worker, or by Ray Data in processes on any node; the training is the same one."""
    ray_tasks: Annotated[int, Field(ge=1)] = 2
    """Processes that make batches for each worker with `reader: ray`, each with a CPU of its own."""

    @property
    def on_hub(self) -> bool:
        """Whether `path` is a data set of the hub; a revision says so whatever else is of this name here."""
        if self.path in EMBEDDED:
            return False
        return is_hub_id(self.path) or (self.hub.revision is not None and is_written_as_hub_id(self.path))

    @property
    def held_out_apart(self) -> bool:
        """Whether held-out images have a place of their own, and are not drawn from `path`."""
        return self.held_out_path is not None or self.hub.held_out_split is not None or self.path == SHAPES

    @model_validator(mode="after")
    def _of_shapes(self) -> "ImageDataConfig":
        if self.shapes is not None and SHAPES not in (self.path, self.held_out_path):
            raise ValueError(f"shapes says how path: {SHAPES} is made, but path is {self.path}: remove shapes")
        if SHAPES in (self.path, self.held_out_path) and self.group_column not in (None, *SHAPES_GROUPS):
            raise ValueError(
                f"group_column: {self.group_column}: the groups of {SHAPES} are {' or '.join(SHAPES_GROUPS)}: name one"
            )
        return self

    @model_validator(mode="after")
    def _per_channel(self) -> "ImageDataConfig":
        for name in ("mean", "std"):
            given = getattr(self, name)
            if given is not None and len(given) != self.channels:
                raise ValueError(f"{name} needs a number for each of {self.channels} channels, {len(given)} are given")
        return self


class ResizedCropConfig(Section):
    """A part of the image of random area and shape, resized to the square."""

    area: Range = (0.08, 1.0)
    """Least and greatest part of the image's area."""
    ratio: Range = (0.75, 4 / 3)
    """Least and greatest width over height."""

    @model_validator(mode="after")
    def _ordered(self) -> "ResizedCropConfig":
        _require_ordered(self, "area", "ratio")
        _require_part(self)
        return self


class RandAugmentConfig(Section):
    """Random operations on each image (Cubuk et al., 2019)."""

    operations: Annotated[int, Field(ge=1)] = 2
    """N: operations on an image, one after the other."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """M: how strong they are."""


class ErasingConfig(Section):
    """A random rectangle in the mean colour (Zhong et al., 2017)."""

    probability: Share = 0.25
    """Part of the images."""
    area: Range = (0.02, 1 / 3)
    """Least and greatest part of the image's area."""
    ratio: Range = (0.3, 10 / 3)
    """Least and greatest width over height."""

    @model_validator(mode="after")
    def _ordered(self) -> "ErasingConfig":
        _require_ordered(self, "area", "ratio")
        _require_part(self)
        return self


class AugmentationConfig(Section):
    """What is done to training images and labels; all of it is a function of seed, epoch and image."""

    padding: Annotated[int, Field(ge=0)] = 0
    """Random crop of the padded image: pixels on each side; 0 does not crop."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """What the padding shows: black, or the image mirrored."""
    resized_crop: ResizedCropConfig | None = None
    """Random part of the image, resized; not with `padding`."""
    flip: Share = 0.0
    """Part of the images that is mirrored, left to right."""
    transform: Annotated[
        str | None,
        Field(pattern=TARGET, json_schema_extra={"allowed": "the function as `package.module:function`"}),
    ] = None
    """Function that returns a transform of one's own, such as torchvision's, of each image: uint8 [C, S, S] to same."""
    randaugment: RandAugmentConfig | None = None
    """Random operations."""
    erasing: ErasingConfig | None = None
    """Random rectangle."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """alpha: two images blended, with weights from Beta(alpha, alpha) (Zhang et al., 2018); 0 does not."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """alpha: a rectangle of another image (Yun et al., 2019); with `mixup` too, each is done to half of the images."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the target that is spread over all classes, in training alone."""

    @model_validator(mode="after")
    def _one_crop(self) -> "AugmentationConfig":
        if self.padding and self.resized_crop is not None:
            raise ValueError("padding and resized_crop exclude each other: both are the random crop; remove one")
        return self


def _require_ordered(section: Section, *names: str) -> None:
    for name in names:
        low, high = getattr(section, name)
        if low > high:
            raise ValueError(f"{name}: the first must not be greater than the second, but {low:g} > {high:g}")


def _require_part(section: ResizedCropConfig | ErasingConfig) -> None:
    if section.area[1] > 1:
        raise ValueError(f"area is a part of the image, at most 1, but {section.area[1]:g} is given")
