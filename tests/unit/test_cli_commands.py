"""Commands pass on what they are given, and end with the exit code of what happened."""

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from recipe_files import BASE, write_recipe
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.recipe import load_recipe
from lowland.trainers.errors import DataError, RecipeError, RunError

HEAVY = ("torch", "ray", "mlflow", "transformers", "pyarrow", "numpy", "pydantic")


def lowland(*arguments):
    """Runs the installed command."""
    command = [str(Path(sys.executable).with_name("lowland")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def invoke(*arguments):
    return CliRunner().invoke(cli.app, [*map(str, arguments)], catch_exceptions=False)


class Recorder:
    """Stands in for the function of the platform that a command calls."""

    def __init__(self, monkeypatch, module, name, result=None):
        self.calls = []
        self.result = result
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: self}))

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.result


def test_the_version_is_printed():
    result = lowland("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"lowland \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize("arguments", [["tran"], ["train"], ["train", "a.yaml", "--bogus"], ["ui", "--port", "0"]])
def test_wrong_usage_exits_with_2(arguments):
    result = lowland(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["train", "estimate"])
def test_a_wrong_recipe_exits_with_2_and_all_its_mistakes(tmp_path, command):
    path = write_recipe(tmp_path, BASE.replace("1e-3", "0"))
    result = lowland(command, path, "--set", "seed=-1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "error: ",
        f"{path}:8: optimizer.lr = 0: must be a number greater than 0",
        "--set seed=-1: seed = -1: must be a whole number at least 0 and less than 4294967296",
    ]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lowland.platform.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


COMMANDS = [
    [],
    *([name] for name in ("train", "estimate", "show", "sample", "landscape", "ui", "schema")),
    ["data", "prepare"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "lowland")
def test_help_has_an_example(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert f"lowland {' '.join(command or ['train'])} " in " ".join(result.output.split()) + " "
    assert command == [] or "Examples" in result.output


def test_train_passes_on_its_arguments(tmp_path, monkeypatch):
    path = write_recipe(tmp_path)
    train = Recorder(monkeypatch, "lowland.platform.launch", "train", types.SimpleNamespace(exit_code=130))
    result = invoke("train", path, "--set", "seed=7", "--name", "1e4", "--resume", "never", "--address", "head:6379")
    assert result.exit_code == 130
    ((recipe,), arguments) = train.calls[0]
    assert recipe == load_recipe(path, ["seed=7", "name='1e4'"])
    assert {key: arguments[key] for key in ("resume", "address")} == {"resume": "never", "address": "head:6379"}


def test_train_starts_a_new_run_on_the_default_cluster_unless_told_otherwise(tmp_path, monkeypatch):
    train = Recorder(monkeypatch, "lowland.platform.launch", "train", types.SimpleNamespace(exit_code=0))
    assert invoke("train", write_recipe(tmp_path)).exit_code == 0
    assert {key: train.calls[0][1][key] for key in ("resume", "address")} == {"resume": "never", "address": None}


def test_estimate_passes_on_its_arguments(tmp_path, monkeypatch):
    path = write_recipe(tmp_path)
    estimate = Recorder(monkeypatch, "lowland.platform.estimate", "print_estimate")
    assert invoke("estimate", path, "--set", "seed=7").exit_code == 0
    assert estimate.calls[0][0][0] == load_recipe(path, ["seed=7"])


def test_ui_passes_on_its_arguments(monkeypatch):
    module = "lowland.platform.tracking.ui"
    opened = Recorder(monkeypatch, module, "open_ui")
    sys.modules[module].find_store = lambda storage: f"store of {storage}"
    assert invoke("ui", "--storage", "there", "--port", "6000").exit_code == 0
    assert invoke("ui", "--uri", "http://server").exit_code == 0
    assert [call[0][:2] for call in opened.calls] == [("store of there", 6000), ("http://server", 5000)]


def test_what_commands_call_takes_what_they_pass():
    from lowland.platform.estimate import print_estimate
    from lowland.platform.launch import train
    from lowland.platform.show import show, show_side_by_side
    from lowland.platform.tracking.ui import find_store, open_ui

    inspect.signature(train).bind("recipe", resume="auto", address=None, console=None)
    inspect.signature(print_estimate).bind("recipe", "console")
    inspect.signature(show).bind("run", "storage", "console")
    inspect.signature(show_side_by_side).bind(["run", "other"], "storage", "console")
    inspect.signature(find_store).bind("storage")
    inspect.signature(open_ui).bind("uri", 5000, "console")


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (RecipeError("lr is wrong"), 2, "error: lr is wrong\n"),
        (DataError("a\nb"), 2, "error: \na\nb\n"),
        (RunError("worker 1 died"), 1, "error: worker 1 died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_a_message_and_an_exit_code(monkeypatch, capsys, error, code, shown):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert capsys.readouterr().err == shown


def test_a_defect_shows_its_traceback(monkeypatch, capsys):
    def fail():
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "ZeroDivisionError: by zero" in message
    assert "defect of lowland" in message
