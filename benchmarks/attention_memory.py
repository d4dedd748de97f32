"""Peak memory of attention, forward and backward, over the length of the sequence.

    KERAS_BACKEND=tensorflow python benchmarks/attention_memory.py --dropout 0.1

One layer of 6 heads and width 384, batch 1, in a compiled training step; each length is a process
of its own. What is shown is the peak of resident memory above that before the step. `--plain` is
the way that holds all scores at once, for comparison.
"""

import argparse
import os
import resource
import subprocess
import sys

LENGTHS = (512, 1024, 2048, 4096)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--segments", action="store_true", help="documents packed in a window")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(arguments):
    import keras
    import numpy as np

    from kgpt.kernels import attention
    from kgpt.layers import CausalSelfAttention

    if arguments.plain:
        attention.choice = lambda *shape_and_options: "reference"

    def step(length):
        states = keras.Input((None, 384))
        segment_ids = keras.Input((None,), dtype="int32")
        layer = CausalSelfAttention(6, dropout=arguments.dropout)
        used = segment_ids if arguments.segments else None
        model = keras.Model([states, segment_ids], layer(states, segment_ids=used))
        model.compile("sgd", "mse")
        x = np.ones((1, length, 384), "float32")
        model.train_on_batch([x, np.arange(length)[None] // 700], x)

    step(8)  # what the libraries need whatever the length is
    before = peak_mb()
    step(arguments.worker)
    print(peak_mb() - before)


def main():
    arguments = parse_arguments()
    if arguments.worker:
        return work(arguments)
    print(f"backend {os.environ.get('KERAS_BACKEND', 'tensorflow')}, {' '.join(sys.argv[1:])}")
    print("| length | peak, MB |\n|---|---|")
    for length in arguments.lengths:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(length)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(f"| {length} | {float(output.splitlines()[-1]):,.0f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
