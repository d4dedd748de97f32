"""What Muon costs: a training step beside the same model's with AdamW.

    KERAS_BACKEND=tensorflow python benchmarks/muon.py

The model is S (6 layers, width 384, context 256, batch 12) with the options of the fast recipe, in
bfloat16. The optimizers take turns, some steps each, in one process; the table has medians, and the
ratio within each round. Processor time is of all threads, so that a busy machine changes little.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt

OPTIONS = {"query_key_norm": True, "rotary_positions": True, "zero_init_residual": True}


def muon_of_keras():
    """Keras's Muon with the recipe's options: its iteration is in float32."""
    own = kgpt.recipes.fast_optimizer(1000).get_config()
    own.pop("is_legacy_optimizer", None)
    return keras.optimizers.Muon.from_config(own)


OPTIMIZERS = {
    "AdamW": lambda: kgpt.recipes.pretraining_optimizer(1000),
    "Muon": lambda: kgpt.recipes.fast_optimizer(1000),
    "Keras's Muon": muon_of_keras,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", default="gpt_mini", choices=kgpt.GPTBackbone.presets())
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="of each optimizer in a round")
    parser.add_argument("--dtype", default="mixed_bfloat16")
    return parser.parse_args()


def make_model(name, arguments):
    keras.utils.set_random_seed(0)
    body = kgpt.GPTBackbone.from_preset(
        arguments.preset, load_weights=False, dropout=0.0, dtype=arguments.dtype, **OPTIONS
    )
    lm = kgpt.CausalLM(body)
    lm.compile(OPTIMIZERS[name]())
    return lm


def seconds_of_steps(lm, tokens, steps):
    """Wall and processor time of a step."""
    began = time.perf_counter(), time.process_time()
    for _ in range(steps):
        lm.train_on_batch(tokens[:, :-1], tokens[:, 1:])
    ended = time.perf_counter(), time.process_time()
    return [(b - a) / steps for a, b in zip(began, ended, strict=True)]


def extra_operations(lm, arguments, length):
    """The share of floating-point operations that Muon's products add to a step."""
    adamw, muon = (
        kgpt.plan(lm.backbone, arguments.batch, length, optimizer=name).flops_per_step
        for name in ("adamw", "muon")
    )
    return muon / adamw - 1


def main():
    arguments = parse_arguments()
    models = {name: make_model(name, arguments) for name in arguments.optimizers}
    lm = next(iter(models.values()))
    length = lm.backbone.max_sequence_length
    shape = arguments.batch, length + 1
    tokens = np.random.default_rng(0).integers(0, lm.backbone.vocabulary_size, shape)
    found = {name: [] for name in models}
    for model in models.values():
        seconds_of_steps(model, tokens.astype("int32"), 1)  # compiles
    for _ in range(arguments.rounds):
        for name, model in models.items():
            found[name].append(seconds_of_steps(model, tokens.astype("int32"), arguments.steps))
    print(f"{keras.backend.backend()}, {arguments.preset}, {shape[0]} x {length} tokens: Muon adds "
          f"{extra_operations(lm, arguments, length):.1%} floating-point operations")  # fmt: skip
    print("\n| optimizer | s/step | ratio (range) | processor s/step | ratio (range) |")
    print("|---|---|---|---|---|")
    first = next(iter(found.values()))
    for name, times in found.items():
        cells = []
        for kind in (0, 1):
            ratios = sorted(t[kind] / f[kind] for t, f in zip(times, first, strict=True))
            cells.append(f"{statistics.median(t[kind] for t in times):.2f}")
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
