"""GPT models in Keras 3: pretrain on your own text, fine-tune on your own task."""

from kgpt import callbacks, data, distribution, layers, metrics, plot, recipes
from kgpt.convert.huggingface import from_huggingface, to_huggingface
from kgpt.convert.keras_hub import from_keras_hub, to_keras_hub
from kgpt.convert.model_card import model_card
from kgpt.convert.nanogpt import from_nanogpt
from kgpt.convert.openai import from_openai
from kgpt.models import (
    CausalLM,
    GPTBackbone,
    Head,
    MultipleChoice,
    TextClassifier,
    TextRegressor,
)
from kgpt.plan import plan
from kgpt.tokenizer import Tokenizer

__version__ = "0.2.0.dev0"

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
    "distribution",
    "from_huggingface",
    "from_keras_hub",
    "from_nanogpt",
    "from_openai",
    "layers",
    "metrics",
    "model_card",
    "plan",
    "plot",
    "recipes",
    "to_huggingface",
    "to_keras_hub",
]

for _module in (
    callbacks,
    data,
    distribution,
    layers,
    metrics,
    plot,
    recipes,
):
    _module.__dir__ = lambda names=_module.__all__: names


def __dir__():
    return [*__all__, "__version__"]
