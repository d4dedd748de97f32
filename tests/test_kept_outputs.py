"""The outputs of tutorials that the site shows: of the tutorials as they are, small, and whole."""

import base64
import importlib.util
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "outputs").glob("*.rst"))
MOST_BYTES = 3e6  # of all
MOST_BYTES_OF_A_PICTURE = 60e3


@pytest.fixture
def outputs(monkeypatch, tmp_path):
    """`docs/run_tutorials.py` over a folder of one tutorial."""
    spec = importlib.util.spec_from_file_location(
        "run_tutorials", ROOT / "docs" / "run_tutorials.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EXAMPLES", tmp_path)
    monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    (tmp_path / "a.py").write_text('"""A\n="""\n')
    return module


def test_a_page_is_shown_until_its_tutorial_changes(outputs, tmp_path):
    assert outputs.kept_page("a") is None
    page = outputs.first_line("a") + "A\n=\n"
    (tmp_path / "a.rst").write_text(page)

    assert outputs.kept_page("a") == page
    (tmp_path / "a.py").write_text('"""B\n="""\n')
    assert outputs.kept_page("a") is None


def test_pictures_become_small_parts_of_the_page(outputs, tmp_path):
    pil = pytest.importorskip("PIL.Image", reason="comes with matplotlib")
    picture = io.BytesIO()
    pil.effect_noise((200, 100), 90).convert("RGB").save(picture, "PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    shown = base64.b64encode(picture.getvalue()).decode()
    page = ".. image-sg:: /a.png\n   :alt: a\n   :class: b\n\n"
    page += f'<img src="data:image/png;base64,{shown}">\n'

    page = outputs.with_pictures_inside(page, tmp_path)

    found = [base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', page)]
    assert [pil.open(io.BytesIO(data)).size for data in found] == [(200, 100)] * 2
    assert max(map(len, found)) < len(picture.getvalue())
    assert "image-sg" not in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_kept_page_is_of_a_whole_run(page):
    text = page.read_text(encoding="utf-8")

    assert "sphx-glr-script-out" in text
    assert "Traceback" not in text
    pictures = [base64.b64decode(data) for data in re.findall(r'base64,([^"]+)"', text)]
    assert all(len(picture) < MOST_BYTES_OF_A_PICTURE for picture in pictures)
    digest = re.match(r"\.\. From a tutorial with the SHA-256 (\w{64})\n", text)
    assert digest
    words = re.sub(r'base64,[^"]+"', "", text)
    assert not re.search(r"(?<![\w.~>:/])/(home|root|tmp|work|Users)/", words)  # of a machine
    assert not re.search(r"\w*Warning: |^WARNING", words, re.M)


def test_kept_pages_are_small():
    assert sum(page.stat().st_size for page in PAGES) < MOST_BYTES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_site_shows_a_kept_page(page, outputs, monkeypatch):
    monkeypatch.setattr(outputs, "EXAMPLES", ROOT / "examples")

    if not page.read_text(encoding="utf-8").startswith(outputs.first_line(page.stem)):
        pytest.skip(f"an earlier {page.stem}.py: python docs/run_tutorials.py {page.stem}")
