"""The benchmarks of image training: dry runs, going on, and what their tables say."""

import json
import sys
from pathlib import Path

import pytest
import torch
import vision_quality
import vision_steps
import vision_throughput
from common import ROOT
from gpu_time import Kernel
from vision_arms import ARMS, FAST, NOISY, SPLIT, recipe
from vision_plain import Outcome, Pixels, factor
from vision_quality import Store
from vision_report import tables
from vision_steps import End, Job, Timing, timing
from vision_throughput import bars, markdown

PASSES = {FAST: 30.0, NOISY: 50.0, SPLIT: 100.0}
"""Over the data, of recipes; CrossSplit corrects labels only after a while, and is not compared at equal length."""


def outcome(accuracy: float, *earlier: float, **metrics: float) -> Outcome:
    curve = list(enumerate((*earlier, accuracy), start=1))
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return Outcome(accuracy, curve, [(1, 2.0)], 15.0, 10.0, named)


def test_optimizers_have_the_same_passes_whatever_a_step_takes(tmp_path: Path) -> None:
    for name, arm in ARMS.items():
        config = recipe(arm, 1, tmp_path, None, {})
        assert config.length.value * arm.gradients == pytest.approx(PASSES[arm.recipe]), name
        assert config.model.architecture == "resnet18-cifar"


def test_shorter_trainings_have_their_methods_moved_alike(tmp_path: Path) -> None:
    config = recipe(ARMS["cross_split"], 1, tmp_path, 50.0, {})
    assert str(config.length) == "50 epochs"
    noise, split = config.methods
    assert noise == recipe(ARMS["cross-entropy"], 1, tmp_path, 50.0, {}).methods[0]
    assert str(split.warmup) == "5 epochs"
    assert [str(point) for point in split.gamma_until] == ["7.5 epochs", "10 epochs"]
    assert split.gamma == recipe(ARMS["cross_split"], 1, tmp_path, None, {}).methods[1].gamma


def test_arms_follow_the_shipped_recipe(tmp_path: Path) -> None:
    config = recipe(ARMS["sgd"], 1, tmp_path, None, {})
    assert f"lr: {config.optimizer.lr:g}" in (ROOT / "recipes" / f"{FAST}.yaml").read_text()
    assert recipe(ARMS["tam"], 1, tmp_path, None, {}).optimizer.lr == 2 * config.optimizer.lr
    rates = [factor(config, step, 100) for step in range(1, 101)]
    assert rates[19] == 1.0
    assert rates[59] == pytest.approx(0.5)
    assert rates[99] == 0.0


def test_the_plain_loop_cuts_windows_and_mirrors_them(tmp_path: Path) -> None:
    import numpy as np

    # Each image is one bright pixel on black; its place says where the window was.
    images = np.zeros((6, 5, 5, 1), dtype=np.uint8)
    images[:, 2, 2] = 255
    labels = np.arange(6)
    np.savez(tmp_path / "a.npz", train=images, train_labels=labels, test=images, test_labels=labels)
    torch.manual_seed(0)
    pixels = Pixels(tmp_path / "a.npz", torch.device("cpu"), padding=2, flip=0.5)
    order = pixels.orders(4)
    first = torch.cat([next(order) for _ in range(3)])
    assert sorted(first[:6].tolist()) == sorted(first[6:].tolist()) == [0, 1, 2, 3, 4, 5]
    places = set()
    for _ in range(40):
        seen, told = pixels.batch(torch.arange(6))
        assert told.tolist() == [0, 1, 2, 3, 4, 5]
        assert seen.shape == (6, 1, 5, 5)
        places |= {tuple(map(int, place)) for place in (seen[:, 0] == seen.max()).nonzero()[:, 1:]}
    assert places == {(row, column) for row in range(5) for column in range(5)}


def test_runs_are_kept_and_those_of_other_settings_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "q.json", {"epochs": 3.0})
    store.add(("sgd", 1), outcome(0.5, 0.4))
    held = Store(tmp_path / "q.json", {"epochs": 3.0}).outcomes["sgd", 1]
    assert (held.accuracy, [tuple(point) for point in held.curve]) == (0.5, [(1, 0.4), (2, 0.5)])
    with pytest.raises(SystemExit, match=r"'epochs': 3.0"):
        Store(tmp_path / "q.json", {"epochs": 4.0})


def test_tables_compare_by_seed_and_say_what_was_lost() -> None:
    runs = {("sgd", 1): outcome(0.90), ("sgd", 2): outcome(0.80), ("sam", 1): outcome(0.92), ("sam", 2): outcome(0.82)}
    runs |= {("cross-entropy", 1): outcome(0.5, 0.4, 0.7)}
    gone = {"methods__demp__flops": 4.0, "methods__demp__smaller_flops": 1.0, "methods__demp__removed": 0.6}
    zeros = {"methods__magnitude_pruning__flops": 4.0, "methods__magnitude_pruning__sparse_flops": 2.0}
    zeros |= {"methods__magnitude_pruning__sparsity": 0.8}
    runs |= {("demp 0.002", 1): outcome(0.88, **gone), ("magnitude", 1): outcome(0.88, **zeros)}
    runs |= {
        ("magnitude units", 1): outcome(0.88, **{key.replace("demp", "magnitude_pruning"): gone[key] for key in gone})
    }
    text = tables(runs, as_markdown=True)
    assert "| sam | 15 | 2 | 2 | 87 ± 64 | 2 ± " in text
    assert "| cross-entropy | 15 | 1 | 1 | 50 |  | 10 | 70 | 20 |" in text
    assert text.count("| sgd | 15 | 1 | 2 | 85 ± 64 |  | 10 |") == 2, "pruning is compared with it too"
    for name, said in (("demp 0.002", "60 | units | 25"), ("magnitude units", "60 | units | 25")):
        assert f"| {name} | 15 | 1 | 1 | 88 | -2 | 10 | {said} |" in text
    assert "| magnitude | 15 | 1 | 1 | 88 | -2 | 10 | 80 | weights | 50 |" in text


@pytest.mark.full
def test_every_arm_trains_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.json"
    arguments = ["vision_quality.py", "--device", "cpu", "--tiny", "--seeds", "1", "--out", str(out), "--markdown"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert vision_quality.main() == 0
    told = capsys.readouterr().out
    assert all(f"  {name}, seed 1: 0." in told for name in ARMS)
    assert vision_quality.main() == 0
    assert "seed 1" not in capsys.readouterr().out
    assert len(json.loads(out.read_text())["runs"]) == len(ARMS)


@pytest.mark.full
def test_both_loops_are_timed_on_both_kinds_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "t.json"
    monkeypatch.setattr(sys, "argv", ["vision_throughput.py", "--device", "cpu", "--tiny", "--out", str(out)])
    assert vision_throughput.main() == 0
    report = json.loads(out.read_text())
    for loops in report["runs"].values():
        for runs in loops.values():
            (run,) = runs
            assert all(Timing(**run[kind]).samples_per_second > 0 for kind in ("memory", "jpeg"))


def test_bars_tell_what_is_slow() -> None:
    def run(rate: float, data: float) -> dict[str, object]:
        split = {"step": 0.1, "data": data, "forward_backward": 0.08, "optimizer": 0.01}
        return {kind: vars(Timing(rate, [rate], split, 1.0, None)) for kind in ("memory", "jpeg")}

    report = {
        "runs": {"resnet50": {"lowland": [run(97.0, 0.001)], "plain": [run(100.0, 0.02)]}},
        "settings": {"data": ["memory", "jpeg"], "batch": 8, "eager": False, "graphs": False, "threads": 4},
        "circumstances": "here",
    }
    assert bars(report) == 1
    assert "| resnet50 | memory | lowland | 97 | 0.970 | - | 100.0 | 80.0 | 10.0 | - | 1.0% | 1.0 |" in markdown(report)
    report["runs"]["resnet50"]["lowland"] = [run(99.0, 0.001)]
    assert bars(report) == 0
    report["runs"]["resnet50"]["lowland"] = [run(99.0, 0.003)]
    assert bars(report) == 1
    report["runs"]["resnet50"] = {"lowland": [run(99.0, 0.001)], "plain": []}
    assert bars(report) == 1, "nothing was compared"


def test_a_window_more_is_profiled_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    class Profiler:
        def start(self) -> None:
            calls.append("start")

        def stop(self) -> None:
            calls.append("stop")

    monkeypatch.setattr(torch.profiler, "profile", lambda activities: Profiler())
    kernels = [Kernel(0.0, 4e6, "a"), Kernel(1e6, 3e6, "b"), Kernel(10e6, 12e6, "c")]
    monkeypatch.setattr(vision_steps, "gpu_kernels", lambda profiler: kernels)
    job = Job("lowland", {}, {}, None, {}, 32, 4, 25, 10, 1, "cuda", bf16=True, compile=True, graphs=False, idle=True)
    end = End(job)
    assert [end.reached(step) for step in (10, 20, 30, 40)] == [False, False, False, True]
    assert calls == ["start", "stop"]
    assert end.idle == {"idle": 0.6}
    windows = {step: {"perf/step_seconds": step / 10, "perf/samples_per_second": 1.0} for step in (10, 20, 30, 40)}
    found = timing(job, windows, end.idle)
    assert found.split == {"step": 2.5, "idle": 0.6}, "the first third and the profiled window do not count"
