"""Training on eight simulated devices of the JAX backend equals training on one, in each style."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("keras.distribution acts on the JAX backend", allow_module_level=True)

from eight_devices import LENGTH, MESHES, ROWS, SIZES, VOCABULARY

TESTS = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
# Into how many parts matrices are divided, and that of a head, which no axis of the model divides.
PARTS = {"data": (1, 1), "fsdp": (8, 8), "tensor": (4, 1), "tensor_fsdp": (8, 2)}
KINDS = ["language model", "classifier"]


@pytest.fixture(scope="module")
def results():
    done = subprocess.run(
        [sys.executable, TESTS / "eight_devices.py"],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("style", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_steps_have_the_losses_of_one_device(results, kind, style):
    one, eight = results[f"{kind}, None"], results[f"{kind}, {style}"]

    assert eight["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert one["losses"][-1] < one["losses"][0] - 0.1  # something was learned


@pytest.mark.parametrize("case", ["odd vocabulary", "LoRA"])
def test_so_have_a_vocabulary_that_does_not_divide_and_lora(results, case):
    one, eight = results[f"{case}, None"], results[f"{case}, tensor_fsdp"]

    assert eight["losses"] == pytest.approx(one["losses"], abs=1e-4)


@pytest.mark.parametrize("style", MESHES)
def test_evaluation_equals_that_of_one_device(results, style):
    one, eight = results["language model, None"], results[f"language model, {style}"]

    assert eight["evaluate"] == pytest.approx(one["evaluate"], abs=1e-4)


def test_generation_and_scores_equal_those_of_one_device(results):
    one, eight = results["language model, None"], results["language model, tensor_fsdp"]

    assert eight["generate"] == one["generate"]
    assert eight["score"] == pytest.approx(one["score"], abs=1e-3)
    for a, b in zip(one["embed"], eight["embed"], strict=True):
        assert b == pytest.approx(a, abs=1e-3)


def test_prompts_that_the_devices_do_not_divide_are_filled_with_rows(results):
    one, eight = (
        results[f"language model, {style}"]["generate uneven"] for style in (None, "data")
    )

    assert eight[0] == one[0]
    assert one[0][0] != one[0][1]  # the stop token has ended a row
    assert (set(one[1]), set(eight[1])) == ({3}, {8})


@pytest.mark.parametrize("style", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_device_computes_an_eighth(results, kind, style):
    one, eight = results[f"{kind}, None"], results[f"{kind}, {style}"]

    assert eight["products"] * 8 == pytest.approx(one["products"], rel=0.1)


@pytest.mark.parametrize("style", MESHES)
def test_each_device_computes_an_eighth_of_an_evaluation(results, style):
    one, eight = results["language model, None"], results[f"language model, {style}"]

    assert eight["test products"] * 8 == pytest.approx(one["test products"], rel=0.1)


@pytest.mark.parametrize("style", MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_optimizer_are_divided_among_the_devices(results, kind, style):
    found = results[f"{kind}, {style}"]
    parts, of_head = PARTS[style]

    for part, copies in {"matrices": 1, "optimizer": 2}.items():
        on_first, whole = found[part]
        head = copies * 4 * SIZES["hidden_dim"] * 2 if kind == "classifier" else 0
        assert on_first == (whole - head) / parts + head / of_head


@pytest.mark.parametrize("style", MESHES)
def test_logits_do_not_move_between_devices(results, style):
    moved = results[f"language model, {style}"]["moved"]

    assert moved  # gradients, for one
    assert not [shape for shape in moved if is_logits(shape)]


@pytest.mark.parametrize("style", ["data", "tensor"])
def test_the_embedding_does_not_move_over_the_model_axis(results, style):
    whole = [VOCABULARY, SIZES["hidden_dim"]]
    moved = results[f"language model, {style}"]["gathered"]

    assert whole not in moved
    assert whole[::-1] not in moved


def test_batches_that_devices_do_not_divide_count_as_on_one_device(results):
    one, eight = results["uneven"]

    assert one.keys() == eight.keys()
    for name in one:
        found, expected = (keras.tree.flatten(figures[name]) for figures in (eight, one))
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), name


def test_without_orbax_divided_weights_are_refused_when_training_begins(results):
    assert "pip install orbax-checkpoint" in results["checkpoints"]["without Orbax"]


@pytest.fixture(scope="module")
def checkpoints(results):
    if importlib.util.find_spec("orbax") is None:
        pytest.skip("divided weights are saved with Orbax: orbax-checkpoint")
    return results["checkpoints"]


def test_any_style_goes_on_from_the_checkpoints_of_any_other(checkpoints):
    assert checkpoints["resumed"] == pytest.approx(checkpoints["whole"], abs=1e-4)


def test_another_run_is_refused_and_replaced_where_that_is_chosen(checkpoints):
    assert "data.seed: 0 in the checkpoint, 1 now" in checkpoints["another run"]
    assert checkpoints["restarted"] == ["checkpoint-00000006"]


def test_the_chunks_of_a_checkpoint_are_the_shards(checkpoints):
    shards = checkpoints["shards"]

    assert {name: checkpoints["chunks"][name] for name in shards} == shards
    assert [VOCABULARY // 4, SIZES["hidden_dim"] // 2] in shards.values()


def is_logits(shape):
    """Whether a shape has an axis of the vocabulary, or of a part of it, and one of rows."""
    rows = {ROWS * LENGTH // n for n in (1, 2, 8)}
    return bool(rows & set(shape)) and bool({VOCABULARY, VOCABULARY // 4} & set(shape))
