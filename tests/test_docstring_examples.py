"""The examples of docstrings, of README.md and of docs/ run as they are typed."""

import ast
import gzip
import json
import re
import textwrap
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from keras.src.distribution import distribution_lib

import kgpt
from kgpt.convert.weights import named_weights
from kgpt.models.presets import HUB

PACKAGE = Path(kgpt.__file__).parent
ROOT = PACKAGE.parent
TEXT = "def main(arguments):\n    return Hello world\n\n" * 400


# === The blocks ===


def docstring_blocks():
    """`(name, code)` of each "Example:" in the package's docstrings."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                docstring = ast.get_docstring(node) or ""
                found = re.search(r"^Examples?:\n((?:    .*(?:\n|\Z)|\n)+)", docstring, re.M)
                if found:
                    part = path.relative_to(PACKAGE).with_suffix("").as_posix()
                    yield f"{part}.{getattr(node, 'name', '')}", textwrap.dedent(found[1])


def markdown_blocks():
    """`(name, code)` of each block of Python in README.md and docs/."""
    folders = (ROOT / "docs", ROOT / "docs" / "how_to")
    for path in [ROOT / "README.md", *(file for f in folders for file in sorted(f.glob("*.md")))]:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix().removeprefix("docs/")
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), 1):
            yield f"{name}.{number}", code


BLOCKS = dict([*docstring_blocks(), *markdown_blocks()])


# === What the examples take for granted ===


@pytest.fixture(scope="module")
def tokenizer():
    return kgpt.Tokenizer.train([TEXT], vocabulary_size=290)


def make_lm(tokenizer, **options):
    backbone = kgpt.GPTBackbone(
        tokenizer.vocabulary_size, 1, 2, 12, max_sequence_length=256, **options
    )
    lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    lm.compile("adam")
    return lm


def write_files(folder, tokenizer):
    """The files that examples read, in small."""
    (folder / "books").mkdir()
    for i in range(30):
        text = f"{i} Hello world\n" * 20 + TEXT[: 10 * i]
        (folder / "books" / f"{i}.txt").write_text(text)
    tokens = np.array((tokenizer.encode(TEXT) * 10)[: 32 * 256 + 1], "uint16")
    for name in ("train.npy", "corpus/train.npy", "web/part-0.npy", "code/part-0.npy"):
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / name, tokens)
    np.save(folder / "small.npy", tokens[: 4 * 256 + 1])
    with gzip.open(folder / "reviews.csv.gz", "wt") as file:
        file.write("review\n" + "a fine film\n" * 300)


def write_release(folder):
    """The files of the GPT-1 release, in small, as its `train.py` reads them."""
    folder.mkdir(parents=True)
    layer = [[1, 12, 36], [36], [1, 12, 12], [12], [12], [12], [1, 12, 48], [48], [1, 48, 12]]
    shapes = [[512, 12], [4, 12], *([*layer, [12], [12], [12]] * 12)]
    numbers = np.zeros(sum(int(np.prod(shape)) for shape in shapes), "float32")
    for i, part in enumerate(np.array_split(numbers, 10)):
        np.save(folder / f"params_{i}.npy", part)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    vocabulary = {"<unk>": 0, "a": 1, "a</w>": 2, "aa</w>": 3}
    (folder / "encoder_bpe_40000.json").write_text(json.dumps(vocabulary))
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\na a</w>\n")


def write_nanogpt(lm):
    """A checkpoint and a token file of nanoGPT, in small."""
    torch = pytest.importorskip("torch", reason="nanoGPT's checkpoints are files of PyTorch")
    state = {}
    for name, weight in named_weights(lm.backbone).items():
        array = keras.ops.convert_to_numpy(getattr(*weight))
        is_linear = name.startswith("h.") and array.ndim == 2
        state[f"transformer.{name}"] = torch.tensor(array.T if is_linear else array)
    args = {"n_layer": 1, "n_head": 2, "n_embd": 12, "block_size": 256, "bias": True}
    args["vocab_size"] = lm.backbone.vocabulary_size
    for folder in ("out", "data/shakespeare"):
        Path(folder).mkdir(parents=True)
    torch.save({"model": state, "model_args": args}, "out/ckpt.pt")
    np.load("train.npy").tofile("data/shakespeare/val.bin")


def make_keras_model(tokenizer):
    inputs = {"token_ids": keras.Input((None,), dtype="int32", name="token_ids")}
    embedded = keras.layers.Embedding(tokenizer.vocabulary_size, 5)(inputs["token_ids"])
    model = keras.Model(inputs, keras.layers.Dense(tokenizer.vocabulary_size)(embedded))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture
def namespace(name, tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, tokenizer)
    files = sorted((tmp_path / "books").glob("*.txt"))
    monkeypatch.setattr(kgpt.data, "standard_library_files", lambda: files)
    policy = keras.config.dtype_policy()
    words = set(re.findall(r"\w+", BLOCKS[name]))
    models = {}
    if words & {"lm", "backbone"}:
        models["lm"] = make_lm(tokenizer)
        models["backbone"] = models["lm"].backbone
    if "keras_model" in words:
        models["keras_model"] = make_keras_model(tokenizer)
    yield {
        **{"keras": keras, "kgpt": kgpt, "np": np, "Path": Path, "tokenizer": tokenizer},
        **models,
        "train": kgpt.data.windows("small.npy", 256, 4, seed=0),
        "valid": kgpt.data.windows("small.npy", 256, 4),
        "token_ids": np.array([tokenizer.encode("Hello world")]),
        **{"texts": ["a fine film", "a dull one"], "labels": [0, 1]},
        **{"contexts": ["The sky is", "Snow is"], "choices": [["blue.", "loud."]] * 2},
        **{"first": ["a cat", "a dog"], "second": ["a kitten", "a car"], "scores": [4.2, 0.3]},
    }
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def stand_ins(tokenizer, tmp_path, monkeypatch):
    """What examples download, in small: a function that is called with their code."""

    def make(code):
        names = re.findall(r'from_huggingface\("(.*?)"', code)
        names += [HUB[name] for name in re.findall(r'from_preset\("(gpt[12])"\)', code)]
        if names:
            hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")
            pytest.importorskip("safetensors", reason="the extra `hub`")
            for name in names:
                options = {} if "gpt2" in name else {"norm_first": False}
                kgpt.to_huggingface(make_lm(tokenizer, **options), tmp_path / "hub" / name)
            monkeypatch.setattr(
                hub, "snapshot_download", lambda name, **_: str(tmp_path / "hub" / name)
            )
        if "push_to_hub" in code:
            hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")
            monkeypatch.setattr(hub, "HfApi", mock.MagicMock())
        if "keras_hub.models.GPT2CausalLM.from_preset" in code:
            import keras_hub

            theirs = kgpt.to_keras_hub(make_lm(tokenizer))
            monkeypatch.setattr(keras_hub.models.GPT2CausalLM, "from_preset", lambda name: theirs)
        if "kgpt.from_nanogpt(" in code:
            write_nanogpt(make_lm(tokenizer))
        if "DeviceMesh(" in code:  # eight devices, which examples name and don't use
            devices = [f"cpu:{i}" for i in range(8)]
            monkeypatch.setattr(distribution_lib, "list_devices", lambda: devices)
        if "from_openai(" in code or "from_vocabulary(" in code:
            write_release(tmp_path / "finetune-transformer-lm" / "model")

    return make


# === The tests ===

# What a day's model has more of than a test's needs.
SMALLER = {"num_layers=4": "num_layers=1", "hidden_dim=128": "hidden_dim=16"}
SMALLER["max_new_tokens=100"] = "max_new_tokens=20"
SMALLER["kgpt.data.stories()"] = "kgpt.data.stories(20)"


def is_traced(code):
    """Whether an example needs TensorFlow's graphs: those that export do."""
    return "export" in code


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.compiled if is_traced(code) else [])
        for name, code in BLOCKS.items()
    ],
)
def test_an_example_runs_as_it_is_typed(name, namespace, stand_ins):
    code = BLOCKS[name]
    for package in re.findall(r"^import (\w+)$", code, re.M):
        pytest.importorskip(package, reason=f"the example imports {package}")
    if re.search(r"transformers\.(AutoModel|pipeline)|TransformersConverter", code):
        pytest.importorskip("torch", reason="the models of transformers are PyTorch's")
    if re.search("to_huggingface|save_to_preset|push_to_hub|model_card", code):
        pytest.importorskip("safetensors", reason="the extra `hub`")
        pytest.importorskip("huggingface_hub", reason="the extra `hub`")
    if re.search(r"_scores\(|Scores\(|sklearn", code):
        pytest.importorskip("sklearn", reason="the extra `scores`")
    if "read_texts" in code:
        pytest.importorskip("pyarrow", reason="the extra `tables`")
    if "to_keras_hub" in code:
        pytest.importorskip("keras_hub", reason="the example makes a layer of keras_hub")
    if 'format="onnx"' in code and keras.config.backend() == "jax":
        pytest.skip("the jax backend exports no ONNX")
    if 'format="litert"' in code and keras.config.backend() != "tensorflow":
        pytest.skip("LiteRT is exported on the TensorFlow backend")
    stand_ins(code)
    for size, smaller in SMALLER.items():
        code = code.replace(size, smaller)

    exec(compile(code, name, "exec"), namespace)


def test_examples_are_found():
    assert {
        "README.md.1",
        "a_day.md.1",
        "convert/export.export",
        "tokenizer/tokenizer.Tokenizer",
    } <= set(BLOCKS)
    assert len(BLOCKS) > 30
