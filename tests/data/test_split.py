"""One book: few documents give a validation file too, the tails of long ones, cut between lines."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_corpus import decode, write

import kgpt
from kgpt.data import corpus
from kgpt.data.split import split

FRACTIONS = [0.01, 0.05, 0.3, 0.5, 0.9]


def book(number_of_lines, name="book"):
    return "".join(f"line {i} of the {name}\n" for i in range(number_of_lines))


def write_both(texts, folder, fraction):
    written = write(texts, folder / "train.npy", validation_fraction=fraction)
    return [decode(np.load(path)) for path in (written.path, written.validation_path)]


def split_texts(pieces, fraction, folder):
    """The documents of both files."""
    sides, parts = ([], []), ["", ""]
    for text, ends_document, file in split(pieces, fraction, folder):
        assert text
        parts[file] += text
        if ends_document:
            sides[file].append(parts[file])
            parts[file] = ""
    assert parts == ["", ""]
    return sides


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("lines", [100, 20_000])  # the second in several pieces
def test_of_one_book_the_last_lines_are_held_out(tmp_path, fraction, lines):
    text = book(lines)

    [head], [tail] = write_both([text], tmp_path, fraction)

    assert head + tail == text
    assert head.endswith("\n")
    assert len(tail) / len(text) == pytest.approx(fraction, abs=30 / len(text))


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 30, 100])
def test_any_number_of_documents_gives_both_files_their_share(tmp_path, fraction, count):
    texts = [book(200 + 50 * (i % 3), f"book {i}") for i in range(count)]
    lines = {line for text in texts for line in text.splitlines()}

    train, held_out = write_both(texts, tmp_path, fraction)

    total, held_out_length = sum(map(len, texts)), sum(map(len, held_out))
    assert sum(map(len, train)) + held_out_length == total
    assert fraction / 2 <= held_out_length / total <= 2 * fraction
    assert {line for text in train + held_out for line in text.splitlines()} == lines


def test_a_book_among_notes_gives_its_tail(tmp_path):
    notes = [f"note {i}\n" for i in range(200)]

    train, held_out = write_both([*notes, book(5000)], tmp_path, 0.05)

    assert len(held_out) == 1
    assert held_out[0].endswith("line 4999 of the book\n")
    assert len(train) == 201


def test_copies_are_cut_at_the_same_place(tmp_path):
    texts = [book(100), "note\n", book(100), book(100)]

    train, held_out = write_both(texts, tmp_path, 0.1)

    assert len(set(held_out)) == 1
    assert len(set(train)) == 2


def test_documents_that_the_hash_splits_well_stay_whole(tmp_path):
    texts = [book(10 + i % 5, f"book {i}") for i in range(2000)]

    train, held_out = write_both(texts, tmp_path, 0.1)

    assert sorted(train + held_out) == sorted(texts)


def test_many_documents_are_split_by_the_hash_alone(tmp_path):
    """The golden split: BLAKE2b's first 8 bytes as a share of 2^64, below the fraction."""
    texts = [f"text {i}\n" for i in range(1000)]

    train, held_out = split_texts(((text, True) for text in texts), 0.05, tmp_path)

    assert len(train) + len(held_out) == 1000
    assert held_out[:3] == ["text 16\n", "text 32\n", "text 38\n"]


def test_long_lines_are_cut_between_words_and_long_words_anywhere(tmp_path):
    words = [f"word{i}" for i in range(1000)]

    [head], [tail] = write_both([" ".join(words)], tmp_path, 0.2)
    [start], [end] = write_both(["x" * 1000], tmp_path, 0.2)

    assert head.split() + tail.split() == words
    assert (len(start), len(end)) == (800, 200)


def test_a_short_last_line_is_not_the_whole_tail(tmp_path):
    [_], [tail] = write_both(["a word " * 200 + "\nend"], tmp_path, 0.5)

    assert 500 < len(tail) < 900


@pytest.mark.parametrize("newline", ["\r\n", "\r", "\n"])
def test_lines_of_every_system_are_kept_whole(tmp_path, newline):
    text = book(100).replace("\n", newline)

    [head], [tail] = write_both([text], tmp_path, 0.1)

    assert head + tail == text
    assert head.endswith(newline)
    assert tail.startswith("line")


@given(
    texts=st.lists(st.text("ab \r\n", min_size=1, max_size=40), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.99),
    piece_length=st.integers(1, 20),
)
@example(  # the head of one is another one
    texts=["b", "aaa ", "aaaaaa", "aaaaaa", "aaaaaaaaa", "b\naaa aaaaaaaaa"],
    fraction=0.9140625,
    piece_length=6,
)
@settings(deadline=None)
def test_no_character_is_lost_or_moved(tmp_path_factory, texts, fraction, piece_length):
    pieces = kgpt.text.document_pieces([text + "\n" for text in texts], piece_length=piece_length)

    train, held_out = split_texts(pieces, fraction, tmp_path_factory.getbasetemp())

    wholes = sorted(text + "\n" for text in texts)
    if len(train + held_out) == len(wholes):  # none was cut
        assert sorted(train + held_out) == wholes
    assert sum(map(len, train + held_out)) == sum(map(len, wholes))
    assert all(any(whole.startswith(text) for whole in wholes) for text in train)
    assert all(any(whole.endswith(text) for whole in wholes) for text in held_out)


def test_a_generator_and_files_are_split_like_a_list(tmp_path):
    text = book(1000)
    (tmp_path / "book.txt").write_text(text)
    (tmp_path / "tokens").mkdir()

    sides = [
        write_both(source, tmp_path / "tokens", 0.1)
        for source in ([text], (text for _ in range(1)), tmp_path / "book.txt")
    ]

    assert sides[0] == sides[1] == sides[2]
    assert {file.name for file in (tmp_path / "tokens").iterdir()} == {
        "train.npy",
        "train.validation.npy",
    }


def test_the_tokens_of_both_parts_are_those_of_their_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE_LENGTH", 1000)
    text = book(500)
    tokenizer = kgpt.Tokenizer.train([text], vocabulary_size=300)

    written = kgpt.data.write_tokens(
        [text], tokenizer, tmp_path / "train.npy", validation_fraction=0.1, progress=False
    )
    ids = [np.load(path)[:-1].tolist() for path in (written.path, written.validation_path)]
    head, tail = map(tokenizer.decode, ids)

    assert head + tail == text
    assert ids == [tokenizer.encode(head), tokenizer.encode(tail)]
    assert (written.num_documents, written.num_validation_documents) == (1, 1)


@pytest.mark.parametrize("text", ["a", "ab"])
def test_a_text_too_short_for_both_files_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"There are no tokens for .*more text"):
        write([text], tmp_path / "train.npy", validation_fraction=0.05)

    assert list(tmp_path.iterdir()) == []
