import math

import keras
import pytest

import kgpt
from kgpt.kernels.training_step import count_flops, traced_flops
from kgpt.models.step_costs import num_scores

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX says what a step computes")
SMALL = {"vocabulary_size": 500, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}


def compiled_lm(optimizer=None, **options):
    """A language model without values, as JAX can trace its training step."""
    from kgpt.initializers import without_values

    lm = kgpt.CausalLM(kgpt.GPTBackbone(**options))
    lm.compile(optimizer or kgpt.recipes.pretraining_optimizer(10))
    with without_values():
        lm.optimizer.build(lm.trainable_variables)
    return lm


# === Parameters ===


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_first": False, "intermediate_dim": 20},
        {"query_key_norm": True, "rotary_positions": True, "dtype": "mixed_bfloat16"},
    ],
)
def test_parameters_are_those_of_the_model(options):
    body = kgpt.GPTBackbone(**SMALL, **options)

    assert kgpt.plan(**SMALL, **options).parameters == body.count_params()
    assert kgpt.plan(body).parameters == body.count_params()
    assert kgpt.plan(body.get_config()).parameters == body.count_params()
    assert kgpt.plan(kgpt.CausalLM(body)).parameters == kgpt.CausalLM(body).count_params()


def test_a_head_and_what_is_frozen_are_counted():
    body = kgpt.GPTBackbone(**SMALL)
    body.freeze(1)
    classifier = kgpt.TextClassifier(body, num_classes=3)

    found = kgpt.plan(classifier, sequence_length=8)

    assert found.parameters == classifier.count_params()
    trained = sum(math.prod(v.shape) for v in classifier.trainable_variables)
    assert found.trainable_parameters == trained < found.parameters
    assert found.memory.gradients == 4 * trained
    assert found.memory.optimizer == pytest.approx(8 * trained, rel=0.01)


def test_a_model_far_too_large_for_this_machine_is_planned():
    sizes = {"num_layers": 32, "num_heads": 32, "hidden_dim": 4096}

    found = kgpt.plan(vocabulary_size=50304, **sizes, max_sequence_length=2048, batch_size=1)

    assert found.parameters == 6_658_596_864
    assert found.memory.weights == pytest.approx(4 * found.parameters, rel=1e-3)


# === Arithmetic ===

SHAPES = {
    "gpt2": ({}, 4, 64),
    "gpt1": ({"norm_first": False, "intermediate_dim": 40}, 4, 48),
    "tiles": ({}, 2, 300),
    "loops": ({"num_layers": 1}, 1, 1200),
    "recomputed": ({"recompute": True}, 2, 64),
    "recomputed tiles": ({"recompute": True, "norm_first": False}, 2, 260),
    "large vocabulary": ({"vocabulary_size": 9000}, 4, 32),
}


@on_jax
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_the_products_in_the_training_step(shape):
    options, batch_size, length = SHAPES[shape]
    options = {**SMALL, "max_sequence_length": 1200, **options}

    found = kgpt.plan(batch_size=batch_size, sequence_length=length, **options)

    counted = traced_flops(compiled_lm(**options), batch_size, length)
    assert found.flops_per_step == pytest.approx(counted, rel=0.05)


@on_jax
@pytest.mark.parametrize("change", ["freeze", "enable_lora"])
def test_flops_of_what_is_trained_in_part_are_those_of_the_step(change):
    lm = compiled_lm(**SMALL, max_sequence_length=64)
    getattr(lm, change)(1)
    lm.compile("adam")
    lm.optimizer.build(lm.trainable_variables)

    found = kgpt.plan(lm, batch_size=4)

    assert found.flops_per_step == pytest.approx(traced_flops(lm, 4, 64), rel=0.05)


@on_jax
def test_flops_of_muon_are_counted_too():
    lm = compiled_lm(kgpt.recipes.fast_optimizer(10), **SMALL)

    plain, muon = (kgpt.plan(lm.backbone, 1, 8, optimizer=name) for name in ("adamw", "muon"))

    counted = traced_flops(lm, 1, 8)
    assert muon.flops_per_step == pytest.approx(counted, rel=0.05)
    assert plain.flops_per_step < muon.flops_per_step / 2


@on_jax
def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    import jax
    import jax.numpy as jnp

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, y: y @ x, x)

    assert count_flops(jax.make_jaxpr(loop)(jnp.ones((4, 4)))) == 5 * 2 * 4**3


def test_what_gpts_are_said_to_take_for_each_token():
    """Six for each weight of a matrix, and the attention (Kaplan et al. 2020, section 2.1)."""
    found = kgpt.plan("gpt2_xl", batch_size=1)

    matrices = 48 * 12 * 1600**2 + 50257 * 1600
    scores = 48 * 1024 * 1600  # of one token and all keys, once
    assert found.flops_per_token == pytest.approx(6 * matrices + 7 * 2 * 5 / 8 * scores, rel=0.01)


def test_scores_are_counted_by_tiles():
    assert num_scores(255) == 255**2
    assert num_scores(256) == 64 * (64 + 128 + 192 + 256)
    assert num_scores(1024) == 256 * (256 + 512 + 768 + 1024)


# === Time and cost ===


def test_hours_and_cost_follow_from_the_arithmetic():
    run = {"batch_size": 64, "mesh": 8, "peak_flops": 1e15, "mfu": 0.4}

    found = kgpt.plan("gpt2", **run, tokens=10**10, price=2.5)

    assert found.steps == math.ceil(10**10 / (64 * 1024))
    assert found.tokens == found.steps * 64 * 1024
    seconds = found.steps * found.flops_per_step / (8 * 1e15 * 0.4)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.cost == pytest.approx(found.hours * 8 * 2.5)
    assert kgpt.plan("gpt2", **run, steps=found.steps).hours == pytest.approx(found.hours)


def test_a_plan_prints_as_a_table():
    plan = kgpt.plan("gpt_nano", steps=1000, peak_flops=1e12, mfu=0.5, price=1.0)

    lines = str(plan).splitlines()

    assert lines[0].split() == ["parameters", f"{plan.parameters:,}"]
    for name in ("FLOPs for each token", "memory on each device", "activations", "hours", "cost"):
        assert any(line.strip().startswith(name) for line in lines)
    assert "trained" not in str(plan)


# === Memory ===


def test_devices_share_what_the_style_says():
    plans = {
        (style, mesh): kgpt.plan("gpt_nano", 8, mesh=mesh, style=style).memory
        for style, mesh in [
            *(("data", 1), ("data", 8), ("fsdp", 8)),
            *(("tensor", (1, 4)), ("tensor_fsdp", (2, 4))),
        ]
    }

    alone = plans["data", 1]
    for (style, mesh), found in plans.items():
        parts = {"fsdp": 8, "tensor": 4, "tensor_fsdp": 8}.get(style, 1)
        for name in ("weights", "gradients", "optimizer"):
            whole = getattr(alone, name)
            assert getattr(found, name) == pytest.approx(whole / parts, rel=0.1), (style, name)
        rows = mesh if isinstance(mesh, int) else mesh[0]
        assert found.activations <= alone.activations / rows * 1.01


def test_recomputation_keeps_less_and_computes_more():
    plain, again = (kgpt.plan("gpt2", 8, recompute=recompute) for recompute in (False, True))

    assert again.memory.activations < plain.memory.activations / 10
    assert again.memory.peak < plain.memory.peak
    assert 1.1 < again.flops_per_step / plain.flops_per_step < 1.34


def test_mixed_precision_keeps_half_of_the_activations():
    plain, mixed = (kgpt.plan("gpt2", 8, dtype=dtype) for dtype in ("float32", "mixed_bfloat16"))

    assert mixed.memory.weights == plain.memory.weights
    assert mixed.memory.activations == pytest.approx(plain.memory.activations / 2, rel=0.1)


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (None, 2),
        ("adamw", 2),
        (keras.optimizers.SGD(), 0),
        (keras.optimizers.SGD(momentum=0.9), 1),
        (keras.optimizers.Adam(amsgrad=True), 3),
        (kgpt.recipes.pretraining_optimizer(9, gradient_accumulation_steps=4), 3),
    ],
)
def test_optimizers_keep_what_they_keep(optimizer, slots):
    found = kgpt.plan("gpt2", optimizer=optimizer).memory

    assert found.optimizer == pytest.approx(slots * found.weights, rel=0.001, abs=100)


def test_planning_takes_no_memory_and_leaves_no_variables_behind():
    optimizer = keras.optimizers.Adam()
    lm = kgpt.CausalLM(kgpt.GPTBackbone(**SMALL))
    lm.compile(optimizer)
    before = [keras.ops.convert_to_numpy(v) for v in lm.variables]

    kgpt.plan("gpt2_xl")
    kgpt.plan(lm)
    keras.StatelessScope().__enter__().__exit__()  # where Keras would make what is left

    assert not optimizer.built
    for value, variable in zip(before, lm.variables, strict=True):
        assert (keras.ops.convert_to_numpy(variable) == value).all()


PEAKS = {
    "small": (8, 64, {}),
    "recomputed": (8, 64, {"num_layers": 6, "recompute": True}),
    "more weights than activations": (2, 64, {"hidden_dim": 256, "num_layers": 4}),
}
MORE_PEAKS = {
    "deep": (8, 64, {"num_layers": 6}),
    "without dropout": (8, 64, {"num_layers": 6, "dropout": 0.0}),
    "large vocabulary": (8, 128, {"norm_first": False, "vocabulary_size": 8000}),
    "tiles": (8, 256, {}),
    "wide tiles": (8, 256, {"vocabulary_size": 4000, "hidden_dim": 128, "num_layers": 4}),
    "tiles without dropout": (8, 256, {"dropout": 0.0}),
    "tiles, recomputed": (8, 256, {"num_layers": 4, "recompute": True}),
    "loops": (2, 1024, {}),
    "loops, recomputed": (2, 1024, {"num_layers": 4, "recompute": True}),
    "loops without dropout": (2, 1024, {"dropout": 0.0}),
}


@on_jax
@pytest.mark.parametrize(
    ("batch_size", "length", "options"),
    [
        *(pytest.param(*shape, id=name) for name, shape in PEAKS.items()),
        *(pytest.param(*s, id=n, marks=pytest.mark.slow) for n, s in MORE_PEAKS.items()),
    ],
)
def test_peak_memory_is_that_of_the_compiled_step(batch_size, length, options):
    sizes = {"vocabulary_size": 1000, "num_layers": 2, "num_heads": 4, "hidden_dim": 64}
    options = {**sizes, "max_sequence_length": length, **options}

    found = kgpt.plan(batch_size=batch_size, compile=True, **options)

    assert found.memory.peak == pytest.approx(found.compiled.memory, rel=0.15)
    assert found.flops_per_step == pytest.approx(found.compiled.flops, rel=0.05)


# === What is refused ===


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no vocabulary_size, num_layers"),
        ({"model": "gpt3"}, "model must be .* Presets are gpt1"),
        ({"model": 5}, "model must be"),
        ({"model": "gpt2", "batch_size": 6, "mesh": 4}, "batch_size must be a multiple of the 4"),
        ({"model": "gpt2", "sequence_length": 1025}, "max_sequence_length"),
        ({"model": "gpt2", "optimizer": "adamwx"}, "optimizer must be"),
        ({"model": "gpt2", "mesh": 0}, "mesh must be a number of devices"),
        ({"model": "gpt2", "mesh": (2, 2, 2)}, "mesh must be"),
        ({"model": "gpt2", "mesh": (2, 2)}, "mesh must be a number of devices for style='data'"),
        ({"model": "gpt2", "mesh": 4, "style": "tensor"}, "mesh must be a pair"),
        ({"model": "gpt2", "mesh": (1, 5), "style": "tensor"}, "must divide the model's widths"),
        ({"model": "gpt2", "mesh": 5, "batch_size": 5, "style": "fsdp"}, "the model's widths"),
        ({"model": "gpt2", "style": "zero"}, "style must be one of"),
        ({"model": "gpt2", "steps": 5, "tokens": 5}, "say the same"),
        ({"model": "gpt2", "steps": 5, "mfu": 0.4}, "peak_flops and mfu"),
        ({"model": "gpt2", "steps": 5, "peak_flops": 1e15}, "peak_flops and mfu"),
        ({"model": "gpt2", "steps": 5, "price": 2.0}, "peak_flops and mfu"),
        ({"model": "gpt2", "peak_flops": 1e15, "mfu": 0.4}, "neither steps nor tokens"),
        ({"model": "gpt2", "compile": True, "mesh": 2}, "on one device"),
        ({"model": "gpt2", "dtype": "int8"}, "dtype must be a dtype policy"),
    ],
)
def test_what_has_no_meaning_or_no_effect_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kgpt.plan(**arguments)


def test_options_of_a_finished_model_are_refused():
    classifier = kgpt.TextClassifier(kgpt.GPTBackbone(**SMALL), num_classes=2)

    with pytest.raises(ValueError, match=r"planned as it is\. Received: .'recompute'"):
        kgpt.plan(classifier, recompute=True)
    with pytest.raises(ValueError, match="a TextClassifier"):
        kgpt.plan(classifier, compile=True)


@pytest.mark.skipif(BACKEND == "jax", reason="has a compiler to ask")
def test_other_backends_have_no_compiler_to_ask():
    with pytest.raises(ValueError, match="on the JAX backend"):
        kgpt.plan(**SMALL, compile=True)
