"""Log-likelihoods of texts, their perplexity, and their hidden states."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER, ids
from oracles import numpy_cross_entropy, randomize, to_numpy, transformers_twin

import kgpt
from kgpt.models import scoring

END = TOKENIZER.end_of_text_id
WINDOW = 16
TEXTS = ["abc", "hello there", "z", "0 1 2 3"]
LONG = "the quick brown fox jumps over the dog"


def make_lm(tokenizer=TOKENIZER, **options):
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": WINDOW}
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, **{**sizes, **options})
    return kgpt.CausalLM(randomize(backbone), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def log_likelihoods(lm, tokens):
    """Of all tokens of one short sequence but the first, by the logits of one plain call."""
    padded = np.array([[*tokens, *[0] * (WINDOW + 1 - len(tokens))]])  # one shape: one compilation
    found = -numpy_cross_entropy(to_numpy(lm(padded[:, :-1])), padded[:, 1:])
    return found[0, : len(tokens) - 1]


def by_context(lm, tokens):
    """A function: the log-likelihood of token `i` after so many tokens before it."""
    rows = [tokens[begin : begin + WINDOW + 1] for begin in range(len(tokens) - 1)]
    rows = np.array([row + [0] * (WINDOW + 1 - len(row)) for row in rows])
    table = -numpy_cross_entropy(to_numpy(lm(rows[:, :-1])), rows[:, 1:])
    return lambda i, context: table[i - context, context - 1]


# === Scores ===


@pytest.mark.parametrize("norm_first", [True, False])
def test_tokens_score_as_in_transformers(norm_first):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    lm = make_lm(norm_first=norm_first)
    twin = transformers_twin(lm.backbone)

    found = lm.score(TEXTS, reduction="none")

    for text, scores in zip(TEXTS, found, strict=True):
        tokens = torch.tensor([ids(text)])
        with torch.no_grad():
            all_of_them = torch.log_softmax(twin(tokens).logits.double(), -1)[0, :-1]
        theirs = torch.gather(all_of_them, 1, tokens[0, 1:, None])[:, 0]
        np.testing.assert_allclose(scores, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_tokens_score_as_in_keras_hub(lm):
    theirs = kgpt.to_keras_hub(lm)
    rows = np.random.default_rng(0).integers(0, TOKENIZER.vocabulary_size, (5, WINDOW))

    found = lm.score(rows, reduction="none")

    token_ids, targets = map(keras.ops.convert_to_tensor, (rows, np.roll(rows, -1, axis=1)))
    losses = theirs.score(token_ids, scoring_mode="loss", target_ids=targets)
    np.testing.assert_allclose(found, -to_numpy(losses)[:, :-1], rtol=1e-5, atol=1e-5)


def test_scores_are_sums_or_means_of_the_tokens(lm):
    texts = ["abc", "hello there"]
    tokens = lm.score(texts, reduction="none")

    assert [len(scores) for scores in tokens] == [2, 10]
    np.testing.assert_allclose(lm.score(texts), [t.sum() for t in tokens], rtol=1e-6)
    np.testing.assert_allclose(
        lm.score(texts, reduction="mean"), [t.mean() for t in tokens], rtol=1e-6
    )


def test_one_text_alone_gives_one_number(lm):
    assert lm.score("abc") == pytest.approx(lm.score(["abc"])[0])
    assert isinstance(lm.score("abc"), float)
    assert lm.score("abc", reduction="none").shape == (2,)


def test_a_continuation_is_scored_after_its_prompt(lm):
    prompts, texts = ["ab", "hello", "a"], ["c", " there", ""]

    found = lm.score(texts, prompts, reduction="none")

    for prompt, text, scores in zip(prompts, texts, found, strict=True):
        expected = log_likelihoods(lm, ids(prompt + text))[len(prompt) - 1 :]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert lm.score("", "a") == 0


def test_one_prompt_may_serve_all_texts(lm):
    expected = lm.score(["bc", "xyz"], ["a", "a"])

    np.testing.assert_allclose(lm.score(["bc", "xyz"], "a"), expected, rtol=1e-6)


def test_after_an_empty_prompt_the_first_token_is_scored_too(lm):
    scores = lm.score("abc", prompts="", reduction="none")

    np.testing.assert_allclose(scores, log_likelihoods(lm, [END, *ids("abc")]), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_padding_and_the_size_of_batches_change_nothing(lm, batch_size):
    texts = [*TEXTS, LONG, ""]

    found = lm.score(texts, batch_size=batch_size)

    expected = [lm.score(text) for text in texts]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert expected[-1] == 0


@pytest.mark.parametrize("kind", [list, tuple, np.array, keras.ops.convert_to_tensor])
def test_token_ids_score_as_their_text(kind):
    without = make_lm(tokenizer=None)

    assert without.score(kind(ids("abc"))) == pytest.approx(make_lm().score("abc"), rel=1e-5)
    assert without.score([kind(ids("abc"))]).shape == (1,)


def test_likelihoods_of_all_tokens_sum_to_1(lm):
    everything = [[token] for token in range(TOKENIZER.vocabulary_size)]

    assert np.exp(lm.score(everything, prompts="ab")).sum() == pytest.approx(1, rel=1e-5)


# === Long texts ===


def test_with_stride_1_each_token_has_all_the_context_that_fits(lm):
    found = lm.score(LONG, reduction="none", stride=1)

    expected = by_context(lm, ids(LONG))
    expected = [expected(i, min(i, WINDOW)) for i in range(1, len(LONG))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [5, None, 16])
def test_each_token_is_scored_once_after_enough_context(lm, stride):
    found = lm.score(LONG, reduction="none", stride=stride)

    expected, least = by_context(lm, ids(LONG)), WINDOW - (stride or WINDOW // 2)
    assert len(found) == len(LONG) - 1
    for i in range(1, len(LONG)):
        contexts = range(max(1, min(i, least)), min(i, WINDOW) + 1)
        assert min(abs(expected(i, context) - found[i - 1]) for context in contexts) < 1e-5


def test_a_text_may_follow_a_prompt_that_is_longer_than_the_model_reads(lm):
    text = "ab"

    found = lm.score(text, LONG, reduction="none", stride=1)

    expected = by_context(lm, ids(LONG + text))
    expected = [expected(len(LONG) + i, WINDOW) for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# === Perplexity ===


def test_perplexity_is_over_all_tokens_of_all_texts(lm):
    tokens = np.concatenate([log_likelihoods(lm, ids(text)) for text in TEXTS if len(text) > 1])

    assert lm.perplexity(TEXTS) == pytest.approx(np.exp(-tokens.mean()), rel=1e-5)


def test_perplexity_is_that_of_evaluate(lm):
    lm.compile("sgd")
    documents = kgpt.data.documents(TEXTS, TOKENIZER, batch_size=3)
    expected = lm.evaluate(documents, verbose=0, return_dict=True)["perplexity"]

    found = lm.perplexity([[*ids(text), END] for text in TEXTS], prompts="")

    assert found == pytest.approx(expected, rel=1e-5)


# === Hidden states ===


@pytest.mark.parametrize("norm_first", [True, False])
def test_hidden_states_are_those_of_transformers(norm_first):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    lm = make_lm(norm_first=norm_first)
    twin = transformers_twin(lm.backbone)
    for layer in (0, 1, 2, None):
        last = lm.embed(TEXTS, layer)
        mean = lm.embed(TEXTS, layer, pooling="mean")

        assert last.shape == mean.shape == (4, 12)
        for i, text in enumerate(TEXTS):
            with torch.no_grad():
                states = twin(torch.tensor([ids(text)]), output_hidden_states=True).hidden_states
            theirs = states[-1 if layer is None else layer][0].numpy()
            np.testing.assert_allclose(last[i], theirs[-1], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(mean[i], theirs.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_vectors_do_not_depend_on_the_batch(lm):
    found = lm.embed(TEXTS, batch_size=3)

    np.testing.assert_allclose(found, [lm.embed(text) for text in TEXTS], rtol=1e-5, atol=1e-5)
    assert lm.embed("abc").shape == (12,)
    assert found.dtype == np.float32


# === Compilation ===


def test_texts_of_many_lengths_compile_for_few_shapes(monkeypatch):
    shapes = set()

    def record(function, backbone):
        return lambda states, static, token_ids, other: shapes.add(token_ids.shape) or other

    monkeypatch.setattr(scoring, "compile_function", record)
    lm = make_lm(max_sequence_length=100)
    for count in range(1, 12):
        lm.score([ids("a") * (7 * i % 97 + 2) for i in range(count)], batch_size=6)

    assert {length for _, length in shapes} == {16, 32, 64, 100}
    assert {rows for rows, _ in shapes} == {1, 2, 4, 6}


def test_scores_are_of_the_weights_of_the_moment():
    lm = make_lm()
    before = lm.score("abc"), lm.embed("abc")

    randomize(lm, seed=1)

    assert lm.score("abc") == pytest.approx(log_likelihoods(lm, ids("abc")).sum(), rel=1e-5)
    assert abs(lm.score("abc") - before[0]) > 1e-2
    assert np.abs(lm.embed("abc") - before[1]).max() > 1e-2


@pytest.mark.parametrize("change", ["enable_lora", "quantize"])
def test_scores_are_right_after_the_model_has_other_variables(change):
    lm = make_lm(num_layers=1)
    lm.score("abc")

    if change == "quantize":
        lm.quantize("int8")
    else:
        lm.backbone.enable_lora(2)
        randomize(lm, seed=1)

    assert lm.score("abc") == pytest.approx(log_likelihoods(lm, ids("abc")).sum(), rel=1e-4)


def test_training_goes_on_after_scores():
    lm = make_lm()
    lm.compile(keras.optimizers.SGD(0.1))
    lm.score(TEXTS)

    lm.fit(kgpt.data.documents(TEXTS, TOKENIZER), verbose=0)

    assert lm.score("abc") == pytest.approx(log_likelihoods(lm, ids("abc")).sum(), rel=1e-5)


# === Refusals ===


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": 5}, "texts must be text or token ids"),
        ({"texts": []}, "at least one text"),
        ({"texts": ["a", 5]}, "texts"),
        ({"texts": ["a", [1]]}, "texts may be text if all are"),
        ({"texts": [[1, -2]]}, r"texts of token ids must be ints in \[0"),
        ({"texts": [[1.5]]}, "texts of token ids must be ints"),
        ({"texts": {"token_ids": [[1]]}}, "not a model's inputs"),
        ({"texts": ["a", "b"], "prompts": ["c"]}, "Received: 1 prompts for 2 texts"),
        ({"texts": ["ab", "b"], "reduction": "mean"}, "index 1. Without prompts"),
        ({"texts": "", "reduction": "mean"}, "needs a token to score"),
        ({"texts": "a", "stride": 17}, r"in \[1, 16\].*stride=17"),
    ],
)
def test_what_cannot_be_scored_is_refused(lm, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm.score(**arguments)


def test_text_needs_a_tokenizer():
    without = make_lm(tokenizer=None)

    for method in (without.score, without.perplexity, without.embed):
        with pytest.raises(
            ValueError, match=r"CausalLM\(backbone, tokenizer=tokenizer\), or token"
        ):
            method(["abc"])
    with pytest.raises(ValueError, match="end-of-text token"):
        without.score([[1, 2]], prompts=[[]])


def test_the_perplexity_of_no_token_is_refused(lm):
    with pytest.raises(ValueError, match="must have a token to score"):
        lm.perplexity(["a", ""])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "abc", "layer": 3}, r"layer must be an int in \[0, 2\].*layer=3"),
        ({"texts": ["abc", ""]}, "from 1 to 16 tokens.*0 tokens at index 1"),
        ({"texts": LONG}, r"Received: 38 tokens at index 0.*\[-16:\]"),
    ],
)
def test_what_cannot_be_embedded_is_refused(lm, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm.embed(**arguments)
