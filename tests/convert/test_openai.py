import json
import shutil

import keras
import numpy as np
import pytest

from kgpt.convert.openai import from_openai
from kgpt.tokenizer import Tokenizer

# Of different sizes, so that no axis can be taken for another.
POSITIONS, TOKENS, WIDTH, INNER, LAYERS, HEADS = 11, 53, 12, 48, 2, 3
TEXTS = ["the cat sat on the mat, didn't it?\nthe dog did not.\n"] * 3


def shapes(tokens=TOKENS):
    layer = [
        [1, WIDTH, 3 * WIDTH], [3 * WIDTH], [1, WIDTH, WIDTH], [WIDTH], [WIDTH], [WIDTH],
        [1, WIDTH, INNER], [INNER], [1, INNER, WIDTH], [WIDTH], [WIDTH], [WIDTH],
    ]  # fmt: skip
    return [[POSITIONS, WIDTH], [tokens, WIDTH], *(layer * LAYERS)]


def write_release(folder, tensors):
    """Writes tensors as `train.py` of the release reads them: ten slices of all numbers."""
    numbers = np.concatenate([tensor.ravel() for tensor in tensors])
    for i, part in enumerate(np.array_split(numbers, 10)):
        np.save(folder / f"params_{i}.npy", part)
    text = json.dumps([list(tensor.shape) for tensor in tensors])
    (folder / "params_shapes.json").write_text(text)


def random_tensors(tokens=TOKENS):
    rng = np.random.default_rng(0)
    tensors = [(0.3 * rng.normal(size=shape)).astype("float32") for shape in shapes(tokens)]
    for i in range(LAYERS):
        tensors[2 + 12 * i + 4] += 1  # the gains
        tensors[2 + 12 * i + 10] += 1
    return tensors


@pytest.fixture
def release(tmp_path):
    tensors = random_tensors()
    write_release(tmp_path, tensors)
    return tmp_path, tensors


def layer_norm(x, gain, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def attention(x, weights, bias):
    batch, length, width = x.shape
    query, key, value = (
        part.reshape(batch, length, HEADS, width // HEADS).transpose(0, 2, 1, 3)
        for part in np.split(x @ weights[0] + bias, 3, axis=-1)
    )
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(width // HEADS)
    scores = np.where(np.tril(np.ones((length, length))), scores, -1e9)
    return (softmax(scores) @ value).transpose(0, 2, 1, 3).reshape(x.shape)


def logits_by_the_papers_formulas(tensors, token_ids):
    """GPT-1, equation 2, in numpy and double precision."""
    positions, tokens, *rest = (tensor.astype("float64") for tensor in tensors)
    h = tokens[token_ids] + positions[: token_ids.shape[1]]
    for i in range(LAYERS):
        w_qkv, b_qkv, w_o, b_o, g_1, b_1, w_fc, b_fc, w_proj, b_proj, g_2, b_2 = rest[
            12 * i : 12 * (i + 1)
        ]
        n = layer_norm(h + attention(h, w_qkv, b_qkv) @ w_o[0] + b_o, g_1, b_1)
        h = layer_norm(n + gelu(n @ w_fc[0] + b_fc) @ w_proj[0] + b_proj, g_2, b_2)
    return h @ tokens.T


def test_logits_are_those_of_the_papers_formulas(release):
    folder, tensors = release
    token_ids = np.random.default_rng(1).integers(0, TOKENS, (4, 7))

    lm = from_openai(folder, num_heads=HEADS)

    logits = keras.ops.convert_to_numpy(lm(token_ids))
    expected = logits_by_the_papers_formulas(tensors, token_ids)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert lm.tokenizer is None
    assert not lm.backbone.norm_first


def test_the_vocabulary_in_the_folder_becomes_the_tokenizer(tmp_path):
    pytest.importorskip("ftfy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    pytest.importorskip("spacy", reason="the exact route to GPT-1's words (the extra `gpt1`)")
    tokenizer = Tokenizer.train(TEXTS, 60, style="gpt1", exact=True)
    model = json.loads(tokenizer.get_config()["tokenizer_json"])["model"]
    (tmp_path / "encoder_bpe_40000.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *map(" ".join, model["merges"]), ""]
    (tmp_path / "vocab_40000.bpe").write_text("\n".join(merges))
    write_release(tmp_path, random_tensors(tokens=len(model["vocab"])))

    lm = from_openai(tmp_path, num_heads=HEADS)

    assert lm.tokenizer.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_the_shapes_of_the_real_release_make_gpt1(reference_data):
    real = json.loads((reference_data / "vocab/gpt1/params_shapes.json").read_text())

    small = shapes()

    sizes = {512: POSITIONS, 40478: TOKENS, 768: WIDTH, 2304: 3 * WIDTH, 3072: INNER, 1: 1}
    assert [[sizes[size] for size in shape] for shape in real] == small[:2] + 12 * small[2:14]


def test_a_dtype_is_that_of_the_model(release):
    lm = from_openai(release[0], num_heads=HEADS, dtype="bfloat16")

    assert {weight.dtype for weight in lm.weights} == {"bfloat16"}


def test_slices_that_are_cut_short_are_refused(release):
    folder, _ = release
    np.save(folder / "params_9.npy", np.load(folder / "params_9.npy")[:-1])

    with pytest.raises(ValueError, match=r"must have the .* numbers of params_shapes\.json"):
        from_openai(folder, num_heads=HEADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(), "12 tensors for each layer"),
        (lambda tensors: tensors.insert(2, tensors.pop(4)), r"in place of \(12, 36\)"),
    ],
)
def test_shapes_that_are_not_gpt1s_are_refused(release, change, message):
    folder, tensors = release
    change(tensors)
    write_release(folder, tensors)

    with pytest.raises(ValueError, match=message):
        from_openai(folder, num_heads=HEADS)


def test_missing_files_are_named(release):
    folder, _ = release
    (folder / "params_3.npy").unlink()

    with pytest.raises(FileNotFoundError, match=r"params_3\.npy"):
        from_openai(folder, num_heads=HEADS)

    shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError, match=r"There is no params_shapes\.json"):
        from_openai(folder)
