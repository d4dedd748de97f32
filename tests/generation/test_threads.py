"""Models in threads, as a web server calls them: the same results as one call after another."""

import itertools
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from full_passes import RAGGED, make_lm

import kgpt
from kgpt.locks import Lock, lock_of

SAMPLERS = "greedy", "top_k", "top_p", "random", "beam", "contrastive"
NEW = 4
ROWS = np.array([[3, 5, 8, 1, 9, 2, 6, 4]] * 2), np.array([0, 1])


@pytest.fixture(scope="module")
def two(text_lm):
    """A language model and a classifier over one backbone."""
    eager = {"run_eagerly": keras.config.backend() == "tensorflow"}
    classifier = kgpt.TextClassifier(text_lm.backbone, num_classes=2, tokenizer=text_lm.tokenizer)
    text_lm.compile(**eager)
    classifier.compile(**eager)
    return text_lm, classifier


@pytest.fixture
def busy():
    """Starts functions in threads; the test ends with them."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def calls_of(lm, classifier):
    """Calls whose results are known, each with how often it is made in 1,000."""
    x, y = ROWS

    def generate(**options):
        return lambda: lm.generate("the robot", NEW, **{"sampler": "top_k", "seed": 1, **options})

    yield from ((80, generate(sampler=sampler)) for sampler in SAMPLERS)
    yield from ((50, generate(seed=seed)) for seed in (2, 3))
    yield 70, generate(stop=["e", "o"], return_log_probabilities=True)
    yield from ((70, lambda s=s: "".join(generate(seed=s, stream=True)())) for s in (5, 6))
    yield 70, lambda: lm.score(["the café", "a robot"], reduction="none")
    yield 50, lambda: lm.perplexity(["the café", "a robot"])
    yield 50, lambda: lm.embed(["the café", "a robot"])
    yield 16, lambda: classifier.predict_on_batch(x)
    yield 6, lambda: classifier.predict(x, verbose=0)
    yield 6, lambda: classifier.evaluate(x, y, verbose=0)
    yield 6, lambda: lm.predict(x, verbose=0)
    yield 3, lambda: lm.evaluate(x, verbose=0)
    yield 3, lambda: lm.backbone.predict(x, verbose=0)


def is_same(found, expected):
    if isinstance(expected, list | tuple):
        return all(itertools.starmap(is_same, zip(found, expected, strict=True)))
    return np.array_equal(found, expected)


def test_a_thousand_calls_in_threads_give_what_they_give_one_by_one(two, busy):
    calls = list(calls_of(*two))
    expected = [call() for _, call in calls]
    order = [i for i, (times, _) in enumerate(calls) for _ in range(times)]
    random.Random(0).shuffle(order)

    found = list(busy.map(lambda i: calls[i][1](), order))

    assert len(order) == 1000
    assert [i for i, one in zip(order, found, strict=True) if not is_same(one, expected[i])] == []


def test_the_first_calls_may_come_from_several_threads(busy):
    lm, other, twin = make_lm(), make_lm(num_heads=2), make_lm()
    started = threading.Barrier(4)

    def first_call(model):
        started.wait()
        return model.generate(RAGGED, NEW, seed=1)

    found = list(busy.map(first_call, [lm, other, lm, other]))

    assert found[0] == found[2] == twin.generate(RAGGED, NEW, seed=1)
    assert found[1] == found[3] == other.generate(RAGGED, NEW, seed=1)


# === Streams ===


def test_a_stream_that_nobody_reads_keeps_nobody_waiting(two, busy):
    lm, _ = two
    whole = lm.generate("the robot", NEW, seed=5)
    stream = lm.generate("the robot", NEW, seed=5, stream=True)
    begin = [next(stream), next(stream)]  # the prompt and a first piece

    others = [busy.submit(lm.generate, "the robot", NEW, seed=seed) for seed in (1, 2, 1)]
    results = [other.result() for other in others]

    assert results[0] == results[2] == lm.generate("the robot", NEW, seed=1)
    assert "".join([*begin, *stream]) == whole


def test_streams_take_turns_and_other_calls_go_between_them(two, busy):
    lm, _ = two
    expected = {seed: lm.generate("the robot", NEW, seed=seed) for seed in (1, 2, 3)}

    def with_calls_between(seed):
        pieces = []
        for piece in lm.generate("the robot", NEW, seed=seed, stream=True):
            pieces.append(piece)
            assert lm.generate("the robot", NEW, seed=1) == expected[1]
        return "".join(pieces)

    assert list(busy.map(with_calls_between, expected)) == list(expected.values())


# === Changes of the weights ===


@pytest.fixture
def in_fit(busy):
    """A model that another thread trains, until what is called with it has returned."""
    lm = make_lm()
    lm.compile(run_eagerly=keras.config.backend() == "tensorflow")
    began, may_end = threading.Event(), threading.Event()

    class Wait(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.written = lm.generate(RAGGED, NEW, seed=1)
            began.set()
            may_end.wait(600)

    wait = Wait()
    training = busy.submit(lm.fit, ROWS[0], verbose=0, callbacks=[wait])
    assert began.wait(600) or training.result()
    yield lm, lambda: may_end.set() or (training.result() and wait.written)
    may_end.set()


def test_a_model_in_fit_is_refused_to_other_threads_and_not_to_its_callbacks(in_fit):
    lm, end = in_fit
    classifier = kgpt.TextClassifier(lm.backbone, num_classes=2)

    for call in (
        lambda: lm.generate(RAGGED, NEW),
        lambda: lm.score(RAGGED),
        lambda: kgpt.plot.surprise(lm, ROWS[0][0]),
        lambda: kgpt.plot.embedding_neighbours(lm, [1]),
        lambda: lm.fit(ROWS[0], verbose=0),
        lambda: classifier.predict(ROWS[0], verbose=0),
    ):
        with pytest.raises(RuntimeError, match=r"another one is in the `fit` of this model .*\Z"):
            call()
    written = end()

    assert written == lm.generate(RAGGED, NEW, seed=1)


def test_a_stream_ends_with_the_error_when_a_fit_begins(busy):
    lm = make_lm()
    stream = lm.generate(RAGGED[0], NEW, stream=True, return_prompt=False)
    next(stream)
    began, may_end = threading.Event(), threading.Event()

    def train():
        with lock_of(lm).held(training=True):
            began.set()
            may_end.wait(600)

    training = busy.submit(train)
    began.wait(600)
    with pytest.raises(RuntimeError, match="fit"):
        next(stream)
    may_end.set()
    training.result()


@pytest.mark.parametrize("change", ["enable_lora", "quantize", "load_weights"])
def test_changes_wait_for_the_calls_before_them(change, busy, tmp_path):
    lm = make_lm()
    lm.save_weights(tmp_path / "lm.weights.h5")
    argument = {"enable_lora": 2, "quantize": "int8"}.get(change, tmp_path / "lm.weights.h5")

    with lock_of(lm).held():
        changing = busy.submit(getattr(lm, change), argument)
        time.sleep(0.05)
        assert not changing.done()
    changing.result()

    assert len(lm.generate([1], NEW, return_prompt=False)) == NEW


# === The lock ===


def test_models_over_one_backbone_have_one_lock():
    lm = make_lm()

    assert lock_of(lm) is lock_of(kgpt.TextClassifier(lm.backbone, num_classes=2))
    assert lock_of(lm) is lock_of(lm.backbone)
    assert lock_of(lm) is not lock_of(make_lm())


def test_copies_and_files_of_a_model_in_use_have_nothing_of_its_lock(busy, tmp_path):
    lm = make_lm()

    with lock_of(lm).held():
        lm.save(tmp_path / "lm.keras")
        copies = [
            pickle.loads(pickle.dumps(lm)),
            keras.models.clone_model(lm),
            keras.saving.load_model(tmp_path / "lm.keras"),
        ]
        for copy in copies:
            found = busy.submit(copy.embed, [1, 2]).result(timeout=600)
            assert found.shape == (lm.backbone.hidden_dim,)


def test_threads_get_a_lock_in_the_order_they_came(busy):
    lock, order = Lock(), []

    def take(number):
        with lock.held(), lock.held():  # again in the same thread
            order.append(number)

    with lock.held():
        waiting = []
        for number in range(4):
            waiting.append(busy.submit(take, number))
            while len(lock._waiting) <= number:
                time.sleep(0.001)
    for one in waiting:
        one.result(timeout=600)

    assert order == [0, 1, 2, 3]


def test_a_lock_is_free_again_after_an_error(busy):
    lock = Lock()

    with pytest.raises(KeyError), lock.held(training=True):
        raise KeyError

    assert busy.submit(lambda: lock.held().__enter__()).result(timeout=600) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("held_by", ["another thread", "this thread"])
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(held_by, busy):
    lm = make_lm(num_layers=1)
    held, may_end = threading.Event(), threading.Event()

    def hold():
        with lock_of(lm).held():
            held.set()
            may_end.wait(600)

    if held_by == "another thread":
        holding = busy.submit(hold)
        held.wait(600)
        child = os.fork()
    else:
        with lock_of(lm).held():
            child = os.fork()
    if child == 0:
        with lock_of(lm).held():
            os._exit(7)
    ended = waits_for(child)
    may_end.set()

    assert ended == 7
    assert held_by == "this thread" or holding.result() is None


def waits_for(child):
    """The exit status of a process; None if it does not end."""
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None
