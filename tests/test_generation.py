import keras
import keras_hub
import numpy as np
import pytest

import kgpt
from kgpt import generation

VOCABULARY, WINDOW = 23, 48
RAGGED = [[5, 1, 9, 2, 7, 7, 3], [4], [8, 8, 20]]


def make_lm(norm_first=True, tokenizer=None, vocabulary_size=VOCABULARY, **overrides):
    keras.utils.set_random_seed(3)
    sizes = {"num_layers": 1, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": WINDOW}
    backbone = kgpt.GPTBackbone(
        vocabulary_size, norm_first=norm_first, **{**sizes, "dropout": 0.5, **overrides}
    )
    scatter(backbone)
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


def scatter(model, seed=0):
    """Weights so far from zero that what is written depends on each token and position."""
    scales = {"position": 1.0, "token": 0.5, "attention": 0.8, "feed_forward": 0.3}
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        scale = next((scale for part, scale in scales.items() if part in variable.path), 0.1)
        noise = rng.normal(scale=scale if len(variable.shape) > 1 else 0.1, size=variable.shape)
        variable.assign(keras.ops.convert_to_numpy(variable) + noise)


def next_log_probabilities(lm, row):
    """Of each token after a row, by the full forward pass."""
    logits = keras.ops.convert_to_numpy(keras.ops.cast(lm(np.array([row])), "float32"))[0, -1]
    return logits - np.log(np.exp(logits).sum())


def greedy_by_full_passes(lm, row, steps):
    """Argmax of the full forward pass, token by token, without any cache."""
    row = list(row)
    length = len(row) + steps
    for _ in range(steps):
        padded = np.array([row + [0] * (length - len(row))])
        logits = keras.ops.convert_to_numpy(keras.ops.cast(lm(padded), "float32"))
        row.append(int(logits[0, len(row) - 1].argmax()))
    return row


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


# === exactness ===


@pytest.mark.parametrize("norm_first", [True, False])
def test_greedy_is_the_argmax_of_full_passes_in_a_batch_of_different_lengths(norm_first):
    lm = make_lm(norm_first, num_layers=2)

    rows = lm.generate(RAGGED, 9, sampler="greedy")

    assert rows == [greedy_by_full_passes(lm, row, 9) for row in RAGGED]


def test_greedy_is_the_argmax_up_to_the_last_position():
    lm = make_lm(max_sequence_length=10)

    row = lm.generate([1, 2, 3], 7, sampler="greedy")

    assert row == greedy_by_full_passes(lm, [1, 2, 3], 7)


@pytest.mark.parametrize(("num_layers", "new_slots"), [(2, 4), (1, 130)])
def test_cached_states_equal_those_of_the_full_forward_pass(num_layers, new_slots):
    backbone = make_lm(num_layers=num_layers, max_sequence_length=140).backbone
    row = np.random.default_rng(0).integers(0, VOCABULARY, 4 + new_slots).tolist()
    prompt_slots = 6
    tokens, lengths = generation._lay_out([row[:4], [4]], prompt_slots)
    tokens, lengths = map(keras.ops.convert_to_tensor, (tokens, lengths))

    cache, prompt_states = generation._prefill(backbone, tokens, lengths, new_slots)
    states = [keras.ops.convert_to_numpy(prompt_states)[0, [0, 1, 2, 5]]]
    for slot, token in enumerate(row[4:], start=prompt_slots):
        token_ids = keras.ops.convert_to_tensor([[token], [token]])
        h, cache = generation._step(backbone, token_ids, cache, slot, new_slots)
        states.append(keras.ops.convert_to_numpy(h)[:1])

    expected = keras.ops.convert_to_numpy(backbone(np.array([row])))[0]
    np.testing.assert_allclose(np.concatenate(states), expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 6])
def test_greedy_is_the_argmax_in_each_part_of_a_long_cache(rows):
    lm = make_lm(num_layers=2, max_sequence_length=200)
    prompts = [list(range(1, 2 + 3 * row)) for row in range(rows)]

    for row, prompt in zip(lm.generate(prompts, 150, sampler="greedy"), prompts, strict=True):
        assert len(row) == len(prompt) + 150
        logits = keras.ops.convert_to_numpy(lm(np.array([row])))[0, :-1]
        chosen = np.take_along_axis(logits, np.array(row)[1:, None], axis=-1)[:, 0]
        new = slice(len(prompt) - 1, None)
        np.testing.assert_allclose(chosen[new], logits.max(-1)[new], atol=1e-4)


def test_a_mixed_precision_model_generates_what_its_full_passes_say():
    lm = make_lm(dtype="mixed_bfloat16")

    row = lm.generate([5, 1, 9], 8, sampler="greedy")

    assert len(row) == 11
    logits = keras.ops.convert_to_numpy(keras.ops.cast(lm(np.array([row])), "float32"))[0]
    chosen = logits[np.arange(2, 10), row[3:]]
    np.testing.assert_allclose(chosen, logits[2:10].max(-1), atol=0.1)


def test_generation_uses_the_weights_of_the_moment():
    lm = make_lm()
    before = lm.generate([5, 1], 8, sampler="greedy")

    scatter(lm, seed=1)
    after = lm.generate([5, 1], 8, sampler="greedy")

    assert after == greedy_by_full_passes(lm, [5, 1], 8)
    assert after != before


def test_a_quantized_model_generates():
    lm = make_lm()
    lm.generate([5, 1], 4, sampler="greedy")

    lm.quantize("int8")
    row = lm.generate([5, 1], 4, sampler="greedy")

    logits = keras.ops.convert_to_numpy(lm(np.array([row])))[0]
    chosen = logits[np.arange(1, 5), row[2:]]
    np.testing.assert_allclose(chosen, logits[1:5].max(-1), atol=0.3)


# === samplers ===


@pytest.mark.parametrize(
    "sampler",
    [
        keras_hub.samplers.BeamSampler(num_beams=1),
        keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.0),
        keras_hub.samplers.TopKSampler(k=1),
    ],
    ids=["one beam", "contrastive without penalty", "top 1"],
)
def test_samplers_that_have_no_choice_equal_greedy(lm, sampler):
    assert lm.generate(RAGGED, 6, sampler=sampler) == lm.generate(RAGGED, 6, sampler="greedy")


def test_wide_beams_find_the_most_likely_of_all_continuations():
    lm = make_lm(vocabulary_size=5)
    prompts = [[1, 4, 2], [3]]

    found = lm.generate(prompts, 2, sampler=keras_hub.samplers.BeamSampler(num_beams=5))

    for prompt, row in zip(prompts, found, strict=True):
        first = next_log_probabilities(lm, prompt)
        everything = [first[i] + next_log_probabilities(lm, [*prompt, i]) for i in range(5)]
        assert row[-2:] == list(np.unravel_index(np.argmax(everything), (5, 5)))


def test_contrastive_search_is_the_published_rule_in_a_batch_of_different_lengths(lm):
    """Su et al. 2022, equation 3, by full forward passes."""
    k, alpha = 4, 0.6

    def reference(row, steps):
        for _ in range(steps):
            likely = np.exp(next_log_probabilities(lm, row))
            best = np.argsort(-likely)[:k].tolist()
            states = lm.backbone(np.array([[*row, token] for token in best]))
            scores = {}
            for token, h in zip(best, keras.ops.convert_to_numpy(states), strict=True):
                h = h / np.linalg.norm(h, axis=-1, keepdims=True)
                scores[token] = (1 - alpha) * likely[token] - alpha * (h[:-1] @ h[-1]).max()
            row = [*row, max(scores, key=scores.get)]
        return row

    sampler = keras_hub.samplers.ContrastiveSampler(k=k, alpha=alpha)
    rows = lm.generate(RAGGED, 5, sampler=sampler)

    assert rows == [reference(row, 5) for row in RAGGED]


@pytest.mark.parametrize("sampler", ["top_k", "random", keras_hub.samplers.TopPSampler(p=0.9)])
def test_the_same_seed_gives_the_same_continuation(lm, sampler):
    first = lm.generate([3, 1], 20, sampler=sampler, seed=7)
    again = lm.generate([3, 1], 20, sampler=sampler, seed=7)
    other = lm.generate([3, 1], 20, sampler=sampler, seed=8)

    assert first == again != other


@pytest.mark.parametrize("sampler", ["random", keras_hub.samplers.RandomSampler(seed=1)])
def test_without_a_seed_calls_differ(lm, sampler):
    assert lm.generate([3, 1], 20, sampler=sampler) != lm.generate([3, 1], 20, sampler=sampler)


def test_a_sampler_with_a_seed_of_its_own_repeats_itself_when_made_anew(lm):
    rows = [
        lm.generate([3, 1], 20, sampler=keras_hub.samplers.RandomSampler(seed=5)) for _ in range(2)
    ]

    assert rows[0] == rows[1]


def test_a_sampler_of_your_own_is_used(lm):
    class Second(keras_hub.samplers.Sampler):
        def get_next_token(self, probabilities):
            return keras.ops.argsort(probabilities, axis=-1)[:, -2]

    row = lm.generate([3, 1], 3, sampler=Second())

    logits = keras.ops.convert_to_numpy(lm(np.array([row])))[0]
    assert row[2:] == logits[1:4].argsort(-1)[:, -2].tolist()


def test_samples_follow_the_models_probabilities(lm):
    rows = lm.generate([[5, 1, 9]] * 4000, 1, sampler="random", seed=0)

    counts = np.bincount([row[-1] for row in rows], minlength=VOCABULARY)
    expected = np.exp(next_log_probabilities(lm, [5, 1, 9]))
    np.testing.assert_allclose(counts / 4000, expected, atol=0.04)


# === compilation ===


def test_prompts_of_other_lengths_and_equal_samplers_compile_nothing_new(monkeypatch):
    lm = make_lm()
    traced = []
    prefill = generation._prefill
    monkeypatch.setattr(
        generation, "_prefill", lambda *args: traced.append(args[1].shape) or prefill(*args)
    )
    lm.generate([1, 2, 3], 5, sampler=keras_hub.samplers.TopKSampler(k=4))
    compiled = len(vars(lm)["_generation"][1])

    lm.generate([4, 5], 9, sampler=keras_hub.samplers.TopKSampler(k=4), seed=1)

    assert len(vars(lm)["_generation"][1]) == compiled == 1
    assert set(traced) == {(1, 33)}
    if keras.config.backend() != "torch":
        assert len(traced) == 1


# === stop tokens ===


def test_rows_end_before_their_stop_token_each_for_itself(lm):
    full = lm.generate(RAGGED, 12, sampler="greedy", return_prompt=False)
    ends = {t: {[*row, t].index(t) for row in full} for row in full for t in row}
    stop = next(token for token, lengths in ends.items() if len(lengths) > 1)

    rows = lm.generate(RAGGED, 12, sampler="greedy", stop_token_ids=stop, return_prompt=False)

    cut = [row[: row.index(stop)] if stop in row else row for row in full]
    assert rows == cut
    assert len({len(row) for row in rows}) > 1


def test_a_stop_token_in_the_prompt_does_not_count(lm):
    free = lm.generate([3, 1, 6], 8, sampler="greedy", return_prompt=False)
    stop = next(token for token in range(VOCABULARY) if token not in free)

    row = lm.generate(
        [stop, 3, 1, 6], 8, sampler="greedy", stop_token_ids=[stop], return_prompt=False
    )

    expected = greedy_by_full_passes(lm, [stop, 3, 1, 6], 8)[4:]
    assert row == (expected[: expected.index(stop)] if stop in expected else expected)
    assert len(row) > 0


def test_the_tokenizers_end_of_text_ends_the_text_unless_told_otherwise(tokenizer):
    text_lm = make_lm(tokenizer=tokenizer, vocabulary_size=tokenizer.vocabulary_size)
    settings = {"max_new_tokens": 40, "sampler": "random", "seed": 0}
    rows = text_lm.generate([tokenizer.encode("the")] * 20, **settings, stop_token_ids=None)
    favourite = np.bincount(np.concatenate(rows)).argmax()
    embeddings = text_lm.backbone.token_embedding.embeddings
    values = keras.ops.convert_to_numpy(embeddings).copy()
    values[tokenizer.end_of_text_id] = values[favourite]  # as likely: some text ends with it
    embeddings.assign(values)

    stopped = text_lm.generate(["the"] * 20, **settings)
    full = text_lm.generate(["the"] * 20, **settings, stop_token_ids=None)

    assert stopped == [text.split("<|endoftext|>")[0] for text in full]
    assert stopped != full


def test_the_loop_ends_when_all_rows_have_stopped_or_have_all_they_may(lm):
    sampler = keras_hub.samplers.GreedySampler()
    free = lm.generate(RAGGED, 8, sampler=sampler, return_prompt=False)
    functions = generation._functions(lm, sampler)

    def slots_written(count, stops):
        tokens, lengths = generation._lay_out(RAGGED, 33)
        arguments = (tokens, lengths, np.zeros(3, "bool"), count, np.array(stops, "int32"))
        rows = keras.ops.convert_to_numpy(functions.complete([], 32, *arguments))[:, 33:]
        return (rows >= 0).sum(axis=1).tolist()

    assert slots_written(6, []) == [6, 6, 6]
    assert slots_written(8, [row[2] for row in free]) == [3, 3, 3]
    assert slots_written(8, [row[0] for row in free]) == [1, 1, 1]


# === the window ===


def test_a_sliding_window_goes_on_with_the_last_half_of_the_context():
    lm = make_lm(max_sequence_length=8)

    rows = lm.generate([[1, 2, 3], [5] * 8, [7, 6]], 15, sampler="greedy", sliding_window=True)

    for prompt, row in zip([[1, 2, 3], [5] * 8, [7, 6]], rows, strict=True):
        context, expected = prompt, list(prompt)
        for _ in range(15):
            context = context[-4:] if len(context) == 8 else context
            context = greedy_by_full_passes(lm, context, 1)
            expected.append(context[-1])
        assert row == expected


def test_rows_that_stopped_stay_so_when_the_window_slides(lm):
    lm = make_lm(max_sequence_length=8)
    prompts = [[1, 2, 3], [7, 6], [4]]
    full = lm.generate(prompts, 20, sampler="greedy", sliding_window=True, return_prompt=False)
    stop = full[0][2]

    rows = lm.generate(
        prompts, 20, sampler="greedy", stop_token_ids=stop, sliding_window=True, return_prompt=False
    )

    assert rows == [row[: row.index(stop)] if stop in row else row for row in full]


def test_a_length_beyond_the_window_is_refused_with_the_numbers(lm):
    with pytest.raises(ValueError, match=r"3 tokens, max_new_tokens=46.*=48.*max_new_tokens=45"):
        lm.generate([1, 2, 3], 46)


# === streaming ===


@pytest.mark.parametrize(("sampler", "return_prompt"), [("top_k", True), ("random", False)])
def test_streamed_text_is_the_text_in_whole_characters(text_lm, sampler, return_prompt):
    settings = {
        "sampler": sampler,
        "seed": 2,
        "return_prompt": return_prompt,
        "stop_token_ids": None,
    }

    pieces = list(text_lm.generate("the 🤖", 30, stream=True, **settings))

    whole = text_lm.generate("the 🤖", 30, **settings)
    assert "".join(pieces) == whole
    assert len(pieces) > 5
    assert all(pieces)


def test_bytes_of_an_unfinished_character_are_held_back():
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    tokens = "a€🤖b".encode() + b"\xf0\x9f"

    pieces = list(generation._stream_text(Bytes(), list(b"x"), iter(tokens)))

    assert pieces == ["a", "€", "🤖", "b", "�"]


def test_streamed_ids_are_the_ids_and_compile_once_for_all_steps(monkeypatch):
    lm = make_lm(max_sequence_length=8)
    traced = []
    step = generation._step
    monkeypatch.setattr(generation, "_step", lambda *args: traced.append(1) or step(*args))

    streamed = list(lm.generate([3, 1], 20, seed=4, stream=True, sliding_window=True))

    if keras.config.backend() != "torch":
        assert len(traced) == 1
    assert streamed == lm.generate([3, 1], 20, seed=4, sliding_window=True)


def test_a_stream_ends_at_the_stop_token(lm):
    full = lm.generate([3, 1], 9, sampler="greedy", return_prompt=False)

    streamed = lm.generate(
        [3, 1], 9, sampler="greedy", stop_token_ids=full[4], return_prompt=False, stream=True
    )

    assert list(streamed) == full[: full.index(full[4])]


def test_two_streams_at_a_time_do_not_disturb_each_other(lm):
    streams = [lm.generate([3, 1], 9, seed=seed, stream=True) for seed in (1, 2)]

    rows = zip(*zip(*streams, strict=True), strict=True)

    assert list(map(list, rows)) == [lm.generate([3, 1], 9, seed=seed) for seed in (1, 2)]


# === prompts in, results out ===


def test_text_gives_text_and_many_texts_a_list(text_lm):
    one = text_lm.generate("the robot", 5, sampler="greedy")
    many = text_lm.generate(["the robot", "5€"], 5, sampler="greedy")
    new = text_lm.generate("the robot", 5, sampler="greedy", return_prompt=False)

    assert many[0] == one == "the robot" + new
    assert many[1].startswith("5€")
    assert new


def test_text_is_made_of_the_tokenizers_tokens_only(text_lm, tokenizer):
    rows = text_lm.generate([[1]] * 500, 3, sampler="random", seed=0)

    assert tokenizer.vocabulary_size < text_lm.backbone.vocabulary_size
    assert max(map(max, rows)) < tokenizer.vocabulary_size


def test_an_empty_text_starts_from_the_end_of_text_token(text_lm, tokenizer):
    end = tokenizer.end_of_text_id

    text = text_lm.generate("", 6, sampler="greedy", stop_token_ids=None)

    row = text_lm.generate([end], 6, sampler="greedy", stop_token_ids=None, return_prompt=False)
    assert text == tokenizer.decode(row)


@pytest.mark.parametrize("make", [list, np.array, keras.ops.convert_to_tensor])
def test_ids_give_ids_of_the_same_kind(lm, make):
    one = lm.generate(make([5, 1, 9]), 3, sampler="greedy")
    many = lm.generate([make([5, 1, 9]), make([4])], 3, sampler="greedy")

    kind = list if make is list else np.ndarray
    expected = greedy_by_full_passes(lm, [5, 1, 9], 3)
    assert isinstance(one, kind)
    assert isinstance(many[1], kind)
    assert list(one) == list(many[0]) == expected
    assert len(many[1]) == 4


def test_a_two_dimensional_array_gives_a_row_for_each_row(lm):
    rows = lm.generate(np.array([[5, 1, 9], [2, 2, 2]]), 3, sampler="greedy")

    assert [list(row) for row in rows] == [
        greedy_by_full_passes(lm, row, 3) for row in ([5, 1, 9], [2, 2, 2])
    ]


def test_no_new_tokens_give_the_prompts_back(lm, text_lm):
    assert lm.generate(RAGGED, 0) == RAGGED
    assert text_lm.generate("the", 0) == "the"
    assert text_lm.generate("the", 0, return_prompt=False) == ""
    assert list(text_lm.generate("the", 0, stream=True)) == ["the"]


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ([], {}, "at least one prompt"),
        (np.zeros((0, 3), "int32"), {}, "at least one prompt"),
        ("the", {}, "has a tokenizer"),
        ([[]], {}, "end-of-text token"),
        (7, {}, "text or token ids.*Received: 7"),
        (["the", [1]], {}, "text if all are"),
        ([[1], "the"], {}, "text if all are"),
        ([1, 23], {}, r"ints in \[0, 23\).*Received: \[1, 23\]"),
        ([[1, -1], [2]], {}, r"ints in \[0, 23\)"),
        ([1.0, 2.5], {}, "ints in"),
        ([True], {}, "ints in"),
        (np.zeros((1, 2, 3), "int32"), {}, "along one axis"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([1], {"max_new_tokens": 2.0}, "max_new_tokens=2.0"),
        ([1], {"max_new_tokens": True}, "max_new_tokens=True"),
        ([1], {"sampler": "nucleus"}, "greedy, top_k.*Received: sampler='nucleus'"),
        ([1], {"sampler": 5}, "sampler=5"),
        ([1], {"stop_token_ids": "end"}, "stop_token_ids='end'"),
        ([1], {"stop_token_ids": [1.5]}, "stop_token_ids"),
        ([1], {"seed": -1}, "seed=-1"),
        ([1], {"seed": "x"}, "seed='x'"),
        ([[1], [2]], {"stream": True}, "a list of 2 prompts"),
        ([1], {"stream": True, "sampler": "beam"}, "sampler=BeamSampler"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(lm, prompts, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(prompts, **{"max_new_tokens": 3, **arguments})
