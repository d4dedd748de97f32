"""Temperature, top-k, top-p, min-p, penalties, stop strings, scores: what changes the choice."""

import itertools

import keras
import keras_hub
import numpy as np
import pytest
from full_passes import RAGGED, VOCABULARY, WINDOW, make_lm, next_log_probabilities

import kgpt
from kgpt.generation import loop
from kgpt.generation.filters import Filters, filtered
from kgpt.generation.texts import new_text, stream_text

SETTINGS = {
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.7},
    "min-p": {"min_p": 0.2},
    "all of them": {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.15},
    "penalty": {"repetition_penalty": 1.4},
    "reward": {"repetition_penalty": 0.7},
    "bigrams": {"no_repeat_ngram_size": 2},
    "words": {"no_repeat_ngram_size": 1},
    "longer than the text": {"no_repeat_ngram_size": 9},
    "all": {
        **{"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "temperature": 0.8},
        **{"top_k": 7, "top_p": 0.9, "min_p": 0.05},
    },
}


def logits_after(lm, row, first):
    """The logits of the tokens of a row from place `first` on, by one full pass."""
    padded = np.zeros((1, WINDOW), "int32")
    padded[0, : len(row)] = row
    return keras.ops.convert_to_numpy(lm(padded))[0, first - 1 : len(row) - 1].copy()


def by_transformers(settings, text, logits):
    """Logits after transformers' own processors, in the order that its `generate` has them in."""
    import torch
    from transformers.generation import logits_process as theirs

    processors = {
        "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": theirs.NoRepeatNGramLogitsProcessor,
        "temperature": theirs.TemperatureLogitsWarper,
        "top_k": theirs.TopKLogitsWarper,
        "top_p": theirs.TopPLogitsWarper,
        "min_p": theirs.MinPLogitsWarper,
    }
    text, logits = torch.tensor([text]), torch.tensor(logits[None])
    for name, make in processors.items():
        if name in settings:
            logits = make(settings[name])(text, logits)
    return logits[0].numpy()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_probabilities_are_those_of_transformers_filters(settings):
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    texts = [[3, 1, 3, 1, 5, 3], [4], [2, 2, 2, 7]]
    tokens = np.zeros((3, 8), "int32")
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    logits = rng.normal(scale=2, size=(3, 11)).astype("float32")

    found = filtered(
        Filters(**settings),
        *map(keras.ops.convert_to_tensor, (logits, tokens, np.array([6, 1, 4], "int32"))),
    )

    expected = np.stack(
        [by_transformers(settings, *pair) for pair in zip(texts, logits, strict=True)]
    )
    found, expected = (keras.ops.softmax(x) for x in (found, expected))
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, expected)), atol=1e-6)


def test_where_no_token_would_be_left_the_rule_of_ngrams_is_left_out():
    logits = np.array([[0.0, 1.0], [0.0, 1.0]], "float32")
    tokens = np.array([[0, 1, 1], [1, 1, 1]], "int32")

    found = filtered(
        Filters(no_repeat_ngram_size=1),
        *map(keras.ops.convert_to_tensor, (logits, tokens, np.array([3, 3], "int32"))),
    )

    assert keras.ops.convert_to_numpy(found).tolist() == [[0.0, 1.0], [0.0, -np.inf]]


@pytest.mark.compiled
def test_greedy_with_penalty_and_ngram_rule_gives_transformers_tokens_on_100_prompts(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{"vocab_size": 37, "n_positions": 32, "n_embd": 12, "n_layer": 2, "n_head": 3},
        **{"initializer_range": 0.6, "bos_token_id": 0, "eos_token_id": 0},
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = kgpt.from_huggingface(tmp_path)
    rng = np.random.default_rng(1)
    prompts = rng.integers(0, 37, (100, 6))
    options = {"max_new_tokens": 20, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}

    found = ours.generate(prompts.tolist(), **options, sampler="greedy", stop_token_ids=None)

    expected = theirs.generate(
        torch.tensor(prompts),
        **options,
        attention_mask=torch.ones(prompts.shape, dtype=torch.int64),
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    plain = ours.generate(
        prompts.tolist(), max_new_tokens=20, sampler="greedy", stop_token_ids=None
    )
    assert found == expected.tolist()
    assert sum(a != b for a, b in zip(found, plain, strict=True)) > 90


@pytest.mark.compiled
def test_prompts_of_different_lengths_are_penalized_each_by_its_own_text(lm):
    options = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "sampler": "greedy"}

    rows = lm.generate(RAGGED, 9, **options)

    assert rows == [lm.generate(row, 9, **options) for row in RAGGED]
    for row, prompt in zip(rows, RAGGED, strict=True):
        for end, logits in enumerate(logits_after(lm, row, len(prompt)), len(prompt)):
            for token in set(row[:end]):
                logits[token] *= 1.5 if logits[token] < 0 else 1 / 1.5
            pairs = set(itertools.pairwise(row[:end]))
            allowed = [t for t in range(VOCABULARY) if (row[end - 1], t) not in pairs]
            assert row[end] == max(allowed, key=lambda token: logits[token])


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"min_p": 0.1}, {"top_k": 6, "top_p": 0.8}, {"sampler": "top_p"}],
    ids=lambda options: " ".join(options),
)
def test_samples_follow_the_filtered_probabilities(lm, options):
    rows = lm.generate([[5, 1, 9]] * 4000, 1, seed=0, **options)

    settings = {"top_p": 0.9} if "sampler" in options else options
    logits = next_log_probabilities(lm, [5, 1, 9])
    filters = filtered(Filters(**settings), keras.ops.convert_to_tensor(logits[None]), None, None)
    expected = keras.ops.convert_to_numpy(keras.ops.softmax(filters))[0]
    counts = np.bincount([row[-1] for row in rows], minlength=VOCABULARY)
    np.testing.assert_allclose(counts / 4000, expected, atol=0.04)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"sampler": "top_k", "temperature": 0.7}, {"temperature": 0.7, "top_k": 5}),
        ({"sampler": "top_p", "top_k": 9}, {"top_k": 9, "top_p": 0.9}),
        ({"sampler": "random", "min_p": 0.1}, {"min_p": 0.1}),
        ({"sampler": "top_k", "top_k": 3}, {"top_k": 3}),
        ({"top_k": 10**6, "top_p": 1, "min_p": 0}, {"temperature": 1.0}),
    ],
)
def test_a_named_sampler_has_its_own_setting_beside_those_that_are_given(lm, options, same):
    settings = {"prompts": RAGGED, "max_new_tokens": 8, "seed": 3}

    assert lm.generate(**settings, **options) == lm.generate(**settings, **same)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("window", "options"),
    [
        (48, {"temperature": 1.5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}),
        (8, {"sampler": "greedy", "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}),
        (8, {"sampler": keras_hub.samplers.TopKSampler(k=3), "min_new_tokens": 12}),
    ],
    ids=["sampled", "sliding", "sliding, an object"],
)
def test_a_stream_is_what_a_batch_gives(window, options):
    lm = make_lm(max_sequence_length=window)
    options = {"sliding_window": window == 8, "stop_token_ids": [1, 5], **options}
    settings = {"max_new_tokens": 20, "seed": 4, **options}

    streamed = list(lm.generate([3, 1, 6], stream=True, **settings))

    assert streamed == lm.generate([3, 1, 6], **settings)
    assert len(streamed) >= 3 + options.get("min_new_tokens", 1)


@pytest.mark.compiled
def test_options_compile_once_for_all_prompts(passes):
    lm = make_lm()
    options = {"top_p": 0.8, "repetition_penalty": 1.1, "min_new_tokens": 2, "stop_token_ids": 3}
    lm.generate([3, 1], 9, **options)
    compiled = passes.count((1, 1))

    lm.generate([4, 5, 6], 8, **{**options, "min_new_tokens": 5}, seed=1)

    assert passes.count((1, 1)) == compiled > 0


# === stop tokens and stop strings ===


@pytest.mark.compiled
def test_no_stop_token_is_chosen_before_the_least_number_of_tokens(lm):
    full = lm.generate(RAGGED, 12, sampler="greedy", return_prompt=False)
    stops = [row[1] for row in full]
    options = {"sampler": "greedy", "stop_token_ids": stops, "return_prompt": False}

    rows = lm.generate(RAGGED, 12, min_new_tokens=7, **options)

    assert max(map(len, lm.generate(RAGGED, 12, **options))) <= 1
    for row, prompt in zip(rows, RAGGED, strict=True):
        assert len(row) >= 7
        for end, logits in enumerate(logits_after(lm, prompt + row, len(prompt))):
            logits[stops if end < 7 else []] = -np.inf
            assert row[end] == logits.argmax()


def test_the_least_number_of_tokens_is_counted_over_all_windows():
    lm = make_lm(max_sequence_length=8)
    settings = {"sampler": "greedy", "sliding_window": True, "return_prompt": False}
    stops = list(range(1, VOCABULARY))

    rows = lm.generate([[1, 2, 3], [4]], 20, min_new_tokens=15, stop_token_ids=stops, **settings)

    assert all(row[:15] == [0] * 15 for row in rows)


STOPPED = {
    **{"sampler": "greedy", "repetition_penalty": 1.2, "no_repeat_ngram_size": 2},
    **{"max_new_tokens": 30, "stop_token_ids": None, "return_prompt": False},
}


@pytest.mark.compiled
@pytest.mark.parametrize("number", [1, 2], ids=["one", "several"])
def test_text_ends_before_the_stop_string_wherever_tokens_end(text_lm, number):
    prompts = ["the robot", "5€", "caf"]
    full = text_lm.generate(prompts, **STOPPED)
    stops = [full[0][7:10], full[1][4:6]][:number]

    found = text_lm.generate(prompts, **STOPPED, stop=stops)

    def cut(text):
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        first = text[: min(ends)] if ends else text
        return next((first.removesuffix(s) for s in stops if first.endswith(s)), first)

    assert found == list(map(cut, full))
    assert found[0] != full[0]
    pieces = list(text_lm.generate(prompts[0], **STOPPED, stop=stops, stream=True))
    assert "".join(pieces) == found[0]
    assert len(pieces) > 1


@pytest.mark.compiled
def test_a_stop_string_ends_the_work_too(text_lm, monkeypatch):
    full = text_lm.generate(["the robot", "5€", "caf"], **STOPPED)[0]
    taken, steps = [], loop._steps

    def counted(*args):
        for step in steps(*args):
            taken.append(step)
            yield step

    monkeypatch.setattr(loop, "_steps", counted)
    text_lm.generate("the robot", **STOPPED, stop=full[5:7])

    assert 0 < len(taken) < 20


class Pieces:
    """A tokenizer whose tokens are the strings that it is given."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def decode(self, ids):
        return "".join(self.tokens[i] for i in ids)


@pytest.mark.parametrize(
    ("tokens", "stops", "text", "count"),
    [
        (["a", "\n", "\n", "b"], ["\n\n"], "a", 1),
        (["a\n", "\nb"], ["\n\n"], "a", 1),
        (["ab\n\ncd"], ["\n\n"], "ab", 1),
        (["a", "b\n", "\n"], ["\n\n"], "ab", 2),
        (["\n\n", "a"], ["\n\n"], "", 0),
        (["a\n", "b\n", "\n"], ["\n\n"], "a\nb", 2),
        (["a", "\n"], ["\n\n"], "a\n", 2),
        (["abc"], ["b", "abc"], "a", 1),
        (["a", "b", "c"], ["b", "abc"], "a", 1),
        (["xa", "ab"], ["aab", "ab"], "x", 1),
    ],
)
def test_a_stop_string_may_span_tokens_and_begin_inside_one(tokens, stops, text, count):
    tokenizer, ids = Pieces("p\n", *tokens), list(range(1, len(tokens) + 1))

    streamed = list(stream_text(tokenizer, [0], iter(ids), stops))

    assert new_text(tokenizer, [0], ids, stops) == (text, count)
    assert "".join(streamed) == text
    assert all(streamed)
    # What is shown is never taken back: no piece has a part of what is cut away.
    assert all(text.startswith("".join(streamed[:n])) for n in range(len(streamed)))


def test_a_stop_string_may_begin_after_the_least_number_of_tokens():
    tokenizer = Pieces("p", "a.", ".b", ".", "c")

    for least, text in enumerate(["a", "a.", "a..b", "a..b.c"]):
        assert new_text(tokenizer, [0], [1, 2, 3, 4], ["."], least)[0] == text
        assert "".join(stream_text(tokenizer, [0], iter([1, 2, 3, 4]), ["."], least)) == text


# === several samples, and scores ===


def test_several_samples_of_a_prompt_are_a_list_in_its_place(lm, text_lm):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "num_return_sequences": 3}

    many = lm.generate(RAGGED, seed=0, **settings)
    one = text_lm.generate("the", seed=0, **settings)

    assert [len(samples) for samples in many] == [3, 3, 3]
    for prompt, samples in zip(RAGGED, many, strict=True):
        assert all(sample[: len(prompt)] == prompt for sample in samples)
        assert len(set(map(tuple, samples))) > 1
    assert len(one) == 3
    assert all(text.startswith("the") for text in one)
    assert lm.generate([4], 3, sampler="greedy", num_return_sequences=1) == [
        lm.generate([4], 3, sampler="greedy")
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("sampler", ["greedy", "top_k", "random"])
def test_log_probabilities_are_the_models_own_whatever_the_filters(lm, sampler):
    options = {"repetition_penalty": 1.5} if sampler == "greedy" else {"temperature": 3.0}

    rows, scores = lm.generate(
        RAGGED, 9, sampler=sampler, seed=0, return_log_probabilities=True, **options
    )

    assert rows == lm.generate(RAGGED, 9, sampler=sampler, seed=0, **options)
    for prompt, row, found in zip(RAGGED, rows, scores, strict=True):
        logits = logits_after(lm, row, len(prompt))
        logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = [x[token] for x, token in zip(logits, row[len(prompt) :], strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_log_probabilities_are_the_scores_of_the_same_tokens(lm):
    options = {"sampler": "random", "temperature": 3.0, "seed": 0, "return_prompt": False}

    rows, found = lm.generate(RAGGED, 9, return_log_probabilities=True, **options)

    scores = lm.score(rows, prompts=RAGGED, reduction="none")
    np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-5)


def test_log_probabilities_are_among_all_tokens_of_a_model_with_more_than_its_tokenizer(text_lm):
    text, scores = text_lm.generate("the", 4, sampler="greedy", return_log_probabilities=True)

    ids = text_lm.tokenizer.encode("the")
    row = text_lm.generate(ids, 4, sampler="greedy", stop_token_ids=None)
    logits = logits_after(text_lm, row, len(ids))
    expected = [
        x[token] - np.log(np.exp(x).sum()) for x, token in zip(logits, row[len(ids) :], strict=True)
    ]
    assert logits.shape[-1] > text_lm.tokenizer.vocabulary_size
    assert text == text_lm.tokenizer.decode(row)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_log_probabilities_are_as_many_as_the_tokens_that_are_returned(lm, text_lm):
    settings = {"return_prompt": False, "return_log_probabilities": True}
    free, scores = lm.generate(RAGGED, 12, sampler="greedy", **settings)
    stop = free[0][4]

    rows, stopped = lm.generate(RAGGED, 12, sampler="greedy", stop_token_ids=stop, **settings)

    for row, found, all_scores in zip(rows, stopped, scores, strict=True):
        np.testing.assert_allclose(found, all_scores[: len(row)], atol=1e-5)
        assert len(found) == len(row)
    pairs = text_lm.generate(
        ["the", "5€"], 8, temperature=1.0, seed=1, num_return_sequences=2, stop="e", **settings
    )
    for texts, lists in zip(*pairs, strict=True):
        for text, found in zip(texts, lists, strict=True):
            assert "e" not in text
            assert len(found) <= 8
            assert bool(text) == bool(found) or "\ufffd" in text
    assert lm.generate([5, 1], 0, return_log_probabilities=True) == ([5, 1], [])
