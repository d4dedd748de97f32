import os
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from full_passes import RAGGED, VOCABULARY, make_lm
from keras import ops

from kgpt.generation import compiled
from kgpt.generation.compiled import functions_for, prefill, step
from kgpt.generation.layout import lay_out


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_states_of_a_prompt_in_two_parts_equal_those_of_the_full_forward_pass(norm_first, rotary):
    options = {"rotary_positions": rotary, "query_key_norm": rotary}
    backbone = make_lm(norm_first, num_layers=2, **options).backbone
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9))
    positions = np.broadcast_to(np.arange(9, dtype="int32"), (2, 9))
    visible = np.tril(np.ones((9, 9), "bool"))[None].repeat(2, axis=0)
    rows, positions, visible = map(ops.convert_to_tensor, (rows, positions, visible))

    first, cache = backbone.call_with_cache(
        rows[:, :5], None, 0, visible[:, :5, :5], positions[:, :5]
    )
    longer = [[ops.pad(x, [(0, 0), (0, 0), (0, 4), (0, 0)]) for x in pair] for pair in cache]
    second, cache = backbone.call_with_cache(
        rows[:, 5:], longer, 5, visible[:, 5:], positions[:, 5:]
    )

    found = ops.convert_to_numpy(ops.concatenate([first, second], axis=1))
    np.testing.assert_allclose(found, ops.convert_to_numpy(backbone(rows)), atol=1e-5)
    assert [tuple(x.shape) for pair in cache for x in pair] == [(2, 3, 9, 4)] * 4


@pytest.mark.parametrize(("num_layers", "new_slots"), [(2, 4), (1, 130)])
def test_cached_states_equal_those_of_the_full_forward_pass(num_layers, new_slots):
    backbone = make_lm(num_layers=num_layers, max_sequence_length=140).backbone
    row = np.random.default_rng(0).integers(0, VOCABULARY, 4 + new_slots).tolist()
    prompt_slots = 6
    tokens, lengths = map(ops.convert_to_tensor, lay_out([row[:4], [4]], prompt_slots))

    cache, prompt_states = prefill(backbone, tokens, lengths, new_slots)
    states = [ops.convert_to_numpy(prompt_states)[0, [0, 1, 2, 5]]]
    for slot, token in enumerate(row[4:], start=prompt_slots):
        token_ids = ops.convert_to_tensor([[token], [token]])
        h, cache = step(backbone, token_ids, cache, slot, new_slots)
        states.append(ops.convert_to_numpy(h)[:1])

    expected = ops.convert_to_numpy(backbone(np.array([row])))[0]
    np.testing.assert_allclose(np.concatenate(states), expected, atol=1e-5)


def test_prompts_of_other_lengths_and_equal_samplers_compile_nothing_new(passes):
    lm = make_lm()
    lm.generate([1, 2, 3], 5, sampler=keras_hub.samplers.TopKSampler(k=4))
    steps = passes.count((1, 1))

    lm.generate([4, 5], 9, sampler=keras_hub.samplers.TopKSampler(k=4), seed=1)

    assert passes.count((1, 1)) == steps > 0
    assert set(passes) == {(1, 33), (1, 1)}
    if keras.config.backend() != "torch":
        assert passes.count((1, 33)) == 1


def test_equal_samplers_have_the_same_functions_until_the_variables_change():
    lm = make_lm()
    first = functions_for(lm, keras_hub.samplers.TopKSampler(k=4, seed=1))

    assert functions_for(lm, keras_hub.samplers.TopKSampler(k=4, seed=2)) is first
    assert functions_for(lm, keras_hub.samplers.TopKSampler(k=5)) is not first
    lm.quantize("int8")
    assert functions_for(lm, keras_hub.samplers.TopKSampler(k=4)) is not first


def test_other_numbers_of_the_options_compile_nothing_new_and_act(passes):
    def options(*numbers):
        names = ("temperature", "top_p", "min_p", "repetition_penalty")
        return {"seed": 0, **dict(zip(names, numbers, strict=True))}

    lm, other = make_lm(), make_lm()
    first = lm.generate([1, 2, 3], 9, **options(0.7, 0.9, 0.05, 1.1))
    compiled = len([shape for shape in passes if shape[1] == 1])

    second = lm.generate([1, 2, 3], 9, **options(3.0, 0.99, 0.01, 1.6))

    assert len([shape for shape in passes if shape[1] == 1]) == compiled > 0
    assert first != second == other.generate([1, 2, 3], 9, **options(3.0, 0.99, 0.01, 1.6))


def test_the_functions_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_KEPT", 2)
    lm, made = make_lm(), []

    for temperature in (1, 2, 1, 3, 1, 2):
        compiled.cached(lm, temperature, lambda t=temperature: made.append(t))

    assert made == [1, 2, 3, 2]


def test_the_loop_ends_when_all_rows_have_stopped_or_have_all_they_may(lm):
    sampler = keras_hub.samplers.GreedySampler()
    free = lm.generate(RAGGED, 8, sampler=sampler, return_prompt=False)
    functions = functions_for(lm, sampler)

    def slots_written(count, stops):
        tokens, lengths = lay_out(RAGGED, 33)
        arguments = (tokens, lengths, np.zeros(3, "bool"), count, np.array(stops, "int32"), 0)
        rows, _ = functions.complete([], 32, *arguments)
        return (keras.ops.convert_to_numpy(rows)[:, 33:] >= 0).sum(axis=1).tolist()

    assert slots_written(6, []) == [6, 6, 6]
    assert slots_written(8, [row[2] for row in free]) == [3, 3, 3]
    assert slots_written(8, [row[0] for row in free]) == [1, 1, 1]


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="TensorFlow writes its programs")
def test_xla_compiles_one_step_for_all_slots(tmp_path):
    options = "top_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=2, min_new_tokens=2"
    script = (
        "from full_passes import make_lm; "
        f"print(*make_lm().generate([3, 1], 9, stream=True, stop_token_ids=5, {options}))"
    )
    dump = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"}

    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **dump},
        cwd=Path(__file__).parent,
        check=True,
    )

    programs = [path.name for path in tmp_path.glob("*.before_optimizations.txt")]
    assert sum("next_tokens" in name for name in programs) == 1
