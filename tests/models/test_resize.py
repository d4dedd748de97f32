"""Models with another number of positions and the same weights."""

import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

VOCABULARY, LENGTH = 19, 9


def make_backbone(**options):
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": LENGTH}
    return randomize(kgpt.GPTBackbone(VOCABULARY, dropout=0.1, **sizes, **options))


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(0).integers(0, VOCABULARY, (3, 6)).astype("int32")


@pytest.mark.parametrize("length", [6, 400])
@pytest.mark.parametrize("options", [{}, {"norm_first": False}, {"rotary_positions": True}])
def test_another_length_keeps_the_outputs_of_what_fits_both(token_ids, length, options):
    backbone = make_backbone(**options)

    resized = backbone.with_max_sequence_length(length)

    assert (resized.max_sequence_length, backbone.max_sequence_length) == (length, LENGTH)
    assert resized.get_config() == {
        **backbone.get_config(),
        "max_sequence_length": length,
        "name": resized.name,
    }
    np.testing.assert_allclose(
        to_numpy(resized(token_ids)), to_numpy(backbone(token_ids)), atol=1e-6
    )
    assert resized(np.zeros((1, length), "int32")).shape == (1, length, 12)
    with pytest.raises(ValueError, match=f"length={length + 1}"):
        resized(np.zeros((1, length + 1), "int32"))


@pytest.mark.parametrize(("norm_first", "deviation"), [(True, 0.01), (False, 0.02)])
def test_new_positions_start_as_those_of_a_fresh_body(norm_first, deviation):
    backbone = make_backbone(norm_first=norm_first)
    old = to_numpy(backbone.embedding.position_embedding.embeddings)

    longer = backbone.with_max_sequence_length(LENGTH + 400)

    new = to_numpy(longer.embedding.position_embedding.embeddings)
    np.testing.assert_array_equal(new[:LENGTH], old)
    assert new[LENGTH:].std() == pytest.approx(deviation, rel=0.1)
    for weight in longer.weights:  # they are its own
        weight.assign(weight + 1)
    np.testing.assert_array_equal(to_numpy(backbone.embedding.position_embedding.embeddings), old)


@pytest.mark.parametrize(
    "make",
    [
        kgpt.CausalLM,
        lambda body: kgpt.TextClassifier(body, class_names=["a", "b", "c"], sequence_length=5),
        kgpt.MultipleChoice,
    ],
)
def test_a_task_becomes_one_over_a_longer_body(token_ids, make):
    model = make(make_backbone())
    model.freeze(1)
    inputs = token_ids[:, None] if isinstance(model, kgpt.MultipleChoice) else token_ids

    longer = model.with_max_sequence_length(20)

    assert type(longer) is type(model)
    assert longer.backbone.max_sequence_length == 20
    assert longer.backbone is not model.backbone
    np.testing.assert_allclose(to_numpy(longer(inputs)), to_numpy(model(inputs)), atol=1e-6)
    assert len(longer.trainable_weights) == len(model.trainable_weights)
    assert getattr(longer, "class_names", None) == getattr(model, "class_names", None)


def test_a_longer_language_model_trains_and_writes_beyond_the_old_length(token_ids):
    lm = kgpt.CausalLM(make_backbone()).with_max_sequence_length(20)
    lm.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")

    lm.fit(np.tile(token_ids, 3), verbose=0)

    assert len(lm.generate(token_ids[0].tolist(), 12, sampler="greedy", stop_token_ids=None)) == 18


def test_the_same_length_is_the_same_model():
    lm = kgpt.CausalLM(make_backbone())

    assert lm.with_max_sequence_length(LENGTH) is lm
    assert lm.backbone.with_max_sequence_length(LENGTH) is lm.backbone


@pytest.mark.parametrize("kind", ["lora", "int8"])
def test_weights_with_additions_and_quantized_ones_are_refused(kind):
    lm = kgpt.CausalLM(make_backbone())
    if kind == "lora":
        lm.enable_lora(2)
    else:
        lm.quantize("int8")

    with pytest.raises(ValueError, match=f"lora_rank={2 if kind == 'lora' else None}, quantized"):
        lm.with_max_sequence_length(20)


def test_a_task_for_longer_texts_than_the_new_body_is_refused():
    model = kgpt.TextRegressor(make_backbone(), sequence_length=8)

    with pytest.raises(ValueError, match="length=8, max_sequence_length=7"):
        model.with_max_sequence_length(7)


def taken_blocks(backbone):
    taken = kgpt.GPTBackbone.from_config(backbone.get_config())
    taken.take_blocks(backbone, backbone.num_layers)
    return taken


def to_keras_hub_and_back(backbone):
    pytest.importorskip("keras_hub", reason="its models are what is converted")
    return kgpt.from_keras_hub(kgpt.to_keras_hub(backbone))


COPIES = {
    "take_blocks": taken_blocks,
    "with_vocabulary_size": lambda backbone: backbone.with_vocabulary_size(20),
    "with_max_sequence_length": lambda backbone: backbone.with_max_sequence_length(4),
    "keras-hub": to_keras_hub_and_back,
}


@pytest.mark.parametrize("name", COPIES)
def test_training_a_copy_leaves_the_first_model_as_it_was(name):
    backbone = kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6, dropout=0.0)
    x = np.array([[1, 2, 3, 4]])
    expected = to_numpy(backbone(x))

    lm = kgpt.CausalLM(COPIES[name](backbone))
    lm.compile("adam")
    lm.fit(x, verbose=0)

    np.testing.assert_array_equal(to_numpy(backbone(x)), expected)
