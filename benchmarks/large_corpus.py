"""How much memory and time a corpus of 100 GB takes before the first batch.

Makes it as one token file and as 100 files, sparse ones, which take no space on the disk and read
as zeros. For each, in a process of its own: `kgpt.data.windows` with a seed and a random offset,
to the first batch; then anew through `CausalLM.fit` of a tiny model, to the end of the first step.

    KERAS_BACKEND=jax python benchmarks/large_corpus.py

The seconds are those from the call on, without imports, and without the compilation of the step,
which a small file has caused before. The memory is the most that the process had, looked at every
2 ms: on Linux without the pages of files (`RssAnon`), which the system takes back whenever it needs
them; on macOS all that was ever resident.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LENGTH, BATCH = 1024, 8


def main():
    """Measures both ways to keep the corpus, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=10**11, help="size of the corpus")
    parser.add_argument("--files", type=int, default=100, help="in how many files the second time")
    parser.add_argument("--folder", type=Path, help="where to make the files; a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print("| files | tokens | first batch, s | first step of fit, s | memory, MB | of it imports |")
    print("|---|---|---|---|---|---|")
    for count in (1, options.files):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_files(Path(folder), options.bytes, count)
            found = in_own_process(folder)
        print("| {} | {:,} | {:.2f} | {:.2f} | {:.0f} | {:.0f} |".format(count, *found.values()))


def make_files(folder: Path, size: int, count: int):
    """Writes sparse `.npy` files of `size` bytes together, to which no token has been written."""
    import numpy as np

    for number in range(count):
        header = {"descr": "<u2", "fortran_order": False, "shape": (size // count // 2,)}
        with open(folder / f"part-{number:05}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + size // count // 2 * 2)


def in_own_process(folder) -> dict:
    """Returns what `measure` finds in a new process."""
    command = [sys.executable, __file__, "--measure", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path) -> dict:
    """Returns the number of tokens, the seconds and the megabytes."""
    import keras
    import numpy as np

    import kgpt

    options = {"sequence_length": LENGTH, "batch_size": BATCH, "seed": 0, "repeat": True}
    options["random_offset"] = True
    lm = kgpt.CausalLM(kgpt.GPTBackbone(128, 1, 1, 8, max_sequence_length=LENGTH))
    lm.compile("sgd", jit_compile=keras.config.backend() == "jax")
    with tempfile.TemporaryDirectory() as small:  # compiles the step
        np.save(f"{small}/tokens.npy", np.zeros((BATCH + 1) * LENGTH + 1, "uint16"))
        fit(lm, kgpt.data.windows(small, **options))
    with Memory() as memory:
        imports = memory.most
        begun = time.perf_counter()
        train = kgpt.data.windows(folder, **options)
        next(iter(train))
        first_batch = time.perf_counter() - begun

        begun = time.perf_counter()
        first_step = fit(lm, kgpt.data.windows(folder, **options)) - begun
    tokens = train.get_state()["num_tokens"]
    return dict(tokens=tokens, first_batch=first_batch, first_step=first_step,
                memory=memory.most, imports=imports)  # fmt: skip


def fit(lm, data) -> float:
    """Trains for a step; returns when it was done."""
    import keras

    done = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: done.append(time.perf_counter())
    )
    lm.fit(data, steps_per_epoch=1, callbacks=[clock], verbose=0)
    return done[0]


class Memory:
    """Looks at the memory of this process while it is open; `most` is in megabytes."""

    def __init__(self):
        self.most, self._is_open = resident(), True
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._is_open = False
        self._thread.join()

    def _look(self):
        while self._is_open:
            self.most = max(self.most, resident())
            time.sleep(0.002)


def resident() -> float:
    """Returns the megabytes of this process in memory, without pages of files where it is known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


if __name__ == "__main__":
    main()
