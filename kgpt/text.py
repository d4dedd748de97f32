"""Files, folders and strings -> documents, the input of tokenizers and corpora."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_WORD_END = re.compile(r"(?s:.*)\S(?=[ \t\r\n])")  # greedy: the last word of the text
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}$")


def documents(
    files_or_texts: str | os.PathLike | Iterable[str | os.PathLike], errors: str = "strict"
) -> Iterator[str]:
    r"""Yields documents from files, folders and texts, in bounded memory.

    A `pathlib.Path` is a file (one document) or a folder (all text files below it, in sorted
    order, without hidden and binary ones). A `str` that names an existing file or folder is read
    like a `Path`; any other `str` is a text, one document. A `str` with a newline in it is always
    a text.

    Characters are unchanged: `"\r\n"` stays `"\r\n"`, and only a byte order mark at the start of
    a file is removed. Empty files and texts are skipped. A document of more than about 2 million
    characters is yielded in several pieces; `document_pieces` marks the end of each document.

    Args:
        files_or_texts: a path, a text, or an iterable (list, generator ...) of them.
        errors: `"strict"` or `"replace"`. Whether bytes that are not UTF-8 raise, or are read as
            the replacement character U+FFFD.

    Yields:
        str, never empty.

    Raises:
        FileNotFoundError: for a path that does not exist, and for a `str` that looks like one.
        ValueError: for bytes that are not UTF-8 (with file and byte offset), and if there is no
            text at all.

    Example:
        for document in kgpt.text.documents(["books/", "One more document."]):
            print(len(document))
    """
    for piece, _ in document_pieces(files_or_texts, errors):
        yield piece


def document_pieces(
    files_or_texts: str | os.PathLike | Iterable[str | os.PathLike],
    errors: str = "strict",
    piece_length: int = 2**21,
) -> Iterator[tuple[str, bool]]:
    r"""Yields the pieces of documents, and whether a piece is the last one of its document.

    A long document is split just before white space that follows another character. GPT-2's
    split pattern always begins a new word there, so the tokens of the pieces are the tokens of
    the document. Text without such a place is split after `8 * piece_length` characters.

    Args:
        files_or_texts: a path, a text, or an iterable of them, as for `documents`.
        errors: `"strict"` or `"replace"`. Whether bytes that are not UTF-8 raise, or are read as
            the replacement character U+FFFD.
        piece_length: int. Approximate number of characters in a piece of a long document.

    Yields:
        `(text, ends_document)`: str, never empty, and bool.

    Raises:
        FileNotFoundError: for a path that does not exist, and for a `str` that looks like one.
        ValueError: for bytes that are not UTF-8, and if there is no text at all.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f'errors must be "strict" or "replace". Received: errors={errors!r}.')
    found_text = False
    for item in _items(files_or_texts):
        for source in _sources(item):
            chunks = _chunks_of_file if isinstance(source, Path) else _chunks_of_text
            for piece in _pieces(chunks(source, errors, piece_length), piece_length):
                found_text = True
                yield piece
    if not found_text:
        raise ValueError(
            f"There is no text to read. Received: files_or_texts={shorten(files_or_texts)}. "
            "Try the path of a UTF-8 text file, a folder of them, or a list of texts."
        )


def _items(files_or_texts) -> Iterable:
    if isinstance(files_or_texts, (str, os.PathLike)):
        return [files_or_texts]
    if isinstance(files_or_texts, Iterable) and not isinstance(files_or_texts, bytes):
        return files_or_texts
    raise ValueError(
        "files_or_texts must be a path, a text, or an iterable of them. "
        f"Received: {shorten(files_or_texts)} of type {type(files_or_texts).__name__}."
    )


def _sources(item) -> Iterator[str | Path]:
    """Yields the text itself, or the files of a path."""
    if isinstance(item, str):
        if "\n" in item or not (os.path.exists(item) or _looks_like_a_path(item)):
            yield item
            return
    elif not isinstance(item, os.PathLike):
        raise ValueError(
            "Each document must be a pathlib.Path or a str. "
            f"Received: {shorten(item)} of type {type(item).__name__}."
        )
    path = Path(item)
    if path.is_dir():
        yield from _text_files(path)
    elif path.exists():
        yield path
    elif isinstance(item, str):
        raise FileNotFoundError(
            f"The text looks like a path, but there is no such file. Received: {item!r}. "
            "If it is a text, add a newline at its end."
        )
    else:
        raise FileNotFoundError(f"There is no such file or folder. Received: {path}.")


def _looks_like_a_path(text: str) -> bool:
    if not text or len(text) > 4096 or re.search(r"[\s\0]|://", text):
        return False
    return "/" in text or "\\" in text or _FILE_SUFFIX.search(text) is not None


def _text_files(folder: Path) -> Iterator[Path]:
    def fail(error):
        raise error

    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent, name)
            if not name.startswith(".") and file.is_file() and not _is_binary(file):
                yield file


def _is_binary(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"\0" in stream.read(8192)


def _chunks_of_file(file: Path, errors: str, length: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    with file.open("rb") as stream:
        if stream.read(3) != codecs.BOM_UTF8:
            stream.seek(0)
        while True:
            start = stream.tell() - len(decoder.getstate()[0])
            block = stream.read(length)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"The file is not UTF-8 text: {error.reason}. Received: {file}, with byte "
                    f"0x{error.object[error.start]:02x} at offset {start + error.start}. "
                    'Try errors="replace", or convert the file to UTF-8.'
                ) from error
            yield text
            if not block:
                return


def _chunks_of_text(text: str, errors: str, length: int) -> Iterator[str]:
    for start in range(0, len(text), length):
        chunk = text[start : start + length]
        try:
            chunk.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair
            if errors == "strict":
                raise ValueError(
                    f"The text is not valid Unicode: {error.reason}. Received: {shorten(text)}, "
                    f"with {text[start + error.start]!r} at character {start + error.start}. "
                    'Try errors="replace".'
                ) from error
            chunk = re.sub("[\ud800-\udfff]", "\ufffd", chunk)
        yield chunk


def _pieces(chunks: Iterable[str], length: int) -> Iterator[tuple[str, bool]]:
    rest = ""
    for chunk in chunks:
        rest += chunk
        if len(rest) < length:
            continue
        if word_end := _WORD_END.match(rest):
            cut = word_end.end()
        elif len(rest) >= 8 * length:
            cut = len(rest) - 1  # leaves a character, so that the last piece is never empty
        else:
            continue
        yield rest[:cut], False
        rest = rest[cut:]
    if rest:
        yield rest, True


def shorten(value, limit: int = 80) -> str:
    """Returns the beginning of a value's `repr`, for error messages."""
    text = repr(value[:limit] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[:limit] + "..."
