"""`lowland optcheck`: certificates of anybody's optimizer."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowland.platform.cli import app
from lowland.trainers.errors import UserError
from lowland.trainers.optcheck.certificate import source_digest
from lowland.trainers.optcheck.target import Target

MINE = '''
import torch


class Checked(torch.optim.Optimizer):
    def __init__(self, params, lr):
        if lr < 0:
            raise ValueError(f"lr >= 0 must hold, got {lr}")
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.is_complex() or (p.grad is not None and p.grad.is_sparse):
                    raise TypeError(f"no complex parameters and sparse gradients: {p.dtype}")
                if p.grad is not None:
                    p.sub_(self.direction(p), alpha=group["lr"])
        return loss


class LARS(Checked):
    def direction(self, p):
        return p.grad * (p.norm() / (p.grad.norm() + p.norm()))


class NaiveMuon(Checked):
    """Orthogonalises matrices; all else goes by its normalised gradient."""

    def direction(self, p):
        if p.dim() != 2:
            return p.grad / (p.grad.norm() + p.norm())
        u, _, vh = torch.linalg.svd(p.grad, full_matrices=False)
        return u @ vh * p.grad.norm()
'''


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    (tmp_path / "mine_optcheck.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return CliRunner()


@pytest.mark.full
@pytest.mark.processes
def test_adamw_passes(runner: CliRunner) -> None:
    result = runner.invoke(app, ["optcheck", "torch.optim:AdamW", "--lr", "1e-2", "--out", "adamw.json"])
    assert result.exit_code == 0, result.output
    assert "exact everywhere" in result.output
    found = json.loads(Path("adamw.json").read_text())
    assert found["target"] == "torch.optim:AdamW"
    assert found["sees"] == "elements"
    assert set(found["verdicts"]) == {*(f"ZeRO {s}, world {w}" for s in range(4) for w in (1, 2)), "FSDP2, world 2"}
    assert all(verdict["exact"] for verdict in found["verdicts"].values())
    assert found["file digest of the source of the class"] == source_digest(Target("torch.optim:AdamW"))


@pytest.mark.full
@pytest.mark.processes
@pytest.mark.parametrize(("name", "lr"), [("LARS", "2e-2"), ("NaiveMuon", "2e-2")])
def test_per_tensor_optimizers_fail_under_zero_and_pass_through_whole(runner: CliRunner, name: str, lr: str) -> None:
    target = f"mine_optcheck:{name}"
    naive = runner.invoke(app, ["optcheck", target, "--lr", lr, "--out", "naive.json"])
    assert naive.exit_code == 1, naive.output
    assert "--sees tensors" in naive.output
    verdicts = json.loads(Path("naive.json").read_text())["verdicts"]
    assert verdicts["ZeRO 0, world 2"]["exact"]
    assert not any(verdicts[f"ZeRO {stage}, world 2"]["exact"] for stage in (1, 2, 3))
    whole = runner.invoke(app, ["optcheck", target, "--lr", lr, "--sees", "tensors"])
    assert whole.exit_code == 0, whole.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamww", "no optimizer of lowland"),
        ("no_such_module:Adam", "cannot import no_such_module"),
        ("torch.optim:Adamm", "no class Adamm"),
        ("torch.nn:Linear", "no class Linear that is a torch.optim.Optimizer"),
    ],
)
def test_a_wrong_name_is_the_users_mistake(runner: CliRunner, name: str, message: str) -> None:
    result = runner.invoke(app, ["optcheck", name])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_wrong_arguments_are_the_users_mistake(runner: CliRunner) -> None:
    for words in (["--argument", "betas"], ["--argument", "beta=1"], []):
        result = runner.invoke(app, ["optcheck", "mine_optcheck:LARS", *words])
        assert isinstance(result.exception, UserError), words
