"""Which words each head looks at."""

import os

import numpy as np

from kgpt.arguments import checked, integer
from kgpt.plot.figure import SHADES, fonts, new_figure, visible_text
from kgpt.plot.page import write_page
from kgpt.plot.reading import read

_MOST_LABELS = 60  # words beside one map; more could not be read


@checked(layer=integer(0, "0 is the first block."), head=integer(0, "0 is the first."))
def attention(
    lm,
    text,
    layer: int | None = None,
    head: int | None = None,
    *,
    html: str | os.PathLike | None = None,
):
    """Draws the attention weights of a text, a map for each layer and head.

    A row is the token that looks, a column the token that it looks at; a row sums to 1.

    Args:
        lm: a `CausalLM`.
        text: str or token ids, one text of at most `max_sequence_length` tokens.
        layer: optional int, 0 for the first block. If None, all are drawn.
        head: optional int, 0 for the first head. If None, all are drawn.
        html: optional path of a page to write, too: one file for any browser, in which one points
            at a word and sees what it looks at and what the model expected there.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ValueError: for a layer or a head that the model lacks, several texts, and a text without
            tokens or with more than the model reads.

    Example:
        kgpt.plot.attention(lm, "The cat sat on the mat", layer=0, html="attention.html")
    """
    backbone = lm.backbone
    for name, value, count in (
        ("layer", layer, backbone.num_layers),
        ("head", head, backbone.num_heads),
    ):
        if value is not None and value >= count:
            raise ValueError(
                f"{name} must be an int in [0, {count - 1}]. Received: {name}={value}."
            )
    reading = read(lm, text, with_attention=True)
    if html is not None:
        write_page(html, lm, reading, colours="attention")
    layers = range(backbone.num_layers) if layer is None else [layer]
    heads = range(backbone.num_heads) if head is None else [head]
    maps = reading.attention[np.ix_(layers, heads)]  # (layers, heads, length, length)
    return _draw(maps, layers, heads, [visible_text(piece) for piece in reading.pieces])


def _draw(maps, layers, heads, pieces):
    from matplotlib.colors import PowerNorm

    count = len(layers) * len(heads)
    size = 3.0 if count <= 4 else 2.0
    if count == 1:
        size = max(3.5, 0.22 * min(len(pieces), _MOST_LABELS))
    has_labels = count == 1 or len(pieces) * 0.16 <= size
    margin = 1.2 if has_labels else 0.4
    figure = new_figure(max(4, size * len(heads) + margin), size * len(layers) + margin)
    grid = figure.subplots(len(layers), len(heads), squeeze=False, sharex=True, sharey=True)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            axes = grid[row, column]
            image = axes.imshow(maps[row, column], cmap=SHADES, norm=PowerNorm(0.5, 0, 1))
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.tick_params(length=0)
            if not has_labels:
                axes.set_xticks([])
                axes.set_yticks([])
                continue
            labels = pieces if len(pieces) <= _MOST_LABELS else []
            axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7, family=fonts())
            axes.set_yticks(range(len(labels)), labels, fontsize=7, family=fonts())
    shown = {"ticks": (0, 0.01, 0.1, 0.25, 0.5, 1), "format": "{x:g}", "shrink": 0.8, "aspect": 30}
    figure.colorbar(image, ax=grid, **shown).set_label("share of what it sees", fontsize=9)
    figure.supylabel("the token that looks", fontsize=9)
    figure.supxlabel("is looking at", fontsize=9)
    return figure
