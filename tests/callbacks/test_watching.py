"""What one watches a run with: samples, and the tools of others that `fit` must work with."""

import csv
import sys

import keras
import numpy as np
import pytest

import kgpt

QUICK = {"run_eagerly": keras.backend.backend() == "tensorflow"}


@pytest.fixture(scope="module")
def tokenizer():
    return kgpt.Tokenizer.train(["a fine film, a dull film"] * 3, vocabulary_size=262)


@pytest.fixture(scope="module")
def rows(tokenizer):
    return np.random.default_rng(0).integers(0, tokenizer.vocabulary_size, (12, 7), "int32")


def make_lm(tokenizer, hidden_dim=8):
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, hidden_dim, max_sequence_length=24)
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile("adam", **QUICK)
    return lm


def events(folder):
    """`{tag: {step: value}}` of what was written for TensorBoard into a folder."""
    pytest.importorskip("tensorboard", reason="the extra `test`")
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    accumulator = event_accumulator.EventAccumulator(str(folder), {"tensors": 0})
    accumulator.Reload()
    return {
        tag: {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in accumulator.Tensors(tag)}
        for tag in accumulator.Tags()["tensors"]
    }


# === Samples ===


def test_samples_are_printed_and_shown_by_tensorboard(tokenizer, rows, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="the extra `test`")
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    lm = make_lm(tokenizer)
    prompts = ["  a\n    fine", "*dull* <b>"]
    samples = kgpt.callbacks.GenerateSamples(prompts, 3, log_dir=tmp_path, sampler="greedy")
    lm.fit(rows, epochs=2, verbose=0, callbacks=[samples])

    (of_steps,) = events(tmp_path / "samples").values()
    assert list(of_steps) == [0, 1]
    last = [lm.generate(prompt, 3, sampler="greedy") for prompt in prompts]
    shown = [text.decode() for text in of_steps[1]]
    assert ["\n".join(line[4:] for line in text.split("\n")) for text in shown] == last
    page = text_array_to_html(of_steps[1], enable_markdown=True)
    assert "  a\n    fine" in page  # as it is, and not as Markdown or HTML
    assert "*dull* &lt;b&gt;" in page
    printed = capsys.readouterr().out
    assert printed.endswith("".join(f"{text}\n\n" for text in last))


def test_several_samples_for_a_prompt_are_printed_one_by_one(tokenizer, rows, capsys):
    options = {"num_return_sequences": 3, "sampler": "random", "seed": 0}
    samples = kgpt.callbacks.GenerateSamples("a fine", 2, **options)
    lm = make_lm(tokenizer)
    samples.set_model(lm)

    samples.on_epoch_end(0)

    assert capsys.readouterr().out.count("a fine") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Try sliding_window=True, or max_new_tokens="),
        ({"max_new_tokens": 2, "stop_token_ids": [300]}, "stop_token_ids must be"),
        ({"max_new_tokens": 2, "seed": 2**31}, "seed must be an int"),
        ({"max_new_tokens": 2, "tokenizer": None}, "tokenizer=None. Try"),
        ({"max_new_tokens": 2, "head": True}, "a kgpt.CausalLM. Received: a TextClassifier"),
    ],
)
def test_samples_that_can_not_be_written_are_refused_before_training(
    tokenizer, rows, options, message
):
    lm = make_lm(tokenizer)
    model, data = (lm, (rows,))
    if options.pop("head", False):
        model, data = kgpt.TextClassifier(lm.backbone, 2), (rows, np.arange(12) % 2)
    elif "tokenizer" in options:
        model = kgpt.CausalLM(lm.backbone, options.pop("tokenizer"))
    model.compile("adam")

    with pytest.raises(ValueError, match=message):
        model.fit(*data, verbose=0, callbacks=[kgpt.callbacks.GenerateSamples("a", **options)])

    assert int(model.optimizer.iterations) == 0


def test_a_log_dir_without_tensorboard_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)

    with pytest.raises(ImportError, match="pip install tensorboard"):
        kgpt.callbacks.GenerateSamples("a", log_dir=tmp_path)


# === Tools of others ===


def test_tensorboard_and_csv_loggers_get_the_figures_of_the_history(tokenizer, rows, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `test`")
    callbacks = [
        keras.callbacks.TensorBoard(tmp_path, write_graph=False),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]

    history = (
        make_lm(tokenizer)
        .fit(rows, validation_data=rows[:4], epochs=2, verbose=0, callbacks=callbacks)
        .history
    )

    with open(tmp_path / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    board = {"": events(tmp_path / "train"), "val_": events(tmp_path / "validation")}
    for name, values in history.items():
        prefix = "val_" if name.startswith("val_") else ""
        of_steps = board[prefix][f"epoch_{name.removeprefix(prefix)}"]
        np.testing.assert_allclose([float(of_steps[epoch]) for epoch in (0, 1)], values, 1e-6)
        np.testing.assert_allclose([float(row[name]) for row in log], values)


@pytest.mark.filterwarnings("ignore")
def test_keras_tuner_searches_and_gives_back_the_best_model(tokenizer, rows, tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner", reason="the extra `test`")
    tuner = keras_tuner.GridSearch(
        lambda hp: make_lm(tokenizer, hp.Choice("hidden_dim", [4, 8])),
        objective="val_loss",
        directory=tmp_path,
    )

    tuner.search(rows, validation_data=rows[:4], epochs=1, verbose=0)

    [best] = tuner.oracle.get_best_trials(1)
    [lm] = tuner.get_best_models(1)
    lm.compile("adam", **QUICK)
    assert lm.backbone.hidden_dim == best.hyperparameters.get("hidden_dim")
    loss = lm.evaluate(rows[:4], return_dict=True, verbose=0)["loss"]
    assert loss == pytest.approx(best.score, abs=1e-5)
