"""Fields that are each right and do not go together: the message names both, and the fix."""

import json

import pytest
from recipe_files import write_manifest, write_recipe

from lowland.platform.recipe import load_recipe
from lowland.trainers.errors import RecipeError

CONFLICTS = [
    (["length=0 steps"], "length = 0 steps: must be more than 0"),
    (["evaluation.every=0 steps"], "evaluation.every = 0 steps: must be more than 0, or null for the end only"),
    (["checkpoints.every=0 steps"], "checkpoints.every = 0 steps: must be more than 0, or null for the end only"),
    (["schedule={name: wsd, warmup: 60%, cooldown: 50%}"],
     "schedule.warmup = 60%: with schedule.cooldown (50%) longer than length (100 steps); shorten the schedule or "
     "train longer"),
    (["schedule={name: wsd, warmup: 81 steps}"],
     "schedule.warmup = 81 steps: with schedule.cooldown (20%) longer than length (100 steps); shorten the schedule "
     "or train longer"),
    (["schedule={name: cosine, warmup: 12_801 tokens}"],  # 100 steps of 2 sequences of 64 tokens are 12 800
     "schedule.warmup = 12801 tokens: longer than length (100 steps); shorten the schedule or train longer"),
    (["batch.global_sequences=5", "scaling.workers=2"],
     "batch.global_sequences = 5: must be a multiple of batch.micro_batch (2) x scaling.workers (2) = 4; nearest: 4 or "
     "8"),
    (["batch.global_tokens=100"],
     "batch.global_tokens = 100: must be a multiple of batch.micro_batch (2) x scaling.workers (1) x tokens (64) = "
     "128; nearest: 128"),
    (["model.config.max_position_embeddings=32"],
     "model.config.max_position_embeddings = 32: less than the sequence length of data.path (64); raise it, or prepare "
     "the data with --sequence-length 32"),
    (["model.config.vocab_size=256"],
     "model.config.vocab_size = 256: less than the vocabulary of data.path's tokenizer (260); remove it to take the "
     "tokenizer's"),
    (["model.attention=flash_attention_2", "scaling.gpus_per_worker=1"],
     "model.attention = flash_attention_2: cannot compute in model.dtype (float32); set model.dtype: bfloat16 or "
     "model.attention: sdpa"),
    (["model.attention=flash_attention_2", "model.dtype=bfloat16"],
     "model.attention = flash_attention_2: needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or set "
     "model.attention: sdpa"),
    (["model.fused_loss=always"],
     "model.fused_loss = always: needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or set model.fused_loss: "
     "auto"),
    (["scaling.gpus_per_worker=0.5", "scaling.workers=2"],
     "scaling.gpus_per_worker = 0.5: a part of a GPU is for trainings of one worker, and scaling.workers is 2; set it "
     "to 1"),
    (["scaling.accelerator_type=H100"],
     "scaling.accelerator_type = H100: needs a GPU, and scaling.gpus_per_worker is 0; set it to 1 or remove the type"),
    (["checkpoints.metric=eval/lost"],
     "checkpoints.metric = eval/lost: must be one of eval/loss, eval/perplexity, eval/bits_per_byte; nearest: "
     "eval/loss"),
    (["evaluation.every=null", "checkpoints.every=2 evaluations"],
     "checkpoints.every = 2 evaluations: needs evaluations during the training, and evaluation.every is null; set it, "
     "or give checkpoints.every in steps"),
    (["evaluation.every=null", "checkpoints.keep_best=3"],
     "checkpoints.keep_best = 3: needs evaluations during the training, and evaluation.every is null; set it, or keep "
     "at most 1"),
    (["optimizer={name: sgd, lr: 1, momentum: 0, nesterov: true}"],
     "optimizer.nesterov = true: needs momentum, and optimizer.momentum is 0; remove one of them"),
    (["optimizer={name: schedule_free_adamw, lr: 1}", "schedule={name: cosine}"],
     "schedule.name = cosine: schedule_free_adamw averages instead of letting the rate decay; set schedule.name: "
     "constant, with a warm-up"),
    (["optimizer={name: mixed, lr: 1, rules: [{match: '*', optimizer: {name: schedule_free_sgd}}]}",
      "schedule={name: cosine}"],
     "schedule.name = cosine: schedule_free_sgd averages instead of letting the rate decay; set schedule.name: "
     "constant, with a warm-up"),
    (["sharding={engine: torch, stage: 2}"],
     "sharding: engine torch has no ZeRO stage, but stage is 2: set engine: deepspeed"),
    (["sharding={stage: 0, offload_optimizer: true}"],
     "sharding: offload_optimizer needs engine deepspeed at stage 1, 2 or 3"),
    (["optimizer={name: sgd, lr: 1, diloco: {every: 10, groups: 2}}", "scaling.workers=2"],
     "optimizer.diloco.groups = 2: sharding.engine (deepspeed) averages gradients over all workers; set "
     "sharding.engine: torch, or groups: 1, which is an outer step around all workers together"),
    (["optimizer={name: sgd, lr: 1, diloco: {every: 10, groups: 2}}", "scaling.workers=3", "sharding.engine=torch"],
     "optimizer.diloco.groups = 2: must divide scaling.workers (3)"),
    (["optimizer={name: sgd, lr: 1, sam: {}, diloco: {every: 10, groups: 2}}", "scaling.workers=2",
      "sharding.engine=torch"],
     "optimizer.diloco.groups = 2: optimizer.sam needs the gradients of all workers; remove it, or groups"),
    (["optimizer={name: sgd, lr: 1, diloco: {every: 30}}"],
     "length = 100 steps: must be a multiple of optimizer.diloco.every (30): later steps would not count"),
    (["optimizer={name: sgd, lr: 1, ema: {half_life: 0 samples}}"],
     "optimizer.ema.half_life = 0 samples: must be more than 0; without an average remove the section ema"),
    (["optimizer={name: sgd, lr: 1, ema: {half_life: 5%}}"],
     "optimizer.ema.half_life = 5%: the unit must be one of samples, tokens, steps, not %"),
    (["optimizer={name: mixed, lr: 1, rules: [{kinds: [matrics], optimizer: {name: muon}}]}"],
     "optimizer.rules.0.kinds.0 = matrics: must be one of matrices, embeddings, head, norms, biases, tensors; nearest: "
     "matrices"),
    (["optimizer={name: mixed, lr: 1, rules: [{match: '*', optimizer: {name: sgd, lrr: 1}}]}"],
     "optimizer.rules.0.optimizer.lrr = 1: unknown field of optimizer sgd; nearest: lr"),
    (["optimizer={name: mixed, lr: 1, rules: [{optimizer: {name: sgd}}]}"],
     "optimizer.rules.0: give match, regex or kinds; match: '*' takes all that is left"),
]  # fmt: skip

ACCEPTED = [
    [
        "optimizer={name: sgd, lr: 1, diloco: {every: 25, groups: 2}}",
        "scaling.workers=4",
        "sharding.engine=torch",
        "batch.global_sequences=8",
    ],
    [
        "optimizer={name: mixed, lr: 1, rules: [{match: '*', optimizer: {name: sgd, lr: 1}}]}",
        "optimizer.rules.0.optimizer.lr=1e-3",
    ],
    ["schedule={name: wsd, warmup: 80 steps, cooldown: 20%}"],
    ["schedule={name: cosine, warmup: 12_800 tokens}"],
    ["length=12_800 tokens", "schedule={name: cosine, warmup: 100 steps}"],
    ["length=1 epochs", "schedule={name: cosine, warmup: 500 steps}"],
    ["batch.global_sequences=8", "scaling.workers=2"],
    ["batch.global_tokens=256"],
    ["model.config.max_position_embeddings=65", "model.config.vocab_size=260"],
    ["model.attention=flash_attention_2", "model.dtype=bfloat16", "scaling.gpus_per_worker=1"],
    ["model.dtype=bfloat16"],
    ["evaluation.every=null", "checkpoints.every=null"],
    ["sharding.engine=torch"],
    ["optimizer={name: schedule_free_sgd, lr: 1}", "schedule={name: constant, warmup: 10%}"],
]


def messages(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    places = [f"--set {override}: " for override in overrides]
    lines = str(caught.value).splitlines()
    return [
        next((line.removeprefix(p) for p in places if line.startswith(p)), line.split(": ", 1)[1]) for line in lines
    ]


@pytest.mark.parametrize(("overrides", "message"), CONFLICTS, ids=[case[1][:50] for case in CONFLICTS])
def test_a_conflict_has_one_message(tmp_path, overrides, message):
    assert messages(write_recipe(tmp_path), overrides) == [message]


@pytest.mark.parametrize("overrides", ACCEPTED, ids=str)
def test_what_just_fits_is_accepted(tmp_path, overrides):
    load_recipe(write_recipe(tmp_path), overrides)


def test_missing_data_names_the_command_that_makes_it(tmp_path):
    path = write_recipe(tmp_path)
    assert messages(path, ["data.path=/nowhere/stdlib"]) == [
        "data.path = /nowhere/stdlib: no manifest.json there; first run: lowland data prepare stdlib --out "
        "/nowhere/stdlib --sequence-length 64"
    ]
    assert "lowland data prepare SOURCE --out /nowhere/books" in messages(path, ["data.path=/nowhere/books"])[0]


def test_an_edited_manifest_is_told(tmp_path):
    path = write_recipe(tmp_path)
    manifest = tmp_path / "prepared" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 1000', '"rows": 2000'))
    assert "digest" in messages(path)[0]


def test_data_elsewhere_is_left_to_the_cluster(tmp_path):
    load_recipe(write_recipe(tmp_path), ["data.path=s3://bucket/data", "batch.global_tokens=100"])


def model_folder(tmp_path, **config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return f"model={{path: {tmp_path / 'model'}}}"


def test_a_model_folder_with_too_few_positions_or_tokens(tmp_path):
    folder = model_folder(tmp_path, max_position_embeddings=32, vocab_size=100)
    positions, vocabulary = messages(write_recipe(tmp_path), [folder])
    assert (
        "max_position_embeddings of its config.json (32) is less than the sequence length of data.path (64)"
        in positions
    )
    assert (
        "vocab_size of its config.json (100) is less than the vocabulary of data.path's tokenizer (260)" in vocabulary
    )


def test_a_model_folder_that_is_none(tmp_path):
    path = write_recipe(tmp_path)
    (tmp_path / "empty").mkdir()
    missing = messages(path, [f"model={{path: {tmp_path}/nothing}}"])
    empty = messages(path, [f"model={{path: {tmp_path}/empty}}"])
    assert missing[0].endswith("no such folder; a Hugging Face hub id is written owner/name")
    assert empty[0].endswith("the folder has no config.json")
    load_recipe(path, ["model={path: owner/name}"])


def test_the_missing_data_of_a_model_folder_takes_its_positions_and_tokenizer(tmp_path):
    folder = model_folder(tmp_path, max_position_embeddings=32)
    (message,) = messages(write_recipe(tmp_path), [folder, "data.path=/nowhere"])
    assert message.endswith(f"--out /nowhere --sequence-length 32 --tokenizer {tmp_path / 'model'}")


def test_a_sequence_shorter_than_the_positions_is_right(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), [f"data.path={write_manifest(tmp_path / 'short', sequence_length=8)}"])
    assert recipe.model.config == {"model_type": "llama", "max_position_embeddings": 64}
