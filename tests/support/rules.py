"""Optimizer sections of recipes."""

from typing import Any

from pydantic import TypeAdapter

from lowland.trainers.recipe import OptimizerConfig


def section(**fields: Any) -> OptimizerConfig:
    config: OptimizerConfig = TypeAdapter(OptimizerConfig).validate_python(fields)
    return config


def mixed(*rules: dict[str, Any], **fields: Any) -> OptimizerConfig:
    return section(**{"name": "mixed", "lr": 1e-2, "rules": list(rules), **fields})


def everything(name: str, **fields: Any) -> dict[str, Any]:
    return {"match": "*", "optimizer": {"name": name, **fields}}


MUON: dict[str, Any] = {"kinds": ["matrices"], "optimizer": {"name": "muon", "lr": 0.02}}
