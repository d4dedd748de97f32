"""Prompt -> cached steps -> text."""

from kgpt.generation.loop import generate

__all__ = ["generate"]
