"""Tables on disk -> the texts of one column, streamed by pyarrow."""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kgpt.arguments import checked
from kgpt.text import (
    TABLES,
    check_encoding,
    chunks_of_file,
    compression_of,
    open_file,
    shorten,
    stream_of,
    table_format,
)

_CHUNK_LENGTH = 2**20  # characters
_BLOCK_LENGTH = 2**23  # bytes; a longer row makes it double
_ROWS_AT_ONCE = 2**8  # of a .parquet file


@checked
def read_texts(
    path: str | os.PathLike,
    column: str = "text",
    errors: str = "strict",
    encoding: str = "utf-8",
) -> "TableTexts":
    """Reads the texts of one column of a table, for `Tokenizer.train` and `write_tokens`.

    The table is `.jsonl` or `.ndjson` (an object in each line), `.csv` or `.tsv` (the first line
    has the names of the columns) or `.parquet`, also compressed as `.gz`, `.xz`, `.bz2`, or `.zst`
    if zstandard is installed. It is read by pyarrow (`pip install pyarrow`), a few rows at a time.

    There is one text for each row; a missing value is an empty text, which tokenizers and corpora
    skip. In `.csv` all values are texts: `N/A` stays `N/A`.

    Args:
        path: str or `pathlib.Path`. A table, or a folder of tables: all below it, in sorted order
            and without hidden ones.
        column: name of the column.
        errors: `"strict"` or `"replace"`. Whether bytes that are not of the encoding raise, or are
            read as the replacement character U+FFFD.
        encoding: str. The encoding of files without a byte order mark.

    Returns:
        `TableTexts`, an iterable of str that starts at the first row each time it is iterated.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ImportError: if pyarrow is not installed, or zstandard for a `.zst` file.
        ValueError: if a file is not such a table or is malformed, and if the column does not exist
            or holds something other than texts.

    Example:
        texts = kgpt.data.read_texts("reviews.csv.gz", column="review")
        tokenizer = kgpt.Tokenizer.train(texts, vocabulary_size=8192)
    """
    check_encoding(encoding, errors)
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _is_visible_table(file, path)]
    else:
        files = [path]
    if not path.exists():
        raise FileNotFoundError(f"There is no such file or folder. Received: path={str(path)!r}.")
    if not files or not all(map(table_format, files)):
        raise ValueError(
            f"path must be a table ({', '.join(TABLES)}, plain or compressed), or a folder of "
            f"them. Received: path={str(path)!r}. Text files need no reader: try Path(...) itself."
        )
    if not isinstance(column, str):
        raise ValueError(f"column must be the name of one column. Received: column={column!r}.")
    return TableTexts(files, column, errors, encoding)


class TableTexts:
    """The texts of a column of one table or several, as `read_texts` returns them.

    Iterating yields one str for each row, and starts at the first row each time.
    """

    def __init__(self, files: list[Path], column: str, errors: str, encoding: str):
        self._files, self._column = files, column
        self._errors, self._encoding = errors, encoding
        for file in files:
            columns = _FORMATS[table_format(file)][0]
            with _errors_of(file, column), self._open(file) as stream:
                _check_column(file, column, columns(stream))

    def __iter__(self) -> Iterator[str]:
        for file in self._files:
            with _errors_of(file, self._column):
                yield from self._texts(file)

    def __repr__(self) -> str:
        files = [str(file) for file in self._files]
        return f"TableTexts({files[0] if len(files) == 1 else files}, column={self._column!r})"

    def _open(self, file: Path) -> BinaryIO:
        """Returns the bytes of a file, decompressed and, if it is text, in UTF-8."""
        if table_format(file) == ".parquet":
            return _seekable(file)
        chunks = chunks_of_file(file, self._errors, _CHUNK_LENGTH, self._encoding)
        return stream_of(chunk.encode() for chunk in chunks)

    def _texts(self, file: Path) -> Iterator[str]:
        import pyarrow

        batches, num_read, block_length = _FORMATS[table_format(file)][1], 0, _BLOCK_LENGTH
        while True:
            to_skip = num_read
            try:
                with self._open(file) as stream:
                    for batch in batches(stream, self._column, block_length):
                        texts = _as_texts(batch.column(0), self._errors)
                        for text in texts[to_skip:]:
                            yield text or ""
                        num_read += len(texts[to_skip:])
                        to_skip = max(0, to_skip - len(texts))
                return
            except pyarrow.ArrowInvalid as error:
                if "straddling" not in str(error):
                    raise
                block_length *= 2  # a row is longer than a block: reads on with longer ones


@contextlib.contextmanager
def _errors_of(file: Path, column: str) -> Iterator[None]:
    """Raises pyarrow's errors with the name of the file."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f"Tables are read by pyarrow, which is not installed. Received: {file}. "
            "Try `pip install pyarrow`."
        ) from error
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not pyarrow's
            raise
        raise ValueError(
            f"The table can't be read: {error}. Received: {file}, column={column!r}. Try to repair "
            "the file, or to read it by another package and pass a list of its texts."
        ) from error


def _is_visible_table(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not is_hidden and file.is_file() and bool(table_format(file))


def _seekable(file: Path) -> BinaryIO:
    """Returns a file to read at any place: decompressed on disk, if need be."""
    if not compression_of(file):
        return open(file, "rb")
    decompressed = tempfile.TemporaryFile()  # noqa: SIM115
    with open_file(file) as stream:
        shutil.copyfileobj(stream, decompressed)
    decompressed.seek(0)
    return decompressed


def _check_column(file: Path, column: str, columns: list[tuple[str, str]]) -> None:
    types = [kind for name, kind in columns if name == column]
    if len(types) != 1:
        number = "are several columns of this name" if types else "is no such column"
        raise ValueError(
            f"There {number} in the table. Received: column={column!r} for {file}, which "
            f"has the columns {[name for name, _ in columns]}."
        )
    if types[0] not in _TEXT_TYPES:
        raise ValueError(
            f"The column must hold texts. Received: column={column!r} of {file}, which holds "
            f"{types[0]}."
        )


def _as_texts(column, errors: str) -> list[str | None]:
    """Returns an array of pyarrow's as a list; of a `.parquet`, its bytes may be no text."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise OSError(f'not UTF-8 text, {error.reason}; errors="replace" reads it') from error
    import pyarrow

    plain = getattr(column, "dictionary_decode", lambda: column)()
    texts = plain.cast(pyarrow.large_binary()).to_pylist()
    return [text if text is None else text.decode(errors=errors) for text in texts]


# === Formats: the columns' names and types, and batches of rows ===

_TEXT_TYPES = ("string", "large_string", "string_view", "null")


def _columns_of_csv(stream: BinaryIO, delimiter: str = ",") -> list[tuple[str, str]]:
    lines = io.TextIOWrapper(stream, "utf-8", newline="")
    return [(name, "string") for name in next(csv.reader(lines, delimiter=delimiter), [])]


def _batches_of_csv(stream: BinaryIO, column: str, block_length: int, delimiter: str = ","):
    import pyarrow
    import pyarrow.csv

    return pyarrow.csv.open_csv(
        stream,
        pyarrow.csv.ReadOptions(use_threads=False, block_size=block_length),
        pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(
            include_columns=[column], column_types={column: pyarrow.string()}
        ),
    )


def _columns_of_json(stream: BinaryIO) -> list[tuple[str, str]]:
    """Returns the columns of the first rows, any of which may lack some."""
    types, length = {}, 0
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise OSError(f"line {number} is not JSON, {error}") from error
        if not isinstance(row, dict):
            raise OSError(f"line {number} is not an object, but {shorten(row)}")
        for name, value in row.items():
            if types.get(name, "null") == "null":
                kind = "string" if isinstance(value, str) else type(value).__name__
                types[name] = "null" if value is None else kind
        length += len(line)
        if length > _CHUNK_LENGTH:
            break
    return list(types.items())


def _batches_of_json(stream: BinaryIO, column: str, block_length: int):
    import pyarrow
    import pyarrow.json

    return pyarrow.json.open_json(
        stream,
        pyarrow.json.ReadOptions(use_threads=False, block_size=block_length),
        pyarrow.json.ParseOptions(
            explicit_schema=pyarrow.schema([(column, pyarrow.string())]),
            unexpected_field_behavior="ignore",
        ),
    )


def _columns_of_parquet(stream: BinaryIO) -> list[tuple[str, str]]:
    import pyarrow.parquet

    schema = pyarrow.parquet.ParquetFile(stream).schema_arrow
    is_coded = pyarrow.types.is_dictionary
    types = [field.type.value_type if is_coded(field.type) else field.type for field in schema]
    return list(zip(schema.names, map(str, types), strict=True))


def _batches_of_parquet(stream: BinaryIO, column: str, block_length: int):
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream)
    return file.iter_batches(_ROWS_AT_ONCE, columns=[column])


_CSV, _JSON = (_columns_of_csv, _batches_of_csv), (_columns_of_json, _batches_of_json)
_FORMATS = {
    ".csv": _CSV,
    ".tsv": tuple(functools.partial(function, delimiter="\t") for function in _CSV),
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".parquet": (_columns_of_parquet, _batches_of_parquet),
}
