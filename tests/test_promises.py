"""Each promise of docs/promises.md names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = [row for row in re.findall(r"^\| (.+) \|$", TEXT, re.M) if not row.startswith("promise")]


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_there_are_promises():
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS)
def test_a_promise_is_held_by_tests_that_exist(row):
    promise, tests = row.split(" | ")

    names = re.findall(r"`(tests/[^`]+)`", tests)

    assert names, promise
    for name in names:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not function or function in functions_of(path), name
