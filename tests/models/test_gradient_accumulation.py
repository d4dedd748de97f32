"""Gradient accumulation: an update is that of one large batch, whatever the sizes of its parts."""

import json

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from sources import SOURCES

import kgpt

VOCABULARY, ROWS, LENGTH = TOKENIZER.vocabulary_size, 8, 12
QUICK = {"run_eagerly": keras.backend.backend() == "tensorflow"}  # compiling takes longest there
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH)).astype("int32")
LENGTHS = np.array([12, 11, 12, 10, 2, 3, 2, 4])  # the second half has few tokens
X = {"token_ids": IDS, "padding_mask": np.arange(LENGTH) < LENGTHS[:, None]}


def make_lm(accumulation=None, optimizer=keras.optimizers.SGD, rate=1.0):
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(VOCABULARY, 1, 1, 4, 4, 0.0, 64))
    generator = np.random.default_rng(0)
    for weight in lm.weights:
        weight.assign(0.5 * generator.normal(size=weight.shape))
    lm.compile(optimizer(rate, gradient_accumulation_steps=accumulation), **QUICK)
    return lm


def assert_same_weights(models, atol=1e-5):
    first, second = (model.get_weights() for model in models)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_arrays_of_unequal_padding_take_the_step_of_one_batch():
    whole, parts = make_lm(), make_lm(2)

    whole.fit(X, batch_size=8, verbose=0)
    parts.fit(X, batch_size=4, shuffle=False, verbose=0)

    assert_same_weights([whole, parts])


def test_weights_of_rows_count_in_the_update():
    whole, parts = make_lm(), make_lm(4)
    weights = np.linspace(0, 3, ROWS).astype("float32")

    whole.fit(X, sample_weight=weights, batch_size=8, verbose=0)
    parts.fit(X, sample_weight=weights, batch_size=2, verbose=0)

    assert_same_weights([whole, parts])


def test_every_fit_with_shuffled_arrays_makes_the_updates_of_its_epochs():
    whole, parts = make_lm(rate=0.1), make_lm(2, rate=0.1)

    whole.fit(X, batch_size=8, epochs=3, verbose=0)
    parts.fit(X, batch_size=4, epochs=3, verbose=0)

    assert_same_weights([whole, parts])


def write_documents(path):
    """Documents of very different lengths, so that windows have different numbers of targets."""
    end = TOKENIZER.end_of_text_id
    lengths = [1, 1, 1, 1, 1, 1, 30, 1, 2, 1, 1, 1, 40, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    tokens = [[*range(5, 5 + length), end] for length in lengths]
    np.save(path, np.concatenate(tokens).astype("uint16"))


def windows(path, batch_size, seed=0):
    ids = {"segment_ids": True, "end_of_text_id": TOKENIZER.end_of_text_id}
    return kgpt.data.windows(path, 8, batch_size, seed, **ids)


def updates_of(batches, size):
    """Groups of batches put together, over the borders of passes."""
    return [
        keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *batches[i : i + size])
        for i in range(0, len(batches), size)
    ]


def test_windows_take_the_steps_of_large_batches_over_the_borders_of_epochs(tmp_path):
    write_documents(tmp_path / "tokens.npy")
    data = windows(tmp_path / "tokens.npy", 4)
    per_epoch = len(data)
    batches = [batch for _ in range(2) for batch in data]
    assert per_epoch % 2  # an update has batches of both epochs
    whole, parts = make_lm(), make_lm(2)

    for batch in updates_of(batches, 2):
        whole.train_on_batch(*batch)
    parts.fit(windows(tmp_path / "tokens.npy", 4), epochs=2, verbose=0)

    assert_same_weights([whole, parts])


def test_a_second_fit_goes_on_in_the_middle_of_an_update(tmp_path):
    write_documents(tmp_path / "tokens.npy")
    at_once, in_two = make_lm(2), make_lm(2)

    at_once.fit(windows(tmp_path / "tokens.npy", 4), epochs=2, verbose=0)
    data = windows(tmp_path / "tokens.npy", 4)
    for _ in range(2):
        in_two.fit(data, verbose=0)

    assert_same_weights([at_once, in_two], atol=1e-7)
    assert json.dumps(data.get_state())  # the position is as ever
    assert data.get_state()["next_batch"] == 2 * len(data)


def test_a_head_averages_over_the_examples_of_an_update():
    texts = ["a", "bc", "def", "ghijklmnop", "q", "rstuvw", "x"]
    labels = [0, 1, 0, 1, 1, 0, 1]

    def fit(batch_size, accumulation):
        head = kgpt.TextClassifier(make_lm().backbone, 2, dropout=0.0)
        keras.utils.set_random_seed(1)
        head.output_projection.kernel.assign(np.random.default_rng(1).normal(size=(4, 2)))
        head.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=accumulation), **QUICK)
        data = kgpt.data.classification(texts, labels, TOKENIZER, 16, batch_size, seed=None)
        head.fit(data, verbose=0)
        return head

    assert_same_weights([fit(7, None), fit(5, 2)])


def test_other_optimizers_of_keras_and_the_recipes_update_alike():
    def recipe(rate, gradient_accumulation_steps):
        return kgpt.recipes.pretraining_optimizer(
            10, 1e-3, 0, gradient_accumulation_steps=gradient_accumulation_steps
        )

    def adam(rate, gradient_accumulation_steps):
        steps = gradient_accumulation_steps
        return keras.optimizers.Adam(0.01, epsilon=0.1, gradient_accumulation_steps=steps)

    for optimizer in (recipe, adam):
        whole, parts = make_lm(None, optimizer), make_lm(2, optimizer)

        whole.fit(X, batch_size=8, verbose=0)
        parts.fit(X, batch_size=4, verbose=0)

        assert_same_weights([whole, parts], atol=1e-4)


@pytest.mark.parametrize(
    ("recipe", "options", "atol"),
    [
        (kgpt.recipes.pretraining_optimizer, {"warmup_steps": 1}, 1e-5),
        (kgpt.recipes.finetuning_optimizer, {"warmup": 0.4}, 1e-5),
        (kgpt.recipes.fast_optimizer, {"warmup_steps": 1}, 2e-3),  # bfloat16
    ],
)
def test_an_accumulated_update_has_the_rate_of_one_of_a_large_batch(recipe, options, atol):
    def fit(batch_size, batches):
        optimizer = recipe(3, 1e-2, gradient_accumulation_steps=batches, **options)
        optimizer.epsilon = 1e-3  # or gradients that are 0 but for rounding count in full
        lm = make_lm(batches, lambda *_, **__: optimizer)
        lm.fit(X, batch_size=batch_size, epochs=3, verbose=0)
        return lm

    assert_same_weights([fit(8, None), fit(2, 4)], atol=atol)


def test_the_figures_are_means_over_all_tokens_as_ever():
    whole, parts = make_lm(), make_lm(2)
    whole.compile(keras.optimizers.SGD(0.0), **QUICK)
    parts.compile(keras.optimizers.SGD(0.0, gradient_accumulation_steps=2), **QUICK)

    first, second = (
        model.fit(X, batch_size=size, verbose=0).history for model, size in ((whole, 8), (parts, 4))
    )

    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-5)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_source_whose_tokens_are_not_known_before_the_update_is_warned_of(source):
    with pytest.warns(UserWarning, match="each of these batches counts alike in an update"):
        make_lm(2).fit(source(IDS, IDS), verbose=0)


def test_arrays_whose_batches_do_not_divide_into_updates_are_warned_of():
    with pytest.warns(UserWarning, match="The last 1 of 3 batches of an epoch"):
        make_lm(2).fit(IDS, batch_size=3, verbose=0)
