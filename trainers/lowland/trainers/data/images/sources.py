"""Rows of image data as they are stored: encoded images with a label each, from wherever a recipe names."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from lowland.trainers.data.images.encoded import Decoded, Encoded, Files
from lowland.trainers.data.images.places import Place, places
from lowland.trainers.data.images.shapes import BIRDS, make_shapes
from lowland.trainers.data.sources import SourceFile, list_files, open_filesystem
from lowland.trainers.data.units import open_parquet
from lowland.trainers.errors import DataError
from lowland.trainers.recipe import ImageDataConfig, ShapesConfig
from lowland.trainers.recipe.image_data import DIGITS, EMBEDDED, SHAPES

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Files of a class's folder that are taken for images."""
Value = int | str | None
"""A label or group as it is written; None where there is none."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of Parquet files."""

    image: str = "image"
    label: str = "label"
    group: str | None = None

    @classmethod
    def of(cls, config: ImageDataConfig) -> "Columns":
        """Those of a recipe."""
        return cls(config.image_column, config.label_column, config.group_column)

    def names(self) -> list[str]:
        """All of them."""
        return [self.image, self.label, *([self.group] if self.group is not None else [])]


@dataclass(frozen=True)
class Rows:
    """Images that are not yet looked at."""

    labels: Sequence[Value]
    groups: Sequence[Value] | None
    images: Encoded
    names: tuple[str, ...] | None
    """Names of the classes, where the data says them; labels are numbers or these names then."""

    def __len__(self) -> int:
        return len(self.labels)


def read_sources(config: ImageDataConfig) -> tuple[Rows, Rows | None]:
    """The rows of `path`, and those to evaluate on, where they are not drawn from them.

    Raises:
        DataError: as of `read_rows`.
    """
    found, columns = places(config), Columns.of(config)
    shapes = config.shapes or ShapesConfig()
    rows = read_rows(found.path, columns, shapes)
    if found.held_out not in (None, SHAPES):
        return rows, read_rows(found.held_out, columns, shapes)
    of_shapes = SHAPES in (found.held_out, config.path)
    return rows, _shapes(shapes, columns, held_out=True) if of_shapes else None


def read_rows(path: Place, columns: Columns, shapes: ShapesConfig | None = None) -> Rows:
    """The rows of a path: `digits`, `shapes`, Parquet files, or a folder with a subfolder of images for each class.

    Args:
        path: what the recipe names.
        columns: of Parquet files; of `shapes`, that of the groups.
        shapes: how `shapes` are made; None takes the defaults.

    Raises:
        DataError: nothing is there, or it is none of these; a column is missing or of the wrong type.
    """
    if path == DIGITS:
        return _digits()
    if path == SHAPES:
        return _shapes(shapes or ShapesConfig(), columns, held_out=False)
    files = _parquet_files(path)
    if files or isinstance(path, tuple):
        return _parquet(files, columns)
    return _folders(*open_filesystem(path), path)


def check_columns(path: Place, columns: Columns) -> None:
    """Looks for the columns in the first Parquet file, of which only the end is read.

    Raises:
        DataError: one is missing; the message says which ones may be meant.
    """
    files = _parquet_files(path) if path not in EMBEDDED else []
    if files:
        with open_parquet(files[0]) as parquet:
            _require_columns(files[0], parquet.schema_arrow, columns)


def read_column(path: Place, name: str) -> list[Value] | None:
    """A further column of whole numbers or names, by row, read alone; None where images have no columns.

    Raises:
        DataError: the column is missing or of the wrong type.
    """
    files = _parquet_files(path) if path not in EMBEDDED else []
    values = [value for file in files for value in _values(_table(file, [name]), file, name)]
    return values if files else None


def _parquet_files(path: Place) -> list[SourceFile]:
    """The files of a path that is no folder of images."""
    if isinstance(path, tuple):
        return [file for each in path for file in list_files(each)]
    filesystem, inside = open_filesystem(path)
    is_folder = filesystem.get_file_info(inside).type == fs.FileType.Directory
    return list_files(path, ("*.parquet",)) if not is_folder or _has_parquet(filesystem, inside) else []


def _digits() -> Rows:
    from sklearn.datasets import load_digits

    found = load_digits()
    # Values from 0 to 16.
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    return Rows(found.target.tolist(), None, Decoded(pixels, DIGITS), tuple(map(str, range(10))))


def _shapes(config: ShapesConfig, columns: Columns, *, held_out: bool) -> Rows:
    made = make_shapes(config, held_out=held_out)
    groups = made.groups(columns.group) if columns.group is not None else None
    images = Decoded(made.pixels, f"{SHAPES} held out" if held_out else SHAPES)
    return Rows(made.birds.tolist(), groups, images, BIRDS)


def _has_parquet(filesystem: fs.FileSystem, folder: str) -> bool:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    return any(info.type == fs.FileType.File and info.path.endswith(".parquet") for info in infos)


def _folders(filesystem: fs.FileSystem, folder: str, path: str) -> Rows:
    """One class for each subfolder, in the order of their names."""
    found = filesystem.get_file_info(fs.FileSelector(folder))
    classes = sorted(i.base_name for i in found if i.type == fs.FileType.Directory and not i.base_name.startswith("."))
    if not classes:
        raise DataError(f"{path}: neither Parquet files nor a subfolder of images for each class are there")
    paths, labels = list[str](), list[Value]()
    for label, name in enumerate(classes):
        for file in _images(filesystem, f"{folder}/{name}"):
            paths.append(file)
            labels.append(label)
    return Rows(labels, None, Files(filesystem, paths), tuple(classes))


def _images(filesystem: fs.FileSystem, folder: str) -> Iterator[str]:
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = sorted(info.path for info in infos if info.type == fs.FileType.File)
    yield from (path for path in paths if Path(path).suffix.lower() in SUFFIXES)


def _parquet(files: Sequence[SourceFile], columns: Columns) -> Rows:
    images, labels, groups, names = list[pa.ChunkedArray](), list[Value](), list[Value](), None
    for file in files:
        if file.format != "parquet":
            raise DataError(f"{file.path}: not a Parquet file; images come from Parquet files, or from folders")
        table = _table(file, columns.names(), columns)
        images.append(_image_column(table, file, columns.image))
        labels += _values(table, file, columns.label)
        if columns.group is not None:
            groups += _values(table, file, columns.group)
        names = names or _class_names(table.schema.metadata or {}, columns.label)
    encoded = Encoded(images, [file.path for file in files])
    return Rows(labels, groups if columns.group is not None else None, encoded, names)


def _table(file: SourceFile, names: list[str], columns: Columns | None = None) -> pa.Table:
    with open_parquet(file) as parquet:
        if columns is not None:
            _require_columns(file, parquet.schema_arrow, columns)
        there = parquet.schema_arrow.names
        for name in names:
            if name not in there:
                raise DataError(f"{file.path}: no column `{name}`; its columns: {', '.join(there)}")
        try:
            return parquet.read(names)
        except (OSError, ValueError) as error:
            raise DataError(f"{file.path}: cannot be read ({error})") from error


def _require_columns(file: SourceFile, schema: pa.Schema, columns: Columns) -> None:
    images = [field.name for field in schema if _holds_images(field.type)]
    labels = [field.name for field in schema if _holds_values(field.type)]
    asked = {"image": (columns.image, images), "label": (columns.label, labels), "group": (columns.group, labels)}
    for kind, (name, fitting) in asked.items():
        if name is not None and name not in schema.names:
            fits = f"set data.{kind}_column to one that fits: {', '.join(fitting)}" if fitting else "none of them fits"
            raise DataError(f"{file.path}: no column `{name}`; its columns: {', '.join(schema.names)}; {fits}")


def _holds_images(kind: pa.DataType) -> bool:
    kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_values(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _image_column(table: pa.Table, file: SourceFile, name: str) -> pa.ChunkedArray:
    """The encoded images as binary values."""
    column, kind = table[name], table.schema.field(name).type
    if not _holds_images(kind):
        raise DataError(
            f"{file.path}: the column `{name}` holds {kind}; it must hold encoded images, as bytes or as Hugging "
            "Face's struct with `bytes`"
        )
    return pc.struct_field(column, "bytes") if pa.types.is_struct(kind) else column


def _values(table: pa.Table, file: SourceFile, name: str) -> list[Value]:
    kind = table.schema.field(name).type
    if not _holds_values(kind):
        raise DataError(f"{file.path}: the column `{name}` holds {kind}; it must hold whole numbers or names")
    values: list[Value] = table[name].to_pylist()
    return values


def _class_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """What Hugging Face's data sets say of a label column."""
    try:
        feature: Any = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def image_files(path: Place) -> dict[str, int]:
    """Files of image data and their bytes: all Parquet files, or of folders the first image of each class.

    Raises:
        DataError: nothing is there.
    """
    if path in EMBEDDED:
        return {}
    if files := _parquet_files(path):
        return {file.path: file.size for file in files}
    assert isinstance(path, str)
    filesystem, inside = open_filesystem(path)
    images = _folders(filesystem, inside, path)
    assert isinstance(images.images, Files)
    first = {label: images.images.path(row) for row, label in reversed(list(enumerate(images.labels)))}
    return {file: filesystem.get_file_info(file).size for file in first.values()}


def file_states(path: Place) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files of image data, which tell whether they are still the same.

    Raises:
        DataError: nothing is there.
    """
    if path in EMBEDDED:
        return []
    if files := _parquet_files(path):
        there = [filesystem.get_file_info(inside) for filesystem, inside in (open_filesystem(f.path) for f in files)]
    else:
        assert isinstance(path, str)
        filesystem, folder = open_filesystem(path)
        there = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    return sorted((info.path, info.size, info.mtime_ns) for info in there)


def files_digest(files: dict[str, int]) -> str:
    """sha256 over the names and sizes of files; what is in them is not read."""
    text = "\n".join(f"{Path(path).name} {size}" for path, size in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()
