"""Labelled tasks that are part of every Python, for tutorials and tests without a download."""

import ast
import inspect
import itertools
import random
import sys
import unicodedata
import zlib
from pathlib import Path

from kgpt.arguments import checked
from kgpt.data.corpus import standard_library_files

_CATEGORIES = {  # the Unicode standard, section 4.5
    "Lu": "uppercase letter", "Ll": "lowercase letter", "Lt": "titlecase letter",
    "Lm": "modifier letter", "Lo": "other letter", "Mn": "nonspacing mark", "Mc": "spacing mark",
    "Me": "enclosing mark", "Nd": "decimal digit", "Nl": "letter number", "No": "other number",
    "Pc": "connector punctuation", "Pd": "dash", "Ps": "opening bracket", "Pe": "closing bracket",
    "Pi": "opening quote", "Pf": "closing quote", "Po": "other punctuation", "Sm": "math symbol",
    "Sc": "currency symbol", "Sk": "modifier symbol", "So": "other symbol", "Zs": "space",
    "Zl": "line separator", "Zp": "paragraph separator", "Cc": "control character",
    "Cf": "format character", "Cs": "surrogate", "Co": "private use", "Cn": "unassigned",
}  # fmt: skip
# Their names are a prefix and a number, with nothing to learn; they are most of all characters.
_NUMBERED = ("CJK ", "HANGUL SYLLABLE", "TANGUT ", "NUSHU CHARACTER", "KHITAN SMALL")


@checked
def character_categories(split: str = "train", in_words: bool = False) -> dict[str, list[str]]:
    """Returns the names of Unicode characters with their categories, for `classification`.

    `"LATIN SMALL LETTER A"` has the label `"Ll"`. There are about 30,000 characters, depending on
    Python's version, without ideographs and the like, whose names are numbers.

    Args:
        split: `"train"` or `"validation"`. About a tenth is validation, the same in every run.
        in_words: bool. Whether labels are words, `"lowercase letter"` in place of `"Ll"`.

    Returns:
        dict of two lists: `"texts"` (str) and `"labels"` (str).

    Raises:
        ValueError: for another split.

    Example:
        train = kgpt.data.classification(**kgpt.data.character_categories(), tokenizer=tokenizer)
    """
    characters = _characters(split)
    labels = [unicodedata.category(character) for character in characters]
    return {
        "texts": [unicodedata.name(character) for character in characters],
        "labels": [_CATEGORIES[label] for label in labels] if in_words else labels,
    }


@checked
def character_values(split: str = "train") -> dict[str, list]:
    """Returns the names of Unicode numerals with their values, for `regression`.

    `"VULGAR FRACTION ONE HALF"` has the target 0.5. There are about 1,800 characters, with values
    from -1/2 to 10^12.

    Args:
        split: `"train"` or `"validation"`. About a tenth is validation, the same in every run.

    Returns:
        dict of two lists: `"texts"` (str) and `"targets"` (float).

    Raises:
        ValueError: for another split.

    Example:
        train = kgpt.data.regression(**kgpt.data.character_values(), tokenizer=tokenizer)
    """
    characters = [c for c in _characters(split) if unicodedata.numeric(c, None) is not None]
    return {
        "texts": [unicodedata.name(character) for character in characters],
        "targets": [unicodedata.numeric(character) for character in characters],
    }


@checked
def arithmetic(split: str = "train") -> dict[str, list[str]]:
    """Returns sums and differences of whole numbers below 100, for `completions`.

    The prompt `"37 + 58 = "` has the completion `"95"`. There are 20,000, each in one split: what a
    model gets right in validation, it has computed. Digits are best read one by one, by a
    tokenizer of characters.

    Args:
        split: `"train"` or `"validation"`. About a tenth is validation, the same in every run.

    Returns:
        dict of two lists: `"prompts"` (str) and `"completions"` (str).

    Raises:
        ValueError: for another split.

    Example:
        train = kgpt.data.completions(**kgpt.data.arithmetic(), tokenizer=tokenizer)
    """
    columns = {"prompts": [], "completions": []}
    for a, b in itertools.product(range(100), repeat=2):
        for prompt, result in ((f"{a} + {b} = ", a + b), (f"{a} - {b} = ", a - b)):
            if _split_of(prompt) == split:
                columns["prompts"].append(prompt)
                columns["completions"].append(str(result))
    return columns


@checked
def function_docstrings(split: str = "train", num_choices: int = 4, seed: int = 0) -> dict:
    """Returns the sources of functions with docstrings to choose from, for `multiple_choice`.

    The functions are those of the standard library with a unique docstring: several thousand,
    depending on Python's version. The docstring is removed from the source, and ends at its first
    empty line. The wrong choices are docstrings of other functions of the same split.

    Args:
        split: `"train"` or `"validation"`. About a tenth is validation, the same in every run.
        num_choices: int. Number of docstrings to choose from.
        seed: int. Determines the wrong choices and the place of the right one.

    Returns:
        dict of three lists: `"contexts"` (str), `"choices"` (lists of str) and `"labels"` (int).

    Raises:
        ValueError: for another split, and fewer than two choices.

    Example:
        train = kgpt.data.multiple_choice(**kgpt.data.function_docstrings(), tokenizer=tokenizer)
    """
    functions = {}  # docstring -> source
    for file in standard_library_files():
        for source, docstring in _functions(Path(file)):
            if _split_of(docstring) == split:
                functions.setdefault(docstring, source)
    generator = random.Random(seed)
    docstrings = list(functions)
    columns = {"contexts": [], "choices": [], "labels": []}
    for docstring, source in functions.items():
        others = generator.sample(docstrings, num_choices)
        others = [other for other in others if other != docstring][: num_choices - 1]
        label = generator.randrange(num_choices)
        columns["contexts"].append(source)
        columns["choices"].append([*others[:label], docstring, *others[label:]])
        columns["labels"].append(label)
    return columns


def _characters(split):
    named = (chr(i) for i in range(sys.maxunicode + 1) if unicodedata.name(chr(i), ""))
    return [
        character
        for character in named
        if not unicodedata.name(character).startswith(_NUMBERED)
        and _split_of(unicodedata.name(character)) == split
    ]


def _functions(file: Path):
    """Yields the source without docstring, and the docstring's beginning, of each function."""
    source = file.read_text("utf-8", errors="replace")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # some files of the standard library are invalid on purpose
        return
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
        if not docstring:
            continue
        before = lines[node.lineno - 1 : node.body[0].lineno - 1]
        after = lines[node.body[0].end_lineno : node.end_lineno]
        yield inspect.cleandoc("\n" + "".join(before + after)), docstring


def _split_of(text: str) -> str:
    return "validation" if zlib.crc32(text.encode("utf-8")) % 10 == 0 else "train"
