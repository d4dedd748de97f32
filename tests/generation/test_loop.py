import keras
import numpy as np
import pytest
from full_passes import (
    RAGGED,
    VOCABULARY,
    greedy_by_full_passes,
    make_lm,
    scatter,
)

from kgpt.generation.texts import stream_text

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

    pieces = list(stream_text(Bytes(), list(b"x"), iter(tokens)))

    assert pieces == ["a", "€", "🤖", "b", "�"]


def test_streamed_ids_are_the_ids_and_compile_once_for_all_steps(passes):
    lm = make_lm(max_sequence_length=8)

    streamed = list(lm.generate([3, 1], 20, seed=4, stream=True, sliding_window=True))

    if keras.config.backend() != "torch":
        assert passes.count((1, 1)) == 1
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
