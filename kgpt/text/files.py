"""Files and folders -> characters: encodings, compressed files, and what is no text."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kgpt.console import warn

TABLES = (".csv", ".jsonl", ".ndjson", ".parquet", ".tsv")
_BYTE_ORDER_MARKS = {  # UTF-32's first: one of them begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_SAMPLE_LENGTH = 2**16  # bytes read to recognize the encoding
_NUL_LENGTH = 2**13  # characters in which a NUL means that a file is binary
_MOST_NAMES = 10

_TABLE = 'tables, whose texts kgpt.data.read_texts(path, column="text") reads (by pyarrow)'
_BINARY = (
    "binary, or in an encoding that must be named, such as UTF-16 without a byte order mark: "
    'encoding="utf-16-le"'
)
_NO_ZSTANDARD = "compressed by zstandard, which is read if installed: pip install zstandard"
_LINK = "links to folders, which are not followed"
_NO_FILE = "broken links, or no ordinary files"


def check_encoding(encoding: str, errors: str) -> None:
    """Raises ValueError for an unknown encoding, or another `errors` than the two."""
    if errors not in ("strict", "replace"):
        raise ValueError(f'errors must be "strict" or "replace". Received: errors={errors!r}.')
    try:
        b"  ".decode(encoding, "replace")  # refuses codecs that are not of text, such as "base64"
        codecs.getincrementaldecoder(encoding)
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"encoding must be the name of a text encoding. Received: encoding={encoding!r}. "
            'Try "utf-8", "utf-16", "latin-1" or "cp1252".'
        ) from error


# === Reading a file ===


def chunks_of_file(file: Path, errors: str, length: int, encoding: str) -> Iterator[str]:
    """Yields the characters of a file, decompressed, in chunks of about `length`.

    Raises:
        ValueError: for bytes that are not of the encoding, and for damaged compressed files.
    """
    with open_file(file) as stream:
        head = stream.read(4)
        mark, encoding = _byte_order_mark(head, encoding)
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        block, offset = head[len(mark) :] + stream.read(length), len(mark)
        while True:
            undecoded = len(decoder.getstate()[0])  # the beginning of a character
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeError as error:
                raise _not_encoded(file, encoding, error, offset - undecoded) from error
            yield text
            if not block:
                return
            offset += len(block)
            block = stream.read(length)


def _not_encoded(file: Path, encoding: str, error: UnicodeError, offset: int) -> ValueError:
    """Returns what to raise for the bytes from `offset` on, whose decoding failed."""
    if not isinstance(error, UnicodeDecodeError):  # of UTF-16 and UTF-32, without a mark
        name = codecs.lookup(encoding).name
        return ValueError(
            f"The file is not {name} text: {error}. Received: {file}. "
            f'Try encoding="{name}-le" or "{name}-be".'
        )
    return ValueError(
        f"The file is not {_name(encoding)} text: {error.reason}. Received: {file}, "
        f"with byte 0x{error.object[error.start]:02x} at offset {offset + error.start}. "
        'Try errors="replace", encoding="cp1252" (or the one that it has), or convert '
        "the file to UTF-8."
    )


def _name(encoding: str) -> str:
    return "UTF-8" if codecs.lookup(encoding).name == "utf-8" else encoding


def _byte_order_mark(head: bytes, encoding: str) -> tuple[bytes, str]:
    """Returns the byte order mark that a file begins with, or none, and its encoding."""
    for mark, marked_encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return mark, marked_encoding
    return b"", encoding


# === Compressed files ===


@contextlib.contextmanager
def open_file(file: Path) -> Iterator[BinaryIO]:
    """Opens a file of bytes, decompressed if its name ends in `.gz`, `.xz`, `.bz2` or `.zst`.

    Raises:
        ImportError: for `.zst`, if zstandard is not installed.
        ValueError: for damaged compressed files.
    """
    openers = {"": open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    openers[".zst"] = _open_zstandard
    compression = compression_of(file)
    try:
        with openers[compression](file, "rb") as stream:
            yield stream
    except Exception as error:
        if not compression or not _is_damage(error):
            raise
        raise ValueError(
            f"The compressed file is damaged: {error}. Received: {file}. "
            "Try to decompress it by hand, or another copy."
        ) from error


def compression_of(file: Path) -> str:
    """Returns `".gz"`, `".xz"`, `".bz2"`, `".zst"`, or `""` for a file that is not compressed."""
    suffix = file.suffix.lower()
    return suffix if suffix in (".gz", ".xz", ".bz2", ".zst") else ""


def table_format(file: Path) -> str:
    """Returns the suffix of a table, such as `".csv"` of `reviews.csv.gz`; `""` for other files."""
    suffix = Path(file.stem if compression_of(file) else file).suffix.lower()
    return suffix if suffix in TABLES else ""


def _is_damage(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno is None  # as gzip and bz2 raise it; the system's own errors have one
    is_known = isinstance(error, EOFError | zlib.error | lzma.LZMAError)
    return is_known or type(error).__name__ == "ZstdError"


def _open_zstandard(file: Path, mode: str) -> BinaryIO:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(
            f"A .zst file is read by zstandard, which is not installed. Received: {file}. "
            "Try `pip install zstandard`."
        ) from error

    def chunks():
        # zstandard's own reader takes a file that was cut off for a complete one.
        decompressor, frame = zstandard.ZstdDecompressor(max_window_size=2**31), None
        with open(file, mode) as stream:
            while block := stream.read(2**14):
                while block:
                    frame = frame or decompressor.decompressobj()
                    yield frame.decompress(block)
                    block = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
        if frame:
            raise EOFError("the file ended before the end of its last frame")

    return stream_of(chunks())


def stream_of(chunks: Iterable[bytes]) -> BinaryIO:
    """Returns chunks of bytes as a binary file to read from."""
    return io.BufferedReader(_Chunks(chunks))


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterable[bytes]):
        self._chunks, self._rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            try:
                self._rest = memoryview(next(self._chunks))
            except StopIteration:
                return 0
        part = self._rest[: len(buffer)]
        buffer[: len(part)] = part
        self._rest = self._rest[len(part) :]
        return len(part)


# === Files that are no text ===


def check_file(file: Path, encoding: str) -> None:
    """Raises ValueError for a file that is a table or binary, and can't be read as text."""
    if why := _why_unread(file, encoding):
        if why == _NO_ZSTANDARD:
            with open_file(file):  # raises the ImportError
                pass
        raise ValueError(f"The file can't be read as text. Received: {file}. Such files are {why}.")


def text_files(folder: Path, errors: str, encoding: str) -> list[Path]:
    """Returns the text files below a folder, in sorted order, without hidden ones.

    Warns of files that are not read, with their number, names and the reason.

    Raises:
        ValueError: with `errors="strict"`, if there are files in another encoding, with their
            number and names; and if files are unread and no other is left.
    """
    read, undecodable, unread = [], [], {}
    for file, why in _walk(folder):
        why = why or _why_unread(file, encoding)
        if why:
            unread.setdefault(why, []).append(file)
            continue
        read.append(file)
        if errors == "strict" and not _is_encoded(file, encoding):
            undecodable.append(file)
    if undecodable:
        raise ValueError(
            f"The folder has {_count(undecodable)} that are not {_name(encoding)} text: "
            f"{_names(undecodable, folder)}. Received: {folder}. Try "
            'encoding="cp1252" (or the one that they have), errors="replace", or convert them to '
            "UTF-8."
        )
    if unread:
        reasons = "; ".join(
            f"{_count(files)} ({_names(files, folder)}), as they are {why}"
            for why, files in unread.items()
        )
        message = f"Not read in the folder {folder}: {reasons}."
        if not read:
            raise ValueError(f"There is no text to read. {message}")
        warn(message)
    return read


def _walk(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yields what is in a folder, with the reason why it can't be opened, or None."""

    def fail(error):
        raise error

    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in subfolders:
            if os.path.islink(os.path.join(parent, name)):
                yield Path(parent, name), _LINK
        for name in sorted(names):
            if not name.startswith("."):
                file = Path(parent, name)
                yield file, None if file.is_file() else _NO_FILE


def _why_unread(file: Path, encoding: str) -> str | None:
    """Returns the reason why a file is not read as text, or None."""
    if table_format(file):
        return _TABLE
    try:
        sample = _sample(file)
    except ImportError:
        return _NO_ZSTANDARD
    mark, encoding = _byte_order_mark(sample[:4], encoding)
    text = sample[len(mark) : _NUL_LENGTH].decode(encoding, "replace")
    return _BINARY if "\0" in text else None


def _is_encoded(file: Path, encoding: str) -> bool:
    sample = _sample(file)
    mark, encoding = _byte_order_mark(sample[:4], encoding)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    try:
        decoder.decode(sample[len(mark) :], final=len(sample) < _SAMPLE_LENGTH)
    except UnicodeError:
        return False
    return True


def _sample(file: Path) -> bytes:
    with open_file(file) as stream:
        return stream.read(_SAMPLE_LENGTH)


def _count(files: list[Path]) -> str:
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}"


def _names(files: list[Path], folder: Path) -> str:
    names = [file.relative_to(folder).as_posix() for file in files[:_MOST_NAMES]]
    if len(files) > _MOST_NAMES:
        names.append(f"and {len(files) - _MOST_NAMES} others")
    return ", ".join(names)
