import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled import TOKENIZER, ids, numbered, order, rows

from kgpt.data import classification


def test_arrays_have_the_documented_types():
    for x, labels in numbered(7, batch_size=3):
        assert x["token_ids"].dtype == np.int32
        assert x["padding_mask"].dtype == bool
        assert x["token_ids"].shape == x["padding_mask"].shape
        assert labels.dtype == np.int32
        assert (x["token_ids"][~x["padding_mask"]] == 0).all()


# === Lengths ===


def test_short_texts_are_not_padded_to_the_longest():
    texts = ["ab"] * 8 + ["x" * 120] * 8
    data = classification(texts, [0] * 16, TOKENIZER, sequence_length=128, batch_size=4)

    lengths = sorted(x["token_ids"].shape[1] for x, _ in data)

    assert lengths[:2] == [16, 16]
    assert lengths[2:] == [128, 128]


def test_a_pass_has_few_different_lengths():
    texts = ["x" * i for i in range(500)]
    data = classification(texts, [0] * 500, TOKENIZER, sequence_length=512, batch_size=4)

    lengths = {x["token_ids"].shape[1] for x, _ in data}

    assert len(lengths) == 5
    assert data.longest_sequence == max(lengths) == 504


def test_nothing_is_padded_beyond_the_sequence_length():
    data = classification(["x" * 50], [0], TOKENIZER, sequence_length=37)

    [(x, _)] = data
    assert x["token_ids"].shape == (1, 37)


# === Order ===


def test_the_order_is_random_the_same_in_every_run_and_another_in_each_pass():
    def orders(seed):
        data = numbered(50, batch_size=4, seed=seed)
        return [tuple(order(data)) for _ in range(3)]

    assert orders(0) == orders(0)
    assert len({*orders(0), *orders(1)}) == 6


@given(count=st.integers(1, 23), batch_size=st.integers(1, 9), seed=st.none() | st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_each_example_comes_once_in_each_pass(count, batch_size, seed):
    data = numbered(count, batch_size=batch_size, seed=seed)

    for _ in range(2):
        batches = list(data)
        assert len(batches) == len(data) == -(-count // batch_size)
        assert sorted(order(batches)) == list(range(count))


def test_a_text_keeps_its_own_label():
    data = numbered(23, batch_size=4, seed=1)

    sequences, labels = rows(data)

    for sequence, label in zip(sequences, labels, strict=True):
        assert sequence[1:4] == ids(f"{label:03}")


def test_batches_do_not_always_hold_the_same_neighbours():
    data = numbered(40, batch_size=4, seed=0)

    groups = [{frozenset(labels.tolist()) for _, labels in data} for _ in range(2)]

    assert groups[0] != groups[1]


def test_without_a_seed_each_pass_goes_by_length():
    data = numbered(23, batch_size=4, seed=None)

    first, second = order(data), order(data)
    lengths = [x["token_ids"].shape[1] for x, _ in data]

    assert first == second
    assert lengths == sorted(lengths)


@given(step=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_resuming_at_any_step_equals_the_uninterrupted_stream(step):
    new = lambda: numbered(23, batch_size=4, seed=3)  # noqa: E731
    uninterrupted, resumed = new(), new()
    stream = [label for _ in range(6) for label in map(tuple, (y for _, y in uninterrupted))]

    state = json.loads(json.dumps({**new().get_state(), "next_batch": step}))
    resumed.set_state(state)

    got = [tuple(y) for _ in range(2) for _, y in resumed]
    assert got == stream[step : step + 2 * len(resumed)]


@pytest.mark.parametrize(
    "other",
    [
        lambda: numbered(22, batch_size=4, seed=3),
        lambda: numbered(23, batch_size=5, seed=3),
        lambda: numbered(23, batch_size=4, seed=4),
    ],
)
def test_the_state_of_other_data_is_refused(other):
    with pytest.raises(ValueError, match="must come from the same data"):
        numbered(23, batch_size=4, seed=3).set_state(other().get_state())


def test_repeat_lets_the_passes_follow_each_other():
    data, single = (numbered(10, batch_size=4, seed=2, repeat=repeat) for repeat in (True, False))
    expected = [tuple(y) for _ in range(3) for _, y in single]

    got = [tuple(y) for (_, y), _ in zip(data, range(9), strict=False)]

    assert got == expected


@pytest.mark.parametrize("seed", [None, 0])
def test_rows_by_length_are_put_back_in_the_order_of_the_texts(seed):
    data = numbered(23, batch_size=4, seed=seed)
    data.set_state({**data.get_state(), "next_batch": 2})  # as after a resumed run

    by_length = data.from_beginning()
    outputs = np.concatenate([y for _, y in by_length])

    assert by_length.original_order(outputs).tolist() == list(range(23))
    assert data.get_state()["next_batch"] == 2
