"""PyTorch's DDP over two processes trains as one process does; `fit` in several warns."""

import contextlib
import datetime
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import kgpt

if keras.backend.backend() != "torch":
    pytest.skip("DistributedDataParallel belongs to the torch backend", allow_module_level=True)

# The loop of keras.io's guide "Multi-GPU distributed training with PyTorch", with kgpt's loss.
LOOP = """
import sys
import keras, numpy as np, torch
import kgpt

ROWS, LENGTH, STEPS = 4, 6, 5
IDS = np.random.default_rng(0).integers(0, 11, (STEPS, ROWS, LENGTH)).astype("int32")


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token_ids):
        return self.model.compute_loss(token_ids)


def train(number, count):
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 2, 8, 8, 0.0, LENGTH))
    loss_of = Loss(lm)
    if count > 1:
        loss_of = torch.nn.parallel.DistributedDataParallel(loss_of)
    optimizer = torch.optim.SGD(lm.parameters(), 0.5)
    losses = []
    for ids in IDS:
        loss = loss_of(torch.tensor(ids[number::count]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, [w.tolist() for w in lm.get_weights()]
"""
PROCESS = f"""{LOOP}
import json
torch.distributed.init_process_group("gloo", sys.argv[1], rank=1, world_size=2)
print(json.dumps(train(1, 2)))
torch.distributed.destroy_process_group()
"""


@contextlib.contextmanager
def first_of_two(store):
    """Inside, this process is the first of a group of two."""
    import torch

    timeout = datetime.timedelta(minutes=4)
    torch.distributed.init_process_group("gloo", store, timeout, rank=0, world_size=2)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_of_ddp_train_as_one(tmp_path):
    loop = {}
    exec(compile(LOOP, "loop", "exec"), loop)
    expected_losses, expected_weights = loop["train"](0, 1)

    store = f"file://{tmp_path}/store"
    command = [sys.executable, "-c", PROCESS, store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        with first_of_two(store):
            here = loop["train"](0, 2)
        out, _ = other.communicate()

    losses, weights = zip(here, json.loads(out.splitlines()[-1]), strict=True)
    np.testing.assert_allclose(np.mean(losses, axis=0), expected_losses, atol=1e-5)
    for found in weights:
        for a, b in zip(found, expected_weights, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_fit_in_several_processes_warns(monkeypatch):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 2, 8, 8, 0.0, 6))
    ids = np.zeros((2, 6), "int32")
    monkeypatch.setenv("WORLD_SIZE", "4")  # as torchrun sets it

    with pytest.warns(UserWarning, match="4 processes of PyTorch call fit.*compute_loss"):
        lm.fit(ids, verbose=0)
