"""What the gradient of `kgpt.kernels.linear` is worth on JAX's CPU, beside JAX's own.

    KERAS_BACKEND=jax python benchmarks/linear.py

Training steps of S (6 layers, width 384, context 256, batch 12) with and without it, by turns, each
in a process of its own; prints a table of medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

WAYS = {"own gradient": False, "JAX's gradient": True}


def seconds_of_a_step(is_plain, dropout, steps):
    """The median time of a training step, in this process."""
    import keras
    import numpy as np

    import kgpt
    from kgpt.kernels import linear

    if is_plain:
        linear.is_jax_on_cpu = lambda: False
    keras.utils.set_random_seed(0)
    backbone = kgpt.GPTBackbone.from_preset("gpt_mini", load_weights=False, dropout=dropout)
    lm = kgpt.CausalLM(backbone)
    lm.compile(keras.optimizers.AdamW(1e-4))
    tokens = np.random.default_rng(0).integers(0, 8192, (12, 257)).astype("int32")
    times = []
    for _ in range(steps + 1):  # the first one compiles
        begin = time.perf_counter()
        lm.train_on_batch(tokens[:, :-1], tokens[:, 1:])
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, dropout = options.worker
        print(seconds_of_a_step(WAYS[way], float(dropout), options.steps))
        return
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    print("| dropout | " + " | ".join(f"{way}, s/step" for way in WAYS) + " | ratio (range) |")
    print("|---|---|---|---|")
    for dropout in ("0.0", "0.1"):
        found = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            for way, times in found.items():
                command = [sys.executable, __file__, "--steps", str(options.steps)]
                command += ["--worker", way, dropout]
                answer = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
                times.append(float(answer.stdout.split()[-1]))
        own, plain = found.values()
        ratios = sorted(b / a for a, b in zip(own, plain, strict=True))
        print(
            f"| {dropout} | {statistics.median(own):.2f} | {statistics.median(plain):.2f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
