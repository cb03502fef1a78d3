"""Whether a cluster can ever hold what a run asks for."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lowland.platform.recipe import ImageClassificationRecipe, Recipe, ScalingConfig

_WITHOUT_BF16 = ("V100", "P100", "P4", "T4", "K80")
# Ray's names of NVIDIA GPUs older than compute capability 8.0.


def resource_problems(recipe: Recipe, alive: list[dict[str, Any]], most: Mapping[str, float] | None) -> Iterator[str]:
    """What the run asks for and the cluster does not have.

    Args:
        recipe: the run.
        alive: nodes as Ray describes them: each with `Resources` and `NodeManagerHostname`.
        most: what an autoscaler could grow the cluster to.
    """
    scaling = recipe.scaling
    asked = {"CPU": scaling.workers * scaling.cpus_per_worker, "GPU": scaling.workers * scaling.gpus_per_worker}
    has = {kind: sum(node["Resources"].get(kind, 0) for node in alive) for kind in asked}
    reachable = {kind: max(has[kind], (most or {}).get(kind, 0)) for kind in asked}
    short = {kind: count for kind, count in asked.items() if count > reachable[kind]}
    for kind, count in short.items():
        grow = "" if most is None else f" and may grow to {most.get(kind, 0):g}"
        yield (
            f"the run asks for {count:g} {kind}s ({_how_many(scaling, kind)}), the cluster has {has[kind]:g}{grow}; "
            + _fix(kind, scaling, reachable[kind])
        )
    yield from _reader_problems(recipe, reachable["CPU"] - asked["CPU"])
    suitable = [node for node in alive if _has_accelerator(node, scaling.accelerator_type)]
    if scaling.accelerator_type and not suitable and most is None:
        yield (
            f"scaling.accelerator_type is {scaling.accelerator_type}, and no node has it; the cluster has "
            f"{', '.join(_accelerators(alive)) or 'no accelerators'}"
        )
    elif not short and most is None:
        yield from _placement_problems(scaling, suitable)
    if recipe.model.dtype == "bfloat16" and scaling.gpus_per_worker:
        old = sorted(set(_accelerators(suitable)) & set(_WITHOUT_BF16))
        if old and len(old) == len(_accelerators(suitable)):
            yield f"model.dtype is bfloat16, and {', '.join(old)} GPUs do not compute in it; set model.dtype: float32"


def reader_cpus(recipe: Recipe) -> int:
    """CPUs of processes that make batches for the workers, beside theirs."""
    if not isinstance(recipe, ImageClassificationRecipe) or recipe.data.reader != "ray":
        return 0
    return recipe.scaling.workers * recipe.data.ray_tasks


def _reader_problems(recipe: Recipe, left: float) -> Iterator[str]:
    asked, workers = reader_cpus(recipe), recipe.scaling.workers
    if 0 <= left < asked:
        fits = int(left // workers)
        fix = f"set data.ray_tasks: {fits}, or data.reader: local" if fits else "set data.reader: local"
        yield (
            f"data.reader: ray asks for {asked} CPUs beside the workers' (scaling.workers {workers} x data.ray_tasks "
            f"{asked // workers}), the cluster has {left:g} left; {fix}"
        )


def _how_many(scaling: ScalingConfig, kind: str) -> str:
    each = scaling.cpus_per_worker if kind == "CPU" else scaling.gpus_per_worker
    return f"scaling.workers {scaling.workers} x {each:g}"


def _fix(kind: str, scaling: ScalingConfig, has: float) -> str:
    if kind == "GPU" and has == 0:
        return "set scaling.gpus_per_worker: 0 to train on CPUs, or join a cluster with GPUs (--address)"
    each = scaling.cpus_per_worker if kind == "CPU" else scaling.gpus_per_worker
    fits = int(has // each)
    return f"set scaling.workers: {fits}" if fits else f"set scaling.{kind.lower()}s_per_worker to at most {has:g}"


def _accelerators(alive: list[dict[str, Any]]) -> list[str]:
    prefix = "accelerator_type:"
    return sorted({key.removeprefix(prefix) for node in alive for key in node["Resources"] if key.startswith(prefix)})


def _has_accelerator(node: dict[str, Any], kind: str | None) -> bool:
    return kind is None or f"accelerator_type:{kind}" in node["Resources"]


def _placement_problems(scaling: ScalingConfig, alive: list[dict[str, Any]]) -> Iterator[str]:
    """Enough in total is not enough: a worker does not straddle nodes."""
    fits = [_workers_that_fit(node, scaling) for node in alive]
    each = f"{scaling.cpus_per_worker:g} CPUs and {scaling.gpus_per_worker:g} GPUs"
    if sum(fits) < scaling.workers:
        yield (
            f"only {sum(fits)} of {scaling.workers} workers fit on the nodes, each worker with {each} on one node; "
            "set scaling.cpus_per_worker or scaling.workers lower"
        )
    elif scaling.placement == "STRICT_PACK" and max(fits) < scaling.workers:
        yield (
            f"scaling.placement is STRICT_PACK, and no node has room for {scaling.workers} workers with {each} "
            f"(at most {max(fits)}); set scaling.placement: PACK"
        )
    elif scaling.placement == "STRICT_SPREAD" and sum(fit > 0 for fit in fits) < scaling.workers:
        yield (
            f"scaling.placement is STRICT_SPREAD, and only {sum(fit > 0 for fit in fits)} nodes have room for a worker "
            f"with {each}; set scaling.placement: SPREAD"
        )


def _workers_that_fit(node: dict[str, Any], scaling: ScalingConfig) -> int:
    resources = node["Resources"]
    fits: int = math.floor(resources.get("CPU", 0) / scaling.cpus_per_worker)
    if scaling.gpus_per_worker:
        fits = min(fits, shares(resources.get("GPU", 0), scaling.gpus_per_worker))
    return fits


def shares(gpus: float, each: float) -> int:
    """How many workers have room on GPUs of which each takes one or the same part of one; none straddles two."""
    return int(gpus) * math.floor(1 / each + 1e-9)
