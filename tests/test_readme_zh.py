"""README.md and README.zh-CN.md say the same: what can be compared without reading is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="an installed kgpt has no README"
)


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"^```.*?^```\n", "", text, flags=re.M | re.S)


def code_blocks(text):
    return re.findall(r"^```.*?^```\n", text, re.M | re.S)


def headings(text):
    return re.findall(r"^(#+) ", without_code(text), re.M)


def markers(text):
    return re.findall(r"<!--.*?-->", text)


def links(text):
    targets = re.findall(r"\]\((.*?)\)", text)
    return sorted(target for target in targets if target not in (ENGLISH, CHINESE))


def pictures(text):
    return re.findall(r"!\[.*?\]\((.*?)\)", text)


def quoted_text(text):
    return re.findall(r"^>.*", text, re.M)


def shapes_of_tables(text):
    """The number of cells in each row of all tables."""
    return [row.count("|") for row in re.findall(r"^\|.*\|$", text, re.M)]


def figures_of_tables(text):
    """The numbers in each row of all tables, in the order of cells."""
    rows = re.findall(r"^\|.*\|$", text, re.M)
    return [[re.findall(r"\d[\d.,]*\d|\d", cell) for cell in row.split("|")[2:]] for row in rows]


def code_in_lines(text):
    """What stands between backticks, which is typed and not translated."""
    return sorted(re.findall(r"`([^`\n]+)`", without_code(text)))


@pytest.mark.parametrize(
    "part",
    [
        *(code_blocks, headings, markers, links, pictures, quoted_text),
        *(shapes_of_tables, figures_of_tables, code_in_lines),
    ],
)
def test_both_languages_have_the_same(part):
    english, chinese = (part(text_of(name)) for name in (ENGLISH, CHINESE))

    assert english
    assert chinese == english


def test_each_names_the_other_at_its_top():
    assert f"]({CHINESE})" in "".join(text_of(ENGLISH).splitlines()[:4])
    assert f"]({ENGLISH})" in "".join(text_of(CHINESE).splitlines()[:4])


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_links_lead_to_files_that_exist(name):
    files = [link.partition("#")[0] for link in links(text_of(name)) if "://" not in link]

    assert [file for file in files if not (ROOT / file).exists()] == []
