import importlib.util
import json

import pytest

from kgpt.tokenizer import TASK_TOKENS, Tokenizer

STYLES = ["gpt2", "gpt1", "characters"]


# === Training ===


def test_training_gives_the_size_asked_for_with_special_tokens_last(corpus):
    tokenizer = Tokenizer.train(corpus, 280, special_tokens=["<|user|>"])

    assert tokenizer.vocabulary_size == len(tokenizer) == 280
    assert tokenizer.special_tokens == ["<|endoftext|>", "<|user|>"]
    assert (tokenizer.end_of_text_id, tokenizer.token_to_id("<|user|>")) == (278, 279)
    assert len(tokenizer.encode(" cat and")) < len(" cat and")


def test_training_reads_files_and_folders(corpus, tmp_path, small):
    for number, text in enumerate(corpus):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")

    from_folder = Tokenizer.train(tmp_path, 280, special_tokens=())

    assert from_folder.get_config() == small.get_config()


@pytest.mark.parametrize(("style", "size", "exact"), [("gpt2", 280, None), ("gpt1", 110, False)])
def test_training_again_gives_the_same_tokenizer(corpus, style, size, exact):
    tokenizers = [Tokenizer.train(corpus, size, style=style, exact=exact) for _ in range(4)]

    assert len({tokenizer.get_config()["tokenizer_json"] for tokenizer in tokenizers}) == 1


def test_a_text_too_small_for_the_vocabulary_gives_a_smaller_one_and_a_warning():
    with pytest.warns(UserWarning, match="too small for a vocabulary of 5000"):
        tokenizer = Tokenizer.train(["so so so"], 5000)

    assert 257 < tokenizer.vocabulary_size < 300


def test_gpt1s_alphabet_has_each_character_with_and_without_the_end_of_a_word(small_gpt1):
    size = (small_gpt1.token_to_id("a</w>") - small_gpt1.token_to_id("a")) * 2

    tokens = [small_gpt1.id_to_token(i) for i in range(1 + size)]

    assert tokens[0] == "<unk>"
    assert [token + "</w>" for token in tokens[1 : 1 + size // 2]] == tokens[1 + size // 2 :]
    assert small_gpt1.end_of_text_id == small_gpt1.vocabulary_size - 4 == 106


def test_a_trained_tokenizer_has_the_tokens_of_tasks_after_the_end_of_text(small_gpt1):
    assert small_gpt1.special_tokens == ["<|endoftext|>", *TASK_TOKENS]
    assert (small_gpt1.start_id, small_gpt1.classify_id) == (107, 109)


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
def test_training_with_wrong_arguments_is_refused(corpus, arguments, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(corpus, **arguments)


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


# === OpenAI's files ===


def test_gpt1s_own_vocabulary_has_no_special_tokens_until_they_are_asked_for(gpt1_by_rules):
    extended = gpt1_by_rules.with_special_tokens()

    assert (len(gpt1_by_rules), gpt1_by_rules.end_of_text_id) == (40478, None)
    assert (extended.start_id, extended.delimiter_id, extended.classify_id) == (40478, 40479, 40480)


def test_a_vocabulary_without_the_extra_warns_and_records_the_rules(monkeypatch, gpt1_files):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.warns(UserWarning, match="pip install ftfy spacy"):
        tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1")

    assert tokenizer.exact is False


def test_a_vocabulary_in_openais_form_is_read(gpt1_files):
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)

    tokens = [tokenizer.id_to_token(i) for i in tokenizer.encode("A cat sat")]

    assert tokens == ["a</w>", "cat</w>", "s", "at</w>"]


@pytest.mark.parametrize("token", ["a", "cat</w>"])
def test_a_token_of_text_in_a_vocabulary_cannot_become_special(gpt1_files, token):
    options = {"style": "gpt1", "exact": False}

    with pytest.raises(ValueError, match=f"ordinary token.*Received: '{token}'"):
        Tokenizer.from_vocabulary(*gpt1_files, **options, special_tokens=[token])

    vocabulary = json.loads(gpt1_files[0].read_text())
    gpt1_files[0].write_text(json.dumps({**vocabulary, "<|end|>": len(vocabulary)}))
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, **options, special_tokens=["<|end|>"])
    assert tokenizer.special_tokens == ["<|end|>"]


def test_merges_of_another_vocabulary_are_refused(gpt1_files):
    gpt1_files[1].write_text("#version: 0.2\na t</w>\nx y\n")

    with pytest.raises(ValueError, match=r"must belong to one model.*'xy'.*'cat</w>'"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)


def test_a_cut_off_merges_file_is_refused(gpt1_files):
    gpt1_files[1].write_text("#version: 0.2\na t</w>\nc")

    with pytest.raises(ValueError, match="each line of the merges two tokens"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)


def test_a_vocabulary_of_the_other_style_is_refused(gpt1_files):
    with pytest.raises(ValueError, match="Try the other style"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt2")


def test_a_vocabulary_that_is_not_json_is_refused(gpt1_files):
    gpt1_files[0].write_text("no json")

    with pytest.raises(ValueError, match="must be a JSON object"):
        Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=False)
