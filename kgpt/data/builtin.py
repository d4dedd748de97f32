"""Labelled tasks that every Python carries with it, for tutorials and tests without a download."""

import ast
import inspect
import random
import sys
import unicodedata
import zlib
from pathlib import Path

from kgpt.data.corpus import standard_library_files

_SPLITS = ("train", "validation")
# Their names are a number behind one prefix: nothing to learn, and most of all characters.
_NUMBERED = ("CJK ", "HANGUL SYLLABLE", "TANGUT ", "NUSHU CHARACTER", "KHITAN SMALL")


def character_categories(split: str = "train") -> dict[str, list[str]]:
    """The name of a Unicode character and its general category, for `classification`.

    `"LATIN SMALL LETTER A"` is `"Ll"`. About 30,000 characters, depending on Python's version;
    ideographs and the like, whose names are numbers, are left out.

    Args:
        split: `"train"` or `"validation"`, about a tenth of all, the same in every run.

    Returns:
        dict of two lists: `"texts"` and `"labels"`.

    Raises:
        ValueError: for another split.
    """
    characters = _characters(split)
    return {
        "texts": [unicodedata.name(character) for character in characters],
        "labels": [unicodedata.category(character) for character in characters],
    }


def character_values(split: str = "train") -> dict[str, list]:
    """The name of a Unicode character that is a number and its value, for `regression`.

    `"VULGAR FRACTION ONE HALF"` is 0.5. About 1,800 characters, with values from -1/2 to 10^12.

    Args:
        split: as for `character_categories`.

    Returns:
        dict of two lists: `"texts"` (str) and `"targets"` (float).

    Raises:
        ValueError: for another split.
    """
    characters = [c for c in _characters(split) if unicodedata.numeric(c, None) is not None]
    return {
        "texts": [unicodedata.name(character) for character in characters],
        "targets": [unicodedata.numeric(character) for character in characters],
    }


def function_docstrings(split: str = "train", num_choices: int = 4, seed: int = 0) -> dict:
    """The source of a function and which of some docstrings is its own, for `multiple_choice`.

    The functions are those of the standard library with a docstring of their own: some thousands,
    depending on Python's version. The source comes without it, the docstring up to its first empty
    line. The other choices are docstrings of other functions of the same split.

    Args:
        split: as for `character_categories`.
        num_choices: int. How many docstrings there are to choose from.
        seed: int. Decides the other choices and the places.

    Returns:
        dict of three lists: `"contexts"` (str), `"choices"` (lists of str) and `"labels"` (int).

    Raises:
        ValueError: for another split, and fewer than two choices.
    """
    _check_split(split)
    if num_choices < 2:
        raise ValueError(f"num_choices must be at least 2. Received: num_choices={num_choices}.")
    functions = {}  # docstring -> source: each docstring once
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
    _check_split(split)
    named = (chr(i) for i in range(sys.maxunicode + 1) if unicodedata.name(chr(i), ""))
    return [
        character
        for character in named
        if not unicodedata.name(character).startswith(_NUMBERED)
        and _split_of(unicodedata.name(character)) == split
    ]


def _functions(file: Path):
    """(source without docstring, beginning of the docstring) of each documented function."""
    source = file.read_text("utf-8", errors="replace")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # the standard library has files that are meant to be wrong
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


def _check_split(split):
    if split not in _SPLITS:
        raise ValueError(f'split must be "train" or "validation". Received: split={split!r}.')
