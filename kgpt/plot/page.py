"""A page of one file, in which one points at a word and sees what the model saw."""

import base64
import json
import os
from importlib import resources
from pathlib import Path

import numpy as np

from kgpt.files import make_folder, written_whole
from kgpt.plot.reading import likeliest

_EXPECTED = 5  # tokens that are listed at each position
_STEPS = 65535  # attention weights are written as 16-bit numbers


def write_page(path: str | os.PathLike, lm, reading, colours: str) -> None:
    """Writes the page of a text that a model has read.

    Args:
        path: where to write it.
        lm: the `CausalLM`.
        reading: what `read` returned, with the attention.
        colours: what colours the words at first: `"attention"` or `"surprise"`.
    """
    layers, heads = reading.attention.shape[:2]
    weights = np.rint(reading.attention * _STEPS).astype("<u2")
    expected = [likeliest(lm.tokenizer, row, _EXPECTED) for row in reading.log_probabilities[:-1]]
    data = {
        "colours": colours,
        "pieces": reading.pieces,
        "token_ids": reading.token_ids.tolist(),
        "bits": [None, *reading.bits.tolist()],
        "expected": [[], *expected],
        "layers": layers,
        "heads": heads,
        "attention": base64.b64encode(weights.tobytes()).decode(),
    }
    template = resources.files("kgpt.plot").joinpath("page.html").read_text("utf-8")
    text = json.dumps(data).replace("<", "\\u003c")  # a text must not end the script
    make_folder(Path(path).parent)
    with written_whole(path) as unfinished:
        unfinished.write_text(template.replace('"DATA"', text), "utf-8")
