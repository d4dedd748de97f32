"""Text -> one token file on disk; the Python standard library as a corpus."""

import contextlib
import itertools
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from kgpt.arguments import checked
from kgpt.console import ProgressLine, warn
from kgpt.data.checksums import GrowingChecksums
from kgpt.data.split import split
from kgpt.files import make_folder, written_whole
from kgpt.text import document_pieces

_NOT_LIBRARY_CODE = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3"
}  # fmt: skip
_PIECE_LENGTH = 2**17  # characters; a batch has many pieces, which use all cores
_BATCH_LENGTH = 2**22  # characters encoded at once
_BATCH_PIECES = 2**13


class WrittenTokens(NamedTuple):
    """What `write_tokens` wrote."""

    path: Path
    num_tokens: int
    num_documents: int
    validation_path: Path | Any = None  # None if there is none; so, to type checkers, a path
    num_validation_tokens: int = 0
    num_validation_documents: int = 0


def standard_library_files() -> list[Path]:
    """Returns the Python files of the standard library: a real corpus that needs no download.

    Excluded are tests, installed packages, IDLE and lib2to3, and files that are empty or not
    UTF-8. The corpus has about 10 MB and differs slightly between versions of Python.

    Returns:
        list of `pathlib.Path`, sorted.

    Example:
        tokenizer = kgpt.Tokenizer.train(kgpt.data.standard_library_files(), 8192)
    """
    library = Path(sysconfig.get_path("stdlib"))
    return [
        file
        for file in sorted(library.rglob("*.py"))
        if not _NOT_LIBRARY_CODE.intersection(file.relative_to(library).parts)
        and _is_utf8_text(file)
    ]


@checked
def write_tokens(
    files_or_texts: os.PathLike | Iterable[str | os.PathLike],
    tokenizer,
    path: str | os.PathLike,
    validation_fraction: float = 0.0,
    errors: str = "strict",
    end_of_text: bool = True,
    progress: bool = True,
    encoding: str = "utf-8",
) -> WrittenTokens:
    """Encodes text, on all cores and in bounded memory, and writes its tokens to one file.

    The file is a 1-D `.npy` array, `uint16` if the vocabulary has at most 65,536 tokens and
    `uint32` otherwise; `np.load(path, mmap_mode="r")` reads it. A second array behind it, which
    that leaves out, has the CRC-32 of each 65,536 bytes of tokens: `windows` compares them when it
    reads, so damaged tokens are not trained on. The file's folder is created if needed.
    Tokens are first written to a file `.*.partial.*` in the same folder, which is renamed when it
    is complete and removed after an error (a killed process leaves it). After a power cut each of
    the files is the earlier one or the new one, whole.

    With a `validation_fraction`, whole documents are held out and written to a second file:
    `corpus/train.validation.npy` beside `corpus/train.npy`. A hash of a document's text (its
    first 131,072 characters) decides. Hence a document stays in its file when the corpus is
    reordered or grows, and its copies go to the same file. The fraction is one of documents, and
    approximate. Without one, such a file of an earlier call stays, and a warning names it.

    Few documents (less than 32 on average in the smaller of the two files) may not be split well
    that way. If one of the files would get less than half or more than twice its share of the
    characters, the tails of the long documents are held out instead, cut between lines: of one
    book, its last pages.

    Args:
        files_or_texts: a `pathlib.Path` (file or folder), or an iterable of paths and texts. A
            `str` is a text. What is read is described at `kgpt.text.documents`.
        tokenizer: `kgpt.Tokenizer`.
        path: path of the file, which must end in `.npy`.
        validation_fraction: float in [0, 1). Fraction of the documents to hold out.
        errors: `"strict"` or `"replace"`. Whether bytes that are not of the encoding raise, or are
            read as the replacement character U+FFFD.
        end_of_text: bool. Whether to write the tokenizer's end-of-text token after each document.
        progress: bool. Whether to show how many tokens have been written.
        encoding: str. The encoding of files without a byte order mark.

    Returns:
        `WrittenTokens`, a named tuple: `path`, `num_tokens`, `num_documents`, and the same of the
        validation file (`validation_path` is `None` without one).

    Raises:
        ValueError: if an argument is out of range, the tokenizer has no end-of-text token, the
            text is empty, not of the encoding or no text at all (a single `str`, a table), or one
            of the two files would be empty.
        FileNotFoundError: if a path does not exist.
        OSError: if the file can't be written, with the reason; an existing one stays. On Windows
            no file is replaced that is open: delete the `windows` over it first.

    Example:
        kgpt.data.write_tokens(
            Path("books/"), tokenizer, "corpus/train.npy", validation_fraction=0.05
        )
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise ValueError(f'path must end in ".npy". Received: path={str(path)!r}.')
    if end_of_text and tokenizer.end_of_text_id is None:
        raise ValueError(
            "end_of_text=True needs a tokenizer with an end-of-text token. "
            "Received: end_of_text_id=None. Try end_of_text=False to join documents without one."
        )
    ending = [tokenizer.end_of_text_id] if end_of_text else []
    dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")
    held_out = path.with_suffix(".validation.npy")
    paths = [path, held_out] if validation_fraction else [path]

    make_folder(path.parent)
    with contextlib.ExitStack() as stack:
        files = []
        for part in paths:
            unfinished = stack.enter_context(written_whole(part))
            stream = stack.enter_context(unfinished.open("wb"))
            files.append(_TokenFile(part, stream, dtype))
        pieces = document_pieces(files_or_texts, errors, _PIECE_LENGTH, encoding)
        pieces = split(pieces, validation_fraction, path.parent)
        _encode(pieces, tokenizer, ending, files, progress)
        for file in files:
            if not file.num_tokens:
                raise ValueError(
                    f"There are no tokens for {file.path}. Received: "
                    f"{sum(file.num_documents for file in files)} documents, "
                    f"validation_fraction={validation_fraction}. "
                    "Try another validation_fraction, or more text."
                )
            file.complete()
    if not validation_fraction:
        _warn_of_earlier(held_out, path)
    counts = [(file.path, file.num_tokens, file.num_documents) for file in files]
    return WrittenTokens(*itertools.chain.from_iterable(counts))


def _warn_of_earlier(held_out: Path, path: Path):
    if held_out.exists():
        warn(
            f"{held_out} is of an earlier call and stays as it is: nothing is held out of the text "
            f"that {path.name} has now. Delete it, or pass a validation_fraction.",
        )


def _encode(
    pieces: Iterable[tuple[str, bool, int]],
    tokenizer,
    ending: list[int],
    files: list["_TokenFile"],
    progress: bool,
):
    """Writes the tokens of each piece to its file, and `ending` after each document."""
    line = ProgressLine()
    for batch in _batches(pieces):
        token_ids = tokenizer.encode_batch([text for text, _, _ in batch])
        for ids, (_, ends_document, file) in zip(token_ids, batch, strict=True):
            files[file].append(ids + ending if ends_document else ids, ends_document)
        if progress:
            line.update(f"{sum(file.num_tokens for file in files):,} tokens written ...")
    if progress:
        count = sum(file.num_tokens for file in files)
        line.finish(f"{count:,} tokens written in {line.seconds:.0f} s")


class _TokenFile:
    """A 1-D `.npy` file that grows, with checksums behind it."""

    def __init__(self, path: Path, stream: BinaryIO, dtype: np.dtype):
        self.path, self.stream, self.dtype = path, stream, dtype
        self.num_tokens = self.num_documents = 0
        self._checksums = GrowingChecksums()
        self._write_header()

    def append(self, token_ids: list[int], ends_document: bool):
        data = np.asarray(token_ids, self.dtype).tobytes()
        self.stream.write(data)
        self._checksums.update(data)
        self.num_tokens += len(token_ids)
        self.num_documents += ends_document

    def complete(self):
        np.lib.format.write_array(self.stream, self._checksums.array())
        self.stream.seek(0)
        self._write_header()

    def _write_header(self):
        # numpy pads the header so that its size does not depend on the length of the first axis
        description = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num_tokens,),
        }
        np.lib.format.write_array_header_1_0(self.stream, description)


def _batches(pieces: Iterable[tuple[str, bool, int]]) -> Iterator[list[tuple[str, bool, int]]]:
    batch, length = [], 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece[0])
        if length >= _BATCH_LENGTH or len(batch) == _BATCH_PIECES:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def _is_utf8_text(file: Path) -> bool:
    try:
        return bool(file.read_bytes().decode())
    except UnicodeDecodeError:
        return False
