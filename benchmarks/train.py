"""Speed and memory of training steps: kgpt beside keras-hub, same work, same run.

    KERAS_BACKEND=tensorflow python benchmarks/train.py

Each measurement is a process of its own; the implementations take turns, and what is reported are
medians and their ratio. Compilation and the first steps are left out. The work is next-token
training on random tokens with AdamW, without dropout.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMPLEMENTATIONS = ("kgpt", "keras_hub")
WARM_UP_STEPS = 3


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=8, help="measured steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each implementation")
    parser.add_argument("--jit-compile", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write all measurements")
    parser.add_argument("--worker", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_model(arguments):
    """The implementation's language model, compiled."""
    import keras

    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=0.01)
    jit_compile = arguments.jit_compile or "auto"
    if arguments.worker == "kgpt":
        import kgpt

        backbone = kgpt.GPTBackbone(
            arguments.vocabulary,
            arguments.layers,
            arguments.heads,
            arguments.width,
            dropout=0.0,
            max_sequence_length=arguments.context,
            dtype=arguments.dtype,
        )
        model = kgpt.CausalLM(backbone)
        model.compile(optimizer, jit_compile=jit_compile)
        return model
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        arguments.vocabulary,
        arguments.layers,
        arguments.heads,
        arguments.width,
        4 * arguments.width,
        dropout=0.0,
        max_sequence_length=arguments.context,
        dtype=arguments.dtype,
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, jit_compile=jit_compile)
    return model


def work(arguments):
    """Trains, and prints the time of each step and the peak memory."""
    import resource

    import keras
    import numpy as np

    steps = WARM_UP_STEPS + arguments.steps
    rng = np.random.default_rng(0)
    shape = (steps * arguments.batch, arguments.context)
    token_ids = rng.integers(0, arguments.vocabulary, shape, dtype="int32")
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    if arguments.worker == "kgpt":
        inputs = {"token_ids": token_ids}
    times = []
    record = keras.callbacks.LambdaCallback(
        # Looking at the loss waits for the step to end.
        on_train_batch_end=lambda batch, logs: times.append((float(logs["loss"]), time.time()))
    )
    model = make_model(arguments)
    model.fit(inputs, token_ids, batch_size=arguments.batch, verbose=0, callbacks=[record])
    ends = [end for _, end in times]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = [b - a for a, b in zip(ends[WARM_UP_STEPS - 1 :], ends[WARM_UP_STEPS:], strict=False)]
    print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024}))


def main():
    arguments = parse_arguments()
    if arguments.worker:
        return work(arguments)
    measured = {name: [] for name in IMPLEMENTATIONS}
    for turn in range(arguments.rounds):
        for name in IMPLEMENTATIONS:
            command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured[name].append(json.loads(output.splitlines()[-1]))
            print(f"round {turn + 1}, {name}: {measured[name][-1]}", file=sys.stderr)
    tokens = arguments.batch * arguments.context
    print(f"\nbackend {os.environ.get('KERAS_BACKEND', 'tensorflow')}, {arguments.dtype}")
    print("| implementation | s/step | tokens/s | peak RSS, MB |\n|---|---|---|---|")
    medians = {}
    for name, rounds in measured.items():
        medians[name] = statistics.median(s for one in rounds for s in one["seconds"])
        peak = statistics.median(one["peak_mb"] for one in rounds)
        print(f"| {name} | {medians[name]:.3f} | {tokens / medians[name]:,.0f} | {peak:,.0f} |")
    print(f"\nkgpt is {medians['keras_hub'] / medians['kgpt']:.2f} times as fast as keras-hub.")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"arguments": vars(arguments), "measured": measured}, default=str)
        )
    return None


if __name__ == "__main__":
    main()
