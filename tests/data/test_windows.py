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
from kgpt.data import windows

END = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def token_file(folder, tokens):
    # renamed over an older file, not written into it: an abandoned iterator may still read that
    np.save(folder / "new.npy", np.asarray(tokens, "uint16"))
    return (folder / "new.npy").replace(folder / "tokens.npy")


def passes(data, number):
    """The batches of several passes in a row."""
    return [batch for _ in range(number) for batch in data]


def starts(batches):
    """The first token of each window; in a file of 0, 1, 2 ... that is the window's place."""
    return [int(row[0]) for x, *_ in batches for row in x["token_ids"]]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for a, b in zip(batches, others, strict=True):
        keras.tree.map_structure(np.testing.assert_array_equal, a, b)


@pytest.mark.any_backend
@given(
    num_tokens=st.integers(2, 200),
    length=st.integers(1, 7),
    batch_size=st.integers(1, 5),
    seed=st.none() | st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_each_token_but_the_first_is_a_target_once_in_each_pass(
    folder, num_tokens, length, batch_size, seed
):
    num_tokens = max(num_tokens, length + 1)
    path = token_file(folder, np.arange(num_tokens))

    data = windows(path, length, batch_size, seed, drop_remainder=False)
    covered = (num_tokens - 1) // length * length

    for _ in range(3):
        batches = list(data)
        targets = np.concatenate([y for _, y in batches])  # (windows, length)
        inputs = np.concatenate([x["token_ids"] for x, _ in batches])
        assert len(batches) == len(data)
        assert sorted(targets.ravel()) == list(range(1, covered + 1))
        np.testing.assert_array_equal(inputs + 1, targets)
        assert targets.dtype == inputs.dtype == np.int32


def test_without_a_seed_windows_come_in_the_order_of_the_file(folder):
    data = windows(token_file(folder, np.arange(36)), sequence_length=5, batch_size=3)

    assert starts(passes(data, 2)) == [0, 5, 10, 15, 20, 25, 30] * 2
    assert [len(y) for _, y in data] == [3, 3, 1]


def test_with_a_seed_each_pass_has_another_order_and_each_run_the_same(folder):
    path = token_file(folder, np.arange(401))

    def orders(seed):
        data = windows(path, 4, 10, seed)
        return [tuple(starts(data)) for _ in range(3)]

    assert len({*orders(0), *orders(1), *orders(2)}) == 9
    assert orders(0) == orders(0)
    assert all(order != tuple(sorted(order)) for order in orders(0))


def test_with_a_seed_an_incomplete_batch_is_left_out_and_varies(folder):
    data = windows(token_file(folder, np.arange(41)), sequence_length=4, batch_size=3, seed=0)

    left_out = {frozenset(range(0, 40, 4)) - set(starts(data)) for _ in range(8)}

    assert len(data) == 3
    assert all(len(some) == 1 for some in left_out)
    assert len(left_out) > 1


def test_random_offset_moves_the_cuts_from_pass_to_pass(folder):
    data = windows(token_file(folder, np.arange(100)), 8, 2, seed=0, random_offset=True)

    offsets = [{start % 8 for start in starts(data)} for _ in range(10)]

    assert all(len(offset) == 1 for offset in offsets)
    assert len(set.union(*offsets)) > 3


@pytest.mark.any_backend
@given(tokens=st.lists(st.integers(0, END), min_size=20, max_size=60), length=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_segments_end_with_the_end_of_text_token(folder, tokens, length):
    path = token_file(folder, tokens)

    data = windows(path, length, batch_size=2, segment_ids=True, end_of_text_id=END)

    for x, y, weights in data:
        for window in range(len(y)):
            number = 0
            for place, token in enumerate(x["token_ids"][window]):
                assert x["segment_ids"][window, place] == number
                assert weights[window, place] == (token != END)
                number += token == END
        assert x["segment_ids"].dtype == np.int32
        assert x["segment_ids"].shape == x["token_ids"].shape == y.shape == weights.shape


@pytest.mark.any_backend
@given(step=st.integers(0, 14), random_offset=st.booleans())
@settings(max_examples=20, deadline=None)
def test_resuming_at_any_step_equals_the_uninterrupted_stream(folder, step, random_offset):
    path = token_file(folder, np.arange(60))
    new = lambda: windows(path, 4, 3, seed=5, random_offset=random_offset)  # noqa: E731
    stream = passes(new(), 6)

    state = json.loads(json.dumps({**new().get_state(), "next_batch": step}))
    resumed = new()
    resumed.set_state(state)

    assert resumed.get_state() == state
    assert_same(passes(resumed, 2), stream[step : step + 2 * len(resumed)])
    assert resumed.get_state()["next_batch"] == step + 2 * len(resumed)


def test_a_pass_that_is_broken_off_starts_again(folder):
    data = windows(token_file(folder, np.arange(60)), 4, 3, seed=5)

    first = next(iter(data))
    again = next(iter(data))

    assert_same([first], [again])
    assert data.get_state()["next_batch"] == 0


def test_a_state_of_other_windows_is_refused(folder):
    path = token_file(folder, np.arange(60))
    state = windows(path, 4, 3, seed=5).get_state()

    with pytest.raises(ValueError, match="same data"):
        windows(path, 4, 2, seed=5).set_state(state)
    with pytest.raises(ValueError, match="same data"):
        windows(path, 4, 3, seed=5).set_state({"epoch": 1})


@pytest.mark.parametrize("seed", [None, 3])
def test_shards_share_the_windows_and_have_as_many_batches(folder, seed):
    path = token_file(folder, np.arange(48))  # 11 windows of 4

    shards = [windows(path, 4, 2, seed, shard_index=i, shard_count=3) for i in range(3)]
    seen = [starts(shard) for shard in shards]

    assert {len(shard) for shard in shards} == {2 if seed is None else 1}
    assert len(set().union(*seen)) == sum(map(len, seen))


@pytest.mark.parametrize("shard_count", [1, 2, 4])
def test_any_number_of_processes_goes_on_where_others_stopped(folder, shard_count):
    path = token_file(folder, np.arange(66))  # 16 windows of 4
    alone = windows(path, 4, 4, seed=3)
    expected = [set(starts([batch])) for batch in alone][2:]
    state = windows(path, 4, 2, seed=3, shard_index=1, shard_count=2).get_state()

    shards = []
    for index in range(shard_count):
        batch_size = 4 // shard_count
        data = windows(path, 4, batch_size, 3, shard_index=index, shard_count=shard_count)
        data.resume(state, batches_read=2)
        shards.append(list(data))

    found = [
        set().union(*(starts([batch]) for batch in parts)) for parts in zip(*shards, strict=True)
    ]
    assert found == expected


def test_a_state_of_an_earlier_version_has_the_batches_of_one_process(folder):
    path = token_file(folder, np.arange(66))
    old = {"next_batch": 3, "batch_size": 2, "seed": 3, "shard_index": 1, "shard_count": 2}

    data = windows(path, 4, 2, seed=3, shard_index=0, shard_count=2)
    data.set_state(old)

    assert data.get_state()["next_batch"] == 3
    with pytest.raises(ValueError, match="same data"):
        windows(path, 4, 2, seed=3).set_state(old)


@pytest.fixture
def large(monkeypatch):
    """Makes files of more than 100 tokens large ones, whose ids are not checked beforehand."""
    monkeypatch.setattr(sys.modules[windows.__module__], "_READ_WHOLE", 100)


def tiny_lm(vocabulary_size):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(vocabulary_size, 1, 1, 4, 4, 0.0, 8))
    lm.compile("sgd", run_eagerly=keras.backend.backend() == "tensorflow")
    return lm


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("place", [0, 100])
@pytest.mark.parametrize("use", ["fit", "evaluate", "predict", "validation"])
def test_ids_of_a_large_file_are_checked_batch_by_batch(folder, use, place):
    tokens = np.arange(129) % 20
    tokens[place] = 77
    lm = tiny_lm(20)
    data, ones = windows(token_file(folder, tokens), 8, 4), np.ones((2, 8), "int32")
    call = {
        "fit": lambda: lm.fit(data, verbose=0),
        "evaluate": lambda: lm.evaluate(data, verbose=0),
        "predict": lambda: lm.predict(data, verbose=0),
        "validation": lambda: lm.fit(ones, validation_data=data, verbose=0),
    }[use]

    with pytest.raises(ValueError, match=f"id 77 at position {place} of .*vocabulary_size=20"):
        call()

    assert np.isfinite(lm.evaluate(ones, verbose=0)[0])  # it has its weights


@pytest.mark.usefixtures("large")
def test_batches_before_a_wrong_id_are_read_and_a_larger_vocabulary_reads_all(folder):
    tokens = np.arange(129) % 20
    tokens[100] = 77
    data = windows(token_file(folder, tokens), 8, 4, vocabulary_size=20)

    reading = iter(data)
    assert len([next(reading) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match="id 77 at position 100"):
        next(reading)

    data.check_vocabulary(78)
    assert len(list(data)) == 4


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int64"])
def test_ids_that_int32_has_no_room_for_and_negative_ones_are_refused(folder, dtype):
    tokens = np.arange(100).astype(dtype)
    tokens[50] = np.iinfo(dtype).max if dtype == "uint32" else -1
    np.save(folder / f"{dtype}.npy", tokens)  # one each: an abandoned iterator may still read
    data = windows(folder / f"{dtype}.npy", 8, 4)

    with pytest.raises(ValueError, match=f"id {tokens[50]} at position 50"):
        list(data)


def test_a_file_of_a_hundred_gigabytes_is_not_read_before_training(folder, monkeypatch):
    path = folder / "sparse.npy"
    with open(path, "wb") as file:
        header = {"descr": "<u2", "fortran_order": False, "shape": (5 * 10**10,)}
        np.lib.format.write_array_header_1_0(file, header)
        try:
            file.truncate(file.tell() + 10**11)  # takes no space, and is all zeros
        except OSError:
            pytest.skip("the disk has no sparse files of this size")
    monkeypatch.setattr("kgpt.data.token_file.TokenFile.check_ids", None)

    data = windows(path, 1024, 8, seed=0, random_offset=True)
    data.check_vocabulary(20)
    x, _ = next(iter(data))

    assert len(data) == (5 * 10**10 - 1024) // 1024 // 8
    assert x["token_ids"].shape == (8, 1024)


def test_windows_survive_pickling_without_carrying_the_file(folder):
    data = windows(token_file(folder, np.arange(50_000)), 4, 3, seed=5)
    data.set_state({"next_batch": 7})

    pickled = pickle.dumps(data)
    copy = pickle.loads(pickled)

    assert len(pickled) < 2000
    assert repr(copy) == repr(data)
    assert_same(list(itertools.islice(copy, 3)), list(itertools.islice(data, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 0}, "sequence_length must be an int"),
        ({"sequence_length": 2.5}, "sequence_length must be an int"),
        ({"batch_size": 0}, "batch_size must be an int"),
        ({"batch_size": 100, "seed": 0}, "shorter than one batch.*15 windows"),
        ({"sequence_length": 64}, "shorter than one batch"),
        ({"seed": -1}, "seed must be"),
        ({"random_offset": True}, "random_offset needs a seed"),
        ({"segment_ids": True}, "end_of_text_id=tokenizer.end_of_text_id"),
        ({"vocabulary_size": 60}, "id 60 at position 60"),
        ({"shard_index": 1}, "must be given together"),
        ({"shard_index": 2, "shard_count": 2}, "less than shard_count"),
    ],
)
def test_wrong_arguments_are_refused_before_training(folder, arguments, message):
    path = token_file(folder, np.arange(64))

    with pytest.raises(ValueError, match=message):
        windows(path, **{"sequence_length": 4, "batch_size": 2, **arguments})


def test_a_vocabulary_that_fits_is_accepted(folder):
    assert len(windows(token_file(folder, np.arange(65)), 4, 2, vocabulary_size=65)) == 8


def test_files_that_hold_no_tokens_are_refused(folder):
    np.save(folder / "square.npy", np.zeros((2, 9), int))
    np.save(folder / "floats.npy", np.zeros(9))
    np.savez(folder / "several.npz", a=np.zeros(9, int))
    (folder / "text.npy").write_text("no array")

    with pytest.raises(FileNotFoundError, match="write_tokens"):
        windows(folder / "missing.npy", 4, 2)
    for name in ("square.npy", "floats.npy", "several.npz", "text.npy"):
        with pytest.raises(ValueError, match=name):
            windows(folder / name, 4, 2)


class CountTokens(keras.Model):
    """A model whose weights count how often `fit` trained on each token."""

    def __init__(self, vocabulary_size):
        super().__init__()
        self.embedding = keras.layers.Embedding(vocabulary_size, 1, "zeros")
        self.compile(keras.optimizers.SGD(1.0), loss=lambda y, logits: -keras.ops.sum(logits))

    def call(self, x):
        return self.embedding(x["token_ids"])

    def counts(self):
        return keras.ops.convert_to_numpy(self.embedding.embeddings)[:, 0].round().astype(int)


class StopAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        self.model.stop_training = self.batches == 0


def test_fit_trains_on_every_window_once_in_each_epoch(folder):
    data = windows(token_file(folder, np.arange(61)), sequence_length=4, batch_size=3, seed=0)
    model = CountTokens(61)

    history = model.fit(data, epochs=2, verbose=0)

    assert history.params["steps"] == len(data) == 5
    assert model.counts().tolist() == [2] * 60 + [0]
    assert data.get_state()["next_batch"] == 10


def test_steps_per_epoch_goes_on_where_the_last_epoch_stopped(folder):
    data = windows(token_file(folder, np.arange(61)), sequence_length=4, batch_size=3, seed=0)
    model = CountTokens(61)

    model.fit(data, epochs=2, steps_per_epoch=2, verbose=0)

    assert sorted(model.counts()) == [0] * 13 + [1] * 48


def test_endless_windows_run_through_pass_after_pass(folder):
    path = token_file(folder, np.arange(61))
    once, endless = windows(path, 4, 3, 0), windows(path, 4, 3, 0, repeat=True)
    model = CountTokens(61)

    model.fit(endless, epochs=5, steps_per_epoch=3, verbose=0)

    assert model.counts().tolist() == [3] * 60 + [0]
    assert_same(list(itertools.islice(endless, 10)), passes(once, 2))


@pytest.mark.filterwarnings("error:Your input ran out of data")
@pytest.mark.parametrize("step", [1, 3, 4, 5, 6])
def test_a_killed_fit_resumes_at_exactly_the_next_batch(folder, step):
    path = token_file(folder, np.arange(61))
    model = CountTokens(61)

    model.fit(windows(path, 4, 3, 0), epochs=2, callbacks=[StopAfter(step)], verbose=0)
    resumed = windows(path, 4, 3, 0)
    resumed.set_state({**resumed.get_state(), "next_batch": step})
    model.fit(resumed, epochs=2, callbacks=[StopAfter(10 - step)], verbose=0)

    assert model.counts().tolist() == [2] * 60 + [0]


def test_a_look_at_the_only_batch_of_a_pass_does_not_move_the_position(folder):
    data = windows(token_file(folder, np.arange(61)), sequence_length=4, batch_size=14, seed=0)
    expected = starts(passes(data, 2)[1:])
    data.set_state({"next_batch": 1})
    model = CountTokens(61)

    model.fit(data, verbose=0)

    assert np.flatnonzero(model.counts())[::4].tolist() == sorted(expected)
    assert data.get_state()["next_batch"] == 2


def test_state_set_when_training_begins_is_where_fit_starts(folder):
    data = windows(token_file(folder, np.arange(61)), sequence_length=4, batch_size=3, seed=0)
    expected = starts(passes(data, 2)[5:7])
    data.set_state({"next_batch": 0})
    model = CountTokens(61)

    resume = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: data.set_state({"next_batch": 5})
    )
    model.fit(data, steps_per_epoch=2, callbacks=[resume], verbose=0)

    assert np.flatnonzero(model.counts())[::4].tolist() == sorted(expected)


def test_evaluate_predict_and_validation_see_every_window(folder):
    data = windows(token_file(folder, np.arange(36)), sequence_length=5, batch_size=3)
    model = CountTokens(36)

    history = model.fit(data, validation_data=data, epochs=2, verbose=0)

    assert model.counts().tolist() == [2] * 35 + [0]
    assert len(history.history["val_loss"]) == 2
    assert model.predict(data, verbose=0).shape == (7, 5, 1)
    assert np.isfinite(model.evaluate(data, verbose=0))


# === Segments in training ===


@pytest.fixture
def packed(folder):
    """One batch of windows with several documents each."""
    tokens = [1, 2, END, 1, 1, END, 2, 2, 1, END, 1, 2, 1, 4, 4, END, 5, 1, 2, 0, 5, 5, END, 1, 1]
    return windows(token_file(folder, tokens), 8, 3, seed=0, segment_ids=True, end_of_text_id=END)


def unpack(x, y, weights):
    """A batch with each document of a window in a row of its own, padded."""
    rows = []
    for window, segment_ids in enumerate(x["segment_ids"]):
        for number in np.unique(segment_ids):
            places = np.flatnonzero(segment_ids == number)
            columns = (x["token_ids"], np.ones_like(y), y, weights)
            padding = (0, len(segment_ids) - len(places))
            rows.append([np.pad(column[window, places], padding) for column in columns])
    token_ids, padding_mask, y, weights = map(np.stack, zip(*rows, strict=True))
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, weights


def small_lm(**options):
    """A language model without dropout, whose weights let each token in sight change the loss."""
    lm = kgpt.CausalLM(kgpt.GPTBackbone(6, 2, 2, 12, dropout=0.0, **options))
    generator = np.random.default_rng(0)
    for weight in lm.weights:
        weight.assign(0.7 * generator.normal(size=weight.shape))
    lm.compile(keras.optimizers.SGD(0.1))
    return lm


def mean_loss(lm, x, y, weights):
    """The mean cross-entropy of the targets that count, from logits, in float64."""
    logits = keras.ops.convert_to_numpy(lm(x)).astype("float64")
    log_sums = np.log(np.exp(logits).sum(axis=-1))
    losses = log_sums - np.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return (losses * weights).sum() / weights.sum()


def test_the_loss_of_fit_is_that_of_each_document_by_itself(packed):
    [(x, y, weights)] = packed
    lm = small_lm()
    expected = mean_loss(lm, *unpack(x, y, weights))
    without_segments = mean_loss(lm, {"token_ids": x["token_ids"]}, y, weights)

    history = lm.fit(packed, verbose=0)

    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)
    assert abs(without_segments - expected) > 0.05


@pytest.mark.parametrize("rotary_positions", [False, True])
def test_fit_learns_what_it_learns_from_each_document_by_itself(packed, rotary_positions):
    together, alone = (small_lm(rotary_positions=rotary_positions) for _ in range(2))
    x, y, weights = unpack(*next(iter(packed)))

    together.fit(packed, verbose=0)
    alone.fit(x, y, sample_weight=weights, batch_size=len(y), verbose=0)

    for weight, expected in zip(together.weights, alone.weights, strict=True):
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (weight, expected)), rtol=1e-4, atol=1e-5
        )
