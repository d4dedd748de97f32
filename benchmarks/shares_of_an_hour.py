"""What an hour of pretraining goes to: steps, and all that is not steps.

    python benchmarks/shares_of_an_hour.py
    python benchmarks/shares_of_an_hour.py --options="--preset gpt_mini --dtype mixed_bfloat16"

Runs `examples/pretrain.py` for some steps, takes the time of each part of it, and computes from
them an hour's run with `--epochs` validations, checkpoints and samples: what happens once, such as
compiling, is counted once, what belongs to an epoch as often as there are epochs, and steps fill
the rest. A part of more than 3% that is not steps is one to mend.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from first_command import load_example

HOUR = 3600.0
OF_AN_EPOCH = ("validation", "checkpoint", "sample")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=90, help="of the run that is timed")
    parser.add_argument("--epochs", type=int, default=12, help="of the hour")
    parser.add_argument("--options", default="", help="further options of examples/pretrain.py")
    parser.add_argument("--json", type=Path, help="file for the times")
    return parser.parse_args()


class Clock:
    """The seconds of each part of a run, one for each time that it happened."""

    def __init__(self):
        self.seconds, self._is_running = {}, False

    def add(self, part, seconds):
        self.seconds.setdefault(part, []).append(seconds)

    def watch(self, owner, name, part):
        """Takes the time of a function whenever it is called, except within another part."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            if self._is_running:
                return function(*args, **kwargs)
            self._is_running, began = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._is_running = False
                self.add(part, time.perf_counter() - began)

        setattr(owner, name, timed)

    def watch_fit(self, model):
        """Takes the time of `fit` as a whole, and that of each of its steps."""
        import keras

        fit, began = model.fit, []

        def begin(batch, logs=None):
            began.append(time.perf_counter())

        def end(batch, logs=None):
            self.add("step", time.perf_counter() - began[-1])

        def timed(*args, callbacks, **kwargs):
            steps = keras.callbacks.LambdaCallback(
                on_train_batch_begin=begin, on_train_batch_end=end
            )
            start = time.perf_counter()
            fit(*args, callbacks=[*callbacks, steps], **{**kwargs, "verbose": 2})
            self.add("fit", time.perf_counter() - start)

        return timed


def times_of_a_run(arguments):
    """Runs the example, and returns {part: seconds, each time}."""
    clock = Clock()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments.output = Path(folder)
        arguments.options += f" --steps {arguments.steps} --epochs 3"
        example, options = load_example(arguments)
        clock.add("import", time.perf_counter() - began)
        import kgpt

        clock.watch(example, "make_tokens", "tokenizer and tokens")
        clock.watch(example, "make_model", "model")
        clock.watch(example, "evaluate", "score and sample at the end")
        clock.watch(kgpt.CausalLM, "save", "saved model")
        clock.watch(kgpt.CausalLM, "evaluate", "validation")
        clock.watch(kgpt.CausalLM, "generate", "score and sample at the end")
        clock.watch(kgpt.callbacks.ResumableCheckpoint, "on_epoch_end", "checkpoint")
        clock.watch(kgpt.callbacks.GenerateSamples, "on_epoch_end", "sample")
        make_model = example.make_model

        def make_watched(*args):
            lm = make_model(*args)
            lm.fit = clock.watch_fit(lm)
            return lm

        example.make_model = make_watched
        example.main()
        clock.add("data", seconds_of_a_batch(example, options))
    return clock.seconds


def seconds_of_a_batch(example, options, count=50):
    """How long a batch takes to come, which is a part of a step."""
    import numpy as np

    import kgpt

    tokenizer = kgpt.Tokenizer.from_file(options.output / "tokenizer.json")
    files = type("Files", (), {})
    files.path, files.validation_path = (
        options.output / f"tokens{part}.npy" for part in ("", ".validation")
    )
    batches = iter(example.make_batches(options, tokenizer, files)[0])
    next(batches)
    began = time.perf_counter()
    for _ in range(count):
        np.asarray(next(batches)[1])
    return (time.perf_counter() - began) / count


def hour_of(times, epochs):
    """{part: seconds of an hour}, from the times of a shorter run."""
    step = statistics.median(times["step"])
    inside = [sum(times[part]) for part in ("step", *OF_AN_EPOCH)]
    parts = {
        "import": times["import"][0],
        "tokenizer and tokens": sum(times["tokenizer and tokens"]),
        "model": sum(times["model"]),
        "first step, beyond a step": times["step"][0] - step,
        "beginning and end of fit": times["fit"][0] - sum(inside),
    }
    for part in OF_AN_EPOCH:
        first, *later = times[part]
        parts[f"{part}, the first"] = first
        parts[f"{part}, {epochs - 1} more"] = (epochs - 1) * statistics.median(later)
    parts["saved model"] = sum(times["saved model"])
    parts["score and sample at the end"] = sum(times["score and sample at the end"])
    left = HOUR - sum(parts.values())
    parts["steps, waiting for data"] = left * times["data"][0] / step
    parts["steps"] = left - parts["steps, waiting for data"]
    return parts


def main():
    arguments = parse_arguments()
    times = times_of_a_run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=1))
    parts = hour_of(times, arguments.epochs)
    print(f"\nA step takes {statistics.median(times['step']):.3f} s.\n")
    print("| part of an hour | s | share |\n|---|---|---|")
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"| {name} | {seconds:.1f} | {seconds / HOUR:.2%} |")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
