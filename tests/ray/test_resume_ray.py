"""Whatever kills a run, it ends as if nothing had: same weights to the bit, one MLflow run, each metric once."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from support.ray_runs import STEPS, Run, client, environment, fields, history, record
from support.training import weights

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

NOISE = re.compile(r"pid=|ip=|ray::|warning|traceback|deprecated|\bINFO\b|\bERROR\b", re.IGNORECASE)
PATIENCE = 600.0
"""Seconds for a cluster to start on a machine that does much else."""
TOKEN = "LOWLAND_TEST_COMMAND"
"""Environment variable by which the processes of a command are found; all of them inherit it."""


def until(holds: Callable[[], bool], command: "Command | None" = None) -> None:
    """Waits until it holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        assert command is None or command.process.poll() is None, f"the command ended: {command.ended()}"
        time.sleep(0.005)


def saved(folder: Path, step: int) -> bool:
    """Whether a checkpoint of that step or a later one is committed."""
    found = [path.parent.name for path in folder.glob("checkpoints/step-*/manifest.json")]
    return any(int(name.removeprefix("step-")) >= step for name in found)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last checkpoints hold the same weights, to the bit."""
    a, b = weights(one, STEPS), weights(other, STEPS)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_metrics(storage: Path, one: str, other: str) -> bool:
    """Whether MLflow holds the same losses of two runs, each step once."""
    return all(history(storage, one, key) == history(storage, other, key) for key in ("train/loss", "eval/loss"))


def kill_rank(folder: Path, rank: int) -> None:
    """Kills the worker that writes this rank's log of this run, and no other run's."""
    for process in psutil.process_iter(["cmdline"]):
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
            try:
                output = Path(f"/proc/{process.pid}/fd/1").readlink()
            except OSError:
                continue
            if output.parent == folder / "logs" and output.name.endswith(f"-rank-{rank}.log"):
                process.kill()
                return
    raise AssertionError(f"no worker of rank {rank} of {folder}")


@dataclass
class Command:
    """A `lowland train` with a cluster of its own, in a process group of its own."""

    process: subprocess.Popen[str]
    token: str
    lines: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, *arguments: str) -> "Command":
        """Starts it, its output read by a thread."""
        token = uuid.uuid4().hex
        process = subprocess.Popen(
            [Path(sys.executable).with_name("lowland"), "train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**{TOKEN: token}),
            start_new_session=True,
        )
        command = cls(process, token)
        threading.Thread(target=command._read, daemon=True).start()
        return command

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the group in the foreground."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9, and all that it started."""
        for process in self.processes():
            process.kill()
        self.process.wait()

    def ended(self) -> str:
        """Waits for the end; the whole output."""
        self.process.wait(PATIENCE)
        time.sleep(0.2)  # for the reader's last line
        return "".join(self.lines)

    def processes(self) -> list[psutil.Process]:
        """It and all that it started, wherever they are now."""
        return [process for process in psutil.process_iter() if self._started(process)]

    def _started(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(TOKEN) == self.token and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass
class Story:
    """What happened to one run, by its commands."""

    commands: dict[str, Command] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    """Processes that were there when the command had ended."""
    steps: list[int] = field(default_factory=list)
    """Checkpoints after the Ctrl-C."""

    def start(self, name: str, *arguments: str) -> Command:
        """Starts the next command."""
        self.commands[name] = Command.start(*arguments)
        return self.commands[name]

    def end(self) -> None:
        """Waits for the end of the last command."""
        name, command = list(self.commands.items())[-1]
        command.ended()
        self.left[name] = [" ".join(process.cmdline()) for process in command.processes()]

    def output(self, name: str) -> str:
        """All that a command printed."""
        return "".join(self.commands[name].lines)

    def code(self, name: str) -> int:
        """Its exit code."""
        return self.commands[name].process.returncode


@pytest.fixture(scope="module")
def story(text: Path, storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A run interrupted before its first step, killed, refused, interrupted, and finished with a worker killed."""
    file, folder = tmp_path_factory.mktemp("recipe") / "recipe.yaml", storage / "story"
    file.write_text(yaml.safe_dump(fields(text, storage, "story")))
    told = Story()
    try:
        early = told.start("early", str(file))
        until(lambda: (folder / "run.json").exists(), early)
        time.sleep(0.5)  # into the start of the workers
        early.interrupt()
        told.end()

        killed = told.start("killed", str(file), "--resume", "auto")
        until(lambda: saved(folder, 40), killed)
        killed.kill()

        told.start("refused", str(file))
        told.end()

        stopped = told.start("stopped", str(file), "--resume", "story")
        until(lambda: saved(folder, 80), stopped)
        stopped.interrupt()
        told.end()
        told.steps = [int(path.parent.name[5:]) for path in folder.glob("checkpoints/*/manifest.json")]

        finished = told.start("finished", str(file), "--resume", "story")
        # How many steps a training takes before it hears of a Ctrl-C depends on the machine.
        until(lambda: saved(folder, max(told.steps) + 1), finished)
        kill_rank(folder, 0)  # the one that records and saves
        told.end()
        told.start("again", str(file), "--resume", "story")
        told.end()
        yield told
    finally:
        for command in told.commands.values():
            command.kill()


def test_ctrl_c_before_the_first_step_ends_at_once(story: Story):
    assert story.code("early") == 130
    assert story.output("early") == "interrupted; go on with: lowland train RECIPE --resume story\n"


def test_a_name_that_exists_is_refused_and_the_way_out_named(story: Story):
    assert (story.code("refused"), story.code("again")) == (2, 2)
    assert story.output("refused").startswith("error: run 'story' exists (running); continue it with `--resume story`")
    assert story.output("again").startswith("error: run 'story' has finished; choose another name with `--name`")


def test_ctrl_c_saves_and_says_how_to_go_on(story: Story):
    output = story.output("stopped")
    assert story.code("stopped") == 130, output
    assert "stopping after this step" in output
    found = re.search(r"interrupted at step (\d+); checkpoint .*-(\d+)$", output, re.MULTILINE)
    assert found is not None
    step = int(found[1])
    assert 80 <= step < STEPS
    assert step == int(found[2]) == max(story.steps)
    assert "go on with: lowland train RECIPE --resume story" in output


def test_it_ends_as_if_nothing_had_happened(story: Story, whole: Run, storage: Path):
    assert story.code("finished") == 0, story.output("finished")
    held = record(storage, "story")
    assert (held.status, held.attempts) == ("finished", 4)
    assert same_weights(storage / "story", whole.folder)
    run_id = held.mlflow_run_id or ""
    assert same_metrics(storage, run_id, whole.outcome.mlflow_run_id)
    runs = client(storage).search_runs([client(storage).get_run(run_id).info.experiment_id], "run_name = 'story'")
    assert [(item.info.run_id, item.info.status) for item in runs] == [(run_id, "FINISHED")]


def test_piped_output_holds_nothing_but_what_lowland_says(story: Story):
    for name in ("early", "stopped", "finished"):
        assert [line for line in story.output(name).splitlines() if NOISE.search(line)] == []
    assert f"\nstep {STEPS}/{STEPS} (100%)" in story.output("finished")


def test_a_killed_worker_is_restarted_from_the_last_checkpoint(story: Story):
    output = story.output("finished")
    # Whether Ray notices the death first or the other rank does is a race.
    lost = r"^(?:the worker of rank 0 died|rank 1 lost its connection to another worker); restarting .*1 of at most 3"
    assert re.search(lost, output, re.MULTILINE), output
    resumed = [int(step) for step in re.findall(r"resumed from the checkpoint of step (\d+)", output)]
    assert resumed[0] == max(story.steps), "after the Ctrl-C"
    assert resumed[0] < resumed[1] < STEPS


def test_no_process_outlives_its_command(story: Story):
    assert story.left == {"early": [], "refused": [], "stopped": [], "finished": [], "again": []}
