import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgpt.data import corpus, standard_library_files, write_tokens
from kgpt.tokenizer import Tokenizer

WORDS = st.text("ab é\n", min_size=1, max_size=30).map(lambda text: text + "\n")


class ByteTokenizer:
    """A token for each byte, and one for the end of a text."""

    def __init__(self, vocabulary_size=257, end_of_text_id=256):
        self.vocabulary_size = vocabulary_size
        self.end_of_text_id = end_of_text_id

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def decode(token_ids):
    """The documents that a token file holds."""
    texts = "".join(chr(i) if i < 256 else "\0" for i in token_ids.tolist()).split("\0")
    assert texts.pop() == ""  # the last document is ended, too
    return [text.encode("latin-1").decode() for text in texts]


def write(texts, path, **options):
    return write_tokens(texts, ByteTokenizer(), path, progress=False, **options)


@given(texts=st.lists(WORDS, min_size=1, max_size=8))
@settings(deadline=None)
def test_the_file_holds_each_document_and_its_end(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("corpus") / "new" / "folder" / "train.npy"

    written = write(texts, path)
    tokens = np.load(path, mmap_mode="r")

    assert tokens.dtype == np.uint16
    assert decode(tokens) == texts
    assert written == (path, len(tokens), len(texts), None, 0, 0)


def test_a_document_in_many_pieces_ends_once(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE_LENGTH", 10)
    monkeypatch.setattr(corpus, "_BATCH_LENGTH", 25)
    texts = ["some words " * 20, "others\n", "more of them " * 9]

    written = write(texts, tmp_path / "train.npy")

    assert decode(np.load(written.path)) == texts
    assert written.num_documents == 3


def test_the_tokens_are_those_of_the_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE_LENGTH", 100)
    texts = [Path(__file__).read_text(encoding="utf-8"), "a text with <|endoftext|> in it\n"]
    tokenizer = Tokenizer.train(texts, vocabulary_size=300)

    written = write_tokens(texts, tokenizer, tmp_path / "train.npy", progress=False)

    expected = [i for text in texts for i in [*tokenizer.encode(text), tokenizer.end_of_text_id]]
    assert np.load(written.path).tolist() == expected


def test_a_large_vocabulary_is_written_as_uint32(tmp_path):
    tokenizer = ByteTokenizer(vocabulary_size=65_537, end_of_text_id=65_536)

    write_tokens(["a text"], tokenizer, tmp_path / "train.npy", progress=False)
    tokens = np.load(tmp_path / "train.npy")

    assert tokens.dtype == np.uint32
    assert tokens[-1] == 65_536


def test_without_an_end_of_text_token_the_user_has_to_say_so(tmp_path):
    tokenizer = ByteTokenizer(256, end_of_text_id=None)

    with pytest.raises(ValueError, match="end_of_text=False"):
        write_tokens(["a text"], tokenizer, tmp_path / "train.npy")
    write_tokens(["ab", "c"], tokenizer, tmp_path / "train.npy", end_of_text=False, progress=False)

    assert np.load(tmp_path / "train.npy").tolist() == [97, 98, 99]


def test_validation_holds_out_whole_documents_beside_the_corpus(tmp_path):
    texts = [f"document {i} " * (i % 5 + 1) for i in range(400)]

    written = write(texts, tmp_path / "train.npy", validation_fraction=0.2)
    train, held_out = (decode(np.load(p)) for p in (written.path, written.validation_path))

    assert written.validation_path == tmp_path / "train.validation.npy"
    assert sorted(train + held_out) == sorted(texts)
    assert written.num_documents == len(train)
    assert written.num_validation_documents == len(held_out)
    assert 50 < len(held_out) < 110


def test_a_document_stays_on_its_side_when_the_corpus_is_reordered_and_grows(tmp_path):
    texts = [f"document {i}\n" for i in range(100)]
    grown = ["another\n", *reversed(texts), *texts[:20]]

    first = write(texts, tmp_path / "a.npy", validation_fraction=0.3)
    second = write(grown, tmp_path / "b.npy", validation_fraction=0.3)
    before = set(decode(np.load(first.validation_path)))
    after = set(decode(np.load(second.validation_path)))

    assert before == after - {"another\n"}


def test_a_file_held_out_of_an_earlier_text_is_warned_of(tmp_path):
    path = tmp_path / "train.npy"
    earlier = write([f"text {i}\n" for i in range(200)], path, validation_fraction=0.2)
    before = earlier.validation_path.read_bytes()

    with pytest.warns(UserWarning, match=r"train\.validation\.npy is of an earlier call") as caught:
        written = write(["another text"], path)

    assert written.validation_path is None
    assert earlier.validation_path.read_bytes() == before
    assert caught[0].filename == __file__


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_validation_fraction_out_of_range_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="validation_fraction must be"):
        write(["a text"], tmp_path / "train.npy", validation_fraction=fraction)


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_a_side_without_documents_is_refused_and_nothing_is_left(tmp_path, fraction):
    with pytest.raises(ValueError, match="Try another validation_fraction"):
        write(["a text", "b text"], tmp_path / "train.npy", validation_fraction=fraction)

    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_not_npy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'must end in ".npy"'):
        write(["a text"], tmp_path / "train.bin")


def test_an_error_keeps_the_old_file_and_leaves_no_new_one(tmp_path):
    def failing():
        yield from ["new text"] * 10
        raise RuntimeError("disk on fire")

    write(["old text"], tmp_path / "train.npy")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write(failing(), tmp_path / "train.npy", validation_fraction=0.5)
    with pytest.raises(ValueError, match="no text to read"):
        write([], tmp_path / "train.npy")

    assert decode(np.load(tmp_path / "train.npy")) == ["old text"]
    assert [file.name for file in tmp_path.iterdir()] == ["train.npy"]


def test_a_killed_run_leaves_no_half_file_under_the_final_name(tmp_path):
    script = """
import sys
from kgpt.data import corpus, write_tokens
from test_corpus import ByteTokenizer

def texts():
    for i in range(100):
        yield "some text"
    print("half-way", flush=True)
    sys.stdin.read()  # until killed

corpus._BATCH_PIECES = 10
write_tokens(texts(), ByteTokenizer(), sys.argv[1], validation_fraction=0.5, progress=False)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "train.npy")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )

    while b"half-way" not in (line := process.stdout.readline()):
        assert line, "the process ended before it was half-way"
    process.kill()
    process.communicate()

    assert all(file.name.startswith(".") for file in tmp_path.iterdir())
    assert sum(".partial." in file.name for file in tmp_path.iterdir()) == 2
    write(["a text"], tmp_path / "train.npy")
    assert decode(np.load(tmp_path / "train.npy")) == ["a text"]


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE_LENGTH", 2**12)
    monkeypatch.setattr(corpus, "_BATCH_LENGTH", 2**15)
    (tmp_path / "large.txt").write_text("many words " * 400_000)  # 4.4 MB
    text = "many words " * 100
    many = itertools.chain([tmp_path / "large.txt"], (text for _ in range(4000)))  # 4.4 MB more

    tracemalloc.start()
    written = write(many, tmp_path / "train.npy")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert written.num_tokens == 8_804_001
    assert peak < 2_500_000


def test_progress_counts_the_tokens(tmp_path, capsys):
    write_tokens(["a text"], ByteTokenizer(), tmp_path / "train.npy")

    assert capsys.readouterr().out.startswith("7 tokens written")


def test_the_standard_library_is_a_corpus_of_some_megabytes():
    files = standard_library_files()

    assert files == sorted(files) == standard_library_files()
    assert {"argparse.py", "dataclasses.py"} <= {file.name for file in files}
    assert not any({"test", "site-packages"} & set(file.parts[-3:]) for file in files)
    assert 3e6 < sum(file.stat().st_size for file in files) < 5e7
    assert all(file.read_text(encoding="utf-8") for file in files)
