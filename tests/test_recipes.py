import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kgpt
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


def test_variables_excluded_by_hand_do_not_decay_either():
    optimizer = recipes.AdamW(0.1, weight_decay=0.5)
    variables = [
        keras.Variable(np.ones(shape), name=name)
        for name, shape in [("kernel", (2, 3)), ("position", (2, 3)), ("other", (3, 2)), ("b", 3)]
    ]
    optimizer.exclude_from_weight_decay([variables[2]], ["position"])

    optimizer.build(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables])

    found = [float(ops.convert_to_numpy(v).flat[0]) for v in variables]
    np.testing.assert_allclose(found, [0.95, 1, 1, 1], rtol=1e-6)


def test_weight_decay_acts_on_matrices_only_also_after_saving():
    config = keras.optimizers.serialize(recipes.AdamW(0.1, weight_decay=0.5))

    loaded = keras.optimizers.deserialize(config)
    matrix = keras.Variable(np.ones((2, 3), "float32"))
    vector = keras.Variable(np.ones((3,), "float32"))
    loaded.build([matrix, vector])
    loaded.apply([ops.zeros((2, 3)), ops.zeros((3,))])

    np.testing.assert_allclose(ops.convert_to_numpy(matrix.value), 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(vector.value), 1)


@pytest.mark.parametrize("steps", [40, 50_000])
def test_the_schedule_counts_updates_when_gradients_are_accumulated(steps):
    plain = recipes.pretraining_optimizer(steps)
    accumulating = recipes.pretraining_optimizer(steps, gradient_accumulation_steps=3)

    schedules = [
        keras.optimizers.serialize(o)["config"]["learning_rate"] for o in (plain, accumulating)
    ]
    plain, accumulating = (keras.optimizers.schedules.deserialize(s) for s in schedules)

    places = np.array([2, 10, 30, 1999, 2000, 2001])
    np.testing.assert_allclose(rates(accumulating, 3 * places), rates(plain, places), rtol=1e-5)


# === fine-tuning ===


def test_the_linear_schedule_is_that_of_the_released_code():
    schedule = recipes.WarmupLinear(6.25e-5, steps=200, warmup=0.1)
    x = np.array([0, 5, 10, 20, 21, 100, 199, 200]) / 200

    expected = 6.25e-5 * np.where(x <= 0.1, x / 0.1, 1) * (1 - x)

    np.testing.assert_allclose(rates(schedule, 200 * x), expected, atol=1e-11)
    assert expected[0] == expected[-1] == 0


def test_after_its_end_the_linear_schedule_stays_at_zero():
    assert rates(recipes.WarmupLinear(1.0, steps=10), [10, 11, 1000]).tolist() == [0, 0, 0]


def test_without_warm_up_the_linear_schedule_begins_at_its_peak():
    schedule = recipes.WarmupLinear(0.5, steps=10, warmup=0.0)

    np.testing.assert_allclose(rates(schedule, [0, 1, 5]), [0.5, 0.45, 0.25])


def test_a_linear_schedule_can_begin_in_the_middle_of_training():
    schedule = recipes.WarmupLinear(1e-3, steps=100, warmup=0.1)
    later = recipes.WarmupLinear(1e-3, steps=100, warmup=0.1, start=70)

    np.testing.assert_allclose(rates(later, [70, 75, 120]), rates(schedule, [0, 5, 50]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"steps": 10, "warmup": 1.5}, "Received: warmup=1.5"),
        ({"steps": 10, "layer_decay": 0}, "Received: layer_decay=0"),
        ({"steps": 10, "layer_decay": 1.1}, "Received: layer_decay=1.1"),
    ],
)
def test_a_fine_tuning_recipe_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipes.finetuning_optimizer(**arguments)


def test_the_exact_recipe_takes_the_steps_of_the_released_code():
    golden = json.loads((Path(__file__).parent / "openai_adam_golden.json").read_text())
    optimizer = recipes.finetuning_optimizer(
        golden["T"],
        learning_rate=golden["lr"],
        warmup=golden["warmup"],
        weight_decay=golden["l2"],
        clip_norm=golden["max_grad_norm"],
        exact=True,
    )
    variables = [keras.Variable(np.array(value, "float32")) for value in golden["init"]]
    optimizer.build(variables)

    for step in golden["trace"]:
        optimizer.apply([ops.convert_to_tensor(np.array(g, "float32")) for g in step["grads"]])
        for variable, value in zip(variables, step["params"], strict=True):
            np.testing.assert_allclose(ops.convert_to_numpy(variable.value), value, atol=2e-6)


def test_the_exact_decay_is_smaller_in_the_first_updates():
    decays = []
    for exact in (False, True):
        matrix = keras.Variable(np.ones((2, 3), "float32"))
        optimizer = recipes.AdamW(0.1, weight_decay=0.5, exact=exact)
        optimizer.build([matrix])
        optimizer.apply([ops.zeros((2, 3))])
        decays.append(1 - ops.convert_to_numpy(matrix.value)[0, 0])

    # sqrt(1 - 0.999) / (1 - 0.9)
    np.testing.assert_allclose(decays, [0.05, 0.05 * 0.316228], rtol=1e-4)


def tiny_classifier(num_layers=3):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(11, num_layers, 2, 4, max_sequence_length=5, dropout=0.0)
    return kgpt.TextClassifier(backbone, num_classes=2, dropout=0.0)


def expected_share(path, layer_decay):
    """Three blocks: the topmost has it once, the embedding deepest."""
    depths = {"decoder_block_2": 1, "decoder_block_1": 2, "decoder_block_0": 3, "embedding": 4}
    return layer_decay ** depths.get(path.split("/")[0], 0)


def test_layer_decay_scales_updates_and_decay_by_depth():
    model = tiny_classifier()
    optimizer = recipes.AdamW(0.01, weight_decay=0.5, layer_decay=0.7)
    optimizer.build(model.trainable_variables)
    before = {v.path: ops.convert_to_numpy(v.value).copy() for v in model.trainable_variables}

    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])

    seen = set()
    for v in model.trainable_variables:
        share = expected_share(v.path, 0.7)
        seen.add(round(share, 4))
        # Adam's first step has the size of the rate.
        decay = 0.5 * before[v.path] if len(v.shape) > 1 else 0
        expected = before[v.path] - 0.01 * share * (1 + decay)
        np.testing.assert_allclose(ops.convert_to_numpy(v.value), expected, atol=1e-6)
    assert seen == {1.0, 0.7, 0.49, 0.343, 0.2401}


@pytest.mark.parametrize("make", ["classifier", "lm"])
def test_a_saved_model_trains_on_with_the_same_optimizer(tmp_path, make):
    model = tiny_classifier(num_layers=2)
    if make == "lm":
        model = kgpt.CausalLM(model.backbone)
    model.compile(
        recipes.finetuning_optimizer(9, learning_rate=1e-2, layer_decay=0.8, exact=True),
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    x = np.random.default_rng(0).integers(0, 11, (6, 5))
    y = np.arange(6) % 2 if make == "classifier" else np.roll(x, -1, axis=1)
    model.fit(x, y, batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")

    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert keras.optimizers.serialize(loaded.optimizer) == keras.optimizers.serialize(
        model.optimizer
    )
    assert (loaded.optimizer.layer_decay, loaded.optimizer.exact) == (0.8, True)
    for trained in (model, loaded):
        trained.train_on_batch(x, y)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_the_fine_tuning_schedule_counts_updates_when_gradients_are_accumulated():
    plain = recipes.finetuning_optimizer(steps=40, warmup=0.1)
    accumulating = recipes.finetuning_optimizer(steps=40, warmup=0.1, gradient_accumulation_steps=3)

    schedules = [
        keras.optimizers.serialize(o)["config"]["learning_rate"] for o in (plain, accumulating)
    ]
    plain, accumulating = (keras.optimizers.schedules.deserialize(s) for s in schedules)

    np.testing.assert_allclose(rates(accumulating, [6, 30, 90]), rates(plain, [2, 10, 30]))


# === fast ===


def updates_from(optimizer, model):
    """How far each variable moves in one update by gradients of noise, by path."""
    variables = model.trainable_variables
    optimizer.build(variables)
    rng = np.random.default_rng(0)
    before = [ops.convert_to_numpy(v.value).copy() for v in variables]
    optimizer.apply([ops.array(rng.standard_normal(v.shape), "float32") for v in variables])
    return {
        v.path: ops.convert_to_numpy(v.value) - old
        for v, old in zip(variables, before, strict=True)
    }


def test_the_fast_recipe_gives_the_blocks_matrices_orthogonal_updates_and_adams_to_the_rest():
    rate = 0.01
    optimizer = recipes.fast_optimizer(9, rate, warmup_steps=0, weight_decay=0.0)

    updates = updates_from(optimizer, tiny_classifier())

    for path, update in updates.items():
        if update.ndim == 2 and "decoder_block" in path:
            values = np.linalg.svd(update / (0.2 * rate * max(update.shape) ** 0.5))[1]
            assert 0.5 < values.min() <= values.max() < 1.3, path  # Newton-Schulz: about 1
        else:
            np.testing.assert_allclose(np.abs(update), rate, rtol=0.01)  # Adam's first step


def kerass_muon_like(optimizer):
    config = {
        name: v for name, v in optimizer.get_config().items() if name != "is_legacy_optimizer"
    }
    return keras.optimizers.Muon.from_config(config)


def test_an_iteration_in_bfloat16_gives_the_update_of_kerass_muon_to_its_precision():
    def updates(optimizer):
        keras.utils.set_random_seed(0)
        return updates_from(optimizer, tiny_classifier())

    own = recipes.fast_optimizer(9, 0.01, warmup_steps=0)

    found, expected = updates(own), updates(kerass_muon_like(own))

    for path, update in found.items():
        if "decoder_block" not in path or update.ndim == 1:
            np.testing.assert_array_equal(update, expected[path], err_msg=path)
        scale = np.abs(expected[path]).max()
        np.testing.assert_allclose(update, expected[path], atol=0.2 * scale, err_msg=path)
        cosine = np.sum(update * expected[path])
        cosine /= np.linalg.norm(update) * np.linalg.norm(expected[path])
        assert cosine > 0.99, path


def test_an_iteration_in_bfloat16_learns_as_kerass_muon_does():
    x = np.arange(8 * 5).reshape(8, 5) % 10

    def losses(of_keras):
        keras.utils.set_random_seed(0)
        lm = kgpt.CausalLM(tiny_classifier(num_layers=2).backbone)
        optimizer = recipes.fast_optimizer(20, 0.01, warmup_steps=0)
        if of_keras:
            optimizer = kerass_muon_like(optimizer)
        lm.compile(optimizer, run_eagerly=keras.backend.backend() == "tensorflow")
        return [float(lm.train_on_batch(x)[0]) for _ in range(15)]

    found, expected = losses(of_keras=False), losses(of_keras=True)

    assert found[-1] < 0.9 * found[0]
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_a_gradient_of_zeros_moves_no_matrix():
    optimizer = recipes.fast_optimizer(9, 0.01, warmup_steps=0, weight_decay=0.0)
    matrix = keras.Variable(np.ones((4, 6), "float32"), name="kernel")
    optimizer.exclude_layers = []
    optimizer.build([matrix])

    optimizer.apply([ops.zeros((4, 6))])

    np.testing.assert_array_equal(ops.convert_to_numpy(matrix.value), 1.0)


def test_the_fast_recipe_decays_the_blocks_matrices_alone():
    model = tiny_classifier()
    optimizer = recipes.fast_optimizer(9, 0.1, warmup_steps=0, weight_decay=0.5)
    optimizer.build(model.trainable_variables)
    for v in model.trainable_variables:
        v.assign(np.ones(v.shape))

    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables])

    for v in model.trainable_variables:
        decays = len(v.shape) == 2 and "decoder_block" in v.path
        expected = 1 - 0.1 * 0.5 * decays
        np.testing.assert_allclose(ops.convert_to_numpy(v.value), expected, rtol=1e-5)


def test_the_fast_schedule_warms_up_and_falls_to_a_twentieth_counting_updates():
    def schedule(**options):
        optimizer = recipes.fast_optimizer(200, 0.02, **options)
        config = keras.optimizers.serialize(optimizer)["config"]["learning_rate"]
        return keras.optimizers.schedules.deserialize(config)

    plain, accumulating = schedule(), schedule(gradient_accumulation_steps=3)

    np.testing.assert_allclose(rates(plain, [0, 3, 6, 200]), [0, 0.01, 0.02, 0.001], atol=1e-8)
    np.testing.assert_allclose(
        rates(accumulating, [9, 300, 600]), rates(plain, [3, 100, 200]), rtol=1e-5
    )


def test_a_saved_model_trains_on_with_the_fast_recipe(tmp_path):
    lm = kgpt.CausalLM(tiny_classifier(num_layers=2).backbone)
    lm.compile(recipes.fast_optimizer(9), run_eagerly=keras.backend.backend() == "tensorflow")
    x = np.random.default_rng(0).integers(0, 11, (6, 5))
    lm.fit(x, batch_size=2, verbose=0)
    lm.save(tmp_path / "lm.keras")

    loaded = keras.models.load_model(tmp_path / "lm.keras")

    assert keras.optimizers.serialize(loaded.optimizer) == keras.optimizers.serialize(lm.optimizer)
    for trained in (lm, loaded):
        trained.train_on_batch(x)
    for a, b in zip(lm.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_fast_schedule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="Received: steps=0"):
        recipes.fast_optimizer(steps=0)
