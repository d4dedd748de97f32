"""A `str` is a text, a `pathlib.Path` a file or folder; nothing is guessed."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

import kgpt
from kgpt.text import document_pieces, documents


class ByteTokenizer:
    vocabulary_size, end_of_text_id = 257, 256

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def train(files_or_texts, tmp_path):
    tokenizer = kgpt.Tokenizer.train(files_or_texts, style="characters", special_tokens=())
    return {tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)}


def write(files_or_texts, tmp_path):
    path = tmp_path / "tokens" / "train.npy"
    kgpt.data.write_tokens(files_or_texts, ByteTokenizer(), path, progress=False)
    return bytes(i for i in np.load(path).tolist() if i < 256).decode()


def read(files_or_texts, tmp_path):
    return list(documents(files_or_texts))


readers = pytest.mark.parametrize("reader", [read, train, write])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a file and a folder that words of a text name."""
    (tmp_path / "notes").write_text("secret")
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("zzz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "N/A",
        "24/7",
        "node.js",
        "missing.txt",
        "no/such/folder",
        "C:\\data\\train",
        "https://example.org/page.html",
        "nul\0byte",
        "U.S.",
        "3.14",
        "x" * 100_000,
        "a/" * 100_000,
    ],
)
def test_a_str_that_looks_like_a_path_is_a_text(text):
    whole = "".join(piece for piece, _ in document_pieces([text]))

    assert whole == text


@readers
def test_names_of_files_among_texts_are_not_read(folder, reader):
    column = ["notes", "/etc/hostname", "books", "N/A", "24/7", "node.js"]

    got = reader(column, folder)

    if reader is read:
        assert got == column
    elif reader is write:
        assert got == "".join(column)
    else:
        assert got - {"<unk>", "<|endoftext|>"} == set("".join(column))


def test_a_generator_of_texts_keeps_its_order_around_names_of_files(folder):
    column = ["notes", Path("notes"), "books", "a text", "notes"]

    assert list(documents(item for item in column)) == [
        "notes",
        "secret",
        "books",
        "a text",
        "notes",
    ]


@readers
@pytest.mark.parametrize("one", ["notes", "books/", "missing.txt", "To be or not to be", "a\n", ""])
def test_a_single_str_is_refused_with_both_ways_out(folder, reader, one):
    with pytest.raises(ValueError, match=r"Try Path\(\.\.\.\) for a file .* \[text\]"):
        reader(one, folder)


@readers
@pytest.mark.parametrize(
    "make",
    [
        lambda: ["notes"],
        lambda: ["notes", "books"],
        lambda: ("books/", "notes"),
        lambda: [Path("notes"), "notes"],
        lambda: np.array(["notes", "books"]),
        lambda: (name for name in ["notes", "books"]),
    ],
)
def test_only_names_of_files_are_refused_with_the_hint_to_pass_paths(folder, reader, make):
    with pytest.raises(ValueError, match=r"name of a file or folder.*Try \[Path\(name\)"):
        reader(make(), folder)


@readers
def test_paths_are_read(folder, reader):
    got = reader([Path("notes"), Path("books"), "a text"], folder)

    if reader is read:
        assert got == ["secret", "zzz", "a text"]
    elif reader is write:
        assert got == "secretzzza text"
    else:
        assert got - {"<unk>", "<|endoftext|>"} == set("secretzzza text")


@readers
def test_a_missing_path_is_refused(folder, reader):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        reader(Path("missing.txt"), folder)


def test_a_pipe_is_read_from_its_beginning(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["words " * 30_000])
    writer.start()

    [text] = documents(tmp_path / "pipe")
    writer.join()

    assert text == "words " * 30_000


@pytest.mark.parametrize("kind", [str, Path])
def test_an_argument_called_path_takes_both(tmp_path, kind):
    pytest.importorskip("pyarrow", reason="tables are read by pyarrow (the extra `tables`)")
    tokenizer = kgpt.Tokenizer.train(["ab"], style="characters")
    (tmp_path / "a.csv").write_text("text\nab\n")

    tokenizer.save(kind(tmp_path / "tokenizer.json"))
    loaded = kgpt.Tokenizer.from_file(kind(tmp_path / "tokenizer.json"))
    written = kgpt.data.write_tokens(
        ["ab" * 5], loaded, kind(tmp_path / "train.npy"), progress=False
    )
    windows = kgpt.data.windows(kind(tmp_path / "train.npy"), sequence_length=5, batch_size=1)
    texts = kgpt.data.read_texts(kind(tmp_path / "a.csv"))

    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert written.path == tmp_path / "train.npy"
    assert len(windows) == 2
    assert list(texts) == ["ab"]


def test_the_standard_library_is_paths():
    assert all(isinstance(file, Path) for file in kgpt.data.standard_library_files())
