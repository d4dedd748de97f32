"""Tokenizers that several files of tests ask."""

import json

import pytest

from kgpt.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return [
        "The cat sat on the mat.\nThe dog didn't sit: it's 12 km away!\n\n",
        "A cat and a dog, a mat and a hat; 3.14 and 2 cats' hats.\n",
        "der H\u00fcter h\u00f6rt \u00fcber 99\u00b0 \u4e2d\u6587 \U0001f600\n",
    ] * 3


@pytest.fixture(scope="session")
def small(corpus) -> Tokenizer:
    return Tokenizer.train(corpus, vocabulary_size=280, special_tokens=())


@pytest.fixture(scope="session")
def small_gpt1(corpus) -> Tokenizer:
    return Tokenizer.train(corpus, vocabulary_size=110, style="gpt1", exact=False)


@pytest.fixture(scope="session")
def gpt2(reference_data) -> Tokenizer:
    folder = reference_data / "vocab/gpt2"
    return Tokenizer.from_vocabulary(folder / "encoder.json", folder / "vocab.bpe")


def gpt1_of_openai(reference_data, **options) -> Tokenizer:
    folder = reference_data / "vocab/gpt1"
    files = folder / "encoder_bpe_40000.json", folder / "vocab_40000.bpe"
    return Tokenizer.from_vocabulary(*files, style="gpt1", **options)


@pytest.fixture(scope="session")
def gpt1_by_rules(reference_data) -> Tokenizer:
    return gpt1_of_openai(reference_data, exact=False)


@pytest.fixture(scope="session")
def gpt1_exact(reference_data) -> Tokenizer:
    pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    return gpt1_of_openai(reference_data, exact=True)


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


@pytest.fixture(scope="session")
def golden(reference_data):
    """A function: texts with the ids that the original code of a model gave for them."""

    def read(name: str) -> list[dict]:
        lines = (reference_data / "vocab" / name / "golden.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in lines.split("\n") if line]

    return read
