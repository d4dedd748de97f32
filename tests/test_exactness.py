"""The same weights give the same numbers as other people's implementations.

Largest differences are printed: `python -m pytest -s tests/test_exactness.py`.
"""

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
from kgpt.models.presets import PRESETS

# vocabulary_size, num_layers, num_heads, hidden_dim, max_sequence_length, length
SIZES = {
    "one layer": (17, 1, 1, 4, 9, 8),
    "odd heads": (23, 2, 3, 12, 11, 7),
    "deep": (31, 5, 2, 20, 6, 6),
    "wide": (101, 2, 7, 56, 40, 37),
}
# The largest difference between logits here and in transformers, as README says it.
MOST = 7e-6


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


def assert_close(ours, theirs, most, what):
    """Checks the largest difference, and prints it (`pytest -s` shows it)."""
    difference = np.abs(ours - theirs).max()
    print(f"\n{what}, largest difference: {difference:.1e}")
    assert difference <= most


def test_logits_are_those_of_transformers(backbone, batch, theirs):
    ours = to_numpy(logits_of(backbone, *batch))

    mask = batch[1]
    assert np.abs(theirs["logits"]).max() > 1
    assert_close(ours[mask], theirs["logits"][mask], MOST, "logits beside transformers'")


def test_logits_of_the_language_model_are_those_of_transformers(backbone, batch, theirs):
    token_ids, mask = batch
    lm = kgpt.CausalLM(backbone)

    ours = to_numpy(lm({"token_ids": token_ids, "padding_mask": mask}))

    assert_close(ours[mask], theirs["logits"][mask], MOST, "CausalLM's logits beside transformers'")


def test_next_token_loss_is_that_of_transformers(backbone, batch, theirs):
    ours = float(to_numpy(next_token_loss(backbone, *batch)))

    assert_close(ours, theirs["loss"], 2e-6, "next-token loss beside transformers'")


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

    assert_close(ours[mask], theirs[mask], 4e-6, "hidden states beside keras-hub's")


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

    assert_close(ours, theirs, 2e-6, "logits of other widths beside transformers'")


# === heads ===

HEADS = {
    "classifier": lambda backbone: kgpt.TextClassifier(backbone, 3, dropout=0.0),
    "pairs": lambda backbone: kgpt.TextClassifier(backbone, 3, both_orders=True, dropout=0.0),
    "regressor": lambda backbone: kgpt.TextRegressor(backbone, 2, dropout=0.0),
    "chooser": lambda backbone: kgpt.MultipleChoice(backbone, dropout=0.0),
}


def make_head(name, norm_first):
    backbone = kgpt.GPTBackbone(
        23, 2, 3, 12, max_sequence_length=11, norm_first=norm_first, dropout=0.0
    )
    return randomize(HEADS[name](backbone))


def head_batch(sequences):
    """Four examples of sequences of 2 to 7 tokens, padded on the right; their labels."""
    rng = np.random.default_rng(3)
    mask = np.arange(7) < rng.integers(2, 8, (4, sequences, 1))
    token_ids = np.where(mask, rng.integers(1, 23, mask.shape), 0)
    return token_ids.astype("int32"), mask, rng.integers(0, min(3, max(2, sequences)), 4)


def load_twin(twin, backbone, **others):
    """Gives a model of transformers the weights of the backbone, and others by their names."""
    import torch

    weights = {f"transformer.{k}": to_numpy(v) for k, v in backbone_weights(backbone).items()}
    state = {k: torch.tensor(np.array(v)) for k, v in {**weights, **others}.items()}
    twin.load_state_dict(state, strict=True)
    return twin.eval()


def test_logits_of_the_classifier_are_those_of_transformers(norm_first):
    import torch
    import transformers

    model = make_head("classifier", norm_first)
    kernel, bias = model.output_projection.weights
    bias.assign(np.zeros(3))  # theirs has none
    token_ids, mask, _ = head_batch(1)
    config = transformers_config(model.backbone)
    config.num_labels = 3
    twin = load_twin(
        (
            transformers.GPT2ForSequenceClassification
            if norm_first
            else transformers.OpenAIGPTForSequenceClassification
        )(config),
        model.backbone,
        **{"score.weight": to_numpy(kernel).T},
    )

    with torch.no_grad():
        theirs = twin(
            input_ids=torch.tensor(token_ids[:, 0]).long(),
            attention_mask=torch.tensor(mask[:, 0]).long(),
        ).logits.numpy()
    ours = to_numpy(model({"token_ids": token_ids[:, 0], "padding_mask": mask[:, 0]}))

    assert np.abs(theirs).max() > 0.5
    assert_close(ours, theirs, 2e-6, "classifier's logits beside transformers'")


def test_logits_of_multiple_choice_are_those_of_transformers(norm_first):
    import torch
    import transformers

    model = make_head("chooser", norm_first)
    kernel, bias = (to_numpy(w) for w in model.output_projection.weights)
    token_ids, mask, _ = head_batch(3)
    config = transformers_config(model.backbone)
    config.num_labels = 1
    twin = load_twin(
        (
            transformers.GPT2DoubleHeadsModel
            if norm_first
            else transformers.OpenAIGPTDoubleHeadsModel
        )(config),
        model.backbone,
        **{
            "lm_head.weight": to_numpy(model.backbone.token_embedding.embeddings),
            "multiple_choice_head.summary.weight": kernel.T,
            "multiple_choice_head.summary.bias": bias,
        },
    )

    with torch.no_grad():
        theirs = twin(
            input_ids=torch.tensor(token_ids).long(),
            # their own mask is for one sequence; right padding comes after all that is read
            mc_token_ids=torch.tensor(mask.sum(axis=-1) - 1).long(),
        ).mc_logits.numpy()
    ours = to_numpy(model({"token_ids": token_ids, "padding_mask": mask}))

    assert np.abs(theirs).max() > 0.5
    assert_close(ours, theirs, 2e-6, "choices' logits beside transformers'")


def torch_loss(name, twin, embedding, kernel, bias, batch, lm_loss_weight):
    """Task loss + weight x language-model loss (GPT-1, equation 5), from all logits."""
    import torch
    from torch.nn.functional import cross_entropy

    token_ids, mask, y = (torch.tensor(part) for part in batch)
    flat, real = token_ids.reshape(-1, 7).long(), mask.reshape(-1, 7)
    hidden_states = twin(input_ids=flat, attention_mask=real.long()).last_hidden_state
    logits = (hidden_states @ embedding.T)[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), flat[:, 1:], reduction="none") * real[:, 1:]
    lm_loss = (losses.sum(axis=1) / real[:, 1:].sum(axis=1)).mean()
    states = hidden_states[torch.arange(len(flat)), real.sum(axis=1) - 1]
    states = states.reshape(*mask.shape[:2], -1)  # (batch, sequences, hidden_dim)
    if name == "chooser":
        task_loss = cross_entropy((states @ kernel + bias)[..., 0], y)
    elif name == "regressor":
        task_loss = ((states.sum(axis=1) @ kernel + bias - y) ** 2).mean()
    else:
        task_loss = cross_entropy(states.sum(axis=1) @ kernel + bias, y)
    return task_loss + lm_loss_weight * lm_loss


@pytest.mark.parametrize(("name", "sequences"), zip(HEADS, [1, 2, 2, 3], strict=True))
def test_a_heads_loss_and_gradients_are_those_of_torch(name, sequences, norm_first):
    import torch

    model = make_head(name, norm_first)
    token_ids, mask, y = head_batch(sequences)
    if name == "regressor":
        y = np.random.default_rng(4).standard_normal((4, 2)).astype("float32")
    weights = backbone_weights(model.backbone)
    head = dict(zip(("kernel", "bias"), model.output_projection.weights, strict=True))
    before = {k: to_numpy(v).copy() for k, v in {**weights, **head}.items()}
    twin = transformers_twin(model.backbone).transformer
    kernel, bias = (torch.tensor(before[k], requires_grad=True) for k in head)
    embedding = twin.get_parameter("wte.weight" if norm_first else "tokens_embed.weight")
    theirs = torch_loss(name, twin, embedding, kernel, bias, (token_ids, mask, y), 0.5)
    theirs.backward()

    model.compile(keras.optimizers.SGD(1.0))  # a step is the gradient
    x = {"token_ids": token_ids, "padding_mask": mask}
    ours = model.train_on_batch(x, y, return_dict=True)["loss"]

    assert_close(float(ours), theirs.item(), 1e-5, f"loss of the {name} beside torch's")
    expected = {k: twin.get_parameter(k).grad for k in weights}
    expected |= {"kernel": kernel.grad, "bias": bias.grad}
    for key, weight in {**weights, **head}.items():
        has_gradient = (name, key) != ("chooser", "bias")  # a softmax ignores what all have
        assert np.abs(expected[key].numpy()).max() > 1e-4 or not has_gradient, key
        np.testing.assert_allclose(
            before[key] - to_numpy(weight), expected[key].numpy(), atol=1e-5, err_msg=key
        )


# === presets ===


def count_parameters(preset):
    """The number of a preset's parameters, from one block: no large model is made."""
    backbone = kgpt.GPTBackbone.from_preset(preset, load_weights=False, num_layers=1)
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

    one_block = kgpt.GPTBackbone.from_preset(preset, load_weights=False, num_layers=1)
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
    assert kgpt.GPTBackbone.from_preset("gpt1", load_weights=False).count_params() == 116_534_784
