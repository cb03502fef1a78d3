"""Methods in whole trainings: limits, resumes, what they leave of weights, labels and exports."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import vision
from support.full import full
from support.images import image_config, train_images, trained_weights
from support.training import states

from lowland.trainers.data.images import sources
from lowland.trainers.errors import DataError, RecipeError
from lowland.trainers.methods.conflict_free import conflict_free
from lowland.trainers.methods.rationale import RationaleInvariance
from lowland.trainers.models import load_classifier
from lowland.trainers.tasks import build_task
from lowland.trainers.world import World

NOTHING = [
    {"name": "spectral_decoupling", "strength": 0},
    {"name": "vrex", "strength": 0},
    {"name": "irm", "strength": 0},
    {"name": "weight_balancing", "beta": 0},
    {"name": "spectral_risk", "spectrum": "extremile", "parameter": 1},
    {"name": "rationale_invariance", "strength": 0},
    {"name": "label_noise", "rate": 0},
    {"name": "constraints", "subject_to": [{"metric": "loss", "at_most": 0}], "start": "100%"},
    {"name": "ceag", "start": "100%"},
    {"name": "magnitude_pruning", "sparsity": 0},
    {"name": "demp", "strength": 0, "noise": 0, "every": "100 steps"},
    {"name": "cobalt", "strength": 0, "start": "2 steps"},
]
NO_UNITS = {"name": "magnitude_pruning", "structure": "units", "sparsity": 0, "rounds": 2, "dense": "2 steps"}

STATEFUL = [
    {"name": "irm", "strength": 1},
    {"name": "rationale_invariance", "strength": 0.1, "momentum": 0.5},
    {"name": "weight_balancing", "beta": 0.9, "max_norm": 0.5},
    {
        "name": "constraints",
        "subject_to": [
            {"metric": "error", "group": "g1", "at_most": 0.1},
            {"metric": "chance", "of_class": 2, "at_least": 0.5},
        ],
        "multipliers": {"name": "nupi", "lr": 1, "kp": 2, "nu": 0.5},
    },
    {"name": "ceag", "start": "2 steps", "window": 4, "multipliers": {"name": "adam", "lr": 0.1}},
    {
        "name": "magnitude_pruning",
        "sparsity": 0.6,
        "rounds": 2,
        "dense": "2 steps",
        "rewind": "weights",
        "rewind_to": "1 steps",
    },
    {"name": "demp", "strength": 0.1, "noise": 1e-4, "every": "2 steps", "span": "100%"},
    {"name": "igb", "base_start": "1 steps", "base_end": "4 steps"},
]


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    """A training without methods: what it told, and its folder."""
    folder = tmp_path_factory.mktemp("plain")
    return train_images(image_config(digits), folder), folder


@pytest.mark.parametrize(
    "methods",
    [NOTHING, *(full([one]) for one in (*NOTHING, NO_UNITS))],
    ids=lambda methods: methods[0]["name"],
)
def test_methods_of_strength_zero_change_no_bit(methods, digits, plain, tmp_path):
    """In four micro-batches, so with a pass that collects numbers first; with BatchNorm's averages."""
    outcome, folder = plain
    ours = train_images(image_config(digits, methods), tmp_path)
    assert ours.losses == outcome.losses
    before, after = states(folder, 6), states(tmp_path, 6)
    for name, tensors in before.items():
        for key, tensor in tensors.items():
            assert torch.equal(after[name][key], tensor), (name, key)


def test_a_resume_goes_on_as_if_nothing_had_been(digits, tmp_path):
    config = image_config(digits, STATEFUL)
    whole = train_images(config, tmp_path / "whole")
    train_images(config, tmp_path / "cut", stop_after=3)
    resumed = train_images(config, tmp_path / "cut")
    assert resumed.result.resumed_from == 3
    assert {step: resumed.losses[step] for step in (4, 5, 6)} == {step: whole.losses[step] for step in (4, 5, 6)}
    said = {name: values[6] for name, values in whole.values.items() if name.startswith("methods/")}
    assert {name: resumed.values[name][6] for name in said} == said
    before, after = states(tmp_path / "whole", 6), states(tmp_path / "cut", 6)
    assert before.keys() == after.keys()
    for name, tensors in before.items():
        for key, tensor in tensors.items():
            assert torch.equal(after[name][key], tensor), (name, key)
    # Also what demp, which is behind the pruning, adds noise to.
    assert before["prune_mask"]
    for name, mask in before["prune_mask"].items():
        assert not bool(before["weight"][name][mask == 0].any())
    with pytest.raises(DataError, match=r"written with sgd with irm with rationale.*, this run has sgd with vrex"):
        train_images(image_config(digits, [{"name": "vrex"}]), tmp_path / "cut")


def test_pruned_units_stay_so_after_a_resume(digits, tmp_path):
    """Stopped between two rounds, with early weights that come back in the second."""
    units = {"name": "magnitude_pruning", "structure": "units", "sparsity": 0.6, "rounds": 2, "dense": "2 steps"}
    config = image_config(digits, [{**units, "rewind": "weights", "rewind_to": "1 steps"}])
    whole = train_images(config, tmp_path / "whole")
    train_images(config, tmp_path / "cut", stop_after=3)
    resumed = train_images(config, tmp_path / "cut")
    assert resumed.result.resumed_from == 3
    assert {step: resumed.losses[step] for step in (4, 5, 6)} == {step: whole.losses[step] for step in (4, 5, 6)}
    assert whole.values["methods/magnitude_pruning/removed"][6] == pytest.approx(0.6, abs=0.02)
    before, after = states(tmp_path / "whole", 6), states(tmp_path / "cut", 6)
    assert before.keys() == after.keys()
    for name, tensors in before.items():
        for key, tensor in tensors.items():
            assert torch.equal(after[name][key], tensor), (name, key)


def test_methods_count_the_first_of_several_passes(digits, tmp_path, monkeypatch):
    """SAM's second gradients are of the same examples, at weights that are none of the training's."""
    seen = []

    def note(method, engine, world, batch):
        seen.append((method._counts.clone(), method._sums.clone()))

    monkeypatch.setattr(RationaleInvariance, "after_step", note)
    methods = [
        {"name": "rationale_invariance", "strength": 0.1, "momentum": 0.5},
        {"name": "label_noise", "rate": 0.5},
    ]
    said = []
    for name, around in (("plain", {}), ("sam", {"sam": {"rho": 5.0}}), ("lookbehind", {"lookbehind": {"rho": 5.0}})):
        changes = {"optimizer": {"name": "sgd", "lr": 0.05, **around}, "length": "1 steps"}
        values = train_images(image_config(digits, methods, **changes), tmp_path / name).values
        said.append({key: value[1] for key, value in values.items() if key.startswith("methods/label_noise")})
    assert said[0] == said[1] == said[2]
    assert len(seen) == 3
    for counts, sums in seen[1:]:
        assert torch.equal(counts, seen[0][0])
        assert torch.equal(sums, seen[0][1])


def test_pruned_weights_stay_zero_and_schedules_begin_anew(digits, tmp_path):
    pruning = {"name": "magnitude_pruning", "sparsity": 0.75, "rounds": 2, "dense": "2 steps"}
    outcome = train_images(image_config(digits, [{**pruning, "rewind": "learning_rate"}]), tmp_path, stop_after=4)
    rates = outcome.values["train/lr"]
    # Parts of two steps; the cosine of each ends at a tenth of the peak after one step of warm-up.
    assert [rates[step] for step in (1, 2, 3, 4)] == pytest.approx([0.05, 0.005] * 2)
    for step, density in ((4, 0.25),):
        found = states(tmp_path, step)
        masks, weights = found["prune_mask"], found["weight"]
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == total - round((1 - density) * total)
        for name, mask in masks.items():
            assert not bool(weights[name][mask == 0].any())
            assert not bool(found["momentum_buffer"][name][mask == 0].any())
    assert outcome.values["methods/magnitude_pruning/sparsity"][2] == pytest.approx(0.5, abs=1e-4)
    assert not any("fc." in name or "bias" in name for name in masks)


def test_weight_rewinding_puts_early_weights_back(digits, tmp_path):
    pruning = {"name": "magnitude_pruning", "sparsity": 0.5, "dense": "3 steps"}
    rewound = {**pruning, "rewind": "weights", "rewind_to": "1 steps"}
    train_images(image_config(digits, [rewound]), tmp_path / "early", stop_after=1)
    train_images(image_config(digits, [rewound]), tmp_path / "pruned", stop_after=3)
    early, pruned = states(tmp_path / "early", 1)["weight"], states(tmp_path / "pruned", 3)
    for name, weight in pruned["weight"].items():
        mask = pruned["prune_mask"].get(name, torch.ones(1, dtype=torch.uint8))
        assert torch.equal(weight, early[name] * mask)
        assert not bool(pruned["momentum_buffer"][name].any())


def test_balancing_trains_the_classifier_and_bounds_it(digits, plain, tmp_path):
    methods = [{"name": "weight_balancing", "beta": 0.99, "max_norm": 0.4, "train": "classifier"}]
    train_images(image_config(digits, methods), tmp_path)
    weights = trained_weights(tmp_path)
    assert set(weights) == {"network.fc.weight", "network.fc.bias"}
    assert float(weights["network.fc.weight"].view(3, -1).norm(dim=1).max()) <= 0.4 * (1 + 1e-6)
    assert float(trained_weights(plain[1])["network.fc.weight"].view(3, -1).norm(dim=1).max()) > 0.4


def test_noise_is_in_training_labels_alone(digits, tmp_path):
    world = World.current(torch.device("cpu"))
    noise = {"name": "label_noise", "rate": 0.5}
    clean = build_task(image_config(digits), world).data
    for seed in (1, 2):
        noisy = build_task(image_config(digits, [noise], seed=seed), world).data
        changed = noisy.train.labels != clean.train.labels
        assert changed.sum() == round(0.5 * len(clean.train))
        assert np.array_equal(noisy.held_out.labels, clean.held_out.labels)
    again = build_task(image_config(digits, [{**noise, "seed": 1}]), world).data
    assert not np.array_equal(again.train.labels, noisy.train.labels)
    outcome = train_images(image_config(digits, [noise], length="2 steps"), tmp_path)
    said = {name for name in outcome.values if name.startswith("methods/")}
    assert said == {f"methods/label_noise/{name}" for name in ("memorised", "corrected", "unchanged_accuracy")}


def test_noise_can_be_given_in_a_column(digits, tmp_path, monkeypatch):
    table = pq.read_table(digits)
    wrong = [(label + 1) % 3 if row % 5 == 0 else label for row, label in enumerate(table["label"].to_pylist())]
    path = tmp_path / "noisy.parquet"
    pq.write_table(table.append_column("noisy", [wrong]), path)
    noise = {"name": "label_noise", "kind": "column", "column": "noisy"}
    read, table_of = list[list[str]](), sources._table

    def table_read(file, names, *how):
        read.append(names)
        return table_of(file, names, *how)

    monkeypatch.setattr(sources, "_table", table_read)
    data = build_task(image_config(path, [noise]), _alone()).data
    assert read == [["image", "label", "group"], ["noisy"]], "images are read once"
    clean = build_task(image_config(path), _alone()).data
    assert data.train.labels.tolist() == [wrong[row] for row in data.train.rows]
    assert np.array_equal(data.held_out.labels, clean.held_out.labels)
    bad = int(data.train.rows[-1])
    wrong[bad] = 7
    pq.write_table(table.append_column("noisy", [wrong]), path)
    with pytest.raises(RecipeError, match=rf"row {bad} has 7 there, which is none of the 3 classes"):
        build_task(image_config(path, [noise]), _alone())


def test_noise_of_a_column_needs_columns():
    noise = {"name": "label_noise", "kind": "column", "column": "noisy"}
    with pytest.raises(RecipeError, match="only Parquet files have columns, and digits is none"):
        build_task(vision.config(methods=[noise]), _alone())


def test_conflict_free_gradients_of_groups(digits, tmp_path):
    """The first step is that of the combined gradients of the groups' mean losses, taken by hand."""
    batch = {"micro_batch": 24, "max_grad_norm": None}
    still = {"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0}, "schedule": {"name": "constant"}}
    config = image_config(digits, [{"name": "conflict_free"}], batch=batch, length="1 steps", **still)
    outcome = train_images(config, tmp_path)
    task = build_task(image_config(digits, batch=batch, **still), _alone())
    module = task.build_module()
    (micro,) = next(task.steps(0)).micro_batches
    initial = [parameter.detach().clone() for parameter in module.parameters()]
    logits = module(micro["images"])
    losses = torch.nn.functional.cross_entropy(logits, micro["labels"], reduction="none")
    rows = []
    for group in (0, 1):
        mean = losses[micro["groups"] == group].mean()
        found = torch.autograd.grad(mean, list(module.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    expected = torch.cat([weight.flatten() for weight in initial]) - 0.1 * conflict_free(torch.stack(rows))
    trained = trained_weights(tmp_path, 1)
    ours = torch.cat([trained[name].flatten() for name, _ in module.named_parameters()])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert {"methods/conflict_free/group_0/factor", "methods/conflict_free/group_1/factor"} <= set(outcome.values)


def test_conflict_free_with_one_group_is_plain_training_bit_by_bit(digits, plain, tmp_path):
    table = pq.read_table(digits)
    alike = table.set_column(table.column_names.index("group"), "group", [["g"] * len(table)])
    pq.write_table(alike, tmp_path / "one.parquet")
    train_images(image_config(tmp_path / "one.parquet", [{"name": "conflict_free"}]), tmp_path)
    for name, weight in trained_weights(plain[1]).items():
        assert torch.equal(trained_weights(tmp_path)[name], weight), name


def test_a_fixed_classifier_is_exported_and_read_back(digits, tmp_path):
    methods = [{"name": "fixed_etf"}]
    short = image_config(digits, methods, length="2 steps", checkpoints={"every": None})
    train_images(short, tmp_path, export=True)
    network, seen = load_classifier(tmp_path / "model")
    vectors = network.fc.vectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3) * 1.5 - 0.5)
    assert network(torch.zeros(2, 1, seen.size, seen.size)).shape == (2, 3)
    assert float(network.fc.scale) == 16


@pytest.mark.parametrize(
    "method",
    [
        # Much noise, so that units die within six steps.
        {"name": "demp", "strength": 0, "noise": 2.0, "every": "2 steps", "span": "100%"},
        {"name": "magnitude_pruning", "structure": "units", "sparsity": 0.4, "dense": "4 steps"},
    ],
    ids=lambda method: method["name"],
)
def test_removed_units_are_not_exported(method, digits, tmp_path):
    """The exported network is smaller and says what the trained one said."""
    outcome = train_images(image_config(digits, [method], checkpoints={"every": None}), tmp_path, export=True)
    removed = outcome.values[f"methods/{method['name']}/removed"][6]
    assert removed > 0.1
    network, _ = load_classifier(tmp_path / "model")
    task = build_task(image_config(digits, model={"path": str(tmp_path / "model")}), _alone())
    held_out = task.data.held_out
    images = held_out.pixels(np.arange(len(held_out)))
    with torch.no_grad():
        logits = task.build_module().eval()(images)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(held_out.labels))
    assert float(loss) == pytest.approx(outcome.result.metrics["eval/loss"], rel=1e-4)
    whole = sum(p.numel() for p in build_task(image_config(digits), _alone()).build_module().parameters())
    assert sum(p.numel() for p in network.parameters()) < (1 - removed / 2) * whole


def _alone():
    return World.current(torch.device("cpu"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"name": "constraints", "subject_to": [{"metric": "loss", "group": "h", "at_most": 1}]},
            r"subject_to.0.group = h: the data have 2: g0, g1",
        ),
        ({"name": "igb", "base_start": "4 steps", "base_end": "3 steps"}, r"\(step 4\) must be before base_end"),
        (
            {"name": "magnitude_pruning", "sparsity": 0.5, "rounds": 9},
            r"9 rounds do not fit from dense: 50% \(step 3\)",
        ),
        (
            {"name": "magnitude_pruning", "sparsity": 0.5, "rewind": "weights", "rewind_to": "5 steps"},
            r"is step 5, which must be at least 1 and not after the first pruning, step 3",
        ),
        ({"name": "spectral_decoupling", "center": [1.0, 2.0]}, r"2 numbers are given, the data have 3 classes"),
        ({"name": "ceag", "start": "50%", "dense_accuracy": [0.5]}, r"1 are given, the data have 2 groups \(g0, g1\)"),
        (
            {"name": "label_noise", "kind": "asymmetric", "target": "cifar10", "rate": 0.1},
            r"10 classes, the data have 3",
        ),
        (
            {"name": "label_noise", "kind": "asymmetric", "target": [0, 1, 7], "rate": 0.1},
            r"8 classes, the data have 3",
        ),
    ],
)
def test_what_does_not_go_with_the_data_is_refused(method, message, digits):
    with pytest.raises(RecipeError, match=message):
        build_task(image_config(digits, [method]), _alone())
