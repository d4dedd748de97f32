"""Models under every dtype policy: what they compute, what they learn, what is refused."""

import keras
import numpy as np
import pytest
from oracles import (
    backbone_weights,
    gradients,
    numpy_block,
    numpy_cross_entropy,
    numpy_layer_norm,
    randomize,
    to_numpy,
)

import kgpt

BACKEND = keras.config.backend()
VOCABULARY, LAYERS, HEADS, WIDTH, BATCH, LENGTH = 19, 2, 3, 12, 4, 8
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH)).astype("int32")
LABELS = np.arange(BATCH) % 3
# The largest difference of a loss or gradient, as a share of the largest entry.
TOLERANCES = {"bfloat16": 5e-2, "float16": 5e-3, "float64": 1e-6}


@pytest.fixture(autouse=True)
def wide_numbers(request):
    """64-bit numbers on JAX, for the tests that compute in float64."""
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    if BACKEND != "jax" or dtype != "float64":
        yield
        return
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def make_backbone(dtype=None, length=LENGTH, **options):
    sizes = {"max_sequence_length": length, "dropout": 0.0}
    return kgpt.GPTBackbone(VOCABULARY, LAYERS, HEADS, WIDTH, dtype=dtype, **sizes, **options)


def with_weights_of(model, twin):
    """The model with the weights of another, rounded to its dtype."""
    for own, other in zip(model.weights, twin.weights, strict=True):
        own.assign(to_numpy(other))
    return model


def wide(x):
    x = keras.ops.convert_to_tensor(x)
    x = x if "64" in str(x.dtype) else keras.ops.cast(x, "float32")
    return to_numpy(x).astype("float64")


def difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def loss_of(model, x, y=None):
    """The model's own loss as a function, in training, as a step computes it."""

    def loss():
        inputs = model.standardize_inputs(x)
        states, outputs = model.states_and_outputs(inputs, training=True)
        return model.own_loss(inputs, y, states, outputs, None, True)

    return loss


# === What they compute ===


@pytest.mark.parametrize("kind", ["lm", "head"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_loss_and_gradients_are_those_of_float32_as_closely_as_the_dtype_allows(dtype, kind):
    data = (TOKEN_IDS,) if kind == "lm" else (TOKEN_IDS, LABELS)

    def make(dtype):
        backbone = make_backbone(dtype)
        if kind == "lm":
            return kgpt.CausalLM(backbone)
        return kgpt.TextClassifier(backbone, 3, dropout=0.0)

    twin = randomize(make("float32"))
    model = with_weights_of(make(dtype), twin)
    # What the dtype rounds of the weights themselves is not the arithmetic's doing.
    with_weights_of(twin, model)
    for each in (model, twin):
        each.compile(keras.optimizers.SGD(0.0))

    found = gradients(loss_of(model, *data), model.trainable_variables)

    expected = gradients(loss_of(twin, *data), twin.trainable_variables)
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.backbone.weights} == {dtype}
    loss, expected_loss = (wide(loss_of(each, *data)()) for each in (model, twin))
    assert difference(loss, expected_loss) < max(TOLERANCES[dtype], 1e-5)
    tolerance = max(TOLERANCES[dtype], 1e-4)  # float32's own roundings add up
    for variable, one, other in zip(model.trainable_variables, found, expected, strict=True):
        scale = max(np.abs(other).max(), 1e-2)
        assert np.abs(wide(one) - other).max() < tolerance * scale, variable.path


def numpy_loss(weights, heads, norm_first):
    """Equation 1 of GPT-1 in float64, a mean over the positions that have a next token."""
    E, P = list(weights.values())[:2]
    h = E[TOKEN_IDS] + P[:LENGTH]
    for i in range(LAYERS):
        prefix = f"h.{i}."
        block = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        h = numpy_block(h, block, heads, norm_first)
    if norm_first:
        h = numpy_layer_norm(h, weights["ln_f.weight"], weights["ln_f.bias"])
    return numpy_cross_entropy(h[:, :-1] @ E.T, TOKEN_IDS[:, 1:]).mean()


@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["gpt1", "gpt2"])
def test_float64_is_the_formula_in_float64(dtype, norm_first):
    backbone = randomize(make_backbone(dtype, norm_first=norm_first))
    lm = kgpt.CausalLM(backbone)
    lm.compile(keras.optimizers.SGD(0.0))
    variables = backbone_weights(backbone)
    weights = {name: to_numpy(v) for name, v in variables.items()}
    rng = np.random.default_rng(1)
    direction = {name: rng.standard_normal(w.shape) for name, w in weights.items()}

    found = gradients(loss_of(lm, TOKEN_IDS), list(variables.values()))

    def moved(step):
        there = {name: w + step * direction[name] for name, w in weights.items()}
        return numpy_loss(there, HEADS, norm_first)

    slope = sum((gradient * d).sum() for gradient, d in zip(found, direction.values(), strict=True))
    step = 1e-5  # of order 1e-10 are both the rest of the formula and what float64 rounds
    np.testing.assert_allclose(slope, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(wide(loss_of(lm, TOKEN_IDS)()), moved(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64"])
def test_logits_of_a_float64_policy_are_float64(dtype):
    lm = kgpt.CausalLM(randomize(make_backbone(dtype)))

    logits = to_numpy(lm(TOKEN_IDS))

    assert logits.dtype == "float64"
    h, E = (to_numpy(x) for x in (lm.backbone(TOKEN_IDS), lm.backbone.token_embedding.embeddings))
    np.testing.assert_allclose(logits, h @ E.T, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float64"])
def test_rotary_positions_are_exact_in_float64_far_from_the_first(dtype):
    from kgpt.kernels.rotary import rotate

    x = np.random.default_rng(0).standard_normal((1, 2, 1, 4))
    positions = np.array([3, 100_003], "int32")

    found = to_numpy(rotate(keras.ops.convert_to_tensor(x, dtype), positions))

    angles = positions[:, None] * 10000.0 ** (-np.arange(2) / 2)  # of pairs (0, 2) and (1, 3)
    turned = (x[0, :, 0, :2] + 1j * x[0, :, 0, 2:]) * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(found[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64"])
@pytest.mark.parametrize("length", [12, 60])
def test_tiles_are_exact_in_float64(dtype, length):
    from kgpt.kernels import attention

    q, k, v, upstream = np.random.default_rng(0).standard_normal((4, 2, length, 3, 4))
    inputs = [keras.Variable(x, dtype=dtype) for x in (q, k, v)]
    visible = attention.visible_keys(None, 0, length, length)
    tile = 3  # several in a group from 13 positions on

    factors = keras.ops.convert_to_tensor(upstream, dtype)

    def loss(attend, *last):
        def value():
            tensors = [keras.ops.convert_to_tensor(x) for x in inputs]
            return keras.ops.sum(attend(*tensors, *last) * factors)

        return value

    found = gradients(loss(lambda *x: attention.tiled(*x, tile=tile)), inputs)

    expected = gradients(loss(attention.reference, visible), inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


# === What they learn ===


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        *(("bfloat16", kind) for kind in ("lm", "head", "lora")),  # rounds all that they add
        *(("float64", "lm"), ("mixed_bfloat16", "head")),
    ],
)
def test_a_fit_with_the_own_loss_learns(dtype, kind):
    backbone = randomize(make_backbone(dtype))
    if kind == "lora":
        backbone.enable_lora(2)
    model = kgpt.CausalLM(backbone) if kind == "lm" else kgpt.TextClassifier(backbone, 3)
    model.compile(kgpt.recipes.AdamW(1e-2, global_clipnorm=1.0))
    y = None if kind == "lm" else LABELS

    losses = model.fit(TOKEN_IDS, y, epochs=12, verbose=0).history["loss"]

    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(losses).all()
    dtypes = {w.dtype for w in backbone.weights if "lora" not in w.name}
    assert dtypes == {"float32" if dtype.startswith("mixed") else dtype}


def test_the_optimizer_by_default_clips_gradients_of_several_dtypes_by_their_common_norm():
    backbone = randomize(make_backbone("bfloat16"))
    model = kgpt.TextClassifier(backbone, 3, dropout=0.0, lm_loss_weight=0)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=1e-2))
    head = model.output_projection.trainable_variables
    before = [wide(v) for v in head]
    slopes = gradients(loss_of(model, TOKEN_IDS, LABELS), model.trainable_variables)

    model.fit(TOKEN_IDS, LABELS, verbose=0)

    norm = np.sqrt(sum((wide(g) ** 2).sum() for g in slopes))
    moves = [b - wide(v) for b, v in zip(before, head, strict=True)]
    of_head = [wide(g) for g in slopes][-2:]
    assert norm > 1e-2
    for move, slope in zip(moves, of_head, strict=True):
        np.testing.assert_allclose(move, slope * 1e-2 / norm, rtol=5e-2, atol=1e-5)


def test_adam_in_bfloat16_learns_as_in_float32():
    twin, model = (kgpt.CausalLM(randomize(make_backbone(d))) for d in ("float32", "bfloat16"))
    with_weights_of(twin, model)
    for each in (twin, model):
        each.compile(kgpt.recipes.AdamW(1e-2))

    expected, losses = (
        each.fit(TOKEN_IDS, epochs=6, verbose=0).history["loss"] for each in (twin, model)
    )

    np.testing.assert_allclose(losses, expected, rtol=3e-2)


def test_an_adam_that_would_learn_nothing_in_bfloat16_is_refused():
    lm = kgpt.CausalLM(make_backbone("bfloat16"))
    lm.compile("adam")

    with pytest.raises(ValueError, match=r"beta_2 of 0\.999 is 1.*kgpt\.recipes\.AdamW"):
        lm.fit(TOKEN_IDS, verbose=0)


def test_the_global_policy_is_the_models():
    keras.config.set_dtype_policy("bfloat16")
    try:
        lm = kgpt.CausalLM(make_backbone())
    finally:
        keras.config.set_dtype_policy("float32")

    lm.compile()
    losses = lm.fit(TOKEN_IDS, verbose=0).history["loss"]

    assert {w.dtype for w in lm.weights} == {"bfloat16"}
    assert np.isfinite(losses).all()


def test_the_loss_is_scaled_in_mixed_float16():
    lm = kgpt.CausalLM(make_backbone("mixed_float16"))

    lm.compile("adam")

    assert isinstance(lm.optimizer, keras.optimizers.LossScaleOptimizer)


# === What is refused ===


@pytest.mark.parametrize("kind", ["lm", "head", "lora"])
def test_training_a_body_in_float16_is_refused_and_leaves_the_weights(kind):
    backbone = randomize(make_backbone("float16"))
    if kind == "lora":
        backbone.enable_lora(2)
    model = kgpt.CausalLM(backbone) if kind == "lm" else kgpt.TextClassifier(backbone, 3)
    model.compile()
    y = None if kind == "lm" else LABELS
    before = wide(model(TOKEN_IDS))

    for train in (
        lambda: model.fit(TOKEN_IDS, y, verbose=0),
        lambda: model.train_on_batch(TOKEN_IDS, y),
    ):
        with pytest.raises(ValueError, match=r"dtype='float16'.*mixed_float16"):
            train()

    np.testing.assert_array_equal(wide(model(TOKEN_IDS)), before)


def test_a_head_over_a_frozen_body_in_float16_is_trained():
    model = kgpt.TextClassifier(make_backbone("float16", trainable=False), 3)
    model.compile(keras.optimizers.SGD(0.1))

    losses = model.fit(TOKEN_IDS, LABELS, epochs=2, verbose=0).history["loss"]

    assert np.isfinite(losses).all()


@pytest.mark.skipif(BACKEND != "jax", reason="other backends always have 64-bit numbers")
def test_float64_without_64_bit_numbers_is_refused_where_the_model_is_made():
    with pytest.raises(ValueError, match=r"dtype='float64'.*JAX_ENABLE_X64=1"):
        make_backbone("float64")


def test_a_policy_without_floats_is_refused():
    with pytest.raises(ValueError, match=r"dtype='int32'.*Try one of"):
        make_backbone("int32")


def test_a_quantized_policy_is_refused_with_the_way_to_quantize():
    with pytest.raises(ValueError, match=r"dtype='int8_from_float32'.*model.quantize\('int8'\)"):
        make_backbone("int8_from_float32")
