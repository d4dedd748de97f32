"""The site: `python -m sphinx -W docs build/site`."""

import inspect
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sphinx_gallery.sorting import FunctionSortKey

import kgpt

sys.path.insert(0, str(Path(__file__).parent))
from run_tutorials import kept_page

project = "kgpt"
copyright = "the kgpt authors"
version = release = kgpt.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["build", "outputs"]
templates_path = []

# The examples that are tutorials, in the order in which one reads them; the others are scripts.
TUTORIALS = (
    "what_a_gpt_is",
    "pretrain_your_text",
    "how_to_write",
    "classify",
    "regression_and_similarity",
    "entailment_and_choice",
    "from_openais_weights",
    "your_own_parts",
    "prompt_and_completion",
    "why_pretraining_pays",
    "export_and_serve",
    "many_devices",
    "chinese_arithmetic",
)
_FILES = "|".join(TUTORIALS)

# Building the site runs no tutorial: what they print and draw is kept by `docs/run_tutorials.py`.
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorials",
    "filename_pattern": rf"/({_FILES})\.py",
    "ignore_pattern": rf"^(?!({_FILES})\.py)",
    "within_subsection_order": FunctionSortKey([f"{name}.py" for name in TUTORIALS].index),
    "plot_gallery": "False",
    "download_all_examples": False,
    "show_memory": False,
    "ignore_repr_types": r"matplotlib\.figure\.Figure",  # its picture is shown
    "min_reported_time": 10**6,  # seconds: how long it took says how busy a machine was
}

html_theme = "pydata_sphinx_theme"
html_title = "kgpt"
html_theme_options = {
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}
html_show_sourcelink = False

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

toc_object_entries_show_parents = "hide"
default_role = "code"  # docstrings write code between single backticks
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # docstrings say the types
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
napoleon_custom_sections = [("Call arguments", "params_style")]


def show_kept_outputs(app):
    """Puts pages with outputs, which are kept, in the place of those that were made without."""
    if app.config.sphinx_gallery_conf["plot_gallery"]:
        return
    for name in TUTORIALS:
        if (page := kept_page(name)) is not None:
            (Path(app.srcdir) / "tutorials" / f"{name}.rst").write_text(page, encoding="utf-8")


def code_of_examples(app, what, name, thing, options, lines):
    """Makes the examples and the formulas of docstrings blocks of code."""
    for i in range(len(lines) - 1, 1, -1):
        is_block = lines[i].startswith("    ") and not lines[i - 1].strip()
        before = lines[i - 2]
        if is_block and before.strip() and before[0] != " " and not before.endswith("::"):
            lines[i:i] = ["::", ""]
    found = [i for i, line in enumerate(lines) if line.strip() in ("Example:", "Examples:")]
    for start in reversed(found):
        indent = len(lines[start]) - len(lines[start].lstrip())
        block = [
            " " * indent + ".. rubric:: Example",
            "",
            " " * indent + ".. code-block:: python",
            "",
        ]
        lines[start : start + 1] = block


def skip_what_is_keras(app, what, name, thing, skip, options):
    """Leaves out what classes have from Keras, which has a site of its own."""
    thing = getattr(thing, "fget", thing)
    module = getattr(thing, "__module__", None)
    return skip or (module is not None and not module.startswith("kgpt")) or None


def signature_of_constructors(app, what, name, thing, options, signature, returns):
    """Shows the arguments of a class as its constructor has them; Keras's `__new__` hides them."""
    if what == "class":
        own = inspect.signature(thing.__init__)
        parameters = [one for one in own.parameters.values() if one.name != "self"]
        plain = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
        return str(inspect.Signature(plain)), returns


def links_to_files(app, name, source):
    """Turns links to files of the repository, as GitHub reads them, into links to pages."""
    for file, page in (
        ("../benchmarks/README.md", "benchmarks.md"),
        ("../SECURITY.md", "security.md"),
    ):
        source[0] = source[0].replace(f"({file}", f"({page}")


def setup(app):
    """Tells Sphinx of the functions above."""
    app.connect("autodoc-process-signature", signature_of_constructors)
    app.connect("builder-inited", show_kept_outputs, priority=900)  # after sphinx-gallery's
    app.connect("source-read", links_to_files)
    app.connect("autodoc-skip-member", skip_what_is_keras)
    app.connect("autodoc-process-docstring", code_of_examples, priority=400)  # before napoleon
