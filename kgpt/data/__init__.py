"""Everything between text and `fit`."""

from kgpt.data.builtin import character_categories, character_values, function_docstrings
from kgpt.data.completions import completions, conversations, documents
from kgpt.data.corpus import standard_library_files, write_tokens
from kgpt.data.tables import read_texts
from kgpt.data.tasks import classification, entailment, multiple_choice, regression, similarity
from kgpt.data.windows import windows

__all__ = [
    "character_categories",
    "character_values",
    "classification",
    "completions",
    "conversations",
    "documents",
    "entailment",
    "function_docstrings",
    "multiple_choice",
    "read_texts",
    "regression",
    "similarity",
    "standard_library_files",
    "windows",
    "write_tokens",
]
