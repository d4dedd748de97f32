"""
Many devices
============

When one device is too slow, or too small, several share the work. This script runs unchanged on one
device, on the eight of a machine, and on several machines; what it trains is the same each time.

Keras divides models on its JAX backend (``keras.distribution``), and kgpt says what of a GPT is
divided how. On a laptop, eight simulated devices show it all, in a minute and slower than one:

.. code-block:: bash

    export KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=8
    python examples/many_devices.py
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

# %%
# Several machines
# ----------------
#
# Each machine runs this script, and a first line lets them find each other. It takes the addresses
# from the environment:
#
# .. code-block:: bash
#
#     # Two machines: the same on both, but for the process's number, 0 on the first and 1 on the
#     # second. The address is the first one's.
#     export KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:1234 KERAS_DISTRIBUTION_NUM_PROCESSES=2
#     KERAS_DISTRIBUTION_PROCESS_ID=0 python examples/many_devices.py
#
#     # Slurm: JAX takes all of it from the job.
#     srun --nodes=2 --ntasks-per-node=1 env KERAS_DISTRIBUTION_JOB_ADDRESSES= \
#         python examples/many_devices.py
#
#     # Kubernetes: an indexed Job with a headless Service; each pod has its number already.
#     export KERAS_DISTRIBUTION_JOB_ADDRESSES=train-0.train:1234 KERAS_DISTRIBUTION_NUM_PROCESSES=2
#     KERAS_DISTRIBUTION_PROCESS_ID=$JOB_COMPLETION_INDEX python examples/many_devices.py

ON_JAX = keras.backend.backend() == "jax"
addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
if addresses is not None:
    keras.distribution.initialize(addresses or None)

devices = keras.distribution.list_devices() if ON_JAX else ["one"]
print(f"{len(devices)} device(s)")

# %%
# Styles
# ------
#
# A mesh gives the devices an order: the first axis divides the rows of a batch, the second one the
# model. What a device holds of each matrix is the style:
#
# - ``"data"``: all of it. The simplest, as long as the model, its gradient and the two arrays of
#   AdamW fit one device: 16 bytes for each weight in float32.
# - ``"fsdp"``: a part, the same part as of the batch. Before a layer computes, its matrices are
#   gathered, and dropped after. For models that are too large for one device.
# - ``"tensor"``: the part that it computes with, some heads and some of the inner width and of the
#   vocabulary. Each layer then adds up activations over these devices, so they should be close
#   together, in one machine.
# - ``"tensor_fsdp"``: both.

STYLES = ("data", "fsdp", "tensor", "tensor_fsdp")


def mesh_of(style, names):
    """All devices along the batch; with tensor parallelism, in pairs along the model."""
    shape = (len(names) // 2, 2) if "tensor" in style else (len(names),)
    return keras.distribution.DeviceMesh(shape, ("batch", "model")[: len(shape)], names)


# %%
# The map of GPT-2 needs no GPT-2. Its vocabulary of 50,257 is divided by nothing: the table of
# tokens is divided by its width then, which kgpt says in a warning with what to do. Here is what
# each of eight devices holds, with AdamW, of a GPT-2 whose table has 50,264 rows.


def gigabytes(style):
    layouts = kgpt.distribution.layout_map(GPT2, mesh_of(style, EIGHT), style=style)
    width, inner = GPT2["hidden_dim"], 4 * GPT2["hidden_dim"]
    block = "decoder_block_0"
    shapes = {
        "embedding/token_embedding/embeddings": (1, GPT2["vocabulary_size"] * width),
        "embedding/position_embedding/embeddings": (1, 1024 * width),
        f"{block}/attention/query_key_value/kernel": (12, 3 * width**2),
        f"{block}/attention/output_projection/kernel": (12, width**2),
        f"{block}/feed_forward/expansion/kernel": (12, width * inner),
        f"{block}/feed_forward/output_projection/kernel": (12, width * inner),
    }
    total = 0
    for path, (count, size) in shapes.items():
        layout = layouts[path]
        mesh = layouts.device_mesh
        axes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
        parts = np.prod([axes[axis] for axis in (layout.axes if layout else ()) if axis])
        total += count * size / parts
    return 16 * total / 1e9


EIGHT = [f"cpu:{i}" for i in range(8)]
GPT2 = {"vocabulary_size": 50264, "num_layers": 12, "num_heads": 12, "hidden_dim": 768}
figure, axes = plt.subplots(figsize=(6, 2.5))
axes.barh(STYLES, [gigabytes(style) for style in STYLES])
axes.set_xlabel("GB on each of eight devices: weights, gradient, AdamW")
axes.invert_yaxis()
figure.tight_layout()
figure

# %%
# Training
# --------
#
# The distribution is set before the model is made; then all is as on one device. ``windows`` gives
# each process its share of the data, and ``ResumableCheckpoint`` keeps one state of all of them.

TEXT = "The cat sat on the mat. The dog sat on the rug. The cat saw the dog. " * 60
tokenizer = kgpt.Tokenizer.train([TEXT], vocabulary_size=280)
folder = Path(tempfile.mkdtemp())
kgpt.data.write_tokens([TEXT], tokenizer, folder / "train.npy")
SIZES = {"vocabulary_size": 280, "num_layers": 2, "num_heads": 4, "hidden_dim": 64}
SIZES["max_sequence_length"] = 32


def train(style):
    if len(devices) > 1:
        layout_map = kgpt.distribution.layout_map(SIZES, mesh_of(style, devices), style=style)
        distribution = keras.distribution.ModelParallel(layout_map=layout_map)
        keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    lm = kgpt.CausalLM(kgpt.GPTBackbone(**SIZES), tokenizer=tokenizer)
    lm.compile(keras.optimizers.AdamW(3e-3))
    rows = 8 * max(1, len(devices))
    windows = kgpt.data.windows(folder / "train.npy", 32, rows, seed=0, drop_remainder=False)
    losses = lm.fit(windows, epochs=3, verbose=0).history["loss"]
    return lm, losses


for style in STYLES if len(devices) % 2 == 0 else STYLES[:1]:
    lm, losses = train(style)
    print(f"{style:12}", *(f"{loss:.5f}" for loss in losses))

# %%
# The losses are the same whatever the style. The last batch of an epoch has fewer rows than the
# others, and as many for each device only by chance: it is filled with rows that count nothing.

lm.generate("The cat", max_new_tokens=12, sampler="greedy", stop=".")

# %%
# On PyTorch
# ----------
#
# PyTorch's own way is ``DistributedDataParallel``, whose loop takes the loss of a kgpt model as it
# is. Plain ``fit`` in several processes of PyTorch would train as many models, and warns.
#
# .. code-block:: python
#
#     class Loss(torch.nn.Module):
#         def __init__(self, model):
#             super().__init__()
#             self.model = model
#
#         def forward(self, token_ids):
#             return self.model.compute_loss(token_ids)
#
#     torch.distributed.init_process_group("nccl")  # torchrun --nproc-per-node=8 train.py
#     loss_of = torch.nn.parallel.DistributedDataParallel(Loss(lm))
#     optimizer = torch.optim.AdamW(lm.parameters(), 3e-4)
#     for token_ids in batches_of_this_process:
#         optimizer.zero_grad()
#         loss_of(token_ids).backward()
#         optimizer.step()
#
# On TensorFlow, make the model under ``tf.distribute.MirroredStrategy().scope()`` and call ``fit``.
#
# Next: ``examples/chinese_arithmetic.py`` (in Chinese), or a model of your own.
