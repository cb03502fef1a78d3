"""Data sets of images on Hugging Face's hub: looked up, and their Parquet files copied into the hub's cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import yaml

from lowland.trainers.data.images.hub_tables import Splits, incomplete, split_files, tables
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import HubDataConfig

CONVERTED = "refs/convert/parquet"
"""Branch with what the hub converted to Parquet itself."""
_CARD = ("README.md", ".gitattributes")
"""Any repository has the second one: the hub's client warns where it is to fetch nothing."""


@dataclass(frozen=True)
class HubImages:
    """Files of a data set at a commit, by their paths in its repository."""

    name: str
    commit: str
    train: tuple[str, ...]
    held_out: tuple[str, ...] | None
    """None where held-out images are drawn from those to train on."""

    def download(self) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Copies the files to the hub's cache on this machine; what is there already is not asked for again.

        Returns:
            Local paths of `train` and `held_out`.

        Raises:
            DataError: they are neither in the cache nor to be had.
        """
        from huggingface_hub.errors import LocalEntryNotFoundError

        wanted = [*(escape(path) for path in (*self.train, *(self.held_out or ()))), *_CARD]
        with _told(self.name, self.commit):
            try:
                folder = _snapshot(self.name, self.commit, wanted, cached=True)
            except LocalEntryNotFoundError:
                folder = _snapshot(self.name, self.commit, wanted)  # shows its progress
        held_out = None if self.held_out is None else tuple(f"{folder}/{path}" for path in self.held_out)
        return tuple(f"{folder}/{path}" for path in self.train), held_out


def find_images(name: str, hub: HubDataConfig) -> HubImages:
    """Looks a data set up; of one at a commit that is in the cache no question goes to the hub.

    Without `hub.revision` it is the main branch if that has Parquet files, else what the hub converted.

    Raises:
        DataError: there is no such data set, or it cannot be asked for; it has no Parquet files, or not this
            configuration or split.
    """
    with _told(name, hub.revision):
        commit, found, card = _listing(name, hub.revision)
    if not found and hub.revision is None:
        commit, found, card = _converted(name)
    place = f"data.path = {name}"
    if not found:
        where = f"at revision {hub.revision}" if hub.revision else "there, nor converted ones"
        raise DataError(
            f"{place}: no Parquet files {where}; download the data set and give a folder with a subfolder of images "
            "for each class"
        )
    try:
        train = split_files(found, card, config=hub.config, split=hub.split, field="data.hub.split")
        held_out = None
        if hub.held_out_split is not None:
            field = "data.hub.held_out_split"
            held_out = split_files(found, card, config=hub.config, split=hub.held_out_split, field=field)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    return HubImages(name, commit, train, held_out)


def _converted(name: str) -> tuple[str, dict[str, Splits], dict[str, Any]]:
    from huggingface_hub.errors import RevisionNotFoundError

    with _told(name, CONVERTED):
        try:
            return _listing(name, CONVERTED)
        except RevisionNotFoundError:
            return "", {}, {}


def _listing(name: str, revision: str | None) -> tuple[str, dict[str, Splits], dict[str, Any]]:
    """The commit of a revision, the Parquet files by configuration and split, and the card's metadata."""
    from huggingface_hub import get_cached_repo_tree, resolve_revision
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    found = resolve_revision(name, repo_type="dataset", revision=revision)
    with _without_bars():
        folder = Path(_snapshot(name, found, _CARD))
    try:
        files = get_cached_repo_tree(name, repo_type="dataset", revision=found.resolved)
        paths = [file.path for file in files]
    except CachedRepoTreeNotFoundError:  # another program filled the cache
        paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]
        if missing := incomplete(paths):
            raise DataError(
                f"data.path = {name}: the cache holds only a part of it in {folder} ({'; '.join(missing)}): fetch it "
                f"first, for example with `hf download --repo-type dataset {name} --revision {found.resolved}`"
            ) from None
    card = _metadata(folder / "README.md")
    return found.resolved, tables(paths, card), card


def _snapshot(name: str, revision: str, patterns: Sequence[str], *, cached: bool = False) -> str:
    """The folder of the cache with the files that match, copied there; only looked for if they must be `cached`."""
    from huggingface_hub import snapshot_download

    return snapshot_download(
        name, repo_type="dataset", revision=revision, allow_patterns=list(patterns), local_files_only=cached
    )


def _metadata(readme: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    try:
        return metadata_load(readme) or {} if readme.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{readme}: the metadata of the data set's card cannot be read: {error}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Lets the hub's client show no progress of what takes no time."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _told(name: str, revision: str | None) -> Iterator[None]:
    """Makes of what the hub's client raises what a user can act on."""
    import httpx2
    from huggingface_hub import constants, errors

    place = f"data.path = {name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DataError(
            f"{place}: a gated data set: ask for access at {constants.ENDPOINT}/datasets/{name}, then log in with `hf "
            "auth login` or set HF_TOKEN, on every node"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{place}: no such file or folder here, and {constants.ENDPOINT} has no data set of this name, or a "
            "private one: correct it; for a private one log in with `hf auth login` or set HF_TOKEN, on every node"
        ) from error
    except errors.RevisionNotFoundError as error:
        if revision == CONVERTED:
            raise
        raise DataError(f"{place}: data.hub.revision = {revision}: no such branch, tag or commit") from error
    except errors.HFValidationError as error:
        raise DataError(f"{place}: no such file or folder here, and no name of a data set either: {error}") from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} cannot be reached"
        raise DataError(
            f"{place}: no such file or folder here; as a data set of the hub it is not (wholly) in the cache "
            f"{constants.HF_HUB_CACHE}, and {why}: fetch it first, for example with `hf download --repo-type dataset "
            f"{name}`, or give the path of a copy"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:  # HfHubHTTPError is an HTTPError
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{place}: the hub's files cannot be had: {first}") from error
