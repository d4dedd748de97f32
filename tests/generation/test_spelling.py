"""What keras-hub's tests ask of its samplers, asked of whole models: words spelt, stops, settings.

The model's next token depends on the position alone, so that each row of a batch goes on with its
own place in the word.
"""

import keras_hub
import numpy as np
import pytest
from keras import ops

import kgpt
from kgpt.generation.compiled import functions_for
from kgpt.generation.layout import lay_out

WORD = "sequentially"
LETTERS = 26
SAMPLERS = {
    "greedy": keras_hub.samplers.GreedySampler,
    "top_k": keras_hub.samplers.TopKSampler,
    "top_p": keras_hub.samplers.TopPSampler,
    "random": keras_hub.samplers.RandomSampler,
    "beam": keras_hub.samplers.BeamSampler,
    "contrastive": lambda: keras_hub.samplers.ContrastiveSampler(k=5, alpha=0.2),
}
PROMPTS = {"one": ["s"], "several": ["s", "sequent", "seq"]}


def ids(text):
    return [ord(letter) - ord("a") for letter in text]


def text(row):
    return "".join(chr(token + ord("a")) for token in row)


def make_model(preferences, sharpness=20.0):
    """Returns a model whose likeliest next letters at each position have the largest preference."""
    backbone = kgpt.GPTBackbone(
        LETTERS, num_layers=1, num_heads=2, hidden_dim=LETTERS, max_sequence_length=16, dropout=0.0
    )
    for variable in backbone.weights:
        if "seed" not in variable.path:
            variable.assign(np.zeros(variable.shape))
    positions = np.zeros((16, LETTERS))
    positions[: len(preferences)] = preferences
    backbone.embedding.token_embedding.embeddings.assign(np.eye(LETTERS))
    backbone.embedding.position_embedding.embeddings.assign(10 * positions)
    backbone.final_norm.gamma.assign(np.full(LETTERS, sharpness))
    return kgpt.CausalLM(backbone)


@pytest.fixture(scope="module")
def speller():
    return make_model(np.eye(LETTERS)[ids(WORD[1:])])


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_spell_the_word_and_end_before_a_stop(speller, sampler, prompts):
    rows = [ids(prompt) for prompt in prompts]

    stopped = speller.generate(rows, 5, sampler=SAMPLERS[sampler](), stop_token_ids=ids("u"))

    assert [text(row) for row in stopped] == [
        WORD[: len(prompt) + 5] if "u" in prompt else "seq" for prompt in prompts
    ]


@pytest.mark.parametrize("prompts", [["s"], ["s", "s"]], ids=["one", "two"])
@pytest.mark.parametrize(
    "sampler", [name for name in SAMPLERS if name != "beam"]
)  # whose other beams may go on
def test_nothing_is_written_past_the_stop(speller, sampler, prompts):
    functions = functions_for(speller, SAMPLERS[sampler]())
    token_ids, lengths = lay_out([ids(prompt) for prompt in prompts], 16)
    none_finished, stops = np.zeros(len(prompts), "bool"), np.array(ids("te"), "int32")
    states = [] if sampler in ("greedy", "contrastive") else SAMPLERS[sampler]().variables

    tokens, _ = functions.complete(states, 10, token_ids, lengths, none_finished, 9, stops, 0)

    written = [row[row >= 0] for row in ops.convert_to_numpy(tokens)[:, 16:]]
    assert [text(row) for row in written] == ["e"] * len(prompts)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("sampler", "different"),
    [
        (keras_hub.samplers.TopKSampler(k=5, seed=0), 3),
        (keras_hub.samplers.TopPSampler(p=1, k=5, seed=0), 3),
        (keras_hub.samplers.ContrastiveSampler(k=5, alpha=0.6), 1),
    ],
)
def test_only_the_k_likeliest_are_sampled(sampler, different, rows):
    falling = np.linspace(1, 0, LETTERS)
    model = make_model([falling] * 16, sharpness=0.5)

    found = model.generate([[25]] * rows, 14, sampler=sampler, return_prompt=False)

    assert {token for row in found for token in row} <= set(range(5))
    assert len({token for row in found for token in row}) >= different


def test_only_the_likeliest_up_to_p_are_sampled():
    model = make_model([np.arange(LETTERS) < 3] * 16, sharpness=2.0)

    rows = model.generate(
        [[25], [24]], 14, sampler=keras_hub.samplers.TopPSampler(p=0.9, seed=0), return_prompt=False
    )

    assert {token for row in rows for token in row} == {0, 1, 2}


@pytest.mark.parametrize("kind", ["TopK", "TopP", "Random"])
def test_a_temperature_near_zero_takes_the_likeliest(kind):
    model = make_model([np.linspace(1, 0, LETTERS)] * 16, sharpness=0.5)
    sampler = getattr(keras_hub.samplers, f"{kind}Sampler")(temperature=1e-9)

    assert model.generate([[25], [9]], 5, sampler=sampler, return_prompt=False) == [[0] * 5] * 2


def test_all_of_a_contrastive_samplers_weight_on_difference_avoids_repetition():
    model = make_model(0.03 * np.eye(LETTERS)[ids("h" * 16)])
    settings = {"prompts": [ids("z")], "max_new_tokens": 6, "return_prompt": False}

    by_probability = keras_hub.samplers.ContrastiveSampler(k=5, alpha=0.0)
    by_difference = keras_hub.samplers.ContrastiveSampler(k=26, alpha=1.0)

    assert len(set(model.generate(**settings, sampler=by_probability)[0])) < 6
    assert len(set(model.generate(**settings, sampler=by_difference)[0])) == 6
