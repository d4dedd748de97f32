"""Everything between text and `fit`."""

from kgpt.data.builtin import (
    arithmetic,
    character_categories,
    character_values,
    function_docstrings,
)
from kgpt.data.completions import completions, conversations, documents
from kgpt.data.corpus import standard_library_files, write_tokens
from kgpt.data.mixture import mixture
from kgpt.data.paraphrases import paraphrases
from kgpt.data.stories import stories, story_endings
from kgpt.data.tables import read_texts
from kgpt.data.tasks import classification, entailment, multiple_choice, regression, similarity
from kgpt.data.windows import windows

__all__ = [
    "arithmetic",
    "character_categories",
    "character_values",
    "classification",
    "completions",
    "conversations",
    "documents",
    "entailment",
    "function_docstrings",
    "mixture",
    "multiple_choice",
    "paraphrases",
    "read_texts",
    "regression",
    "similarity",
    "standard_library_files",
    "stories",
    "story_endings",
    "windows",
    "write_tokens",
]
