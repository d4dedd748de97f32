import subprocess
import sys

import keras
import numpy as np
import pytest
from killed_runs import killed_and_resumed
from oracles import numpy_cross_entropy, randomize, to_numpy

import kgpt

TOKENIZER = kgpt.Tokenizer.train(["abcdefghijklmnopqrstuvwxyz "], style="characters")
VOCABULARY = TOKENIZER.vocabulary_size
EXAMPLES, SEQUENCES, LENGTH = 11, 3, 7


@keras.saving.register_keras_serializable()
class RewardModel(kgpt.Head):
    """The head in the documentation of `kgpt.Head`."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, head=keras.layers.Dense(1), **kwargs)

    def task_loss(self, y, outputs):  # of the first text more than of the second
        return keras.ops.softplus(outputs[:, 1, 0] - outputs[:, 0, 0])


def make_backbone(seed=0, **overrides):
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 1, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 16}
    return kgpt.GPTBackbone(VOCABULARY, **{**sizes, "dropout": 0.0, **overrides})


def classifier(backbone, **kwargs):
    return kgpt.TextClassifier(backbone, num_classes=3, **{"dropout": 0.0, **kwargs})


def pair_classifier(backbone, **kwargs):
    return classifier(backbone, both_orders=True, **kwargs)


def regressor(backbone, **kwargs):
    return kgpt.TextRegressor(backbone, num_outputs=2, **{"dropout": 0.0, **kwargs})


def chooser(backbone, **kwargs):
    return kgpt.MultipleChoice(backbone, **{"dropout": 0.0, **kwargs})


MAKERS = {"classifier": classifier, "pairs": pair_classifier, "regressor": regressor}
MAKERS["chooser"] = chooser


def make_data(name, seed=1):
    """Inputs with padding of all lengths, and labels or targets."""
    rng = np.random.default_rng(seed)
    shape = {"pairs": (2, LENGTH), "chooser": (SEQUENCES, LENGTH)}.get(name, (LENGTH,))
    lengths = rng.integers(1, LENGTH + 1, (EXAMPLES, *shape[:-1], 1))
    mask = np.arange(LENGTH) < lengths
    token_ids = np.where(mask, rng.integers(1, VOCABULARY, (EXAMPLES, *shape)), 0)
    x = {"token_ids": token_ids.astype("int32"), "padding_mask": mask}
    if name == "regressor":
        return x, rng.standard_normal((EXAMPLES, 2)).astype("float32")
    return x, rng.integers(0, 3, EXAMPLES).astype("int32")


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return randomize(MAKERS[name](make_backbone()))


@pytest.fixture
def data(name):
    return make_data(name)


def numpy_lm_losses(model, x):
    """The language-model loss of each example, from all logits: over tokens, then sequences."""
    token_ids = x["token_ids"].reshape(-1, LENGTH)
    mask = x["padding_mask"].reshape(-1, LENGTH)
    hidden_states = model.backbone({"token_ids": token_ids, "padding_mask": mask})
    logits = to_numpy(hidden_states) @ to_numpy(model.backbone.token_embedding.embeddings).T
    losses = numpy_cross_entropy(logits[:, :-1], token_ids[:, 1:]) * mask[:, 1:]
    counts = np.maximum(mask[:, 1:].sum(axis=-1), 1)  # a lone token has nothing to predict
    return (losses.sum(axis=-1) / counts).reshape(EXAMPLES, -1).mean(axis=-1)


def numpy_figures(model, x, y, weights=None):
    """What `evaluate` must report."""
    weights = np.ones(EXAMPLES) if weights is None else weights
    outputs = outputs_of(model, x).astype("float64")
    if isinstance(model, kgpt.TextRegressor):
        task_losses = ((outputs - y) ** 2).mean(axis=-1)
        of_each = np.abs(outputs - y).mean(axis=-1)
        figures = {"mean_absolute_error": (of_each * weights).sum() / weights.sum()}
    else:
        task_losses = numpy_cross_entropy(outputs, y)
        correct = outputs.argmax(axis=-1) == y
        figures = {"accuracy": (correct * weights).sum() / weights.sum()}
    figures["task_loss"] = (task_losses * weights).mean()
    figures["loss"] = figures["task_loss"]
    if model.lm_loss_weight:
        figures["lm_loss"] = (numpy_lm_losses(model, x) * weights).mean()
        figures["loss"] += model.lm_loss_weight * figures["lm_loss"]
    return figures


def assert_figures(figures, expected, prefix=""):
    assert set(figures) >= {prefix + name for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(figures[prefix + name], value, rtol=2e-5, err_msg=name)


def texts_and_labels(count, seed=0):
    """Texts of all lengths; the label is whether a text begins with a."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    tails = ["".join(rng.choice(list("cdefgh"), rng.integers(0, 12))) for _ in labels]
    return ["ba"[label] + tail for label, tail in zip(labels, tails, strict=True)], labels


def task_data(count=24, **arguments):
    arguments = {"sequence_length": 16, "batch_size": 4, "seed": 0, **arguments}
    return kgpt.data.classification(*texts_and_labels(count), TOKENIZER, **arguments)


def binary(backbone=None, **kwargs):
    kwargs = {"num_classes": 2, "tokenizer": TOKENIZER, "dropout": 0.0, **kwargs}
    return kgpt.TextClassifier(backbone or make_backbone(), **kwargs)


def outputs_of(model, x):
    return to_numpy(model(x))


def changes(model, before):
    return [np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)]


# === what is read ===


def test_the_outputs_come_from_the_state_of_the_last_real_token(model, name, data):
    x, _ = data
    flat = {key: value.reshape(-1, LENGTH) for key, value in x.items()}
    hidden_states = to_numpy(model.backbone(flat))
    last = flat["padding_mask"].sum(axis=-1) - 1
    states = hidden_states[np.arange(len(last)), last].reshape(EXAMPLES, -1, 12)
    kernel, bias = (to_numpy(w) for w in model.output_projection.weights)

    outputs = to_numpy(model(x))

    expected = states @ kernel + bias if name == "chooser" else states.sum(axis=1) @ kernel + bias
    np.testing.assert_allclose(outputs, expected.reshape(outputs.shape), atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(model, data):
    x, _ = data
    other = np.where(x["padding_mask"], x["token_ids"], 5)

    outputs = outputs_of(model, x)

    changed = outputs_of(model, {**x, "token_ids": other})
    np.testing.assert_allclose(changed, outputs, atol=1e-6)


def test_more_padding_changes_nothing(model, data):
    x, _ = data
    wide = {
        key: np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, 5)], constant_values=0)
        for key, value in x.items()
    }

    outputs = outputs_of(model, x)

    np.testing.assert_allclose(outputs_of(model, wide), outputs, atol=1e-5)


def test_padding_on_the_left_is_not_read_either(model, data):
    x, _ = data
    mask = x["padding_mask"][..., ::-1]  # each sequence ends at the last position
    token_ids = np.where(mask, x["token_ids"][..., ::-1], 0)

    outputs = outputs_of(model, {"token_ids": token_ids, "padding_mask": mask})
    other = np.where(mask, token_ids, 5)
    changed = outputs_of(model, {"token_ids": other, "padding_mask": mask})
    np.testing.assert_allclose(changed, outputs, atol=1e-5)

    other = token_ids.copy()
    other[..., -1] = 1 + other[..., -1] % (VOCABULARY - 1)
    changed = outputs_of(model, {"token_ids": other, "padding_mask": mask})
    assert (np.abs(changed - outputs).reshape(EXAMPLES, -1).max(axis=-1) > 1e-4).all()


def test_without_a_mask_all_tokens_are_real(model, data):
    x, _ = data
    whole = {**x, "padding_mask": np.ones_like(x["padding_mask"])}

    expected = outputs_of(model, whole)

    np.testing.assert_allclose(outputs_of(model, x["token_ids"]), expected, atol=1e-6)
    alone = {"token_ids": x["token_ids"]}
    np.testing.assert_allclose(outputs_of(model, alone), expected, atol=1e-6)


def test_one_sequence_may_have_an_axis_of_its_own_or_not():
    x, _ = make_data("classifier")
    with_axis = {key: value[:, None] for key, value in x.items()}

    for make in (classifier, regressor):
        model = randomize(make(make_backbone()))
        expected = outputs_of(model, x)
        np.testing.assert_allclose(outputs_of(model, with_axis), expected, atol=1e-6)


def test_a_mask_may_be_of_integers(model, data):
    x, _ = data
    integers = {**x, "padding_mask": x["padding_mask"].astype("int32")}

    expected = outputs_of(model, x)

    np.testing.assert_array_equal(outputs_of(model, integers), expected)


def test_the_order_of_a_pair_does_not_matter_where_both_are_read():
    x, _ = make_data("pairs")

    for make in (pair_classifier, regressor):
        model = randomize(make(make_backbone()))
        swapped = {key: value[:, ::-1] for key, value in x.items()}
        np.testing.assert_allclose(outputs_of(model, swapped), outputs_of(model, x), atol=1e-5)


# === loss and figures ===


@pytest.mark.parametrize("batch_size", [1, 4])
def test_evaluate_reports_exact_means_for_any_batch_size(model, data, batch_size):
    x, y = data
    model.compile("sgd")

    figures = model.evaluate(x, y, batch_size, verbose=0, return_dict=True)

    assert_figures(figures, numpy_figures(model, x, y))


def test_evaluate_counts_examples_by_their_weights(model, data):
    x, y = data
    weights = np.linspace(0, 2, EXAMPLES).astype("float32")
    model.compile("sgd")

    figures = model.evaluate(x, y, 4, sample_weight=weights, verbose=0, return_dict=True)

    assert_figures(figures, numpy_figures(model, x, y, weights))


def test_fit_reports_the_same_figures_as_evaluate(model, data):
    x, y = data
    model.compile(keras.optimizers.SGD(0.0))

    history = model.fit(x, y, batch_size=4, validation_data=(x, y), verbose=0).history

    expected = numpy_figures(model, x, y)
    assert_figures({k: v[0] for k, v in history.items()}, expected)
    assert_figures({k: v[0] for k, v in history.items()}, expected, prefix="val_")


def test_without_a_weight_there_is_no_language_model_loss(name, data):
    x, y = data
    model = randomize(MAKERS[name](make_backbone(), lm_loss_weight=0))
    model.compile("sgd")

    figures = model.evaluate(x, y, 4, verbose=0, return_dict=True)

    assert "lm_loss" not in figures
    assert_figures(figures, numpy_figures(model, x, y))


def test_a_batch_of_task_data_evaluates_as_its_texts_do():
    texts, labels = texts_and_labels(23)
    model = randomize(binary())
    model.compile("sgd")

    data = kgpt.data.classification(texts, labels, TOKENIZER, sequence_length=16, batch_size=5)
    figures = model.evaluate(data, verbose=0, return_dict=True)

    probabilities = model.predict_text(texts, probabilities=True)
    expected = -np.log(probabilities[np.arange(23), labels]).mean()
    np.testing.assert_allclose(figures["task_loss"], expected, rtol=1e-5)
    accuracy = (probabilities.argmax(axis=-1) == labels).mean()
    np.testing.assert_allclose(figures["accuracy"], accuracy, rtol=1e-6)


def test_class_weights_count_as_weights_of_examples():
    x, y = make_data("classifier")
    model = randomize(classifier(make_backbone()))
    model.compile(keras.optimizers.SGD(0.0))

    history = model.fit(
        x, y, batch_size=4, class_weight={0: 0.5, 1: 2.0, 2: 3.0}, verbose=0
    ).history

    weights = np.array([0.5, 2.0, 3.0])[y]
    assert_figures({k: v[0] for k, v in history.items()}, numpy_figures(model, x, y, weights))


def test_metrics_given_to_compile_see_the_outputs():
    x, y = make_data("classifier")
    model = randomize(classifier(make_backbone()))
    metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")
    model.compile("sgd", metrics=[metric])

    figures = model.evaluate(x, y, 4, verbose=0, return_dict=True)

    outputs = outputs_of(model, x)
    worst = outputs.argmin(axis=-1)
    np.testing.assert_allclose(figures["top_2"], (worst != y).mean(), rtol=1e-6)


def test_a_plain_keras_loss_works_and_is_the_task_loss():
    x, y = make_data("classifier")
    model = randomize(classifier(make_backbone()))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    figures = model.evaluate(x, y, 11, verbose=0, return_dict=True)

    assert set(figures) == {"loss"}
    np.testing.assert_allclose(figures["loss"], numpy_figures(model, x, y)["task_loss"], rtol=1e-5)


@pytest.mark.compiled
def test_a_step_with_the_own_loss_is_the_step_with_keras_loss():
    x, y = make_data("classifier")
    own, plain = (randomize(classifier(make_backbone(), lm_loss_weight=0)) for _ in range(2))
    own.compile(keras.optimizers.SGD(1.0))
    plain.compile(
        keras.optimizers.SGD(1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    before = own.get_weights()

    own.train_on_batch(x, y)
    plain.train_on_batch(x, y)

    assert max(changes(own, before)) > 1e-3
    for a, b in zip(own.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# === predict ===


@pytest.mark.parametrize("seed", [None, 0])
def test_predict_gives_rows_in_the_order_of_the_texts(seed):
    texts, labels = texts_and_labels(23)
    model = randomize(binary())
    data = kgpt.data.classification(texts, labels, TOKENIZER, 16, batch_size=4, seed=seed)

    outputs = model.predict(data, verbose=0)

    one_by_one = [
        model.predict(kgpt.data.classification([text], None, TOKENIZER, 16), verbose=0)[0]
        for text in texts[:2]
    ]
    np.testing.assert_allclose(outputs[:2], one_by_one, atol=1e-5)
    whole = kgpt.data.classification(texts, None, TOKENIZER, 16, batch_size=23, seed=None)
    np.testing.assert_allclose(outputs, model.predict(whole, verbose=0), atol=1e-5)


def test_predict_and_evaluate_leave_the_place_in_the_data_alone():
    data = task_data()
    model = binary()
    model.compile("sgd")
    state = {**data.get_state(), "next_batch": 2}
    data.set_state(state)

    model.predict(data, verbose=0)
    model.evaluate(data, verbose=0)

    assert data.get_state() == state


def test_data_that_repeats_can_be_predicted_and_evaluated():
    model = randomize(binary())
    model.compile("sgd")

    once, again = (task_data(repeat=repeat) for repeat in (False, True))

    np.testing.assert_array_equal(model.predict(again, verbose=0), model.predict(once, verbose=0))
    assert model.evaluate(again, verbose=0) == model.evaluate(once, verbose=0)


# === training ===


def test_the_default_optimizers_schedule_spans_each_fit():
    model = binary()
    model.compile()
    data = task_data(24, batch_size=4)

    for fit in range(2):
        model.fit(data, epochs=2, verbose=0)

        schedule = keras.optimizers.serialize(model.optimizer)["config"]["learning_rate"]
        assert schedule["class_name"] == "WarmupLinear"
        config = schedule["config"]
        assert (config["start"], config["steps"]) == (12 * fit, 12)
        assert config["learning_rate"] == 6.25e-5
        assert float(model.optimizer.learning_rate) < 1e-9


@pytest.mark.parametrize("step", ["fit", "train_on_batch"])
def test_a_single_step_by_default_trains(step):
    model = binary()
    before = model.get_weights()
    inputs, labels = next(iter(task_data(4)))

    getattr(model, step)(inputs, labels, **({"verbose": 0} if step == "fit" else {}))

    largest = max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True))
    np.testing.assert_allclose(largest, 6.25e-5, rtol=1e-2)


class Rates(keras.callbacks.Callback):
    """The learning rate after each step of a fit, which may be cut after an epoch."""

    def __init__(self, last_epoch=None):
        super().__init__()
        self.rates, self.last_epoch = [], last_epoch

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.last_epoch:
            raise InterruptedError


@pytest.mark.parametrize("initial_epoch", [0, 1])
def test_the_default_schedule_goes_on_with_a_run_that_keras_restores(tmp_path, initial_epoch):
    def fit(model, *callbacks):
        options = {"epochs": 4, "initial_epoch": initial_epoch, "callbacks": callbacks}
        model.fit(task_data(8, batch_size=4, seed=None), verbose=0, **options)

    whole, cut, resumed = Rates(), Rates(last_epoch=2), Rates()
    models = [binary() for _ in range(3)]
    fit(models[0], whole)
    restore = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(InterruptedError):
        fit(models[1], restore, cut)
    fit(models[2], keras.callbacks.BackupAndRestore(tmp_path / "backup"), resumed)

    assert len(resumed.rates) == 2
    np.testing.assert_allclose(cut.rates + resumed.rates, whole.rates, rtol=1e-6)
    for a, b in zip(models[2].get_weights(), models[0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)

    fit(models[2], again := Rates())  # and the next fit is a whole one
    assert len(again.rates) == len(whole.rates)


@pytest.mark.filterwarnings("ignore:`shuffle=True`", "ignore:Your input ran out")
def test_in_a_fit_of_unknown_length_the_rate_stays_at_its_peak():
    model = binary()
    model.compile()

    model.fit((batch for batch in task_data()), verbose=0)

    np.testing.assert_allclose(float(model.optimizer.learning_rate), 6.25e-5, rtol=1e-5)


def test_repeat_goes_with_steps_per_epoch():
    model = binary()
    model.compile(keras.optimizers.Adam(1e-3))

    model.fit(task_data(repeat=True), steps_per_epoch=5, epochs=3, verbose=0)

    assert int(model.optimizer.iterations) == 15


def test_callbacks_of_keras_see_the_validation_figures():
    model = binary()
    model.compile(keras.optimizers.SGD(0.0))
    stop = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=1)

    history = model.fit(
        task_data(), validation_data=task_data(7, seed=None), epochs=9, callbacks=[stop], verbose=0
    )

    assert history.epoch == [0, 1]
    assert {"val_loss", "val_task_loss", "val_lm_loss", "val_accuracy"} <= set(history.history)


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    def fit(*callbacks):
        model = binary()
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(task_data(), epochs=3, callbacks=list(callbacks), verbose=0)
        return model

    expected = fit()

    resumed = killed_and_resumed(fit, tmp_path / "run", at=3)

    assert int(resumed.optimizer.iterations) == int(expected.optimizer.iterations) == 18
    for a, b in zip(resumed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_frozen_body_stays_as_it_is(name, data):
    backbone = make_backbone()
    backbone.trainable = False
    model = MAKERS[name](backbone)
    model.compile(keras.optimizers.SGD(1.0))
    body, head = backbone.get_weights(), model.output_projection.get_weights()

    model.fit(*data, verbose=0)

    for a, b in zip(backbone.get_weights(), body, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(model.output_projection.get_weights()[0] - head[0]).max() > 1e-4


def test_training_one_head_trains_the_body_of_the_others():
    backbone = make_backbone()
    model, other = binary(backbone), regressor(backbone)
    model.compile(keras.optimizers.SGD(1.0))
    x, _ = make_data("regressor")
    before = outputs_of(other, x)

    model.fit(task_data(), verbose=0)

    assert other.backbone is model.backbone
    assert np.abs(outputs_of(other, x) - before).max() > 1e-4


@pytest.mark.compiled
@pytest.mark.slow
def test_mixed_precision_learns_with_float32_weights():
    model = binary(make_backbone(dtype="mixed_bfloat16", hidden_dim=24))
    model.compile(keras.optimizers.Adam(1e-2))

    losses = model.fit(task_data(), epochs=10, verbose=0).history["task_loss"]

    assert losses[-1] < 0.6 * losses[0]
    assert {w.dtype for w in model.weights} == {"float32"}
    assert model.predict(task_data(), verbose=0).dtype == np.float32


# === a head of one's own ===


def reward_data():
    good, bad = ["ab", "abc", "acd", "ae", "afgh"], ["ba", "bcde", "bc", "b", "bfg"]
    pairs = [list(pair) for pair in zip(good, bad, strict=True)]
    return kgpt.data.multiple_choice([""] * 5, pairs, None, TOKENIZER, 16, batch_size=5)


@pytest.mark.slow
def test_a_head_of_ones_own_trains_saves_and_loads(tmp_path):
    model = RewardModel(make_backbone(hidden_dim=24), tokenizer=TOKENIZER)
    model.compile(keras.optimizers.Adam(1e-2))

    losses = model.fit(reward_data(), epochs=20, verbose=0).history["task_loss"]
    model.save(tmp_path / "reward.keras")
    loaded = keras.models.load_model(tmp_path / "reward.keras")

    assert losses[-1] < 0.5 * losses[0]
    rewards = model.predict(reward_data(), verbose=0)
    assert rewards.shape == (5, 2, 1)
    assert (rewards[:, 0] > rewards[:, 1]).all()
    np.testing.assert_array_equal(loaded.predict(reward_data(), verbose=0), rewards)
    loaded.fit(reward_data(), verbose=0)


def test_a_head_without_a_loss_says_what_is_missing():
    model = kgpt.Head(make_backbone(), head=keras.layers.Dense(1))
    model.compile("sgd")

    with pytest.raises(Exception, match=r"must define task_loss"):
        model.fit(reward_data(), verbose=0)


# === saving ===

LOAD = """
import sys
import numpy as np
import kgpt, keras
data = np.load(sys.argv[2])
out = {}
for name in ("classifier", "chooser"):
    model = keras.models.load_model(f"{sys.argv[1]}/{name}.keras")
    x = {"token_ids": data[name], "padding_mask": data[name + "_mask"]}
    out[name] = model.predict(x, verbose=0)
    if name == "classifier":
        out["names"] = model.predict_text(["abc", "b", "xyz a", ""])
    loss = model.fit(x, data[name + "_y"], batch_size=4, shuffle=False, verbose=0).history["loss"]
    out[name + "_loss"] = loss
np.savez(sys.argv[3], **out)
"""


@pytest.mark.slow
def test_a_fresh_process_loads_the_files_and_trains_on(tmp_path):
    arrays, expected = {}, {}
    names = {"class_names": ["no", "perhaps", "yes"], "tokenizer": TOKENIZER}
    for name in ("classifier", "chooser"):
        x, y = make_data(name)
        arrays |= {name: x["token_ids"], f"{name}_mask": x["padding_mask"], f"{name}_y": y}
        model = MAKERS[name](make_backbone(), **(names if name == "classifier" else {}))
        randomize(model)
        model.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")  # there too
        model.fit(x, y, batch_size=4, verbose=0)
        model.save(tmp_path / f"{name}.keras")
        expected[name] = model.predict(x, verbose=0)
        if name == "classifier":
            expected["names"] = model.predict_text(["abc", "b", "xyz a", ""])
        history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
        expected[f"{name}_loss"] = history["loss"]
    np.savez(tmp_path / "data.npz", **arrays)

    files = [str(tmp_path / file) for file in (".", "data.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", LOAD, *files], check=True)

    out = np.load(files[2])
    assert set(out) == set(expected)
    for key, value in expected.items():
        if key == "names":
            assert out[key].tolist() == value
            assert set(value) <= {"no", "perhaps", "yes"}
        else:
            np.testing.assert_allclose(out[key], value, atol=1e-6, err_msg=key)


def test_config_round_trips(model, name):
    config = model.get_config()

    twin = type(model).from_config(config)

    assert twin.get_config() == config
    assert [w.shape for w in twin.weights] == [w.shape for w in model.weights]


# === bad input ===


def test_targets_are_checked_before_training_in_validation_data_too(data):
    x, y = make_data("classifier")
    model = classifier(make_backbone())
    model.compile("sgd")
    before = model.get_weights()

    with pytest.raises(ValueError, match=r"ints in \[0, 3\).*Received: .*3"):
        model.fit(x, y, validation_data=(x, y + 1), verbose=0)

    assert max(changes(model, before)) == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 2, 5), int), r"shape \(batch, 1, length\).*Received: shape \(2, 2, 5\)"),
        (np.zeros((2, 1, 5, 1), int), r"Received: shape \(2, 1, 5, 1\)"),
        ({"ids": np.zeros((2, 5), int)}, r"Received: a dict with \['ids'\]"),
        (
            {"token_ids": np.zeros((2, 5), int), "segment_ids": np.zeros((2, 5), int)},
            "Received: a dict with",
        ),
    ],
)
def test_inputs_of_another_form_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        classifier(make_backbone())(inputs)


def test_ids_and_lengths_that_the_backbone_lacks_are_refused_before_anything_runs():
    model = binary()
    model.compile("sgd")
    small = kgpt.GPTBackbone(VOCABULARY - 2, 1, 2, 4)
    text = kgpt.data.classification(["a" * 40], [0], TOKENIZER, sequence_length=32)
    other = kgpt.TextClassifier(small, 2)
    other.compile("sgd")

    for call in ("fit", "evaluate", "predict"):
        with pytest.raises(ValueError, match="Received: length=32, max_sequence_length=16"):
            getattr(model, call)(text)
        with pytest.raises(ValueError, match="with_vocabulary_size"):
            getattr(other, call)(text)


def test_a_negative_weight_of_the_language_model_is_refused():
    with pytest.raises(ValueError, match="Received: lm_loss_weight=-1"):
        classifier(make_backbone(), lm_loss_weight=-1)


def test_a_tokenizer_larger_than_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r"backbone\.with_vocabulary_size"):
        binary(kgpt.GPTBackbone(VOCABULARY - 1, 1, 2, 4))


def test_predicting_from_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match="Received: a TextClassifier without one"):
        binary(tokenizer=None).predict_text(["a"])
