import importlib.util
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    assert_finite_with_gradients,
    backbone_weights,
    gradients,
    numpy_block,
    numpy_layer_norm,
    randomize,
    skip_without_float16,
    to_numpy,
)

import kgpt
from kgpt.layers import DecoderBlock, TokenAndPositionEmbedding

VOCABULARY, LAYERS, HEADS, WIDTH, POSITIONS = 19, 2, 3, 12, 9
BATCH, LENGTH = 4, 8
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH)).astype("int32")

both_orders = pytest.mark.parametrize("norm_first", [False, True], ids=["gpt1", "gpt2"])


def make_backbone(norm_first=True, **options):
    sizes = {"hidden_dim": WIDTH, "max_sequence_length": POSITIONS, "dropout": 0.0}
    backbone = kgpt.GPTBackbone(
        VOCABULARY, LAYERS, HEADS, norm_first=norm_first, **{**sizes, **options}
    )
    return randomize(backbone)


@pytest.fixture(scope="module", params=[False, True], ids=["gpt1", "gpt2"])
def backbone(request):
    return make_backbone(request.param)


def run(backbone, token_ids, **others):
    return to_numpy(backbone({"token_ids": token_ids, **others}))


# --- The mathematics ----------------------------------------------------------------------------


def test_the_output_is_the_papers_formula(backbone):
    weights = {name: to_numpy(w) for name, w in backbone_weights(backbone).items()}
    E, P = list(weights.values())[:2]

    output = to_numpy(backbone(TOKEN_IDS))

    h = E[TOKEN_IDS].astype("float64") + P[:LENGTH]
    for i in range(LAYERS):
        prefix = f"h.{i}."
        block = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        h = numpy_block(h, block, HEADS, backbone.norm_first)
    if backbone.norm_first:
        h = numpy_layer_norm(h, weights["ln_f.weight"], weights["ln_f.bias"])
    np.testing.assert_allclose(output, h, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(position=st.integers(0, LENGTH - 1), token=st.integers(0, VOCABULARY - 1))
def test_changing_a_token_leaves_earlier_states_alone(backbone, position, token):
    changed = TOKEN_IDS.copy()
    changed[:, position] = (changed[:, position] + 1 + token) % VOCABULARY

    before, after = run(backbone, TOKEN_IDS), run(backbone, changed)

    np.testing.assert_allclose(after[:, :position], before[:, :position], atol=1e-5)


def test_changing_a_token_changes_every_state_from_there_on(backbone):
    changed = TOKEN_IDS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY

    before, after = run(backbone, TOKEN_IDS), run(backbone, changed)

    assert (np.abs(after - before).max(-1)[:, 3:] > 1e-4).all()


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.sampled_from([(2, 3, 3), (3, 2, 3), (3, 5), (5, 3), (2, 2, 2, 2)]),
    numbers=st.permutations(range(5)),
)
def test_a_packed_document_has_the_states_of_the_document_alone(backbone, lengths, numbers):
    segment_ids = np.repeat(numbers[: len(lengths)], lengths)

    packed = run(backbone, TOKEN_IDS, segment_ids=np.tile(segment_ids, (BATCH, 1)))

    for segment in np.unique(segment_ids):
        here = segment_ids == segment
        alone = run(backbone, TOKEN_IDS[:, here])
        np.testing.assert_allclose(packed[:, here], alone, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(1, LENGTH - 1), seed=st.integers(0, 999))
def test_a_packed_document_does_not_depend_on_its_neighbour(backbone, cut, seed):
    noise = np.random.default_rng(seed).integers(0, VOCABULARY, TOKEN_IDS.shape)
    segment_ids = np.tile(np.arange(LENGTH) >= cut, (BATCH, 1)).astype("int32")
    changed = np.where(segment_ids == 0, noise, TOKEN_IDS)

    before, after = (run(backbone, x, segment_ids=segment_ids) for x in (TOKEN_IDS, changed))

    np.testing.assert_allclose(after[:, cut:], before[:, cut:], atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, LENGTH), min_size=BATCH, max_size=BATCH),
    padding=st.integers(0, VOCABULARY - 1),
)
def test_padding_changes_no_real_state(backbone, lengths, padding):
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    padded = np.where(mask, TOKEN_IDS, padding)

    with_padding = run(backbone, padded, padding_mask=mask)

    without = run(backbone, TOKEN_IDS)
    np.testing.assert_allclose(with_padding[mask], without[mask], atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(BATCH)))
def test_the_order_of_the_batch_does_not_matter(backbone, order):
    mask = np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None]

    states = run(backbone, TOKEN_IDS, padding_mask=mask)
    permuted = run(backbone, TOKEN_IDS[order], padding_mask=mask[order])

    np.testing.assert_allclose(permuted, states[order], atol=1e-5)


def test_padding_gets_no_gradient_from_real_states(backbone):
    # Token 0 stands in padding only: its row must not learn.
    mask = np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None]
    token_ids = np.where(mask, np.maximum(TOKEN_IDS, 1), 0)
    real = keras.ops.array(mask[..., None], dtype="float32")

    def loss():
        states = backbone({"token_ids": token_ids, "padding_mask": mask})
        return keras.ops.sum(keras.ops.power(states, 3) * real)

    (gradient,) = gradients(loss, [backbone.token_embedding.embeddings])

    assert not gradient[0].any()
    assert np.abs(gradient[1:]).max() > 0


@both_orders
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_output_and_gradients_are_finite_in_every_dtype(policy, norm_first):
    skip_without_float16(policy)
    backbone = make_backbone(norm_first, dtype=policy)
    mask = np.arange(LENGTH) < np.array([8, 5, 1, 0])[:, None]  # the last row is all padding
    inputs = {"token_ids": TOKEN_IDS, "padding_mask": mask}

    output = backbone(inputs)

    assert keras.backend.standardize_dtype(output.dtype) == policy.removeprefix("mixed_")
    assert all(w.dtype == "float32" for w in backbone.weights)
    assert_finite_with_gradients(lambda: backbone(inputs), backbone.trainable_variables)


def test_the_global_dtype_policy_is_followed():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = make_backbone()
    finally:
        keras.config.set_dtype_policy("float32")

    layers = [backbone.embedding, *backbone.decoder_blocks, backbone.final_norm]
    assert {layer.compute_dtype for layer in layers} == {"bfloat16"}


# --- Block options ------------------------------------------------------------------------------

BLOCK_OPTIONS = {
    "query_key_norm": {"query_key_norm": True},
    "rotary_positions": {"rotary_positions": True},
    "relu_squared": {"activation": "relu_squared"},
    "zero_init_residual": {"zero_init_residual": True},
}
BLOCK_OPTIONS["all"] = {k: v for options in BLOCK_OPTIONS.values() for k, v in options.items()}


@pytest.fixture(scope="module", params=BLOCK_OPTIONS.values(), ids=BLOCK_OPTIONS.keys())
def variant(request):
    # An even width of heads, for rotary positions.
    return make_backbone(hidden_dim=2 * WIDTH, **request.param)


def test_a_variant_sees_the_past_only(variant):
    changed = TOKEN_IDS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY

    before, after = run(variant, TOKEN_IDS), run(variant, changed)

    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-5)
    assert (np.abs(after - before).max(-1)[:, 3:] > 1e-4).all()


def test_a_variant_tells_the_order_of_earlier_tokens(variant):
    swapped = TOKEN_IDS.copy()
    swapped[:, :2], swapped[:, 2] = (4, 7), 9
    turned = swapped.copy()
    turned[:, :2] = (7, 4)

    states = [run(variant, x)[:, 2] for x in (swapped, turned)]

    assert np.abs(states[0] - states[1]).max(-1).min() > 1e-4


def test_a_variants_packed_document_has_the_states_of_the_document_alone(variant):
    segment_ids = np.repeat([4, 1, 2], (2, 3, 3))

    packed = run(variant, TOKEN_IDS, segment_ids=np.tile(segment_ids, (BATCH, 1)).astype("int32"))

    for segment in np.unique(segment_ids):
        here = segment_ids == segment
        np.testing.assert_allclose(packed[:, here], run(variant, TOKEN_IDS[:, here]), atol=1e-4)


def test_padding_changes_no_real_state_of_a_variant(variant):
    mask = np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None]

    with_padding = run(variant, np.where(mask, TOKEN_IDS, 0), padding_mask=mask)

    np.testing.assert_allclose(with_padding[mask], run(variant, TOKEN_IDS)[mask], atol=1e-5)


@pytest.mark.parametrize(
    "variant", [BLOCK_OPTIONS["rotary_positions"], BLOCK_OPTIONS["all"]], indirect=True
)  # the other options change nothing between positions
def test_a_variant_generates_with_a_cache_what_it_gives_without_one(variant):
    prompts = [[3, 1, 4, 1], [5], [9, 2]]

    continued = kgpt.CausalLM(variant).generate(prompts, max_new_tokens=5, sampler="greedy")

    for prompt, row in zip(prompts, continued, strict=True):
        for end in range(len(prompt), len(row)):
            state = variant(np.array([row[:end]], "int32"))
            logits = to_numpy(variant.embedding(state, reverse=True))[0, -1]
            assert row[end] == logits.argmax()


@pytest.mark.parametrize("options", BLOCK_OPTIONS.values(), ids=BLOCK_OPTIONS.keys())
def test_a_block_option_survives_the_config_and_a_file(options, tmp_path):
    backbone = make_backbone(hidden_dim=2 * WIDTH, **options)
    backbone.save(tmp_path / "backbone.keras")

    copy = keras.models.load_model(tmp_path / "backbone.keras")

    assert copy.get_config() == backbone.get_config() != make_backbone().get_config()
    np.testing.assert_array_equal(run(copy, TOKEN_IDS), run(backbone, TOKEN_IDS))


def test_with_a_zero_initialised_residual_blocks_start_as_the_identity():
    backbone = kgpt.GPTBackbone(19, 3, 2, 8, dropout=0.0, zero_init_residual=True)
    h = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32")

    for block in backbone.decoder_blocks:
        np.testing.assert_array_equal(to_numpy(block(h)), h)


def test_rotary_positions_take_the_place_of_learned_ones():
    plain, rotary = (make_backbone(hidden_dim=24, rotary_positions=on) for on in (False, True))

    assert plain.count_params() - rotary.count_params() == POSITIONS * 24
    with pytest.raises(ValueError, match="max_sequence_length"):
        rotary(np.zeros((1, POSITIONS + 1), "int32"))


# --- Inputs -------------------------------------------------------------------------------------


def test_token_ids_alone_are_enough(backbone):
    np.testing.assert_array_equal(to_numpy(backbone(TOKEN_IDS)), run(backbone, TOKEN_IDS))


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_a_mask_of_any_dtype_does_the_same(backbone, dtype):
    mask = np.arange(LENGTH) >= np.array([0, 2, 3, 1])[:, None]

    output = run(backbone, TOKEN_IDS, padding_mask=mask.astype(dtype))

    np.testing.assert_array_equal(output, run(backbone, TOKEN_IDS, padding_mask=mask))


def test_predict_takes_any_batch_and_length(backbone):
    inputs = [TOKEN_IDS[:2, :5], TOKEN_IDS[:3], TOKEN_IDS[:1, :1]]

    outputs = [backbone.predict(x, verbose=0) for x in inputs]

    for x, output in zip(inputs, outputs, strict=True):
        np.testing.assert_allclose(output, to_numpy(backbone(x)), atol=1e-5)


def test_predict_takes_all_inputs(backbone):
    inputs = {
        "token_ids": TOKEN_IDS,
        "padding_mask": np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None],
        "segment_ids": np.tile(np.arange(LENGTH) // 3, (BATCH, 1)),
    }

    output = backbone.predict(inputs, batch_size=3, verbose=0)

    np.testing.assert_allclose(output, to_numpy(backbone(inputs)), atol=1e-5)


def test_it_is_a_layer_in_a_users_model(backbone):
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="bool", name="padding_mask")
    states = backbone({"token_ids": token_ids, "padding_mask": mask})
    model = keras.Model([token_ids, mask], keras.layers.Dense(2)(states))
    real = np.arange(LENGTH) >= np.array([0, 2, 3, 1])[:, None]

    output = model.predict([TOKEN_IDS, real], verbose=0)

    expected = model.layers[-1](run(backbone, TOKEN_IDS, padding_mask=real))
    assert states.shape == (None, None, WIDTH)
    np.testing.assert_allclose(output, to_numpy(expected), atol=1e-5)


def test_a_users_head_trains_its_weights():
    backbone = make_backbone(dropout=0.1)
    token_ids = keras.Input((None,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(backbone(token_ids))
    model = keras.Model(token_ids, keras.layers.Dense(1)(pooled))
    model.compile("sgd", "mse")
    before = [to_numpy(w) for w in backbone.weights]

    model.fit(TOKEN_IDS, np.ones((BATCH, 1)), verbose=0)

    for old, weight in zip(before, backbone.weights, strict=True):
        assert np.abs(to_numpy(weight) - old).max() > 0, weight.path


# --- How it starts ------------------------------------------------------------------------------


@both_orders
def test_weights_start_at_the_papers_scales(norm_first):
    layers = 3
    backbone = kgpt.GPTBackbone(500, layers, 4, 96, max_sequence_length=200, norm_first=norm_first)
    residual = 0.02 / np.sqrt(2 * layers) if norm_first else 0.02
    positions = 0.01 if norm_first else 0.02

    for name, weight in backbone_weights(backbone).items():
        value = to_numpy(weight)
        if name.endswith("bias"):
            assert not value.any(), name
        elif ".ln_" in name or name.startswith("ln_"):
            assert (value == 1).all(), name
        else:
            expected = 0.02
            if name.endswith("c_proj.weight"):
                expected = residual
            elif name.startswith(("wpe", "positions_embed")):
                expected = positions
            assert value.std() == pytest.approx(expected, rel=0.05), name
            assert value.mean() == pytest.approx(0, abs=0.1 * expected), name


def test_no_two_maps_start_with_the_same_numbers():
    backbone = kgpt.GPTBackbone(24, 3, 2, 8, intermediate_dim=8, max_sequence_length=24)

    kernels = [to_numpy(w) for w in backbone.weights if w.ndim == 2]

    first_entries = {round(float(kernel[0, 0]), 9) for kernel in kernels}
    assert len(first_entries) == len(kernels) == 14


def test_the_random_seed_decides_the_weights():
    def weights():
        keras.utils.set_random_seed(7)
        return [to_numpy(w) for w in kgpt.GPTBackbone(9, 1, 1, 4).weights]

    for first, second in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(first, second)


# --- Dropout ------------------------------------------------------------------------------------


@both_orders
def test_dropout_is_active_in_training_and_differs_from_step_to_step(norm_first):
    backbone = make_backbone(norm_first, dropout=0.1)

    first, second = (to_numpy(backbone(TOKEN_IDS, training=True)) for _ in range(2))

    assert not np.allclose(first, second)


@both_orders
def test_dropout_is_off_outside_of_training(norm_first):
    backbone = make_backbone(norm_first, dropout=0.5)

    output = to_numpy(backbone(TOKEN_IDS))

    np.testing.assert_array_equal(output, to_numpy(backbone(TOKEN_IDS, training=False)))
    without = to_numpy(make_backbone(norm_first, dropout=0.0)(TOKEN_IDS))
    np.testing.assert_allclose(output, without, atol=1e-6)


def test_without_dropout_training_and_prediction_give_the_same(backbone):
    np.testing.assert_allclose(
        to_numpy(backbone(TOKEN_IDS, training=True)), to_numpy(backbone(TOKEN_IDS)), atol=1e-6
    )


def test_the_dropout_of_the_backbone_reaches_every_layer():
    backbone = make_backbone(dropout=0.3)

    rates = [
        layer.rate
        for layer in backbone._flatten_layers()
        if isinstance(layer, keras.layers.Dropout)
    ]

    assert rates == [0.3] * (1 + 2 * LAYERS)


# --- Config, files, pictures --------------------------------------------------------------------


def test_every_option_survives_the_config():
    backbone = kgpt.GPTBackbone(
        19,
        2,
        3,
        12,
        intermediate_dim=29,
        dropout=0.25,
        max_sequence_length=7,
        norm_first=False,
        activation="relu",
        layer_norm_epsilon=0.01,
        query_key_norm=True,
        rotary_positions=True,
        zero_init_residual=True,
        dtype="mixed_bfloat16",
        name="mine",
        trainable=False,
    )

    config = json.loads(json.dumps(backbone.get_config()))
    copy = kgpt.GPTBackbone.from_config(config)

    assert copy.get_config() == backbone.get_config()
    assert (copy.name, copy.trainable, copy.dtype_policy.name) == ("mine", False, "mixed_bfloat16")
    assert copy.decoder_blocks[1].get_config() == backbone.decoder_blocks[1].get_config()


def test_a_clone_with_the_same_weights_computes_the_same(backbone):
    inputs = {
        "token_ids": TOKEN_IDS,
        "padding_mask": np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None],
        "segment_ids": np.tile(np.arange(LENGTH) // 3, (BATCH, 1)).astype("int32"),
    }

    clone = keras.models.clone_model(backbone)
    clone.set_weights(backbone.get_weights())

    assert not set(map(id, clone.weights)) & set(map(id, backbone.weights))
    np.testing.assert_allclose(to_numpy(clone(inputs)), to_numpy(backbone(inputs)), atol=1e-6)


def test_the_summary_names_the_layers_and_counts_the_parameters(backbone):
    lines = []

    backbone.summary(print_fn=lines.append)

    text = "\n".join(lines)
    for name in ("embedding", "decoder_block_0", "decoder_block_1"):
        assert name in text
    assert f"Total params: {backbone.count_params():,}" in text


@pytest.mark.skipif(
    importlib.util.find_spec("pydot") is None or shutil.which("dot") is None,
    reason="keras.utils.plot_model needs the package pydot and graphviz's program dot",
)
def test_plot_model_draws_it(backbone, tmp_path):
    keras.utils.plot_model(backbone, tmp_path / "model.png", show_shapes=True)

    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")


def users_model():
    """A small model with our layers among Keras's own."""
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="bool", name="mask")
    embedding = TokenAndPositionEmbedding(VOCABULARY, POSITIONS, WIDTH, name="embedding")
    h = embedding(token_ids)
    h = DecoderBlock(HEADS, 20, norm_first=False)(h, padding_mask=mask)
    h = kgpt.layers.CausalSelfAttention(2)(keras.layers.RMSNormalization()(h))
    h = kgpt.layers.FeedForward(17, activation="relu")(h)
    logits = embedding(h, reverse=True)
    return randomize(keras.Model([token_ids, mask], logits))


LOAD_AND_RUN = """
import sys, keras, kgpt, numpy as np
folder = sys.argv[1]
x = dict(np.load(f"{folder}/inputs.npz"))
for name in ("gpt1", "gpt2", "half"):
    backbone = keras.models.load_model(f"{folder}/{name}.keras")
    assert type(backbone) is kgpt.GPTBackbone
    states = keras.ops.cast(backbone(x), "float32")
    np.save(f"{folder}/{name}.npy", keras.ops.convert_to_numpy(states))
user = keras.models.load_model(f"{folder}/user.keras")
logits = user([x["token_ids"], x["padding_mask"]])
np.save(f"{folder}/user.npy", keras.ops.convert_to_numpy(logits))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Outputs of models before saving, and of the same files loaded in a fresh process."""
    folder = tmp_path_factory.mktemp("saved")
    inputs = {
        "token_ids": TOKEN_IDS,
        "padding_mask": np.arange(LENGTH) < np.array([8, 5, 3, 1])[:, None],
        "segment_ids": np.tile(np.arange(LENGTH) // 3, (BATCH, 1)).astype("int32"),
    }
    np.savez(folder / "inputs.npz", **inputs)
    models = {
        "gpt1": make_backbone(False),
        "gpt2": make_backbone(True),
        "half": make_backbone(dtype="mixed_bfloat16", activation="relu", dropout=0.3),
    }
    before = {
        name: to_numpy(keras.ops.cast(model(inputs), "float32")) for name, model in models.items()
    }
    models["user"] = users_model()
    before["user"] = to_numpy(models["user"]([TOKEN_IDS, inputs["padding_mask"]]))
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    subprocess.run([sys.executable, "-c", LOAD_AND_RUN, str(folder)], check=True)
    return {name: (states, np.load(folder / f"{name}.npy")) for name, states in before.items()}


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "half"])
def test_a_saved_backbone_gives_the_same_bits_in_a_fresh_process(saved, name):
    before, after = saved[name]

    np.testing.assert_array_equal(after, before)


def test_a_users_saved_model_gives_the_same_bits_in_a_fresh_process(saved):
    before, after = saved["user"]

    np.testing.assert_array_equal(after, before)


def test_weights_alone_can_be_saved_and_loaded(backbone, tmp_path):
    backbone.save_weights(tmp_path / "backbone.weights.h5")
    other = kgpt.GPTBackbone.from_config(backbone.get_config())

    other.load_weights(tmp_path / "backbone.weights.h5")

    np.testing.assert_array_equal(run(other, TOKEN_IDS), run(backbone, TOKEN_IDS))


# --- Presets ------------------------------------------------------------------------------------


def test_a_preset_has_its_sizes():
    backbone = kgpt.GPTBackbone.from_preset("gpt_nano", load_weights=False)

    assert (backbone.num_layers, backbone.num_heads, backbone.hidden_dim) == (3, 3, 96)
    assert (backbone.vocabulary_size, backbone.max_sequence_length) == (4096, 128)


def test_an_override_takes_the_place_of_a_presets_size():
    backbone = kgpt.GPTBackbone.from_preset(
        "gpt_nano", load_weights=False, vocabulary_size=7, norm_first=False
    )

    assert (backbone.vocabulary_size, backbone.norm_first, backbone.hidden_dim) == (7, False, 96)


def test_every_preset_is_listed():
    papers = {"gpt1", "gpt2", "gpt2_medium", "gpt2_large", "gpt2_xl"}

    assert papers < set(kgpt.GPTBackbone.presets())


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vocabulary_size",
        "num_layers",
        "num_heads",
        "hidden_dim",
        "intermediate_dim",
        "max_sequence_length",
    ],
)
@pytest.mark.parametrize("size", [0, -2, 2.5, "3"])
def test_a_size_that_is_no_positive_int_is_refused(name, size):
    sizes = {"vocabulary_size": 19, "num_layers": 1, "num_heads": 3, "hidden_dim": 12}

    with pytest.raises(ValueError, match=f"{name} must be an int of at least 1.*Received: {name}="):
        kgpt.GPTBackbone(**{**sizes, name: size})


def test_heads_that_do_not_divide_the_width_are_refused_with_advice():
    message = "num_heads=5, hidden_dim=384. Try num_heads=4."

    with pytest.raises(ValueError, match=f"num_heads must divide hidden_dim. Received: {message}"):
        kgpt.GPTBackbone(19, 1, 5, 384)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Received: 'gpt5'\. .* one of gpt1, gpt2,"):
        kgpt.GPTBackbone.from_preset("gpt5", load_weights=False)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        kgpt.GPTBackbone(19, 1, 3, 12, activation="nonsense")


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_a_dropout_outside_of_its_range_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout={dropout}"):
        kgpt.GPTBackbone(19, 1, 3, 12, dropout=dropout)


def test_an_unknown_input_is_refused(backbone):
    with pytest.raises(ValueError, match=r"a dict with \['attention_mask', 'token_ids'\]"):
        backbone({"token_ids": TOKEN_IDS, "attention_mask": TOKEN_IDS > 0})


def test_inputs_without_token_ids_are_refused(backbone):
    with pytest.raises(ValueError, match=r"Received: a dict with \['padding_mask'\]"):
        backbone({"padding_mask": TOKEN_IDS > 0})


@pytest.mark.parametrize("kind", [list, tuple])
def test_inputs_without_names_are_refused(backbone, kind):
    with pytest.raises(ValueError, match=f"Received: a {kind.__name__}"):
        backbone(kind([TOKEN_IDS, TOKEN_IDS > 0]))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_token_ids_of_another_rank_are_refused(backbone, shape):
    with pytest.raises(ValueError, match="must have shape \\(batch, length\\)"):
        backbone(np.zeros(shape, "int32"))


TOO_LONG = np.zeros((2, POSITIONS + 1), "int32")
TOO_LONG_MESSAGE = f"Received: length={POSITIONS + 1}, max_sequence_length={POSITIONS}"


def test_too_long_a_sequence_is_refused(backbone):
    with pytest.raises(ValueError, match=TOO_LONG_MESSAGE):
        backbone(TOO_LONG)


def test_predict_refuses_too_long_a_sequence():
    with pytest.raises(ValueError, match=TOO_LONG_MESSAGE):
        make_backbone().predict(TOO_LONG, verbose=0)


def test_fit_refuses_too_long_a_sequence():
    backbone = make_backbone()
    backbone.compile("sgd", "mse")

    with pytest.raises(ValueError, match=TOO_LONG_MESSAGE):
        backbone.fit(TOO_LONG, np.zeros((2, POSITIONS + 1, WIDTH)), verbose=0)


def test_a_users_model_of_fixed_length_is_refused_where_it_is_made(backbone):
    with pytest.raises(ValueError, match=TOO_LONG_MESSAGE):
        backbone(keras.Input((POSITIONS + 1,), dtype="int32"))
