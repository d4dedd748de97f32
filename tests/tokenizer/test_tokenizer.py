import copy
import json
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from kgpt.tokenizer import TASK_TOKENS, Tokenizer

# === GPT-2's style ===


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_a_small_byte_level_vocabulary(small, text):
    assert small.decode(small.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_gpt2s_own_vocabulary(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(
        st.sampled_from("ab E\u00e917 ..'sn't\n\t\r\u00a0\u3000\U0001f600<|>"), max_size=40
    )
)
def test_ids_equal_tiktokens_on_gpt2s_vocabulary(gpt2, gpt2_of_tiktoken, text):
    assert gpt2.encode(text) == gpt2_of_tiktoken.encode_ordinary(text)


@pytest.fixture(scope="module")
def gpt2_of_tiktoken(reference_data):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is the reference")
    pytest.importorskip("tiktoken.load")
    folder = reference_data / "vocab/gpt2"
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json")
    )
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": 50256}
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def test_ids_equal_the_original_codes_on_gpt2s_vocabulary(gpt2, golden):
    lines = golden("gpt2")

    ids = gpt2.encode_batch([line["text"] for line in lines])

    assert ids == [line["ids"] for line in lines]
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (len(gpt2), gpt2.end_of_text_id) == (50257, 50256)


def test_a_call_is_encode(small):
    assert small("Hello <|endoftext|>") == small.encode("Hello <|endoftext|>")
    assert small("a<|endoftext|>", allow_special=True)[-1] == small.end_of_text_id
    with pytest.raises(ValueError, match="encode_batch"):
        small(["Hello"])


# === Characters ===


def test_characters_are_one_token_each_and_survive():
    tokenizer = Tokenizer.train(["hello\r\nw\u00f6rld"], style="characters")

    ids = tokenizer.encode("w\u00f6rd\r\n")

    assert len(ids) == 6
    assert tokenizer.decode(ids) == "w\u00f6rd\r\n"
    assert tokenizer.vocabulary_size == len(set("hello\r\nw\u00f6rld")) + 5  # <unk>, 4 special


def test_unknown_characters_become_unk():
    tokenizer = Tokenizer.train(["ab"], style="characters")

    assert tokenizer.encode("azb") == [1, 0, 2]
    assert tokenizer.decode([1, 0, 2]) == "a<unk>b"


# === Special tokens ===


@pytest.mark.parametrize("style", ["gpt2", "gpt1", "characters"])
def test_special_tokens_in_the_text_are_ordinary_text_unless_allowed(style):
    size, exact = {"gpt2": (262, None), "gpt1": (44, False), "characters": (None, None)}[style]
    text = "end of text <|start|>\n"
    tokenizer = Tokenizer.train([text * 2, "<|endoftext|>"] * 2, size, style=style, exact=exact)
    tokenizer = tokenizer.with_special_tokens()
    special = {tokenizer.end_of_text_id, tokenizer.start_id}

    ordinary = tokenizer.encode("end<|endoftext|><|start|>text")
    allowed = tokenizer.encode("end<|endoftext|><|start|>text", allow_special=True)

    assert special.isdisjoint(ordinary)
    assert allowed == [
        *tokenizer.encode("end"),
        tokenizer.end_of_text_id,
        tokenizer.start_id,
        *tokenizer.encode("text"),
    ]


def test_adding_special_tokens_leaves_all_other_ids_in_place(small):
    extended = small.with_special_tokens()

    assert small.start_id is small.delimiter_id is small.classify_id is None
    assert [extended.start_id, extended.delimiter_id, extended.classify_id] == [280, 281, 282]
    assert extended.special_tokens == ["<|endoftext|>", *TASK_TOKENS]
    assert [extended.id_to_token(i) for i in range(280)] == [
        small.id_to_token(i) for i in range(280)
    ]
    assert extended.with_special_tokens().vocabulary_size == 283


def test_an_ordinary_token_cannot_become_special(small):
    for make in (small.with_special_tokens, train_with):
        with pytest.raises(ValueError, match=r"ordinary token.*Received: 'a'"):
            make(["a"])
    assert train_with(["<unk>"]).encode("é") == [0]  # which stands for text


def train_with(special_tokens):
    return Tokenizer.train(["a cat"], style="characters", special_tokens=special_tokens)


def test_decoding_can_leave_special_tokens_out(small):
    ids = [*small.encode("a cat"), small.end_of_text_id]

    assert small.decode(ids) == "a cat<|endoftext|>"
    assert small.decode(ids, skip_special_tokens=True) == "a cat"


# === Encoding and decoding ===


def test_a_batch_gives_what_single_texts_give(small):
    texts = ["", "a cat", "\u4e2d\u6587"]

    batch = small.encode_batch(text for text in texts)

    assert batch == [small.encode(text) for text in texts]
    assert small.decode_batch(batch) == texts


@pytest.mark.parametrize(
    "convert", [list, np.asarray, keras.ops.convert_to_tensor, lambda ids: np.array(ids, "uint16")]
)
def test_decode_takes_lists_arrays_and_tensors(small, convert):
    ids = small.encode("a cat")

    assert small.decode(convert(ids)) == "a cat"
    assert small.decode_batch(convert([ids, ids])) == ["a cat", "a cat"]


def test_decoding_nothing_gives_nothing(small):
    assert small.decode([]) == ""
    assert small.decode_batch([]) == []


def test_half_a_character_decodes_to_the_replacement_character(small):
    assert small.decode(small.encode("\u2603")[:1]) == "\ufffd"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 280], r"\[0, 280\).*280 at position 1"),
        ([1, 2, -3], r"-3 at position 2"),
        ([1.5], "integers.*float64"),
        ([True], "integers.*bool"),
        ([[1, 2]], r"one axis.*\(1, 2\).*try decode_batch"),
        ([[1, 2], [3]], r"one axis.*\[1, 2\], \[3\].*try decode_batch"),
        (7, r"one axis"),
    ],
)
def test_ids_that_are_not_tokens_are_refused(small, ids, message):
    with pytest.raises(ValueError, match=message):
        small.decode(ids if isinstance(ids, list) else np.asarray(ids))


@pytest.mark.parametrize("text", [None, b"bytes", ["a", "list"], 3])
def test_a_text_that_is_not_a_str_is_refused(small, text):
    with pytest.raises(ValueError, match=f"must be a str.*of type {type(text).__name__}"):
        small.encode(text)


def test_a_single_text_is_no_batch(small):
    with pytest.raises(ValueError, match="try encode"):
        small.encode_batch("a cat")


def test_half_of_a_surrogate_pair_is_refused(small):
    with pytest.raises(ValueError, match=r"valid Unicode.*'\\ud83d', at character 2"):
        small.encode("a \ud83d b")


def test_tokens_and_ids_are_found_by_each_other(small):
    assert small.id_to_token(small.token_to_id("\u0120cat")) == "\u0120cat"
    assert small.token_to_id("no such token") is None


# === Files and configs ===


@pytest.fixture(params=["gpt2", "gpt1", "characters"])
def any_style(request, corpus, small, small_gpt1):
    if request.param == "characters":
        return Tokenizer.train(corpus, style="characters")
    return {"gpt2": small, "gpt1": small_gpt1}[request.param]


def assert_same(tokenizer, other):
    text = "It's a cat, a mat\n and a h\u00e4t."
    assert other.encode(text) == tokenizer.encode(text)
    assert repr(other) == repr(tokenizer)
    assert other.end_of_text_id == tokenizer.end_of_text_id


def test_a_saved_tokenizer_is_the_same_when_read_again(any_style, tmp_path):
    extended = any_style.with_special_tokens()

    extended.save(tmp_path / "tokenizer.json")

    assert_same(extended, Tokenizer.from_file(tmp_path / "tokenizer.json"))
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_saved_tokenizer_means_the_same_to_the_tokenizers_library(any_style, tmp_path):
    any_style.save(tmp_path / "tokenizer.json")

    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    text = "It's a cat, a mat\n and a h\u00e4t."
    assert theirs.encode(text).ids == any_style.encode(text)


def test_a_failed_save_leaves_the_old_file_alone(small, tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    file.write_text("old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        small.save(file)

    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_keras_restores_a_tokenizer_from_its_config(any_style):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(any_style)))

    assert_same(any_style, keras.saving.deserialize_keras_object(config))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_pickles_are_the_same(any_style, duplicate):
    assert_same(any_style, duplicate(any_style))


def test_importing_loads_no_tokenizer_library():
    program = (
        "import sys, kgpt.tokenizer\n"
        "print([m for m in ('tokenizers', 'ftfy', 'spacy', 'keras_hub') if m in sys.modules])"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )

    assert loaded.stdout.strip() == "[]"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Tokenizer.from_file(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)

    with pytest.raises(ValueError, match=r"no tokenizer in the file .*bad\.json"):
        Tokenizer.from_file(tmp_path / "bad.json")


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    other.save(str(tmp_path / "words.json"))

    with pytest.raises(ValueError, match="GPT-2's, GPT-1's or the characters' style"):
        Tokenizer.from_file(tmp_path / "words.json")
