import gc
import math
import types

import keras
import numpy as np
import pytest
from oracles import gradients, to_numpy

from kgpt.kernels import attention, platform
from kgpt.kernels.attention import choice, reference, tiled, visible_keys
from kgpt.kernels.dropout import repeatable_masks

HEADS, HEAD_DIM = 2, 4
RATE = 0.3
on_torch = pytest.mark.skipif(keras.config.backend() != "torch", reason="PyTorch's own kernel")


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def inputs(length, dtype="float32", batch=2):
    """Queries, keys and values as variables."""
    return [
        keras.Variable(random((batch, length, HEADS, HEAD_DIM), i), dtype=dtype) for i in range(3)
    ]


def segments(length, batch=2):
    """Documents of unequal lengths, others in each row."""
    starts = np.random.default_rng(5).random((batch, length)) < 8 / length
    return np.cumsum(starts, axis=1).astype("int32")


def seed():
    return keras.random.SeedGenerator(3)


def kept_weights(length, batch=2):
    """The mask of dropout over all weights, put together from those that the tiles draw."""
    tile = math.ceil(length / 4) if length < attention.LOOPED_FROM else attention.TILE
    tiles = math.ceil(length / tile)
    in_group = math.ceil(tiles / 4)
    draw = repeatable_masks(RATE, seed())
    keep = np.zeros((batch, HEADS, tiles * tile, tiles * tile), bool)
    for i in range(tiles):
        start, end = i * tile, min(tiles, (i // in_group + 1) * in_group) * tile
        weights = keras.ops.zeros((batch, HEADS, tile, end))
        keep[:, :, start : start + tile, :end] = to_numpy(draw(weights, start))
    return keep[:, :, :length, :length]


def formula(query, key, value, segment_ids=None, keep=None, rate=0.0):
    length = query.shape[1]
    visible = visible_keys(segment_ids, 0, length, length)
    return reference(query, key, value, visible, keep, rate)


def results(function, variables):
    """The output, and the gradients of a weighted sum of it."""
    factors = keras.ops.array(random(variables[0].shape, 9))

    def output():
        return keras.ops.cast(function(*map(keras.ops.convert_to_tensor, variables)), "float32")

    def loss():
        return keras.ops.sum(output() * factors)

    return [to_numpy(keras.ops.stop_gradient(output())), *gradients(loss, variables)]


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        one, other = (np.asarray(x, "float32") for x in (one, other))
        assert np.abs(one - other).max() < tolerance * np.abs(other).max()


@pytest.mark.parametrize(
    ("length", "rate", "has_segments"),
    [
        (256, 0.0, False),  # one tile in a group
        (256, RATE, True),
        (1000, RATE, False),
        (1023, 0.0, True),  # padded to whole tiles
        (1024, 0.0, False),  # several tiles in a loop
        (1024, RATE, True),
        (2048, RATE, False),
    ],
)
def test_tiles_have_the_values_and_gradients_of_the_formula(length, rate, has_segments):
    batch = 2 if length < 1000 else 1
    variables = inputs(length, batch=batch)
    segment_ids = segments(length, batch) if has_segments else None
    keep = kept_weights(length, batch) if rate else None

    found = results(
        lambda *qkv: tiled(*qkv, segment_ids, rate, seed() if rate else None), variables
    )

    expected = results(lambda *qkv: formula(*qkv, segment_ids, keep, rate), variables)
    assert_close(found, expected, 2e-5)


@pytest.mark.parametrize("length", [256, 1024])
def test_tiles_in_bfloat16_are_near_to_the_formula_in_float32(length):
    keep, segment_ids = kept_weights(length), segments(length)

    found = results(lambda *qkv: tiled(*qkv, segment_ids, RATE, seed()), inputs(length, "bfloat16"))

    expected = results(lambda *qkv: formula(*qkv, segment_ids, keep, RATE), inputs(length))
    assert_close(found, expected, 0.03)


@pytest.mark.parametrize("length", [256, 1024])
def test_dropout_of_tiles_leaves_its_share_out_and_differs_from_place_to_place(length):
    keep = kept_weights(length)

    seen = np.tril(np.ones((length, length), bool))
    assert keep[..., seen].mean() == pytest.approx(1 - RATE, abs=0.005)
    rows = keep[:, :, -1].reshape(2 * HEADS, length)
    assert len(np.unique(rows, axis=0)) == 2 * HEADS
    tile = 64 if length == 256 else 128
    for start in range(tile, length, tile):  # no tile repeats the draws of its neighbour
        later, earlier = keep[:, :, start : start + tile], keep[:, :, start - tile : start]
        same = (later == earlier)[..., : start - tile]
        assert same.size == 0 or same.mean() < 0.75


def test_each_call_draws_another_mask():
    query, key, value = map(keras.ops.convert_to_tensor, inputs(256))
    generator = seed()

    first, second = (to_numpy(tiled(query, key, value, None, RATE, generator)) for _ in range(2))

    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("length", "tile"), [(300, 7), (1030, 100)])
def test_tiles_of_any_size_give_the_same(length, tile):
    variables = inputs(length)

    found = results(lambda *qkv: tiled(*qkv, tile=tile), variables)

    assert_close(found, results(formula, variables), 2e-5)


def test_a_query_sees_its_segment_up_to_itself():
    segment_ids = np.array([[0, 0, 3, 3, 3], [1, 1, 1, 1, 2]])

    visible = to_numpy(visible_keys(keras.ops.array(segment_ids), 2, 3, 5))

    expected = [
        [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]],
    ]
    np.testing.assert_array_equal(visible[:, 0], expected)


# === The choice ===


@pytest.fixture
def on_gpu(monkeypatch):
    """A machine with a GPU, as far as the choice of a path asks."""
    monkeypatch.setattr(platform, "device", lambda: "gpu")
    monkeypatch.setattr(platform, "cuda_compute_capability", lambda: (8, 0))


CPU = {
    "tensorflow": ["reference", "tiled", "tiled", "tiled", "reference"],
    "jax": ["reference", "tiled", "tiled", "tiled", "reference"],
    "torch": ["fused", "fused", "tiled", "tiled", "fused"],
}
GPU = {
    "tensorflow": ["reference", "tiled", "tiled", "tiled", "reference"],
    "jax": ["fused", "fused", "tiled", "tiled", "fused"],
    "torch": ["fused", "fused", "fused", "tiled", "fused"],
}
CASES = [
    {"shape": (2, 255, 3, 64)},
    {"shape": (2, 512, 3, 64)},
    {"shape": (2, 512, 3, 64), "rate": 0.1},
    {"shape": (2, 512, 3, 64), "has_segments": True},
    {"shape": (2, None, 3, 64)},
]


def test_on_a_cpu_tiles_are_chosen_where_pytorch_has_no_kernel(monkeypatch):
    monkeypatch.setattr(platform, "device", lambda: "cpu")

    found = [choice(dtype="bfloat16", **case) for case in CASES]

    assert found == CPU[keras.config.backend()]


@pytest.mark.usefixtures("on_gpu")
def test_on_a_gpu_the_fused_kernels_are_chosen_where_they_serve():
    found = [choice(dtype="bfloat16", **case) for case in CASES]

    assert found == GPU[keras.config.backend()]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("dtype", "width"), [("float32", 64), ("bfloat16", 20), ("float16", 160)])
def test_what_cudnn_does_not_serve_goes_in_tiles_on_jax(dtype, width):
    expected = "fused" if keras.config.backend() == "torch" else "tiled"

    assert choice((2, 512, 3, width), dtype) == expected


@pytest.mark.usefixtures("on_gpu")
def test_an_older_gpu_gets_tiles_on_jax(monkeypatch):
    monkeypatch.setattr(platform, "cuda_compute_capability", lambda: (7, 5))

    expected = "fused" if keras.config.backend() == "torch" else "tiled"

    assert choice((2, 512, 3, 64), "bfloat16") == expected


# === PyTorch's kernel ===


@on_torch
@pytest.mark.parametrize("length", [7, 256, 1024])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 0.03)])
def test_the_fused_kernel_has_the_values_and_gradients_of_the_formula(length, dtype, tolerance):
    found = results(attention.attend, inputs(length, dtype))

    assert_close(found, results(formula, inputs(length)), tolerance)


@on_torch
@pytest.mark.usefixtures("on_gpu")
def test_the_fused_kernels_dropout_has_the_mean_of_the_formula():
    many = 2000
    query, key, value = (keras.ops.convert_to_tensor(x)[:1] for x in inputs(32))

    repeated = (keras.ops.repeat(x, many, axis=0) for x in (query, key, value))
    found = to_numpy(attention.attend(*repeated, rate=RATE, seed=seed()))

    assert np.std(found, axis=0).max() > 0.1
    np.testing.assert_allclose(
        found.mean(axis=0), to_numpy(formula(query, key, value))[0], atol=0.1
    )


@on_torch
@pytest.mark.parametrize("length", [256, 1024])
def test_nothing_holds_on_to_a_step_after_it(length):
    variables = inputs(length)

    gc.collect()
    gc.disable()  # a training step is over long before its next round
    try:
        results(lambda *qkv: tiled(*qkv, None, RATE, seed()), variables)
        functions = [each for each in gc.get_objects() if isinstance(each, types.FunctionType)]
    finally:
        gc.enable()

    own = [each for each in functions if each.__module__ == attention.__name__]
    assert not [each.__qualname__ for each in own if "<locals>.gradient" in each.__qualname__]
