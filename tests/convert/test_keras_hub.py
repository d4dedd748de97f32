import sys

import keras
import numpy as np
import pytest

import kgpt
from kgpt.convert.keras_hub import from_keras_hub, to_keras_hub

VOCABULARY, LENGTH = 53, 7
SIZES = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 11}
TEXTS = ["the cat sat on the mat, didn't it?\nthe dog did not.\n"] * 3


@pytest.fixture(scope="module")
def keras_hub():
    import keras_hub

    return keras_hub


@pytest.fixture(scope="module")
def inputs():
    token_ids = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH))
    return {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}


def with_noise(model):
    """The model with weights of all sizes, so that each counts in the logits."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "float" in keras.backend.standardize_dtype(weight.dtype):
            weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    return model


def make_backbone(vocabulary_size=VOCABULARY, **options):
    return with_noise(kgpt.GPTBackbone(vocabulary_size, **{**SIZES, **options}))


def assert_close(outputs, expected):
    outputs, expected = map(keras.ops.convert_to_numpy, (outputs, expected))
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_a_language_model_of_keras_hub_gives_the_same_logits(keras_hub, inputs):
    backbone = keras_hub.models.GPT2Backbone(VOCABULARY, **SIZES, intermediate_dim=20)
    theirs = keras_hub.models.GPT2CausalLM(with_noise(backbone))

    lm = from_keras_hub(theirs)

    assert isinstance(lm, kgpt.CausalLM)
    assert lm.tokenizer is None
    assert_close(lm(inputs), theirs(inputs))


def test_a_body_of_keras_hub_gives_the_same_hidden_states(keras_hub, inputs):
    theirs = with_noise(keras_hub.models.GPT2Backbone(VOCABULARY, **SIZES, intermediate_dim=20))
    padding_mask = np.arange(LENGTH) < np.array([[7], [5], [3], [1]])
    inputs = {"token_ids": inputs["token_ids"], "padding_mask": padding_mask}

    backbone = from_keras_hub(theirs)

    assert isinstance(backbone, kgpt.GPTBackbone)
    hidden_states = keras.ops.convert_to_numpy(backbone(inputs))
    expected = keras.ops.convert_to_numpy(theirs(inputs))
    assert_close(hidden_states[padding_mask], expected[padding_mask])


def test_keras_hub_gives_the_same_logits(keras_hub, inputs):
    lm = kgpt.CausalLM(make_backbone(intermediate_dim=20))

    theirs = to_keras_hub(lm)

    assert isinstance(theirs, keras_hub.models.GPT2CausalLM)
    assert_close(theirs(inputs), lm(inputs))


def test_a_round_trip_changes_nothing(keras_hub):
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275)
    lm = kgpt.CausalLM(
        make_backbone(tokenizer.vocabulary_size, dropout=0.2, dtype="bfloat16"), tokenizer
    )

    back = from_keras_hub(to_keras_hub(lm))

    for weight, expected in zip(back.weights, lm.weights, strict=True):
        assert weight.dtype == expected.dtype
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (weight, expected)))
    same = {"name": "backbone"}
    assert {**back.backbone.get_config(), **same} == {**lm.backbone.get_config(), **same}
    assert back.tokenizer.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert back.tokenizer.special_tokens == tokenizer.special_tokens


def test_a_tokenizer_becomes_the_preprocessors(keras_hub):
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275)
    lm = kgpt.CausalLM(make_backbone(tokenizer.vocabulary_size), tokenizer)

    theirs = to_keras_hub(lm).preprocessor

    ids = keras.ops.convert_to_numpy(theirs.tokenizer("the cat didn't sit")).tolist()
    assert ids == tokenizer.encode("the cat didn't sit")
    assert theirs.tokenizer.end_token_id == tokenizer.end_of_text_id
    assert theirs.sequence_length == 11


def test_a_text_goes_on_in_keras_hub_as_after_the_end_of_text_here(keras_hub):
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275)
    lm = kgpt.CausalLM(make_backbone(tokenizer.vocabulary_size), tokenizer)
    theirs = to_keras_hub(lm)
    theirs.compile(sampler="greedy")
    token_ids = [tokenizer.end_of_text_id, *tokenizer.encode("the cat")]

    text = theirs.generate("the cat", max_length=len(token_ids) + 5)

    expected = lm.generate(token_ids, max_new_tokens=5, sampler="greedy")
    assert text == tokenizer.decode(expected[1:])


def test_what_is_read_by_keras_hub_first_is_said(keras_hub, tmp_path):
    keras_hub.models.GPT2CausalLM(
        keras_hub.models.GPT2Backbone(VOCABULARY, **SIZES, intermediate_dim=20)
    ).save_to_preset(str(tmp_path))

    for path in (tmp_path, str(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"Try kgpt\.from_keras_hub\(keras_hub\."):
            kgpt.CausalLM.from_preset(path)
    with pytest.raises(ValueError, match=r"Received: a str.*GPT2CausalLM\.from_preset"):
        from_keras_hub(str(tmp_path))


@pytest.fixture(scope="module")
def gpt2(reference_data):
    folder = reference_data / "vocab/gpt2"
    return kgpt.Tokenizer.from_vocabulary(folder / "encoder.json", folder / "vocab.bpe")


def test_a_tokenizer_gives_the_same_ids_inside_tf_data(gpt2):
    import tensorflow as tf

    texts = [
        "Hello world, it's 2024 and I'M 12345 years old!",
        "one\ntwo\n\nthree\n\n\n  four\r\n\r\nfive\n \nsix\n\n",
        "  many   spaces \t and\ttabs  ",
        "na\u00efve \u4e2d\u6587 \U0001f600\u0928\u0940 \u00a0x",
        "<|endoftext|> is text",
        "",
    ]

    layer = gpt2.to_keras_hub()

    rows = tf.data.Dataset.from_tensor_slices(texts).map(layer)
    assert [row.numpy().tolist() for row in rows] == gpt2.encode_batch(texts)
    batch = next(iter(tf.data.Dataset.from_tensor_slices(texts).batch(6).map(layer)))
    assert batch.to_list() == gpt2.encode_batch(texts)
    assert [layer(text).numpy().tolist() for text in texts] == gpt2.encode_batch(texts)


def test_a_tokenizer_of_gpt1s_style_is_refused():
    gpt1 = kgpt.Tokenizer.train(TEXTS, 50, style="gpt1", exact=False)

    with pytest.raises(ValueError, match=r"GPT-2's split pattern only.*style='gpt1'"):
        gpt1.to_keras_hub()


def test_a_tokenizer_without_keras_hub_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)

    with pytest.raises(ImportError, match="pip install keras-hub"):
        kgpt.Tokenizer.train(TEXTS, 275).to_keras_hub()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_first": False}, "norm_first=True.*norm_first=False"),
        ({"activation": "relu"}, "activation=gelu_tanh.*activation=relu"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon=1e-05.*0.001"),
    ],
)
def test_what_keras_hub_lacks_is_refused_by_name(keras_hub, options, message):
    with pytest.raises(ValueError, match=message):
        to_keras_hub(make_backbone(**options))


def test_quantized_models_are_refused(keras_hub):
    backbone = make_backbone()
    backbone.quantize("int8")

    with pytest.raises(ValueError, match="layers are quantized"):
        to_keras_hub(backbone)


@pytest.mark.parametrize("convert", [from_keras_hub, to_keras_hub])
def test_other_models_are_refused(keras_hub, convert):
    with pytest.raises(ValueError, match="Received: a Sequential"):
        convert(keras.Sequential())


def test_a_missing_keras_hub_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)

    with pytest.raises(ImportError, match="pip install keras-hub"):
        to_keras_hub(make_backbone())
