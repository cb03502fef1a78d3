"""Which image classifier is trained."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lowland.trainers.recipe.section import Section

PATCH_SIZE = 16
"""Of vision transformers, if none is given."""
CIFAR_RESNETS = ("resnet18-cifar", "resnet34-cifar", "resnet50-cifar")
"""ResNets for small images: a 3x3 stem without pooling."""
TRANSFORMERS = (
    "resnet50",
    *(f"vit-{size}" for size in ("tiny", "small", "base", "large")),
    *(f"convnext-{size}" for size in ("tiny", "small", "base", "large")),
)
"""Those that are transformers' own classes."""
TIMM = "timm/"
"""Begins the names of networks of timm."""
INSTALL_TIMM = "pip install 'lowland[timm]'"
_WIDE = re.compile(r"wide-resnet-(\d+)-(\d+)")
_ALLOWED = f"{', '.join((*CIFAR_RESNETS, *TRANSFORMERS))}, wide-resnet-DEPTH-WIDTH, timm/NAME"


def wide_resnet(architecture: str) -> tuple[int, int] | None:
    """Depth and width of `wide-resnet-DEPTH-WIDTH`; None for another name."""
    match = _WIDE.fullmatch(architecture)
    return (int(match[1]), int(match[2])) if match else None


class ImageModelConfig(Section):
    """An image classifier: by the name of its architecture, read from a folder, or built from a configuration."""

    architecture: str | None = Field(
        default=None,
        json_schema_extra={"allowed": f"one of {_ALLOWED}"},
    )
    """A network to initialise; `resnet…-cifar` and `wide-resnet-28-10` are for small images, `timm/…` needs timm."""
    timm_arguments: dict[str, Any] = {}
    """Arguments of `timm.create_model` for an architecture `timm/…`, for example `drop_path_rate`."""
    path: str | None = None
    """Folder that lowland exported, or a transformers model (folder or hub id), to start from."""
    config: dict[str, Any] | None = None
    """Configuration of transformers to build a freshly initialised model from: `model_type` and its fields."""
    patch_size: Annotated[int, Field(ge=1)] | None = None
    """Side of the patches of `vit-…`, in pixels; must divide the images' size; null is 16."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations in the forward and backward pass; optimizers always update fp32 masters."""
    batch_norm: Literal["micro_batch", "global"] = "micro_batch"
    """Over which images BatchNorm normalises: each micro-batch, or those of all workers (SyncBatchNorm)."""
    channels_last: bool = False
    """Keep images and kernels with channels last in memory, which convolutions on GPUs want with bfloat16."""
    compile: bool = False
    """Compile the network with torch.compile; costs a minute at the start.  Not at ZeRO stage 3."""
    cuda_graphs: bool = False
    """Have the GPU start the compiled network's kernels by itself: faster where these are many and short."""

    @property
    def timm(self) -> str | None:
        """The name in timm, of an architecture of it."""
        name = self.architecture or ""
        return name.removeprefix(TIMM) if name.startswith(TIMM) else None

    @field_validator("architecture")
    @classmethod
    def _known(cls, architecture: str | None) -> str | None:
        if architecture is None or architecture in (*CIFAR_RESNETS, *TRANSFORMERS) or architecture.startswith(TIMM):
            return architecture
        wide = wide_resnet(architecture)
        if wide is None:
            raise ValueError(f"must be one of {_ALLOWED}")
        depth, width = wide
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError("the depth of a wide-resnet is 6 n + 4 (10, 16, 22, 28, 40 ...), its width at least 1")
        return architecture

    @model_validator(mode="after")
    def _one_source(self) -> "ImageModelConfig":
        given = [name for name in ("architecture", "path", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of `architecture`, `path`, `config`; given: {', '.join(given) or 'none'}")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, for example vit")
        if self.patch_size is not None and not (self.architecture or "").startswith("vit-"):
            raise ValueError("patch_size is for the architectures vit-…; remove it")
        if self.timm_arguments and self.timm is None:
            raise ValueError("timm_arguments are for the architectures timm/…; remove them")
        return self
