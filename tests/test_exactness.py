"""The same weights give the same numbers as other people's implementations."""

import keras
import numpy as np
import pytest
from keras import ops
from oracles import (
    backbone_weights,
    gradients,
    keras_hub_twin,
    randomize,
    to_numpy,
    transformers_config,
    transformers_twin,
)

import kgpt
from kgpt.models.backbone import PRESETS

# vocabulary_size, num_layers, num_heads, hidden_dim, max_sequence_length, length
SIZES = {
    "one layer": (17, 1, 1, 4, 9, 8),
    "odd heads": (23, 2, 3, 12, 11, 7),
    "deep": (31, 5, 2, 20, 6, 6),
    "wide": (101, 2, 7, 56, 40, 37),
}


@pytest.fixture(scope="module", params=[False, True], ids=["gpt1", "gpt2"])
def norm_first(request):
    return request.param


@pytest.fixture(scope="module", params=SIZES.values(), ids=SIZES.keys())
def sizes(request):
    return request.param


@pytest.fixture(scope="module")
def backbone(sizes, norm_first):
    vocabulary_size, num_layers, num_heads, hidden_dim, max_sequence_length, _ = sizes
    backbone = kgpt.GPTBackbone(
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        max_sequence_length=max_sequence_length,
        norm_first=norm_first,
        dropout=0.1,
    )
    return randomize(backbone)


@pytest.fixture(scope="module")
def batch(sizes):
    """Three sequences, the last two padded on the right; ids and a mask that is True for tokens."""
    vocabulary_size, length = sizes[0], sizes[-1]
    token_ids = np.random.default_rng(1).integers(1, vocabulary_size, (3, length))
    lengths = np.array([length, length - 2, 3])
    mask = np.arange(length) < lengths[:, None]  # (batch, length)
    return np.where(mask, token_ids, 0).astype("int32"), mask


@pytest.fixture(scope="module")
def theirs(backbone, batch):
    """Logits, loss and gradients by transformers and torch."""
    import torch

    token_ids, mask = (torch.tensor(x) for x in batch)
    twin = transformers_twin(backbone)
    output = twin(
        input_ids=token_ids.long(),
        attention_mask=mask.long(),
        labels=torch.where(mask, token_ids, -100).long(),
    )
    output.loss.backward()
    return {
        "logits": output.logits.detach().numpy(),
        "loss": output.loss.item(),
        "gradients": {
            name: twin.get_parameter(f"transformer.{name}").grad.numpy()
            for name in backbone_weights(backbone)
        },
    }


def logits_of(backbone, token_ids, mask):
    hidden_states = backbone({"token_ids": token_ids, "padding_mask": mask})
    return backbone.token_embedding(hidden_states, reverse=True)


def next_token_loss(backbone, token_ids, mask):
    """Written out in Keras operations: nothing of kgpt's own losses."""
    logits = logits_of(backbone, token_ids, mask)[:, :-1]
    losses = keras.losses.sparse_categorical_crossentropy(
        token_ids[:, 1:], logits, from_logits=True
    )
    counts = ops.array(mask[:, 1:], dtype="float32")
    return ops.sum(losses * counts) / ops.sum(counts)


def test_logits_are_those_of_transformers(backbone, batch, theirs):
    ours = to_numpy(logits_of(backbone, *batch))

    mask = batch[1]
    assert np.abs(theirs["logits"]).max() > 1
    np.testing.assert_allclose(ours[mask], theirs["logits"][mask], atol=1e-4, rtol=0)


def test_logits_of_the_language_model_are_those_of_transformers(backbone, batch, theirs):
    token_ids, mask = batch
    lm = kgpt.CausalLM(backbone)

    ours = to_numpy(lm({"token_ids": token_ids, "padding_mask": mask}))

    np.testing.assert_allclose(ours[mask], theirs["logits"][mask], atol=1e-4, rtol=0)


def test_next_token_loss_is_that_of_transformers(backbone, batch, theirs):
    ours = float(to_numpy(next_token_loss(backbone, *batch)))

    assert ours == pytest.approx(theirs["loss"], abs=1e-5)


def test_gradients_are_those_of_torch(backbone, batch, theirs):
    weights = backbone_weights(backbone)

    ours = gradients(lambda: next_token_loss(backbone, *batch), list(weights.values()))

    for name, gradient in zip(weights, ours, strict=True):
        assert np.abs(theirs["gradients"][name]).max() > 1e-4, name
        np.testing.assert_allclose(
            gradient, theirs["gradients"][name], atol=1e-5, rtol=1e-3, err_msg=name
        )


@pytest.mark.parametrize(
    "sizes", [SIZES["odd heads"], SIZES["wide"]], ids=["odd heads", "wide"], indirect=True
)
def test_hidden_states_are_those_of_keras_hub(sizes, batch):
    vocabulary_size, num_layers, num_heads, hidden_dim, max_sequence_length, _ = sizes
    backbone = kgpt.GPTBackbone(
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim=3 * hidden_dim + 1,
        max_sequence_length=max_sequence_length,
    )
    twin = keras_hub_twin(randomize(backbone))
    token_ids, mask = batch

    ours = to_numpy(backbone({"token_ids": token_ids, "padding_mask": mask}))
    theirs = to_numpy(twin({"token_ids": token_ids, "padding_mask": mask.astype("int32")}))

    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-4, rtol=0)


def test_other_inner_widths_and_epsilons_are_those_of_transformers():
    import torch

    backbone = randomize(
        kgpt.GPTBackbone(
            19, 2, 3, 12, intermediate_dim=29, layer_norm_epsilon=0.1, max_sequence_length=7
        )
    )
    token_ids = np.random.default_rng(2).integers(0, 19, (2, 5))

    ours = to_numpy(backbone.token_embedding(backbone(token_ids), reverse=True))
    with torch.no_grad():
        theirs = transformers_twin(backbone)(torch.tensor(token_ids)).logits.numpy()

    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def count_parameters(preset):
    """The number of a preset's parameters, from one block: no large model is made."""
    backbone = kgpt.GPTBackbone.from_preset(preset, num_layers=1)
    other_blocks = PRESETS[preset]["num_layers"] - 1
    return backbone.count_params() + other_blocks * backbone.decoder_blocks[0].count_params()


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        # GPT-1 without special tokens: 40478 x 768 + 512 x 768 + 12 x 7,087,872.
        ("gpt1", 116_534_784),
        # OpenAI's GPT-2 files as transformers counts them.
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        pytest.param("gpt2_large", 774_030_080, marks=pytest.mark.slow),
        pytest.param("gpt2_xl", 1_557_611_200, marks=pytest.mark.slow),
    ],
)
def test_a_papers_preset_has_the_papers_number_of_parameters(preset, count):
    assert count_parameters(preset) == count


@pytest.mark.parametrize("preset", ["gpt1", "gpt2", "gpt_nano", "gpt_micro", "gpt_mini"])
def test_a_preset_has_as_many_parameters_as_its_twin_in_transformers(preset):
    import torch
    import transformers

    one_block = kgpt.GPTBackbone.from_preset(preset, num_layers=1)
    config = transformers_config(one_block)
    config.n_layer = PRESETS[preset]["num_layers"]
    with torch.device("meta"):  # no memory
        twin = (
            transformers.GPT2Model(config)
            if one_block.norm_first
            else transformers.OpenAIGPTModel(config)
        )

    other_blocks = PRESETS[preset]["num_layers"] - 1
    ours = one_block.count_params() + other_blocks * one_block.decoder_blocks[0].count_params()
    assert ours == sum(p.numel() for p in twin.parameters())


@pytest.mark.slow
def test_the_whole_first_gpt_has_the_papers_number_of_parameters():
    assert kgpt.GPTBackbone.from_preset("gpt1").count_params() == 116_534_784
