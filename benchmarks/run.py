"""kgpt beside its peers and beside what the machine can do, in one run.

    python benchmarks/run.py train generate --backends torch --sizes S
    python benchmarks/run.py tokenize data startup memory --write-readme

Each implementation has a process of its own; between its turns it is idle. They take turns in
rounds, and what is reported are medians and, as ratios, medians of the rounds' ratios. Writes
`results/SET.json` after each case and `results/SET.png` at the end, and prints a table.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import limits
import report

HERE = Path(__file__).resolve().parent
SIZES = {
    "S": dict(layers=6, heads=6, width=384, context=256, batch=12, vocabulary=8192),
    "M": dict(layers=12, heads=12, width=768, context=512, batch=4, vocabulary=40478),
    "tiny": dict(layers=2, heads=2, width=32, context=32, batch=2, vocabulary=256),
}
# Keras's own choice is no compilation on torch and, on a CPU, no XLA on tensorflow.
JIT = {"tensorflow": ["auto", True], "jax": ["auto"], "torch": ["auto", True]}

PEERS = (
    "keras_hub",
    "keras_hub_graph",
    "transformers",
    "transformers_compiled",
    "bare_keras",
    "keras",
    "tokenizers",
)


class Worker:
    """A process of `workers.py`, started and prepared."""

    def __init__(self, spec, backend, verbose=False):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        started = time.time()
        self.process = subprocess.Popen(
            [sys.executable, HERE / "workers.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if verbose else subprocess.DEVNULL,
            text=True,
        )
        self.facts = self.ask(json.dumps({**spec, "started": started}))

    def ask(self, line="measure"):
        """One line there and one back; `{"error": ...}` if it failed."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            return {"error": f"the process ended with {self.process.wait()}"}
        return json.loads(answer)

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


# === Sets: what is compared ===


def case(label, backend, specs, unit="tokens/s", fresh=False, **shared):
    """One comparison: implementations at the same work, `specs` by name or a list of names."""
    specs = specs if isinstance(specs, dict) else {name: {} for name in specs}
    specs = {name: {"implementation": name, **shared, **own} for name, own in specs.items()}
    return {"label": label, "backend": backend, "unit": unit, "fresh": fresh, "specs": specs}


def train(options):
    for size in options.sizes:
        for dtype in options.dtypes or ["float32", "mixed_bfloat16"]:
            for dropout in options.dropouts:
                for backend in options.backends:
                    for jit in JIT[backend][: 1 if options.no_compiled else None]:
                        compiled = ", compiled" if jit is True else ""
                        yield case(
                            f"{size}, {dtype}, dropout {dropout}, {backend}{compiled}",
                            backend,
                            ["kgpt", "keras_hub", "transformers", "transformers_compiled"],
                            task="train",
                            size=SIZES[size],
                            dtype=dtype,
                            dropout=dropout,
                            jit_compile=jit,
                            steps=options.steps,
                        )


def memory(options):
    common = {"unit": "MB", "fresh": True, "task": "memory", "dropout": 0.1}
    for backend in options.backends:
        for dtype in options.dtypes or ["float32"]:
            large = {**SIZES["tiny" if options.quick else "M"], "batch": options.memory_batch}
            label = f"batch {large['batch']} of {large['context']} tokens, {dtype}, {backend}"
            names = ["kgpt", "keras_hub", "transformers"]
            yield case(label, backend, names, size=large, dtype=dtype, **common)
            for context in [32, 64] if options.quick else [512, 1024, 2048, 4096]:
                size = {**SIZES["tiny" if options.quick else "S"], "context": context, "batch": 1}
                label = f"S, batch 1 of {context} tokens, {dtype}, {backend}"
                yield case(label, backend, ["kgpt"], size=size, dtype=dtype, **common)


def generate(options):
    prompt, new_tokens = (4, 8) if options.quick else (32, 200)
    for size in options.sizes:
        for dtype in options.dtypes or ["float32"]:
            for batch in (1, 8):
                for backend in options.backends:
                    yield case(
                        f"{size}, {dtype}, batch {batch}, {backend}",
                        backend,
                        ["kgpt", "kgpt_int8", "keras_hub", "transformers"],
                        task="generate",
                        size={**SIZES[size], "batch": batch},
                        dtype=dtype,
                        prompt=prompt,
                        new_tokens=new_tokens,
                    )


def startup(options):
    size = SIZES["tiny" if options.quick else "S"]
    common = {"unit": "s", "fresh": True, "task": "startup", "size": size, "dtype": "float32"}
    for backend in options.backends:
        names = ["kgpt", "keras", "keras_hub"]
        yield case(f"import, {backend}", backend, names, steps=0, **common)
        names = ["kgpt", "bare_keras", "keras_hub"]
        yield case(f"first training step of S, {backend}", backend, names, steps=1, **common)


def tokenize(options):
    megabytes, vocabulary = (0.05, 400) if options.quick else (4, 8192)
    spec = {"task": "corpus", "folder": options.folder}
    spec.update(megabytes=megabytes, vocabulary=vocabulary)
    made = Worker(spec, options.backends[0], options.verbose)
    made.close()
    if "error" in made.facts:
        raise RuntimeError(made.facts["error"])
    names = ["kgpt", "keras_hub", "keras_hub_graph", "tokenizers"]
    common = {"unit": "MB/s", "task": "tokenize", "folder": options.folder}
    yield case("standard library", options.backends[0], names, **common)


def data(options):
    size = SIZES["tiny" if options.quick else "S"]
    work = {"task": "data", "folder": options.folder}
    work.update({"tokens": 2**16, "batches": 20} if options.quick else {"tokens": 10**8})
    work.setdefault("batches", 2000)
    step = {"task": "train", "implementation": "kgpt", "dtype": "float32", "steps": options.steps}
    for backend in options.backends:
        # Data has to keep up with the compiled step.
        specs = {
            "cold": work,
            "cached": work,
            "training": {**step, "jit_compile": JIT[backend][-1]},
        }
        yield case(f"windows of S, {backend}", backend, specs, size=size)


SETS = {s.__name__: s for s in (train, memory, generate, startup, tokenize, data)}


# === Running ===


def run_case(one, options, look_at_limits):
    """Rows of the table, one for each implementation, with the values of all rounds."""
    rows = {
        name: {"case": one["label"], "implementation": name, "unit": one["unit"], "values": []}
        for name in one["specs"]
        if options.peers is None or name in options.peers or name not in PEERS
    }
    workers = {}

    def open_worker(name):
        worker = Worker(one["specs"][name], one["backend"], options.verbose)
        rows[name]["facts"] = {**rows[name].get("facts", {}), **worker.facts}
        return worker

    try:
        for name in () if one["fresh"] else rows:
            workers[name] = open_worker(name)
        for number in range(options.rounds):
            look_at_limits()
            names = list(rows)
            first = number % len(names)  # another one in each round: the limits come before it
            for name in names[first:] + names[:first]:
                row = rows[name]
                if "error" in row.get("facts", {}):
                    continue
                if one["fresh"]:
                    worker = open_worker(name)
                    worker.close()
                    answer = worker.facts
                else:
                    answer = workers[name].ask()
                row["facts"].update({k: v for k, v in answer.items() if k != "seconds"})
                if "value" in answer:
                    row["values"].append(row["facts"].pop("value"))
                print(f"{one['label']}, {name}: {answer}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    return list(rows.values())


def compare(rows, specs, found):
    """Adds medians, shares of the limit, and how many times as good the first one is."""
    first = rows[0]["values"]
    for row in rows:
        values, spec = row["values"], specs[row["implementation"]]
        if "error" in row["facts"]:
            continue
        row["value"] = statistics.median(values)
        pairs = list(zip(first, values, strict=False))  # none if the first one failed
        lower_is_better = row["unit"] in ("s", "MB")
        ratios = [b / a if lower_is_better else a / b for a, b in pairs if a > 0 and b > 0]
        row["ratios"] = ratios
        row["ratio"] = statistics.median(ratios) if ratios else None
        row["difference"] = statistics.median([a - b for a, b in pairs]) if pairs else None
        limit = limits.limit_of(spec, row["facts"], found)
        row["share_of_limit"] = row["value"] / limit if limit else None


def run_set(name, options):
    found, rows, cases = {}, [], []
    path = Path(options.results) / f"{name}{options.suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    library = "torch" if importlib.util.find_spec("torch") else "jax"
    machine = Worker({"task": "machine", "library": library, "quick": options.quick}, library)

    def look_at_limits():
        for key, value in machine.ask().items():
            if key != "value":
                known = found.get(key, 0)
                found[key] = max(known, value) if isinstance(value, float) else value

    try:
        for one in SETS[name](options):
            cases.append((one, run_case(one, options, look_at_limits)))
            rows = []
            for done, its_rows in cases:  # the limits may have grown
                compare(its_rows, done["specs"], found)
                rows += its_rows
            result = {
                "set": name,
                "command": report.command_line(sys.argv),
                "machine": machine_facts(),
                "limits": found,
                "rounds": options.rounds,
                "rows": rows,
            }
            path.write_text(json.dumps(result, indent=1))
    finally:
        machine.close()
    report.picture(result, path.with_suffix(".png"))
    return result


def machine_facts():
    names = ("kgpt-keras", "keras", "tensorflow", "jax", "torch", "keras-hub", "transformers")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].split(":", 1)[1].strip() if models else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}")
    parser.add_argument("--backends", nargs="+", choices=JIT, default=list(JIT))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["S", "M"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, help="implementations beside kgpt; all if left out"
    )
    parser.add_argument("--no-compiled", action="store_true", help="only Keras's own choice there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps in a round")
    parser.add_argument("--memory-batch", type=int, default=16)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder to write to")
    parser.add_argument("--suffix", default="", help="put after the set's name in file names")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--write-readme", action="store_true", help="put all results' tables there")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args(arguments)
    if set(options.sets) - set(SETS):
        parser.error(f"unknown set in {options.sets}; there are {', '.join(SETS)}")
    if options.quick:
        options.sizes, options.rounds, options.steps = ["tiny"], 1, 1
        options.memory_batch = 2
    return options


def main():
    options = parse_arguments()
    for name in options.sets:
        with tempfile.TemporaryDirectory() as options.folder:
            print(report.markdown(run_set(name, options)), flush=True)
    if options.write_readme:
        report.write_readme(HERE / "README.md", options.results)


if __name__ == "__main__":
    main()
