import difflib
import sys

import pytest

from kgpt.tokenizer import Tokenizer
from kgpt.tokenizer.gpt1_words import import_ftfy_and_spacy


def test_exact_ids_equal_the_original_codes_on_gpt1s_vocabulary(gpt1_exact, golden):
    lines = golden("gpt1")

    ids = gpt1_exact.encode_batch([line["text"] for line in lines])

    equal = sum(made == line["ids"] for made, line in zip(ids, lines, strict=True))
    assert equal >= 0.99 * len(lines)


def test_ids_by_rules_are_close_to_the_original_codes_on_gpt1s_vocabulary(gpt1_by_rules, golden):
    lines = golden("gpt1")

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
@pytest.mark.parametrize("exact", [False, True])
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
    if exact:
        pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = Tokenizer.train([text + words + "x"], 150, style="gpt1", exact=exact)

    assert tokenizer.decode(tokenizer.encode(text)) == words


def test_symbols_that_gpt1s_vocabulary_lacks_become_unk(small_gpt1):
    assert small_gpt1.encode("\u2603\u2603") == [0, 0]


def test_an_exact_tokenizer_without_the_extra_says_how_to_install_it(monkeypatch, gpt1_files):
    pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=True)
    import_ftfy_and_spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)

    with pytest.raises(ImportError, match="pip install ftfy spacy"):
        tokenizer.encode("a cat")


@pytest.mark.parametrize("exact", [False, True])
def test_the_way_to_gpt1s_words_is_kept_in_the_file(exact, gpt1_files, tmp_path):
    if exact:
        pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = Tokenizer.from_vocabulary(*gpt1_files, style="gpt1", exact=exact)
    tokenizer.save(tmp_path / "tokenizer.json")

    restored = Tokenizer.from_file(tmp_path / "tokenizer.json")

    assert restored.exact is exact
    text = "It's a cat, a mat\n and a h\u00e4t."
    assert restored.encode(text) == tokenizer.encode(text)
    assert repr(restored) == repr(tokenizer)
