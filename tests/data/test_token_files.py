"""A corpus in many token files: one corpus, and of its files a few open."""

import errno
import gc
import itertools
import json
import os
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kgpt
from kgpt.data import windows
from kgpt.data.token_files import TokenFiles

END = 3
LENGTHS = (30, 3, 45, 61)  # the second is shorter than a window


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of which the n-th has the tokens 100 n, 100 n + 1 ..."""
    folder = tmp_path_factory.mktemp("corpus")
    return write(folder, [np.arange(length) + 100 * n for n, length in enumerate(LENGTHS)])


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for number, tokens in enumerate(files):
        np.save(folder / f"part-{number:03}.npy", np.asarray(tokens, "uint16"))
    return folder


def starts(batches):
    """The first token of each window: where it is, in which file."""
    return [int(row[0]) for x, *_ in batches for row in x["token_ids"]]


def in_order(length, offset=0):
    """The first token of each window, computed from the lengths of the files alone."""
    return [
        100 * number + place
        for number, size in enumerate(LENGTHS)
        for place in range(offset, size - length, length)
    ]


def test_windows_come_from_file_after_file_and_none_spans_two(folder):
    batches = list(windows(folder, sequence_length=4, batch_size=5))

    assert starts(batches) == in_order(4)
    for x, y in batches:
        np.testing.assert_array_equal(x["token_ids"] + 1, y)
        assert x["token_ids"].dtype == y.dtype == np.int32
        assert len(np.unique(np.hstack([x["token_ids"], y]) // 100, axis=1)) == len(y)


def test_a_folder_a_list_in_any_order_and_one_file_are_the_same_corpus(folder):
    paths = sorted(folder.iterdir())
    whole = starts(windows(folder, 4, 5, seed=0))

    assert starts(windows(list(map(str, paths[::-1])), 4, 5, seed=0)) == whole
    assert starts(windows(str(folder), 4, 5, seed=0)) == whole
    one = windows(paths[0], 4, 2, seed=0), windows([paths[0]], 4, 2, seed=0)
    assert starts(one[0]) == starts(one[1])
    assert one[0].get_state() == one[1].get_state()


@given(seed=st.integers(0, 9), length=st.integers(1, 6))
@settings(max_examples=6, deadline=None)
def test_a_pass_shuffles_over_all_files(folder, seed, length):
    data = windows(folder, length, 3, seed, drop_remainder=False)

    orders = [starts(data) for _ in range(3)]

    assert all(sorted(order) == in_order(length) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    first = orders[0][: len(orders[0]) // 2]
    assert len({start // 100 for start in first}) > 1


def test_random_offset_moves_the_cuts_in_every_file(folder):
    data = windows(folder, 8, 1, seed=0, random_offset=True)

    for _ in range(5):
        found = starts(data)
        offset = min(start % 100 for start in found)
        all_offsets = {start % 100 % 8 for start in found}
        assert all_offsets == {offset % 8}
        assert set(found) <= set(in_order(8, offset % 8))
        assert {start // 100 for start in found} == {0, 2, 3}


def test_segments_are_those_of_each_file_alone(folder, tmp_path):
    files = np.random.default_rng(0).integers(0, 5, (3, 21))
    options = {"segment_ids": True, "end_of_text_id": END}
    write(tmp_path, files)

    found = list(windows(tmp_path, 5, 4, **options))
    expected = [
        *itertools.chain(*(windows(path, 5, 4, **options) for path in sorted(tmp_path.iterdir())))
    ]

    for (x, y, weights), (other_x, other_y, other_weights) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x["token_ids"], other_x["token_ids"])
        np.testing.assert_array_equal(x["segment_ids"], other_x["segment_ids"])
        np.testing.assert_array_equal([y, weights], [other_y, other_weights])


@pytest.mark.parametrize("seed", [None, 3])
def test_processes_share_the_windows_of_all_files(folder, seed):
    alone = starts(windows(folder, 4, 6, seed, drop_remainder=True))

    shards = [windows(folder, 4, 2, seed, shard_index=i, shard_count=3) for i in range(3)]
    seen = [starts(itertools.islice(shard, 5)) for shard in shards]

    assert len(set().union(*seen)) == sum(map(len, seen)) == 30
    assert set().union(*seen) == set(alone[:30])


@given(step=st.integers(0, 12))
@settings(max_examples=4, deadline=None)
def test_the_position_goes_on_from_any_batch(folder, step):
    new = lambda: windows(folder, 4, 3, seed=5, random_offset=True)  # noqa: E731
    data = new()
    stream = [starts([batch]) for _ in range(3) for batch in data]

    resumed = new()
    resumed.set_state(json.loads(json.dumps({**resumed.get_state(), "next_batch": step})))

    assert [starts([batch]) for batch in resumed] == stream[step : step + len(resumed)]


def test_the_state_of_other_files_is_refused(folder, tmp_path):
    state = windows(folder, 4, 3, seed=5).get_state()
    write(tmp_path, [np.zeros(sum(LENGTHS))])

    assert state["num_tokens"] == sum(LENGTHS)
    with pytest.raises(ValueError, match="same data"):
        windows(sorted(folder.iterdir())[1:], 4, 3, seed=5).set_state(state)
    with pytest.raises(ValueError, match="same data"):
        windows(tmp_path, 4, 3, seed=5).set_state(state)


# === Open files ===


def test_threads_read_the_same_where_a_file_is_read_from_where_it_stands(folder, monkeypatch):
    data = windows(folder, 4, 3, seed=0)
    expected = starts(data)

    monkeypatch.delattr(os, "pread", raising=False)  # as on Windows

    assert starts(windows(folder, 4, 3, seed=0)) == expected


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(sys.modules[TokenFiles.__module__], "_MOST_OPEN", 3)


def num_open(folder):
    gc.collect()
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())


@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_of_many_files_a_few_are_open(tmp_path):
    write(tmp_path, np.arange(20 * 9).reshape(20, 9))

    data = windows(tmp_path, 4, 8, seed=0, drop_remainder=False)

    for _ in range(2):
        found = starts(data)
        assert sorted(found) == [9 * n + place for n in range(20) for place in (0, 4)]
    if Path("/proc/self/fd").is_dir():
        most = 3 + 2 * 4  # and those from which the threads of two passes are reading
        assert 1 <= num_open(tmp_path) <= most


@pytest.mark.usefixtures("few")
def test_a_file_that_was_replaced_is_noticed_when_it_is_opened_again(tmp_path):
    write(tmp_path, np.arange(20 * 9).reshape(20, 9))
    data = windows(tmp_path, 4, 8)
    np.save(tmp_path / "new.npy", np.zeros(9, "uint16"))
    (tmp_path / "new.npy").replace(tmp_path / "part-005.npy")

    with pytest.raises(ValueError, match=r"none may be replaced.*part-005\.npy"):
        list(data)
    assert data.error is not None


def test_few_files_may_be_replaced_while_they_are_read(tmp_path):
    write(tmp_path, np.arange(4 * 9).reshape(4, 9))
    data = windows(tmp_path, 4, 8)
    np.save(tmp_path / "new.npy", np.zeros(9, "uint16"))
    (tmp_path / "new.npy").replace(tmp_path / "part-002.npy")

    assert starts(data) == [9 * n + place for n in range(4) for place in (0, 4)]


def test_a_file_that_is_cut_is_named(tmp_path):
    write(tmp_path, np.zeros((3, 5000)))
    data = windows(tmp_path, 4, 8)
    os.truncate(tmp_path / "part-001.npy", 4096)

    with pytest.raises(ValueError, match=r"not written to.*part-001\.npy"):
        list(data)


needs_pread = pytest.mark.skipif(not hasattr(os, "pread"), reason="reads in another way")


def failing_from(call, number, real):
    """An `os.pread` that fails from a call on."""
    calls = itertools.count(1)

    def pread(*arguments):
        if next(calls) < call:
            return real(*arguments)
        raise OSError(number, os.strerror(number))

    return pread


@needs_pread
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("does", ["fit", "evaluate"])
def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch, number, does):
    write(tmp_path, np.zeros((1, 400)))
    lm = kgpt.CausalLM(kgpt.GPTBackbone(5, 1, 2, 8, max_sequence_length=4))
    lm.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")
    data = windows(tmp_path, 4, 4)  # 1 reading of all ids and 99 of windows
    monkeypatch.setattr(os, "pread", failing_from(80, number, os.pread))

    with pytest.raises(OSError, match=r"Can't read .*part-000\.npy: .*Check the disk") as error:
        getattr(lm, does)(data, verbose=0)
    assert error.value.errno == number


@needs_pread
def test_what_the_system_gives_in_pieces_is_read_whole(folder, monkeypatch):
    expected, real = starts(windows(folder, 4, 3)), os.pread
    monkeypatch.setattr(os, "pread", lambda file, count, at: real(file, min(count, 3), at))

    assert starts(windows(folder, 4, 3)) == expected


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EMFILE, "ulimit -n"), (errno.EACCES, "permissions")]
)
def test_a_file_that_cannot_be_opened_is_not_called_another_format(
    folder, monkeypatch, number, hint
):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number), "part-000.npy")

    monkeypatch.setattr("kgpt.data.array_file.open", refuse, raising=False)

    with pytest.raises(OSError, match=rf"Can't read .*part-000\.npy: .*{hint}"):
        windows(folder, 4, 3)


def test_windows_of_many_files_survive_pickling(folder):
    data = windows(folder, 4, 3, seed=5)

    copy = pickle.loads(pickle.dumps(data))

    assert repr(copy) == repr(data)
    assert "part-000.npy and 3 more files" in repr(data)
    assert starts(copy) == starts(data)


# === Refused ===


def test_ids_outside_the_vocabulary_are_found_in_their_file(folder):
    with pytest.raises(ValueError, match=r"id 220 at position 20 of .*part-002\.npy"):
        windows(folder, 4, 3, vocabulary_size=220)
    assert len(windows(folder, 4, 3, vocabulary_size=361)) == 11


def test_ids_of_many_large_files_are_checked_batch_by_batch(folder, monkeypatch):
    monkeypatch.setattr(sys.modules[windows.__module__], "_READ_WHOLE", 100)
    data = windows(folder, 4, 7, vocabulary_size=220)

    reading = iter(data)
    assert starts([next(reading)]) == in_order(4)[:7]
    with pytest.raises(ValueError, match=r"id 220 at position 20 of .*part-002\.npy"):
        list(reading)


@pytest.mark.parametrize("name", ["part-000.validation.npy", "val.bin", "test.npy"])
def test_files_that_are_held_out_are_not_trained_on_unasked(tmp_path, name):
    write(tmp_path, np.zeros((2, 9)))
    (tmp_path / name).write_bytes((tmp_path / "part-000.npy").read_bytes())

    with pytest.raises(ValueError, match=f"held out. Received: {name} among 3 files"):
        windows(tmp_path, 4, 1)

    for path in tmp_path.glob("part-00?.npy"):
        path.unlink()
    assert len(windows(tmp_path, 4, 1)) >= 2


def test_other_files_of_a_folder_are_left_alone(tmp_path):
    write(tmp_path, np.zeros((2, 9)))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / ".part-002.partial.npy").write_text("unfinished")
    write(tmp_path / "inner", np.zeros((2, 9)))

    assert len(windows(tmp_path, 4, 1)) == 4


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ([], ValueError, "each of them once"),
        (["part-000.npy", "part-000.npy"], ValueError, "each of them once.*kgpt.data.mixture"),
        (["part-000.npy", 5], TypeError, "or a list of paths"),
        ({"part-000.npy"}, TypeError, "or a list of paths"),
        (["part-000.npy", "missing.npy"], FileNotFoundError, "missing.npy"),
        (["part-000.npy", "."], ValueError, "a folder"),
        ("empty", FileNotFoundError, "no token files"),
    ],
)
def test_what_names_no_corpus_is_refused(folder, monkeypatch, path, error, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)

    with pytest.raises(error, match=message):
        windows(path, 4, 1)

    (folder / "empty").rmdir()
