"""Run tutorials in full, and keep what they print and draw: the site shows it.

    python docs/run_tutorials.py                 # those of which no output is kept, or an old one
    python docs/run_tutorials.py what_a_gpt_is   # these

Needs the extra `docs`. A kept page, in `docs/outputs/`, begins with the hash of its tutorial; the
site shows it as long as the tutorial is the same. `many_devices` shows most with KERAS_BACKEND=jax
and XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import base64
import hashlib
import io
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
OUTPUTS = DOCS / "outputs"
MOST_COLOURS = 128  # of a picture: lines, letters and a bar of shades need no more


def first_line(name: str) -> str:
    """Returns the first line of a page that was made from the tutorial as it is."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    return f".. From a tutorial with the SHA-256 {hashlib.sha256(source.encode()).hexdigest()}\n"


def kept_page(name: str) -> str | None:
    """Returns the page with outputs of a tutorial; None if there is none, or an old one."""
    path = OUTPUTS / f"{name}.rst"
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    return page if page.startswith(first_line(name)) else None


def run(name: str):
    """Runs a tutorial and keeps its page."""
    page_begins = first_line(name)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / "index.rst").write_text("Nothing\n=======\n")
        settings = {"plot_gallery": 1, "examples_dirs": EXAMPLES, "abort_on_example_error": 1}
        settings |= {"filename_pattern": rf"/{name}\.py", "ignore_pattern": rf"^(?!{name}\.py)"}
        options = [f"-Dsphinx_gallery_conf.{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "dummy", "-c", DOCS, *options]
        subprocess.run([*command, source, Path(folder) / "build"], check=True)
        page = (source / "tutorials" / f"{name}.rst").read_text(encoding="utf-8")
        page = with_pictures_inside(page, source).replace(f"{EXAMPLES}/", "")
    OUTPUTS.mkdir(exist_ok=True)
    path = OUTPUTS / f"{name}.rst"
    path.write_text(page_begins + page, encoding="utf-8")
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def with_pictures_inside(page: str, source: Path) -> str:
    """Returns a page whose pictures are small and part of it."""

    def from_file(match):
        indent, name = match.groups()
        picture = small((source / name.lstrip("/")).read_bytes())
        tag = f'<img src="data:image/png;base64,{picture}">'
        return f"{indent}.. raw:: html\n\n{indent}    {tag}\n"

    def from_cell(match):
        return f'"data:image/png;base64,{small(base64.b64decode(match[1]))}"'

    page = re.sub(r'"data:image/png;base64,([^"]+)"', from_cell, page)
    return re.sub(r"^( *)\.\. image-sg:: (\S+)\n(?:\1 +:.*\n)+", from_file, page, flags=re.M)


def small(picture: bytes) -> str:
    """Returns a PNG of few colours, in base64."""
    from PIL import Image

    result = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(MOST_COLOURS, dither=Image.Dither.NONE).save(result, "PNG", optimize=True)
    return base64.b64encode(result.getvalue()).decode()


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS))
    from conf import TUTORIALS

    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    for tutorial in sys.argv[1:] or [one for one in TUTORIALS if kept_page(one) is None]:
        run(tutorial)
