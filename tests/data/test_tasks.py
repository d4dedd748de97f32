import warnings

import numpy as np
import pytest
from labelled import CLASSIFY, DELIMITER, PLAIN, START, TOKENIZER, ids, rows

from kgpt.data import classification, entailment, multiple_choice, regression, similarity

# === Layouts (GPT-1, figure 1) ===


def test_a_text_stands_between_start_and_classify():
    data = classification(["bad"], [0], TOKENIZER, seed=None)

    assert rows(data) == ([[START, *ids("bad"), CLASSIFY]], [0])


def test_a_delimiter_stands_between_premise_and_hypothesis():
    data = entailment(["it rains"], ["it is wet"], [1], TOKENIZER, seed=None)

    expected = [START, *ids("it rains"), DELIMITER, *ids("it is wet"), CLASSIFY]
    assert rows(data) == ([expected], [1])


def test_similarity_has_both_orders_of_a_pair():
    data = similarity(["one"], ["other"], [1], TOKENIZER, seed=None)

    one, other = ids("one"), ids("other")
    [(x, labels)] = data
    assert x["token_ids"].shape[:2] == (1, 2)
    assert rows(data)[0] == [
        [START, *one, DELIMITER, *other, CLASSIFY],
        [START, *other, DELIMITER, *one, CLASSIFY],
    ]
    assert labels.tolist() == [1]


@pytest.mark.parametrize("both_orders", [True, False])
def test_regression_reads_a_pair_in_both_orders_or_in_one(both_orders):
    pairs = [("one", "other")]
    data = regression(pairs, [2.5], TOKENIZER, both_orders=both_orders, seed=None)

    [(x, targets)] = data
    assert x["token_ids"].ndim == (3 if both_orders else 2)
    assert rows(data)[0][0] == [START, *ids("one"), DELIMITER, *ids("other"), CLASSIFY]
    assert targets.dtype == np.float32
    assert targets.tolist() == [[2.5]]


def test_regression_takes_single_texts_and_rows_of_targets():
    data = regression(["one", "two"], [[1, 2, 3], [4, 5, 6]], TOKENIZER, seed=None)

    assert rows(data) == (
        [[START, *ids("one"), CLASSIFY], [START, *ids("two"), CLASSIFY]],
        [[1, 2, 3], [4, 5, 6]],
    )


def test_multiple_choice_has_a_sequence_for_each_choice():
    data = multiple_choice(["sky"], [["blue", "loud", "x"]], [2], TOKENIZER, seed=None)

    [(x, labels)] = data
    assert x["token_ids"].shape[:2] == (1, 3)
    assert labels.tolist() == [2]
    assert rows(data)[0] == [
        [START, *ids("sky"), DELIMITER, *ids(choice), CLASSIFY] for choice in ("blue", "loud", "x")
    ]


def test_contexts_that_are_cut_are_warned_of():
    contexts, choices = ["a sky of many words", "sky", ""], [["a", "b"], ["a", "b"], ["c", "many"]]
    longest = len(ids(contexts[0])) + 4

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        multiple_choice(contexts, choices, [0, 1, 0], TOKENIZER, sequence_length=longest)
    with pytest.warns(UserWarning, match=f"^1 of 3 contexts.*length={longest - 1} and lose their"):
        multiple_choice(contexts, choices, [0, 1, 0], TOKENIZER, sequence_length=longest - 1)


def test_an_empty_text_is_start_and_classify():
    data = classification(["", "a"], [0, 1], TOKENIZER, seed=None)

    assert rows(data)[0][0] == [START, CLASSIFY]


@pytest.mark.parametrize("make", [entailment, similarity])
def test_pairs_longer_than_the_context_keep_their_special_tokens(make):
    data = make(["a" * 100], ["b" * 90], [0], TOKENIZER, sequence_length=11, seed=None)

    for sequence in rows(data)[0]:
        assert len(sequence) == 11
        assert sequence[0] == START
        assert sequence[5] == DELIMITER
        assert sequence[-1] == CLASSIFY


# === Wrong arguments ===


def test_a_tokenizer_without_task_tokens_is_refused():
    with pytest.raises(ValueError, match=r"start, delimiter and classify.*with_special_tokens\(\)"):
        classification(["a"], [0], PLAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 4}, "at least 5.*sequence_length=4"),
        ({"sequence_length": 12.5}, "sequence_length=12.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        classification(["a"], [0], TOKENIZER, **arguments)
