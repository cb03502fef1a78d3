"""What is exported is what was trained, for transformers to load."""

from pathlib import Path

import pytest
import torch
from support.corpus import prepared
from support.training import LLAMA, TORCH, config, outcome, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from lowland.trainers.data.split import PackedSplit
from lowland.trainers.errors import DataError
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

ONE = World(0, 1, 0, torch.device("cpu"), None)
SHORT = {"length": "5 steps", "evaluation": {"every": None}, "checkpoints": {"every": None}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("text") / "data")


@pytest.mark.parametrize("tied", [True, False])
def test_loads_with_the_trained_logits_and_generates(data: Path, tmp_path: Path, tied: bool) -> None:
    changes = {**TORCH, **SHORT, "model": {"config": {**LLAMA, "tie_word_embeddings": tied}}}
    outcome(data, tmp_path, changes, export=True)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert network.config.use_cache, "text is generated with a cache"
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == tied
    trained = build_task(config(data, **changes), ONE).build_module()
    whole = weights(tmp_path, 5)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(whole[name].view_as(parameter))
        tokens = torch.from_numpy(PackedSplit.open(data, "held_out").tokens([0, 1]))
        expected = trained.network.eval()(input_ids=tokens).logits  # type: ignore[union-attr,operator]
        assert torch.equal(network.eval()(input_ids=tokens).logits, expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    prompt = tokenizer("abc", return_tensors="pt")
    continued = network.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert continued.shape[1] > prompt["input_ids"].shape[1]
    assert isinstance(tokenizer.decode(continued[0]), str)


def test_card_and_files(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, {**TORCH, **SHORT}, export=True)
    folder = tmp_path / "model"
    assert (folder / "README.md").read_text() == "card"
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}


def test_a_stopped_training_exports_nothing_and_its_end_does(data: Path, tmp_path: Path) -> None:
    outcome(data, tmp_path, {**TORCH, **SHORT}, export=True, stop_after=2)
    assert not (tmp_path / "model").exists()
    outcome(data, tmp_path, {**TORCH, **SHORT}, export=True)
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_training_goes_on_from_an_exported_model(data: Path, tmp_path: Path) -> None:
    """By `model.path`, in fp32 and bf16."""
    first = outcome(data, tmp_path / "first", {**TORCH, **SHORT}, export=True)
    for dtype in ("float32", "bfloat16"):
        model = {"path": str(tmp_path / "first" / "model"), "dtype": dtype}
        second = outcome(data, tmp_path / dtype, {**TORCH, **SHORT, "model": model, "schedule": {"name": "constant"}})
        assert second.losses[1] < first.losses[1]


def test_a_folder_without_a_model_is_a_data_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.path"):
        outcome(data, tmp_path, {**TORCH, **SHORT, "model": {"path": str(tmp_path)}})
