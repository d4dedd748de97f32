"""What int8 and int4 cost and save: perplexity, file size and generation speed of a trained model.

    python examples/pretrain.py
    python benchmarks/quantize.py runs/pretrain/lm.keras runs/pretrain/tokens.validation.npy

The table is in Markdown. Perplexity is of windows of the token file, which the model should not
have been trained on. Speeds are medians of greedy generations in which the models take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import keras

import kgpt

MODES = ("float32", "int8", "int4")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="a .keras file of a kgpt.CausalLM")
    parser.add_argument("tokens", type=Path, help="a token file, as of kgpt.data.write_tokens")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="batches to evaluate at most")
    parser.add_argument("--new-tokens", type=int, default=100, help="tokens for each generation")
    parser.add_argument("--rounds", type=int, default=7, help="generations of each model")
    return parser.parse_args()


def make(mode, path):
    """The model in one mode, without its optimizer, and the size of its file in bytes."""
    lm = keras.saving.load_model(path, compile=False)
    if mode != "float32":
        lm.quantize(mode)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(Path(folder) / "lm.keras")
        size = (Path(folder) / "lm.keras").stat().st_size
    lm.compile()
    return lm, size


def main():
    arguments = parse_arguments()
    models, sizes = {}, {}
    for mode in MODES:
        models[mode], sizes[mode] = make(mode, arguments.model)
    length = models["float32"].backbone.max_sequence_length
    data = kgpt.data.windows(
        arguments.tokens, sequence_length=length, batch_size=arguments.batch_size
    )
    steps = min(arguments.steps, len(data))
    perplexities = {
        mode: lm.evaluate(data, steps=steps, return_dict=True, verbose=0)["perplexity"]
        for mode, lm in models.items()
    }

    prompt = next(iter(data))[0]
    prompt = keras.ops.convert_to_numpy(prompt["token_ids"] if isinstance(prompt, dict) else prompt)
    prompt = prompt[0, :8].tolist()
    new_tokens = min(arguments.new_tokens, length - len(prompt))
    speeds = {mode: [] for mode in MODES}
    for turn in range(arguments.rounds + 1):
        for mode, lm in models.items():
            start = time.perf_counter()
            lm.generate(prompt, new_tokens, sampler="greedy", stop_token_ids=None)
            if turn > 0:  # the first one compiles
                speeds[mode].append(new_tokens / (time.perf_counter() - start))

    print(
        f"{keras.backend.backend()}; {models['float32'].count_params():,} parameters; "
        f"{steps * arguments.batch_size * length:,} tokens evaluated; "
        f"{arguments.rounds} generations of {new_tokens} tokens\n"
    )
    print("| weights | perplexity | change | file, MB | generation, tokens/s |")
    print("|---|---|---|---|---|")
    for mode in MODES:
        change = 100 * (perplexities[mode] / perplexities["float32"] - 1)
        print(
            f"| {mode} | {perplexities[mode]:.3f} | {change:+.2f}% | {sizes[mode] / 1e6:.2f} | "
            f"{statistics.median(speeds[mode]):.0f} |"
        )


if __name__ == "__main__":
    main()
