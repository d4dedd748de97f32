"""Each tutorial from top to bottom, at a tiny size: what it says is for a reader to judge."""

import ast
import itertools
import re
from pathlib import Path

import matplotlib
import pytest

import kgpt

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
ONE_BLOCK = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
BODY = Path("runs/pretrain_your_text/lm.keras")  # which most tutorials go on with


def tutorials_of_the_site():
    """The names in docs/conf.py, which is not imported: it needs Sphinx."""
    source = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(r"^TUTORIALS = (\(.*?^\))", source, re.M | re.S)[1])


TUTORIALS = tutorials_of_the_site()

# Constants at the top of tutorials, for a run of seconds.
TINY = {
    "what_a_gpt_is": {"EPOCHS": 2},
    "pretrain_your_text": {
        **{"STEPS": 3, "SIZE": ONE_BLOCK, "VOCABULARY": 300, "CONTEXT": 96, "BATCH": 32},
    },
    "how_to_write": {"LENGTH": 6, "SAMPLES": 2},
    "classify": {"EPOCHS": 1, "CLASSES": 3, "EXAMPLES": 60},
    "regression_and_similarity": {"EPOCHS": 1, "PAIR_EPOCHS": 1, "PAIRS": 40, "SIZE": ONE_BLOCK},
    "entailment_and_choice": {
        **{"STORIES": 200, "REPORTS": 40, "STEPS": 2, "CHOICE_EPOCHS": 1, "PAIRS": 32},
        **{"HELD_OUT": 20, "SIZE": ONE_BLOCK},
    },
    "from_openais_weights": {"STEPS": 2},
    "prompt_and_completion": {"EXAMPLES": 64, "EPOCHS": 1, "SIZE": ONE_BLOCK},
    "why_pretraining_pays": {
        **{"STEPS": 5, "SIZE": ONE_BLOCK, "BATCH": 2, "STORIES": 200, "EXAMPLES": 8},
    },
    "export_and_serve": {"LENGTH": 4, "REQUESTS": 2},
    "your_own_parts": {"EXAMPLES": 64, "STEPS": 3, "SIZE": ONE_BLOCK, "CONTEXT": 128},
    "chinese_arithmetic": {"EPOCHS": 1, "LARGEST": 12, "SIZE": ONE_BLOCK},
}
BOOK = "".join(f"Chapter {i}. The value of {i % 7} is the best of times.\n" for i in range(400))


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    """A body that has learned nothing, in the place of the second tutorial's."""
    file = tmp_path_factory.mktemp("body") / "lm.keras"
    tokenizer = kgpt.Tokenizer.train([BOOK], vocabulary_size=300)
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, max_sequence_length=128, **ONE_BLOCK)
    kgpt.CausalLM(backbone, tokenizer=tokenizer).save(file)
    return file


@pytest.fixture
def folder(tmp_path, body, monkeypatch):
    """Where a tutorial is run, with what it goes on with, and without a network."""

    def from_preset(name):
        raise FileNotFoundError("The hub can't be reached.")

    monkeypatch.setattr(kgpt.CausalLM, "from_preset", from_preset)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    BODY.parent.mkdir(parents=True)
    BODY.write_bytes(body.read_bytes())
    Path("book.txt").write_text(BOOK, encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.compiled if name == "export_and_serve" else [])
        for name in TUTORIALS
    ],
)
def test_a_tutorial_runs_from_top_to_bottom(name, folder, capsys):
    path = EXAMPLES / f"{name}.py"
    code = path.read_text(encoding="utf-8")
    for package in re.findall(r"^# Needs: pip install (\w+)", code, re.M):
        pytest.importorskip(package, reason=f"{name} needs it")
    for constant, value in TINY.get(name, {}).items():
        code, count = re.subn(rf"^{constant} = .*", lambda _, v=value: "", code, flags=re.M)
        assert count == 1, f"{name} has no constant {constant}"
    namespace = {"__name__": "__main__", **TINY.get(name, {})}

    exec(compile(code, str(path), "exec"), namespace)

    differences = re.findall(r"largest difference: (\S+)", capsys.readouterr().out)
    assert all(float(difference) < 1e-5 for difference in differences)


def test_the_site_shows_each_tutorial():
    with_cells = [
        path.stem for path in EXAMPLES.glob("*.py") if "# %%" in path.read_text(encoding="utf-8")
    ]
    assert sorted(with_cells) == sorted(TUTORIALS)


def test_a_tutorial_names_the_next_one():
    for name, following in itertools.pairwise(TUTORIALS[1:]):
        end = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")[-600:]
        assert f"examples/{following}.py" in end, name
