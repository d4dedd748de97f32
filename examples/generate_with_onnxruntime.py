"""Generate text with ONNX Runtime: neither Keras nor kgpt is needed where the model runs.

    python examples/generate_with_onnxruntime.py --model runs/pretrain/lm.keras
    python examples/generate_with_onnxruntime.py          # a tiny model, trained for some seconds

The model is exported as one step of generation, whose keys and values are inputs and outputs. What
follows is a loop over it in numpy. At the end the text is compared with that of `lm.generate`.

Needs: pip install onnx onnxruntime, and tf2onnx (tensorflow backend) or onnxscript (torch backend).
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import numpy as np
import onnxruntime
import tokenizers

CONVERTERS = {"tensorflow": ["onnx", "tf2onnx"], "torch": ["onnx", "onnxscript"]}


def generate(session, tokenizer, prompt, max_new_tokens):
    """Continues a text greedily, up to the end-of-text token."""
    tokens = tokenizer.encode(prompt).ids
    # (batch, layers, heads, slots, head_dim): a slot for each position that there will be.
    _, layers, heads, _, head_dim = next(x.shape for x in session.get_inputs() if x.name == "keys")
    cache_shape = (1, layers, heads, len(tokens) + max_new_tokens, head_dim)
    keys, values = np.zeros(cache_shape, "float32"), np.zeros(cache_shape, "float32")
    new, position = tokens, 0  # first the whole prompt, then token by token
    for _ in range(max_new_tokens):
        inputs = {
            "token_ids": np.array([new], "int32"),
            "position": np.array([position], "int32"),
            "keys": keys,
            "values": values,
        }
        logits, keys, values = session.run(["logits", "new_keys", "new_values"], inputs)
        position += len(new)
        new = [int(logits[0, -1].argmax())]
        if new == [tokenizer.token_to_id("<|endoftext|>")]:
            break
        tokens = tokens + new
    return tokenizer.decode(tokens)


def make_tiny_model(file):
    """A language model of a few short sentences, saved in a file."""
    import keras

    import kgpt

    keras.utils.set_random_seed(0)
    text = "The cat sat on the mat. The dog sat by the door. The bird sang in the tree. " * 20
    tokenizer = kgpt.Tokenizer.train([text], vocabulary_size=300)
    tokens = tokenizer.encode(text)
    rows = np.array([tokens[i : i + 32] for i in range(len(tokens) - 32)], "int32")
    backbone = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, 2, 2, 32, dropout=0.0, max_sequence_length=64
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile("adam")
    lm.fit(rows, epochs=3, verbose=2)
    lm.save(file)
    return lm


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a .keras file of a kgpt.CausalLM")
    parser.add_argument("--output", type=Path, default=Path("runs/onnx"))
    parser.add_argument("--prompt", default="The dog")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    arguments = parser.parse_args()
    if not arguments.prompt or arguments.max_new_tokens < 0:
        parser.error("--prompt must not be empty, and --max-new-tokens at least 0")
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    # With Keras: a model, and two files from it.
    import keras

    import kgpt  # noqa: F401 - its classes, for load_model

    packages = CONVERTERS.get(keras.config.backend())
    if packages is None:
        parser.error("the jax backend exports no ONNX: set KERAS_BACKEND=tensorflow or torch")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"packages are missing. Try: pip install {' '.join(missing)}")
    if arguments.model:
        lm = keras.saving.load_model(arguments.model)
    else:
        lm = make_tiny_model(output / "lm.keras")
    length = len(lm.tokenizer.encode(arguments.prompt)) + arguments.max_new_tokens
    if length > lm.backbone.max_sequence_length:
        parser.error(
            f"prompt and new tokens must fit into {lm.backbone.max_sequence_length} positions, "
            f"and are {length} tokens"
        )
    lm.export_generation_step(output / "step.onnx")
    lm.tokenizer.save(output / "tokenizer.json")

    # Without Keras: the two files are all that is needed.
    session = onnxruntime.InferenceSession(output / "step.onnx")
    tokenizer = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    text = generate(session, tokenizer, arguments.prompt, arguments.max_new_tokens)
    print(text)

    expected = lm.generate(arguments.prompt, arguments.max_new_tokens, sampler="greedy")
    print("The same as lm.generate:", text == expected)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # for a console without the characters of a sample
    main()
