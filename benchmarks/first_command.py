"""The first command beside a transformers GPT-2 of the same sizes, trained for the same time.

    python benchmarks/first_command.py

Trains the model of `examples/pretrain.py` on its stories with its recipe, then transformers' GPT-2
of the same layers, heads, width, context and vocabulary, on PyTorch, in a plain loop with AdamW on
the same batches of packed stories, for the same processor time: both clocks
start with the first batch, compilation included. The peer has a cosine over that time, weight decay
0.1 on matrices, gradients clipped at 1, and several peak learning rates, of which the best counts.
Both are evaluated on the same windows of stories that were held out, in bits per byte; the first
token of a story, which nothing foretells, is left out.

Each run is a process of its own, in turns: kgpt, then the peer with each rate, and again with the
next seed. Processor time is of all threads, so that a busy machine changes little.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pretrain.py"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/first_command"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 3e-3])
    parser.add_argument("--options", default="", help="further options of examples/pretrain.py")
    parser.add_argument("--worker", choices=["kgpt", "transformers"], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def load_example(arguments):
    """The example as a module, and its arguments."""
    spec = importlib.util.spec_from_file_location("pretrain", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    sys.argv = ["pretrain.py", "--output", str(arguments.output), *arguments.options.split()]
    return example, example.parse_arguments()


def kgpt_run(arguments):
    import keras

    example, options = load_example(arguments)
    tokenizer, tokens = example.make_tokens(options)
    keras.utils.set_random_seed(arguments.seeds[0])
    train, valid = example.make_batches(options, tokenizer, tokens)
    lm = example.make_model(options, tokenizer)
    began, began_wall = time.process_time(), time.perf_counter()
    lm.fit(train, steps_per_epoch=options.steps, verbose=0)
    seconds, wall = time.process_time() - began, time.perf_counter() - began_wall
    _, bits = example.evaluate(lm, valid, options, tokenizer, tokens)
    return {"steps": options.steps, "seconds": seconds, "wall": wall, "bits": bits}


def transformers_model(options, tokenizer):
    import transformers

    import kgpt

    sizes = kgpt.GPTBackbone.from_preset(options.preset, load_weights=False).get_config()
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocabulary_size,
        n_positions=options.sequence_length,
        n_embd=sizes["hidden_dim"],
        n_layer=sizes["num_layers"],
        n_head=sizes["num_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


class Peer:
    """What `evaluate` of the example asks a language model for."""

    def __init__(self, model):
        self.model = model

    def losses(self, x, y):
        import torch

        logits = self.model(input_ids=torch.from_numpy(x).long()).logits
        y = torch.from_numpy(y).long()
        return torch.nn.functional.cross_entropy(logits.mT, y, reduction="none")

    def evaluate(self, batches, steps, **_):
        import torch

        total = count = 0.0
        with torch.no_grad():
            for x, y, weights in itertools.islice(batches, steps):
                total += float((self.losses(x["token_ids"], y) * torch.from_numpy(weights)).sum())
                count += weights.sum()
        return {"loss": total / count, "perplexity": math.exp(total / count)}


def transformers_run(arguments):
    import torch

    example, options = load_example(arguments)
    tokenizer, tokens = example.make_tokens(options)
    train, valid = example.make_batches(options, tokenizer, tokens)
    torch.manual_seed(arguments.seeds[0])
    model = transformers_model(options, tokenizer)
    peer = Peer(model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    began, steps = time.process_time(), 0
    for x, y, _ in train:
        share = (time.process_time() - began) / arguments.seconds
        if share >= 1:
            break
        rate = arguments.rates[0] * min(1, share / 0.05) * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        peer.losses(x["token_ids"], y).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    seconds = time.process_time() - began
    _, bits = example.evaluate(peer, valid, options, tokenizer, tokens)
    return {"steps": steps, "seconds": seconds, "bits": bits}


def start(arguments, worker, seed, rate=0.0, seconds=0.0):
    """Runs a worker in a process of its own."""
    command = [sys.executable, __file__, "--worker", worker, "--output", str(arguments.output)]
    command += ["--seeds", str(seed), "--rates", str(rate), "--seconds", str(seconds)]
    command += [f"--options={arguments.options}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(output.splitlines()[-1])
    print(worker, f"rate {rate}" * bool(rate), f"seed {seed}: {result}", file=sys.stderr)
    return result


def main():
    arguments = parse_arguments()
    if arguments.worker:
        run = kgpt_run if arguments.worker == "kgpt" else transformers_run
        print(json.dumps(run(arguments)))
        return
    ours, peers = [], {rate: [] for rate in arguments.rates}
    for seed in arguments.seeds:
        ours.append(start(arguments, "kgpt", seed))
        for rate, runs in peers.items():
            runs.append(start(arguments, "transformers", seed, rate, ours[-1]["seconds"]))
    rows = {f"kgpt on {os.environ.get('KERAS_BACKEND', 'tensorflow')}": ours}
    rows |= {f"transformers, AdamW at {rate}": runs for rate, runs in peers.items()}
    print("| run | bits per byte | steps | processor time, s |\n|---|---|---|---|")
    for name, runs in rows.items():
        bits = ", ".join(f"{run['bits']:.3f}" for run in runs)
        steps, seconds = (statistics.mean(run[key] for run in runs) for key in ("steps", "seconds"))
        print(f"| {name} | {bits} | {steps:,.0f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
