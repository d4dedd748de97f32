"""Tokens and time until a validation loss is reached: recipes and block options, one by one.

    KERAS_BACKEND=tensorflow python benchmarks/time_to_quality.py tinyshakespeare.txt

The work is nanoGPT's small run on tiny Shakespeare's characters: 4 layers, 4 heads, width 128,
context 64, batches of 12. AdamW has 2000 steps for it, Muon a third of them. Each run is a process
of its own; transformers' GPT-2 of the same size, on PyTorch with AdamW, is one of them. The whole
held-out tenth is evaluated 10 times in a run; where the target falls between two evaluations, the
tokens are interpolated. Times are those of training steps, compilation included, evaluation not.

Runs that are in the JSON file are not repeated: started again, the script goes on where it stopped.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CONTEXT, BATCH = 64, 12
SIZES = {"num_layers": 4, "num_heads": 4, "hidden_dim": 128}
ADAMW_STEPS, MUON_STEPS, EVALUATIONS = 2000, 667, 10

BLOCK_OPTIONS = {
    "query-key norm": {"query_key_norm": True},
    "rotary positions": {"rotary_positions": True},
    "squared ReLU": {"activation": "relu_squared"},
    "zero-initialised residual": {"zero_init_residual": True},
}
ALL_OPTIONS = {name: value for options in BLOCK_OPTIONS.values() for name, value in options.items()}
RECIPE = {name: value for name, value in ALL_OPTIONS.items() if name != "activation"}

# name: optimizer, options of the backbone
VARIANTS = {
    "AdamW": ("adamw", {}),
    "Muon": ("muon", {}),
    **{f"Muon, {name}": ("muon", options) for name, options in BLOCK_OPTIONS.items()},
    "Muon, all four": ("muon", ALL_OPTIONS),
    "Muon, all but squared ReLU": ("muon", RECIPE),
    "transformers, AdamW": ("transformers", {}),
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--target", type=float, default=1.88, help="validation loss, nats")
    parser.add_argument("--json", type=Path, default=Path("runs/time_to_quality.json"))
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_characters(path):
    """The text as ids of its characters: the first nine tenths, the rest, how many there are."""
    text = np.array(list(path.read_text(encoding="utf-8")))
    characters, ids = np.unique(text, return_inverse=True)
    split = len(ids) * 9 // 10
    return ids[:split].astype("int32"), ids[split:].astype("int32"), len(characters)


def random_batches(ids, count, seed):
    """Inputs and targets `(count, batch, context)`, windows from anywhere."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - CONTEXT, (count, BATCH, 1))
    windows = ids[starts + np.arange(CONTEXT + 1)]
    return windows[..., :-1], windows[..., 1:]


def all_windows(ids):
    """Inputs and targets `(windows, context)`, each id a target once."""
    count = (len(ids) - 1) // CONTEXT
    x = ids[: count * CONTEXT].reshape(count, CONTEXT)
    return x, ids[1 : count * CONTEXT + 1].reshape(count, CONTEXT)


# === One run: evaluate(), and train(batches) in between ===


def keras_run(variant, seed, vocabulary_size, valid):
    import keras

    import kgpt

    optimizer, options = VARIANTS[variant]
    keras.utils.set_random_seed(seed)
    backbone = kgpt.GPTBackbone(
        vocabulary_size, **SIZES, max_sequence_length=CONTEXT, dropout=0.0, **options
    )
    lm = kgpt.CausalLM(backbone)
    if optimizer == "muon":
        lm.compile(kgpt.recipes.fast_optimizer(MUON_STEPS))
    else:
        lm.compile(
            kgpt.recipes.pretraining_optimizer(
                ADAMW_STEPS,
                learning_rate=1e-3,
                final_learning_rate=1e-4,
                warmup_steps=100,
                weight_decay=0.1,
                beta_2=0.99,
            )
        )

    def train(x, y):
        x, y = (part.reshape(-1, CONTEXT) for part in (x, y))
        lm.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    def evaluate():
        return lm.evaluate(*valid, batch_size=64, verbose=0, return_dict=True)["loss"]

    return train, evaluate


def transformers_run(variant, seed, vocabulary_size, valid):
    import math

    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=CONTEXT,
        n_embd=SIZES["hidden_dim"],
        n_layer=SIZES["num_layers"],
        n_head=SIZES["num_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))

    def share_of_rate(step, warmup=100):
        if step < warmup:
            return step / warmup
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (ADAMW_STEPS - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate)

    def loss_of(x, y):
        logits = model(input_ids=torch.tensor(x).long()).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(y).long().flatten()
        )

    def train(x, y):
        for inputs, targets in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss_of(inputs, targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def evaluate():
        x, y = valid
        sums = [
            float(loss_of(x[i : i + 64], y[i : i + 64])) * len(x[i : i + 64])
            for i in range(0, len(x), 64)
        ]
        return sum(sums) / len(x)

    return train, evaluate


def work(arguments):
    """Trains one variant with one seed, and prints the curve."""
    variant, seed = arguments.worker, arguments.seeds[0]
    train_ids, valid_ids, vocabulary_size = read_characters(arguments.text)
    make_run = transformers_run if variant.startswith("transformers") else keras_run
    train, evaluate = make_run(variant, seed, vocabulary_size, all_windows(valid_ids))
    steps = MUON_STEPS if VARIANTS[variant][0] == "muon" else ADAMW_STEPS
    x, y = random_batches(train_ids, steps, seed)
    ends = [round(steps * part / EVALUATIONS) for part in range(EVALUATIONS + 1)]
    curve, seconds = [], 0.0
    for start, end in itertools.pairwise(ends):
        began = time.perf_counter()
        train(x[start:end], y[start:end])
        seconds += time.perf_counter() - began
        curve.append({"tokens": end * BATCH * CONTEXT, "seconds": seconds, "loss": evaluate()})
    print(json.dumps(curve))


# === The table ===


def reached(curve, target, key):
    """Tokens or seconds at which the loss came to the target; None if it did not."""
    for before, after in itertools.pairwise(curve):
        if after["loss"] <= target:
            part = (before["loss"] - target) / (before["loss"] - after["loss"])
            return before[key] + max(0.0, part) * (after[key] - before[key])
    return None


def row(name, curves, target):
    cells = [f"{statistics.mean(curve[-1]['loss'] for curve in curves):.4f}"]
    cells += [f"{curves[0][-1]['tokens']:,}"]
    for key in ("tokens", "seconds"):
        values = [reached(curve, target, key) for curve in curves]
        if None in values:
            cells.append(f"not reached by {values.count(None)} of {len(values)}")
            continue
        spread = f" ± {statistics.stdev(values):,.0f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):,.0f}{spread}")
    return f"| {name} | {len(curves)} | {' | '.join(cells)} |"


def table(results, target):
    lines = [
        f"| run | seeds | final loss | tokens in all | tokens to {target} | seconds to {target} |",
        "|---|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        curves = [curve for key, curve in results.items() if key.rsplit("/", 1)[0] == name]
        if curves:
            lines.append(row(name, curves, target))
    return "\n".join(lines)


def main():
    arguments = parse_arguments()
    if arguments.worker:
        return work(arguments)
    file = arguments.json
    file.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text()) if file.exists() else {}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            key = f"{variant}/{seed}"
            if key in results:
                continue
            command = [sys.executable, __file__, str(arguments.text)]
            command += ["--worker", variant, "--seeds", str(seed)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[key] = json.loads(output.splitlines()[-1])
            file.write_text(json.dumps(results, indent=1))
            print(f"{key}: loss {results[key][-1]['loss']:.4f}", file=sys.stderr)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    report = f"Backend {backend}.\n\n{table(results, arguments.target)}\n"
    file.with_suffix(".md").write_text(report)
    print(report)
    return None


if __name__ == "__main__":
    main()
