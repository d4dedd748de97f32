"""A token file knows when its tokens are not those that were written."""

import zlib

import numpy as np
import pytest

import kgpt
from kgpt.data import checksums

TEXTS = ["the cat sat on the mat", "a dog sat", "the dog and the mat and the cat"]
BLOCK = 16  # bytes: 8 tokens
HEADER = 128  # bytes before the first token


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", BLOCK)
    tokenizer = kgpt.Tokenizer.train(TEXTS, 260)
    return kgpt.data.write_tokens(TEXTS, tokenizer, tmp_path / "tokens.npy").path


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    replace(path, data)


def replace(path, data):
    path.unlink()  # what has read the file may still have it open
    path.write_bytes(data)


def test_numpy_reads_the_tokens_and_behind_them_the_checksums(path):
    tokens = np.load(path)

    with path.open("rb") as file:
        np.testing.assert_array_equal(np.load(file), tokens)
        behind = np.load(file)
        assert not file.read()
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), tokens)
    data = tokens.tobytes()
    assert len(data) % BLOCK  # the last block is shorter
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    assert behind.tolist() == [zlib.crc32(block) for block in blocks]


@pytest.mark.parametrize("segment_ids", [False, True])
def test_each_window_is_compared_when_it_is_read(path, segment_ids):
    tokens = np.load(path)
    options = {"segment_ids": True, "end_of_text_id": int(tokens[-1])} if segment_ids else {}
    flip(path, HEADER + 2 * 20)  # token 20, in the block of tokens 16 to 24

    batches = iter(kgpt.data.windows(path, 4, 1, **options))

    for number in range(3):  # tokens 0 to 13
        expected = [tokens[4 * number : 4 * number + 4].tolist()]
        assert next(batches)[0]["token_ids"].tolist() == expected
    with pytest.raises(ValueError, match=r"tokens\.npy is damaged: its tokens from 16 to 24 are "):
        next(batches)


@pytest.mark.parametrize("bit", range(8))
def test_any_changed_byte_is_noticed(path, bit):
    whole = path.read_bytes()
    for place in range(bit, len(whole), 8):
        flip(path, place, bit)
        with pytest.raises(ValueError, match=r"tokens\.npy"):
            list(kgpt.data.windows(path, 4, 1))
        replace(path, whole)


def test_the_check_of_ids_finds_it_too(path):
    flip(path, HEADER + 2 * 9)

    with pytest.raises(ValueError, match="its tokens from 8 to 16 are not those"):
        kgpt.data.windows(path, 4, 1, vocabulary_size=10_000)


def test_a_file_of_numpys_own_has_no_checksums(path):
    np.save(path, np.arange(21, dtype="uint16"))

    assert [x["token_ids"].tolist() for x, _ in kgpt.data.windows(path, 10, 1)] == [
        [list(range(10))],
        [list(range(10, 20))],
    ]


@pytest.mark.parametrize("behind", [np.zeros(1, "uint32"), np.zeros(9, "uint16"), None])
def test_something_else_behind_the_tokens_is_refused(path, behind):
    tokens = np.load(path)
    with path.open("wb") as file:
        np.save(file, tokens)
        np.save(file, behind) if behind is not None else file.write(b"more")

    with pytest.raises(ValueError, match="and its header speaks of"):
        kgpt.data.windows(path, 4, 1)
