"""What a search is, as its folder keeps it: enough to go on from storage alone.

<storage>/<name>/search.json     the setting (`Setting`)
                 trials.journal  every trial's state (`lowland.platform.search.study`), if it is in no database
                 trial-0000/     a run folder per trial
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from lowland.platform.recipe import Recipe
from lowland.platform.runs import Driver, open_filesystem
from lowland.platform.search.ledger import Budget, Price
from lowland.platform.search.objectives import Bound, Objective
from lowland.platform.search.policies import default_first
from lowland.platform.search.space import BoundSpace
from lowland.platform.search.trials import Earlier
from lowland.platform.urls import redact
from lowland.search_spaces import Space
from lowland.trainers.errors import UserError

SETTING, JOURNAL, STOP = "search.json", "trials.journal", "stop"
TICKS = 51
"""Parts of a training at whose ends trials may be compared."""

Model = TypeVar("Model", bound=BaseModel)


class Setting(BaseModel):
    """A search."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    recipe: Recipe
    """What trials change; its `name` is the study's."""
    space: Space
    metric: str
    direction: Literal["minimize", "maximize"]
    trials: int | None
    """How many begin at most; None is without limit."""
    budget: str | None
    parallel: int | None
    """Trials at a time; None is as many as the cluster holds."""
    sampler: str
    policy: str
    first_rung: int = default_first(TICKS)
    """Where trials are first compared, in parts of a training; as here in searches from before this was kept."""
    seed: int
    tracking_uri: str
    """Without its password."""
    database: Annotated[str, PlainSerializer(redact)] | None = Field(default=None, repr=False)
    """Where the trials lie, if not in the folder's journal: a URL, whose password is not written, or a file."""
    price: str | None = None
    """Of a GPU-hour, as `2.5usd`."""
    earlier: tuple[Earlier, ...] = ()
    """Trainings of the same task that the search begins with."""
    warm_start: tuple[str, ...] = ()
    """For people: which earlier trainings are used and which are not, a line each."""
    within_run_id: str | None = None
    """The MLflow run below which the study's is, as that of a comparison."""
    study_id: str = ""
    """Tells it from any other study of this name; a tag of its MLflow run."""
    others: tuple[Objective, ...] = ()
    """Further metrics; without any the search is for the best value of one."""
    constraints: tuple[str, ...] = ()
    """What trials must keep, as `perf/gpu_memory_gib <= 70`."""
    intervals: int = 8
    """Of a training, with policy pbt."""
    perturb: tuple[str, ...] = ()
    """Parameters that change in copies, with policy pbt; none is all that may."""
    parent_run_id: str | None = None
    driver: Driver | None = None
    """The process that leads the search, or led it last."""
    status: Literal["running", "finished", "interrupted", "failed"] = "running"

    @property
    def name(self) -> str:
        """The study's name."""
        return self.recipe.name

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return study_folder(self.recipe.storage, self.name)

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The constraints, read."""
        return tuple(map(Bound.parse, self.constraints))

    @property
    def prices(self) -> Price | None:
        """The price, read."""
        return Price.parse(self.price) if self.price is not None else None

    @property
    def limit(self) -> Budget | None:
        """The budget, read."""
        return Budget.parse(self.budget, self.prices) if self.budget is not None else None

    @property
    def abandoned(self) -> bool:
        """Whether the process that leads it, one of this machine, is gone without having said so."""
        return self.status == "running" and self.driver is not None and self.driver.local() and not self.driver.alive()

    def bound(self) -> BoundSpace:
        """The space, checked against the recipe."""
        return BoundSpace(self.space, self.recipe)

    def with_(self, **changes: Any) -> "Setting":
        """This setting with some fields changed."""
        return self.model_copy(update=changes)

    def write(self) -> None:
        """Writes it to its folder, whole or not at all."""
        write_model(self, self.folder / SETTING)


def write_model(model: BaseModel, file: Path) -> None:
    """Writes a model to a file, whole or not at all, and its folder if that is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(model.model_dump_json(indent=2, exclude_unset=True), encoding="utf-8")
    temporary.replace(file)


def read_model(kind: type[Model], file: Path) -> Model | None:
    """What `write_model` wrote; None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{file} cannot be read ({f'{place}: ' if place else ''}{first['msg']}); restore it or move the folder"
        ) from None


def study_folder(storage: str, name: str) -> Path:
    """The folder of a study.

    Raises:
        UserError: the storage is no folder of a file system.
    """
    local = open_filesystem(storage)[2]
    if local is None:
        raise UserError(
            f"storage {storage} is no folder: the trials' journal needs a file system that all nodes share; "
            "set storage to such a folder"
        )
    return local / name


def read_setting(storage: str, name: str) -> Setting | None:
    """The setting of a study; None if there is no study of this name.

    Raises:
        UserError: its file is damaged.
    """
    return read_model(Setting, study_folder(storage, name) / SETTING)


def existing_study(storage: str, name: str) -> Setting:
    """The setting of a study that must exist.

    Raises:
        UserError: there is none; the message names those that there are.
    """
    found = read_setting(storage, name)
    if found is None:
        names = ", ".join(study_names(storage)) or "none"
        raise UserError(f"no study {name!r} in {storage}; studies there: {names}")
    return found


def study_names(storage: str) -> list[str]:
    """Names of the studies in a storage folder, sorted."""
    root = study_folder(storage, "")
    return sorted(file.parent.name for file in root.glob(f"*/{SETTING}"))


def refuse_if_led(setting: Setting) -> None:
    """A search has one leader.

    Raises:
        UserError: another process leads it.
    """
    if setting.status == "running" and setting.driver is not None and setting.driver.alive():
        raise UserError(f"study {setting.name!r} is led by process {setting.driver.pid}; stop that first")
