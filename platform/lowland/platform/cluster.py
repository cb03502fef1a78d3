"""The connection to Ray: the environment it needs, and `connect`.

Everything that makes Ray quiet, quick and safe is set here and nowhere else.  Ray is imported only by
`connect`, because some of what it reads from the environment it reads when it is imported.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from lowland.trainers.errors import RunError, UserError

RAY_ENVIRONMENT: Mapping[str, str] = {
    # Ray Train's controller takes one report per rank and poll, and report() waits for it: with Ray's 2.0 s
    # every checkpoint costs two seconds of training.  Read by the controller; sent on from the driver.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray Train's print() writes the line and logs it, so each appears twice.  Read by the workers.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Otherwise workers start in a folder of Ray's and every relative path of a recipe means something else
    # there.  Read by the driver, for Tune by the trial.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A worker that asked for no GPU sees all of the node's, and torch then uses the first one.  With this
    # CUDA_VISIBLE_DEVICES is emptied for it.  Read by every worker process.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Ray prints a paragraph into the progress when a worker dies, which we say in a line, and one about the many
    # processes that a search starts on purpose.  (Its notices of workers killed for want of memory stay.)  Read by
    # the driver, when Ray is imported.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed while executing|worker processes have been started",
    # Ray sends usage statistics every hour unless told not to.  Read by the head, when it starts.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Defaults for every run; a value that the user's environment already has stays."""

GPU_ENVIRONMENT: Mapping[str, str] = {
    # A hung collective otherwise holds the GPUs until torch's time-out (30 minutes): NCCL's own status
    # (RAS, NCCL >= 2.24) is polled and a hang of 10 minutes fails the attempt, which `max_failures` retries.
    # Ray's default is to only log it.  Both are read by the driver.
    "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1",
    "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
}
"""Besides, when workers have GPUs."""

LOCAL_ENVIRONMENT: Mapping[str, str] = {
    # No cloud takes this machine away; the watcher is one more process (100 MB) beside each run.
    # Read by the driver.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray runs workers at niceness 15: whatever else this machine does then takes the cores from the training.
    # Read by the raylet, when it starts.
    "RAY_worker_niceness": "0",
}
"""Besides, in a cluster started here."""

JOIN_ENVIRONMENT: Mapping[str, str] = {
    # `ray job submit` gives a job a runtime environment; when ours names a field too, Ray refuses to start.
    # Read by the driver.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    # A head that does not let us in is asked once a second, 20 times, each with a line on stderr.  That
    # it answers at all was seen before.  Read by the driver, when Ray is imported.
    "RAY_NUM_REDIS_GET_RETRIES": "5",
}
"""Besides, when joining a cluster."""

WORKER_ENVIRONMENT: Mapping[str, str] = {
    # A tokenizer's thread pool does not survive the fork of a data loader and warns about it each time.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What every worker process gets.  Not OMP_NUM_THREADS: Ray sets it to a worker's CPUs where it is unset."""

CPU_ENVIRONMENT: Mapping[str, str] = {
    # DeepSpeed looks for an accelerator by importing what might drive one; here we know.
    "DS_ACCELERATOR": "cpu",
}
"""Besides, when workers have no GPUs."""

_OBJECT_STORE_BYTES = 256 * 2**20
# Training moves nothing through Ray's object store but what `data.reader: ray` makes; Ray would reserve a third of the
# memory for it, or warn that a container's /dev/shm is too small.

_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Cluster:
    """A live connection to a Ray cluster."""

    address: str
    """host:port of the head (GCS)."""
    started: bool
    """Whether `connect` started this cluster, on this machine alone, and will stop it."""


@contextmanager
def connect(
    address: str | None = None,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    start_timeout: float | None = None,
) -> Iterator[Cluster]:
    """Joins a Ray cluster or starts one on this machine; on leaving, stops only what it started.

    Args:
        address: host:port of a head node, `auto` for the cluster of this machine, or `local` for a new one.
            None takes RAY_ADDRESS if that is set, as it is in a submitted job, else `local`.
        cpus: CPUs a new cluster offers; None is what the machine has.
        gpus: GPUs a new cluster offers, None is what the machine has; 0 also tells workers that the
            training is on CPUs.
        start_timeout: seconds Ray Train waits for all workers; None leaves Ray's 60.

    A connection that this process already has is used as it is, and stays.

    Raises:
        UserError: the cluster cannot be reached, does not let us in, or runs other versions.
        RunError: Ray did not start here.
    """
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    with _environment(_defaults(target, gpus, start_timeout)):
        import ray

        if ray.is_initialized():
            yield Cluster(ray.get_runtime_context().gcs_address, started=False)
            return
        _refresh_authentication()
        if target == "local":
            _start(cpus, gpus)
        else:
            _join(target, gpus)
        try:
            yield Cluster(ray.get_runtime_context().gcs_address, started=target == "local")
        finally:
            ray.shutdown()


def own_cpus() -> int:
    """CPUs that this process may run on: it may have been given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def authentication_mode(address: str) -> str:
    """The RAY_AUTH_MODE for an address: never unset, since head, workers and drivers then disagree.

    Ray's head turns tokens on by itself where ~/.ray/auth_token exists, and starting a local cluster
    creates that file; workers and joining drivers do not follow.  RAY_AUTH_MODE in the environment wins.
    """
    if mode := os.environ.get("RAY_AUTH_MODE"):
        return mode
    if address == "local":
        return "disabled"  # it listens on this machine and ends with the run
    configured = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return "token" if configured or (Path.home() / ".ray" / "auth_token").is_file() else "disabled"


def _defaults(target: str, gpus: int | None, start_timeout: float | None) -> dict[str, str]:
    values = {**RAY_ENVIRONMENT, **WORKER_ENVIRONMENT, "RAY_AUTH_MODE": authentication_mode(target)}
    values |= CPU_ENVIRONMENT if gpus == 0 else GPU_ENVIRONMENT
    values |= LOCAL_ENVIRONMENT if target == "local" else JOIN_ENVIRONMENT
    if start_timeout is not None:
        values["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_timeout)
    return {name: os.environ.get(name, value) for name, value in values.items()}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _refresh_authentication() -> None:
    """Makes Ray read RAY_AUTH_MODE again; it keeps what it saw when it was first imported."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _start(cpus: int | None, gpus: int | None) -> None:
    """Workers inherit the environment of this process: a runtime_env would cost each of them a second."""
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    except Exception as error:  # Ray raises no class of its own when its node is not up after 30 s
        ray.shutdown()
        raise RunError(
            f"Ray did not start on this machine: {error}\n"
            "It may be too busy or short of memory: try again; Ray's own logs are in /tmp/ray/session_latest/logs"
        ) from error


def _join(address: str, gpus: int | None) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    _check_address(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=_runtime_environment(gpus),
        )
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(_explain(address, error)) from error


def _explain(address: str, error: Exception) -> str:
    text = str(error)
    if "mismatch" in text:
        return (
            f"the cluster at {address} runs other versions than this environment: {text}\n"
            "Install the same versions here, or send the run there: ray job submit -- lowland train ..."
        )
    if address == "auto":
        return f"no Ray cluster runs on this machine: {text}"
    mode = os.environ["RAY_AUTH_MODE"]
    return (
        f"{address} answers, but does not let this process join (RAY_AUTH_MODE is {mode}): {text}\n"
        "If the cluster uses tokens: set RAY_AUTH_MODE=token and put the head's token (there: "
        "ray get-auth-token) into ~/.ray/auth_token or RAY_AUTH_TOKEN.  If it does not: set "
        "RAY_AUTH_MODE=disabled.  Otherwise check that the port is the head's (6379 by default)"
    )


def _runtime_environment(gpus: int | None) -> dict[str, Any]:
    names = [
        *WORKER_ENVIRONMENT,
        *(CPU_ENVIRONMENT if gpus == 0 else {}),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
    ]
    environment: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names}}
    if modules := checkout_modules():
        environment |= {"py_modules": modules, "excludes": ["__pycache__"]}
    return environment


def checkout_modules() -> list[str]:
    """The three portions of the namespace `lowland`, if it is installed from a checkout; else nothing.

    Nodes of another machine do not have the checkout.  Shipped together, the portions merge there.
    """
    try:
        url = json.loads(distribution("lowland").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return []
    if not url.get("dir_info", {}).get("editable"):
        return []
    root = Path(unquote(urlparse(url["url"]).path))
    return [str(root / source / "lowland") for source in ("platform", "trainers", "search_spaces")]


def _check_address(address: str) -> None:
    """Ray itself tries a wrong address for minutes before it says so."""
    if address == "auto":
        return
    if "://" in address:
        raise UserError(
            f"Ray address {address!r}: a cluster is joined by the host:port of its head (port 6379).\n"
            "From outside the cluster's network submit a job instead: "
            "ray job submit --address http://HEAD:8265 -- lowland train ..."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"Ray address {address!r}: write host:port, for example 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}).\n"
            "Check the address (on the head: ray status), that it runs, and that port "
            f"{port} is open from here; without --address lowland starts a cluster on this machine"
        ) from error
