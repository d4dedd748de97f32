"""GPT models in Keras 3: pretrain on your own text, fine-tune on your own task."""

from kgpt import callbacks, data, layers, plot, recipes
from kgpt.models import CausalLM, GPTBackbone
from kgpt.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "CausalLM",
    "GPTBackbone",
    "Tokenizer",
    "callbacks",
    "data",
    "layers",
    "plot",
    "recipes",
]
