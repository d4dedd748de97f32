import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from full_passes import (
    RAGGED,
    greedy_by_full_passes,
)

WRONG = {
    "temperature": [0, -1.0, float("nan"), float("inf"), "1", True],
    "top_k": [0, -1, 1.5, True],
    "top_p": [0, -0.1, 1.1, float("nan"), "0.9"],
    "min_p": [-0.1, 1.1, float("nan")],
    "repetition_penalty": [0, -1.0, float("nan"), float("inf"), True],
    "no_repeat_ngram_size": [0, -1, 2.0],
    "stop": ["", [], ["a", ""], 5, [5], b"a"],
    "min_new_tokens": [-1, 1.0, None],
    "num_return_sequences": [0, 2.0, True],
    "return_log_probabilities": ["no", 1, None],
}


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
        (np.array([1.0, 2.0]), {}, "ints in"),
        (np.array([True, False]), {}, "ints in"),
        ([[1, 2], [3, True]], {}, "ints in"),
        (np.zeros((1, 2, 3), "int32"), {}, "along one axis"),
        ({"text": ["the"]}, {}, r"dict with the columns \['text'\].*=table\['text'\]"),
        ({"token_ids": [[1, 0]], "padding_mask": [[1, 0]]}, {}, "without padding.*padding_mask"),
        ({"input_ids": [[1]], "attention_mask": [[1]]}, {}, "without padding.*attention_mask"),
        (iter([[1]]), {}, r"list_iterator.*prompts=list\(prompts\)"),
        (tf.ragged.constant([[1, 2], [3]]), {}, r"Ragged.*prompts=prompts\.to_list\(\)"),
        (np.array([b"the"], object), {}, r"Received: .b'the'.. Bytes become text by decode\(\)"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([1], {"max_new_tokens": 2.0}, "max_new_tokens=2.0"),
        ([1], {"max_new_tokens": True}, "max_new_tokens=True"),
        ([1], {"sampler": "nucleus"}, "greedy, top_k.*Received: sampler='nucleus'"),
        ([1], {"sampler": 5}, "sampler=5"),
        ([1], {"stop_token_ids": "end"}, "stop_token_ids='end'"),
        ([1], {"stop_token_ids": [1.5]}, "stop_token_ids"),
        ([1], {"stop_token_ids": np.array(1.0)}, "stop_token_ids"),
        ([1], {"stop_token_ids": True}, "stop_token_ids=True"),
        ([1], {"stop_token_ids": -1}, r"in \[0, 23\).*stop_token_ids=-1"),
        ([1], {"stop_token_ids": [3, 23]}, r"stop_token_ids=\[3, 23\]"),
        ([1], {"stop_token_ids": {3: "end"}}, "stop_token_ids={3"),
        ([1], {"return_prompt": "no"}, "return_prompt must be a bool.*'no'"),
        ([1], {"stream": None}, "stream must be a bool"),
        ([1], {"sliding_window": 8}, "sliding_window must be a bool"),
        ([1], {"seed": -1}, "seed=-1"),
        ([1], {"seed": 2**31}, "seed=2147483648"),
        ([1], {"seed": 1.0}, "seed=1.0"),
        ([1], {"seed": True}, "seed=True"),
        ([1], {"seed": "x"}, "seed='x'"),
        *(
            ([1], {name: value}, f"{name} must be")
            for name, values in WRONG.items()
            for value in values
        ),
        ([1], {"min_new_tokens": 4}, "min_new_tokens=4, max_new_tokens=3"),
        ([1], {"min_new_tokens": 1, "stop_token_ids": range(23)}, "some token must be no stop"),
        ([1], {"stop": "a"}, "stop is for text.*prompts of token ids"),
        *(
            ([1], {"sampler": sampler, name: 0.5 if "p" in name[-2:] else 2}, f"{name} can be had")
            for sampler in ("greedy", "beam", "contrastive", keras_hub.samplers.RandomSampler())
            for name in ("temperature", "top_k", "top_p", "min_p")
        ),
        *(
            ([1], {"sampler": sampler, **option}, "samplers that settle a token at a time")
            for sampler in ("beam", "contrastive")
            for option in (
                {"repetition_penalty": 1.2},
                {"no_repeat_ngram_size": 2},
                {"stop": "a"},
                {"min_new_tokens": 1},
                {"return_log_probabilities": True},
            )
        ),
        *(
            ([1], {"sampler": sampler, "num_return_sequences": 2}, "samples that differ")
            for sampler in ("greedy", "beam", "contrastive")
        ),
        ([1], {"stream": True, "num_return_sequences": 2}, "num_return_sequences=2"),
        ([1], {"stream": True, "return_log_probabilities": True}, "return_log_probabilities=True"),
        ([[1], [2]], {"stream": True}, "a list of 2 prompts"),
        ([1], {"stream": True, "sampler": "beam"}, "sampler=BeamSampler"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason(lm, prompts, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm.generate(prompts, **{"max_new_tokens": 3, **arguments})


def test_a_data_frame_is_refused_with_the_column_to_choose(lm):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"label": [1, 0], "text": ["the", "robot"]})

    with pytest.raises(ValueError, match=r"pandas.DataFrame.*prompts=table\['text'\]"):
        lm.generate(frame)
    with pytest.raises(ValueError, match=r"type Series.*prompts=prompts.to_list\(\)"):
        lm.generate(frame["text"])


def test_a_stop_that_no_text_can_have_is_refused(text_lm, tokenizer):
    outside = tokenizer.vocabulary_size

    assert outside < text_lm.backbone.vocabulary_size
    with pytest.raises(ValueError, match=f"stop_token_ids={outside}"):
        text_lm.generate("the", 3, stop_token_ids=outside)


@pytest.mark.parametrize("make", [tuple, set, np.array, keras.ops.convert_to_tensor])
def test_stops_may_be_of_any_kind(lm, make):
    expected = lm.generate([5, 1], 9, sampler="greedy", stop_token_ids=[3, 7, 8])

    assert lm.generate([5, 1], 9, sampler="greedy", stop_token_ids=make([3, 7, 8])) == expected


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        ("TopK", {"k": 0}, "k of a TopKSampler must be an int of at least 1.*k=0"),
        ("TopK", {"k": -3}, "k=-3"),
        ("TopK", {"k": 2.0}, "k=2.0"),
        ("TopK", {"k": True}, "k=True"),
        ("TopK", {"k": None}, "k=None"),
        ("Contrastive", {"k": 0}, "k of a ContrastiveSampler"),
        ("Contrastive", {"alpha": 1.5}, r"alpha of a ContrastiveSampler.*\[0, 1\].*alpha=1.5"),
        ("Contrastive", {"alpha": float("nan")}, "alpha=nan"),
        ("TopP", {"p": 0}, r"p of a TopPSampler must be a number in \(0, 1\].*p=0"),
        ("TopP", {"p": 1.5}, "p=1.5"),
        ("TopP", {"p": -0.1}, "p=-0.1"),
        ("TopP", {"p": float("nan")}, "p=nan"),
        ("TopP", {"p": "0.9"}, "p='0.9'"),
        ("TopP", {"p": 0.9, "k": 0}, "k of a TopPSampler must be None or"),
        ("Beam", {"num_beams": 0}, "num_beams of a BeamSampler.*num_beams=0"),
        ("Beam", {"num_beams": 1.5}, "num_beams=1.5"),
        ("Beam", {"return_all_beams": True}, "one sequence"),
        ("Speculative", {}, "needs one model"),
        ("Greedy", {"temperature": 0}, "temperature=0"),
        ("Random", {"temperature": 0.0}, "temperature of a RandomSampler.*greedy.*temperature=0.0"),
        ("Random", {"temperature": 1e-40}, "temperature=1e-40"),
        ("TopK", {"temperature": -1.0}, "temperature=-1.0"),
        ("TopP", {"temperature": float("nan")}, "temperature=nan"),
        ("Beam", {"temperature": float("inf")}, "temperature=inf"),
        ("Contrastive", {"temperature": None}, "temperature=None"),
    ],
)
def test_settings_by_which_nothing_can_be_sampled_are_refused(lm, sampler, settings, message):
    sampler = getattr(keras_hub.samplers, f"{sampler}Sampler")(**settings)

    with pytest.raises(ValueError, match=message):
        lm.generate([1], 3, sampler=sampler)


def test_settings_of_a_sampler_derived_from_keras_hubs_are_checked(lm):
    class Mine(keras_hub.samplers.TopKSampler):
        pass

    with pytest.raises(ValueError, match="k of a Mine"):
        lm.generate([1], 3, sampler=Mine(k=0))


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("max_new_token", "max_new_tokens"),
        ("max_length", r"max_new_tokens\? It counts new tokens only"),
        ("sampeler", "sampler"),
        ("stop_tokens", "stop_token_ids"),
        ("eos_token_id", "stop_token_ids"),
        ("streaming", "stream"),
        ("strip_prompt", "return_prompt"),
        ("slide_window", "sliding_window"),
        ("max_tokens", "max_new_tokens"),
        ("min_length", r"min_new_tokens\? It counts new tokens only"),
        ("stop_strings", "stop"),
        ("temprature", "temperature"),
        ("k", "top_k"),
        ("p", "top_p"),
        ("repetition_penality", "repetition_penalty"),
        ("do_sample", r"temperature\? temperature=1.0 is do_sample=True"),
        ("num_beams", r'sampler\? Try sampler="beam", or keras_hub.samplers.BeamSampler'),
        ("penalty_alpha", r'sampler\? Try sampler="contrastive"'),
        ("num_returned_sequences", "num_return_sequences"),
        ("output_scores", "return_log_probabilities"),
    ],
)
def test_a_misspelt_or_foreign_keyword_is_refused_with_the_one_that_is_meant(lm, keyword, meant):
    with pytest.raises(TypeError, match=rf"no argument '{keyword}'\. Did you mean {meant}"):
        lm.generate([1], **{keyword: 1})


@pytest.mark.parametrize(
    ("keyword", "reason"),
    [
        ("early_stopping", "Beams end when all have stopped"),
        ("pad_token_id", "results have no padding"),
        ("attention_mask", "lists of ids without padding"),
        ("use_cache", "always cached"),
    ],
)
def test_a_foreign_keyword_without_a_name_here_is_refused_with_the_reason(lm, keyword, reason):
    with pytest.raises(TypeError, match=rf"no argument '{keyword}'\..*{reason}"):
        lm.generate([1], **{keyword: 1})


def test_a_keyword_like_no_other_is_refused_with_all_that_there_are(lm):
    with pytest.raises(TypeError, match=r"'zzz'.*prompts, max_new_tokens, sampler.*sliding_window"):
        lm.generate([1], zzz=1)
