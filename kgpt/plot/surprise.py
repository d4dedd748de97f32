"""What the model expects of a text: how much each token surprises it, and what comes next."""

import os
import unicodedata

import numpy as np

from kgpt.arguments import checked
from kgpt.plot.figure import COLOURS, SHADES, fonts, new_figure, visible_text
from kgpt.plot.page import write_page
from kgpt.plot.reading import likeliest, read

_COLUMNS = 80  # characters in a line of the picture
_FONT_SIZE = 10
_CHARACTER, _LINE = 0.602 * _FONT_SIZE / 72, 0.24  # inches; the font's characters have one width
_MOST_BITS = 12.0  # from here on, the darkest colour


@checked
def surprise(lm, text, *, html: str | os.PathLike | None = None):
    """Draws a text with each token's surprise, `-log2 p(token | the tokens before it)`, behind it.

    The first token has nothing before it, and so no colour.

    Args:
        lm: a `CausalLM`.
        text: str or token ids, one text of at most `max_sequence_length` tokens.
        html: optional path of a page to write, too: one file for any browser, in which one points
            at a word and sees what it looks at and what the model expected there.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ValueError: for several texts, and a text without tokens or with more than the model reads.

    Example:
        kgpt.plot.surprise(lm, "The cat sat on the mat")
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    reading = read(lm, text, with_attention=html is not None)
    if html is not None:
        write_page(html, lm, reading, colours="surprise")
    bits = np.concatenate([[np.nan], reading.bits])
    # The darkest third is left out: black text is on it.
    colours = colormaps[SHADES](np.linspace(0, 0.6, 256))
    shades = LinearSegmentedColormap.from_list("shades", colours)
    scale = ScalarMappable(Normalize(0, _MOST_BITS), shades)
    places, lines = _places(reading.pieces)
    height, bar_height = max(1.1, 0.2 + _LINE * lines), 0.9
    width = _CHARACTER * _COLUMNS + 1
    figure = new_figure(width, height, layout=None)
    top = 1 - 0.1 / height
    axes = figure.add_axes(
        (0.01, top - _LINE * lines / height, 1 - 1 / width, _LINE * lines / height)
    )
    for number, column, line, shown in places:
        colour = "none" if np.isnan(bits[number]) else scale.to_rgba(bits[number])
        columns = sum(_width(character) for character in shown)
        axes.barh(-line, columns, height=0.92, left=column, color=colour)
        where = {"va": "center", "fontsize": _FONT_SIZE, "family": fonts()}
        axes.text(column, -line, visible_text(shown) if shown else "", **where)
    axes.set(xlim=(0, _COLUMNS), ylim=(0.5 - lines, 0.5))
    axes.axis("off")
    side = figure.add_axes((1 - 0.8 / width, top - bar_height / height, 0.01, bar_height / height))
    figure.colorbar(scale, cax=side, extend="max").set_label("bits", fontsize=9)
    return figure


@checked
def next_tokens(lm, text, k: int = 10):
    """Draws the likeliest next tokens after a text, with their probabilities.

    Args:
        lm: a `CausalLM`.
        text: str or token ids, one text of at most `max_sequence_length` tokens.
        k: int. How many tokens.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ValueError: for several texts, and a text without tokens or with more than the model reads.

    Example:
        kgpt.plot.next_tokens(lm, "The cat sat on the", k=5)
    """
    reading = read(lm, text)
    tokens = likeliest(lm.tokenizer, reading.log_probabilities[-1], k)
    figure = new_figure(6, 0.9 + 0.28 * len(tokens))
    axes = figure.add_subplot()
    positions = range(len(tokens))
    bars = axes.barh(positions, [p for _, p in tokens], color=COLOURS[0])
    axes.bar_label(bars, [f"{p:.1%}" for _, p in tokens], padding=3, fontsize=9)
    labels = [f"'{visible_text(piece)}'" for piece, _ in tokens]
    axes.set_yticks(positions, labels, family=fonts())
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("probability")
    end = "".join(visible_text(piece) for piece in reading.pieces)
    axes.set_title(f"after: {'…' if len(end) > 50 else ''}{end[-50:]}", fontsize=10, family=fonts())
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _places(pieces):
    """Returns `(number of the token, column, line, text)` for each part of a line; and the lines.

    A token is broken at the end of a line and where it has a line break.
    """
    places, column, line = [], 0, 0
    for number, piece in enumerate(pieces):
        shown, start = "", column
        for character in piece:
            if character != "\n" and column + _width(character) <= _COLUMNS:
                shown, column = shown + character, column + _width(character)
                continue
            shown += "↵" * (character == "\n")
            if shown:
                places.append((number, start, line, shown))
            line, column, start, shown = line + 1, 0, 0, ""
            if character != "\n":
                shown, column = character, _width(character)
        if shown or not piece:
            places.append((number, start, line, shown))
    return places, line + 1


def _width(character):
    """Returns how many columns a character takes: two for Chinese and the like."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
