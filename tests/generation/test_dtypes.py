import contextlib

import keras
import numpy as np
import pytest
from full_passes import RAGGED, make_lm


@contextlib.contextmanager
def wide_numbers(dtype):
    """Lets JAX compute in float64, which it does not unless told."""
    if keras.config.backend() != "jax" or dtype != "float64":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-4), ("bfloat16", 0.2)])
def test_models_of_any_policy_generate_what_their_full_passes_say(dtype, tolerance, rotary):
    with wide_numbers(dtype):
        lm = make_lm(dtype=dtype, rotary_positions=rotary, query_key_norm=rotary)

        for prompt, row in zip(RAGGED, lm.generate(RAGGED, 6, sampler="greedy"), strict=True):
            logits = keras.ops.cast(lm(np.array([row])), "float32")
            logits = keras.ops.convert_to_numpy(logits)[0, len(prompt) - 1 : -1]
            chosen = logits[np.arange(6), row[len(prompt) :]]
            np.testing.assert_allclose(chosen, logits.max(-1), atol=tolerance)


@pytest.mark.parametrize("sampler", ["top_p", "beam", "contrastive"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_models_of_any_policy_take_all_samplers(dtype, sampler):
    with wide_numbers(dtype):
        lm = make_lm(dtype=dtype)

        rows = lm.generate(RAGGED, 3, sampler=sampler, seed=0)

    assert [len(row) for row in rows] == [len(row) + 3 for row in RAGGED]


@pytest.mark.skipif(keras.config.backend() != "jax", reason="others have no such switch")
@pytest.mark.parametrize("sampler", ["top_k", "contrastive"])
def test_generation_on_jax_does_not_mind_wide_numbers(sampler):
    with wide_numbers("float64"):
        wide = make_lm().generate(RAGGED, 6, sampler=sampler, seed=0)

    assert wide == make_lm().generate(RAGGED, 6, sampler=sampler, seed=0)
