"""Corpora in proportions."""

import itertools
import json
import pickle
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kgpt
from kgpt.data import mixture, windows

END = 3


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three files: tokens from 0, from 1,000 and from 2,000 on."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = []
    for number, length in enumerate((801, 201, 401)):
        paths.append(folder / f"{number}.npy")
        np.save(paths[-1], (np.arange(length) + 1000 * number).astype("uint16"))
    return paths


def corpora(paths, number=2, **options):
    """Of 200, 50 and 100 windows."""
    given = {"sequence_length": 4, "batch_size": 10, "seed": 0, **options}
    return [windows(path, **given) for path in paths[:number]]


def starts(batches):
    return [int(row[0]) for x, *_ in batches for row in x["token_ids"]]


def shares(batch, number=2):
    """How many rows of a batch come from each corpus."""
    return np.bincount(np.array(starts([batch])) // 1000, minlength=number).tolist()


def assert_same(batches, others):
    for a, b in zip(batches, others, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, a, b)


def test_each_batch_mixes_in_the_stated_proportion(paths):
    data = mixture(corpora(paths, 3), [0.7, 0.1, 0.2], repeat=True)

    found = [shares(batch, 3) for batch in itertools.islice(data, 40)]

    assert np.abs(np.array(found) - [7, 1, 2]).max() <= 1
    assert np.abs(np.sum(found, axis=0) - [280, 40, 80]).max() <= 2


@given(weights=st.lists(st.integers(1, 9), min_size=3, max_size=3), step=st.integers(0, 5))
@settings(max_examples=5, deadline=None)
def test_the_rows_up_to_any_batch_are_off_by_two_at_most(paths, weights, step):
    data = mixture(corpora(paths, 3, batch_size=3), weights, repeat=True)
    share = np.array(weights) / sum(weights)

    found = np.sum([shares(batch, 3) for batch in itertools.islice(data, step + 1)], axis=0)

    assert np.abs(found - 3 * (step + 1) * share).max() <= 2 + 0.01 * 3 * (step + 1)


def test_a_pass_ends_before_the_first_corpus_begins_anew(paths):
    data = mixture(corpora(paths), [0.5, 0.5])

    found = starts(data)

    assert len(data) == 10
    assert len(set(found)) == len(found) == 100
    assert sum(start >= 1000 for start in found) == 50
    assert data.get_state()["next_batch"] == 10


def test_passes_go_on_in_each_corpus_until_it_ends(paths):
    data = mixture(corpora(paths), [0.5, 0.5])

    found = [start for _ in range(4) for start in starts(data)]

    large = [start for start in found if start < 1000]
    small = [start for start in found if start >= 1000]
    assert sorted(large) == list(range(0, 800, 4))
    passes = [tuple(small[n : n + 50]) for n in range(0, 200, 50)]
    assert all(sorted(one) == list(range(1000, 1200, 4)) for one in passes)
    assert len(set(passes)) == 4


def test_each_corpus_is_cut_and_shuffled_as_it_is_alone(paths):
    options = {"seed": 5, "random_offset": True}
    alone = corpora(paths, 1, **options)[0]
    expected = [start for _ in range(3) for start in starts(alone)]

    data = mixture(corpora(paths, **options), [0.5, 0.5], repeat=True)
    found = [one for one in starts(itertools.islice(data, 120)) if one < 1000]

    assert found[:190] == expected[:190]
    whole = alone.num_windows  # `alone` leaves out what fills no batch
    assert len({start % 4 for start in found[whole : 2 * whole]}) == 1


def test_a_corpus_of_weight_0_is_not_read(paths):
    data = mixture(corpora(paths, 3), [3, 0, 1])

    assert shares(next(iter(data)), 3)[1] == 0
    assert len(data) == 26  # 200 windows of 3/4


@pytest.mark.parametrize("shard_count", [1, 2, 5])
def test_processes_share_the_rows_and_any_number_goes_on(paths, shard_count):
    alone = list(mixture(corpora(paths), [0.7, 0.3]))[2:]
    two = corpora(paths, batch_size=5, shard_index=1, shard_count=2)
    state = mixture(two, [0.7, 0.3]).get_state()

    shards = []
    for index in range(shard_count):
        size = 10 // shard_count
        options = {"batch_size": size, "shard_index": index, "shard_count": shard_count}
        data = mixture(corpora(paths, **options), [0.7, 0.3])
        data.resume(state, batches_read=2)
        shards.append(list(data))

    together = zip(*shards, strict=True)
    joined = [keras.tree.map_structure(lambda *a: np.concatenate(a), *parts) for parts in together]
    assert_same(joined, alone)


@given(step=st.integers(0, 14))
@settings(max_examples=4, deadline=None)
def test_the_position_goes_on_from_any_batch(paths, step):
    new = lambda: mixture(corpora(paths, random_offset=True), [2, 1])  # noqa: E731
    data = new()
    stream = [batch for _ in range(3) for batch in data]

    resumed = pickle.loads(pickle.dumps(new()))
    resumed.set_state(json.loads(json.dumps({**resumed.get_state(), "next_batch": step})))

    assert_same(list(resumed), stream[step : step + len(resumed)])
    assert repr(resumed) == repr(data)


@pytest.mark.parametrize(
    "other",
    [
        lambda paths: mixture(corpora(paths), [1, 3]),
        lambda paths: mixture(corpora(paths, seed=1), [1, 2]),
        lambda paths: mixture(corpora(paths[::-1]), [1, 2]),
        lambda paths: mixture(corpora(paths), [1, 2], repeat=True),
        lambda paths: corpora(paths)[0],
    ],
)
def test_the_state_of_another_mixture_is_refused(paths, other):
    state = mixture(corpora(paths), [1, 2]).get_state()

    with pytest.raises(ValueError, match="same data"):
        other(paths).set_state(state)


def test_documents_are_told_apart_by_the_token_of_each_corpus(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 6, (2, 33))
    ends = (END, 4)
    parts = []
    for number, end in enumerate(ends):
        np.save(tmp_path / f"{number}.npy", tokens[number].astype("uint16"))
        options = {"segment_ids": True, "end_of_text_id": end}
        parts.append(windows(tmp_path / f"{number}.npy", 8, 2, seed=0, **options))

    found = list(mixture(parts, [1, 1]))

    assert len(found) == 4
    for x, y, weights in found:
        assert x["segment_ids"].shape == y.shape == weights.shape == (2, 8)
        for row, end in enumerate(ends):
            np.testing.assert_array_equal(weights[row], x["token_ids"][row] != end)


# === In training ===


def lm_of(vocabulary_size):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(vocabulary_size, 1, 1, 4, 4, 0.0, 4))
    lm.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
    return lm


def test_a_fit_that_is_cut_goes_on_to_the_bit(paths, tmp_path):
    def fit(folder, *callbacks):
        keras.utils.set_random_seed(0)
        lm = lm_of(2500)
        checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path / folder, save_freq=2)
        train = mixture(corpora(paths), [1, 1])
        valid = mixture(corpora(paths, seed=None), [1, 1])
        history = lm.fit(
            train,
            validation_data=valid,
            epochs=2,
            callbacks=[checkpoint, *callbacks],
            verbose=0,
        )
        return lm, history.history

    class Crash(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 15:
                raise KeyError("killed")

    whole, history = fit("whole")
    with pytest.raises(KeyError):
        fit("cut", Crash())
    resumed, resumed_history = fit("cut")

    assert resumed_history["val_loss"] == history["val_loss"][-len(resumed_history["val_loss"]) :]
    for one, other in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))


def test_another_weight_makes_another_run(paths, tmp_path):
    def fit(weights):
        lm = lm_of(2500)
        checkpoint = kgpt.callbacks.ResumableCheckpoint(tmp_path)
        lm.fit(mixture(corpora(paths), weights), callbacks=[checkpoint], verbose=0)

    fit([1, 1])
    with pytest.raises(ValueError, match=r"data.weights: \[1.0, 1.0\] in the checkpoint"):
        fit([1, 2])


def test_ids_outside_the_vocabulary_are_refused(paths, monkeypatch):
    data = mixture(corpora(paths), [1, 1])
    with pytest.raises(ValueError, match=r"id 1100 at position 100 of .*1\.npy"):
        data.check_vocabulary(1100)

    monkeypatch.setattr(sys.modules[windows.__module__], "_READ_WHOLE", 100)
    with pytest.raises(ValueError, match=r"id 1\d\d\d at position .*vocabulary_size=1100"):
        lm_of(1100).fit(data, verbose=0)


# === Refused ===


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, -0.1], r"numbers in \[0, inf\)"),
        ([0.5, float("nan")], r"numbers in \[0, inf\)"),
        ([0.5, float("inf")], r"numbers in \[0, inf\)"),
        ([0.5, "0.5"], r"numbers in \[0, inf\)"),
        ([0.5, True], r"numbers in \[0, inf\)"),
        (0.5, r"numbers in \[0, inf\)"),
        ([0, 0], "one of them above 0"),
        ([1, 2, 3], "for 2 datasets"),
    ],
)
def test_weights_that_mean_nothing_are_refused(paths, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(corpora(paths), weights)


def test_a_mixture_that_is_shorter_than_a_batch_is_refused(paths):
    data = corpora(paths, batch_size=60, seed=None)

    with pytest.raises(ValueError, match="before the first of its corpora ends"):
        mixture(data, [1, 1000])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 5}, "same sequence_length. Received: sequence_length=4 and "),
        ({"batch_size": 9}, "same batch_size"),
        ({"segment_ids": True, "end_of_text_id": END}, "same segment_ids"),
        ({"shard_index": 0, "shard_count": 2}, "same shard_count"),
        ({"repeat": True}, "repeat=True to kgpt.data.mixture"),
    ],
)
def test_corpora_that_are_cut_differently_are_refused(paths, options, message):
    (first,), (other,) = corpora(paths, 1), corpora(paths[1:], 1, **options)

    with pytest.raises(ValueError, match=message):
        mixture([first, other], [1, 1])


@pytest.mark.parametrize("wrong", [5, None, [], "ab", [5], [np.zeros((2, 4))]])
def test_other_data_are_refused(wrong):
    with pytest.raises(ValueError, match=r"list of kgpt\.data\.windows"):
        mixture(wrong, [1.0])


def test_a_mixture_of_mixtures_is_refused(paths):
    one = mixture(corpora(paths), [1, 1])

    with pytest.raises(ValueError, match="Mix the corpora themselves"):
        mixture([one, one], [1, 1])
