"""Which Parquet files of a data set of the hub are which split: pure functions of its listing and of its card."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from lowland.trainers.data.sources import path_matches
from lowland.trainers.errors import DataError

Splits = Mapping[str, tuple[str, ...]]
"""Files by split."""
DEFAULT = "default"
"""The configuration of a data set that names none."""

_CONVERTED = re.compile(r"[^/]+/[^/]+/\d{4}\.parquet")
"""CONFIG/SPLIT/NNNN.parquet, as the hub lays out what it converted itself."""
_SHARD = re.compile(r"(?:.*/)?(\w+)-\d{5}-of-\d{5}[^/]*\.parquet")
"""SPLIT-NNNNN-of-NNNNN.parquet, as Hugging Face's library writes it; a hash may follow."""
_NUMBERED = re.compile(r"(?P<set>.*)-(?P<number>\d{5})-of-(?P<of>\d{5})[^/]*\.parquet")
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Parts of a file's path that tell its split."""


def tables(paths: Iterable[str], card: Mapping[str, Any]) -> dict[str, Splits]:
    """The splits of each configuration that has Parquet files.

    Args:
        paths: of all files of the repository.
        card: the metadata at the head of its README.md, whose `configs` say which files are which split; without them
            folders or names of files do, by Hugging Face's conventions.
    """
    parquet = sorted(path for path in paths if path.endswith(".parquet"))
    said = _entries(card)
    found: dict[str, Splits]
    if said:
        found = {str(entry.get("config_name", DEFAULT)): _said(parquet, entry) for entry in said}
    elif parquet and all(map(_CONVERTED.fullmatch, parquet)):
        found = _by_folder(parquet)
    else:
        found = {DEFAULT: _by_name(parquet)}
    return {name: splits for name, splits in found.items() if splits}


def split_files(
    found: Mapping[str, Splits], card: Mapping[str, Any], *, config: str | None, split: str, field: str
) -> tuple[str, ...]:
    """The files of a split.

    Args:
        found: `tables`, not empty.
        card: see there.
        config: the configuration; None takes the only one, else the card's default.
        split: its split.
        field: that names the split in the recipe, for messages.

    Raises:
        DataError: there are several configurations, or not this one or this split; the message names those there are.
    """
    name = config or _default(found, card)
    if name not in found:
        raise DataError(f"data.hub.config = {name}: no such configuration with Parquet files; there are {_list(found)}")
    splits = found[name]
    if split not in splits:
        of = f" of configuration {name}" if len(found) > 1 else ""
        raise DataError(f"{field} = {split}: no such split{of}; there are {_list(splits)}")
    return splits[split]


def incomplete(paths: Iterable[str]) -> list[str]:
    """What lacks of shards that are numbered -NNNNN-of-MMMMM, a text for each set of them."""
    sets = dict[tuple[str, int], set[str]]()
    for match in filter(None, map(_NUMBERED.fullmatch, paths)):
        sets.setdefault((match["set"], int(match["of"])), set()).add(match["number"])
    return [f"{len(there)} of {of} files {name}-*" for (name, of), there in sets.items() if len(there) < of]


def _entries(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The card's `configs`, without what is not written as one."""
    configs = card.get("configs")
    return [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []


def _default(found: Mapping[str, Splits], card: Mapping[str, Any]) -> str:
    if len(found) == 1:
        return next(iter(found))
    marked = [str(entry.get("config_name", DEFAULT)) for entry in _entries(card) if entry.get("default")]
    name = next((name for name in (*marked, DEFAULT) if name in found), None)
    if name is None:
        raise DataError(
            f"several configurations, none of them the default: set data.hub.config to one of {_list(found)}"
        )
    return name


def _said(parquet: Sequence[str], entry: Mapping[str, Any]) -> Splits:
    """What an entry of the card's `configs` says: patterns by split, patterns of one split, or a folder."""
    folder, files = str(entry.get("data_dir") or "").strip("/"), entry.get("data_files")
    if files is None:
        return _by_name([path for path in parquet if not folder or path.startswith(f"{folder}/")])
    if _patterns(files):
        files = [{"path": files}]
    elif isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found = dict[str, tuple[str, ...]]()
    for part in files if isinstance(files, list) else ():
        patterns = _patterns(part.get("path")) if isinstance(part, dict) else []
        matched = [path for path in parquet if any(_matches(path, folder, pattern) for pattern in patterns)]
        if matched:
            found[str(part.get("split", "train"))] = tuple(matched)
    return found


def _patterns(value: Any) -> list[str]:
    """One pattern or a list of them; none if it is something else, as cards of any hand may have."""
    patterns = value if isinstance(value, list) else [value]
    return patterns if all(isinstance(pattern, str) for pattern in patterns) else []


def _matches(path: str, folder: str, pattern: str) -> bool:
    return path_matches(PurePosixPath(path), PurePosixPath(folder) / pattern)


def _by_folder(parquet: Sequence[str]) -> dict[str, Splits]:
    found = dict[str, dict[str, tuple[str, ...]]]()
    for path in parquet:
        config, split, _ = path.split("/")
        splits = found.setdefault(config, {})
        splits[split] = (*splits.get(split, ()), path)
    return dict(found)


def _by_name(parquet: Sequence[str]) -> Splits:
    """By the names of shards if all are written as such, else by words in paths; without any, all are to train on."""
    shards = [_SHARD.fullmatch(path) for path in parquet]
    if parquet and all(shards):
        names: list[str | None] = [shard[1] for shard in shards if shard is not None]
    else:
        names = [_word(path) for path in parquet]
        if not any(names):
            names = ["train"] * len(parquet)
    found = dict[str, tuple[str, ...]]()
    for path, name in zip(parquet, names, strict=True):
        if name is not None:
            found[name] = (*found.get(name, ()), path)
    return found


def _word(path: str) -> str | None:
    """The split that a path tells: the last of its parts that is one of the words."""
    words = re.split(r"[^a-z]+", path.removesuffix(".parquet").lower())
    split_of = {word: split for split, some in _WORDS.items() for word in some}
    return next((split_of[word] for word in reversed(words) if word in split_of), None)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
