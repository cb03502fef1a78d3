"""Which prepared text is trained on."""

from typing import Literal

from pydantic import Field

from lowland.trainers.recipe.section import Section


class PackedTextConfig(Section):
    """Packed token shards, as `lowland data prepare` writes them."""

    path: str
    """Folder (or pyarrow.fs URI) with a manifest.json written by `lowland data prepare`."""
    boundaries: Literal["isolate", "ignore"] = "isolate"
    """`isolate`: attention and positions stop at document boundaries; `ignore`: a row is one long context."""
    prefetch: int = Field(default=2, ge=0)
    """Batches made ready ahead of the training step, in a background thread; 0 makes them in the step."""
