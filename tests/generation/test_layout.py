import numpy as np
import pytest
from keras import ops

from kgpt.generation.layout import in_sight, lay_out, prompt_layout, sizes, step_layout


def test_the_last_token_of_each_prompt_stands_in_the_last_slot():
    token_ids, lengths = lay_out([[5, 1, 9], [4]], 5)

    assert token_ids.tolist() == [[5, 1, 0, 0, 9], [0, 0, 0, 0, 4]]
    assert lengths.tolist() == [3, 1]


def test_tokens_of_a_prompt_have_the_positions_and_see_the_tokens_that_they_would_alone():
    lengths = ops.convert_to_tensor(np.array([3, 1], "int32"))

    layout = prompt_layout(lengths, 5)
    is_token, visible, position_ids = (ops.convert_to_numpy(x) for x in layout)

    assert is_token.astype(int).tolist() == [[1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert position_ids[is_token].tolist() == [0, 1, 2, 0]
    seen = [row.nonzero()[0].tolist() for row in visible[0][is_token[0]]]
    assert seen == [[0], [0, 1], [0, 1, 4]]
    assert visible[1, 4].nonzero()[0].tolist() == [4]
    assert visible.any(axis=-1).all()


@pytest.mark.parametrize("seen", [7, 9])
def test_a_new_token_sees_its_prompt_and_the_new_tokens_up_to_itself(seen):
    lengths = ops.convert_to_tensor(np.array([3, 1], "int32"))

    layout = step_layout(lengths, slot=6, prompt_slots=5, seen=seen)
    visible, position_ids = (ops.convert_to_numpy(x) for x in layout)

    assert visible.shape == (2, 1, seen)
    assert visible[0, 0].nonzero()[0].tolist() == [0, 1, 4, 5, 6]
    assert visible[1, 0].nonzero()[0].tolist() == [4, 5, 6]
    assert position_ids.tolist() == [[4], [2]]


def test_slots_are_powers_of_two_within_the_window():
    assert sizes([[1] * 3, [1] * 40], 70, window=256) == (70, 65, 128)
    assert sizes([[1] * 2], 5, window=256) == (5, 33, 32)
    assert sizes([[1] * 40], 70, window=48) == (8, 48, 32)


def test_of_a_full_window_the_last_half_is_seen():
    assert in_sight(list(range(7)), 8) == list(range(7))
    assert in_sight(list(range(8)), 8) == [4, 5, 6, 7]
    assert in_sight(list(range(20)), 8) == [16, 17, 18, 19]
    assert in_sight([1, 2], 1) == [2]
