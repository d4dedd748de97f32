"""Two processes train one model as one process does, and go on after one of them was killed."""

import contextlib
import json
import os
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

TESTS = Path(__file__).parent


def start(folder, *arguments):
    """Starts both processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}
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


@pytest.fixture(scope="module")
def results(folder, killed):
    processes = start(folder)
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def alone(folder):
    """The losses of a run of one process on one device, by step."""
    from two_processes import BATCH, train

    return train(folder, BATCH)[1]


def test_after_a_kill_both_go_on_from_the_last_checkpoint_as_one_process_would(results, alone):
    for found in results:
        losses = {int(step): loss for step, loss in found["tensor_fsdp"].items()}
        assert found["ran"] == [4, 5, 6]  # after the checkpoint of four steps
        assert losses == pytest.approx(alone, abs=1e-4)


def test_processes_that_divide_a_model_read_the_same_data(results, alone):
    for found in results:
        losses = {int(step): loss for step, loss in found["tensor"].items()}
        assert losses == pytest.approx(alone, abs=1e-4)


def test_one_of_them_writes_the_checkpoints_of_which_two_stay(results, folder):
    assert len(list((folder / "run").glob("checkpoint-*"))) == 2


def test_the_other_keeps_none_of_the_variables_in_memory(results):
    first, second = results

    assert first["kept"] > 20
    assert first["all"] == second["all"] >= first["kept"]
    assert second["kept"] == 0


def test_save_says_what_to_use(results, folder):
    assert all("ResumableCheckpoint" in found["save"] for found in results)
    assert not (folder / "lm.keras").exists()


def test_one_process_goes_on_from_their_checkpoint_and_saves_the_model(results, folder, alone):
    from two_processes import BATCH, train

    import kgpt

    lm, losses, ran = train(folder, BATCH, [kgpt.callbacks.ResumableCheckpoint(folder / "run")])

    assert ran == []  # the run is finished
    assert losses == pytest.approx(alone, abs=1e-4)
    data = kgpt.data.windows(folder / "tokens.npy", 8, BATCH, seed=0)
    assert lm.evaluate(data, verbose=0)[0] < alone[0]
    lm.save(folder / "lm.keras")
    assert (folder / "lm.keras").exists()
