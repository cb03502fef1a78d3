"""Recipes and prepared folders as files, for tests that read them."""

from pathlib import Path

from lowland.trainers.data.manifest import Manifest, SplitInfo, TokenizerInfo

BASE = """\
name: small
length: 100 steps
model:
  config: {model_type: llama, max_position_embeddings: 64}
data: {path: PREPARED}
optimizer:
  name: adamw
  lr: 1e-3
batch: {micro_batch: 2}
"""
"""A right recipe; PREPARED stands for the path of a prepared folder."""


def write_manifest(folder: Path, *, sequence_length: int = 64, vocab_size: int = 260, rows: int = 1000) -> Path:
    """A folder with the manifest of data that is not there; reading a recipe needs no more."""
    tokenizer = TokenizerInfo(kind="byte", digest="", vocab_size=vocab_size, bos_id=256, eos_id=257, pad_id=258)
    manifest = Manifest(
        tokenizer=tokenizer,
        sequence_length=sequence_length,
        dtype="uint16",
        packing="split",
        seed=0,
        held_out=0.01,
        splits={"train": SplitInfo(rows=rows), "held_out": SplitInfo(rows=10)},
        sources=(),
        bad_rows={},
        document_lengths={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    manifest.with_digest().write(folder)
    return folder


def write_recipe(folder: Path, text: str = BASE, *, sequence_length: int = 64, vocab_size: int = 260) -> Path:
    """The recipe as a file, beside the prepared folder that it names."""
    prepared = write_manifest(folder / "prepared", sequence_length=sequence_length, vocab_size=vocab_size)
    path = folder / "recipe.yaml"
    path.write_text(text.replace("PREPARED", str(prepared)), encoding="utf-8")
    return path


def data_overrides(path: Path, prepared: Path) -> list[str]:
    """What makes a shipped recipe read data that are there: a prepared folder, or the digits of scikit-learn."""
    text = path.read_text(encoding="utf-8")
    if "path: shapes" in text:
        return []  # made when they are needed
    if "task: image-classification" in text:
        return ["data.path=digits", "data.held_out_path=null"]
    return [f"data.path={prepared}"]
