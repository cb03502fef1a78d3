"""`lowland sample` finds a model by run or folder and draws the same text for the same seed."""

import io
import sys
import types

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lowland.platform import cli
from lowland.platform.runs import RunFolder, RunRecord
from lowland.platform.sample import Sampling, exported_model, generate, sample
from lowland.trainers.data.tokenizers import BYTE_SEPARATOR, byte_pretrained_tokenizer
from lowland.trainers.errors import DataError, UserError

PROMPT = "def f(ä):"
TOKENS = 20


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Run folders: `trained` with a model of 64 positions, `begun` without."""
    root = tmp_path_factory.mktemp("runs")
    for name, status in (("trained", "finished"), ("begun", "interrupted")):
        folder = RunFolder.open(str(root), name)
        folder.create()
        folder.write(RunRecord.new(name, {"name": name}).with_(status=status))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(root / "trained" / "model")
    byte_pretrained_tokenizer().save_pretrained(root / "trained" / "model")
    return root


def sampling(**changes):
    return Sampling(**{"prompt": PROMPT, "tokens": TOKENS, "temperature": 1.0, "seed": 0, **changes})


def printed(model, storage, **changes):
    stream = io.StringIO()
    sample(str(model), str(storage), sampling(**changes), Console(file=stream, width=20, highlight=False))
    return stream.getvalue()


def test_the_same_seed_gives_the_same_text_from_a_run_its_folder_and_its_model(storage):
    text = printed("trained", storage)
    assert text.startswith(PROMPT)
    assert printed(storage / "trained", storage) == text
    assert printed(storage / "trained" / "model", storage / "nowhere") == text
    assert printed("trained", storage, seed=1) != text
    assert printed("trained", f"file://{storage}") == text


def test_temperature_0_takes_the_likeliest_token_after_the_mark_of_a_new_document(storage):
    model = AutoModelForCausalLM.from_pretrained(storage / "trained" / "model").eval()
    ids = [BYTE_SEPARATOR, *PROMPT.encode()]
    start = len(ids)
    while len(ids) < start + TOKENS and (len(ids) == start or ids[-1] != BYTE_SEPARATOR):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = byte_pretrained_tokenizer().decode(ids[start:], skip_special_tokens=True)
    assert generate(storage / "trained" / "model", sampling(temperature=0.0)) == expected
    assert generate(storage / "trained" / "model", sampling(temperature=0.0, seed=5)) == expected


def test_a_low_temperature_draws_what_is_likeliest(storage):
    cold = generate(storage / "trained" / "model", sampling(temperature=1e-4, seed=3))
    assert cold == generate(storage / "trained" / "model", sampling(temperature=0.0))


def test_more_tokens_than_positions_are_refused_with_what_fits(storage):
    room = 64 - 1 - len(PROMPT.encode())
    generate(storage / "trained" / "model", sampling(tokens=room))
    with pytest.raises(UserError, match=f"64 positions; at most --tokens {room}"):
        generate(storage / "trained" / "model", sampling(tokens=room + 1))
    with pytest.raises(UserError, match="shorten the prompt"):
        generate(storage / "trained" / "model", sampling(prompt="x" * 64))


def test_what_is_no_model_says_why(storage, tmp_path):
    with pytest.raises(UserError, match=r"'begun' has exported no model .*interrupted"):
        printed("begun", storage)
    with pytest.raises(UserError, match=r"no run 'trainde'.*there is trained"):
        printed("trainde", storage)
    with pytest.raises(UserError, match="no model there"):
        printed(tmp_path, storage)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="transformers cannot load"):
        printed(tmp_path, storage)


def test_a_run_comes_before_a_folder_of_the_same_name(storage, tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    monkeypatch.chdir(tmp_path)
    with exported_model("trained", str(storage)) as folder:
        assert folder == storage / "trained" / "model"


def test_the_command_passes_on_its_arguments(monkeypatch):
    calls = []
    module = types.SimpleNamespace(Sampling=Sampling, sample=lambda *arguments: calls.append(arguments[:3]))
    monkeypatch.setitem(sys.modules, "lowland.platform.sample", module)
    arguments = ["run", "--prompt", "a b", "--tokens", "7", "--temperature", "0", "--seed", "3", "--storage", "there"]
    assert CliRunner().invoke(cli.app, ["sample", *arguments]).exit_code == 0
    assert calls == [("run", "there", Sampling("a b", 7, 0.0, 3))]
