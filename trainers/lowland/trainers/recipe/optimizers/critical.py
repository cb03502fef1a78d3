"""Critical Momenta and Critical Gradients."""

from typing import Annotated, Literal

from pydantic import Field

from lowland.trainers.recipe.optimizers.base import Fraction, PlainOptimizer, Rate


class _Critical(PlainOptimizer):
    variant: Literal["adam", "adamw", "sgd", "rmsprop"] = "adamw"
    """The base; weight decay is decoupled for adamw, and coupled for the others."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the momentum and of the second moment; sgd has the first alone."""
    eps: Rate = 1e-8
    """Added to the root of the second moment."""
    buffer_size: Annotated[int, Field(ge=1)] = 5
    """Slots of the buffer, each as large as the model."""
    priority_decay: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Factor on the priority of what is kept, each step."""
    kappa: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the buffer's mean; 0 is the base optimizer and keeps no buffer."""
    priority: Literal["tensor_norms", "global_norm", "tensor"] = "tensor_norms"
    """What ranks: the sum of all tensors' gradient norms, the norm of the whole gradient, or each tensor's own."""
    buffer_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the buffer: 4 or 2 bytes per parameter and slot."""
    buffer_device: Literal["cpu"] | None = None
    """Keep the buffer in host memory; null: beside the weights."""


class CriticalMomentaConfig(_Critical):
    """Critical Momenta (Malviya et al., 2024): 8 bytes of state per parameter (sgd: 4), and 4 per slot.

    Steps are larger than the base's: search the rate from a tenth of AdamW's.
    """

    name: Literal["critical_momenta"]
    """Critical Momenta."""


class CriticalGradientsConfig(_Critical):
    """Critical Gradients (McRae et al., 2022): 8 bytes of state per parameter (sgd: 4), and 4 per slot."""

    name: Literal["critical_gradients"]
    """Critical Gradients."""
