import keras
import keras_hub
import numpy as np
import pytest
from full_passes import (
    RAGGED,
    VOCABULARY,
    WINDOW,
    make_lm,
    next_log_probabilities,
)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "sampler",
    [
        keras_hub.samplers.BeamSampler(num_beams=1),
        keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.0),
        keras_hub.samplers.TopKSampler(k=1),
    ],
    ids=["one beam", "contrastive without penalty", "top 1"],
)
@pytest.mark.parametrize("prompts", [RAGGED, RAGGED[:1]], ids=["three", "one"])
def test_samplers_that_have_no_choice_equal_greedy(lm, sampler, prompts):
    assert lm.generate(prompts, 6, sampler=sampler) == lm.generate(prompts, 6, sampler="greedy")


@pytest.mark.compiled
@pytest.mark.parametrize("sampler", ["beam", "contrastive"])
def test_a_prompt_alone_is_continued_as_in_a_batch(lm, sampler):
    rows = lm.generate(RAGGED, 6, sampler=sampler)

    assert [lm.generate(row, 6, sampler=sampler) for row in RAGGED] == rows


@pytest.mark.parametrize("prompts", [[[1, 4, 2], [3]], [[3]]], ids=["two", "one"])
def test_wide_beams_find_the_most_likely_of_all_continuations(prompts):
    lm = make_lm(vocabulary_size=5)

    found = lm.generate(prompts, 2, sampler=keras_hub.samplers.BeamSampler(num_beams=5))

    for prompt, row in zip(prompts, found, strict=True):
        first = next_log_probabilities(lm, prompt)
        everything = [first[i] + next_log_probabilities(lm, [*prompt, i]) for i in range(5)]
        assert row[-2:] == list(np.unravel_index(np.argmax(everything), (5, 5)))


@pytest.mark.compiled
def test_what_would_come_after_a_stop_has_no_part_in_the_choice_of_a_beam():
    lm = make_lm(vocabulary_size=4)
    prompts, stop, steps = [[1, 3, 2], [3], [2, 2]], 1, 3

    def continuations(prompt, steps):
        """All that end with the stop or have all steps, with their log-probabilities."""
        if not steps:
            return {(): 0.0}
        found, following = {}, next_log_probabilities(lm, prompt)
        for token in range(4):
            ends = {(): 0.0} if token == stop else continuations([*prompt, token], steps - 1)
            found |= {(token, *rest): following[token] + score for rest, score in ends.items()}
        return found

    sampler = keras_hub.samplers.BeamSampler(num_beams=64)
    found = lm.generate(prompts, steps, sampler=sampler, stop_token_ids=stop, return_prompt=False)

    everything = [continuations(prompt, steps) for prompt in prompts]
    best = [list(max(scores, key=scores.get)) for scores in everything]
    assert found == [row[: row.index(stop)] if stop in row else row for row in best]
    assert any(stop in row for row in best)


def test_more_candidates_than_tokens_are_all_tokens():
    lm = make_lm(vocabulary_size=4)  # top-k has k=5 unless told otherwise
    settings = {"prompts": [[1, 3]] * 200, "max_new_tokens": 2, "seed": 0}

    for many, all_four in (
        (keras_hub.samplers.TopKSampler(), keras_hub.samplers.TopKSampler(k=4)),
        (keras_hub.samplers.TopPSampler(p=0.9, k=9), keras_hub.samplers.TopPSampler(p=0.9)),
        (keras_hub.samplers.ContrastiveSampler(), keras_hub.samplers.ContrastiveSampler(k=4)),
    ):
        found = lm.generate(**settings, sampler=many)
        assert found == lm.generate(**settings, sampler=all_four)


@pytest.mark.parametrize("prompts", [RAGGED, RAGGED[2:]], ids=["three", "one"])
def test_contrastive_search_is_the_published_rule_for_prompts_of_any_lengths(lm, prompts):
    """Su et al. 2022, equation 3, by full forward passes."""
    k, alpha = 4, 0.6

    def reference(row, steps):
        for _ in range(steps):
            likely = np.exp(next_log_probabilities(lm, row))
            best = np.argsort(-likely)[:k].tolist()
            end = len(row) + 1
            padding = [0] * (WINDOW - end)  # passes of one length are compiled once
            states = lm.backbone(np.array([[*row, token, *padding] for token in best]))
            scores = {}
            for token, h in zip(best, keras.ops.convert_to_numpy(states)[:, :end], strict=True):
                h = h / np.linalg.norm(h, axis=-1, keepdims=True)
                scores[token] = (1 - alpha) * likely[token] - alpha * (h[:-1] @ h[-1]).max()
            row = [*row, max(scores, key=scores.get)]
        return row

    sampler = keras_hub.samplers.ContrastiveSampler(k=k, alpha=alpha)
    rows = lm.generate(prompts, 5, sampler=sampler)

    assert rows == [reference(row, 5) for row in prompts]


@pytest.mark.compiled
@pytest.mark.parametrize("sampler", ["top_k", "random", keras_hub.samplers.TopPSampler(p=0.9)])
def test_the_same_seed_gives_the_same_continuation(lm, sampler):
    first = lm.generate([3, 1], 20, sampler=sampler, seed=7)
    again = lm.generate([3, 1], 20, sampler=sampler, seed=7)
    other = lm.generate([3, 1], 20, sampler=sampler, seed=8)

    assert first == again != other


@pytest.mark.compiled
@pytest.mark.parametrize("sampler", ["random", keras_hub.samplers.RandomSampler(seed=1)])
def test_without_a_seed_calls_differ(lm, sampler):
    assert lm.generate([3, 1], 20, sampler=sampler) != lm.generate([3, 1], 20, sampler=sampler)


@pytest.mark.compiled
def test_a_sampler_with_a_seed_of_its_own_repeats_itself_in_a_new_object(lm):
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


@pytest.mark.compiled
def test_samples_follow_the_models_probabilities(lm):
    rows = lm.generate([[5, 1, 9]] * 4000, 1, sampler="random", seed=0)

    counts = np.bincount([row[-1] for row in rows], minlength=VOCABULARY)
    expected = np.exp(next_log_probabilities(lm, [5, 1, 9]))
    np.testing.assert_allclose(counts / 4000, expected, atol=0.04)


@pytest.mark.parametrize("options", [{}, {"stop": "zz"}, {"return_log_probabilities": True}])
@pytest.mark.parametrize("token", [-3, 10**6])
def test_what_a_sampler_may_not_choose_is_refused(text_lm, token, options):
    class Wild(keras_hub.samplers.Sampler):
        def get_next_token(self, probabilities):
            return keras.ops.full(probabilities.shape[:1], token)

    size = text_lm.tokenizer.vocabulary_size
    with pytest.raises(ValueError, match=rf"ids in \[0, {size}\).*Received: {token} from its get_"):
        text_lm.generate("the", 3, Wild(), **options)


def test_beyond_a_window_beams_of_a_prompt_do_not_depend_on_the_others(lm):
    prompts = [[i % VOCABULARY for i in range(WINDOW - 9)], [4], [8, 8, 20]]

    rows = lm.generate(prompts, 60, sampler="beam", sliding_window=True)

    for prompt, row in zip(prompts, rows, strict=True):
        assert row == lm.generate(prompt, 60, sampler="beam", sliding_window=True)
