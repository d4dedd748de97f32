"""Layers assembled into functional models: the body and its heads."""

from kgpt.models.backbone import GPTBackbone
from kgpt.models.causal_lm import CausalLM

__all__ = ["CausalLM", "GPTBackbone"]
