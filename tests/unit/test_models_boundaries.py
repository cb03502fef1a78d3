"""Documents in one row do not see each other, or the run is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.corpus import prepared
from support.training import LLAMA, TORCH, config, outcome

from lowland.trainers.data.batches import IGNORED
from lowland.trainers.engines import build_engine
from lowland.trainers.errors import RecipeError
from lowland.trainers.models import CausalLMLoss
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

ONE = World(0, 1, 0, torch.device("cpu"), None)
SHORT = {**TORCH, "length": "2 steps", "evaluation": {"every": None}}
MAMBA = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


def check(data: Path, /, **changes: Any) -> None:
    recipe = config(data, **{**TORCH, **changes})
    task = build_task(recipe, ONE)
    engine = build_engine(task.build_module(), recipe, bf16=task.bf16, accumulation=1, world=ONE)
    task.check(engine)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_that_isolates_passes(data: Path, attention: str, dtype: str) -> None:
    check(data, model={"config": LLAMA, "attention": attention, "dtype": dtype})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_that_leaks_is_refused(data: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CausalLMLoss.forward

    def leaking(module: CausalLMLoss, input_ids: Any, labels: Any, position_ids: Any = None) -> Any:
        return plain(module, input_ids, labels, None)

    monkeypatch.setattr(CausalLMLoss, "forward", leaking)
    with pytest.raises(RecipeError, match=r"data.boundaries = isolate: LlamaForCausalLM.*boundaries: ignore"):
        check(data, model={"config": LLAMA, "dtype": dtype})
    check(data, model={"config": LLAMA}, data={"path": str(data), "boundaries": "ignore"})


def test_a_recurrent_model_is_refused_and_trains_with_boundaries_ignored(data: Path, tmp_path: Path) -> None:
    changes = {**SHORT, "model": {"config": MAMBA, "attention": "eager"}}
    with pytest.raises(RecipeError, match="MambaForCausalLM"):
        outcome(data, tmp_path, changes)
    ignoring = {**changes, "data": {"path": str(data), "boundaries": "ignore"}}
    assert outcome(data, tmp_path, ignoring).result.step == 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_row_is_the_sum_of_its_documents(data: Path, attention: str) -> None:
    module = build_task(config(data, model={"config": LLAMA, "attention": attention}), ONE).build_module()
    torch.manual_seed(0)
    first, second = torch.randint(0, 258, (1, 12)), torch.randint(0, 258, (1, 20))

    def labels(tokens: torch.Tensor) -> torch.Tensor:
        shifted = tokens.roll(-1, 1)
        shifted[:, -1] = IGNORED
        return shifted

    with torch.no_grad():
        apart = sum(module(x, labels(x)) for x in (first, second))
        row, wanted = torch.cat([first, second], 1), torch.cat([labels(first), labels(second)], 1)
        positions = torch.cat([torch.arange(12), torch.arange(20)]).unsqueeze(0)
        packed, leaking = module(row, wanted, positions), module(row, wanted)
    assert float(packed) == pytest.approx(float(apart), rel=1e-6)
    assert abs(float(leaking) - float(apart)) > 1e-4 * float(apart)


def test_ignored_boundaries_train_something_else(data: Path, tmp_path: Path) -> None:
    isolated = outcome(data, tmp_path / "isolate", SHORT)
    ignored = outcome(data, tmp_path / "ignore", {**SHORT, "data": {"path": str(data), "boundaries": "ignore"}})
    assert abs(isolated.losses[1] - ignored.losses[1]) > 1e-6
