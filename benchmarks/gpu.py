"""How well kgpt uses an accelerator, beside its peers: training, generation and fine-tuning.

    KERAS_BACKEND=jax python benchmarks/gpu.py    # or torch; nothing comes from the network
    KERAS_BACKEND=jax python benchmarks/gpu.py --cpu-test

GPT-2's shapes at context 1024. Training and fine-tuning are measured with the default dropout of
0.1, with `attention_dropout=0` beside it, and without dropout; the table says which attention
kgpt computes there: fused (the backend's kernel), tiled or reference. `kgpt` has its own loss,
which never holds all logits, `kgpt_full_logits` and keras-hub have Keras's; transformers (on torch
alone) trains in a plain loop under autocast, with and without torch.compile. Memory is the device's
peak. The limit of training and fine-tuning is the matrix-product rate measured in the same run in
bfloat16 (so the share is MFU), that of generation the memory bandwidth. A case that does not fit is
tried with half the batch. Writes `results/gpu.json` and `results/gpu.png`, and prints a table.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import report
import run

GPT2 = {"context": 1024, "vocabulary": 50257}
SIZES = {  # with the batch for training on 80 GB
    "gpt2": {**GPT2, "layers": 12, "heads": 12, "width": 768, "batch": 32},
    "gpt2_medium": {**GPT2, "layers": 24, "heads": 16, "width": 1024, "batch": 16},
    "gpt2_xl": {**GPT2, "layers": 48, "heads": 25, "width": 1600, "batch": 4},
}
DROPOUTS = {  # the default first
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.1, attention_dropout 0": {"dropout": 0.1, "attention_dropout": 0.0},
    "no dropout": {"dropout": 0.0},
}
OUT_OF_MEMORY = ("resource_exhausted", "out of memory", "outofmemory")


def make_cases(options):
    """`(label, unit, spec)` of all that is measured, the cheapest first."""
    tiny = options.cpu_test
    sizes = {"tiny": run.SIZES["tiny"]} if tiny else {name: SIZES[name] for name in options.sizes}
    prompt, new_tokens = (4, 8) if tiny else (32, 200)
    mixed = {"dtype": "mixed_bfloat16", "jit_compile": True if options.jit_compile else "auto"}
    for name, size in sizes.items():
        for words, dropout in DROPOUTS.items():
            for implementation in ("kgpt", "kgpt_full_logits", "keras_hub", *options.peers):
                if not implementation.startswith("kgpt") and "attention_dropout" in dropout:
                    continue  # it has one rate for all
                spec = {"task": "train", "implementation": implementation, "size": size, **mixed}
                spec.update(steps=options.steps, **dropout)
                yield f"{name}, training, {words}", "tokens/s", spec
        for batch in (1, 8) if tiny else (1, 8, 64):
            for implementation in ("kgpt", "keras_hub"):
                spec = {"task": "generate", "implementation": implementation}
                spec.update(dtype=options.generation_dtype, size={**size, "batch": batch})
                spec.update(prompt=prompt, new_tokens=new_tokens)
                yield f"{name}, generation of {batch}", "tokens/s", spec
    name, size = next(iter(sizes.items()))
    for words, dropout in DROPOUTS.items():
        spec = {"task": "classify", "implementation": "kgpt", "size": size, "steps": options.steps}
        spec.update(length=min(512, size["context"]), **mixed, **dropout)
        yield f"{name}, fine-tuning a classifier, {words}", "examples/s", spec


def measure(label, unit, spec, backend, options):
    """The row of one case, in as large a batch as fits."""
    while True:
        worker = run.Worker(spec, backend, options.verbose)
        answers = [worker.facts]
        for _ in range(options.rounds):
            answers.append(worker.ask() if "error" not in answers[-1] else answers[-1])
        worker.close()
        print(f"{label}, {spec['implementation']}: {answers[-1]}", file=sys.stderr)
        error = answers[-1].get("error", "").lower()
        batch = spec["size"]["batch"]
        if batch == 1 or not any(words in error for words in OUT_OF_MEMORY):
            break
        spec = {**spec, "size": {**spec["size"], "batch": batch // 2}}
    facts = {key: value for answer in answers for key, value in answer.items() if key != "seconds"}
    facts.pop("value", None)
    values = [answer["value"] for answer in answers if "value" in answer]
    row = {"case": label, "implementation": spec["implementation"], "unit": unit, "spec": spec}
    return {**row, "values": values if not error else [], "facts": {**facts, "batch": batch}}


def look_at_limits(backend, options):
    spec = {"task": "machine", "library": backend, "quick": options.cpu_test}
    worker = run.Worker(spec, backend, options.verbose)
    found = worker.ask()
    worker.close()
    return found


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--cases", nargs="+", default=[""], help="words of the cases to measure")
    parser.add_argument("--implementations", nargs="+", help="which to measure; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="training steps in a round")
    parser.add_argument("--generation-dtype", default="bfloat16")
    parser.add_argument("--jit-compile", action="store_true", help="on torch, compile the step")
    parser.add_argument("--results", type=Path, default=run.HERE / "results")
    parser.add_argument("--cpu-test", action="store_true", help="tiny shapes, without a device")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    options = parser.parse_args()
    if options.cpu_test:
        options.rounds, options.steps = 1, 1
    return options


def main():
    options = parse_arguments()
    backend = os.environ.get("KERAS_BACKEND", "jax")
    if backend not in ("jax", "torch"):
        sys.exit(f"Only jax and torch are measured here. Received: KERAS_BACKEND={backend}.")
    found = look_at_limits(backend, options)
    if "error" in found:
        sys.exit(f"{backend} does not run here: {found['error']}")
    if found["device"] == "cpu" and not options.cpu_test:
        sys.exit(
            f"{backend} sees no accelerator. Install its build for the device, or try --cpu-test, "
            "which runs tiny shapes to see that everything works."
        )
    path = options.results / "gpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    has_peers = backend == "torch" and not options.cpu_test  # compiling them takes a minute
    options.peers = ("transformers", "transformers_compiled") if has_peers else ()
    for label, unit, spec in make_cases(options):
        if not any(words in label for words in options.cases):
            continue
        if options.implementations and spec["implementation"] not in options.implementations:
            continue
        row = measure(label, unit, spec, backend, options)
        rows.append(row)
        alike = [one for one in rows if one["case"] == label]
        run.compare(alike, {one["implementation"]: one["spec"] for one in alike}, found)
        result = {
            "set": "gpu",
            "command": f"KERAS_BACKEND={backend} {report.command_line(sys.argv)}",
            "machine": {**run.machine_facts(), "device": found["device"]},
            "limits": found,
            "rounds": options.rounds,
            "rows": rows,
        }
        path.write_text(json.dumps(result, indent=1))
    report.picture(result, path.with_suffix(".png"))
    print(report.markdown(result))


if __name__ == "__main__":
    main()
