"""The estimate against models, optimizers and arithmetic that are known otherwise."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lowland.trainers.data.manifest import Manifest, SplitInfo, TokenizerInfo
from lowland.trainers.errors import RecipeError
from lowland.trainers.estimate import (
    ActivationTrace,
    OptimizerMemory,
    Plan,
    estimate,
    memory,
    needs_checkpointing,
    optimizer_memory,
    trace_activations,
)
from lowland.trainers.estimate.allocations import Allocations
from lowland.trainers.estimate.sharding import partition
from lowland.trainers.models import CausalLMLoss
from lowland.trainers.optimizers import build_optimizer, parameter_groups
from lowland.trainers.recipe import CausalLMConfig, OptimizerConfig, ShardingConfig

SMALL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ADAMW = {"name": "adamw", "lr": 1e-3}


def make_config(model=None, **fields) -> CausalLMConfig:
    base = {"task": "causal-lm", "length": "10 steps", "optimizer": ADAMW, "batch": {"micro_batch": 2}}
    model = {"config": SMALL, "attention": "eager"} | (model or {})
    return CausalLMConfig.model_validate(base | {"model": model, "data": {"path": "nowhere"}} | fields)


def make_data(length=16, rows=100) -> Manifest:
    tokenizer = TokenizerInfo(kind="byte", digest="", vocab_size=258, bos_id=256, eos_id=256, pad_id=257)
    return Manifest(
        tokenizer=tokenizer,
        sequence_length=length,
        dtype="uint16",
        packing="split",
        seed=0,
        held_out=0.1,
        splits={"train": SplitInfo(rows=rows)},
        sources=(),
        bad_rows={},
        document_lengths={},
    )


def build(**changes):
    fields = {key: value for key, value in SMALL.items() if key != "model_type"} | {"vocab_size": 320} | changes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields), attn_implementation="eager")


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_built_model(tied):
    config = make_config(model={"config": SMALL | {"tie_word_embeddings": tied}})
    numbers = estimate(config, workers=1, data=make_data()).parameters
    built = build(tie_word_embeddings=tied)
    assert numbers.total == numbers.trainable == sum(p.numel() for p in built.parameters())
    assert numbers.embedding == 320 * 32
    saved = estimate(config, workers=4, data=make_data()).checkpoint_bytes
    assert saved == numbers.total * (4 + 8), "AdamW: a master and two moments, whatever the workers"


@pytest.mark.parametrize(
    "optimizer",
    [
        ADAMW,
        {"name": "sgd", "lr": 1e-3},
        {"name": "sgd", "lr": 1e-3, "momentum": 0.0},
        {"name": "adatamw", "lr": 1e-3},
    ],
    ids=str,
)
def test_optimizer_state_is_that_of_the_real_one(optimizer):
    config = make_config(optimizer=optimizer).optimizer
    model = torch.nn.Linear(100, 70)
    real = build_optimizer(config, parameter_groups(model, config))
    from lowland.optim import Layout, LayoutOptimizer
    from lowland.trainers.engines.state import create_state

    layout = Layout.whole([list(g.parameters.items()) for g in parameter_groups(model, config)])
    if isinstance(real, LayoutOptimizer):
        real.attach(layout)
    create_state(real, layout)
    states = [v for s in real.state_dict()["state"].values() for v in s.values() if isinstance(v, Tensor)]
    kept = sum(v.numel() * v.element_size() for v in states if v.dim())
    assert optimizer_memory(config).state * (70 * 100 + 70) == kept


@pytest.mark.parametrize(
    ("fields", "state", "step"),
    [
        # Its first step moves nothing; later ones need the buffer's mean, the sum with it and a root.
        ({}, 28, 12),
        ({"buffer_dtype": "bfloat16"}, 18, 12),
        ({"buffer_device": "cpu"}, 8, 4),
    ],
    ids=str,
)
def test_critical_momenta_is_measured_where_it_works(fields: dict[str, Any], state: float, step: float) -> None:
    config = TypeAdapter(OptimizerConfig).validate_python({"name": "critical_momenta", "lr": 1e-3, **fields})
    assert (optimizer_memory(config).state, optimizer_memory(config).step) == (state, step)


def measured_on_cpu(checkpointing: bool) -> int:
    """The peak of the same pass with real tensors."""
    torch.manual_seed(0)
    network = build().train()
    network.config.use_cache = False
    if checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model, tokens = CausalLMLoss(network, fused=False), torch.zeros(2, 16, dtype=torch.long)
    with Allocations() as allocations:
        model(tokens, tokens).backward()
    return allocations.peak


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_pass(checkpointing):
    """Eager attention, whose every tensor is visible; the mask is what the trace leaves out."""
    config = make_config()
    trace = trace_activations(
        build().config,
        micro_batch=2,
        sequence_length=16,
        dtype=torch.float32,
        attention="eager",
        isolate=False,
        checkpointing=checkpointing,
        fused_loss=False,
    )
    assert config.model.attention == "eager"
    assert trace.peak(4.0) == pytest.approx(measured_on_cpu(checkpointing), rel=0.05)


def activations(**changes) -> int:
    given = {
        "micro_batch": 2,
        "sequence_length": 32,
        "dtype": torch.float32,
        "attention": "sdpa",
        "isolate": False,
        "checkpointing": False,
        "fused_loss": False,
    }
    return trace_activations(build().config, **(given | changes)).peak()


def test_what_costs_and_what_saves_activations():
    base = activations()
    assert activations(checkpointing=True) < base
    assert activations(fused_loss=True) < base
    assert activations(dtype=torch.bfloat16) < base
    assert activations(attention="eager") > base
    assert activations(isolate=True) > base, "sdpa needs a mask to keep documents apart"
    assert activations(isolate=True, attention="flash_attention_2") == base
    assert base < activations(micro_batch=4) <= 2 * base


# ZeRO by hand: 1000 + 10 elements in two groups, on 4 ranks, AdamW, bf16, buckets of 1000 elements.
GROUPS, WORKERS = (1000, 10), 4
PARTS = (250, 4)
"""1000 is a multiple of 8; 10 is padded to 16."""
NOTHING = ActivationTrace(((0, 0), (1010, 0)))
EIGHT = OptimizerMemory(state=8, step=0)


def by_hand(stage, *, accumulation=1, bf16=True, offload=False):
    sharding = ShardingConfig(stage=stage, bucket_elements=1000, offload_optimizer=offload)
    return memory(Plan(WORKERS, sharding, bf16, accumulation), GROUPS, EIGHT, NOTHING, 1000)


def test_partition_is_padded_to_twice_the_workers():
    assert tuple(partition(group, WORKERS) for group in GROUPS) == PARTS


@pytest.mark.parametrize(
    ("stage", "weights", "masters", "state", "gradients", "buffers", "step"),
    [
        (0, 2020, 4040, 8080, 2020, 0, 4040),
        (1, 2020, 1016, 2032, 508, 4000, 6 * 250),
        (2, 2020, 1016, 2032, 508, 4000, 6 * 250),
        (3, 508 + 2020, 1016, 2032, 508, 4000, 6 * 250 + 2000),
    ],
)
def test_zero_by_hand(stage, weights, masters, state, gradients, buffers, step):
    found = by_hand(stage)
    assert (found.weights, found.masters, found.optimizer) == (weights, masters, state)
    assert (found.gradients, found.buffers, found.step) == (gradients, buffers, step)
    assert found.allocated == weights + masters + state + gradients + max(buffers + found.activations, step)


def test_accumulation_is_in_fp32():
    assert by_hand(2, accumulation=2).gradients == 4 * 254
    assert by_hand(2, accumulation=2).step == 0, "they are fp32 already"
    assert by_hand(1, accumulation=2).gradients == 6 * 1010, "both types, whole"


def test_fp32_at_stage_0_has_no_masters():
    found = by_hand(0, bf16=False)
    assert (found.weights, found.masters, found.optimizer, found.gradients) == (4040, 0, 8080, 4040)


def test_offload_moves_masters_state_and_gradients_to_the_host():
    found = by_hand(2, offload=True)
    assert (found.masters, found.optimizer, found.gradients, found.step) == (0, 0, 0, 0)
    assert found.host == 254 * (4 + 8 + 4 + 2)


@given(
    groups=st.tuples(st.integers(1, 10**9), st.integers(1, 10**6)),
    workers=st.integers(1, 64),
    accumulation=st.integers(1, 4),
    bf16=st.booleans(),
    peak=st.integers(0, 10**10),
)
def test_more_workers_and_higher_stages_never_need_more_state(groups, workers, accumulation, bf16, peak):
    trace = ActivationTrace(((0, peak), (sum(groups), 0)))

    def needs(stage, workers):
        plan = Plan(workers, ShardingConfig(stage=stage), bf16, accumulation)
        return memory(plan, groups, EIGHT, trace)

    padding = 12 * 2 * workers * 2 * 2
    stages = [needs(stage, workers) for stage in range(4)]
    kept = [m.masters + m.optimizer + m.gradients for m in stages]
    assert kept[3] <= kept[2] + padding
    assert kept[2] <= kept[1] + padding
    for stage in range(4):
        more = needs(stage, 2 * workers)
        assert more.masters + more.optimizer <= stages[stage].masters + stages[stage].optimizer + padding
        assert more.gradients <= stages[stage].gradients + padding
        assert all(value >= 0 for value in vars(more).values())


@settings(max_examples=5, deadline=None)
@given(micro_batch=st.integers(1, 4), length=st.sampled_from([16, 32, 48]), workers=st.integers(1, 8))
def test_work_follows_from_the_batch(micro_batch, length, workers):
    config = make_config(batch={"micro_batch": micro_batch, "accumulation": 2}, length="3 epochs")
    data = make_data(length=length, rows=1000)
    numbers = estimate(config, workers=workers, data=data, peak_flops=1e12, mfu=0.5)
    assert numbers.tokens_per_step == micro_batch * 2 * workers * length
    assert numbers.steps == -(-3000 // (micro_batch * 2 * workers))
    assert numbers.flops_per_token == 6 * numbers.parameters.total
    assert numbers.attention_flops_per_token == 12 * 3 * 32 * length
    assert numbers.seconds == pytest.approx(numbers.flops / (0.5e12 * workers))


def test_checkpointing_when_memory_asks_for_it():
    plain = estimate(make_config(), workers=1, data=make_data()).stages[2][False].total

    def decided(memory, way="auto"):
        config = make_config(model={"gradient_checkpointing": way})
        return needs_checkpointing(config, workers=1, device_memory=memory, data=make_data())

    assert decided(plain)
    assert not decided(2 * plain)
    assert not decided(None)
    assert decided(None, "always")
    assert not decided(1, "never")


def test_a_batch_that_cannot_be_cut():
    config = make_config(batch={"micro_batch": 2, "global_sequences": 7})
    with pytest.raises(RecipeError, match="nearest: 4 or 8"):
        estimate(config, workers=2, data=make_data())
