"""Files that somebody made to do harm, or for another program: refused in one line, at once."""

import json
import os
import resource
import shutil
import time
import zipfile

import h5py
import keras
import numpy as np
import pytest
from test_damaged_files import KINDS, make_lm, make_tokenizer

import kgpt

HUGE = 10**9
MOST_BYTES = 500 * 2**20


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for name, (write, _, _) in KINDS.items():
        (folder / name).mkdir()
        write(folder / name)
    return folder


@pytest.fixture
def folder_of(originals, tmp_path):
    """A function that gives a copy of the files of a kind."""

    def copy(kind):
        return shutil.copytree(originals / kind, tmp_path / kind)

    return copy


def assert_refused(load, path, message, error=ValueError):
    """Asserts an error of one line with the path, soon, without much memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(error, match=message) as refused:
        load(path)

    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert time.monotonic() - start < 120  # soon, also on a busy machine
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_BYTES


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# === What is no ordinary file ===

LOADERS = {
    "tokenizer": ("tokenizer.json", KINDS["tokenizer"][1]),
    "vocabulary": ("encoder.json", KINDS["vocabulary"][1]),
    "tokens": ("tokens.npy", KINDS["tokens"][1]),
    "huggingface": ("config.json", KINDS["huggingface"][1]),
    "weights": ("model.safetensors", KINDS["huggingface"][1]),
    "preset": ("model.keras", KINDS["preset"][1]),
    "lora": ("some.lora.h5", KINDS["lora"][1]),
    "openai": ("params_4.npy", KINDS["openai"][1]),
    "nanogpt": ("ckpt.pt", KINDS["nanogpt"][1]),
}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_no_file_is_refused_and_not_waited_for(folder_of, kind, make):
    name, load = LOADERS[kind]
    folder = folder_of("huggingface" if kind == "weights" else kind)
    (folder / name).unlink()
    make(folder / name)

    assert_refused(load, folder, name, (ValueError, FileNotFoundError))


# === Sizes ===

CONFIGS = [
    ({"n_layer": HUGE}, "n_layer|num_layers"),
    ({"n_layer": 5000}, "num_layers=5000"),
    ({"vocab_size": 2 * HUGE}, "vocabulary_size"),
    ({"n_positions": 10 * HUGE}, "max_sequence_length"),
    ({"n_embd": 6 * 10**6}, "hidden_dim"),
    ({"n_inner": HUGE}, "intermediate_dim"),
    ({"n_layer": "1"}, "num_layers='1'"),
    ({"n_head": 0}, "num_heads=0"),
    ({"n_head": 4}, "must divide"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon"),
    ({"resid_pdrop": float("nan"), "embd_pdrop": 0, "attn_pdrop": 0}, "dropout|rate"),
    ({"model_type": ["gpt2"]}, "model_type"),
    ({"activation_function": {}}, "activation_function"),
    ({"architectures": 5}, "config.json"),
    ({"kgpt": {"new_option": 1}}, "new_option"),
    ({"kgpt_new": 1}, "kgpt_new"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=lambda x: str(x)[:30])
def test_a_config_that_the_weights_do_not_fit_takes_no_memory(folder_of, change, message):
    folder = folder_of("huggingface")
    edit_json(folder / "config.json", lambda config: config.update(change))

    assert_refused(kgpt.from_huggingface, folder, message)


@pytest.mark.parametrize("name", ["num_layers", "vocabulary_size", "hidden_dim"])
def test_a_body_that_no_machine_holds_is_refused(name):
    config = make_lm().backbone.get_config()
    sizes = {"vocabulary_size": 5, "num_layers": 1, "num_heads": 2, "hidden_dim": 6}

    with pytest.raises(ValueError, match=rf"bytes of memory. Received: .*{name}={10 * HUGE}"):
        kgpt.GPTBackbone.from_config({**config, name: 10 * HUGE})
    with pytest.raises(ValueError, match=rf"Received: .*{name}="):
        kgpt.GPTBackbone(**{**sizes, name: 2**31})


def rewrite_zip(path, change):
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)


def replace_in_config(old, new):
    def change(parts):
        config = parts["config.json"].decode()
        assert old in config
        parts["config.json"] = config.replace(old, new).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.update({"model.weights.h5": bytes(2**28)}), "in memory"),
        (lambda parts: parts.update({"config.json": b"{" * 2**20}), "damaged"),
        (lambda parts: parts.pop("config.json"), "damaged"),
        (
            replace_in_config('"num_layers": 1,', f'"num_layers": {HUGE},'),
            "510,000,001,674 weights",
        ),
        (replace_in_config('"vocabulary_size": 272,', '"vocabulary_size": 9000000,'), "weights"),
        (replace_in_config('"hidden_dim": 6,', '"hidden_dim": 12,'), "model.keras"),
        (replace_in_config('"dropout": 0.0,', '"dropout": 0.0, "later": 1,'), "later"),
    ],
    ids=["bomb", "braces", "no config", "layers", "vocabulary", "width", "later"],
)
def test_a_hostile_file_of_keras_in_a_folder_is_refused(folder_of, change, message):
    folder = folder_of("preset")
    rewrite_zip(folder / "model.keras", change)

    assert_refused(kgpt.CausalLM.from_preset, folder, message)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (lambda s: s.__setitem__(1, [HUGE, 6]), "numbers of"),
        (lambda s: s.__setitem__(1, [1, 272 * 6]), "model in the config|of params"),
        (lambda s: s.__setitem__(1, [-272, -6]), "ints above 0"),
        (lambda s: s.__setitem__(1, "ab"), "ints above 0"),
        (lambda s: s.clear(), "ints above 0"),
    ],
)
def test_hostile_shapes_of_openais_files_are_refused(folder_of, shapes, message):
    folder = folder_of("openai")
    edit_json(folder / "params_shapes.json", shapes)

    assert_refused(KINDS["openai"][1], folder, message)


def test_views_that_are_larger_than_the_file_are_refused(folder_of):
    torch = pytest.importorskip("torch")
    file = folder_of("nanogpt") / "ckpt.pt"
    checkpoint = torch.load(file)
    checkpoint["model"]["transformer.wte.weight"] = torch.zeros(1).expand(HUGE, 6)
    torch.save(checkpoint, file)

    assert_refused(kgpt.from_nanogpt, file, "must be in the file")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n_layer": HUGE}, "num_layers"), ({"vocab_size": HUGE}, "vocabulary_size")],
)
def test_sizes_that_the_checkpoint_lacks_are_refused(folder_of, options, message):
    torch = pytest.importorskip("torch")
    file = folder_of("nanogpt") / "ckpt.pt"
    checkpoint = torch.load(file)
    checkpoint["model_args"].update(options)
    torch.save(checkpoint, file)

    assert_refused(kgpt.from_nanogpt, file, message)


def test_code_in_a_checkpoint_does_not_run(folder_of, tmp_path):
    torch = pytest.importorskip("torch")
    file, trace = folder_of("nanogpt") / "ckpt.pt", tmp_path / "it ran"

    class Code:
        def __reduce__(self):
            return open, (str(trace), "w")

    torch.save({"model": Code(), "model_args": {}}, file)

    assert_refused(kgpt.from_nanogpt, file, "code is not run")
    assert not trace.exists()


# === Numbers that are none ===


def nan_in_safetensors(folder):
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["transformer.h.0.ln_1.bias"][2] = np.nan
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def nan_in_openais(folder):
    array = np.load(folder / "params_3.npy")
    array[2] = np.inf
    np.save(folder / "params_3.npy", array)


def nan_in_lora(folder):
    with h5py.File(folder / "some.lora.h5", "r+") as file:
        file["decoder_block_0/query_key_value/lora_kernel_a"][0, 0] = np.nan
        del file.attrs["kgpt_sha256"]


def nan_in_preset(folder):
    model = keras.models.load_model(folder / "model.keras")
    model.backbone.final_norm.beta.assign(np.full(6, np.nan))
    model.save(folder / "model.keras")


def nan_in_nanogpt(folder):
    torch = pytest.importorskip("torch")
    checkpoint = torch.load(folder / "ckpt.pt")
    checkpoint["model"]["transformer.h.0.ln_1.bias"][2] = np.nan
    torch.save(checkpoint, folder / "ckpt.pt")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("huggingface", nan_in_safetensors),
        ("openai", nan_in_openais),
        ("lora", nan_in_lora),
        ("preset", nan_in_preset),
        ("nanogpt", nan_in_nanogpt),
    ],
)
def test_weights_that_are_no_numbers_are_refused(folder_of, kind, change):
    folder = folder_of(kind)
    change(folder)

    assert_refused(KINDS[kind][1], folder, "finite numbers.*NaN or infinity in")


# === LoRA ===


def edit_lora(change):
    def edit(folder):
        with h5py.File(folder / "some.lora.h5", "r+") as file:
            change(file)

    return edit


NAME = "decoder_block_0/query_key_value/lora_kernel_a"


def grow(file):
    del file[NAME]
    file.create_dataset(NAME, shape=(HUGE, 2), dtype="f4", chunks=(1024, 2))


def link(file):
    del file[NAME]
    file[NAME] = h5py.ExternalLink("some.lora.h5", "/decoder_block_0")


def describe(**settings):
    def change(file):
        description = {**json.loads(file.attrs["kgpt_lora"]), **settings}
        file.attrs["kgpt_lora"] = json.dumps(description)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (grow, "larger than the file"),
        (link, "there is no lora_kernel_a"),
        (describe(rank=HUGE), "damaged|sizes"),
        (describe(rank="2"), "rank='2'"),
        (describe(lora_alpha=7.5), "content is not what was written"),
        (describe(target_layer_names=["code"]), "target_layer_names"),
        (describe(later=1), "later version"),
        (lambda file: file[NAME].write_direct(np.ones((6, 2), "f4")), "not what was written"),
    ],
)
def test_hostile_additions_are_refused(folder_of, change, message):
    folder = folder_of("lora")
    edit_lora(change)(folder)

    assert_refused(KINDS["lora"][1], folder, message)


# === Token files ===


def header(shape, dtype="<u2", more=""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, {more}}}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(f"({HUGE}0000,)") + bytes(120), "tokens.npy"),
        (header("(30,)") + bytes(120), "header speaks of"),
        (header("(60,)", ">u2") + bytes(120), "byte order"),
        (header("(60,)", "<f2") + bytes(120), "dtype float16"),
        (header("(60,)", "|O") + bytes(480), "token file"),
        (header("(" * 300) + bytes(120), "token file"),
        (header("(6, 10)") + bytes(120), r"shape \(6, 10\)"),
        (b"PK\x03\x04" + bytes(60), "token file"),
        (b"", "token file"),
    ],
)
def test_hostile_token_files_are_refused(tmp_path, content, message):
    (tmp_path / "tokens.npy").write_bytes(content)

    assert_refused(KINDS["tokens"][1], tmp_path, message)


@pytest.mark.parametrize("at_a_place", [True, False])  # Windows reads files from where they stand
def test_a_token_file_that_is_cut_while_it_is_read_does_not_end_the_process(
    tmp_path, monkeypatch, at_a_place
):
    if not at_a_place:
        monkeypatch.delattr(os, "pread", raising=False)
    np.save(tmp_path / "tokens.npy", np.zeros(200_000, "uint16"))
    batches = kgpt.data.windows(tmp_path / "tokens.npy", sequence_length=1000, batch_size=2)
    reading = iter(batches)
    next(reading)
    os.truncate(tmp_path / "tokens.npy", 4096)

    with pytest.raises(ValueError, match=r"not written to.*400,128 bytes.*4,096 now"):
        list(reading)
    with pytest.raises(ValueError, match="not written to"):
        batches.check_vocabulary(5)


# === Tokenizers ===


def update(**parts):
    return lambda content: content.update(parts)


def in_model(**parts):
    return lambda content: content["model"].update(parts)


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TOKENIZERS = [
    (update(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}),
     "100 times as long"),
    (update(normalizer={"type": "Sequence", "normalizers": [DOUBLING] * 30}), "1.07e.09 times"),
    (update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": ""}, "content": " "}] * 30}), "times as long"),
    (update(normalizer={"type": "Prepend", "prepend": "b" * 10**6}), "times as long"),
    (update(normalizer={"type": "Unknown"}), "own format"),
    (update(normalizer=5), "own format"),
    (in_model(dropout=0.1), "dropout=0.1"),
    (in_model(later=True), "later version"),
    (update(later={}), "later version"),
    (update(version="9.0"), "own format"),
    (in_model(vocab={"a": 4294967295}, merges=[]), "largest id 4294967295"),
    (in_model(vocab={"a": -1}), "own format"),
    (in_model(merges=[["x", "y"]]), "own format"),
    (update(model={"type": "WordPiece", "vocab": {"a": 0}}), "own format|style"),
    (update(model=None), "own format"),
    (update(decoder=None), "style"),
    (update(added_tokens=[5]), "own format"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TOKENIZERS)
def test_hostile_tokenizers_are_refused(folder_of, change, message):
    file = folder_of("tokenizer") / "tokenizer.json"
    edit_json(file, change)

    assert_refused(kgpt.Tokenizer.from_file, file, message)


def test_deep_json_is_refused(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("[" * 10**6)

    assert_refused(kgpt.Tokenizer.from_file, file, "own format")


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|start|>", "type_id": 0}},
               {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [5], "tokens": ["<|start|>"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("truncation", {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
                        "stride": 0}),
        ("padding", {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}),
        ("post_processor", TEMPLATE),
    ],
)  # fmt: skip
def test_what_encode_leaves_out_is_said_once(folder_of, part, value, recwarn):
    file = folder_of("tokenizer") / "tokenizer.json"
    edit_json(file, update(**{part: value}))

    tokenizer = kgpt.Tokenizer.from_file(file)

    [warning] = [str(w.message) for w in recwarn if "left out" in str(w.message)]
    assert part in warning
    assert tokenizer.encode("the cat sat") == make_tokenizer().encode("the cat sat")
    tokenizer.save(file)
    assert json.loads(file.read_text())[part] is None


def test_a_manifest_that_does_not_fit_is_said_first(folder_of):
    folder = folder_of("manifest")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)

    assert_refused(kgpt.from_huggingface, folder, r"model\.safetensors is damaged")


def test_keys_that_no_one_knows_are_said(folder_of):
    folder = folder_of("huggingface")
    edit_json(folder / "config.json", update(rope_scaling={"factor": 2.0}))

    with pytest.warns(UserWarning, match="rope_scaling"):
        kgpt.from_huggingface(folder)
