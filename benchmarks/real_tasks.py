"""What searches are compared on: recipes, spaces and data of small trainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.trainers.errors import UserError

EPOCHS = 17
"""Evaluations of a training, at equal distances; a first rung at a seventeenth of it is the first of them."""
LENGTH = 128
"""Bytes that the language model sees."""
HELD_OUT = 0.1
"""Share of the text, its end, that is not trained on."""
WARMUP = "schedule.warmup"
"""The field that all spaces have, unless it is the recipe's."""
IMAGES = 10_000
"""Of CIFAR-10, that are trained on."""


@dataclass(frozen=True)
class Task:
    """A training, and what is searched of it."""

    name: str
    steps: int
    """Of an epoch: as many as go through the data once; of the language model, a seventeenth of its training."""
    recipe: Mapping[str, Any]
    space: Mapping[str, Any]
    on_gpu: bool = False


_CLASSIFIER = {
    "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True},
    "schedule": {"name": "wsd", "warmup": "5%", "cooldown": "30%"},
}
_CLASSIFIER_SPACE = {
    "optimizer.lr": {"type": "float", "low": 1e-3, "high": 3.0, "log": True},
    "optimizer.weight_decay": {"type": "float", "low": 1e-6, "high": 1e-2, "log": True},
    "1 - optimizer.momentum": {"type": "float", "low": 0.01, "high": 0.5, "log": True},
    "augmentation.label_smoothing": {"type": "float", "low": 0.0, "high": 0.2},
    WARMUP: {"type": "float", "low": 0, "high": 30, "unit": "%"},
}
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}
TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            21,
            {
                "task": "image-classification",
                "model": {"architecture": "wide-resnet-16-2"},
                "data": {"path": "digits", "channels": 1, "held_out": 0.25},
                "augmentation": {"padding": 1},
                "batch": {"micro_batch": 64},
                "evaluation": {"micro_batch": 256, "pictures": False},
                **_CLASSIFIER,
            },
            {
                **_CLASSIFIER_SPACE,
                "model.architecture": {"type": "choice", "values": ["wide-resnet-16-2", "wide-resnet-16-4"]},
            },
        ),
        Task(
            "lm",
            20,
            {
                "task": "causal-lm",
                "model": {"config": _LLAMA},
                "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1, "betas": [0.9, 0.99]},
                "schedule": {"name": "wsd", "warmup": "5%", "cooldown": "30%"},
                "batch": {"micro_batch": 16, "max_grad_norm": 1.0},
                "evaluation": {"micro_batch": 64, "max_sequences": 256},
            },
            {
                "optimizer.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
                "optimizer.weight_decay": {"type": "float", "low": 1e-3, "high": 1.0, "log": True},
                "1 - optimizer.betas.0": {"type": "float", "low": 0.03, "high": 0.5, "log": True},
                "1 - optimizer.betas.1": {"type": "float", "low": 1e-3, "high": 0.2, "log": True},
                "batch.max_grad_norm": {"type": "float", "low": 0.1, "high": 10.0, "log": True},
                WARMUP: {"type": "float", "low": 0, "high": 30, "unit": "%"},
            },
        ),
        Task(
            "cifar",
            IMAGES // 128,
            {
                "task": "image-classification",
                "model": {"architecture": "resnet18-cifar", "dtype": "bfloat16", "channels_last": True},
                "data": {"size": 32},
                "augmentation": {"padding": 4, "flip": 0.5},
                "batch": {"micro_batch": 128},
                "evaluation": {"micro_batch": 500, "max_images": 5000, "pictures": False},
                **_CLASSIFIER,
            },
            _CLASSIFIER_SPACE,
            on_gpu=True,
        ),
    )
}


def recipe(task: Task, data: Path, storage: Path, seed: int, *, cpus: int, gpus: float) -> dict[str, Any]:
    """The recipe of which trials are made; it evaluates after each epoch.

    Args:
        task: what is trained.
        data: the folder of `prepare`.
        storage: folder of the studies.
        seed: of the weights and the order of the data.
        cpus: of a trial.
        gpus: of a trial, if the task is trained on them.
    """
    places = {
        "lm": {"path": str(data / "text")},
        "cifar": {"path": str(data / "train.parquet"), "held_out_path": str(data / "test.parquet")},
    }
    every = f"{task.steps} steps"
    return {
        **task.recipe,
        "name": "search",
        "storage": str(storage),
        "length": f"{EPOCHS * task.steps} steps",
        "seed": seed,
        "data": {**task.recipe.get("data", {}), **places.get(task.name, {})},
        "evaluation": {**task.recipe["evaluation"], "every": every},
        "sharding": {"engine": "torch"},
        "scaling": {"gpus_per_worker": gpus if task.on_gpu else 0, "cpus_per_worker": cpus},
        "tracking": {"uri": f"sqlite:///{storage / 'mlflow.db'}"},
        "checkpoints": {"every": None, "keep_last": 1, "keep_best": 0, "export": False},
        "log_every": task.steps,
    }


def space(task: Task, *, warmup: bool = True) -> dict[str, Any]:
    """The search space, as its file would be read; with or without the warm-up."""
    parameters = {key: value for key, value in task.space.items() if warmup or key != WARMUP}
    return {"description": f"What is compared on {task.name}.", "parameters": parameters}


def prepare(task: Task, data: Path, *, text: Path | None, images: Path | None) -> None:
    """Makes the task's data ready in a folder, once.

    Raises:
        UserError: a source is not named, or not there.
    """
    data.mkdir(parents=True, exist_ok=True)
    if task.name == "lm" and not (data / "text").exists():
        _prepare_text(_there(text, "--text"), data)
    if task.name == "cifar" and not (data / "test.parquet").exists():
        _prepare_images(_there(images, "--images"), data)


def _there(source: Path | None, option: str) -> Path:
    if source is None or not source.exists():
        raise UserError(f"{option} {source or ''}: name the task's data")
    return source


def _prepare_text(source: Path, data: Path) -> None:
    from lowland.trainers.data.plan import PrepareSettings
    from lowland.trainers.data.prepare import prepare as pack

    content = source.read_bytes()
    cut = content.rfind(b"\n", 0, int(len(content) * (1 - HELD_OUT))) + 1
    (data / "train.txt").write_bytes(content[:cut])
    (data / "held-out.txt").write_bytes(content[cut:])
    settings = PrepareSettings(
        (str(data / "train.txt"),), LENGTH, packing="split", held_out_sources=(str(data / "held-out.txt"),)
    )
    pack(settings, data / "text")


def _prepare_images(source: Path, data: Path) -> None:
    """As many as `IMAGES` to train on; the test images are there last."""
    import pyarrow.parquet as pq

    for name, rows in (("train", IMAGES), ("test", None)):
        table = pq.read_table(source / f"{name}.parquet", columns=["image", "label"]).slice(0, rows)
        pq.write_table(table, data / f"{name}.part")
        (data / f"{name}.part").replace(data / f"{name}.parquet")
