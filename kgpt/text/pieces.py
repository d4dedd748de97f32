"""Files, folders and strings -> documents, the input of tokenizers and corpora."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from kgpt.text.checks import check_no_table, shorten
from kgpt.text.files import check_encoding, check_file, chunks_of_file, text_files

_WORD_END = re.compile(r"(?s:.*)\S(?=[ \t\r\n])")  # greedy: the last word of the text


def documents(
    files_or_texts: os.PathLike | Iterable[str | os.PathLike],
    errors: str = "strict",
    encoding: str = "utf-8",
) -> Iterator[str]:
    r"""Yields documents from files, folders and texts, in bounded memory.

    A `str` is a text, one document, whatever it looks like. A `pathlib.Path` is a file (one
    document) or a folder (all text files below it, in sorted order; hidden ones are left out
    silently, a warning names all others that are not read). Files that end in `.gz`, `.xz`,
    `.bz2`, and `.zst` if zstandard is installed, are decompressed. Tables (`.csv`, `.tsv`,
    `.jsonl`, `.parquet`) are not text: `kgpt.data.read_texts` reads a column of one.

    Characters are unchanged: `"\r\n"` stays `"\r\n"`, and only a byte order mark at the start of
    a file is removed. Empty files and texts are skipped. A document of more than about 2 million
    characters is yielded in several pieces; `document_pieces` marks the end of each document.

    Args:
        files_or_texts: a `pathlib.Path`, or an iterable (list, generator ...) of paths and texts.
        errors: `"strict"` or `"replace"`. Whether bytes that are not of the encoding raise, or are
            read as the replacement character U+FFFD.
        encoding: str. The encoding of files without a byte order mark.

    Yields:
        str, never empty.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a single `str`, an iterable whose every `str` is the name of a file, a
            table, bytes that are not of the encoding (with file and byte offset, or all such files
            of a folder), and if there is no text at all.

    Example:
        for document in kgpt.text.documents([Path("books/"), "One more document."]):
            print(len(document))
    """
    for piece, _ in document_pieces(files_or_texts, errors, encoding=encoding):
        yield piece


def document_pieces(
    files_or_texts: os.PathLike | Iterable[str | os.PathLike],
    errors: str = "strict",
    piece_length: int = 2**21,
    encoding: str = "utf-8",
) -> Iterator[tuple[str, bool]]:
    r"""Yields the pieces of documents, and whether a piece is the last one of its document.

    A long document is split just before white space that follows another character. GPT-2's
    split pattern always begins a new word there, so the tokens of the pieces are the tokens of
    the document. Text without such a place is split after `8 * piece_length` characters.

    Args:
        files_or_texts: a path, or an iterable of paths and texts, as for `documents`.
        errors: `"strict"` or `"replace"`. Whether bytes that are not of the encoding raise, or are
            read as the replacement character U+FFFD.
        piece_length: int. Approximate number of characters in a piece of a long document.
        encoding: str. The encoding of files without a byte order mark.

    Yields:
        `(text, ends_document)`: str, never empty, and bool.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: as for `documents`.
    """
    check_encoding(encoding, errors)
    found_text = False
    for item in _items(files_or_texts):
        for source in _sources(item, errors, encoding):
            if isinstance(source, Path):
                chunks = chunks_of_file(source, errors, piece_length, encoding)
            else:
                chunks = _chunks_of_text(source, errors, piece_length)
            for piece in _pieces(chunks, piece_length):
                found_text = True
                yield piece
    if not found_text:
        raise ValueError(
            f"There is no text to read. Received: files_or_texts={shorten(files_or_texts)}. "
            "Try the pathlib.Path of a text file or of a folder of them, or a list of texts."
        )


def _items(files_or_texts) -> Iterable:
    if isinstance(files_or_texts, str):
        raise ValueError(
            "files_or_texts must be a pathlib.Path, or a list of paths and texts. "
            f"Received: the str {shorten(files_or_texts)}. Try Path(...) for a file or folder, or "
            "[text] for one text."
        )
    if isinstance(files_or_texts, os.PathLike):
        return [files_or_texts]
    check_no_table("files_or_texts", files_or_texts)
    if isinstance(files_or_texts, Iterable) and not isinstance(files_or_texts, bytes):
        return _texts_or_paths(files_or_texts)
    raise ValueError(
        "files_or_texts must be a path, or an iterable of paths and texts. "
        f"Received: {shorten(files_or_texts)} of type {type(files_or_texts).__name__}."
    )


def _texts_or_paths(items: Iterable) -> Iterator:
    """Yields the items, but raises ValueError if every `str` names a file or folder."""
    names, waiting = [], []  # the items from the first name on, until one is a text for sure
    is_undecided = True
    for item in items:
        if is_undecided and isinstance(item, str):
            if os.path.exists(item):
                names.append(item)
            else:
                is_undecided = False
                yield from waiting
                waiting = []
        if is_undecided and names:
            waiting.append(item)
        else:
            yield item
    if waiting:
        raise ValueError(
            "A str is a text, and every one of these is the name of a file or folder. "
            f"Received: {shorten(names)}. Try [Path(name) for name in ...] to read them. If they "
            "are texts, add a newline at their end."
        )


def _sources(item, errors: str, encoding: str) -> Iterable[str | Path]:
    """Returns the text itself, or the files of a path."""
    if isinstance(item, str):
        return [item]
    if not isinstance(item, os.PathLike):
        hint = ' Try [row["text"] for row in ...].' if isinstance(item, Mapping) else ""
        raise ValueError(
            "Each document must be a pathlib.Path or a str. "
            f"Received: {shorten(item)} of type {type(item).__name__}.{hint}"
        )
    path = Path(item)
    if path.is_dir():
        return text_files(path, errors, encoding)
    if not path.exists():
        raise FileNotFoundError(f"There is no such file or folder. Received: {path}.")
    if path.is_file():  # a pipe can be read only once
        check_file(path, encoding)
    return [path]


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
