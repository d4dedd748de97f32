"""Parts of a body that are not trained, and parts that come from another body."""

import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

VOCABULARY, LENGTH = 19, 7


def make_backbone(seed=0, **options):
    sizes = {"num_layers": 3, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 9}
    return randomize(
        kgpt.GPTBackbone(**{"vocabulary_size": VOCABULARY, "dropout": 0.0, **sizes, **options}),
        seed,
    )


def parts(variables):
    """The parts of the body, or of a head, that variables belong to."""
    return {variable.path.split("/")[0] for variable in variables}


REST = {"decoder_block_2", "final_norm"}
ALL = {"embedding", "decoder_block_0", "decoder_block_1", *REST}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCABULARY, (8, LENGTH)), np.arange(8) % 3


# === freeze ===


@pytest.mark.parametrize(
    ("num_blocks", "trained"),
    [(0, ALL - {"embedding"}), (2, REST), (3, {"final_norm"})],
)
def test_the_embeddings_and_the_first_blocks_are_not_trained(num_blocks, trained):
    backbone = make_backbone()

    backbone.freeze(num_blocks)

    assert parts(backbone.trainable_weights) == trained
    assert parts(kgpt.CausalLM(backbone).trainable_weights) == trained
    frozen = kgpt.CausalLM(backbone).non_trainable_weights
    assert parts(frozen) == ALL - trained
    assert len(frozen) == len(backbone.weights) - len(backbone.trainable_weights)


def test_a_fit_changes_what_is_trained_and_nothing_else(data):
    model = kgpt.TextClassifier(make_backbone(), 3, dropout=0.0)
    model.freeze(2)
    model.compile(keras.optimizers.SGD(0.5))
    before = [to_numpy(weight) for weight in model.weights]

    model.fit(*data, verbose=0)

    changed = [
        weight
        for weight, old in zip(model.weights, before, strict=True)
        if np.any(to_numpy(weight) != old)
    ]
    assert parts(changed) == {*REST, "output_projection"}


def test_the_last_call_counts():
    backbone = make_backbone()

    backbone.freeze(3)
    backbone.freeze(2)
    assert parts(backbone.trainable_weights) == REST
    backbone.unfreeze()
    assert parts(backbone.trainable_weights) == ALL
    backbone.trainable = False
    backbone.freeze(2)
    assert parts(backbone.trainable_weights) == REST


@pytest.mark.parametrize("order", ["freeze first", "lora first"])
def test_beside_lora_the_additions_of_frozen_blocks_are_not_trained(order):
    backbone = make_backbone()
    if order == "freeze first":
        backbone.freeze(2)
    backbone.enable_lora(2, target_layer_names=["query"])
    if order == "lora first":
        backbone.freeze(2)

    names = {(w.path.split("/")[0], w.name) for w in backbone.trainable_weights}
    assert names == {("decoder_block_2", f"lora_kernel_{factor}") for factor in "ab"}
    backbone.unfreeze()
    assert {w.name for w in backbone.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    assert len(backbone.trainable_weights) == 6
    backbone.freeze(2)
    backbone.merge_lora()
    assert parts(backbone.trainable_weights) == REST


@pytest.mark.parametrize("lora", [False, True])
def test_files_keep_what_is_frozen(tmp_path, lora):
    lm = kgpt.CausalLM(make_backbone())
    lm.freeze(2)
    if lora:
        lm.enable_lora(2)
    lm.save(tmp_path / "lm.keras")

    loaded = keras.saving.load_model(tmp_path / "lm.keras")

    trained = [w.path for w in lm.trainable_weights]
    assert [w.path for w in loaded.trainable_weights] == trained
    assert loaded.backbone.get_config() == lm.backbone.get_config()
    loaded.unfreeze()
    assert len(loaded.trainable_weights) > len(trained)


@pytest.mark.parametrize("num_blocks", [4, -1, 1.0, True, "all", None])
def test_other_numbers_of_blocks_are_refused(num_blocks):
    backbone = make_backbone()

    with pytest.raises(ValueError, match=f"Received: num_blocks={num_blocks!r}"):
        backbone.freeze(num_blocks)
    assert parts(backbone.trainable_weights) == ALL


# === take_blocks ===


def layers_of(backbone):
    return [backbone.embedding, *backbone.decoder_blocks, backbone.final_norm]


@pytest.mark.parametrize("num_blocks", [0, 2, 3])
def test_the_embeddings_and_the_first_blocks_come_from_the_other_body(num_blocks):
    own, other = make_backbone(seed=1), make_backbone(seed=2, num_layers=4)
    before = [[to_numpy(w) for w in layer.weights] for layer in layers_of(own)]

    own.take_blocks(other, num_blocks)

    for i, layer in enumerate(layers_of(own)):
        expected = before[i]
        if i <= num_blocks:
            expected = [to_numpy(w) for w in layers_of(other)[i].weights]
        for weight, value in zip(layer.weights, expected, strict=True):
            np.testing.assert_array_equal(to_numpy(weight), value)


def test_the_states_after_the_blocks_that_were_taken_are_the_same(data):
    own, other = make_backbone(seed=1), make_backbone(seed=2, num_layers=4)

    own.take_blocks(other, 2)

    ours, theirs = (kgpt.CausalLM(b).embed(data[0].tolist(), layer=2) for b in (own, other))
    np.testing.assert_array_equal(ours, theirs)


def test_weights_are_taken_in_the_dtype_of_the_body_that_takes_them():
    own = make_backbone(seed=1, dtype="bfloat16")
    other = make_backbone(seed=2)

    own.take_blocks(other, 1)

    kernel = own.decoder_blocks[0].feed_forward.expansion.kernel
    assert keras.backend.standardize_dtype(kernel.dtype) == "bfloat16"
    expected = to_numpy(other.decoder_blocks[0].feed_forward.expansion.kernel)
    ours = to_numpy(keras.ops.cast(kernel, "float32"))
    np.testing.assert_allclose(ours, expected, rtol=2**-8)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"hidden_dim": 15}, ""),
        ({"vocabulary_size": 20}, "Try with_vocabulary_size"),
        ({"max_sequence_length": 8}, "Try with_max_sequence_length"),
        ({"rotary_positions": True}, ""),
        ({"num_heads": 2}, ""),
        ({"intermediate_dim": 13}, ""),
        ({"norm_first": False}, ""),
        ({"activation": "relu"}, ""),
        ({"layer_norm_epsilon": 1e-6}, ""),
        ({"query_key_norm": True}, ""),
    ],
    ids=lambda case: next(iter(case), ""),
)
def test_bodies_that_differ_are_refused_with_what_differs(options, advice):
    own, other = make_backbone(), make_backbone(seed=1, **options)
    before = to_numpy(own.token_embedding.embeddings)
    (name,) = options

    with pytest.raises(ValueError, match=f"same {name}. Received: {name}=.*{advice}"):
        own.take_blocks(other, 1)
    np.testing.assert_array_equal(to_numpy(own.token_embedding.embeddings), before)


def test_embeddings_alone_come_from_bodies_with_other_blocks():
    own = make_backbone(rotary_positions=True, num_heads=2, norm_first=False)
    other = make_backbone(1, rotary_positions=True, max_sequence_length=30, num_heads=3)

    own.take_blocks(other, 0)

    ours, theirs = (to_numpy(b.token_embedding.embeddings) for b in (own, other))
    np.testing.assert_array_equal(ours, theirs)


def test_more_blocks_than_there_are_and_no_bodies_are_refused():
    own, other = make_backbone(num_layers=2), make_backbone()

    with pytest.raises(ValueError, match="num_blocks=3 for bodies with num_layers=2 and 3"):
        own.take_blocks(other, 3)
    with pytest.raises(TypeError, match=r"other must be a kgpt.GPTBackbone.*other=model.backbone"):
        own.take_blocks(kgpt.CausalLM(other), 1)


@pytest.mark.parametrize("kind", ["lora", "int8"])
@pytest.mark.parametrize("which", [0, 1])
def test_weights_with_additions_and_quantized_ones_are_refused(kind, which):
    bodies = make_backbone(), make_backbone(seed=1)
    if kind == "lora":
        bodies[which].enable_lora(2)
    else:
        bodies[which].quantize("int8")

    with pytest.raises(ValueError, match=f"lora_rank={2 if kind == 'lora' else None}, quantized"):
        bodies[0].take_blocks(bodies[1], 1)


# === trainable, set by hand ===


def _freeze_as_in_keras_guides(model):
    for layer in (model.backbone.embedding, *model.backbone.decoder_blocks[1:]):
        layer.trainable = False


def _freeze_the_head(model):
    model.output_projection.trainable = False


def _freeze_a_part(model):
    model.freeze(1)
    model.backbone.decoder_blocks[2].feed_forward.trainable = False


def _train_the_last_block(model):
    model.backbone.trainable = False
    model.backbone.decoder_blocks[-1].trainable = True


def _train_no_head_and_lora(model):
    model.enable_lora(2)
    model.backbone.decoder_blocks[1].trainable = model.output_projection.trainable = False


@pytest.mark.parametrize(
    "change",
    [
        *(_freeze_as_in_keras_guides, _freeze_the_head, _freeze_a_part),
        *(_train_the_last_block, _train_no_head_and_lora),
    ],
)
@pytest.mark.parametrize("copied", ["file", "clone"])
def test_copies_train_the_layers_that_are_trainable(change, copied, data, tmp_path):
    model = kgpt.TextClassifier(make_backbone(), 3, dropout=0.0)
    change(model)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(*data, verbose=0)

    if copied == "file":
        model.save(tmp_path / "model.keras")
        copy = keras.saving.load_model(tmp_path / "model.keras")
    else:
        copy = keras.models.clone_model(model)

    expected = [weight.path for weight in model.trainable_weights]
    assert [weight.path for weight in copy.trainable_weights] == expected
    if copied == "file":  # the optimizer's state belongs to what is trained
        for one in (model, copy):
            one.fit(*data, verbose=0)
        for weight, other in zip(model.weights, copy.weights, strict=True):
            np.testing.assert_allclose(to_numpy(other), to_numpy(weight), atol=1e-5)
