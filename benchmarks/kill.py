"""Kills a training run again and again: it must end as one that nobody killed, to the bit.

    python benchmarks/kill.py --backend torch

A run has `kgpt.callbacks.ResumableCheckpoint`, LoRA, dropout, gradient accumulation,
`steps_per_execution=4` (1 on PyTorch, where Keras has no other) in epochs of 14 steps, validation,
and `EarlyStopping`. It is started in a process of its own and ended by `kill -9`: half of the times
when some milliseconds have passed, half of the times in the middle of a save, before one of the
times that it opens, renames or removes a file of the checkpoints. Then it is started again. After
the last kill it runs to its end. It is compared with the same run in one piece, and with the same
`fit` without the callback: all weights, the optimizer's and the random states, `History`, and when
it stopped.

    python benchmarks/kill.py --backend torch --saving

measures what saving costs: the seconds of a training step and of a save at GPT-1's size.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS_IN_EPOCH, EPOCHS, BATCH, LENGTH, VOCABULARY = 14, 12, 4, 16, 64
SAVE_FREQ, ACCUMULATION = 5, 3
EXECUTION = {"torch": 1}  # steps_per_execution, 4 on the other backends
PAUSE = 0.03  # seconds after each execution: a tiny model's run would be over too soon
STEPS_BETWEEN_KILLS = 24  # at most, of the kills by the clock
MOST_LINES = 12  # of differences
GPT1 = {"vocabulary_size": 40478, "num_layers": 12, "num_heads": 12, "hidden_dim": 768}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), required=True)
    parser.add_argument("--case", choices=("language_model", "classifier"), nargs="+")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--saving", action="store_true", help="measure what saving costs")
    parser.add_argument("--batch-size", type=int, default=4, help="of --saving")
    parser.add_argument("--sequence-length", type=int, default=512, help="of --saving")
    parser.add_argument("--save-freq", type=int, default=100, help="what --saving is a share of")
    parser.add_argument("--keep", type=Path, help="folder for what is left of the runs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without-callback", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file-events", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


# === In a process of its own: one run ===


def train(options):
    """Trains as far as it comes, and writes down what has come of it."""
    import keras

    import kgpt

    folder = options.worker
    if options.file_events is not None:
        sys.addaudithook(DieInFiles(folder / "checkpoints", options.file_events))
    keras.utils.set_random_seed(0)
    model, data, validation = make_run(options.case[0], folder)
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        make_pauses(keras),
    ]
    if not options.without_callback:
        checkpoint = kgpt.callbacks.ResumableCheckpoint(folder / "checkpoints", SAVE_FREQ)
        callbacks.append(checkpoint)
    fit = {"epochs": EPOCHS, "validation_data": validation, "verbose": 0}
    history = model.fit(data, callbacks=callbacks, **fit)
    kept = {f"model {v.path}": keras.ops.convert_to_numpy(v) for v in model.variables}
    for variable in model.optimizer.variables:
        kept[f"optimizer {variable.path}"] = keras.ops.convert_to_numpy(variable)
    np.savez(folder / "variables.npz", **kept)
    stop = callbacks[0]
    told = {
        "history": {name: list(map(float, values)) for name, values in history.history.items()},
        "epochs": list(map(int, history.epoch)),
        "stop": [int(stop.stopped_epoch), int(stop.best_epoch), float(stop.best)],
    }
    (folder / "told.json").write_text(json.dumps(told))


def make_run(case, folder):
    """Returns a compiled model, its data, and those for validation."""
    import keras

    import kgpt

    rng = np.random.default_rng(0)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "dropout": 0.1}
    backbone = kgpt.GPTBackbone(VOCABULARY, max_sequence_length=32, **sizes)
    examples = STEPS_IN_EPOCH * BATCH
    if case == "language_model":
        model = kgpt.CausalLM(backbone)
        files = {"train": examples, "valid": 2 * BATCH}
        for name, windows in files.items():
            tokens = rng.integers(VOCABULARY // 4, size=windows * LENGTH + 1).astype("uint16")
            np.save(folder / f"{name}.npy", tokens)
        train, valid = (
            kgpt.data.windows(folder / f"{name}.npy", LENGTH, BATCH, seed=seed)
            for name, seed in (("train", 0), ("valid", None))
        )
    else:
        letters = "abcdefgh"
        tokenizer = kgpt.Tokenizer.train([letters], vocabulary_size=260).with_special_tokens()
        backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)
        model = kgpt.TextClassifier(backbone, num_classes=2, tokenizer=tokenizer, dropout=0.1)
        texts = ["".join(rng.choice(list(letters), rng.integers(3, 30))) for _ in range(examples)]
        labels = rng.integers(2, size=examples)
        batches = {"batch_size": BATCH, "sequence_length": 32}
        train = kgpt.data.classification(texts, labels, tokenizer, seed=0, **batches)
        held_out = texts[: 2 * BATCH], 1 - labels[: 2 * BATCH]
        valid = kgpt.data.classification(*held_out, tokenizer, **batches)
    backbone.enable_lora(2)
    optimizer = keras.optimizers.Adam(0.003, gradient_accumulation_steps=ACCUMULATION)
    model.compile(optimizer, steps_per_execution=EXECUTION.get(keras.backend.backend(), 4))
    return model, train, valid


def make_pauses(keras):
    class Pauses(keras.callbacks.Callback):
        """Tells the script when training begins, and takes its time."""

        def on_train_batch_end(self, batch, logs=None):
            print("trained", batch, flush=True)
            time.sleep(PAUSE)

    return Pauses()


class DieInFiles:
    """An audit hook that kills its own process when it is about to change a file for the nth time.

    Args:
        folder: path of the folder whose files count.
        left: int. How many changes are let through.
    """

    EVENTS = "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"

    def __init__(self, folder, left):
        self.folder, self.left = str(folder), left

    def __call__(self, event, arguments):
        if event not in self.EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if reads or str(arguments[0]).endswith(".lock"):
            return
        if self.left == 0:
            os.write(1, f"killed {event} {Path(str(arguments[0])).name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


# === Kills ===


def start(options, case, folder, *arguments):
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--backend", options.backend, "--case", case]
    environment = {
        **os.environ,
        "KERAS_BACKEND": options.backend,
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with (folder / "errors.txt").open("a") as errors:
        return subprocess.Popen(
            [*command, "--worker", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )


def kill_once(options, case, folder, rng, in_files):
    """Starts the run and kills it; returns what is known of that, or None if it has ended."""
    arguments = ["--file-events", str(rng.randrange(30))] if in_files else []
    began = time.monotonic()
    process = start(options, case, folder, *arguments)
    if not in_files:
        most = STEPS_BETWEEN_KILLS // EXECUTION.get(options.backend, 4)
        executions = 0 if rng.random() < 0.2 else rng.randrange(1, most)
        lines = [process.stdout.readline() for _ in range(executions)]
        # With no execution to wait for: while the run starts or resumes.
        time.sleep(rng.uniform(0, 2 * PAUSE) if executions else rng.uniform(0, 8))
        process.kill()
        lines += process.stdout.readlines()
    else:
        lines = process.stdout.readlines()
    status = process.wait()
    if status == 0:
        return None
    trained = sum(line.startswith("trained") for line in lines)
    resumed = [line.strip() for line in lines if line.startswith("Resuming")]
    how = next((x.removeprefix("killed ").strip() for x in lines if x.startswith("killed")), "")
    return {
        "status": status,
        "resumed": resumed[0].rsplit(": ", 1)[-1] if resumed else "",
        "executions": trained,
        "killed": f"before {how}" if how else f"after {time.monotonic() - began:.1f} s",
        "left": sorted(path.name for path in (folder / "checkpoints").glob("*")),
    }


def kill_and_compare(options, case, folder):
    """Prints a table of the kills, and what differs at the end; returns whether nothing does."""
    references = {"in one piece": [], "without the callback": ["--without-callback"]}
    for name, arguments in references.items():
        process = start(options, case, folder / name, *arguments)
        process.communicate()
        if process.returncode:
            sys.exit(f"The run {name} failed: see {folder / name / 'errors.txt'}.")
    rng, run = random.Random(options.seed), folder / "killed"
    print(f"\n{case}, {options.backend}\n")
    print(
        "| kill | goes on from | executions | killed | left in the folder |\n|---|---|---|---|---|"
    )
    for number in range(options.kills):
        kill = kill_once(options, case, run, rng, in_files=number % 2 == 1)
        if kill is None:
            print(f"| {number + 1} | | | came to its end | |", flush=True)
            continue
        left = ", ".join(kill["left"])
        cells = number + 1, kill["resumed"], kill["executions"], kill["killed"], left
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if kill["status"] != -signal.SIGKILL:
            sys.exit(f"The run ended with status {kill['status']}: see {run / 'errors.txt'}.")
    process = start(options, case, run)
    process.communicate()
    if process.returncode:
        sys.exit(f"The last run failed: see {run / 'errors.txt'}.")
    found = {name: differences(run, folder / name) for name in references}
    told = json.loads((run / "told.json").read_text())
    print(f"\nIt ended after {len(told['epochs'])} epochs of at most {EPOCHS}.")
    for name, lines in found.items():
        print(f"Against the run {name}: {'the same to the bit' if not lines else ''}")
        for line in lines[:MOST_LINES]:
            print(f"- {line}")
        if len(lines) > MOST_LINES:
            print(f"- and {len(lines) - MOST_LINES} more")
    return not any(found.values())


def differences(run, other):
    """Returns a line for each thing in which two finished runs differ."""
    a, b = (json.loads((folder / "told.json").read_text()) for folder in (run, other))
    lines = [f"{key}: {a[key]}, not {b[key]}" for key in ("epochs", "stop") if a[key] != b[key]]
    for name in sorted(set(a["history"]) | set(b["history"])):
        if a["history"].get(name) != b["history"].get(name):
            lines.append(f"History, {name}: {a['history'].get(name)}, not {b['history'].get(name)}")
    with np.load(run / "variables.npz") as a, np.load(other / "variables.npz") as b:
        lines += [f"{name}: in one run only" for name in sorted(set(a.files) ^ set(b.files))]
        for name in a.files:
            if name in b.files and not np.array_equal(a[name], b[name], equal_nan=True):
                largest = np.abs(a[name].astype("float64") - b[name]).max()
                lines.append(f"{name}: differs by up to {largest:.3g}")
    return lines


# === What saving costs ===


def measure_saving(options, folder):
    """Prints the seconds of a step and of a save at GPT-1's size, and the share of the latter."""
    import keras

    import kgpt

    length, batch_size, steps = options.sequence_length, options.batch_size, 9
    tokens = np.random.default_rng(0).integers(GPT1["vocabulary_size"], size=length * 64 + 1)
    np.save(folder / "train.npy", tokens.astype("uint16"))
    backbone = kgpt.GPTBackbone(**GPT1, max_sequence_length=512, norm_first=False)
    lm = kgpt.CausalLM(backbone)
    lm.compile()
    begins, ends = [], []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            begins.append(time.monotonic())

        def on_train_batch_end(self, batch, logs=None):
            ends.append(time.monotonic())

    data = kgpt.data.windows(folder / "train.npy", length, batch_size, seed=0, repeat=True)
    checkpoint = kgpt.callbacks.ResumableCheckpoint(folder / "checkpoints", save_freq=3)
    lm.fit(data, steps_per_epoch=steps, callbacks=[Clock(), checkpoint], verbose=0)
    # From one beginning to the next. After steps 3 and 6 training waits until a copy is in memory;
    # during the steps after them the copy is written.
    took = [later - begin for begin, later in itertools.pairwise(begins)]
    waits = [begins[i] - ends[i - 1] for i in (3, 6)]
    step = statistics.median(took[i] for i in (1, 4, 7))
    beside = [took[i] - step for i in (3, 6)]
    cost = statistics.mean(
        max(0.0, wait + slower) for wait, slower in zip(waits, beside, strict=True)
    )
    kept = [path for path in (folder / "checkpoints").glob("*") if path.is_dir()]
    size = sum(path.stat().st_size for path in kept[0].iterdir())
    share = cost / (options.save_freq * step + cost)
    print(f"\n{lm.count_params() / 1e6:.0f} M parameters, {batch_size} x {length} tokens a step")
    print(f"seconds of a step: {step:.2f} (median of 3; all: {[round(x, 2) for x in took]})")
    print(f"seconds that a save stops training: {', '.join(f'{wait:.2f}' for wait in waits)}")
    print(f"seconds more of the step beside it: {', '.join(f'{x:.2f}' for x in beside)}")
    print(f"size of a checkpoint: {size / 1e6:,.0f} MB")
    print(f"share of the time with save_freq={options.save_freq}: {share:.2%}")


def main():
    options = parse_arguments()
    os.environ["KERAS_BACKEND"] = options.backend
    if options.worker is not None:
        train(options)
        return
    folder = options.keep or Path(tempfile.mkdtemp(prefix="kgpt-kill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if options.saving:
            measure_saving(options, folder)
            return
        cases = options.case or ["language_model", "classifier"]
        ended = [kill_and_compare(options, case, folder / case) for case in cases]
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(not all(ended))


if __name__ == "__main__":
    main()
