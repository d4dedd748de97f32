import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import kgpt

VOCABULARY, LENGTH = 50, 9
ROWS = 21
# A vocabulary whose logits are computed for so many rows at a time.
LARGE, LARGE_CHUNK = 5600, 768


def make_lm(seed=0, vocabulary=VOCABULARY, **overrides):
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 1, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 16}
    return kgpt.CausalLM(kgpt.GPTBackbone(vocabulary, **{**sizes, "dropout": 0.0, **overrides}))


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    stream = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1))
    return stream[:, :-1], stream[:, 1:]


@pytest.fixture(scope="module")
def weights():
    """Weights that differ much from batch to batch."""
    counts = np.linspace(1, LENGTH, ROWS).astype(int)
    return (np.arange(LENGTH) < counts[:, None]).astype("float32")


def reference_figures(lm, x, y, weights):
    """Loss, perplexity and accuracy from the full logits, in numpy."""
    logits = lm.predict(x, verbose=0).astype("float64")
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_softmax, y[..., None], -1)[..., 0]
    mean = (loss * weights).sum() / weights.sum()
    accuracy = ((logits.argmax(-1) == y) * weights).sum() / weights.sum()
    return {"loss": mean, "perplexity": np.exp(mean), "accuracy": accuracy}


def assert_figures(figures, expected, prefix=""):
    for name, value in expected.items():
        np.testing.assert_allclose(figures[prefix + name], value, rtol=1e-5, err_msg=name)


# === loss and figures ===


@pytest.mark.parametrize("batch_size", [4, 21])
def test_evaluate_reports_exact_means_per_token(tokens, weights, batch_size):
    lm = make_lm()
    lm.compile()
    x, y = tokens

    figures = lm.evaluate(x, y, batch_size, sample_weight=weights, verbose=0, return_dict=True)

    assert_figures(figures, reference_figures(lm, x, y, weights))


@pytest.mark.compiled
def test_fit_reports_the_same_figures_as_evaluate(tokens, weights):
    lm = make_lm()
    lm.compile(keras.optimizers.SGD(0.0))
    x, y = tokens

    history = lm.fit(
        x, y, batch_size=4, sample_weight=weights, validation_data=(x, y, weights), verbose=0
    ).history

    expected = reference_figures(lm, x, y, weights)
    assert_figures({k: v[0] for k, v in history.items()}, expected)
    assert_figures({k: v[0] for k, v in history.items()}, expected, prefix="val_")


def test_evaluate_gives_a_list_in_the_order_of_the_names(tokens):
    lm = make_lm()
    lm.compile()

    figures = lm.evaluate(*tokens, verbose=0)

    assert lm.metrics_names == ["loss", "perplexity", "accuracy"]
    np.testing.assert_allclose(figures[1], np.exp(figures[0]), rtol=1e-5)


@pytest.mark.compiled
@pytest.mark.parametrize("repeats", [1, 5], ids=["one chunk", "several chunks"])
def test_a_step_with_the_own_loss_is_the_step_with_keras_loss_on_all_logits(
    tokens, weights, repeats
):
    own, plain = (make_lm(vocabulary=LARGE) for _ in range(2))
    own.compile(keras.optimizers.SGD(1.0))
    plain.compile(
        keras.optimizers.SGD(1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    before = own.get_weights()
    x, y, weights = (np.repeat(array, repeats, axis=0) for array in (*tokens, weights))
    assert (x.size > LARGE_CHUNK) == (repeats > 1)

    own_loss = own.train_on_batch(x, y, weights, return_dict=True)["loss"]
    plain_loss = plain.train_on_batch(x, y, weights, return_dict=True)["loss"]

    np.testing.assert_allclose(own_loss, plain_loss, rtol=1e-5)
    for was, a, b in zip(before, own.get_weights(), plain.get_weights(), strict=True):
        assert np.abs(a - was).max() > 1e-6
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_no_step_computes_all_logits_at_once(tokens, training, monkeypatch):
    shapes, softmax = [], keras.ops.softmax
    monkeypatch.setattr(
        keras.ops, "softmax", lambda x, *args: shapes.append(tuple(x.shape)) or softmax(x, *args)
    )
    lm = make_lm(vocabulary=LARGE)
    lm.compile("sgd", run_eagerly=True)
    tokens = [np.repeat(array, 5, axis=0) for array in tokens]

    step = lm.train_on_batch if training else lm.test_on_batch
    step(*tokens)

    rows = [shape[0] for shape in shapes if shape[-1] == LARGE]
    assert rows
    assert max(rows) <= LARGE_CHUNK < tokens[0].size


def test_without_targets_the_next_token_of_the_input_is_predicted(tokens):
    lm = make_lm()
    lm.compile()
    x, _ = tokens
    weights = np.ones_like(x, "float32")
    weights[:, -1] = 0

    figures = lm.evaluate(x, verbose=0, return_dict=True)

    assert_figures(figures, reference_figures(lm, x, np.roll(x, -1, axis=1), weights))


@pytest.mark.compiled
def test_padding_and_the_first_token_of_the_next_document_do_not_count(tokens, weights):
    lm = make_lm()
    lm.compile()
    x, y = tokens
    segments = np.repeat([[0, 0, 0, 1, 1, 1, 1, 2, 2]], ROWS, axis=0)
    inputs = {"token_ids": x, "padding_mask": weights, "segment_ids": segments}
    counts = weights.copy()
    counts[:, :-1] *= weights[:, 1:]
    counts[:, [2, 6]] = 0

    figures = lm.evaluate(inputs, y, batch_size=4, verbose=0, return_dict=True)

    assert_figures(figures, reference_figures(lm, inputs, y, counts))


def test_metrics_given_to_compile_see_the_logits(tokens):
    lm = make_lm()
    metric = keras.metrics.SparseTopKCategoricalAccuracy(k=VOCABULARY // 2, name="top_half")
    lm.compile("sgd", metrics=[metric])
    x, y = tokens

    figures = lm.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)

    logits = lm.predict(x, verbose=0)
    rank = (logits > np.take_along_axis(logits, y[..., None], -1)).sum(-1)
    np.testing.assert_allclose(figures["top_half"], (rank < VOCABULARY // 2).mean(), rtol=1e-5)
    assert_figures(figures, reference_figures(lm, x, y, np.ones_like(x)))


@pytest.mark.compiled
def test_compile_forgets_the_loss_of_an_earlier_compile(tokens):
    lm = make_lm()
    lm.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert set(lm.evaluate(*tokens, verbose=0, return_dict=True)) == {"loss"}

    lm.compile("sgd")

    figures = lm.evaluate(*tokens, verbose=0, return_dict=True)
    assert set(figures) == {"loss", "perplexity", "accuracy"}


# === training ===


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, i):
        rows = slice(7 * i, 7 * i + 7)
        return {"token_ids": self.x[rows]}, self.y[rows]


def tf_dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(7)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "source",
    [
        lambda x, y: {"x": x, "y": y, "shuffle": False, "batch_size": 7},
        lambda x, y: {"x": {"token_ids": x}, "y": y, "shuffle": False, "batch_size": 7},
        lambda x, y: {"x": Batches(x, y), "shuffle": False},
        lambda x, y: {"x": tf_dataset(x, y), "shuffle": False},
    ],
    ids=["arrays", "dict", "PyDataset", "tf.data"],
)
def test_fit_takes_every_kind_of_data_and_learns_it(tokens, source):
    lm = make_lm(hidden_dim=48)
    lm.compile(keras.optimizers.Adam(1e-2))

    history = lm.fit(**source(*tokens), epochs=16, verbose=0).history

    assert history["loss"][-1] < 0.8 * history["loss"][0]


def test_the_default_optimizers_schedule_spans_each_fit(tokens):
    lm = make_lm()
    lm.compile()

    for fit in range(2):
        lm.fit(*tokens, batch_size=7, epochs=2, verbose=0)

        schedule = keras.optimizers.serialize(lm.optimizer)["config"]["learning_rate"]["config"]
        assert (schedule["start"], schedule["steps"]) == (6 * fit, 6)
        assert schedule["learning_rate"] == 2.5e-4
        assert float(lm.optimizer.learning_rate) < 1e-9


@pytest.mark.compiled
def test_the_second_fit_with_the_default_optimizer_still_learns(tokens):
    lm = make_lm()
    lm.compile()
    lm.fit(*tokens, epochs=1, verbose=0)
    before = lm.get_weights()

    lm.fit(*tokens, epochs=1, batch_size=4, verbose=0)

    change = max(np.abs(a - b).max() for a, b in zip(before, lm.get_weights(), strict=True))
    assert change > 1e-4


def test_accumulated_gradients_take_the_step_of_the_whole_batch(tokens):
    x, y = tokens[0][:8], tokens[1][:8]
    whole, parts = make_lm(), make_lm()
    whole.compile(keras.optimizers.SGD(1.0))
    parts.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=4))

    whole.fit(x, y, batch_size=8, verbose=0)
    parts.fit(x, y, batch_size=2, verbose=0)

    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.compiled
def test_jit_compile_gives_the_same_losses(tokens):
    if keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ compiler and minutes; tested with XLA only")
    histories = []
    for jit_compile in (False, True):
        lm = make_lm()
        lm.compile("sgd", jit_compile=jit_compile)
        histories.append(lm.fit(*tokens, batch_size=7, epochs=2, shuffle=False, verbose=0).history)

    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


@pytest.mark.compiled
def test_steps_per_execution_gives_the_same_losses(tokens):
    if keras.config.backend() == "torch":
        pytest.skip("Keras has no steps_per_execution on the torch backend")
    histories = []
    for steps in (1, 3):
        lm = make_lm()
        lm.compile("sgd", steps_per_execution=steps)
        histories.append(lm.fit(*tokens, batch_size=7, epochs=2, shuffle=False, verbose=0).history)

    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-5)


@pytest.mark.compiled
def test_mixed_precision_learns_with_float32_weights(tokens):
    lm = make_lm(hidden_dim=48, dtype="mixed_bfloat16")
    lm.compile(keras.optimizers.Adam(1e-2))

    losses = lm.fit(*tokens, epochs=20, batch_size=7, verbose=0).history["loss"]

    assert losses[-1] < 0.8 * losses[0]
    assert {w.dtype for w in lm.weights} == {"float32"}


def test_a_frozen_body_stays_as_it_is(tokens):
    lm = make_lm()
    lm.backbone.trainable = False
    lm.backbone.final_norm.trainable = True
    lm.compile(keras.optimizers.SGD(1.0))
    before = {w.path: w.numpy() for w in lm.weights}

    lm.fit(*tokens, verbose=0)

    changed = {w.path for w in lm.weights if np.any(w.numpy() != before[w.path])}
    assert changed == {"final_norm/gamma", "final_norm/beta"}


# === saving ===

LOAD_AND_TRAIN = """
import sys
import numpy as np
import kgpt, keras
lm = keras.models.load_model(sys.argv[1])
data = np.load(sys.argv[2])
out = lm.predict(data["x"], verbose=0)
history = lm.fit(data["x"], data["y"], batch_size=7, shuffle=False, verbose=0).history
np.savez(sys.argv[3], logits=out, loss=history["loss"], iterations=int(lm.optimizer.iterations))
"""


@pytest.mark.compiled
def test_a_fresh_process_loads_the_file_and_trains_on(tokens, tmp_path):
    x, y = tokens
    lm = make_lm()
    lm.compile()
    lm.fit(x, y, batch_size=7, verbose=0)
    lm.save(tmp_path / "lm.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    logits = lm.predict(x, verbose=0)
    loss = lm.fit(x, y, batch_size=7, shuffle=False, verbose=0).history["loss"]

    files = [str(tmp_path / name) for name in ("lm.keras", "data.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", LOAD_AND_TRAIN, *files], check=True)

    out = np.load(files[2])
    np.testing.assert_array_equal(out["logits"], logits)
    np.testing.assert_array_equal(out["loss"], loss)
    assert out["iterations"] == 6


def test_weights_can_be_saved_alone(tokens, tmp_path):
    x, _ = tokens
    lm, other = make_lm(seed=0), make_lm(seed=1)
    lm.save_weights(tmp_path / "lm.weights.h5")

    other.load_weights(tmp_path / "lm.weights.h5")

    np.testing.assert_array_equal(other.predict(x, verbose=0), lm.predict(x, verbose=0))


def test_config_round_trips_through_json():
    lm = make_lm()

    config = json.loads(json.dumps(lm.get_config()))
    twin = kgpt.CausalLM.from_config(config)

    assert twin.get_config() == lm.get_config()
    assert [w.shape for w in twin.weights] == [w.shape for w in lm.weights]


def test_clone_model_gives_the_same_function_with_weights_of_its_own(tokens):
    x, _ = tokens
    lm = make_lm()
    inputs = {
        "token_ids": x,
        "padding_mask": np.ones_like(x, "bool"),
        "segment_ids": np.zeros_like(x),
    }

    clone = keras.models.clone_model(lm)
    assert not np.allclose(clone.predict(inputs, verbose=0), lm.predict(inputs, verbose=0))
    clone.set_weights(lm.get_weights())

    np.testing.assert_allclose(
        clone.predict(inputs, verbose=0), lm.predict(inputs, verbose=0), atol=1e-6
    )


def test_summary_lists_the_parts(capsys):
    make_lm(num_layers=2).summary()

    printed = capsys.readouterr().out
    for name in ("token_ids", "embedding", "decoder_block_0", "decoder_block_1", "final_norm"):
        assert name in printed


# === bad input ===


def test_ids_beyond_the_vocabulary_are_refused_before_training(tokens):
    lm = make_lm()
    lm.compile()
    x = tokens[0].copy()
    x[3, 4] = VOCABULARY

    for call in (lm.fit, lm.evaluate, lm.predict):
        with pytest.raises(ValueError, match=rf"\[0, {VOCABULARY}\).*to {VOCABULARY}"):
            call(x)


def test_a_sequence_longer_than_the_positions_is_refused_before_anything_runs():
    lm = make_lm()
    lm.compile()

    for call in (lm.fit, lm.evaluate, lm.predict):
        with pytest.raises(ValueError, match="Received: length=17, max_sequence_length=16"):
            call(np.zeros((2, 17), int))


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    class Large:
        vocabulary_size = VOCABULARY + 1
        encode_batch = None

    with pytest.raises(
        ValueError, match=f"Make the backbone with vocabulary_size={VOCABULARY + 1}"
    ):
        kgpt.CausalLM(make_lm().backbone, tokenizer=Large())
