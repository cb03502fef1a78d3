"""How the training state is spread over the workers."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lowland.trainers.recipe.section import Section


class ShardingConfig(Section):
    """The engine and its ZeRO stage; none of this changes the result beyond float rounding."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`deepspeed`: ZeRO 0 to 3; `torch`: every worker holds everything (DDP), fp32 weights, bf16 by autocast."""
    stage: Annotated[int, Field(ge=0, le=3)] = 2
    """ZeRO stage: 0 nothing is split, 1 optimizer state, 2 and gradients, 3 and weights."""
    offload_optimizer: bool = False
    """Keep fp32 masters and optimizer state in host memory (stages 1 to 3)."""
    gradient_dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    """Type gradients are accumulated in; `auto`: float32 if there is accumulation, else the model's type."""
    bucket_elements: Annotated[int, Field(ge=1000)] = 200_000_000
    """Elements per gradient-reduction and weight-gathering bucket."""
    overlap: bool = True
    """Reduce gradients while the backward pass runs."""

    @model_validator(mode="after")
    def _consistent(self) -> "ShardingConfig":
        if self.engine == "torch" and "stage" in self.model_fields_set and self.stage > 0:
            raise ValueError(f"engine torch has no ZeRO stage, but stage is {self.stage}: set engine: deepspeed")
        if self.offload_optimizer and (self.engine == "torch" or self.stage == 0):
            raise ValueError("offload_optimizer needs engine deepspeed at stage 1, 2 or 3")
        return self

    @model_serializer(mode="wrap")
    def _without_stage(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the stage that engine torch does not have, so that what is written can be read."""
        data: dict[str, Any] = handler(self)
        if self.engine == "torch":
            data.pop("stage", None)
        return data

    def bucket(self, parameters: int) -> int:
        """Elements of a bucket for a model of this size: DeepSpeed allocates whole buckets, twice."""
        elements = min(self.bucket_elements, parameters)
        return elements + elements % 2  # DeepSpeed refuses odd ones

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in force; 0 with engine torch."""
        return self.stage if self.engine == "deepspeed" else 0
