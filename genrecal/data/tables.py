"""Tables: parquet files, and data sets that `datasets` saved to disk.

A parquet file cannot be read at one row, so its image bytes come with the row and are copied into the
cache. A data set on disk can: its images stay there as DatasetImages, and no pixel is read before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genrecal.core.errors import DataError
from genrecal.data.conversation import CONVERSATIONS, KNOWN_COLUMNS
from genrecal.data.references import DatasetImage, opened_dataset
from genrecal.data.rows import Row, Rows

PARQUET_BATCH = 64  # rows in memory at a time, images and all
DATASET_BATCH = 1024  # rows without their images


def parquet_rows(files: Sequence[Path]) -> Rows:
    """The rows of parquet files, one file after the other.

    Raises:
        DataError: a file is no parquet, or has no column with a conversation.
    """
    import pyarrow.parquet

    total = 0
    for file in files:
        try:
            opened = pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"is no readable parquet file ({_line(error)})", where=file) from None
        _require_conversation(opened.schema_arrow.names, file)
        total += opened.metadata.num_rows
    return Rows(total=total, read=lambda: _read_parquet(files))


def _read_parquet(files: Sequence[Path]) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    for file in files:
        opened = pyarrow.parquet.ParquetFile(file)
        columns = [name for name in opened.schema_arrow.names if name in KNOWN_COLUMNS]
        row_in_file = 0
        try:
            for batch in opened.iter_batches(batch_size=PARQUET_BATCH, columns=columns):
                for content in batch.to_pylist():
                    place = f"row {row_in_file}"
                    yield Row(number=number, file=file, place=place, content=content, done=number + 1)
                    number, row_in_file = number + 1, row_in_file + 1
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"cannot be read after row {row_in_file} ({_line(error)})", where=file) from None


def dataset_rows(folder: Path) -> Rows:
    """The rows of a data set on disk.

    Raises:
        DataError: no data set, one with several splits, or without a column with a conversation.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise DataError(
            f"holds the splits {', '.join(splits)}", where=folder, fix="Name one of them: FOLDER/SPLIT"
        )
    try:
        dataset = opened_dataset(folder)
    except (FileNotFoundError, ValueError, OSError, KeyError) as error:
        raise DataError(f"is no data set on disk ({_line(error)})", where=folder) from None
    _require_conversation(dataset.column_names, folder)
    return Rows(total=len(dataset), read=lambda: _read_dataset(folder, dataset))


def _read_dataset(folder: Path, dataset: Any) -> Iterator[Row]:
    columns = [name for name in dataset.column_names if name in KNOWN_COLUMNS]
    number = 0
    for table in dataset.select_columns(columns).iter(batch_size=DATASET_BATCH):
        for content in _without_bytes(table).to_pylist():
            for column in ("image", "images"):
                if content.get(column) is not None:
                    content[column] = _references(content[column], folder, column, number)
            yield Row(number=number, file=folder, place=f"row {number}", content=content, done=number + 1)
            number += 1


def _references(value: Any, folder: Path, column: str, row: int) -> list[Any]:
    """A reference for each cell that holds bytes; a cell with a path alone stays a path."""
    cells = value if isinstance(value, list) else [value]
    return [
        DatasetImage(folder=folder, column=column, row=row, place=place)
        if isinstance(cell, dict) and cell["held"]
        else cell["path"]
        if isinstance(cell, dict)
        else cell
        for place, cell in enumerate(cells)
    ]


def _without_bytes(table: Any) -> Any:
    """`table` with {"held": are there bytes, "path"} for each image: the bytes are not touched."""
    import pyarrow

    for column in ("image", "images"):
        if column in table.column_names:
            chunks = [_held(chunk) for chunk in table[column].chunks]
            if chunks:
                place = table.column_names.index(column)
                table = table.set_column(place, column, pyarrow.chunked_array(chunks))
    return table


def _held(array: Any) -> Any:
    import pyarrow
    from pyarrow import compute

    kind = array.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        lengths = compute.fill_null(compute.list_value_length(array), 0).cast(pyarrow.int32())
        ends = compute.cumulative_sum(lengths)
        offsets = pyarrow.concat_arrays([pyarrow.array([0], pyarrow.int32()), ends])
        return pyarrow.ListArray.from_arrays(offsets, _held(array.flatten()), mask=compute.is_null(array))
    if pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        fields = [compute.is_valid(compute.struct_field(array, "bytes")), compute.struct_field(array, "path")]
        return pyarrow.StructArray.from_arrays(fields, names=["held", "path"], mask=compute.is_null(array))
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        fields = [compute.is_valid(array), pyarrow.nulls(len(array), pyarrow.string())]
        return pyarrow.StructArray.from_arrays(fields, names=["held", "path"], mask=compute.is_null(array))
    return array


def _require_conversation(names: Sequence[str], where: Path) -> None:
    if not set(names) & set(CONVERSATIONS):
        raise DataError(
            f"has no column with conversations, but {', '.join(names)}",
            where=where,
            fix=f"Known are {', '.join(CONVERSATIONS)}",
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
