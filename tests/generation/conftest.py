import pytest
from full_passes import make_lm

import kgpt


@pytest.fixture(scope="module")
def lm():
    return make_lm()


@pytest.fixture(scope="module")
def tokenizer():
    text = "the café of the naïve 🤖🤖 robot costs 5€, the robot pays 5€ 🤖 " * 3
    return kgpt.Tokenizer.train([text], vocabulary_size=270)


@pytest.fixture(scope="module")
def text_lm(tokenizer):
    return make_lm(tokenizer=tokenizer, vocabulary_size=tokenizer.vocabulary_size + 7)


@pytest.fixture
def passes(monkeypatch):
    """The shapes of the token ids of each cached pass that runs as Python: while it is compiled."""
    shapes, run = [], kgpt.GPTBackbone.call_with_cache

    def call_with_cache(backbone, token_ids, *args):
        shapes.append(tuple(token_ids.shape))
        return run(backbone, token_ids, *args)

    monkeypatch.setattr(kgpt.GPTBackbone, "call_with_cache", call_with_cache)
    return shapes
