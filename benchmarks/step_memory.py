"""Where the memory of a training step on TensorFlow goes: its parts, one after the other.

    python benchmarks/step_memory.py
    python benchmarks/step_memory.py --optimizer muon --batches 6 12

The model is S (6 layers, width 384, context 256) in bfloat16. Shown is what the imports take, and
the peak of resident memory above that: of the forward pass alone, of the loss, of the gradients,
and of the whole step; for two sizes of batch, whose difference is what an example takes. The last
rows are transformers' GPT-2 of the same sizes on PyTorch. Each figure is of a process of its own.
Linux only.
"""

import argparse
import os
import subprocess
import sys

from run import SIZES

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

PARTS = ("imports", "model", "forward", "loss", "gradients", "step")
PEER = ("peer's imports", "peer's step")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 12])
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    choices = [*PARTS, *PEER]
    parser.add_argument("--parts", nargs="+", choices=choices, default=choices)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def status_mb(name):
    """A line of the process's status: VmRSS is its resident memory, VmHWM the peak of that."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith(f"{name}:"))


def work(arguments):
    """Prints the peak of one part in a process that has done nothing else."""
    part, batch = arguments.worker
    spec = {
        "implementation": "transformers",  # of the peer
        "size": SIZES[arguments.size] | {"batch": int(batch)},
        "dtype": arguments.dtype,
        "dropout": arguments.dropout,
    }
    megabytes = peer_peak(part, spec) if part in PEER else peak(part, spec, arguments.optimizer)
    print(f"{megabytes:.0f} MB")


def peak(part, spec, optimizer):
    import tensorflow as tf
    from workers import make_kgpt, random_windows

    import kgpt

    tf.matmul(tf.ones((256, 256)), tf.ones((256, 256)))  # threads and buffers of the library's own
    before = status_mb("VmRSS")
    if part == "imports":
        return before
    lm = make_kgpt(spec)
    adamw, muon = kgpt.recipes.pretraining_optimizer, kgpt.recipes.fast_optimizer
    lm.compile((muon if optimizer == "muon" else adamw)(1000))
    x, y = map(tf.constant, random_windows(spec, spec["size"]["batch"]))

    def gradients():
        with tf.GradientTape() as tape:
            loss = lm.compute_loss(x=x, y=y)
        found = tape.gradient(loss, [v.value for v in lm.trainable_variables])
        return [tf.reduce_sum(tf.convert_to_tensor(one)) for one in found]

    run = {
        "model": lambda: None,
        "forward": tf.function(lambda: tf.reduce_sum(lm.backbone(x, training=True))),
        "loss": tf.function(lambda: lm.compute_loss(x=x, y=y)),
        "gradients": tf.function(gradients),
        "step": lambda: lm.train_on_batch(x, y),
    }[part]
    for _ in range(3):
        run()
    return status_mb("VmHWM") - before


def peer_peak(part, spec):
    import torch
    from workers import transformers_trainer

    torch.ones((256, 256)) @ torch.ones((256, 256))
    before = status_mb("VmRSS")
    if part == "peer's imports":
        return before
    run, _ = transformers_trainer(spec)
    run(3)
    return status_mb("VmHWM") - before


def main():
    arguments = parse_arguments()
    if arguments.worker:
        work(arguments)
        return
    print("| part | " + " | ".join(f"batch {n}, MB" for n in arguments.batches) + " |")
    print("|---" * (1 + len(arguments.batches)) + "|")
    for part in arguments.parts:
        cells = []
        for batch in arguments.batches:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", part, str(batch)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cells.append(done.stdout.split()[-2])
        print(f"| {part} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
