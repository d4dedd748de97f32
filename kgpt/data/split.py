"""Documents -> the training file or the validation file."""

import hashlib
import os
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator

TRAINING, VALIDATION = 0, 1
_ENOUGH = 32  # documents on the smaller side, on average; then whole ones give the fraction well
_IN_MEMORY = 2**24  # bytes of text
_LINE_END = re.compile(r"\r\n?|\n")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")


def split(
    pieces: Iterable[tuple[str, bool]], fraction: float, folder: str | os.PathLike
) -> Iterator[tuple[str, bool, int]]:
    """Yields each piece with its file, and whether it ends a document there.

    Whole documents are held out, chosen by a hash of their text. If there are so few that one of
    the two files would get less than half or more than twice its share of the characters, the tails
    of the long ones are held out instead.

    Args:
        pieces: `(text, ends_document)`, as `kgpt.text.document_pieces` yields them.
        fraction: float in [0, 1). What to hold out; 0 for nothing.
        folder: where to save the text of the first documents while they are counted.

    Yields:
        `(text, ends_document, file)`, file 0 for training and 1 for validation.
    """
    if not fraction:
        for text, ends_document in pieces:
            yield text, ends_document, TRAINING
        return
    pieces = _by_hash(pieces, fraction)
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=folder) as saved:
        most = _ENOUGH / min(fraction, 1 - fraction)
        documents, num_pieces = _read_ahead(pieces, saved, most)
        saved.seek(0)
        first = (pickle.load(saved) for _ in range(num_pieces))
        if len(documents) <= most and not _is_balanced(documents, fraction):
            first = _by_tails(first, documents, fraction)
        yield from first
    yield from pieces


def _by_hash(pieces, fraction: float) -> Iterator[tuple[str, bool, int]]:
    begins_document = True
    for text, ends_document in pieces:
        if begins_document:
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            is_held_out = int.from_bytes(digest) / 2**64 < fraction
            file = VALIDATION if is_held_out else TRAINING
        yield text, ends_document, file
        begins_document = ends_document


def _read_ahead(pieces: Iterator, saved, most: float) -> tuple[list[tuple[int, int]], int]:
    """Saves pieces until there are more than `most` documents, or until the end.

    Returns:
        Each document's length and file, and the number of pieces.
    """
    documents, length, num_pieces = [], 0, 0
    for text, ends_document, file in pieces:
        pickle.dump((text, ends_document, file), saved)
        num_pieces += 1
        length += len(text)
        if ends_document:
            documents.append((length, file))
            length = 0
            if len(documents) > most:
                break
    return documents, num_pieces


def _is_balanced(documents: list[tuple[int, int]], fraction: float) -> bool:
    total = sum(length for length, _ in documents)
    held_out = sum(length for length, file in documents if file == VALIDATION)
    shares = ((held_out, fraction * total), (total - held_out, (1 - fraction) * total))
    return all(wanted / 2 <= length <= 2 * wanted for length, wanted in shares)


# === Tails of long documents ===


def _by_tails(pieces, documents: list[tuple[int, int]], fraction: float) -> Iterator[tuple]:
    """Yields the pieces, the one where a document's tail begins in two."""
    lengths = [length for length, _ in documents]
    heads = iter(_head_lengths(lengths, fraction))
    remaining = iter(lengths)
    begins_document = True
    for text, ends_document, _ in pieces:
        if begins_document:
            position, length, head = 0, next(remaining), next(heads)
        begins_document = ends_document
        end = position + len(text)
        if position < head <= end and head < length:
            longest = len(text) - ends_document  # leaves a character for the tail
            # Each side gets at least half of what it should.
            bounds = max(1, head // 2 - position), min(longest, (head + length) // 2 - position)
            cut = _place_to_cut(text, head - position, *bounds)
            yield text[:cut], True, TRAINING
            if cut < len(text):
                yield text[cut:], ends_document, VALIDATION
        else:
            yield text, ends_document, VALIDATION if position >= head else TRAINING
        position = end


def _head_lengths(lengths: list[int], fraction: float) -> list[int]:
    """Returns where the tail of each document begins; at the end of those that are not cut."""
    total, long_total, shortest = sum(lengths), 0, 0
    for length in sorted(lengths, reverse=True):
        # Copies have the same length, and must be cut alike: one's tail is the other's, too.
        if long_total >= total * (1 + fraction) / 2 and length < shortest:
            break
        long_total, shortest = long_total + length, length
    share = fraction * total / long_total
    return [round(length * (1 - share)) if length >= shortest else length for length in lengths]


def _place_to_cut(text: str, target: int, shortest: int, longest: int) -> int:
    """Returns the end of a line that is nearest to the target, else of a word, else the target."""
    for pattern in (_LINE_END, _WORD_END):
        places = [found.end() for found in pattern.finditer(text)]
        places = [place for place in places if shortest <= place <= longest]
        if places:
            return min(places, key=lambda place: abs(place - target))
    return min(max(target, shortest), longest)
