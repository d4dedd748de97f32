import keras
import numpy as np
import pytest
from keras import ops

from kgpt import recipes


def rates(schedule, steps):
    return np.array([float(ops.convert_to_numpy(schedule(step))) for step in steps])


def test_the_rate_warms_up_linearly_and_falls_to_zero_by_a_cosine():
    schedule = recipes.WarmupCosine(2.5e-4, steps=1000, warmup_steps=200)

    np.testing.assert_allclose(rates(schedule, [0, 50, 100, 200]), [0, 0.625e-4, 1.25e-4, 2.5e-4])
    progress = np.array([0.25, 0.5, 0.75, 1.0])
    expected = 2.5e-4 * 0.5 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose(rates(schedule, 200 + 800 * progress), expected, atol=1e-9)


def test_a_schedule_can_begin_in_the_middle_of_training():
    schedule = recipes.WarmupCosine(1e-3, steps=100, warmup_steps=10)
    later = recipes.WarmupCosine(1e-3, steps=100, warmup_steps=10, start=70)

    np.testing.assert_allclose(rates(later, [70, 75, 120]), rates(schedule, [0, 5, 50]))


def test_the_papers_warm_up_shrinks_with_a_short_run():
    assert recipes.WarmupCosine(1e-3, steps=1_000_000).warmup_steps == 2000
    assert recipes.WarmupCosine(1e-3, steps=500).warmup_steps == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"steps": 2.5}, "Received: steps=2.5"),
        ({"steps": 10, "warmup_steps": 11}, "warmup_steps=11, steps=10"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipes.pretraining_optimizer(**arguments)


def test_weight_decay_acts_on_matrices_only_also_after_saving():
    config = keras.optimizers.serialize(recipes.AdamW(0.1, weight_decay=0.5))

    loaded = keras.optimizers.deserialize(config)
    matrix = keras.Variable(np.ones((2, 3), "float32"))
    vector = keras.Variable(np.ones((3,), "float32"))
    loaded.build([matrix, vector])
    loaded.apply([ops.zeros((2, 3)), ops.zeros((3,))])

    np.testing.assert_allclose(ops.convert_to_numpy(matrix.value), 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(vector.value), 1)


def test_the_schedule_counts_updates_when_gradients_are_accumulated():
    plain = recipes.pretraining_optimizer(steps=40)
    accumulating = recipes.pretraining_optimizer(steps=40, gradient_accumulation_steps=3)

    schedules = [
        keras.optimizers.serialize(o)["config"]["learning_rate"] for o in (plain, accumulating)
    ]
    plain, accumulating = (keras.optimizers.schedules.deserialize(s) for s in schedules)

    np.testing.assert_allclose(rates(accumulating, [6, 30, 90]), rates(plain, [2, 10, 30]))
