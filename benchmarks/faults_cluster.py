"""A Ray cluster of two nodes on this machine that can be hurt, and another one beside it; no dashboards."""

import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil
from common import child_environment, end, free_port, tail

from lowland.platform.search.setting import read_setting

TOKEN, OF_DRIVER = "LOWLAND_FAULTS", "LOWLAND_FAULTS_DRIVER"
"""Environment variables by which everything that was started here, or by a driver, is found."""
STORE_BYTES = 128 * 2**20
START_SECONDS = 300.0
ATTEMPTS = 5
QUIET_SECONDS = 90.0
"""In which everything must be gone after the end of a driver."""
TITLES = {
    "controller": "TrainController",
    "worker": "RayTrainWorker",
    "waiter": "ImplicitFunc",
    "dispatcher": "Dispatcher",
}
"""What the titles of processes hold."""
OF_A_CLUSTER = ("raylet", "gcs_server")
IDLE = ("ray::IDLE", "ray::SPILL", "ray::RESTORE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Nodes:
    """A head, a second node, and a head of another cluster; a context manager.

    Args:
        folder: for Ray's files; a short path, since sockets are in it.
        cpus: that each node offers.
        ports: the first of 300 that may be used.
    """

    def __init__(self, folder: Path, cpus: int, ports: int) -> None:
        self.token = uuid.uuid4().hex
        self.address = f"127.0.0.1:{free_port()}"
        self._folder, self._cpus, self._ports = folder, cpus, ports
        self._started: list[psutil.Popen] = []
        self._second: psutil.Popen | None = None

    def __enter__(self) -> "Nodes":
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder / 'a'}"]
        other = ["--head", f"--port={free_port()}", "--include-dashboard=false", f"--temp-dir={self._folder / 'b'}"]
        try:
            self._start("head", 0, head)
            self._start("other", 2, other)
            self.start_second()
        except BaseException:
            end(self.processes())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self.processes())

    def environment(self) -> dict[str, str]:
        """For whatever is to be found again."""
        own = {TOKEN: self.token, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        made = {name: text for name, text in child_environment(own).items() if name != "RAY_ADDRESS"}
        return {**made, "PYTHONPATH": f"{made['PYTHONPATH']}:{Path(__file__).parent}"}

    def start_second(self) -> None:
        """Starts the second node, also after it was killed."""
        self._second = self._start("second", 1, [f"--address={self.address}"])

    def second_raylet(self) -> list[psutil.Process]:
        """The second node's raylet, if it runs."""
        if self._second is None or not self._second.is_running():
            return []
        return [p for p in self._second.children(recursive=True) if p.name() == "raylet"]

    def processes(self) -> list[psutil.Process]:
        """Everything that was started here."""
        return marked(TOKEN, self.token)

    def called(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind of `TITLES`, or the second node's raylet."""
        if kind == "raylet":
            return self.second_raylet()
        return [p for p in self.processes() if (t := title(p)).startswith("ray::") and TITLES[kind] in t]

    def working(self) -> Counter[str]:
        """Processes that do somebody's work, by title: those of the clusters themselves do not count."""
        found = Counter[str]()
        nodes = {node.pid for node in self._started}
        for process in self.processes():
            with suppress(psutil.Error):
                text = " ".join(process.cmdline()).strip()
                if text.startswith("ray::") and not text.startswith(IDLE):
                    found[text] += 1
                elif process.name() in OF_A_CLUSTER and process.ppid() not in nodes:
                    found[process.name()] += 1
        return found

    def _start(self, name: str, offset: int, options: Sequence[str]) -> psutil.Popen:
        first = self._ports + 100 * offset
        ports = {"node-manager": first, "object-manager": first + 1, "min-worker": first + 10, "max-worker": first + 99}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *options]
        command += [f"--{key}-port={port}" for key, port in ports.items()]
        command += [f"--num-cpus={self._cpus}", f"--object-store-memory={STORE_BYTES}"]
        for _ in range(ATTEMPTS - 1):  # Ray gives a node thirty seconds, which may be short on a busy machine
            with suppress(RuntimeError):
                return self._try_to_start(command, self._folder / f"{name}.log")
        return self._try_to_start(command, self._folder / f"{name}.log")

    def _try_to_start(self, command: Sequence[str], log: Path) -> psutil.Popen:
        with log.open("wb") as output:
            node = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment())
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in tail(log, 200):
            if node.poll() is not None or time.monotonic() > deadline:
                end({node} if node.poll() is None else set())
                raise RuntimeError(f"no Ray node:\n{tail(log)}")
            time.sleep(0.2)
        self._started.append(node)
        return node


def marked(name: str, value: str) -> list[psutil.Process]:
    """Processes that began with this in their environment, which children inherit, and live."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                found.append(process)
    return found


def title(process: psutil.Process) -> str:
    """The command line in one string; empty if the process is gone."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def led_by(number: int) -> list[psutil.Process]:
    """Processes that live and have this process, or had it, as their leader by `getsid`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == number:
                found.append(process)
    return found


def brief(process: psutil.Process) -> str:
    """What it is, for people."""
    return title(process)[:60] or "a process"


def kill_one(found: Sequence[psutil.Process], generator: random.Random) -> bool:
    """kill -9 of one of them; whether there was one."""
    for process in generator.sample(list(found), len(found)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            return True
    return False


def held(address: str) -> dict[str, int]:
    """Placement groups, actors and CPUs that somebody of a cluster holds, asked of its head without joining it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    try:
        groups = sum(group["state"] != "REMOVED" for group in state.placement_group_table().values())
        actors = sum(actor["State"] != "DEAD" for actor in state.actor_table(None).values())
        total, free = state.cluster_resources().get("CPU", 0), state.available_resources().get("CPU", 0)
        return {"placement groups": groups, "actors": actors, "CPUs": round(total - free)}
    finally:
        state.disconnect()


class Driver:
    """A process that leads searches: one after another on a cluster that it joins (`faults_driver.py`), or, with a
    cluster of its own, one as the command `lowland tune` does.

    Args:
        nodes: what it joins.
        folder: with the recipe and the space.
        trials: of each search.
    """

    def __init__(self, nodes: Nodes, folder: Path, trials: int) -> None:
        self.own = False
        """Whether it starts a cluster of its own."""
        self._nodes, self._folder, self._trials = nodes, folder, trials
        self._process: psutil.Popen | None = None
        self._count, self._mark, self._leader = 0, "", 0

    @property
    def code(self) -> int | None:
        """Its exit code."""
        return self._process.returncode if self._process is not None else None

    def lead(self, name: str) -> None:
        """Lets it begin or resume a search; starts it if need be."""
        if self.own:
            self._start(self._command(name))
            return
        if self._process is None or self.ended():
            script = str(Path(__file__).with_name("faults_driver.py"))
            self._start([sys.executable, script, str(self._folder), str(self._trials), self._nodes.address])
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()

    def _start(self, command: Sequence[str]) -> None:
        self._count, self._mark = self._count + 1, uuid.uuid4().hex
        environment = self._nodes.environment() | {OF_DRIVER: self._mark}
        with self._log.open("wb") as output:
            self._process = psutil.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._leader = self._process.pid

    def _command(self, name: str) -> list[str]:
        """What a user types."""
        command = [str(Path(sys.executable).with_name("lowland")), "tune", str(self._folder / "recipe.yaml")]
        command += ["--space", str(self._folder / "space.yaml"), "--name", name, "--trials", str(self._trials)]
        command += ["--parallel", "2", "--sampler", "random", "--seed", str(int(name[-3:]))]
        return [*command, *(["--resume"] if read_setting(str(self._folder / "runs"), name) is not None else [])]

    def done(self, name: str) -> bool:
        """Whether a search has ended as it should."""
        setting = read_setting(str(self._folder / "runs"), name)
        return setting is not None and setting.status == "finished"

    def ended(self) -> bool:
        """Whether the process has."""
        return self._process is not None and self._process.poll() is not None

    def process(self) -> list[psutil.Process]:
        """It, if it runs."""
        return [] if self._process is None or self.ended() else [psutil.Process(self._process.pid)]

    def last_words(self) -> str:
        """The end of its output."""
        return tail(self._log, 4)

    def kill(self) -> None:
        """Ends it, without asking."""
        end(self.process())

    def between_searches(self, groups: int) -> list[str]:
        """What is held though no search runs, beyond the groups of workers that stay; a command of its own ends."""
        if self.own:
            return self.finish()
        if not self.process():
            return []
        return self._left({"placement groups": groups})

    def after_death(self) -> list[str]:
        """What is left of it."""
        return self._left({})

    def finish(self) -> list[str]:
        """Lets it end, and says what is left of it."""
        if self._process is None:
            return []
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(START_SECONDS)
        except psutil.TimeoutExpired:
            self.kill()
            return ["the driver did not end after its last search"]
        code, self._process = self.code, None
        return [*([f"the command ended with {code}"] if self.own and code else []), *self._left({})]

    def _started(self) -> set[psutil.Process]:
        """What it started, by its mark or as led by it: a process that changes its title may write over the mark."""
        return {*marked(OF_DRIVER, self._mark), *led_by(self._leader)}

    @property
    def _log(self) -> Path:
        return self._folder / f"driver-{self._count:03}.log"

    def _left(self, allowed: dict[str, int]) -> list[str]:
        """After a while; of what is not in `allowed`, nothing may be there, if that is empty."""
        deadline = time.monotonic() + QUIET_SECONDS
        while True:
            there = held(self._nodes.address)
            if not allowed:
                there |= self._nodes.working() | Counter(map(brief, self._started()))
            over = {
                name: count for name, count in there.items() if count > allowed.get(name, 0 if not allowed else count)
            }
            if not over or time.monotonic() > deadline:
                return [f"left behind: {over}"] if over else []
            time.sleep(0.5)
