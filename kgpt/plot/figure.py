"""What all pictures share: the figure, its fonts and colours."""

import base64
import functools
import io
import re

# By Okabe and Ito (2008): colours that people who see red and green alike can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# From white to a blue on which black text can be read.
SHADES = "Blues"
# Fonts with Chinese, Japanese and Korean characters, which matplotlib's own lacks.
_WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti TC", "Microsoft YaHei", "SimHei"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS"),
)


def new_figure(width: float, height: float, layout: str | None = "constrained"):
    """Returns an empty figure of so many inches, which a notebook shows.

    No figure of pyplot: those stay open until they are closed.
    """
    return _figure_class()(figsize=(width, height), layout=layout)


@functools.cache
def _figure_class():
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_html_(self):
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=100)
            data = base64.b64encode(picture.getvalue()).decode()
            return f'<img src="data:image/png;base64,{data}">'

    return Picture


@functools.cache
def fonts() -> list[str]:
    """Returns the families of fonts to draw texts with, those that this machine has."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans Mono", *(name for name in _WIDE_FONTS if name in installed)]


def visible_text(piece: str) -> str:
    """Returns a token's text with what can't be seen made visible."""
    named = {"\n": "↵", "\t": "→", "\r": "↵", "": "∅"}
    text = named.get(piece, piece)
    text = re.sub(r"[\x00-\x1f\x7f]", lambda c: named.get(c.group(), "�"), text)
    return text.replace("$", r"\$")  # matplotlib reads formulas between two of them
