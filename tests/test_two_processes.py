"""Two processes train one model as one process does, and go on after one of them was killed."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("keras.distribution acts on the JAX backend", allow_module_level=True)
if importlib.util.find_spec("orbax") is None:
    pytest.skip("several processes save with Orbax: orbax-checkpoint", allow_module_level=True)

import two_processes

import kgpt
from kgpt.callbacks import ResumableCheckpoint

TESTS = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])


def start(folder, *arguments):
    """Starts both processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return [
        subprocess.Popen(
            [sys.executable, TESTS / "two_processes.py", str(number), address, folder, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    np.save(folder / "tokens.npy", (np.arange(8 * 8 * 7 + 1) * 5 % 24).astype("uint16"))
    return folder


@pytest.fixture(scope="module")
def killed(folder):
    """Both processes end: the second one killed, the first one then."""
    first, second = start(folder, "5")
    with contextlib.ExitStack() as stack:
        stack.callback(first.kill)
        stack.callback(second.kill)
        second.wait(timeout=200)
        assert second.returncode == -signal.SIGKILL, second.communicate()[1][-3000:]
        deadline = time.time() + 10
        while first.poll() is None and time.time() < deadline:
            time.sleep(0.1)
    first.communicate()
    for name in ("finished by one", "damaged"):
        shutil.copytree(folder / "run", folder / name)


class Killed(BaseException):
    """What ends training as abruptly as Python allows."""


@pytest.fixture(scope="module")
def cut_alone(folder):
    """One process on one device is cut after five steps, of which the checkpoint has four."""

    def kill(batch, logs):
        if batch == 4:
            raise Killed

    cut = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
    with pytest.raises(Killed):
        train_alone(folder, ResumableCheckpoint(folder / "alone", save_freq=2), cut)


def train_alone(folder, *callbacks):
    return two_processes.train(folder, two_processes.BATCH, callbacks)


@pytest.fixture(scope="module")
def results(folder, killed, cut_alone):
    processes = start(folder)
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def alone(folder):
    """The losses of a run of one process on one device, by step."""
    return train_alone(folder)[1]


def test_after_a_kill_both_go_on_from_the_last_checkpoint_as_one_process_would(results, alone):
    for found in results:
        losses = {int(step): loss for step, loss in found["tensor_fsdp"].items()}
        assert found["ran"] == [4, 5, 6]  # after the checkpoint of four steps
        assert losses == pytest.approx(alone, abs=1e-4)


def test_processes_that_divide_a_model_read_the_same_data_and_go_on_from_one(results, alone):
    for found in results:
        losses = {int(step): loss for step, loss in found["tensor"].items()}
        assert found["ran after one"] == [4, 5, 6]
        assert losses == pytest.approx(alone, abs=1e-4)


def test_each_process_writes_its_own_part(results, folder):
    first, newest = sorted((folder / "run").glob("checkpoint-*"))

    for checkpoint in (first, newest):
        sizes = [
            sum(path.stat().st_size for path in (checkpoint / "variables").glob(f"{of}/d/*"))
            for of in ("ocdbt.process_0", "ocdbt.process_1")
        ]
        assert min(sizes) > 0.8 * max(sizes)
        assert (checkpoint / "state.npz").stat().st_size < 0.1 * max(sizes)


def test_no_process_gathers_or_holds_a_whole_model(results):
    for found in results:
        assert 0 < found["gathered"] <= 2  # whether all went well
        assert found["share"] == pytest.approx(0.5, abs=0.02)


def test_a_save_that_fails_in_one_process_fails_in_both(results, folder):
    first, second = (found["failed"] for found in results)

    assert first == "Process 1 has failed: see there."
    assert "No space left" in second
    left = sorted(path.name for path in (folder / "run").iterdir() if path.name != ".lock")
    assert left == ["checkpoint-00000003", "checkpoint-00000004"]


def test_save_says_what_to_use(results, folder):
    assert all("ResumableCheckpoint" in found["save"] for found in results)
    assert not (folder / "lm.keras").exists()


def test_one_process_finishes_a_run_that_was_killed(killed, folder, alone):
    _, losses, ran = train_alone(folder, ResumableCheckpoint(folder / "finished by one"))

    assert ran == [4, 5, 6]
    assert losses == pytest.approx(alone, abs=1e-4)


def test_one_process_goes_on_from_their_checkpoint_and_saves_the_model(results, folder, alone):
    lm, losses, ran = train_alone(folder, ResumableCheckpoint(folder / "run"))

    assert ran == []  # the run is finished
    assert losses == pytest.approx(alone, abs=1e-4)
    data = kgpt.data.windows(folder / "tokens.npy", 8, two_processes.BATCH, seed=0)
    assert lm.evaluate(data, verbose=0)[0] < alone[0]
    lm.save(folder / "lm.keras")
    assert (folder / "lm.keras").exists()


def test_damage_to_the_part_of_a_process_is_found_and_the_checkpoint_before_used(killed, folder):
    *_, newest = sorted((folder / "damaged").glob("checkpoint-*"))
    path = max((newest / "variables" / "ocdbt.process_1" / "d").iterdir(), key=os.path.getsize)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.warns(UserWarning, match=f"{path.name} is damaged.*before it, is used"):
        _, _, ran = train_alone(folder, ResumableCheckpoint(folder / "damaged"))

    assert ran == [2, 3, 4, 5, 6]
