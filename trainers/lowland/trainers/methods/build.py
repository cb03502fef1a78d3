"""From a recipe's `methods` to the methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Method
from lowland.trainers.methods.ceag import CEAG, AccuracyWindow
from lowland.trainers.methods.cobalt import CoBalT, PlainImages
from lowland.trainers.methods.conflict_free import ConFIG
from lowland.trainers.methods.constraints import Constraint, Constraints, Part, batch_constraint
from lowland.trainers.methods.cross_split import CrossSplit, CrossSplitSettings
from lowland.trainers.methods.demp import DemP
from lowland.trainers.methods.etf import FixedETF
from lowland.trainers.methods.igb import IGB
from lowland.trainers.methods.irm import IRM
from lowland.trainers.methods.label_noise import (
    CIFAR10_PAIRS,
    LabelNoise,
    asymmetric_noise,
    next_class,
    symmetric_noise,
)
from lowland.trainers.methods.magnitude_pruning import MagnitudePruning
from lowland.trainers.methods.multipliers import Multipliers
from lowland.trainers.methods.optin import OPTIN
from lowland.trainers.methods.rationale import RationaleInvariance
from lowland.trainers.methods.rounds import gradual_rounds, iterative_rounds
from lowland.trainers.methods.spectral_decoupling import SpectralDecoupling
from lowland.trainers.methods.spectral_risk import SpectralRisk
from lowland.trainers.methods.unit_pruning import UnitPruning
from lowland.trainers.methods.vrex import VREx
from lowland.trainers.methods.weight_balancing import WeightBalancing
from lowland.trainers.models import ImageClassifierLoss, load_classifier
from lowland.trainers.recipe import methods as recipes
from lowland.trainers.recipe.amounts import Amount


@dataclass(frozen=True)
class Setting:
    """What is known of the training and its data."""

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Tensor
    """int64 [examples], those trained on."""
    clean_labels: Tensor
    """int64 [examples], before label noise."""
    images: PlainImages
    """Training images without augmentation."""
    shape: tuple[int, int, int]
    """Of what the network is given for one example."""
    examples_per_step: int
    total_steps: int
    steps_per_epoch: float
    accumulation: int
    """Micro-batches of a rank and step."""

    def steps(self, amount: Amount) -> int:
        """A point of the training in steps."""
        return amount.in_steps(tokens_per_step=0, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps)

    def number(self, place: str, names: tuple[str, ...], value: int | str | None) -> int | None:
        """The number of a class or group that is given by name, or else by its place from 0."""
        if value is None:
            return None
        if str(value) in names:
            return names.index(str(value))
        if isinstance(value, int) and 0 <= value < len(names):
            return value
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise RecipeError(f"{place} = {value}: the data have {len(names)}: {shown}; give a number from 0, or a name")


def relabelled(
    configs: Sequence[recipes.MethodSection], labels: Tensor, classes: int, column: Callable[[str], Tensor]
) -> Tensor:
    """The labels to train on: with the recipe's noise, or as they are.

    Args:
        configs: the recipe's methods.
        labels: int64 [examples].
        classes: their number.
        column: reads labels from another column of the data.

    Raises:
        RecipeError: the noise is of other classes.
    """
    noise = next((one for one in configs if isinstance(one, recipes.LabelNoiseConfig)), None)
    if noise is None:
        return labels
    if noise.column is not None:
        return column(noise.column)
    assert noise.rate is not None
    if noise.kind == "symmetric":
        return symmetric_noise(labels, classes, noise.rate, noise.seed, own_too=noise.own_too)
    target = noise.target
    if target == "next":
        target = next_class(classes)
    elif target == "cifar10":
        target = CIFAR10_PAIRS
    if len(target) != classes or max(target) >= classes:
        raise RecipeError(
            f"methods: label_noise.target = {noise.target}: is of {max(len(target), max(target) + 1)} classes, the "
            f"data have {classes}; give a class for each"
        )
    return asymmetric_noise(labels, target, noise.rate, noise.seed)


def build_methods(configs: Sequence[recipes.MethodSection], setting: Setting) -> list[Method]:
    """The methods, in the order of the recipe.

    Raises:
        RecipeError: one does not go with the data or the length of the training.
    """
    return [_MAKERS[type(config)](config, setting) for config in configs]


def _multipliers(config: recipes.MultipliersConfig, inequality: list[bool]) -> Multipliers:
    fields = {name: getattr(config, name) for name in type(config).model_fields if name != "name"}
    return Multipliers(inequality, optimizer="adam" if config.name == "adam" else "nupi", **fields)


def _constraints(config: recipes.ConstraintsConfig, setting: Setting) -> Method:
    made = [_constraint(index, one, setting) for index, one in enumerate(config.subject_to)]
    chances = [
        setting.number("methods: constraints.subject_to.of_class", setting.classes, one.of_class)
        for one in config.subject_to
    ]
    multipliers = _multipliers(config.multipliers, [one.sense != "equals" for one in made])
    start = setting.steps(config.start)
    return Constraints(made, multipliers, start=start, chances=[one for one in chances if one is not None])


def _constraint(index: int, config: recipes.ConstraintConfig, setting: Setting) -> Constraint:
    place = f"methods: constraints.subject_to.{index}"
    group = setting.number(f"{place}.group", setting.groups, config.group)
    label = setting.number(f"{place}.label", setting.classes, config.label)
    of_class = setting.number(f"{place}.of_class", setting.classes, config.of_class)
    for sense in ("at_most", "at_least", "equals"):
        bound = getattr(config, sense)
        if bound is not None:
            return batch_constraint(
                f"{index}_{config.metric}",
                config.metric,
                sense,
                bound,
                part=Part(group, label),
                of_class=of_class or 0,
                less_all=config.less_all,
            )
    raise AssertionError("a constraint has a bound")


def _ceag(config: recipes.CEAGConfig, setting: Setting) -> Method:
    groups, dense = len(setting.groups), config.dense_accuracy
    if dense is not None and len(dense) != groups:
        raise RecipeError(
            f"methods: ceag.dense_accuracy: {len(dense)} are given, the data have {groups} groups "
            f"({', '.join(setting.groups[:5])}); give one for each, or none"
        )
    multipliers = _multipliers(config.multipliers, [True] * groups)
    window = AccuracyWindow(groups, config.window)
    return CEAG(config.tolerance, multipliers, window, dense=dense, start=setting.steps(config.start))


def _pruning(config: recipes.MagnitudePruningConfig, setting: Setting) -> Method:
    dense, total = setting.steps(config.dense), setting.total_steps
    end = total if config.end is None else setting.steps(config.end)
    early = setting.steps(config.rewind_to)
    if not 1 <= dense <= end <= total or (config.end is None and end - dense < config.rounds):
        raise RecipeError(
            f"methods: magnitude_pruning: {config.rounds} rounds do not fit from dense: {config.dense} (step {dense}) "
            f"and step {end} of {total}; the first is at least step 1, and each round a step: lower dense or rounds"
        )
    if config.rewind == "weights" and not 1 <= early <= dense:
        raise RecipeError(
            f"methods: magnitude_pruning.rewind_to = {config.rewind_to}: is step {early}, which must be at least 1 and "
            f"not after the first pruning, step {dense}"
        )
    if config.shape == "gradual":
        rounds = gradual_rounds(config.sparsity, config.rounds, dense=dense, end=end)
    else:
        rounds = iterative_rounds(config.sparsity, config.rounds, dense=dense, total=total)
    if config.structure == "units":
        return UnitPruning(rounds, scope=config.scope, rewind=config.rewind, rewind_to=early)
    return MagnitudePruning(rounds, scope=config.scope, kinds=config.kinds, rewind=config.rewind, rewind_to=early)


def _demp(config: recipes.DemPConfig, setting: Setting) -> Method:
    span, every = max(1, setting.steps(config.span)), setting.steps(config.every)
    return DemP(config.strength, config.noise, span=span, every=every)


def _optin(config: recipes.OPTINConfig, setting: Setting) -> Method:
    at = max(1, setting.steps(config.at))
    return OPTIN(setting.images, flops=config.flops, at=at, count=config.images, balance=config.balance)


def _weight_balancing(config: recipes.WeightBalancingConfig, setting: Setting) -> Method:
    relative = config.max_norm_share is not None
    bound = config.max_norm_share if relative else config.max_norm
    return WeightBalancing(config.beta, bound, relative=relative, train=config.train)


def _spectral_decoupling(config: recipes.SpectralDecouplingConfig, setting: Setting) -> Method:
    center = config.center
    if isinstance(center, tuple) and len(center) != len(setting.classes):
        raise RecipeError(
            f"methods: spectral_decoupling.center: {len(center)} numbers are given, the data have "
            f"{len(setting.classes)} classes; give one for each, or one for all"
        )
    return SpectralDecoupling(config.strength, center)


def _igb(config: recipes.IGBConfig, setting: Setting) -> Method:
    start, end = setting.steps(config.base_start), setting.steps(config.base_end)
    if start >= end:
        raise RecipeError(
            f"methods: igb: base_start: {config.base_start} (step {start}) must be before base_end: {config.base_end} "
            f"(step {end})"
        )
    return IGB(len(setting.groups), start, end)


def _cobalt(config: recipes.CoBalTConfig, setting: Setting) -> Method:
    start = setting.steps(config.start)
    if config.path is None and start == 0:
        raise RecipeError(
            f"methods: cobalt.start = {config.start}: is step 0, where the network has learnt nothing to find concepts "
            "by: start later, or give the network of another training as cobalt.path"
        )
    if start >= setting.total_steps - 1:
        raise RecipeError(
            f"methods: cobalt.start = {config.start}: is step {start}, and the training has {setting.total_steps}, so "
            "that no step would come after it, and none be balanced: start earlier, or lengthen the training"
        )
    return CoBalT(
        setting.images,
        setting.labels,
        setting.examples_per_step,
        concepts=config.concepts,
        least_share=config.least_share,
        strength=config.strength,
        start=start,
        network=_trained(config.path, setting) if config.path is not None else None,
    )


def _trained(folder: str, setting: Setting) -> ImageClassifierLoss:
    """A network that was exported, given images as bytes."""
    network, seen = load_classifier(Path(folder))
    channels, size, _ = setting.shape
    if (seen.channels, seen.size) != (channels, size):
        raise RecipeError(
            f"methods: cobalt.path = {folder}: takes images of {seen.channels} x {seen.size} x {seen.size}, the data's "
            f"are {channels} x {size} x {size}: set data.channels and data.size to its own, or take another network"
        )
    return ImageClassifierLoss(network, seen)


def _label_noise(config: recipes.LabelNoiseConfig, setting: Setting) -> Method:
    return LabelNoise(setting.labels, setting.clean_labels)


def _cross_split(config: recipes.CrossSplitConfig, setting: Setting) -> Method:
    warmup, until = setting.steps(config.warmup), tuple(setting.steps(point) for point in config.gamma_until)
    if warmup >= setting.total_steps:
        raise RecipeError(
            f"methods: cross_split.warmup = {config.warmup}: is step {warmup}, and the training has "
            f"{setting.total_steps}, so that no label would be corrected: lower it, or lengthen the training"
        )
    if list(until) != sorted(until):
        shown = ", ".join(map(str, config.gamma_until))
        raise RecipeError(f"methods: cross_split.gamma_until = [{shown}]: must ascend, but is {list(until)} in steps")
    same = ("correction", "temperature", "unlabelled", "balance", "confidence_penalty", "average")
    settings = CrossSplitSettings(
        classes=len(setting.classes),
        accumulation=setting.accumulation,
        steps_per_epoch=setting.steps_per_epoch,
        warmup=warmup,
        gammas=config.gamma,
        gamma_until=until,
        ramp=setting.steps(config.ramp),
        **{name: getattr(config, name) for name in same},
    )
    return CrossSplit(settings, setting.clean_labels)


_MAKERS: dict[type[recipes.MethodSection], Callable[[Any, Setting], Method]] = {
    recipes.SpectralDecouplingConfig: _spectral_decoupling,
    recipes.VRExConfig: lambda c, s: VREx(c.strength, s.steps(c.start)),
    recipes.IRMConfig: lambda c, s: IRM(c.strength, s.steps(c.start), c.unbiased),
    recipes.FixedETFConfig: lambda c, s: FixedETF(c.loss, c.scale),
    recipes.WeightBalancingConfig: _weight_balancing,
    recipes.CoBalTConfig: _cobalt,
    recipes.SpectralRiskConfig: lambda c, s: SpectralRisk(c.spectrum, c.parameter, c.nu),
    recipes.RationaleInvarianceConfig: lambda c, s: RationaleInvariance(c.strength, c.momentum),
    recipes.LabelNoiseConfig: _label_noise,
    recipes.CrossSplitConfig: _cross_split,
    recipes.ConstraintsConfig: _constraints,
    recipes.CEAGConfig: _ceag,
    recipes.MagnitudePruningConfig: _pruning,
    recipes.DemPConfig: _demp,
    recipes.OPTINConfig: _optin,
    recipes.IGBConfig: _igb,
    recipes.ConFIGConfig: lambda c, s: ConFIG(len(s.groups)),
}
