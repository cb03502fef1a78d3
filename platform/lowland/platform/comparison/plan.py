"""What a comparison is, as its folder keeps it: enough to go on from storage alone.

<storage>/<name>/compare.json   the comparison (`Comparison`)
                 <arm>-tuning/  the search over each arm, a study's folder
                 <arm>-seeds/   the trainings of its winner, a study's folder too
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lowland.platform.recipe import Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.runs import Driver
from lowland.platform.search.setting import read_model, study_folder, write_model
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

COMPARISON = "compare.json"
Kind = Literal["tuning", "seeds"]
Status = Literal["running", "finished", "interrupted", "failed"]


class Arm(BaseModel):
    """A recipe and what is searched over it."""

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    """As it was given."""
    space: Space
    data: str
    """Digest of the data, or where they are."""
    chosen_by: dict[str, Any]
    """Fields of `evaluation` in the search."""
    reported: dict[str, Any]
    """The same in the trainings that are reported; equal if the held-out data could not be divided."""

    @property
    def divided(self) -> bool:
        """Whether what is reported was not chosen by."""
        return self.chosen_by != self.reported


class Plan(BaseModel):
    """What is compared, and how."""

    model_config = ConfigDict(frozen=True)

    name: str
    storage: str
    base: str
    """The arm that the others are compared with."""
    arms: dict[str, Arm]
    metric: str
    direction: Literal["minimize", "maximize"]
    trials: int | None
    """Of each arm's search; likewise what follows."""
    budget: str | None
    sampler: str
    policy: str
    seed: int
    """Of the samplers."""
    seeds: tuple[int, ...]
    """Of the trainings that are reported; no arm was tuned with one of them."""

    @property
    def folder(self) -> Path:
        """The comparison's folder, and the storage of its studies."""
        return study_folder(self.storage, self.name)

    @property
    def ordered(self) -> list[str]:
        """The arms' names, the base first."""
        return [self.base, *(name for name in self.arms if name != self.base)]

    def study(self, arm: str, kind: Kind) -> str:
        """The name of an arm's study."""
        return f"{arm}-{kind}"

    @property
    def cautions(self) -> list[str]:
        """What speaks against trusting the result, whatever it is."""
        whole = [name for name, arm in self.arms.items() if not arm.divided]
        others = [name for name, arm in self.arms.items() if arm.data != self.arms[self.base].data]
        found = list[str]()
        if whole:
            named = ", ".join(whole)
            found.append(f"note: {named}: chosen and reported on the same held-out data, which flatters what was tuned")
        if others:
            named = ", ".join(others)
            found.append(f"note: {named}: other data than {self.base}'s; {self.metric} compares only on the same data")
        return found

    def changes(self, other: "Plan") -> list[str]:
        """What another plan has otherwise: `path: there, here`."""
        mine, its = flatten(self), flatten(other)
        return [
            f"{path}: {mine.get(path, 'absent')} there, {its.get(path, 'absent')} here"
            for path in dict.fromkeys([*mine, *its])
            if mine.get(path) != its.get(path)
        ]


class Comparison(BaseModel):
    """A plan and how it stands."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    parallel: int | None
    """Trainings at a time; None is as many as the cluster holds."""
    comparison_id: str
    """Tells it from any other of this name; a tag of its MLflow run."""
    parent_run_id: str | None = None
    """The MLflow run, above those of the studies."""
    driver: Driver | None = None
    """The process that leads it, or led it last."""
    status: Status = "running"

    def with_(self, **changes: Any) -> "Comparison":
        """This comparison with some fields changed."""
        return self.model_copy(update=changes)

    def write(self) -> None:
        """Writes it to its folder, whole or not at all."""
        write_model(self, self.plan.folder / COMPARISON)

    def refuse_if_led(self) -> None:
        """A comparison has one leader.

        Raises:
            UserError: another process leads it.
        """
        if self.status == "running" and self.driver is not None and self.driver.alive():
            raise UserError(f"comparison {self.plan.name!r} is led by process {self.driver.pid}; stop that first")


def read_comparison(storage: str, name: str) -> Comparison | None:
    """The comparison in a storage folder; None if there is none of this name.

    Raises:
        UserError: its file is damaged.
    """
    return read_model(Comparison, study_folder(storage, name) / COMPARISON)
