"""Heads after training, which have a bias, to transformers and back."""

import json

import keras
import numpy as np
import pytest

import kgpt
from kgpt.convert.huggingface import from_huggingface, to_huggingface

pytest.importorskip("safetensors", reason="the extra `hub`")

TEXTS = ["the cat sat on the mat", "didn't it?", "the dog did not sit"]


def make_backbone(norm_first, **options):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 11}
    return kgpt.GPTBackbone(275, **sizes, norm_first=norm_first, **options)


def make_tokenizer(norm_first):
    if norm_first:
        return kgpt.Tokenizer.train(TEXTS, 267)
    return kgpt.Tokenizer.train(TEXTS, 39, style="gpt1", exact=False)


def trained(model, y):
    """Fits a head on a few rows, and then gives it weights of all sizes, bias included."""
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(np.arange(28).reshape(4, 7), y, epochs=1, verbose=0)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    return model


def make_classifier(norm_first, **options):
    tokenizer, names = make_tokenizer(norm_first), ["no", "yes", "maybe"]
    backbone = make_backbone(norm_first, **options)
    model = kgpt.TextClassifier(backbone, class_names=names, tokenizer=tokenizer)
    return trained(model, np.array([0, 1, 2, 1]))


def make_regressor(norm_first, num_outputs=1):
    options = {"num_outputs": num_outputs, "tokenizer": make_tokenizer(norm_first)}
    model = kgpt.TextRegressor(make_backbone(norm_first), both_orders=False, **options)
    return trained(model, np.ones((4, num_outputs)))


def make_regressor_of_two(norm_first):
    return make_regressor(norm_first, num_outputs=2)


def padded_rows(pad_id):
    """Token ids and padding mask of rows of unequal length, padded at their ends."""
    token_ids = np.random.default_rng(0).integers(8, 50, (4, 7))
    padding_mask = np.arange(7) < np.array([[7], [3], [1], [6]])
    return np.where(padding_mask, token_ids, pad_id), padding_mask


def outputs(model, token_ids, padding_mask):
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    return keras.ops.convert_to_numpy(model(inputs))


def their_logits(theirs, token_ids, padding_mask):
    import torch

    with torch.no_grad():
        mask = torch.tensor(padding_mask.astype("int64"))
        return theirs.eval()(torch.tensor(token_ids), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("make", [make_classifier, make_regressor, make_regressor_of_two])
def test_a_trained_head_gives_the_same_logits_in_transformers_and_back(
    transformers, norm_first, make, tmp_path
):
    model = make(norm_first)

    to_huggingface(model, tmp_path / "model")
    their_class = transformers.AutoModelForSequenceClassification
    theirs = their_class.from_pretrained(tmp_path / "model")
    back = from_huggingface(tmp_path / "model")

    rows = padded_rows(theirs.config.pad_token_id)
    expected = outputs(model, *rows)
    assert np.abs(keras.ops.convert_to_numpy(model.output_projection.bias)).min() > 1e-3
    np.testing.assert_allclose(their_logits(theirs, *rows), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs(back, *rows), expected, rtol=1e-5, atol=1e-5)
    for weight, original in zip(back.weights, model.weights, strict=True):
        np.testing.assert_allclose(weight, original, rtol=1e-5, atol=1e-6)
    assert type(back) is type(model)


def test_rows_of_gpt1s_tokenizer_are_padded_with_the_start(transformers, tmp_path):
    files = tmp_path / "vocabulary.json", tmp_path / "merges.txt"
    files[0].write_text(json.dumps({"<unk>": 0, "a</w>": 1, "b</w>": 2, "a": 3, "b": 4}))
    files[1].write_text("#version: 0.2\n")
    tokenizer = kgpt.Tokenizer.from_vocabulary(*files, style="gpt1", exact=False)
    tokenizer = tokenizer.with_special_tokens()
    model = make_classifier(False)
    model.tokenizer = tokenizer

    to_huggingface(model, tmp_path / "model")

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.end_of_text_id is None
    assert theirs.config.pad_token_id == their_tokenizer.pad_token_id == tokenizer.start_id
    rows = padded_rows(tokenizer.start_id)
    expected = outputs(model, *rows)
    np.testing.assert_allclose(their_logits(theirs, *rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_class_names_are_kept_both_ways(transformers, norm_first, tmp_path):
    to_huggingface(make_classifier(norm_first), tmp_path / "ours")
    their_class = transformers.AutoModelForSequenceClassification
    theirs = their_class.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")

    back = from_huggingface(tmp_path / "theirs")

    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert theirs.config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert back.class_names == ["no", "yes", "maybe"]


def test_a_regressor_is_trained_as_one_in_transformers(transformers, tmp_path):
    to_huggingface(make_regressor(True, 2), tmp_path / "model")

    their_class = transformers.AutoModelForSequenceClassification
    config = their_class.from_pretrained(tmp_path / "model").config

    assert (config.problem_type, config.num_labels) == ("regression", 2)


def make_multi_label(norm_first):
    options = {"class_names": ["no", "yes", "maybe"], "tokenizer": make_tokenizer(norm_first)}
    options |= {"multi_label": True, "label_smoothing": 0.1}
    model = kgpt.TextClassifier(make_backbone(norm_first), **options)
    return trained(model, np.array([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]))


def test_several_classes_are_a_problem_type_of_transformers(transformers, tmp_path):
    import torch

    model = make_multi_label(True)

    to_huggingface(model, tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "theirs")
    back = from_huggingface(tmp_path / "theirs")

    assert theirs.config.problem_type == "multi_label_classification"
    rows = padded_rows(theirs.config.pad_token_id)
    expected = outputs(model, *rows)
    np.testing.assert_allclose(their_logits(theirs, *rows), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs(back, *rows), expected, rtol=1e-5, atol=1e-5)
    assert (back.multi_label, back.label_smoothing) == (True, 0.1)
    assert back.class_names == ["no", "yes", "maybe"]
    labels = torch.tensor([[1.0, 0.0, 1.0]] * 4)
    with torch.no_grad():
        masked = {"attention_mask": torch.tensor(rows[1].astype("int64"))}
        their_loss = theirs(torch.tensor(rows[0]), **masked, labels=labels).loss
    plain = kgpt.TextClassifier(model.backbone, 3, multi_label=True, lm_loss_weight=0, dropout=0.0)
    plain.output_projection.set_weights(model.output_projection.get_weights())
    x = {"token_ids": rows[0], "padding_mask": rows[1]}
    loss = plain.compute_loss(x, labels.numpy(), training=False)
    np.testing.assert_allclose(float(loss), float(their_loss), rtol=1e-5)


def test_a_body_comes_back_without_the_bias_of_its_head(tmp_path):
    model = make_classifier(True)
    to_huggingface(model, tmp_path / "model")

    lm = from_huggingface(tmp_path / "model", "causal_lm")

    rows = padded_rows(0)
    expected = outputs(kgpt.CausalLM(model.backbone), *rows)
    np.testing.assert_allclose(outputs(lm, *rows), expected, rtol=1e-5, atol=1e-5)


def test_what_transformers_has_learned_since_is_read_as_it_is(transformers, tmp_path):
    import torch

    to_huggingface(make_classifier(True), tmp_path / "ours")
    their_class = transformers.AutoModelForSequenceClassification
    theirs = their_class.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        theirs.score.weight.add_(torch.randn(3, 12))
        theirs.transformer.ln_f.bias.add_(torch.randn(12))
    theirs.save_pretrained(tmp_path / "theirs")

    back = from_huggingface(tmp_path / "theirs")

    rows = padded_rows(theirs.config.pad_token_id)
    expected = their_logits(theirs, *rows)
    np.testing.assert_allclose(outputs(back, *rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_bias_of_other_classes_is_not_taken_out(classes, tmp_path):
    to_huggingface(make_classifier(True), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["kgpt_output_bias"] = [1.0] * classes
    (tmp_path / "model/config.json").write_text(json.dumps(config))

    back = from_huggingface(tmp_path / "model")

    assert not keras.ops.convert_to_numpy(back.output_projection.bias).any()


def test_a_bias_in_a_small_dtype_loses_nothing_on_the_way_back(tmp_path):
    model = make_classifier(True, dtype="bfloat16")

    to_huggingface(model, tmp_path / "model")
    back = from_huggingface(tmp_path / "model", dtype="bfloat16")

    for weight, original in zip(back.weights, model.weights, strict=True):
        assert bool(keras.ops.all(keras.ops.equal(weight, original)))


@pytest.mark.parametrize("classes", [2, 13])
def test_a_bias_that_no_shift_of_the_norm_gives_is_refused(classes, tmp_path):
    model = kgpt.TextClassifier(make_backbone(True), num_classes=classes)
    if classes == 2:  # columns that are equal give equal numbers only
        model.output_projection.kernel.assign(np.ones((12, 2)))
    model.output_projection.bias.assign(np.arange(classes))

    with pytest.raises(ValueError, match=rf"kernel of shape \(12, {classes}\).*trainable = False"):
        to_huggingface(model, tmp_path / "model")

    assert not any(tmp_path.iterdir())


def test_a_bias_that_is_not_trained_stays_at_zero(tmp_path):
    model = kgpt.TextClassifier(make_backbone(True), num_classes=13)
    model.output_projection.bias.trainable = False
    model.compile(keras.optimizers.SGD(0.1))

    model.fit(np.arange(28).reshape(4, 7), np.array([0, 12, 2, 1]), verbose=0)

    to_huggingface(model, tmp_path / "model")
    assert from_huggingface(tmp_path / "model").num_classes == 13
