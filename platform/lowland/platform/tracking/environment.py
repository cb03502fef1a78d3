"""What a run ran on: packages, machine, and the state of the source."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

MAX_DIFF_BYTES = 10_000_000
SECONDS = 20
"""A git or nvidia-smi that hangs (a dead network file system, a lost GPU) must not hold up the run."""


@dataclass(frozen=True)
class GitState:
    """A git working tree as it was when the run started."""

    root: str
    commit: str | None
    """None in a repository without commits."""
    branch: str | None
    changed: tuple[str, ...]
    """`git status --porcelain`: changed and untracked files."""
    diff: str
    """All that differs from the commit in tracked files; empty if nothing does."""


def write_environment(folder: Path, sources: Sequence[Path]) -> list[GitState]:
    """Writes environment.json, packages.txt and, for each source tree with changes, a git diff into the folder.

    Args:
        folder: an existing folder.
        sources: folders whose repositories are described; those outside any repository are left out.

    Returns:
        The states of the repositories, each once, in the order of `sources`.
    """
    states = git_states(sources)
    (folder / "packages.txt").write_text("".join(f"{line}\n" for line in packages()), encoding="utf-8")
    described = machine() | {"git": [_without_diff(state) for state in states]}
    (folder / "environment.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for state in states:
        name = "git.diff" if state is states[0] else f"git-{Path(state.root).name}.diff"
        if state.diff:
            (folder / name).write_text(state.diff, encoding="utf-8")
    return states


def packages() -> list[str]:
    """Installed distributions as `name==version`, sorted."""
    found = {(item.metadata["Name"] or "?", item.version) for item in metadata.distributions()}
    return [f"{name}=={version}" for name, version in sorted(found, key=lambda pair: pair[0].lower())]


def machine() -> dict[str, Any]:
    """This machine and interpreter."""
    import psutil

    return {
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
    }


def gpus() -> list[dict[str, str]]:
    """Name, memory and driver of each NVIDIA GPU; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = ("name", "memory.total", "driver_version")
    text = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    rows = (text or "").splitlines()
    return [dict(zip(fields, (cell.strip() for cell in row.split(",")), strict=False)) for row in rows]


def git_states(sources: Sequence[Path]) -> list[GitState]:
    """The repositories that hold the folders, each once."""
    roots = [_output(["git", "-C", str(source), "rev-parse", "--show-toplevel"]) for source in sources]
    return [_git_state(root.strip()) for root in dict.fromkeys(roots) if root]


def _git_state(root: str) -> GitState:
    def git(*arguments: str) -> str | None:
        return _output(["git", "-C", root, *arguments])

    commit = git("rev-parse", "--verify", "HEAD")
    branch = git("branch", "--show-current")
    changed = git("status", "--porcelain") or ""
    # An external diff program or colours would make it something that `git apply` cannot read.
    diff = git("diff", "--no-ext-diff", "--no-color", "--binary", "HEAD") if commit else ""
    return GitState(
        root=root,
        commit=commit.strip() if commit else None,
        branch=(branch or "").strip() or None,
        changed=tuple(changed.splitlines()),
        diff=_bounded(diff or ""),
    )


def _bounded(diff: str) -> str:
    if len(diff) <= MAX_DIFF_BYTES:
        return diff
    return f"{diff[:MAX_DIFF_BYTES]}\n[cut: the whole diff has {len(diff)} characters]\n"


def _without_diff(state: GitState) -> dict[str, Any]:
    return {key: value for key, value in asdict(state).items() if key != "diff"}


def _output(command: list[str]) -> str | None:
    """What the command prints; None if it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode("utf-8", errors="replace")
