"""What a power cut, a full disk or a missing permission leaves of what kgpt writes."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from oracles import to_numpy
from power_cut import recorded

import kgpt
from kgpt import files
from kgpt.convert import export as export_module
from kgpt.files import check_manifest

TEXTS = ["the cat sat on the mat\n", "a dull dog\n"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return kgpt.Tokenizer.train(TEXTS, vocabulary_size=270)


def make_lm(tokenizer, seed=0, vocabulary_size=None):
    keras.utils.set_random_seed(seed)
    size = vocabulary_size or tokenizer.vocabulary_size
    backbone = kgpt.GPTBackbone(size, 1, 2, 8, max_sequence_length=6, dropout=0.0)
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def old(tokenizer):
    model = make_lm(tokenizer, 1)
    model.enable_lora(2)
    return model


@pytest.fixture(scope="module")
def new(tokenizer):
    model = make_lm(tokenizer, 2)
    model.enable_lora(2)
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    return model


@pytest.fixture(scope="module")
def reader(tokenizer):
    model = make_lm(tokenizer, 3)
    model.enable_lora(2)
    return model


def numbers(model):
    """Two numbers of a model: of its body's weights, and of LoRA's additions."""
    lora = [w for w in model.weights if "lora" in w.path]
    rest = [w for w in model.backbone.weights if "lora" not in w.path]
    return [float(sum(to_numpy(w).astype("float64").sum() for w in part)) for part in (rest, lora)]


# === Ways to write a file and read a number off it ===


def save(model, path):
    model.save(path)


def read_saved(path, reader):
    return numbers(keras.saving.load_model(path))


def save_weights(model, path):
    model.save_weights(path)


def read_weights(path, reader):
    reader.load_weights(path)
    return numbers(reader)


def save_shards(model, path):
    model.save_weights(path, max_shard_size=1e-5)


def save_lora(model, path):
    model.save_lora_weights(path)


def read_lora(path, reader):
    reader.load_lora_weights(path)
    return numbers(reader)[1]


def save_tokens(model, path):
    text = f"{sum(numbers(model))} is a text"
    kgpt.data.write_tokens([text], model.tokenizer, path, progress=False)


def read_tokens(path, reader):
    return np.load(path).tolist()


def save_tokenizer(model, path):
    extra = [f"<{sum(numbers(model)):.0f}>"]
    model.tokenizer.with_special_tokens(extra).save(path)


def read_tokenizer(path, reader):
    return kgpt.Tokenizer.from_file(path).special_tokens


FILES = {
    "lm.keras": (save, read_saved),
    "lm.weights.h5": (save_weights, read_weights),
    "lm.lora.h5": (save_lora, read_lora),
    "train.npy": (save_tokens, read_tokens),
    "tokenizer.json": (save_tokenizer, read_tokenizer),
}


@pytest.mark.parametrize("name", FILES)
def test_a_power_cut_leaves_the_earlier_file_or_the_new_one(tmp_path, name, old, new, reader):
    write, read = FILES[name]
    live = tmp_path / "live"
    live.mkdir()
    write(old, live / name)
    before = read(live / name, reader)

    with recorded(live) as cuts:
        write(new, live / name)

    found = [read(disk / name, reader) for disk in cuts.disks(tmp_path / "disk")]
    after = read(live / name, reader)
    assert before != after
    assert all(one in (before, after) for one in found)
    assert found[0] == before
    assert found[-1] == after
    assert [path.name for path in live.iterdir()] == [name]


def test_a_power_cut_between_shards_leaves_no_mixture(tmp_path, old, new, reader):
    live = tmp_path / "live"
    live.mkdir()
    save_shards(old, live / "lm.weights.json")
    before = read_weights(live / "lm.weights.json", reader)

    with recorded(live) as cuts:
        save_shards(new, live / "lm.weights.json")

    after = read_weights(live / "lm.weights.json", reader)
    found = []
    for disk in cuts.disks(tmp_path / "disk"):
        if (disk / "lm.weights.json").exists():
            found.append(read_weights(disk / "lm.weights.json", reader))
    assert len(list(live.iterdir())) > 2
    assert found[0] == before != after == found[-1]
    assert all(one in (before, after) for one in found)


# === Folders ===


@pytest.fixture(scope="module")
def folders(tokenizer):
    pytest.importorskip("safetensors", reason="folders in this format need the extra `hub`")
    return make_lm(tokenizer, 1), make_lm(None, 2, vocabulary_size=11)


def read_folder(path):
    if not (path / "config.json").exists():
        with pytest.raises((FileNotFoundError, files.DamagedError)):
            kgpt.from_huggingface(path)
        return None
    check_manifest(path)
    model = kgpt.from_huggingface(path)
    return numbers(model)[0], model.tokenizer is None


def test_a_power_cut_leaves_a_new_folder_or_none(tmp_path, folders):
    live = tmp_path / "live"
    live.mkdir()

    with recorded(live) as cuts:
        kgpt.to_huggingface(folders[0], live / "model", max_shard_size=2000)

    found = [(disk / "model").exists() for disk in cuts.disks(tmp_path / "disk")]
    assert found[0] is False
    assert found[-1] is True
    for disk in cuts.disks(tmp_path / "disk"):
        if (disk / "model").exists():
            assert read_folder(disk / "model") == read_folder(live / "model")


@pytest.mark.parametrize("by", ["kgpt", "others"])
def test_a_power_cut_leaves_no_mixture_of_two_folders(tmp_path, folders, by):
    live = tmp_path / "live"
    kgpt.to_huggingface(folders[0], live / "model", max_shard_size=2000)
    (live / "model" / "notes.txt").write_text("mine")
    if by == "others":
        (live / "model" / files.MANIFEST).unlink()
    before = read_folder(live / "model")

    with recorded(live) as cuts:
        kgpt.to_huggingface(folders[1], live / "model", overwrite=True)

    after = read_folder(live / "model")
    found = [read_folder(disk / "model") for disk in cuts.disks(tmp_path / "disk")]
    assert {type(one) for one in found} == {tuple, type(None)}
    assert found[0] == before != after == found[-1]
    assert set(found) == {before, None, after}
    names = {path.name for path in (live / "model").iterdir()}
    assert {"config.json", "model.safetensors", "notes.txt", files.MANIFEST} <= names
    assert not names & {"tokenizer.json", "model.safetensors.index.json"}
    assert not any("partial" in name or "-of-" in name for name in names)


def test_a_preset_has_a_manifest_and_a_card_that_may_be_edited(tmp_path, tokenizer):
    backbone = make_lm(tokenizer).backbone
    similarity = kgpt.TextRegressor(backbone, num_outputs=1, tokenizer=None)
    model = make_lm(tokenizer)
    for folder, one in (("lm", model), ("head", similarity)):
        one.save_to_preset(tmp_path / folder, name="A model")

        manifest = json.loads((tmp_path / folder / files.MANIFEST).read_text())["files"]
        assert manifest
        assert "README.md" not in manifest
        (tmp_path / folder / "README.md").write_text("mine")
        check_manifest(tmp_path / folder)
        type(one).from_preset(tmp_path / folder)


def test_transformers_opens_a_folder_with_a_manifest(tmp_path, folders):
    transformers = pytest.importorskip("transformers", reason="reads what is written")
    pytest.importorskip("torch", reason="transformers needs it")

    kgpt.to_huggingface(folders[0], tmp_path / "model")

    assert (tmp_path / "model" / files.MANIFEST).exists()
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "model")


# === Exports ===


def fake_conversion(layer, inputs, axes, path, format, **kwargs):
    text = f"{float(to_numpy(layer.weights[0]).sum())}"
    if format != "tf_saved_model":
        path.write_text(text)
        return
    (path / "variables").mkdir()
    (path / "variables" / "variables.data").write_text(text)
    (path / "saved_model.pb").write_text(text)


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_power_cut_leaves_no_mixture_of_two_exports(tmp_path, monkeypatch, old, new, format):
    monkeypatch.setattr(export_module, "_check", lambda model, path, *_: Path(path))
    monkeypatch.setattr(export_module, "_convert", fake_conversion)
    live = tmp_path / "live"
    path = "lm.onnx" if format == "onnx" else "lm"
    live.mkdir()

    def read(folder):
        if format == "onnx":
            return (folder / path).read_text()
        if not (folder / path / "saved_model.pb").exists():
            return None
        pb, data = (folder / path / name for name in ("saved_model.pb", "variables/variables.data"))
        assert pb.read_text() == data.read_text()
        return pb.read_text()

    old.export(live / path, format=format, verbose=False)
    before = read(live)

    with recorded(live) as cuts:
        new.export(live / path, format=format, verbose=False)

    found = [read(disk) for disk in cuts.disks(tmp_path / "disk")]
    expected = {before, read(live)} | ({None} if format != "onnx" else set())
    assert len(expected) > 1
    assert set(found) == expected


def test_a_full_disk_in_a_converter_is_one_line(tmp_path, monkeypatch, old):
    def fail(layer, inputs, axes, path, format, **kwargs):
        raise RuntimeError("{{function_node}} part-00000: No space left on device\n[Op:SaveV2]")

    monkeypatch.setattr(export_module, "_check", lambda model, path, *_: Path(path))
    monkeypatch.setattr(export_module, "_convert", fail)

    with pytest.raises(OSError, match=r"lm: the disk is full\. Free some space") as error:
        old.export(tmp_path / "lm", verbose=False)

    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


# === Errors ===

# Writes everything in all ways under a limit, and prints the errors.
FULL = """
import json, pathlib, resource, sys
import kgpt
folder, size, errors = pathlib.Path(sys.argv[1]), int(sys.argv[2]), {}
tokenizer = kgpt.Tokenizer.from_file(folder / "tokenizer.json")
backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 2, 2, 64, max_sequence_length=6)
plain = kgpt.CausalLM(backbone, tokenizer=tokenizer)
head = kgpt.TextRegressor(kgpt.GPTBackbone.from_config(backbone.get_config()), num_outputs=1)
lm = kgpt.CausalLM(kgpt.GPTBackbone.from_config(backbone.get_config()))
lm.enable_lora(60)
texts = ["some text " * 100_000]
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
ways = {
    "lm.keras": lm.save,
    "lm.weights.h5": lm.save_weights,
    "lm.lora.h5": lm.save_lora_weights,
    "train.npy": lambda path: kgpt.data.write_tokens(texts, tokenizer, path, progress=False),
    "huggingface": lambda path: kgpt.to_huggingface(plain, path),
    "preset": plain.save_to_preset,
}
for name, write in ways.items():
    try:
        write(folder / name)
        errors[name] = None, "no error"
    except OSError as error:
        errors[name] = error.errno, str(error)
print(json.dumps(errors))
"""


@pytest.mark.skipif(os.name == "nt", reason="asks for a limit that Windows has not")
def test_a_full_disk_is_one_line_and_the_earlier_files_stay(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer.json")
    names = ("lm.keras", "lm.weights.h5", "lm.lora.h5", "train.npy")
    for name in names:
        (tmp_path / name).write_text("old")

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "100000"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (number, message) in found.items():
        assert number == errno.EFBIG, name
        assert "\n" not in message
        assert f"Can't write {tmp_path / name}: the file is larger than is allowed" in message
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", *names}
    assert all((tmp_path / name).read_text() == "old" for name in names)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_is_gone_or_a_file_is_one_line(tmp_path, name, old):
    write, _ = FILES[name]
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" / name

    with pytest.raises(OSError, match=f"Can't write {tmp_path / 'file'}.*file. Take") as error:
        write(old, path)
    assert "\n" not in str(error.value)

    if name in ("lm.keras", "lm.weights.h5", "tokenizer.json"):  # the others make it
        with pytest.raises(FileNotFoundError, match=f"{name}: its folder does not exist. Make"):
            write(old, tmp_path / "gone" / name)


@pytest.mark.parametrize("name", ["lm.keras", "lm.weights.h5"])
def test_free_space_is_asked_for_before_a_model_is_written(tmp_path, monkeypatch, name, old):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(OSError, match=f"{name}: it needs .* bytes, and the disk has 1,000 left"):
        FILES[name][0](old, tmp_path / name)

    assert list(tmp_path.iterdir()) == []


def test_what_keras_says_of_names_stays_as_it_is(tmp_path, old, monkeypatch):
    with pytest.raises(ValueError, match=r"Received: filepath=lm\.txt"):
        old.save_weights("lm.txt")
    with pytest.raises(ValueError, match="Invalid filepath extension"):
        old.save("lm.txt")

    old.save(tmp_path / "lm.keras")
    before = (tmp_path / "lm.keras").read_bytes()
    monkeypatch.setattr("builtins.input", lambda question: "n")
    old.save(tmp_path / "lm.keras", overwrite=False)
    assert (tmp_path / "lm.keras").read_bytes() == before


def test_a_model_is_saved_as_a_folder_too(tmp_path, old):
    old.save(tmp_path / "lm", zipped=False)
    old.save(tmp_path / "lm", zipped=False)

    assert numbers(keras.saving.load_model(tmp_path / "lm")) == numbers(old)


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("a.h5", {}, r"Try '.*a\.keras'.*save_weights\('.*a\.weights\.h5'\)"),
        ("a.weights.h5", {"include_optimizer": False}, r"save_weights\('.*a\.weights\.h5'\)"),
        ("a.keras", {"zipped": False}, "Try '.*a', or leave zipped out"),
    ],
)
@pytest.mark.parametrize("part", ["model", "backbone", "head"])
def test_a_name_that_could_not_be_loaded_is_refused(tmp_path, old, part, name, options, hint):
    parts = {"model": old, "backbone": old.backbone, "head": kgpt.TextRegressor(old.backbone)}

    with pytest.raises(ValueError, match=hint):
        parts[part].save(tmp_path / name, **options)

    assert list(tmp_path.iterdir()) == []


def test_a_token_file_that_windows_keeps_open_is_one_line(tmp_path, monkeypatch, old):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Access is denied", str(source), 5, str(target))

    save_tokens(old, tmp_path / "train.npy")
    before = (tmp_path / "train.npy").read_bytes()
    monkeypatch.setattr(files, "_IS_WINDOWS", True)
    monkeypatch.setattr(os, "replace", refuse)

    with pytest.raises(PermissionError, match=r"train\.npy: Windows lets no file") as error:
        save_tokens(old, tmp_path / "train.npy")

    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.npy"]
    assert (tmp_path / "train.npy").read_bytes() == before
