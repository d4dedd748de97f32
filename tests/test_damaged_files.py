"""Damaged files: an error of one line that names the file, or what the undamaged file gives."""

import json
import random
import shutil
import warnings

import keras
import numpy as np
import pytest
from oracles import to_numpy

import kgpt
from kgpt.files import write_manifest

TEXTS = ["the cat sat on the mat", "a dog sat on the cat", "the dog and the mat"] * 3
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 6, "max_sequence_length": 7}


# === The files, each made once ===


def make_tokenizer():
    return kgpt.Tokenizer.train(TEXTS, 272)


def make_lm(tokenizer=None, **options):
    keras.utils.set_random_seed(1)
    backbone = kgpt.GPTBackbone(vocabulary_size=272, dropout=0.0, **SIZES, **options)
    return kgpt.CausalLM(backbone, tokenizer=tokenizer)


def write_tokenizer(folder):
    make_tokenizer().save(folder / "tokenizer.json")


def write_vocabulary(folder):
    model = json.loads(make_tokenizer().with_special_tokens([]).get_config()["tokenizer_json"])
    ids = model["model"]["vocab"]
    (folder / "encoder.json").write_text(json.dumps(ids))
    lines = "\n".join(" ".join(pair) for pair in model["model"]["merges"])
    (folder / "vocab.bpe").write_text(lines, encoding="utf-8")


def write_tokens(folder):
    kgpt.data.write_tokens(TEXTS, make_tokenizer(), folder / "tokens.npy")


def write_tokens_of_numpy(folder):
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 272, 60, "uint16"))


def write_huggingface(folder):
    kgpt.to_huggingface(make_lm(make_tokenizer()), folder, overwrite=True)
    for name in ("generation_config.json", "special_tokens_map.json", "kgpt_manifest.json"):
        (folder / name).unlink(missing_ok=True)  # which are not read


def write_huggingface_with_manifest(folder):
    write_huggingface(folder)
    write_manifest(folder)


def write_keras_preset(folder):
    lm = make_lm(make_tokenizer(), query_key_norm=True)  # for which transformers has no place
    lm.save(folder / "model.keras")


def write_lora(folder):
    lm = make_lm()
    lm.enable_lora(2)
    for block in lm.backbone.decoder_blocks:
        for factor in block.attention.query_key_value.lora_factors:
            factor.assign(np.linspace(0.1, 1.0, int(np.prod(factor.shape))).reshape(factor.shape))
    lm.save_lora_weights(folder / "some.lora.h5")


def write_openai(folder):
    lm = make_lm(norm_first=False)
    arrays = [to_numpy(weight) for weight in _in_gpt1s_order(lm.backbone)]
    (folder / "params_shapes.json").write_text(json.dumps([list(a.shape) for a in arrays]))
    for i, part in enumerate(np.array_split(np.concatenate([a.ravel() for a in arrays]), 10)):
        np.save(folder / f"params_{i}.npy", part.astype("float32"))


def _in_gpt1s_order(backbone):
    from kgpt.convert.weights import named_weights

    return [getattr(*weight) for weight in named_weights(backbone).values()]


def write_nanogpt(folder):
    torch = pytest.importorskip("torch")
    from kgpt.convert.weights import named_weights

    lm, state = make_lm(), {}
    for name, weight in named_weights(lm.backbone).items():
        array = torch.tensor(to_numpy(getattr(*weight)))
        turned = array.ndim == 2 and ".h." in f".{name}"
        state[f"transformer.{name}"] = array.T.contiguous() if turned else array
    state["lm_head.weight"] = state["transformer.wte.weight"]
    names = ("n_layer", "n_head", "n_embd", "block_size")
    options = dict(zip(names, SIZES.values(), strict=True), vocab_size=272, dropout=0.0, bias=True)
    torch.save({"model": state, "model_args": options}, folder / "ckpt.pt")


# === What is in them ===


def content(model):
    """All of a model that a file says: config, weights, tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    config = json.dumps(getattr(model, "backbone", model).get_config(), default=str)
    config = config.replace(getattr(model, "backbone", model).name, "")
    return [
        np.frombuffer(config.encode(), "uint8"),
        np.frombuffer(
            (tokenizer.get_config()["tokenizer_json"] if tokenizer else "").encode(), "u1"
        ),
        *(to_numpy(weight) for weight in model.weights),
    ]


def load_tokenizer(folder):
    tokenizer = kgpt.Tokenizer.from_file(folder / "tokenizer.json")
    return [np.array([tokenizer.vocabulary_size]), *map(np.array, tokenizer.encode_batch(TEXTS))]


def load_vocabulary(folder):
    files = folder / "encoder.json", folder / "vocab.bpe"
    tokenizer = kgpt.Tokenizer.from_vocabulary(*files)
    return [np.array([tokenizer.vocabulary_size]), *map(np.array, tokenizer.encode_batch(TEXTS))]


def load_tokens(folder):
    batches = kgpt.data.windows(folder / "tokens.npy", sequence_length=5, batch_size=3)
    return [batch[0]["token_ids"] for batch in batches]


def load_lora(folder):
    lm = make_lm()
    lm.load_lora_weights(folder / "some.lora.h5")
    return [to_numpy(weight) for weight in lm.trainable_weights]


# How each kind is written and read, and whether a change of any byte is noticed.
KINDS = {
    "tokenizer": (write_tokenizer, load_tokenizer, False),
    "vocabulary": (write_vocabulary, load_vocabulary, False),
    "tokens": (write_tokens, load_tokens, True),
    "tokens of numpy": (write_tokens_of_numpy, load_tokens, False),
    "huggingface": (write_huggingface, lambda x: content(kgpt.from_huggingface(x)), False),
    "manifest": (
        write_huggingface_with_manifest,
        lambda folder: content(kgpt.from_huggingface(folder)),
        True,
    ),
    "preset": (write_keras_preset, lambda x: content(kgpt.CausalLM.from_preset(x)), True),
    "lora": (write_lora, load_lora, True),
    "openai": (write_openai, lambda x: content(kgpt.from_openai(x, num_heads=2)), False),
    "nanogpt": (write_nanogpt, lambda x: content(kgpt.from_nanogpt(x / "ckpt.pt")), True),
}
NUM_CASES = 12  # of each damage and kind


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    write, load, is_noticed = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    write(folder)
    return folder, load, is_noticed, load(folder)


def flip_a_bit(data, dice):
    place = dice.randrange(len(data))
    changed = bytearray(data)
    changed[place] ^= 1 << dice.randrange(8)
    return bytes(changed)


def fill_a_block(data, dice):
    start = dice.randrange(len(data))
    length = dice.choice([4, 16, 64])
    return data[:start] + bytes([dice.choice([0, 255])] * length) + data[start + length :]


def cut(data, dice):
    return data[: dice.randrange(len(data))]


def add(data, dice):
    return data + dice.randbytes(dice.choice([1, 4, 30]))


@pytest.mark.parametrize("damage", [flip_a_bit, fill_a_block, cut, add])
def test_a_damaged_file_is_named_or_gives_what_it_gave(kind, damage, tmp_path):
    folder, load, is_noticed, expected = kind
    dice = random.Random(f"{folder.name[:-1]} {damage.__name__}")
    files = sorted(path for path in folder.iterdir() if path.name != "kgpt_manifest.json")

    for case in range(NUM_CASES):
        damaged = tmp_path / str(case)
        shutil.copytree(folder, damaged)
        file = damaged / dice.choice(files).name
        data = damage(file.read_bytes(), dice)
        file.write_bytes(data)

        received = outcome(load, damaged)

        if isinstance(received, str):
            assert str(damaged) in received, received
            assert "\n" not in received, received
        elif is_noticed or (damage is cut and file.suffix != ".bpe"):
            assert len(received) == len(expected), file
            for ours, theirs in zip(received, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=str(file))


def outcome(load, folder):
    """What is in the files, or the message of the error that they end in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return load(folder)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
