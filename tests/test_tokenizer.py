import copy
import difflib
import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from kgpt.tokenizer import TASK_TOKENS, Tokenizer

CORPUS = [
    "The cat sat on the mat.\nThe dog didn't sit: it's 12 km away!\n\n",
    "A cat and a dog, a mat and a hat; 3.14 and 2 cats' hats.\n",
    "der H\u00fcter h\u00f6rt \u00fcber 99\u00b0 \u4e2d\u6587 \U0001f600\n",
] * 3
HAS_GPT1_EXTRA = all(importlib.util.find_spec(name) for name in ("ftfy", "spacy"))
needs_gpt1_extra = pytest.mark.skipif(
    not HAS_GPT1_EXTRA, reason="the exact route to GPT-1's words needs ftfy and spacy (kgpt[gpt1])"
)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocabulary_size=280, special_tokens=())


@pytest.fixture(scope="module")
def small_gpt1() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocabulary_size=110, style="gpt1", exact=False)


@pytest.fixture(scope="module")
def gpt2(reference_data) -> Tokenizer:
    folder = reference_data / "vocab/gpt2"
    return Tokenizer.from_vocabulary(folder / "encoder.json", folder / "vocab.bpe")


def gpt1_of_openai(reference_data, **options) -> Tokenizer:
    folder = reference_data / "vocab/gpt1"
    files = folder / "encoder_bpe_40000.json", folder / "vocab_40000.bpe"
    return Tokenizer.from_vocabulary(*files, style="gpt1", **options)


@pytest.fixture(scope="module")
def gpt1_by_rules(reference_data) -> Tokenizer:
    return gpt1_of_openai(reference_data, exact=False)


@pytest.fixture(scope="module")
def gpt1_exact(reference_data) -> Tokenizer:
    return gpt1_of_openai(reference_data, exact=True)


def golden(reference_data, name: str) -> list[dict]:
    """Texts with the ids that the original code gave for them."""
    lines = (reference_data / "vocab" / name / "golden.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in lines.split("\n") if line]


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
    tiktoken = pytest.importorskip("tiktoken")
    load = pytest.importorskip("tiktoken.load")
    folder = reference_data / "vocab/gpt2"
    ranks = load.data_gym_to_mergeable_bpe_ranks(
        str(folder / "vocab.bpe"), str(folder / "encoder.json")
    )
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": 50256}
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def test_ids_equal_the_original_codes_on_gpt2s_vocabulary(gpt2, reference_data):
    lines = golden(reference_data, "gpt2")

    ids = gpt2.encode_batch([line["text"] for line in lines])

    assert ids == [line["ids"] for line in lines]
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (len(gpt2), gpt2.end_of_text_id) == (50257, 50256)


def test_training_gives_the_size_asked_for_with_special_tokens_last():
    tokenizer = Tokenizer.train(CORPUS, 280, special_tokens=["<|user|>"])

    assert tokenizer.vocabulary_size == len(tokenizer) == 280
    assert tokenizer.special_tokens == ["<|endoftext|>", "<|user|>"]
    assert (tokenizer.end_of_text_id, tokenizer.token_to_id("<|user|>")) == (278, 279)
    assert len(tokenizer.encode(" cat and")) < len(" cat and")


def test_training_reads_files_and_folders(tmp_path, small):
    for number, text in enumerate(CORPUS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")

    from_folder = Tokenizer.train(tmp_path, 280, special_tokens=())

    assert from_folder.get_config() == small.get_config()


@pytest.mark.parametrize(("style", "size", "exact"), [("gpt2", 280, None), ("gpt1", 110, False)])
def test_training_again_gives_the_same_tokenizer(style, size, exact):
    tokenizers = [Tokenizer.train(CORPUS, size, style=style, exact=exact) for _ in range(4)]

    assert len({tokenizer.get_config()["tokenizer_json"] for tokenizer in tokenizers}) == 1


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one_and_a_warning():
    with pytest.warns(UserWarning, match="too small for a vocabulary of 5000"):
        tokenizer = Tokenizer.train(["so so so"], 5000)

    assert 257 < tokenizer.vocabulary_size < 300


# === GPT-1's style ===


@needs_gpt1_extra
def test_exact_ids_equal_the_original_codes_on_gpt1s_vocabulary(gpt1_exact, reference_data):
    lines = golden(reference_data, "gpt1")

    ids = gpt1_exact.encode_batch([line["text"] for line in lines])

    equal = sum(made == line["ids"] for made, line in zip(ids, lines, strict=True))
    assert equal >= 0.99 * len(lines)


def test_ids_by_rules_are_close_to_the_original_codes_on_gpt1s_vocabulary(
    gpt1_by_rules, reference_data
):
    lines = golden(reference_data, "gpt1")

    equal, different, tokens = 0, 0, 0
    for line in lines:
        ids = gpt1_by_rules.encode(line["text"])
        equal += ids == line["ids"]
        tokens += len(line["ids"])
        steps = difflib.SequenceMatcher(None, line["ids"], ids, autojunk=False).get_opcodes()
        different += sum(max(b - a, d - c) for step, a, b, c, d in steps if step != "equal")

    assert equal >= 0.98 * len(lines)
    assert different <= 0.004 * tokens


@pytest.mark.filterwarnings("ignore:The text is too small")
@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=needs_gpt1_extra)])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't! It's Mr. X's.", "do n't ! it 's mr. x 's ."),
        ("one\n\n two\t3km", "one \n two 3 km"),
        ("\u201cstate-of-the-art\u201d\u2026", '" state - of - the - art " ...'),
        ("  ", ""),
        ("", ""),
    ],
)
def test_gpt1s_words_are_those_of_ftfy_and_spacy(exact, text, words):
    tokenizer = Tokenizer.train([text + words + "x"], 150, style="gpt1", exact=exact)

    assert tokenizer.decode(tokenizer.encode(text)) == words


def test_gpt1s_alphabet_has_each_character_with_and_without_the_end_of_a_word(small_gpt1):
    size = (small_gpt1.token_to_id("a</w>") - small_gpt1.token_to_id("a")) * 2

    tokens = [small_gpt1.id_to_token(i) for i in range(1 + size)]

    assert tokens[0] == "<unk>"
    assert [token + "</w>" for token in tokens[1 : 1 + size // 2]] == tokens[1 + size // 2 :]
    assert small_gpt1.end_of_text_id == small_gpt1.vocabulary_size - 4 == 106


def test_symbols_that_gpt1s_vocabulary_lacks_become_unk(small_gpt1):
    assert small_gpt1.encode("\u2603\u2603") == [0, 0]


def test_gpt1s_own_vocabulary_has_no_special_tokens_until_they_are_asked_for(gpt1_by_rules):
    extended = gpt1_by_rules.with_special_tokens()

    assert (len(gpt1_by_rules), gpt1_by_rules.end_of_text_id) == (40478, None)
    assert (extended.start_id, extended.delimiter_id, extended.classify_id) == (40478, 40479, 40480)


def test_a_vocabulary_without_the_extra_warns_and_records_the_rules(monkeypatch, gpt1_files):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.warns(UserWarning, match=r"kgpt\[gpt1\]"):
        tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1")

    assert tokenizer.exact is False


@needs_gpt1_extra
def test_an_exact_tokenizer_without_the_extra_says_how_to_install_it(monkeypatch, gpt1_files):
    from kgpt import tokenizer as module

    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=True)
    module._ftfy_and_spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)

    with pytest.raises(ImportError, match=r'pip install "kgpt\[gpt1\]"'):
        tokenizer.encode("a cat")


# === characters ===


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


# === special tokens ===


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


def test_a_trained_tokenizer_has_the_tokens_of_tasks_after_the_end_of_text(small_gpt1):
    assert small_gpt1.special_tokens == ["<|endoftext|>", *TASK_TOKENS]
    assert (small_gpt1.start_id, small_gpt1.classify_id) == (107, 109)


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
    with pytest.raises(ValueError, match=r"ordinary token.*Received: 'a'"):
        small.with_special_tokens(["a"])


def test_decoding_can_leave_special_tokens_out(small):
    ids = [*small.encode("a cat"), small.end_of_text_id]

    assert small.decode(ids) == "a cat<|endoftext|>"
    assert small.decode(ids, skip_special_tokens=True) == "a cat"


# === encode and decode ===


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
        ([[1, 2]], r"one axis.*\(1, 2\)"),
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


# === files, configs, other libraries ===


STYLES = ["gpt2", "gpt1", "characters"]


@pytest.fixture(params=STYLES)
def any_style(request, small, small_gpt1):
    if request.param == "characters":
        return Tokenizer.train(CORPUS, style="characters")
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


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=needs_gpt1_extra)])
def test_the_way_to_gpt1s_words_is_kept_in_the_file(exact, gpt1_files, tmp_path):
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=exact)
    tokenizer.save(tmp_path / "tokenizer.json")

    restored = Tokenizer.from_file(tmp_path / "tokenizer.json")

    assert restored.exact is exact
    assert_same(tokenizer, restored)


def test_a_failed_save_leaves_the_old_file_alone(small, tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    file.write_text("old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
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


def test_keras_hub_gives_the_same_ids(gpt2):
    tf = pytest.importorskip("tensorflow")
    texts = [
        "Hello world, it's 2024 and I'M 12345 years old!",
        "one\ntwo\n\nthree\n\n\n  four\r\n\r\nfive\n \nsix\n\n",
        "  many   spaces \t and\ttabs  ",
        "na\u00efve \u4e2d\u6587 \U0001f600\u0928\u0940 \u00a0x",
        "<|endoftext|> is text",
        "",
    ]

    layer = gpt2.to_keras_hub()

    rows = tf.data.Dataset.from_tensor_slices(texts).map(layer)
    assert [row.numpy().tolist() for row in rows] == gpt2.encode_batch(texts)
    batch = next(iter(tf.data.Dataset.from_tensor_slices(texts).batch(6).map(layer)))
    assert batch.to_list() == gpt2.encode_batch(texts)
    assert [layer(text).numpy().tolist() for text in texts] == gpt2.encode_batch(texts)


def test_keras_hub_cannot_do_gpt1s_style(small_gpt1):
    with pytest.raises(ValueError, match=r"GPT-2's split pattern only.*style='gpt1'"):
        small_gpt1.to_keras_hub()


def test_importing_loads_no_tokenizer_library():
    program = (
        "import sys, kgpt.tokenizer\n"
        "print([m for m in ('tokenizers', 'ftfy', 'spacy', 'keras_hub') if m in sys.modules])"
    )

    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )

    assert loaded.stdout.strip() == "[]"


# === wrong input to the makers ===


@pytest.fixture
def gpt1_files(tmp_path):
    """A vocabulary in OpenAI's form, `a cat` in two tokens."""
    letters = "acst'\n,.hdmni"
    tokens = ["<unk>", *letters, *(letter + "</w>" for letter in letters), "at</w>", "cat</w>"]
    folder = tmp_path / "openai"
    folder.mkdir()
    vocabulary, merges = folder / "encoder.json", folder / "vocab.bpe"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\na t</w>\nc at</w>\n")
    return vocabulary, merges


def test_a_vocabulary_in_openais_form_is_read(gpt1_files):
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)

    tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode("A cat sat")]

    assert tokens == ["a</w>", "cat</w>", "s", "at</w>"]


def test_merges_of_another_vocabulary_are_refused(gpt1_files):
    gpt1_files[1].write_text("#version: 0.2\na t</w>\nx y\n")

    with pytest.raises(ValueError, match=r"don't belong together.*'xy'.*'cat</w>'"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)


def test_a_cut_off_merges_file_is_refused(gpt1_files):
    gpt1_files[1].write_text("#version: 0.2\na t</w>\nc")

    with pytest.raises(ValueError, match="each line of the merges a pair"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)


def test_a_vocabulary_of_the_other_style_is_refused(gpt1_files):
    with pytest.raises(ValueError, match="Try the other style"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt2")


def test_a_vocabulary_that_is_not_json_is_refused(gpt1_files):
    gpt1_files[0].write_text("no json")

    with pytest.raises(ValueError, match="must be a JSON object"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary_size": 256}, "at least 260: 256 for the alphabet and 4 for special"),
        ({"vocabulary_size": 20, "style": "gpt1", "exact": False}, "at least"),
        ({"vocabulary_size": None}, "must be an int"),
        ({"vocabulary_size": "300"}, "must be an int"),
        ({"vocabulary_size": 300, "style": "characters"}, 'None with style="characters"'),
        ({"vocabulary_size": 300, "style": "gpt3"}, "gpt2, gpt1, characters.*'gpt3'"),
        ({"vocabulary_size": 300, "exact": True}, 'exact is for style="gpt1"'),
        ({"vocabulary_size": 300, "special_tokens": [""]}, "special token must be"),
        ({"vocabulary_size": 300, "special_tokens": ["\u2603"]}, "special token must be"),
    ],
)
def test_training_with_wrong_arguments_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(CORPUS, **arguments)


@pytest.mark.parametrize("style", STYLES)
def test_training_on_no_text_is_refused(style):
    with pytest.raises(ValueError, match="no text"):
        Tokenizer.train([""], None if style == "characters" else 300, style=style)


def test_training_on_bytes_that_are_not_utf8_is_refused_or_replaced(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9 and caf\xe9 ")

    with pytest.raises(ValueError, match="offset 3"):
        Tokenizer.train(file, style="characters")
    tokenizer = Tokenizer.train(file, style="characters", errors="replace")

    assert tokenizer.token_to_id("\ufffd") is not None


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
