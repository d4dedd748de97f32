import keras
import numpy as np
import pytest
from oracles import to_numpy

from kgpt.kernels.dropout import dropout, keep_mask, reference, repeatable_masks


def seed():
    return keras.random.SeedGenerator(3)


def test_what_is_kept_is_divided_by_its_share():
    x, keep = np.array([[1.0, 2.0, 3.0, 4.0]], "float32"), np.array([[True, False, True, True]])

    kept = to_numpy(reference(keras.ops.array(x), keras.ops.array(keep), 0.25))

    np.testing.assert_allclose(kept, [[4 / 3, 0, 4, 16 / 3]], rtol=1e-6)


def test_dropout_is_the_formula_with_a_mask_of_its_shape():
    x = keras.ops.array(np.random.default_rng(0).standard_normal((4, 7)).astype("float32"))

    kept = to_numpy(dropout(x, 0.4, seed()))

    mask = keep_mask((4, 7), 0.4, seed())
    np.testing.assert_array_equal(kept, to_numpy(reference(x, mask, 0.4)))


def test_a_mask_is_broadcast():
    kept = to_numpy(dropout(keras.ops.ones((50, 3, 40)), 0.5, seed(), (50, 1, 40)))

    assert (kept == kept[:, :1]).all()
    assert (kept == 0).mean() == pytest.approx(0.5, abs=0.05)


def test_numbered_masks_are_repeated_and_differ_by_number():
    x, draw = keras.ops.zeros((30, 40)), repeatable_masks(0.5, seed())

    first, second, again = (to_numpy(draw(x, number)) for number in (0, 1, 0))

    np.testing.assert_array_equal(first, again)
    assert (first == second).mean() == pytest.approx(0.5, abs=0.05)


def test_masks_of_the_next_step_differ():
    generator, x = seed(), keras.ops.zeros((30, 40))

    first, second = (to_numpy(repeatable_masks(0.5, generator)(x, 0)) for _ in range(2))

    assert (first == second).mean() == pytest.approx(0.5, abs=0.05)
