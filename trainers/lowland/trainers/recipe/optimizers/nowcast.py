"""Nowcasting."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lowland.trainers.recipe.section import Section


class NowcastConfig(Section):
    """Jumps of the weights to where their trajectory seems to lead, as NiNo does (Knyazev et al., 2024).

    4 bytes of state per parameter and snapshot but the last; a jump takes the place of a step.
    """

    period: Annotated[int, Field(ge=2)] = 1000
    """Steps from one jump to the next; a multiple of `snapshots`."""
    snapshots: Annotated[int, Field(ge=2, le=100)] = 5
    """Snapshots of the weights that a jump is predicted from; they are `period / snapshots` steps apart."""
    method: Literal["linear", "fit", "geometric", "network"] = "linear"
    """Each weight's least-squares slope from its last value, the fitted line itself, steps that shrink by a ratio per
    tensor, or a network of NiNo's that predicts each weight by itself."""
    horizon: Annotated[int, Field(ge=1)] = 1
    """How far ahead a jump goes, in snapshots; NiNo's networks go up to 40."""
    jumps: Annotated[int, Field(ge=1)] | None = None
    """Over how many jumps the horizon falls to 1, linear in its root (null: it stays)."""
    network: str | None = None
    """Path of NiNo's `nino_mlp.pt` or `nino_mlp_h32.pt`, for method `network`."""
    offload: bool = False
    """Keep snapshots in host memory."""

    @model_validator(mode="after")
    def _fit_together(self) -> "NowcastConfig":
        if self.period % self.snapshots:
            raise ValueError(f"period must be a multiple of snapshots ({self.snapshots}), got {self.period}")
        if self.method == "geometric" and self.snapshots < 3:
            raise ValueError(f"method geometric needs 3 snapshots or more, got {self.snapshots}")
        if (self.network is not None) != (self.method == "network"):
            raise ValueError(f"network goes with method network alone, got {self.network} for {self.method}")
        return self
