"""Layout maps: which dimension of which weight is divided, and what is said where none can be."""

import keras
import numpy as np
import pytest

import kgpt
from kgpt.models.presets import PRESETS

SIZES = {"vocabulary_size": 24, "num_layers": 2, "num_heads": 4, "hidden_dim": 8}
MATRICES = (
    *("embedding/token_embedding/embeddings", "embedding/position_embedding/embeddings"),
    "decoder_block_1/attention/query_key_value/kernel",
    "decoder_block_1/attention/output_projection/kernel",
    "decoder_block_1/feed_forward/expansion/kernel",
    "decoder_block_1/feed_forward/output_projection/kernel",
)


def mesh(*shape, names=("batch", "model")):
    devices = [f"cpu:{i}" for i in range(int(np.prod(shape)))]
    return keras.distribution.DeviceMesh(shape, names[: len(shape)], devices)


def make_backbone(**options):
    return kgpt.GPTBackbone(**{**SIZES, "max_sequence_length": 16, **options})


def axes(layouts, path):
    layout = layouts[path]
    return None if layout is None else layout.axes


# === The layouts ===

# (vocabulary, width), (positions, width), then as in MATRICES.
LAYOUTS = {
    ("fsdp", 4): [
        *((None, "batch"), (None, "batch"), (None, "batch")),
        *((None, "batch"), ("batch", None), (None, "batch")),
    ],
    ("tensor", 2, 4): [
        *(("model", None), ("model", None), ("model", None)),
        *(("model", None), (None, "model"), ("model", None)),
    ],
    ("tensor_fsdp", 2, 4): [
        *(("model", "batch"), ("model", "batch"), ("model", "batch")),
        *(("model", "batch"), ("batch", "model"), ("model", "batch")),
    ],
}


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case[0])
def test_each_matrix_is_divided_as_the_style_says(case):
    style, *shape = case

    layouts = kgpt.distribution.layout_map(SIZES, mesh(*shape), style=style)

    assert [axes(layouts, path) for path in MATRICES] == LAYOUTS[case]


def test_with_the_data_alone_divided_all_weights_are_whole():
    layouts = kgpt.distribution.layout_map(SIZES, mesh(4), style="data")

    assert len(layouts) == 0
    assert layouts.device_mesh.shape == (4,)


@pytest.mark.parametrize(("style", "shape"), [(case[0], case[1:]) for case in LAYOUTS])
def test_no_matrix_of_a_model_stays_whole_by_accident(style, shape):
    backbone = make_backbone(rotary_positions=False)
    backbone.enable_lora(2)
    model = kgpt.TextClassifier(backbone, num_classes=3)

    layouts = kgpt.distribution.layout_map(model, mesh(*shape), style=style)

    whole = {v.path for v in model.variables if axes(layouts, v.path) is None and len(v.shape) > 1}
    assert whole == ({"output_projection/kernel"} if style == "tensor" else set())
    for v in model.variables:
        for axis, size in zip(axes(layouts, v.path) or (), v.shape, strict=False):
            assert axis is None or size % shape[("batch", "model").index(axis)] == 0, v.path


@pytest.mark.parametrize(("style", "shape"), [(case[0], case[1:]) for case in LAYOUTS])
def test_lora_goes_with_the_rows_and_the_columns_of_its_matrix(style, shape):
    layouts = kgpt.distribution.layout_map(SIZES, mesh(*shape), style=style)

    for path in MATRICES[2:]:
        rows, columns = axes(layouts, path)
        scope = path.removesuffix("kernel")
        assert (axes(layouts, f"{scope}lora_kernel_a") or (None,))[0] == rows
        assert (axes(layouts, f"{scope}lora_kernel_b") or (None, None))[1] == columns


def test_a_model_in_another_one_has_the_same_layouts():
    layouts = kgpt.distribution.layout_map(SIZES, mesh(4), style="fsdp")

    for path in MATRICES:
        assert axes(layouts, f"mine/{path}") == axes(layouts, path)


def test_the_mesh_names_its_axes():
    names = ("replicas", "heads")

    layouts = kgpt.distribution.layout_map(SIZES, mesh(2, 4, names=names), style="tensor_fsdp")

    assert axes(layouts, MATRICES[0]) == ("heads", "replicas")


# === What the model may be ===


def test_a_preset_a_config_and_a_model_give_the_same_map():
    backbone = make_backbone()
    lm = kgpt.CausalLM(backbone)

    maps = [
        kgpt.distribution.layout_map(model, mesh(2, 4), style="tensor_fsdp")
        for model in (backbone, lm, backbone.get_config(), lm.get_config())
    ]

    for layouts in maps:
        assert {path: axes(layouts, path) for path in layouts} == {
            path: axes(maps[0], path) for path in maps[0]
        }


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_is_divided_among_eight_devices(preset):
    layouts = kgpt.distribution.layout_map(preset, mesh(8), style="fsdp")

    assert all(axes(layouts, path) for path in MATRICES)


@pytest.mark.parametrize("model", ["gpt5", {"hidden_dim": 8}, 7])
def test_a_model_without_sizes_is_refused(model):
    with pytest.raises(ValueError, match="model must be a preset's name"):
        kgpt.distribution.layout_map(model, mesh(4), style="fsdp")


# === What does not divide ===


def test_a_vocabulary_that_does_not_divide_is_divided_by_its_width_with_a_warning():
    with pytest.warns(UserWarning, match=r"with_vocabulary_size\(50260\)"):
        layouts = kgpt.distribution.layout_map("gpt2", mesh(2, 4), style="tensor_fsdp")

    assert axes(layouts, MATRICES[0]) == (None, "model")  # nor does it by the batch's two


def test_heads_that_do_not_divide_are_named():
    sizes = {**PRESETS["gpt2_xl"], "vocabulary_size": 50260}

    with pytest.warns(UserWarning, match="num_heads=25.*computes all of the attention"):
        kgpt.distribution.layout_map(sizes, mesh(2, 4), style="tensor")


@pytest.mark.parametrize("sizes", [{"hidden_dim": 10, "num_heads": 2}, {"intermediate_dim": 6}])
def test_a_width_that_does_not_divide_is_refused(sizes):
    [name] = sizes.keys() - {"num_heads"}

    with pytest.raises(ValueError, match=f"4 devices in axis 'batch' and {name}={sizes[name]}"):
        kgpt.distribution.layout_map({**SIZES, **sizes}, mesh(4), style="fsdp")


@pytest.mark.parametrize(
    ("style", "shape"),
    [("tensor", (8,)), ("tensor_fsdp", (8,)), ("data", (2, 4)), ("fsdp", (2, 4))],
)
def test_a_mesh_that_the_style_has_no_use_for_is_refused(style, shape):
    with pytest.raises(ValueError, match=f"mesh must be of .* for style='{style}'"):
        kgpt.distribution.layout_map(SIZES, mesh(*shape), style=style)


def test_what_is_no_mesh_and_no_style_is_refused():
    with pytest.raises(ValueError, match=r"mesh must be a keras\.distribution\.DeviceMesh"):
        kgpt.distribution.layout_map(SIZES, (2, 4), style="tensor")
    with pytest.raises(ValueError, match="style must be one of 'data', 'fsdp'"):
        kgpt.distribution.layout_map(SIZES, mesh(4), style="zero3")


# === Without a distribution ===


def test_without_a_distribution_pin_gives_what_it_got():
    x = keras.ops.ones((2, 3))

    assert kgpt.distribution.pin(x, "batch", ..., "model") is x


def test_a_distribution_that_the_backend_ignores_is_refused():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has keras.distribution")
    lm = kgpt.CausalLM(make_backbone())
    layout_map = kgpt.distribution.layout_map(lm, mesh(4), style="fsdp")

    distribution = keras.distribution.ModelParallel(layout_map=layout_map)

    with (
        distribution.scope(),
        pytest.raises(ValueError, match=r"no effect on .* KERAS_BACKEND=jax"),
    ):
        lm.fit(np.zeros((4, 8), "int32"), verbose=0)
