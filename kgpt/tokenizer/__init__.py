"""Text <-> token ids: training, GPT-1's and GPT-2's own vocabularies, single characters."""

from kgpt.tokenizer.styles import END_OF_TEXT, TASK_TOKENS
from kgpt.tokenizer.tokenizer import Tokenizer

__all__ = ["END_OF_TEXT", "TASK_TOKENS", "Tokenizer"]
