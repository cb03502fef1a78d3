"""The loop by hand inside a bare Ray TorchTrainer: what Ray costs without lowland.

    python benchmarks/through_ray.py JOB.json RESULT.json     (started by the benchmarks)

Ray as it comes, but for the workers' priority: a local cluster, one trainer, nothing reported and no checkpoint.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
from common import Variant, Workload
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def work(job: dict[str, Any]) -> None:
    """One rank, on a Ray worker."""
    import torch
    from baselines import train
    from ray.train import get_context
    from ray.train.torch import get_device

    workload = Workload(**job["workload"])
    if workload.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(workload.threads)
    rank = get_context().get_world_rank()
    train(rank, workload, Variant(**job["variant"]), get_device(), Path(job["result"]))


def main(job: Path, result: Path) -> None:
    """Trains on a cluster of this machine alone."""
    config = {**json.loads(job.read_text(encoding="utf-8")), "result": str(result)}
    workload = Workload(**config["workload"])
    resources = {"CPU": workload.threads, **({"GPU": 1} if workload.device == "cuda" else {})}
    cpus = max(os.cpu_count() or 1, workload.workers * workload.threads + 1)
    # Ray's own 15 would compare priorities: lowland's workers and the loop by hand run at 0.
    os.environ |= {"RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=cpus, include_dashboard=False)
    TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workload.workers, use_gpu=workload.device == "cuda", resources_per_worker=resources
        ),
        run_config=RunConfig(name=result.stem, storage_path=str(Path(workload.folder, "ray"))),
    ).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
