"""Pictures: of a model that reads a text, and of training. Each is a matplotlib figure."""

from kgpt.plot.attention import attention
from kgpt.plot.confusion import confusion_matrix
from kgpt.plot.curves import training_curves
from kgpt.plot.neighbours import embedding_neighbours
from kgpt.plot.surprise import next_tokens, surprise

__all__ = [
    "attention",
    "confusion_matrix",
    "embedding_neighbours",
    "next_tokens",
    "surprise",
    "training_curves",
]
