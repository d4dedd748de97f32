import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest

import kgpt
from kgpt.convert.huggingface import from_huggingface, to_huggingface
from kgpt.models import CausalLM, MultipleChoice, TextClassifier, TextRegressor

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="the extra `hub`")

VOCABULARY, LENGTH = 53, 7
SIZES = {"vocab_size": VOCABULARY, "n_positions": 11, "n_embd": 12, "n_layer": 2, "n_head": 3}
TEXTS = ["the cat sat on the mat, didn't it?\nthe dog did not.\n"] * 3
GPT1_FILES = "encoder_bpe_40000.json", "vocab_40000.bpe"
KINDS = ["gpt2", "openai-gpt"]


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(0).integers(0, VOCABULARY - 1, (4, LENGTH))


def their_model(transformers, kind, ending="LMHeadModel", **options):
    """A model of transformers with weights of all sizes, so that each counts in the logits."""
    import torch

    prefix = {"gpt2": "GPT2", "openai-gpt": "OpenAIGPT"}[kind]
    config = getattr(transformers, f"{prefix}Config")(**{**SIZES, **options})
    model = getattr(transformers, prefix + ending)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def their_outputs(model, token_ids, **inputs):
    import torch

    with torch.no_grad():
        return model(torch.tensor(token_ids), **inputs)


def make_lm(norm_first=True, tokenizer=None, **options):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 11}
    size = VOCABULARY if tokenizer is None else tokenizer.vocabulary_size
    backbone = kgpt.GPTBackbone(size, **{**sizes, "norm_first": norm_first, **options})
    rng = np.random.default_rng(0)
    for weight in backbone.weights:
        weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


def assert_same_weights(model, other):
    for weight, expected in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), keras.ops.convert_to_numpy(expected)
        )


def assert_close(outputs, expected):
    outputs = keras.ops.convert_to_numpy(outputs)
    np.testing.assert_allclose(outputs, np.asarray(expected), rtol=1e-5, atol=1e-5)


def edit(folder, **changes):
    """Changes a config; None takes a key away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_on_purpose(folder):
    """Takes away the hashes, as the error of a folder that was changed says."""
    (folder / "kgpt_manifest.json").unlink()


def edit_tensors(folder, change):
    change_on_purpose(folder)
    tensors = safetensors_numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors_numpy.save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A folder with a small GPT-2 without a tokenizer."""
    to_huggingface(make_lm(), tmp_path / "model")
    return tmp_path / "model"


# === from transformers ===


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_of_transformers_gives_the_same_logits(
    transformers, kind, token_ids, tmp_path
):
    theirs = their_model(transformers, kind)
    theirs.save_pretrained(tmp_path)

    lm = from_huggingface(tmp_path)

    assert isinstance(lm, kgpt.CausalLM)
    assert_close(lm(token_ids), their_outputs(theirs, token_ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_of_transformers_gives_the_same_hidden_states(
    transformers, kind, token_ids, tmp_path
):
    theirs = their_model(transformers, kind, "Model")
    theirs.save_pretrained(tmp_path)

    backbone = from_huggingface(tmp_path)

    assert isinstance(backbone, kgpt.GPTBackbone)
    assert_close(backbone(token_ids), their_outputs(theirs, token_ids).last_hidden_state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("labels", "model_class"), [(5, TextClassifier), (1, TextRegressor)])
def test_a_sequence_classifier_of_transformers_keeps_its_head(
    transformers, kind, labels, model_class, token_ids, tmp_path
):
    theirs = their_model(
        transformers, kind, "ForSequenceClassification", num_labels=labels, pad_token_id=52
    )
    theirs.save_pretrained(tmp_path)

    ours = from_huggingface(tmp_path)

    assert type(ours) is model_class
    assert_close(ours(token_ids), their_outputs(theirs, token_ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_double_heads_model_of_transformers_keeps_both_heads(
    transformers, kind, token_ids, tmp_path
):
    theirs = their_model(transformers, kind, "DoubleHeadsModel")
    theirs.save_pretrained(tmp_path)
    choices = token_ids.reshape(2, 2, LENGTH)

    model = from_huggingface(tmp_path)

    assert type(model) is MultipleChoice
    expected = their_outputs(theirs, choices)
    assert_close(model(choices), expected.mc_logits)
    lm = kgpt.CausalLM(model.backbone)
    assert_close(lm(token_ids), expected.logits.reshape(4, LENGTH, VOCABULARY))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"activation_function": "gelu"}),
        ("gpt2", {"activation_function": "relu", "n_inner": 20}),
        ("gpt2", {"layer_norm_epsilon": 0.1}),
        ("openai-gpt", {"afn": "silu", "layer_norm_epsilon": 0.1}),
    ],
)
def test_what_a_config_asks_for_is_done(transformers, kind, options, token_ids, tmp_path):
    theirs = their_model(transformers, kind, **options)
    theirs.save_pretrained(tmp_path)

    lm = from_huggingface(tmp_path)

    assert_close(lm(token_ids), their_outputs(theirs, token_ids).logits)


def test_several_files_are_read_as_one(transformers, token_ids, tmp_path):
    theirs = their_model(transformers, "gpt2")
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")

    lm = from_huggingface(tmp_path)

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_close(lm(token_ids), their_outputs(theirs, token_ids).logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_lose_nothing(transformers, dtype, tmp_path):
    import torch

    theirs = their_model(transformers, "gpt2").to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)

    backbone = from_huggingface(tmp_path, "backbone")

    expected = theirs.transformer.wte.weight.detach().float().numpy()
    tokens = keras.ops.convert_to_numpy(backbone.token_embedding.embeddings)
    np.testing.assert_array_equal(tokens, expected)


# === tasks ===


def test_a_fresh_head_goes_on_a_language_model(folder):
    lm = from_huggingface(folder)

    classifier = from_huggingface(folder, "text_classifier", num_classes=3, lm_loss_weight=0.25)

    assert (classifier.num_classes, classifier.lm_loss_weight) == (3, 0.25)
    assert_same_weights(classifier.backbone, lm.backbone)


def test_a_classifiers_body_is_read_without_its_head(tmp_path):
    classifier = TextClassifier(make_lm().backbone, num_classes=3)
    to_huggingface(classifier, tmp_path / "model")

    lm = from_huggingface(tmp_path / "model", "causal_lm")

    assert_same_weights(lm.backbone, classifier.backbone)


def test_an_unknown_task_is_refused(folder):
    with pytest.raises(ValueError, match=r"text_classifier.*Received: task='translation'"):
        from_huggingface(folder, "translation")


@pytest.mark.parametrize(
    "labels", [{"0": "a", "1": "a"}, {"0": "a", "2": "b"}, {"0": "a"}, {"0": "a", "1": None}]
)
def test_names_of_classes_that_are_none_are_refused_until_others_are_chosen(tmp_path, labels):
    body = kgpt.GPTBackbone(9, 1, 1, 4, max_sequence_length=4)
    to_huggingface(kgpt.TextClassifier(body, 2), tmp_path / "model")
    edit(tmp_path / "model", id2label=labels)

    with pytest.raises(ValueError, match=r"different name for each class.* class_names=None"):
        from_huggingface(tmp_path / "model")

    names = ["x", "y"]
    assert from_huggingface(tmp_path / "model", class_names=names).class_names == names
    assert from_huggingface(tmp_path / "model", class_names=None).class_names is None


@pytest.mark.parametrize(
    ("task", "keyword", "message"),
    [
        ("auto", "torch_dtype", r"from_huggingface\(\) has no argument.*Did you mean dtype\?"),
        ("auto", "subfolder", "the path of the folder itself"),
        ("auto", "zzz", "It has name_or_folder, task,.* cache_dir, tokenizer, sequence_length"),
        ("text_classifier", "num_labels", r"Did you mean num_classes\?"),
        ("backbone", "n_layer", r"from_huggingface\(\) has no argument.*Did you mean"),
    ],
)
def test_a_keyword_that_is_no_argument_is_refused_by_name(folder, task, keyword, message):
    with pytest.raises(TypeError, match=message):
        from_huggingface(folder, task, **{keyword: 2})


@pytest.mark.parametrize("option", ["num_layers", "rotary_positions", "zero_init_residual"])
def test_what_the_files_give_is_not_chosen_for_a_body(folder, option):
    with pytest.raises(ValueError, match=f"{option} is given by the files. Received: {option}=1"):
        from_huggingface(folder, "backbone", **{option: 1})

    assert from_huggingface(folder, "backbone", layer_norm_epsilon=1e-3).layer_norm_epsilon == 1e-3


def test_a_dtype_is_that_of_the_model(folder):
    lm = from_huggingface(folder, dtype="bfloat16")

    assert lm.backbone.token_embedding.embeddings.dtype == "bfloat16"


# === what is refused ===


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("scale_attn_weights", False),
        ("tie_word_embeddings", False),
        ("activation_function", "quick_gelu"),
        ("attn_pdrop", 0.2),
        ("quantization_config", {"bits": 4}),
        ("pruned_heads", {"0": [1]}),
        ("model_type", "gpt_neo"),
        ("architectures", ["GPT2ForTokenClassification"]),
    ],
)
def test_what_a_config_asks_for_in_vain_is_refused_by_name(folder, key, value):
    edit(folder, **{key: value})

    with pytest.raises(ValueError, match=key):
        from_huggingface(folder)


def test_a_config_without_a_size_is_refused(folder):
    edit(folder, n_layer=None)

    with pytest.raises(ValueError, match="must say n_layer"):
        from_huggingface(folder)


def test_a_summary_of_another_kind_is_refused_by_name(tmp_path):
    to_huggingface(MultipleChoice(make_lm().backbone), tmp_path / "model")
    edit(tmp_path / "model", summary_type="mean")

    with pytest.raises(ValueError, match="summary_type='mean'"):
        from_huggingface(tmp_path / "model")


def test_unequal_dropouts_are_read_once_one_is_chosen(folder):
    edit(folder, attn_pdrop=0.2)

    assert from_huggingface(folder, dropout=0.3).backbone.dropout == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.h.1.ln_2.bias"), r"missing: h\.1\.ln_2\.bias"),
        (lambda t: t.update(extra=np.zeros(2, "f4")), "unknown: extra"),
        (lambda t: t.update({"score.bias": np.zeros(2, "f4")}), "unknown: score.bias"),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.zeros(13, "f4")}),
            r"another shape: ln_f\.bias \(13,\) in place of \(12,\)",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.zeros(12, "i1")}),
            r"no floats: ln_f\.bias I8",
        ),
        (
            lambda t: t.update({"lm_head.weight": np.zeros((53, 12), "f4")}),
            "lm_head.weight and wte.weight",
        ),
        (lambda t: t.update({"ln_f.bias": np.zeros(12, "f4")}), "ln_f.bias twice"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    folder = tmp_path / "model"
    model = make_lm()
    if "score" in message:
        model = TextClassifier(model.backbone, num_classes=2)
    to_huggingface(model, folder)
    edit_tensors(folder, change)

    with pytest.raises(ValueError, match=message):
        from_huggingface(folder)


def test_mask_buffers_of_old_files_are_left_out(folder):
    def add_masks(tensors):
        for layer in range(2):
            tensors[f"transformer.h.{layer}.attn.bias"] = np.ones((1, 1, 11, 11), "u1")
            tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, "f4")

    expected = from_huggingface(folder)
    edit_tensors(folder, add_masks)

    assert_same_weights(from_huggingface(folder), expected)


def test_an_output_that_is_saved_twice_is_read_once(folder):
    expected = from_huggingface(folder)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].copy()}))

    assert_same_weights(from_huggingface(folder), expected)


def test_a_file_cut_short_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])

    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        from_huggingface(folder)


def test_missing_files_are_named(folder):
    change_on_purpose(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*pytorch_model\.bin"):
        from_huggingface(folder)

    (folder / "config.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        from_huggingface(folder)


@pytest.mark.parametrize("name", [Path("nowhere/else"), "/nowhere", "a/b/c", "./a"])
def test_a_folder_that_does_not_exist_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="must be a folder that exists"):
        from_huggingface(name)


# === to transformers ===


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformers_gives_the_same_logits_and_tokens(
    transformers, norm_first, token_ids, tmp_path
):
    style = {"style": "gpt2"} if norm_first else {"style": "gpt1", "exact": False}
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275 if norm_first else 60, **style)
    lm = make_lm(norm_first, tokenizer)

    to_huggingface(lm, tmp_path / "model")

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert_close(lm(token_ids), their_outputs(theirs, token_ids).logits)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "The cat didn't sit.\n\nA dog"
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
    assert their_tokenizer.eos_token_id == tokenizer.end_of_text_id
    assert len(their_tokenizer) == tokenizer.vocabulary_size
    assert theirs.generation_config.eos_token_id == tokenizer.end_of_text_id
    assert their_tokenizer.unk_token == ("<|endoftext|>" if norm_first else "<unk>")


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_classifier_gives_the_same_logits_in_transformers(
    transformers, norm_first, token_ids, tmp_path
):
    lm = make_lm(norm_first, kgpt.Tokenizer.train(TEXTS, 275))
    classifier = TextClassifier(lm.backbone, class_names=["b", "a", "c"], tokenizer=lm.tokenizer)

    to_huggingface(classifier, tmp_path / "model")

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert theirs.config.id2label == {0: "b", 1: "a", 2: "c"}
    assert_close(classifier(token_ids), their_outputs(theirs.eval(), token_ids).logits)


@pytest.mark.parametrize("norm_first", [True, False])
def test_multiple_choice_gives_the_same_logits_in_transformers(
    transformers, norm_first, token_ids, tmp_path
):
    model = MultipleChoice(make_lm(norm_first).backbone)
    choices = token_ids.reshape(2, 2, LENGTH)

    to_huggingface(model, tmp_path / "model")

    prefix = "GPT2" if norm_first else "OpenAIGPT"
    their_class = getattr(transformers, f"{prefix}DoubleHeadsModel")
    theirs = their_class.from_pretrained(tmp_path / "model").eval()
    outputs = their_outputs(theirs, choices)
    assert_close(model(choices), outputs.mc_logits)
    lm = kgpt.CausalLM(model.backbone)
    assert_close(lm(token_ids), outputs.logits.reshape(4, LENGTH, VOCABULARY))


def test_a_body_gives_the_same_hidden_states_in_transformers(transformers, token_ids, tmp_path):
    backbone = make_lm().backbone

    to_huggingface(backbone, tmp_path / "model", max_shard_size=5000)

    theirs = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    assert_close(backbone(token_ids), their_outputs(theirs, token_ids).last_hidden_state)


def test_a_config_says_what_converters_of_other_programs_look_for(folder):
    config = json.loads((folder / "config.json").read_text())

    needed = {"n_ctx", "n_positions", "n_embd", "n_head", "n_layer", "n_inner", "vocab_size"}
    needed |= {"layer_norm_epsilon", "activation_function", "torch_dtype", "eos_token_id"}
    assert needed <= config.keys()
    assert config["architectures"] == ["GPT2LMHeadModel"]


# === round trips ===


@pytest.mark.parametrize(
    "options",
    [
        {"norm_first": True, "intermediate_dim": 20, "dropout": 0.2, "activation": "relu"},
        {"norm_first": False, "layer_norm_epsilon": 1e-3},
        {"dtype": "bfloat16"},
    ],
)
def test_a_round_trip_changes_nothing(options, tmp_path):
    lm = make_lm(tokenizer=kgpt.Tokenizer.train(TEXTS, 275), **options)

    to_huggingface(lm, tmp_path / "model", max_shard_size=5000)
    back = from_huggingface(tmp_path / "model", dtype=options.get("dtype"))

    assert_same_weights(back, lm)
    names = {"name": "backbone"}
    assert {**back.backbone.get_config(), **names} == {**lm.backbone.get_config(), **names}
    assert back.tokenizer.get_config() == lm.tokenizer.get_config()


@pytest.mark.parametrize(
    "make",
    [
        partial(TextClassifier, class_names=["no", "yes"], lm_loss_weight=0.0),
        partial(TextClassifier, num_classes=3),
        partial(TextClassifier, num_classes=2, sequence_length=8, truncate="start"),
        partial(CausalLM, sequence_length=8, truncate="start"),
        partial(MultipleChoice, sequence_length=8),
        partial(TextClassifier, class_names=["LABEL_0", "LABEL_1"]),
        partial(TextRegressor, num_outputs=2, both_orders=False, dropout=0.3),
        partial(MultipleChoice, dropout=0.2, lm_loss_weight=0.1),
    ],
)
def test_a_round_trip_changes_nothing_in_a_head(make, tmp_path):
    model = make(make_lm().backbone)

    to_huggingface(model, tmp_path / "model")
    back = from_huggingface(tmp_path / "model")

    assert_same_weights(back, model)
    leave_out = {"backbone": None, "name": None}
    assert {**back.get_config(), **leave_out} == {**model.get_config(), **leave_out}


def test_keys_of_another_kind_of_head_are_left_out(tmp_path):
    to_huggingface(TextClassifier(make_lm().backbone, 2, truncate="start"), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "problem_type": "regression"}))  # as by transformers

    regressor = from_huggingface(tmp_path / "model")

    assert isinstance(regressor, TextRegressor)
    assert (regressor.num_outputs, regressor.truncate) == (2, "start")


@pytest.mark.parametrize(("style", "size"), [("gpt2", 275), ("gpt1", 60), ("characters", None)])
def test_a_tokenizer_comes_back_as_it_was(style, size, tmp_path):
    exact = {"exact": False} if style == "gpt1" else {}
    tokenizer = kgpt.Tokenizer.train(TEXTS, size, style=style, **exact).with_special_tokens()

    to_huggingface(make_lm(tokenizer=tokenizer), tmp_path / "model")
    back = from_huggingface(tmp_path / "model").tokenizer

    assert back.get_config() == tokenizer.get_config()


def test_an_exact_tokenizer_of_gpt1_comes_back_exact(transformers, tmp_path):
    pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    pytest.importorskip("spacy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = kgpt.Tokenizer.train(TEXTS, 60, style="gpt1", exact=True)

    to_huggingface(make_lm(False, tokenizer), tmp_path / "model")

    assert from_huggingface(tmp_path / "model").tokenizer.get_config() == tokenizer.get_config()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs(TEXTS[0])["input_ids"] == tokenizer.encode(TEXTS[0])


def test_vocabulary_and_merges_are_enough_for_a_tokenizer(tmp_path):
    tokenizer = kgpt.Tokenizer.train(TEXTS, 275)
    to_huggingface(make_lm(tokenizer=tokenizer), tmp_path / "model")
    change_on_purpose(tmp_path / "model")
    (tmp_path / "model/tokenizer.json").unlink()

    back = from_huggingface(tmp_path / "model").tokenizer

    assert back.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert back.special_tokens == tokenizer.special_tokens


@pytest.mark.parametrize("exact", [False, True])
def test_a_tokenizer_comes_back_from_transformers_with_its_special_tokens(
    transformers, tmp_path, exact
):
    if exact:
        pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
        pytest.importorskip("spacy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = kgpt.Tokenizer.train(TEXTS, 60, style="gpt1", exact=exact)
    to_huggingface(make_lm(False, tokenizer), tmp_path / "model")

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")
    change_on_purpose(tmp_path / "model")
    back = from_huggingface(tmp_path / "model").tokenizer
    from_file = kgpt.Tokenizer.from_file(tmp_path / "model/tokenizer.json")

    assert "<unk>" in theirs.all_special_tokens
    assert back.special_tokens == from_file.special_tokens == tokenizer.special_tokens
    assert back.exact == exact
    ids = tokenizer.encode(TEXTS[0] + " \u2603")
    assert back.encode(TEXTS[0] + " \u2603") == ids
    assert "<unk>" in back.decode(ids, skip_special_tokens=True)


def test_gpt1s_own_vocabulary_comes_from_transformers_as_from_openais_files(
    transformers, tmp_path, reference_data
):
    files = [reference_data / "vocab/gpt1" / name for name in GPT1_FILES]
    for file, name in zip(files, ("vocab.json", "merges.txt"), strict=True):
        shutil.copy(file, tmp_path / name)
    to_huggingface(make_lm(False), tmp_path / "model")
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "model")

    expected = kgpt.Tokenizer.from_vocabulary(*files, style="gpt1")
    back = kgpt.convert.huggingface._read_tokenizer(tmp_path / "model", "gpt1")

    assert back.get_config() == expected.get_config()
    assert kgpt.Tokenizer.from_file(tmp_path / "model/tokenizer.json").special_tokens == []


def test_gpt1s_words_are_not_those_of_transformers(transformers, tmp_path):
    tokenizer = kgpt.Tokenizer.train(TEXTS, 60, style="gpt1", exact=False)
    lm = make_lm(False, tokenizer)
    to_huggingface(lm, tmp_path / "model")
    model = json.loads((tmp_path / "model/tokenizer.json").read_text())["model"]
    theirs = transformers.OpenAIGPTTokenizer(model["vocab"], list(map(tuple, model["merges"])))
    theirs.add_special_tokens({"additional_special_tokens": tokenizer.special_tokens})
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (tmp_path / "model" / name).unlink()
    theirs.save_pretrained(tmp_path / "model")
    change_on_purpose(tmp_path / "model")

    back = from_huggingface(tmp_path / "model").tokenizer

    text = "didn't it"
    assert theirs(text)["input_ids"] != tokenizer.encode(text)
    assert back.encode(text) == tokenizer.encode(text)
    assert back.special_tokens == tokenizer.special_tokens


# === what is not written ===


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_lm(activation="elu"), "activation='elu'"),
        (lambda: make_lm(False, intermediate_dim=20), "intermediate_dim=20"),
        (lambda: make_lm(False, activation="gelu"), "activation='gelu'"),
        (
            lambda: TextClassifier(make_lm().backbone, num_classes=2, both_orders=True),
            "both_orders=True.*single texts are made with both_orders=False",
        ),
        (lambda: keras.Sequential(), "Received: a Sequential"),
    ],
)
def test_what_transformers_lacks_is_refused_by_name(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_huggingface(make(), tmp_path / "model")

    assert not any(tmp_path.iterdir())


def test_a_quantized_model_is_refused(tmp_path):
    lm = make_lm()
    lm.quantize("int8")

    with pytest.raises(ValueError, match="quantization="):
        to_huggingface(lm, tmp_path / "model")


def test_what_lora_has_learned_is_written(tmp_path, token_ids):
    lm = make_lm()
    lm.backbone.enable_lora(2)
    for block in lm.backbone.decoder_blocks:
        kernel = block.attention.query_key_value.lora_kernel_b
        kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))

    to_huggingface(lm, tmp_path / "model")

    expected = keras.ops.convert_to_numpy(lm(token_ids))
    assert_close(from_huggingface(tmp_path / "model")(token_ids), expected)


def test_a_folder_in_use_is_left_alone(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("keep me")

    for path, overwrite in ((folder, False), (tmp_path / "notes", True)):
        before = sorted(path.iterdir())
        with pytest.raises(ValueError, match="must not exist, or be empty"):
            to_huggingface(make_lm(), path, overwrite=overwrite)
        assert sorted(path.iterdir()) == before


def test_a_model_is_replaced_on_request(folder):
    lm = make_lm(dropout=0.3)

    to_huggingface(lm, folder, overwrite=True, max_shard_size=5000)

    assert from_huggingface(folder).backbone.dropout == 0.3
    assert not (folder / "model.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_nothing_is_left_of_a_write_that_fails(folder, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("kgpt.convert.huggingface.write_weights", fail)
    before = (folder / "model.safetensors").read_bytes()

    with pytest.raises(OSError, match="disk full"):
        to_huggingface(make_lm(dropout=0.3), folder, overwrite=True)

    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "model.safetensors").read_bytes() == before


# === the hub ===


@pytest.fixture
def hub(folder):
    """A server on this machine that speaks as much of the hub's language as a download needs."""
    commit, requests = "0123456789abcdef0123456789abcdef01234567", []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if self.path.startswith("/api/models/someone/small-gpt"):
                sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
                sizes["pytorch_model.bin"] = 9
                if "/tree/" in self.path:
                    content = [
                        {"type": "file", "path": name, "size": size, "oid": name}
                        for name, size in sizes.items()
                    ]
                else:
                    siblings = [{"rfilename": name} for name in sizes]
                    content = {"id": "someone/small-gpt", "sha": commit, "siblings": siblings}
                self.answer(json.dumps(content).encode(), {"Content-Type": "application/json"})
            elif (folder / Path(self.path).name).is_file():
                content = (folder / Path(self.path).name).read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                self.answer(content, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'})
            else:
                self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def answer(self, content, headers):
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


def test_a_repository_is_downloaded_once_and_then_read_without_a_network(hub, folder, tmp_path):
    pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    address, requests = hub
    not_needed = {"torch", "transformers"} - {keras.config.backend()}
    script = (
        "import keras, sys\n"
        "from kgpt.convert.huggingface import from_huggingface\n"
        "assert 'safetensors' not in sys.modules\n"
        f"lm = from_huggingface('someone/small-gpt', cache_dir={str(tmp_path / 'cache')!r})\n"
        f"assert not {not_needed} & set(sys.modules)\n"
        "print(float(keras.ops.sum(abs(lm.backbone.weights[0]))))\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path / "home")
    run = partial(subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True)

    first = run(env=environment)
    asked_for = len(requests)
    second = run(env={**environment, "HF_HUB_OFFLINE": "1"})

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    expected = keras.ops.sum(abs(from_huggingface(folder).backbone.weights[0]))
    assert float(first.stdout) == pytest.approx(float(expected))
    assert second.stdout == first.stdout
    assert len(requests) == asked_for > 0
    assert not any("pytorch_model" in path for path in requests)


# === what is needed ===


@pytest.mark.parametrize("package", ["safetensors", "huggingface_hub"])
def test_a_missing_package_is_named_with_the_way_to_install_it(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    name = folder if package == "safetensors" else "someone/small-gpt"

    with pytest.raises(ImportError, match=rf"{package}.*pip install safetensors huggingface_hub"):
        from_huggingface(name)


@pytest.mark.slow
def test_peak_memory_is_less_than_1_3_times_the_models(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    sizes = {"num_layers": 12, "num_heads": 6, "hidden_dim": 768, "max_sequence_length": 1024}
    backbone = kgpt.GPTBackbone(25000, **sizes)
    to_huggingface(backbone, tmp_path / "model")
    script = (
        "import keras, kgpt, safetensors, re\n"
        "from kgpt.convert.huggingface import from_huggingface\n"
        "def memory(key): return int(re.search(key + r':\\s+(\\d+)',"
        " open('/proc/self/status').read())[1]) * 1024\n"
        "kgpt.GPTBackbone(9, 1, 1, 4)(keras.ops.ones((1, 4), 'int32'))\n"
        "before = memory('VmRSS')\n"
        f"backbone = from_huggingface({str(tmp_path / 'model')!r})\n"
        "print((memory('VmHWM') - before) / (4 * backbone.count_params()))\n"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1.3
    shutil.rmtree(tmp_path)
