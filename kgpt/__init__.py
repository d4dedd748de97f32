"""GPT models in Keras 3: pretrain on your own text, fine-tune on your own task."""

from kgpt import callbacks, data, layers, metrics, plot, recipes
from kgpt.models import (
    CausalLM,
    GPTBackbone,
    Head,
    MultipleChoice,
    TextClassifier,
    TextRegressor,
)
from kgpt.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "CausalLM",
    "GPTBackbone",
    "Head",
    "MultipleChoice",
    "TextClassifier",
    "TextRegressor",
    "Tokenizer",
    "callbacks",
    "data",
    "layers",
    "metrics",
    "plot",
    "recipes",
]
