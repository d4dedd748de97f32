import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

VOCABULARY = 19


def make_classifier(rank=4, **options):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(VOCABULARY, 2, 3, 12, max_sequence_length=9, dropout=0.0)
    randomize(backbone)
    if rank:
        backbone.enable_lora(rank, **options)
    model = kgpt.TextClassifier(backbone, num_classes=3, dropout=0.0)
    model.compile(keras.optimizers.SGD(0.5))
    return model


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCABULARY, (8, 7)), np.arange(8) % 3


def values(weights):
    return {w.path: to_numpy(w) for w in weights}


def changed(weights, before):
    return {w.path for w in weights if np.any(to_numpy(w) != before[w.path])}


def test_of_the_first_gpt_one_weight_in_a_hundred_is_trained():
    block = kgpt.GPTBackbone.from_preset(
        "gpt1", load_weights=False, num_layers=1, vocabulary_size=5
    )

    block.enable_lora(8)

    trained = 12 * sum(np.prod(w.shape) for w in block.trainable_weights)
    assert trained == 12 * 8 * (768 + 2304 + 768 + 768 + 768 + 3072 + 3072 + 768)
    assert 0.009 < trained / 116_534_784 < 0.015


def test_at_first_the_outputs_are_those_without_additions(data):
    plain, lora = make_classifier(rank=None), make_classifier()

    np.testing.assert_allclose(
        to_numpy(lora.backbone(data[0])), to_numpy(plain.backbone(data[0])), atol=1e-6
    )


def test_a_fit_changes_the_additions_and_the_head_and_nothing_else(data):
    model = make_classifier()
    before = values(model.weights)

    model.fit(*data, epochs=2, verbose=0)

    expected = {path for path in before if "lora" in path or path.startswith("output_projection")}
    assert len(expected) == 2 * 4 * 2 + 2
    assert changed(model.weights, before) == expected


def test_an_addition_is_the_product_of_its_factors_times_alpha_over_rank(data):
    backbone = make_classifier(rank=4, lora_alpha=6).backbone
    dense = backbone.decoder_blocks[1].attention.query_key_value
    a, b = (np.random.default_rng(0).standard_normal(s) for s in ((12, 4), (4, 36)))
    x = np.random.default_rng(1).standard_normal((5, 12)).astype("float32")
    W, bias = to_numpy(dense._kernel), to_numpy(dense.bias)

    dense.lora_kernel_a.assign(a)
    dense.lora_kernel_b.assign(b)

    np.testing.assert_allclose(to_numpy(dense(x)), x @ (W + 6 / 4 * a @ b) + bias, atol=1e-4)


def test_a_saved_model_loads_with_the_same_outputs_and_trains_on(data, tmp_path):
    model = make_classifier()
    model.fit(*data, epochs=2, verbose=0)
    outputs = model.predict(data[0], verbose=0)
    model.save(tmp_path / "lora.keras")

    loaded = keras.models.load_model(tmp_path / "lora.keras")
    np.testing.assert_allclose(loaded.predict(data[0], verbose=0), outputs, atol=1e-5)
    before = values(loaded.weights)
    losses = loaded.fit(*data, epochs=4, verbose=0).history["loss"]

    expected = {path for path in before if "lora" in path or path.startswith("output_projection")}
    assert (loaded.backbone.lora_rank, len(expected)) == (4, 18)
    assert changed(loaded.weights, before) == expected
    assert losses[-1] < losses[0]


def test_weights_alone_load_with_the_same_outputs_and_train_on(data, tmp_path):
    model, other = make_classifier(), make_classifier()
    model.fit(*data, verbose=0)
    model.save_weights(tmp_path / "lora.weights.h5")

    other.load_weights(tmp_path / "lora.weights.h5")

    np.testing.assert_allclose(
        other.predict(data[0], verbose=0), model.predict(data[0], verbose=0), atol=1e-5
    )
    before = values(other.weights)
    other.train_on_batch(*data)
    assert sum("lora" in path for path in changed(other.weights, before)) >= 8


def test_merged_additions_give_the_same_outputs_and_a_plain_backbone(data):
    model = make_classifier()
    model.fit(*data, epochs=2, verbose=0)
    outputs = to_numpy(model.backbone(data[0]))

    model.backbone.merge_lora()

    np.testing.assert_allclose(to_numpy(model.backbone(data[0])), outputs, atol=1e-5)
    plain = make_classifier(rank=None).backbone
    assert len(model.backbone.trainable_weights) == len(plain.trainable_weights)
    assert model.backbone.get_config() == {**plain.get_config(), "name": model.backbone.name}
    model.compile(keras.optimizers.SGD(0.5))
    before = values(model.weights)
    model.fit(*data, verbose=0)
    assert changed(model.weights, before) == set(before)


def test_merged_additions_are_saved_as_plain_weights(data, tmp_path):
    model = make_classifier()
    model.fit(*data, verbose=0)
    model.backbone.merge_lora()
    model.save(tmp_path / "merged.keras")

    loaded = keras.models.load_model(tmp_path / "merged.keras")

    assert loaded.backbone.lora_rank is None
    np.testing.assert_allclose(
        to_numpy(loaded.backbone(data[0])), to_numpy(model.backbone(data[0])), atol=1e-6
    )


@pytest.mark.parametrize(
    ("names", "parts"),
    [(["query", "value"], [0, 2]), (("key",), [1]), (["value", "key", "query"], [0, 1, 2])],
)
def test_only_the_layers_that_are_named_change(data, names, parts):
    model = make_classifier(target_layer_names=names)
    dense = model.backbone.decoder_blocks[1].attention.query_key_value
    plain = to_numpy(dense._kernel).copy()
    before = values(model.weights)

    model.fit(*data, epochs=2, verbose=0)

    factors = [w for w in model.backbone.trainable_weights if "lora" in w.path]
    assert [w.shape for w in factors] == [(12, 4), (4, 12 * len(parts))] * 2
    assert changed(model.backbone.weights, before) == {w.path for w in factors}
    columns = np.split(to_numpy(dense.kernel) - plain, 3, axis=1)
    assert [i for i, part in enumerate(columns) if np.abs(part).max() > 0] == parts
    a, b = (to_numpy(factor) for factor in dense.lora_factors)
    np.testing.assert_allclose(np.concatenate([columns[i] for i in parts], 1), a @ b, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("attention_output", "attention/output_projection"),
        ("feedforward_intermediate_dense", "feed_forward/expansion"),
        ("feedforward_output_dense", "feed_forward/output_projection"),
    ],
)
def test_each_matrix_has_its_name(name, layer):
    backbone = make_classifier(rank=2, target_layer_names=[name]).backbone

    paths = {w.path.rpartition("decoder_block_0/")[2] for w in backbone.trainable_weights[:2]}
    assert paths == {f"{layer}/lora_kernel_a", f"{layer}/lora_kernel_b"}
    assert len(backbone.trainable_weights) == 4


@pytest.mark.parametrize("names", ["query", [], ["querry"], ["query", 3], [["query"]], 4, {}])
def test_other_names_are_refused_with_those_that_there_are(names):
    backbone = make_classifier(rank=None).backbone

    with pytest.raises(
        ValueError, match=r"target_layer_names must be .* 'key', .*Received: target"
    ):
        backbone.enable_lora(2, target_layer_names=names)
    assert backbone.lora_rank is None


def test_names_in_the_place_of_alpha_are_refused():
    with pytest.raises(ValueError, match=r"lora_alpha must .*\['query'\].*target_layer_names"):
        make_classifier(rank=None).backbone.enable_lora(4, ["query"])


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_files_keep_matrices_and_additions_as_they_are(data, tmp_path, mode):
    model = make_classifier(rank=None)
    if mode:
        model.quantize(mode)
    model.enable_lora(4, 6, ["query", "value", "feedforward_output_dense"])
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(*data, verbose=0)
    outputs = model.predict(data[0], verbose=0)
    model.save(tmp_path / "lora.keras")
    model.save_weights(tmp_path / "lora.weights.h5")

    loaded = keras.models.load_model(tmp_path / "lora.keras")
    other = type(model).from_config(model.get_config())
    other.load_weights(tmp_path / "lora.weights.h5")

    for one in (loaded, other):
        for own, theirs in zip(one.weights, model.weights, strict=True):
            np.testing.assert_array_equal(to_numpy(own), to_numpy(theirs))
        np.testing.assert_allclose(one.predict(data[0], verbose=0), outputs, atol=1e-6)
    assert [w.path for w in loaded.trainable_weights] == [w.path for w in model.trainable_weights]
    assert {w.path for w in model.trainable_weights if "lora" in w.path}


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_over_quantized_weights_a_language_model_learns_from_the_loss_that_it_reports(data, mode):
    lm = kgpt.CausalLM(make_classifier(rank=None).backbone)
    lm.quantize(mode)
    lm.enable_lora(4)
    lm.compile(keras.optimizers.Adam(0.05))
    before = lm.evaluate(data[0], verbose=0, return_dict=True)["loss"]

    losses = lm.fit(data[0], batch_size=8, epochs=5, verbose=0).history["loss"]

    np.testing.assert_allclose(losses[0], before, rtol=0.05)
    assert losses[-1] < 0.8 * losses[0]


def test_a_body_that_loads_weights_without_additions_still_has_some_that_learn(tmp_path):
    plain, body = make_classifier(rank=None).backbone, make_classifier().backbone
    plain.save_weights(tmp_path / "plain.weights.h5")

    body.load_weights(tmp_path / "plain.weights.h5")

    factors = [to_numpy(w) for w in body.weights if "lora_kernel_a" in w.path]
    assert factors
    assert all(factor.any() for factor in factors)


@pytest.mark.parametrize("names", [None, ["query", "value"]])
def test_a_model_without_additions_loads_the_sum(data, tmp_path, names):
    model, plain = make_classifier(target_layer_names=names), make_classifier(rank=None)
    model.fit(*data, verbose=0)
    model.save_weights(tmp_path / "lora.weights.h5")

    plain.load_weights(tmp_path / "lora.weights.h5")

    expected = model.predict(data[0], verbose=0)
    np.testing.assert_allclose(plain.predict(data[0], verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"rank": 2}, {"lora_alpha": 3}, {"target_layer_names": ["query"]}],
    ids=lambda options: next(iter(options)),
)
def test_weights_of_other_additions_are_refused(tmp_path, options):
    make_classifier(**{"rank": 4, "target_layer_names": ["key"]}).save_weights(
        tmp_path / "lora.weights.h5"
    )
    other = make_classifier(**{"rank": 4, "target_layer_names": ["key"], **options})

    with pytest.raises(ValueError, match="could not be loaded"):
        other.load_weights(tmp_path / "lora.weights.h5")


def test_weights_with_additions_are_refused_by_quantized_ones_without(tmp_path):
    make_classifier().save_weights(tmp_path / "lora.weights.h5")
    model = make_classifier(rank=None)
    model.quantize("int8")

    with pytest.raises(ValueError, match="could not be loaded"):
        model.load_weights(tmp_path / "lora.weights.h5")


@pytest.mark.parametrize("rank", [0, -1, 2.5, True, None])
def test_ranks_that_cannot_be_are_refused(rank):
    backbone = make_classifier(rank=None).backbone

    with pytest.raises(ValueError, match=f"Received: rank={rank}"):
        backbone.enable_lora(rank)


def test_additions_can_be_enabled_once_and_merged_once():
    backbone = make_classifier().backbone

    with pytest.raises(ValueError, match="with lora_rank=4"):
        backbone.enable_lora(4)
    backbone.merge_lora()
    with pytest.raises(ValueError, match="lora_rank=None"):
        backbone.merge_lora()
    backbone.quantize("int8")
    backbone.enable_lora(2)
    assert backbone.lora_rank == 2
    with pytest.raises(ValueError, match="lora_rank=2 and quantized=True"):
        backbone.merge_lora()


# === more tokens ===


def test_a_larger_vocabulary_keeps_what_was_learned(data):
    backbone = make_classifier(rank=None).backbone

    grown = backbone.with_vocabulary_size(VOCABULARY + 400)

    assert grown.vocabulary_size == VOCABULARY + 400
    assert backbone.vocabulary_size == VOCABULARY
    np.testing.assert_array_equal(to_numpy(grown(data[0])), to_numpy(backbone(data[0])))
    embeddings = to_numpy(grown.token_embedding.embeddings)
    old = to_numpy(backbone.token_embedding.embeddings)
    np.testing.assert_array_equal(embeddings[:VOCABULARY], old)
    fresh = embeddings[VOCABULARY:]
    assert fresh.std() == pytest.approx(0.02, rel=0.1)
    assert abs(fresh.mean()) < 0.002
    for own, new in zip(backbone.weights, grown.weights, strict=True):
        if own is not backbone.token_embedding.embeddings:
            np.testing.assert_array_equal(to_numpy(new), to_numpy(own))


def test_the_larger_backbone_has_weights_of_its_own():
    backbone = make_classifier(rank=None).backbone
    grown = backbone.with_vocabulary_size(VOCABULARY + 3)
    before = values(backbone.weights)

    for weight in grown.weights:
        weight.assign(weight + 1)

    assert not changed(backbone.weights, before)


def test_the_same_size_is_the_same_backbone():
    backbone = make_classifier(rank=None).backbone

    assert backbone.with_vocabulary_size(VOCABULARY) is backbone


def test_fewer_tokens_and_weights_with_additions_are_refused():
    with pytest.raises(ValueError, match=f"Received: vocabulary_size={VOCABULARY - 1}"):
        make_classifier(rank=None).backbone.with_vocabulary_size(VOCABULARY - 1)
    with pytest.raises(ValueError, match="lora_rank=4"):
        make_classifier().backbone.with_vocabulary_size(VOCABULARY + 1)
