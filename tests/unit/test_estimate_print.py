"""What `lowland estimate` prints."""

import io

import pytest
from rich.console import Console
from support.corpus import prepared

from lowland.platform.estimate import duration, gib, print_estimate
from lowland.platform.recipe import CausalLMRecipe


def printed(folder, device=None, **fields) -> str:
    model = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe = CausalLMRecipe.model_validate(
        {
            "task": "causal-lm",
            "name": "run",
            "length": "10 steps",
            "model": {"config": model},
            "data": {"path": str(prepared(folder))},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "batch": {"micro_batch": 2},
        }
        | fields
    )
    text = io.StringIO()
    print_estimate(recipe, Console(file=text, width=100), device=device)
    return text.getvalue()


def test_stages_parts_and_work_are_there(tmp_path):
    text = printed(tmp_path / "data", device="H100", scaling={"workers": 4, "gpus_per_worker": 1})
    for word in (
        "ZeRO-0",
        "ZeRO-2 *",
        "ZeRO-3",
        "optimizer state",
        "peak",
        "fits in 80.0 GiB",
        "6 N",
        "40% MFU",
        "CUDA, NCCL",
    ):
        assert word in text
    assert "host memory" not in text


def test_a_worker_on_a_part_of_a_gpu_has_its_memory(tmp_path):
    text = printed(tmp_path / "data", device="H100", scaling={"gpus_per_worker": 0.25})
    assert "fits in 20.0 GiB" in text


def test_the_torch_engine_has_one_column(tmp_path):
    text = printed(tmp_path / "data", sharding={"engine": "torch"})
    assert "torch (DDP) *" in text
    assert "ZeRO" not in text
    assert "CUDA" not in text, "on CPUs nothing else takes memory of the device"
    assert "set scaling.accelerator_type" in text


def test_offload_shows_host_memory(tmp_path):
    assert "host memory" in printed(tmp_path / "data", sharding={"stage": 2, "offload_optimizer": True})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(90, "90 s"), (3600, "60 min"), (3 * 3600 + 300, "3 h 5 min"), (50 * 3600, "2 d 2 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0.00"), (0.001, "0.001"), (1.234, "1.23"), (123.4, "123.4")])
def test_gib(size, text):
    assert gib(int(size * 2**30)) == text
