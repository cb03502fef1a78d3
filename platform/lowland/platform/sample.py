"""`lowland sample`: text from a model that a run has exported, or from any folder transformers can load."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lowland.platform.runs import RunFolder, existing_run
from lowland.trainers.errors import DataError, UserError

CONFIG = "config.json"
"""What a folder has that transformers can load a model from."""


@dataclass(frozen=True)
class Sampling:
    """How text is drawn."""

    prompt: str
    tokens: int
    """At most so many new ones, > 0; a document may end sooner."""
    temperature: float
    """Divides the logits, >= 0; 0 takes the likeliest token each time."""
    seed: int


def sample(model: str, storage: str, sampling: Sampling, console: Console) -> None:
    """Prints a prompt, dimmed, and what the model continues it with.

    Args:
        model: name of a run, or a folder with a model.
        storage: folder or URI that holds run folders.
        sampling: what to draw.
        console: where to print.

    Raises:
        UserError: there is no such model, or it has not enough positions for what is asked.
    """
    with exported_model(model, storage) as folder:
        continuation = generate(folder, sampling)
    console.print(Text.assemble((sampling.prompt, "dim"), continuation), soft_wrap=True)


@contextmanager
def exported_model(model: str, storage: str) -> Iterator[Path]:
    """The local folder of a model: given as such, or exported by a run, copied here if it is stored elsewhere.

    Raises:
        UserError: there is neither such a folder nor such a run, or the run has exported no model yet.
    """
    if Path(model).is_dir() and not RunFolder.open(storage, model).exists():
        yield _model_folder(Path(model))
        return
    folder, record = existing_run(storage, model)
    if not folder.filesystem.get_file_info(folder.file("model", CONFIG)).is_file:
        raise UserError(f"run {model!r} has exported no model (its status: {record.status}); see lowland show {model}")
    if folder.local is not None:
        yield folder.local / "model"
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory() as scratch:
        fs.copy_files(folder.file("model"), scratch, folder.filesystem, fs.LocalFileSystem())
        yield Path(scratch)


def generate(folder: Path, sampling: Sampling) -> str:
    """What the model in a folder continues the prompt with.

    Raises:
        DataError: the model or its tokenizer cannot be loaded.
        UserError: prompt and new tokens are more than the model has positions for.
    """
    import torch
    from transformers import GenerationConfig

    model, tokenizer = _load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompt = _prompt_ids(tokenizer, sampling.prompt)
    _require_positions(model.config, len(prompt), sampling.tokens)
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    how = GenerationConfig(
        max_new_tokens=sampling.tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        **(drawn if sampling.temperature > 0 else {"do_sample": False}),
    )
    torch.manual_seed(sampling.seed)
    ids = torch.tensor([prompt], device=device)
    output = model.to(device).generate(ids, attention_mask=torch.ones_like(ids), generation_config=how)
    text: str = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
    return text


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: transformers cannot load a model and its tokenizer there ({reason})") from error


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as the beginning of a document, as prepared data has it; an empty one needs that mark."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id
    if start is None and not ids:
        start = tokenizer.eos_token_id
    if start is None and not ids:
        raise UserError("this model's tokenizer has no mark that begins a document: give a --prompt")
    return ids if start is None else [start, *ids]


def _require_positions(config: Any, prompt: int, tokens: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and prompt + tokens > positions:
        room = positions - prompt
        way_out = f"at most --tokens {room}" if room > 0 else "shorten the prompt"
        raise UserError(
            f"--tokens {tokens} after a prompt of {prompt} tokens: the model has {positions} positions; {way_out}"
        )


def _model_folder(folder: Path) -> Path:
    """The folder itself, or `model` within it, if the folder is a run's."""
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    raise UserError(f"{folder}: no model there (no {CONFIG})")
