"""Bad use: each public function and class says what came, what was expected and what to do."""

import functools
import inspect
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from test_public_names import CLASSES, FUNCTIONS

import kgpt
from kgpt import callbacks, data, layers, metrics, recipes

ROOT = Path(kgpt.__file__).parent
TEXTS = ["a fine film and a dull film"] * 3


@functools.cache
def backbone():
    return kgpt.GPTBackbone(
        vocabulary_size=300, num_layers=1, num_heads=2, hidden_dim=8, max_sequence_length=16
    )


@functools.cache
def tokenizer():
    return kgpt.Tokenizer.train(TEXTS, 265)


@functools.cache
def lm():
    return kgpt.CausalLM(backbone(), tokenizer())


@functools.cache
def classifier():
    return kgpt.TextClassifier(backbone(), 2, tokenizer=tokenizer())


def corpora():
    np.save("tokens.npy", np.zeros(50, "uint16"))
    return [data.windows("tokens.npy", 4, 2), data.windows("tokens.npy", 4, 2, seed=0)]


IDS = np.ones((2, 5), "int32")
DATA = {"tokenizer": tokenizer}
OF_HEADS = {"backbone": [None, "gpt2", 5], "tokenizer": [5, "t.json"], "dropout": [1, "a", None]}
OF_DATA = {"tokenizer": [None, 5, "t.json"], "batch_size": [0, "2"], "seed": [-1, 1.5]}
OF_RATES = {"steps": [None, 0, 1.5], "learning_rate": [0, "fast"], "weight_decay": [-1, "no"]}
SIZES = {"vocabulary_size": 300, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}

# By public name: what calls it, arguments that are right (or functions that make them), and for
# each argument the values that are wrong.
OF_MODELS, OF_ONE_TEXT = [None, 5, "gpt2"], [5, None, ["a", "b"], "", {"text": "a"}]
ROWS = {
    "CausalLM": (kgpt.CausalLM, {"backbone": backbone}, {**OF_HEADS, "dropout": []}),
    "GPTBackbone": (kgpt.GPTBackbone, SIZES, {
        "vocabulary_size": [None, "300", 0, 2**31], "num_layers": [None, 0, 10_001],
        "num_heads": [3, -1], "hidden_dim": [[8], 7.5], "dropout": [1, "0.1"], "dtype": ["int8"],
        "activation": [None, 5], "norm_first": ["yes"], "layer_norm_epsilon": [0, float("nan")],
    }),
    "Head": (kgpt.Head, {"backbone": backbone, "head": lambda: keras.layers.Dense(1)},
             {"backbone": [None, 5], "head": [None, 5], "lm_loss_weight": [-1, "no"]}),
    "MultipleChoice": (kgpt.MultipleChoice, {"backbone": backbone}, OF_HEADS),
    "TextClassifier": (kgpt.TextClassifier, {"backbone": backbone, "num_classes": 2},
                       {**OF_HEADS, "num_classes": [1, "2"], "class_names": ["ab", [1, None]]}),
    "TextRegressor": (kgpt.TextRegressor, {"backbone": backbone},
                      {**OF_HEADS, "num_outputs": [0, "1"]}),
    "Tokenizer": (kgpt.Tokenizer, {}, {"tokenizer_json": [5, "", "{}", "[1]", None, b"x"]}),
    "GenerateSamples": (callbacks.GenerateSamples, {"prompts": "a"},
                        {"prompts": [5, None], "max_new_tokens": [-1, "2"]}),
    "ResumableCheckpoint": (callbacks.ResumableCheckpoint, {"folder": "run"},
                            {"folder": [None, 5], "save_freq": [0, "step"]}),
    "Scores": (callbacks.Scores, {}, {"data": [None, 5, [1], "a"]}),
    "CausalSelfAttention": (layers.CausalSelfAttention, {}, {"num_heads": [0, "2", None]}),
    "DecoderBlock": (layers.DecoderBlock, {"num_heads": 2, "intermediate_dim": 6},
                     {"num_heads": [0, None], "intermediate_dim": ["6"], "dropout": [1]}),
    "FeedForward": (layers.FeedForward, {}, {"intermediate_dim": [0, "2", None]}),
    "TokenAndPositionEmbedding": (
        layers.TokenAndPositionEmbedding,
        {"vocabulary_size": 5, "max_sequence_length": 6, "hidden_dim": 8},
        {"vocabulary_size": [0, None], "max_sequence_length": ["6"], "hidden_dim": [0.5]}),
    "MultiLabelF1": (metrics.MultiLabelF1, {"num_classes": 2},
                     {"num_classes": [0, "2", None], "threshold": [0, 2, "0.5"]}),
    "Perplexity": (metrics.Perplexity, {}, {}),
    "AdamW": (recipes.AdamW, {}, {"learning_rate": [-1, "fast"], "layer_decay": [0, 2]}),
    "Settings": (recipes.Settings, {}, {}),
    "WarmupCosine": (recipes.WarmupCosine, {"learning_rate": 1e-3, "steps": 10},
                     {"learning_rate": [0, "a"], "steps": [0, None], "alpha": [-1]}),
    "WarmupLinear": (recipes.WarmupLinear, {"learning_rate": 1e-3, "steps": 10},
                     {"learning_rate": [0, "a"], "steps": [0, None], "warmup": [2]}),
    "kgpt.from_huggingface": (kgpt.from_huggingface, {"name_or_folder": "no/such"}, {
        "name_or_folder": [5, None, "../no", "a b", ""], "task": ["translation", None, ["x"]],
        "tokenizer": ["t.json", 5], "dropout": [1, "0"], "dtype": ["int8", 5]}),
    "kgpt.to_huggingface": (kgpt.to_huggingface, {"model": lm, "folder": "no"},
                            {"model": [None, 5, "gpt2"], "folder": [None, 5],
                             "overwrite": ["yes"], "max_shard_size": [0, "5GB"]}),
    "kgpt.from_keras_hub": (kgpt.from_keras_hub, {}, {"model": [None, 5, "gpt2_base_en"]}),
    "kgpt.to_keras_hub": (kgpt.to_keras_hub, {}, {"model": [None, 5, "gpt2"]}),
    "kgpt.from_nanogpt": (kgpt.from_nanogpt, {"path": "no.pt"},
                          {"path": [None, 5, "no.pt"], "tokenizer": [5, "t.json"]}),
    "kgpt.from_openai": (kgpt.from_openai, {"folder": "no"},
                         {"folder": [None, 5, "no"], "num_heads": [0, "12"]}),
    "kgpt.model_card": (kgpt.model_card, {"model": lm, "path": "no.md"},
                        {"model": [None, 5], "path": [None, 5], "tokens_seen": [-1, "many"]}),
    "kgpt.plan": (kgpt.plan, {"model": "gpt_nano"}, {
        "model": ["gpt5", 5, {}], "batch_size": [0, "8"], "sequence_length": [0, 10**6],
        "optimizer": ["fast", 5], "mesh": [0, (2, 2, 2), "two"], "style": ["zero"],
        "steps": [0], "mfu": [0, 2], "peak_flops": [-1], "price": [5]}),
    "kgpt.distribution.layout_map": (
        kgpt.distribution.layout_map, {"model": "gpt_nano", "mesh": 8},
        {"model": [None, "gpt5"], "mesh": [None, 8, (2, 4)], "style": ["zero", None]}),
    "kgpt.distribution.pin": (
        lambda axes: kgpt.distribution.pin(np.ones((2, 3)), axes), {}, {"axes": ["rows", 5]}),
    "kgpt.data.arithmetic": (data.arithmetic, {}, {"split": [5, "dev"]}),
    "kgpt.data.character_categories": (data.character_categories, {},
                                       {"split": [5, "dev"], "in_words": ["yes"]}),
    "kgpt.data.character_values": (data.character_values, {}, {"split": [5, "dev"]}),
    "kgpt.data.function_docstrings": (data.function_docstrings, {},
                                      {"split": ["dev"], "num_choices": [1, "4"], "seed": [-1]}),
    "kgpt.data.classification": (
        data.classification, {"texts": ["a", "b"], "labels": [0, 1], **DATA},
        {**OF_DATA, "texts": [5, None, "ab", ["a"], [1, 2]], "labels": [[0], [0.5, 1], 5],
         "sample_weight": [[1], ["a", "b"], 5]}),
    "kgpt.data.entailment": (
        data.entailment, {"premises": ["a"] * 2, "hypotheses": ["b"] * 2, "labels": [0, 1], **DATA},
        {**OF_DATA, "premises": [5, "ab", [1, 2]], "hypotheses": [["b"], None]}),
    "kgpt.data.similarity": (
        data.similarity,
        {"first_texts": ["a"] * 2, "second_texts": ["b"] * 2, "labels": [0, 1], **DATA},
        {**OF_DATA, "first_texts": [5, "ab", [1, 2]], "second_texts": [["b"], None]}),
    "kgpt.data.regression": (
        data.regression, {"texts": ["a", "b"], "targets": [0.5, 1], **DATA},
        {**OF_DATA, "texts": [5, None, "ab"], "targets": [[0.5], ["a", "b"], [float("nan")] * 2]}),
    "kgpt.data.multiple_choice": (
        data.multiple_choice,
        {"contexts": ["a"] * 2, "choices": [["b", "c"]] * 2, "labels": [0, 1], **DATA},
        {**OF_DATA, "contexts": [5, "ab"], "choices": [5, [["b"], ["c", "d"]]],
         "labels": [[0, 2]]}),
    "kgpt.data.completions": (
        data.completions, {"prompts": ["a"], "completions": ["b"], **DATA},
        {**OF_DATA, "prompts": [5, "a", [1]], "completions": [["b", "c"], None]}),
    "kgpt.data.conversations": (
        data.conversations, {"conversations": [[("a", True)]], **DATA},
        {**OF_DATA, "conversations": [5, "a", [["a"]], [[("a", 5)]]]}),
    "kgpt.data.documents": (data.documents, {"texts": ["a", "b"], **DATA},
                            {**OF_DATA, "texts": [5, None, "ab", [1]]}),
    "kgpt.data.read_texts": (data.read_texts, {"path": "no.csv"},
                             {"path": [5, None], "errors": ["ignore"], "encoding": [5, "utf-99"]}),
    "kgpt.data.paraphrases": (data.paraphrases, {}, {"split": ["dev"], "num_pairs": [0, "9"]}),
    "kgpt.data.stories": (data.stories, {}, {"num_stories": [0, "9"], "seed": [-1]}),
    "kgpt.data.story_endings": (data.story_endings, {},
                                {"split": ["dev"], "num_stories": [0], "short": ["yes"]}),
    "kgpt.data.mixture": (
        data.mixture, {"datasets": corpora, "weights": [1, 2]},
        {"datasets": [None, 5, [], [5], "ab"], "weights": [None, 0.5, "ab", [1], [0, 0], [1, -1]],
         "repeat": ["yes"]}),
    "kgpt.data.standard_library_files": (data.standard_library_files, {}, {}),
    "kgpt.data.windows": (data.windows, {"path": "no.npy", "sequence_length": 4, "batch_size": 2},
                          {"path": [5, None, "no.npy", ".", [], [5], ["no.npy"] * 2],
                           "sequence_length": [0, "4"],
                           "batch_size": [0, None], "seed": [-1], "shard_index": [0]}),
    "kgpt.data.write_tokens": (
        data.write_tokens, {"files_or_texts": TEXTS, "path": "no.npy", **DATA},
        {"tokenizer": [None, 5], "files_or_texts": [5, None, "a", {"text": TEXTS}, [5]],
         "path": [5, None], "validation_fraction": [1, "0.1"]}),
    "kgpt.metrics.classification_scores": (
        metrics.classification_scores, {"labels": [0, 1], "logits": [[1.0, 2], [3, 4]]},
        {"labels": [[0], [[0, 1, 1]]], "logits": [[1, 2], 5]}),
    "kgpt.metrics.multi_label_scores": (
        metrics.multi_label_scores, {"labels": [[0, 1]], "logits": [[0.5, -0.5]]},
        {"labels": [[0, 1], [[0, 0]]], "logits": [5], "threshold": [0, 1, "0.5"]}),
    "kgpt.metrics.regression_scores": (
        metrics.regression_scores, {"targets": [0.5, 1.0], "outputs": [1.0, 2.0]},
        {"targets": [[0.5]], "outputs": [[1.0]]}),
    "kgpt.plot.attention": (
        kgpt.plot.attention, {"lm": lm, "text": "a"},
        {"lm": OF_MODELS, "text": OF_ONE_TEXT, "layer": [9, -1], "head": [9, -1], "html": [5]}),
    "kgpt.plot.confusion_matrix": (
        kgpt.plot.confusion_matrix, {"labels": [0, 1], "predictions": [0, 1]},
        {"labels": [5, None, [0], [[0, 1]], [0, -1], [0.5, 1]], "predictions": [5, [0], [[0, 1]]],
         "class_names": [5, ["a"], "ab"]}),
    "kgpt.plot.embedding_neighbours": (
        kgpt.plot.embedding_neighbours, {"lm": lm, "texts": "a"},
        {"lm": OF_MODELS, "texts": [5, None, [], "a b", [10**6]], "k": [0]}),
    "kgpt.plot.next_tokens": (kgpt.plot.next_tokens, {"lm": lm, "text": "a"},
                              {"lm": OF_MODELS, "text": OF_ONE_TEXT, "k": [0]}),
    "kgpt.plot.surprise": (kgpt.plot.surprise, {"lm": lm, "text": "a"},
                           {"lm": OF_MODELS, "text": OF_ONE_TEXT, "html": [5]}),
    "kgpt.plot.training_curves": (
        kgpt.plot.training_curves, {"history": {"loss": [1.0]}, "path": "no.png"},
        {"history": [{}, {"accuracy": [1]}, 5, None], "path": [5], "steps_per_epoch": [0]}),
    "kgpt.recipes.fastest_settings": (recipes.fastest_settings, {}, {"backend": [5, "numpy"]}),
    "kgpt.recipes.fast_optimizer": (recipes.fast_optimizer, {"steps": 10}, OF_RATES),
    "kgpt.recipes.finetuning_optimizer": (recipes.finetuning_optimizer, {"steps": 10}, OF_RATES),
    "kgpt.recipes.pretraining_optimizer": (recipes.pretraining_optimizer, {"steps": 10}, OF_RATES),
}  # fmt: skip
METHODS = {
    "Tokenizer.train": (kgpt.Tokenizer.train, {"files_or_texts": TEXTS, "vocabulary_size": 265},
                        {"files_or_texts": [5, None, "a", [], [5]], "vocabulary_size": [5, "a"]}),
    "Tokenizer.from_file": (kgpt.Tokenizer.from_file, {}, {"path": [5, None, "no.json", "."]}),
    "Tokenizer.from_vocabulary": (
        kgpt.Tokenizer.from_vocabulary, {"vocabulary": "no.json", "merges": "no.bpe"},
        {"vocabulary": [5, None, "."], "merges": [5], "style": ["bert"]}),
    "Tokenizer.encode": (lambda **x: tokenizer().encode(**x), {}, {"text": [5, None, ["a"], b"a"]}),
    "Tokenizer.decode": (lambda **x: tokenizer().decode(**x), {},
                         {"ids": [5, ["a"], [10**6], [-1], [[1]], [1.5], None]}),
    "CausalLM.compile": (lambda **x: lm().compile(**x), {},
                         {"optimizer": ["auto", 5, None, ["adam"]], "loss": ["auto", 5]}),
    "CausalLM.fit": (lambda **x: lm().fit(**x, verbose=0), {"x": IDS}, {
        "x": [None, [], 5, {"ids": IDS}, IDS + 500, IDS - 2, IDS * 0.5, [[1, 2], [3]], [IDS, IDS]],
        "sample_weight": [[1, 2, 3], ["a", "b"]], "class_weight": [{0: 1.0}]}),
    "TextClassifier.fit": (
        lambda **x: classifier().fit(**x, verbose=0),
        {"x": {"token_ids": IDS}, "y": lambda: [0, 1]},
        {"y": [None, [0, 2], [0], ["a", "b"], [0.5, 1], 5], "x": [5, {"token_ids": IDS + 500}],
         "validation_split": [2.0]}),
    "CausalLM.generate": (lambda **x: lm().generate(**x), {"prompts": "a"},
                          {"prompts": [5, None, {"a": 1}], "max_new_tokens": [-1],
                           "sampler": ["nucleus"], "temperature": [0]}),
    "CausalLM.score": (lambda **x: lm().score(**x), {}, {"texts": [5, None]}),
    "CausalLM.from_preset": (kgpt.CausalLM.from_preset, {},
                             {"preset": [5, None, "gpt5", "no/such", "gpt_nano"]}),
    "TextClassifier.predict_text": (lambda **x: classifier().predict_text(**x), {},
                                    {"texts": [5, None, [5]]}),
    "GPTBackbone.take_blocks": (lambda **x: backbone().take_blocks(**x), {"num_blocks": 1},
                                {"other": [None, 5, "gpt2"]}),
    "GPTBackbone.load_lora_weights": (lambda **x: backbone().load_lora_weights(**x), {},
                                      {"path": [5, None, "a.h5", "no.lora.h5"]}),
}  # fmt: skip


def test_each_public_name_has_a_row():
    names = {of_class.__name__ for of_class in CLASSES} | set(FUNCTIONS)

    assert names == set(ROWS)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        pytest.param(name, argument, value, id=f"{name}-{argument}-{i}")
        for name, (_, _, wrong) in {**ROWS, **METHODS}.items()
        for argument, values in wrong.items()
        for i, value in enumerate(values)
    ],
)
def test_wrong_arguments_are_refused_by_kgpt_itself(name, argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, right, _ = {**ROWS, **METHODS}[name]
    arguments = {
        key: one() if inspect.isfunction(one) or hasattr(one, "cache_info") else one
        for key, one in {**right, argument: value}.items()
    }

    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as refused:
        call(**arguments)

    assert_own_words(refused)


def assert_own_words(refused):
    message, last = str(refused.value), refused.traceback[-1]
    assert ROOT in Path(last.path).parents, f"from {last.path}: {message}"
    assert "Received: " in message or isinstance(refused.value, FileNotFoundError), message
    assert "\n" not in message, message


@pytest.mark.parametrize("name", [*ROWS, *METHODS])
def test_unknown_keywords_are_refused(name):
    call, right, _ = {**ROWS, **METHODS}[name]
    if name in ("Settings", "kgpt.recipes.Settings") or ("." in name and name in METHODS):
        return

    with pytest.raises(TypeError):
        call(**{key: None for key in right}, no_such_argument=1)


# === What is meant goes on ===


def test_labels_may_be_a_list_beside_a_dict_of_arrays():
    model = kgpt.TextClassifier(backbone(), 2)
    model.compile(run_eagerly=keras.backend.backend() == "tensorflow")

    from_list = model.evaluate({"token_ids": IDS}, [0, 1], verbose=0)

    assert from_list == model.evaluate({"token_ids": IDS}, np.array([0, 1]), verbose=0)
    assert from_list == model.evaluate({"token_ids": IDS.tolist()}, [0, 1], verbose=0)
    model.fit({"token_ids": IDS}, [0, 1], validation_split=0.5, sample_weight=[1, 2], verbose=0)


def test_a_frozen_body_is_trained_again_by_keras_own_flag():
    body = kgpt.GPTBackbone(**SIZES)
    count = len(body.trainable_variables)
    body.freeze(1)
    assert len(body.trainable_variables) < count

    body.trainable = True

    assert len(body.trainable_variables) == count


def test_transformers_gpt1_gets_gpt1s_words(tmp_path):
    ours = kgpt.Tokenizer.train(["the cat sat. don't!"] * 3, 60, style="gpt1", exact=False)
    parts = json.loads(ours.get_config()["tokenizer_json"])
    parts["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "lowercase": True,
                           "handle_chinese_chars": True, "strip_accents": None}  # fmt: skip
    parts["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))

    read = kgpt.Tokenizer.from_file(tmp_path / "tokenizer.json")

    assert read.encode("The cat don't!") == ours.encode("The cat don't!")
    assert read.special_tokens == ours.special_tokens
