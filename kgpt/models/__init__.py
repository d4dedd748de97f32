"""Layers assembled into functional models."""

from kgpt.models.backbone import GPTBackbone
from kgpt.models.causal_lm import CausalLM
from kgpt.models.classifier import TextClassifier
from kgpt.models.head import Head
from kgpt.models.multiple_choice import MultipleChoice
from kgpt.models.regressor import TextRegressor

__all__ = [
    "CausalLM",
    "GPTBackbone",
    "Head",
    "MultipleChoice",
    "TextClassifier",
    "TextRegressor",
]
