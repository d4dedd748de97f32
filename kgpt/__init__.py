"""GPT models in Keras 3: pretrain on your own text, fine-tune on your own task."""

from kgpt import layers, recipes
from kgpt.models import CausalLM, GPTBackbone

__version__ = "0.1.0"

__all__ = ["CausalLM", "GPTBackbone", "layers", "recipes"]
