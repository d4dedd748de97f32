import keras
import numpy as np
import pytest
from full_passes import (
    RAGGED,
    greedy_by_full_passes,
)


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
