"""States of callbacks, without a fit: the callbacks' methods are called as Keras calls them."""

import collections
import json

import keras
import ml_dtypes
import numpy as np
import pytest

import kgpt
from kgpt.callbacks import callback_states
from kgpt.callbacks.callback_states import CallbackStates


class Model:
    """As much of a model as callbacks look at."""

    metrics = ()
    stop_training = False

    def __init__(self, weights=()):
        self.weights = list(weights)
        self.saved = []

    def get_weights(self):
        return self.weights

    def save(self, path, overwrite):
        self.saved.append(path)


def begun(callbacks, model=None):
    """Callbacks as they are when a fit has begun, and their states."""
    for callback in callbacks:
        callback.set_model(model or Model())
        callback.on_train_begin()
    return CallbackStates(callbacks)


def through_a_file(states, arrays):
    """What comes back of states: JSON, and arrays that a file of numpy can hold."""
    assert all(np.dtype(array.dtype.str) == array.dtype for array in arrays.values())
    return json.loads(json.dumps(states)), {name: array.copy() for name, array in arrays.items()}


def resume(callbacks, states, model=None):
    """Begins a fit with new callbacks, from what `states` has of those before."""
    saved = through_a_file(*states.get())
    callback_states.prepare(callbacks)
    new = begun(callbacks, model)
    new.set(*saved)
    return new


def end_epochs(callback, losses, first=0):
    for epoch, loss in enumerate(losses, first):
        callback.on_epoch_end(epoch, {"val_loss": loss})


# === Keras's callbacks ===


def test_early_stopping_goes_on_counting_and_has_its_best_weights():
    early = keras.callbacks.EarlyStopping(patience=5, min_delta=0.5, restore_best_weights=True)
    weights = [np.arange(6.0).reshape(2, 3), np.array(7, "float32"), np.ones(2, ml_dtypes.bfloat16)]
    states = begun([early], Model(weights))
    end_epochs(early, [3.0, 2.9, 2.8])

    new = keras.callbacks.EarlyStopping(patience=4, min_delta=0.5, restore_best_weights=True)
    resume([new], states)

    assert (new.wait, new.best, new.best_epoch, new.patience) == (2, 3.0, 0, 4)
    for a, b in zip(new.best_weights, weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    end_epochs(new, [2.6], first=3)  # less by 0.4 is no improvement
    assert (new.wait, new.best) == (3, 3.0)
    assert not new.model.stop_training
    end_epochs(new, [2.6], first=4)
    assert new.model.stop_training


def test_the_best_model_is_not_overwritten_by_a_worse_one():
    def make():
        return keras.callbacks.ModelCheckpoint("best{epoch}.keras", save_best_only=True)

    first, new = make(), make()
    states = begun([first])
    end_epochs(first, [3.0, 2.0])

    resume([new], states)
    end_epochs(new, [2.5, 1.5], first=2)

    assert new.model.saved == ["best4.keras"]


def test_a_model_checkpoint_by_steps_goes_on_counting_them():
    def make():
        return keras.callbacks.ModelCheckpoint("{epoch}.keras", save_freq=5)

    first, new = make(), make()
    states = begun([first])
    first.on_epoch_begin(0)
    for batch in range(3):
        first.on_train_batch_end(batch, {})

    resume([new], states)
    new.on_epoch_begin(0)
    new.on_train_batch_end(3, {})
    assert new.model.saved == []
    new.on_train_batch_end(4, {})

    assert new.model.saved == ["1.keras"]


def test_a_learning_rate_that_waits_for_a_plateau_goes_on_waiting():
    model = Model()
    model.optimizer = keras.optimizers.SGD(1.0)
    first, new = (keras.callbacks.ReduceLROnPlateau(patience=3, cooldown=2) for _ in range(2))
    states = begun([first], model)
    end_epochs(first, [3.0, 3.0, 3.0])

    resume([new], states, model)
    assert (new.wait, new.best) == (2, 3.0)
    end_epochs(new, [3.0])

    assert float(model.optimizer.learning_rate) == pytest.approx(0.1)
    assert new.cooldown_counter == 2


def test_a_history_is_the_whole_runs():
    first, new = keras.callbacks.History(), keras.callbacks.History()
    states = begun([first])
    end_epochs(first, [3.0, np.float32(2.9)])
    returned = new.history

    resume([new], states)
    end_epochs(new, [2.0], first=2)

    assert new.epoch == [0, 1, 2]
    assert new.history == {"val_loss": [3.0, np.float32(2.9), 2.0]}
    assert type(new.history["val_loss"][1]) is np.float32
    assert new.history is returned


def test_a_progress_bar_and_the_checkpoint_itself_have_no_state():
    bar = keras.callbacks.ProgbarLogger()
    states = begun([bar])
    bar.seen = 5

    assert states.get() == ({}, {})


def test_weights_that_are_swapped_for_their_mean_are_swapped_back():
    states = CallbackStates([first := keras.callbacks.SwapEMAWeights(swap_on_epoch=True)])
    first._ema_weights_in_model = True

    resume([new := keras.callbacks.SwapEMAWeights(swap_on_epoch=True)], states)

    assert new._ema_weights_in_model


def test_tensorboard_goes_on_counting_steps_and_begins_its_traces_anew(tmp_path):
    pytest.importorskip("tensorflow", reason="TensorBoard's files are written by TensorFlow")

    def make(name):
        return keras.callbacks.TensorBoard(tmp_path / name, write_graph=False)

    first, new = make("a"), make("b")
    states = begun([first])
    first._global_train_batch, first._global_test_batch, first._is_tracing = 7, 3, True

    resume([new], states)

    assert (new._global_train_batch, new._global_test_batch, new._is_tracing) == (7, 3, False)


def test_functions_have_no_state_that_is_known():
    seen = []
    one = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    states = begun([one])
    one.on_epoch_end(0, {})

    assert states.get() == ({"LambdaCallback": {"attributes": {}}}, {})


@pytest.mark.parametrize("other", ["GenerateSamples", "Scores"])
def test_samples_and_scores_carry_nothing_from_epoch_to_epoch(other):
    if other == "Scores":
        pytest.importorskip("sklearn", reason="its figures are scikit-learn's")
    tokenizer = kgpt.Tokenizer.train(["ab"], vocabulary_size=300)
    data = kgpt.data.classification(["a", "b"], [0, 1], tokenizer)
    make = {"GenerateSamples": lambda: kgpt.callbacks.GenerateSamples("a")}
    make["Scores"] = lambda: kgpt.callbacks.Scores(data)

    lm = kgpt.CausalLM(kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 1, 4), tokenizer)
    model = lm if other == "GenerateSamples" else kgpt.TextClassifier(lm.backbone, 2)

    states, arrays = begun([make[other]()], model).get()

    assert states == {other: {"attributes": {}}}
    assert arrays == {}


# === The log of epochs ===


def log(path, **options):
    return keras.callbacks.CSVLogger(path, **options)


def test_a_log_goes_on_where_the_checkpoint_was(tmp_path):
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    begun([first := log(whole)])
    end_epochs(first, [3.0, 2.0, 1.0, 0.5])
    states = begun([first := log(cut)])
    end_epochs(first, [3.0, 2.0])
    saved = through_a_file(*states.get())
    end_epochs(first, [1.0], first=2)
    first.csv_file.write("3,0.")  # killed in the middle of a row
    first.csv_file.flush()

    callback_states.prepare([new := log(cut)])
    begun([new]).set(*saved)
    end_epochs(new, [1.0, 0.5], first=2)

    assert cut.read_bytes() == whole.read_bytes()
    assert not new.append  # as it was made: the next fit begins a file of its own


def test_a_log_has_a_header_where_the_checkpoint_was_before_its_first_row(tmp_path):
    states = begun([first := log(tmp_path / "log.csv")])
    saved = through_a_file(*states.get())
    end_epochs(first, [3.0])

    callback_states.prepare([new := log(tmp_path / "log.csv")])
    begun([new]).set(*saved)
    end_epochs(new, [2.0])

    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,val_loss", "0,2.0"]


def test_a_log_that_the_checkpoint_does_not_know_begins_anew(tmp_path):
    (tmp_path / "log.csv").write_text("of another run\n")

    resume([new := log(tmp_path / "log.csv")], CallbackStates([]))
    end_epochs(new, [2.0], first=4)

    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,val_loss", "4,2.0"]


def test_a_log_that_appends_keeps_what_was_there_before_the_run(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,val_loss\n0,9.0\n")
    states = begun([first := log(tmp_path / "log.csv", append=True)])
    end_epochs(first, [3.0])
    saved = through_a_file(*states.get())
    end_epochs(first, [2.0], first=1)

    callback_states.prepare([new := log(tmp_path / "log.csv", append=True)])
    begun([new]).set(*saved)
    end_epochs(new, [2.0], first=1)

    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["epoch,val_loss", "0,9.0", "0,3.0", "1,2.0"]
    assert new.append


def test_a_log_that_was_deleted_begins_with_a_header(tmp_path):
    states = begun([first := log(tmp_path / "log.csv")])
    end_epochs(first, [3.0])
    saved = through_a_file(*states.get())
    first.on_train_end()
    (tmp_path / "log.csv").unlink()

    callback_states.prepare([new := log(tmp_path / "log.csv")])
    begun([new]).set(*saved)
    end_epochs(new, [2.0], first=1)

    assert (tmp_path / "log.csv").read_text().splitlines() == ["epoch,val_loss", "1,2.0"]


# === Callbacks of the user's ===


class Own(keras.callbacks.Callback):
    def __init__(self, threshold=1.0):
        super().__init__()
        self.threshold = threshold
        self._seen, self.losses = 0, []
        self.lock = object()

    def on_epoch_end(self, epoch, logs=None):
        self._seen += 1
        self.losses.append(logs["val_loss"])
        self.late = {"epoch": epoch}


def test_what_a_callback_has_learned_is_kept_and_what_it_was_given_is_not():
    states = begun([first := Own(threshold=1.0)])
    end_epochs(first, [3.0, 2.0])

    new = Own(threshold=5.0)
    losses, lock = new.losses, new.lock
    resume([new], states)

    assert (new._seen, new.losses, new.late) == (2, [3.0, 2.0], {"epoch": 1})
    assert new.losses is losses  # others may hold it
    assert (new.threshold, new.lock) == (5.0, lock)


@pytest.mark.parametrize(
    ("value", "at_first"),
    [
        (collections.deque([1, 2, 3]), collections.deque(maxlen=2)),
        ({"a": 1}, collections.defaultdict(int)),
        ({1, 2}, {3}),
    ],
)
def test_a_collection_keeps_its_own_kind(value, at_first):
    states = begun([first := Own()])
    first.value = value
    new = Own()
    new.value = at_first

    resume([new], states)

    assert new.value is at_first
    assert list(new.value) == list(value)[-2:]


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -3, 10**30, 0.1, float("inf"), "text \udcff"),
        *((1, "a"), [[1], [2.5, None]], {1: "a", (2, 3): [4]}, {1, 2}, frozenset("ab"), []),
        *(collections.deque([1, 2]), [0.1 * i for i in range(200)]),
        *(np.float32(0.1), np.int64(7), np.bool_(True), ml_dtypes.bfloat16(1.5), np.str_("a")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_come_back_as_they_were(value):
    states = begun([first := Own()])
    first.value = value

    resume([new := Own()], states)

    assert new.value == value
    assert type(new.value) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros((2, 0, 3)), np.array(5, "int8"), np.arange(6.0).reshape(2, 3).T),
        *(np.array(["a", "bc"]), np.array([True]), np.arange(3, dtype=">i4")),
        *(np.array([1, 2.5], ml_dtypes.bfloat16), np.array([1.5], ml_dtypes.float8_e4m3fn)),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_come_back_as_they_were(array):
    states = begun([first := Own()])
    first.value = {"inside": [array]}

    resume([new := Own()], states)

    (value,) = new.value["inside"]
    np.testing.assert_array_equal(value, array)
    assert (value.dtype, value.shape) == (array.dtype, array.shape)


def itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [object(), [len], np.array([object()]), np.zeros(1, [("a", "i4")]), itself()],
    ids=["object", "function", "objects", "structured", "circle"],
)
def test_what_is_not_plain_stays_as_it_is(value):
    states = begun([first := Own()])
    first.value = value

    resume([new := Own()], states)

    assert not hasattr(new, "value")


def test_an_array_that_changes_in_its_place_is_noticed_and_one_that_does_not_is_not_kept():
    first = Own()
    first.sums, first.data = np.zeros(3), np.ones(3)
    states = begun([first])
    first.sums += 1

    _, arrays = states.get()

    assert len(arrays) == 1


class WithProtocol(Own):
    def get_state(self):
        return {"seen": self._seen, "weights": np.arange(3)}

    def set_state(self, state):
        self.given = state


def test_a_callback_that_has_the_protocol_is_asked():
    states = begun([first := WithProtocol()])
    end_epochs(first, [3.0])

    resume([new := WithProtocol()], states)

    assert new.given["seen"] == 1
    np.testing.assert_array_equal(new.given["weights"], np.arange(3))
    assert new._seen == 0


def test_a_state_that_cant_be_kept_is_refused():
    states = begun([first := WithProtocol()])
    first._seen = len

    with pytest.raises(ValueError, match="in the state of WithProtocol"):
        states.get()


# === Finding them again ===


def test_callbacks_are_found_by_class_by_what_they_monitor_and_by_order():
    def early(monitor):
        return keras.callbacks.EarlyStopping(monitor, patience=9)

    states = begun([loss := early("loss"), accuracy := early("accuracy"), a := Own(), b := Own()])
    loss.wait, accuracy.wait, a._seen, b._seen = 1, 2, 3, 4

    new = [Own(), early("accuracy"), early("val_loss"), Own(), Own(), keras.callbacks.History()]
    resume(new, states)

    assert [new[i]._seen for i in (0, 3, 4)] == [3, 4, 0]
    assert [new[i].wait for i in (1, 2)] == [2, 0]


def test_another_callback_that_resumes_is_refused(tmp_path):
    callback_states.check([Own(), keras.callbacks.History()])

    with pytest.raises(ValueError, match="BackupAndRestore beside"):
        callback_states.check([Own(), keras.callbacks.BackupAndRestore(tmp_path)])
