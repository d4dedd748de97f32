"""nanoGPT's checkpoints and token files."""

import math
import sys

import keras
import numpy as np
import pytest

import kgpt
from kgpt.convert.nanogpt import from_nanogpt

torch = pytest.importorskip("torch", reason="nanoGPT's checkpoints are files of PyTorch")

ARGS = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 11, "vocab_size": 53}


def make_state(bias, args=ARGS):
    """Tensors by nanoGPT's names: linear maps as `(outputs, inputs)`, the output tied."""
    width, generator = args["n_embd"], torch.Generator().manual_seed(0)

    def random(*shape):
        return 0.4 * torch.randn(shape, generator=generator)

    state = {"transformer.wte.weight": random(args["vocab_size"], width)}
    state["transformer.wpe.weight"] = random(args["block_size"], width)
    maps = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    norms = ["transformer.ln_f"]
    for block in (f"transformer.h.{i}" for i in range(args["n_layer"])):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for name, (outputs, inputs) in maps.items():
            state[f"{block}.{name}.weight"] = random(outputs * width, inputs * width)
            if bias:
                state[f"{block}.{name}.bias"] = random(outputs * width)
    for name in norms:
        state[f"{name}.weight"] = 1 + random(width)
        if bias:
            state[f"{name}.bias"] = random(width)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def forward(state, token_ids, heads, gelu="none"):
    """The logits by plain PyTorch: pre-norm blocks, causal attention, tied output."""
    functional = torch.nn.functional

    def linear(x, name):
        return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        shape = x.shape[-1:]
        return functional.layer_norm(x, shape, state[f"{name}.weight"], state.get(f"{name}.bias"))

    (batch, length), width = token_ids.shape, state["transformer.wpe.weight"].shape[1]
    x = state["transformer.wte.weight"][token_ids] + state["transformer.wpe.weight"][:length]
    future = torch.ones(length, length).triu(1).bool()
    for i in range(sum(name.endswith("ln_1.weight") for name in state)):
        block = f"transformer.h.{i}"
        qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(width, dim=2)
        q, k, v = (part.view(batch, length, heads, -1).transpose(1, 2) for part in qkv)
        scores = (q @ k.mT / math.sqrt(width // heads)).masked_fill(future, -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + linear(y, f"{block}.attn.c_proj")
        h = functional.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"), approximate=gelu)
        x = x + linear(h, f"{block}.mlp.c_proj")
    return linear(norm(x, "transformer.ln_f"), "lm_head")


def save(path, state, **args):
    """A checkpoint with all that `train.py` puts into it."""
    weight = torch.nn.Parameter(torch.ones(3))
    weight.sum().backward()
    optimizer = torch.optim.AdamW([weight])
    optimizer.step()
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": {**ARGS, "dropout": 0.2, "bias": "transformer.ln_f.bias" in state, **args},
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
    }
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(0).integers(0, 53, (2, 7))


def assert_same_logits(lm, state, token_ids, **options):
    expected = forward(state, torch.tensor(token_ids), ARGS["n_head"], **options).numpy()
    logits = keras.ops.convert_to_numpy(lm(token_ids))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_gives_the_logits_of_plain_pytorch(bias, token_ids, tmp_path):
    state = make_state(bias)

    lm = from_nanogpt(save(tmp_path / "ckpt.pt", state))

    assert isinstance(lm, kgpt.CausalLM)
    assert_same_logits(lm, state, token_ids)
    assert lm.backbone.dropout == 0.2
    assert lm.tokenizer is None


def test_names_of_a_compiled_model_and_old_masks_are_read(token_ids, tmp_path):
    state = make_state(True)
    stored = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    stored["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 11, 11)

    lm = from_nanogpt(save(tmp_path / "ckpt.pt", stored, bias=True))

    assert_same_logits(lm, state, token_ids)


def test_the_gelu_of_older_versions_is_an_option(token_ids, tmp_path):
    state = make_state(True)

    lm = from_nanogpt(save(tmp_path / "ckpt.pt", state), activation="gelu_tanh")

    assert_same_logits(lm, state, token_ids, gelu="tanh")


def test_a_padded_vocabulary_is_kept_beside_a_smaller_tokenizer(tmp_path):
    tokenizer = kgpt.Tokenizer.train(["the cat sat on the mat"] * 3, 265)
    args = {**ARGS, "vocab_size": 320}

    path = save(tmp_path / "ckpt.pt", make_state(True, args), vocab_size=320)
    lm = from_nanogpt(path, tokenizer=tokenizer)

    assert lm.backbone.vocabulary_size == 320
    assert lm.tokenizer is tokenizer


def test_missing_biases_are_zeros_that_train(token_ids, tmp_path):
    lm = from_nanogpt(save(tmp_path / "ckpt.pt", make_state(False)))
    bias = lm.backbone.decoder_blocks[0].feed_forward.expansion.bias
    assert not keras.ops.convert_to_numpy(bias).any()

    lm.compile(keras.optimizers.SGD(0.1))
    lm.fit(token_ids, verbose=0)

    assert keras.ops.convert_to_numpy(bias).all()


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        ({}, {"n_layer": 3}, r"missing: h\.2\.attn\.c_attn\.bias"),
        ({}, {"block_size": 12}, r"wpe\.weight \(11, 12\) in place of \(12, 12\)"),
        ({"transformer.h.0.gate.weight": torch.ones(2)}, {}, r"unknown: h\.0\.gate\.weight"),
        ({"lm_head.weight": torch.ones(53, 12)}, {}, "must be tied"),
        ({}, {"n_head": None}, "n_head.*each an int.*'n_head': None"),
        ({}, {"use_relu": True}, "nanoGPT's.*'use_relu': True"),
    ],
)
def test_what_is_not_nanogpts_is_refused_by_name(change, args, message, tmp_path):
    path = save(tmp_path / "ckpt.pt", {**make_state(True), **change}, **args)

    with pytest.raises(ValueError, match=message):
        from_nanogpt(path)


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2], {"model": 1, "model_args": {}}])
def test_other_files_of_pytorch_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "ckpt.pt")

    with pytest.raises(ValueError, match="dict with model and model_args"):
        from_nanogpt(tmp_path / "ckpt.pt")


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_is_not_run(tmp_path):
    path = save(tmp_path / "ckpt.pt", {**make_state(True), "x": _Touch(tmp_path / "touched")})

    with pytest.raises(ValueError, match="code is not run"):
        from_nanogpt(path)

    assert not (tmp_path / "touched").exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "ckpt.pt").write_bytes(b"no checkpoint")

    with pytest.raises(ValueError, match=r"must be a checkpoint of nanoGPT.*ckpt\.pt"):
        from_nanogpt(tmp_path / "ckpt.pt")
    with pytest.raises(FileNotFoundError, match=r"that nanoGPT writes, ckpt\.pt"):
        from_nanogpt(tmp_path)


def test_pytorch_is_named_where_it_is_missing(monkeypatch, tmp_path):
    if keras.config.backend() == "torch":
        pytest.skip("this backend is torch")
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(ImportError, match="pip install torch"):
        from_nanogpt(tmp_path / "ckpt.pt")


# === Its token files ===


def test_windows_are_read_from_its_token_files(tmp_path):
    np.arange(100, 116, dtype="uint16").tofile(tmp_path / "train.bin")

    batches = kgpt.data.windows(tmp_path / "train.bin", sequence_length=5, batch_size=3)

    [(inputs, targets)] = batches
    np.testing.assert_array_equal(inputs["token_ids"], np.arange(100, 115).reshape(3, 5))
    np.testing.assert_array_equal(targets, np.arange(101, 116).reshape(3, 5))


@pytest.mark.parametrize("size", [0, 33])
def test_a_token_file_of_odd_size_or_none_is_refused(size, tmp_path):
    (tmp_path / "train.bin").write_bytes(b"a" * size)

    with pytest.raises(ValueError, match=rf"not raw uint16.*train\.bin.*{size} bytes"):
        kgpt.data.windows(tmp_path / "train.bin", sequence_length=5, batch_size=1)


def test_a_token_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no token file.*train\.bin"):
        kgpt.data.windows(tmp_path / "train.bin", sequence_length=5, batch_size=1)
