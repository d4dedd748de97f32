"""Prompts with completions, conversations and short documents, as a language model learns them."""

import json

import keras
import numpy as np
import pytest
from labelled import PLAIN, TOKENIZER, ids
from oracles import randomize, to_numpy, transformers_twin

import kgpt
from kgpt.data import classification, completions, conversations, documents, similarity

END = TOKENIZER.end_of_text_id
PROMPTS = ["ab c", "d", "", "efg hij k", "abc", "x y z", "0 1 2 3", "zz"]
COMPLETIONS = [" de", " fgh i", "jkl", " m", "", " nop", " 4 5 6 7 8 9", " y"]


def make_lm(optimizer=None, **options):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "dropout": 0.0}
    backbone = kgpt.GPTBackbone(TOKENIZER.vocabulary_size, **{**sizes, **options})
    lm = kgpt.CausalLM(randomize(backbone), tokenizer=TOKENIZER)
    lm.compile(optimizer or keras.optimizers.SGD(0.1))
    return lm


def learned(data):
    """The whole sequence of each example and what its next tokens weigh, by the number of tokens.

    The first token, of which there is no weight, has None.
    """
    examples = []
    for x, y, weights in data:
        for i, real in enumerate(x["padding_mask"]):
            read = x["token_ids"][i][real].tolist()
            targets = y[i][real].tolist()
            assert read[1:] == targets[:-1]
            assert not y[i][~real].any()
            assert not weights[i][~real].any()
            examples.append((read[:1] + targets, [None, *weights[i][real].tolist()]))
    return examples


# === What is learned ===


def test_the_completion_and_its_end_of_text_are_learned():
    data = completions(["ab c"], [" de"], TOKENIZER)

    assert learned(data) == [([*ids("ab c de"), END], [None, 0, 0, 0, 1, 1, 1, 1])]


def test_a_prompt_may_weigh_something_too():
    data = completions(["ab"], ["c"], TOKENIZER, prompt_weight=0.25)

    assert learned(data) == [([*ids("abc"), END], [None, 0.25, 1, 1])]


@pytest.mark.parametrize("prompt_weight", [0.0, 0.5])
def test_a_completion_after_an_empty_prompt_starts_from_the_end_of_text(prompt_weight):
    data = completions([""], ["ab"], TOKENIZER, prompt_weight=prompt_weight)

    assert learned(data) == [([END, *ids("ab"), END], [None, 1, 1, 1])]


def test_a_document_is_learned_whole_from_the_end_of_text_on():
    data = documents(["ab", ""], TOKENIZER, seed=None)

    assert learned(data) == [([END, END], [None, 1]), ([END, *ids("ab"), END], [None, 1, 1, 1])]


def test_of_a_conversation_the_pieces_that_count_are_learned():
    pieces = [("ab", False), ("c", True), ("", True), ("de", False), ("f", True)]

    assert learned(conversations([pieces], TOKENIZER)) == [
        ([*ids("abcdef"), END], [None, 0, 1, 0, 0, 1, 1])
    ]
    assert learned(conversations([pieces[:4]], TOKENIZER)) == [
        ([*ids("abcde"), END], [None, 0, 1, 0, 0, 0])
    ]


def test_the_pieces_of_a_conversation_may_come_from_a_generator():
    pieces = [("ab", False), ("c", True)]

    assert learned(conversations([iter(pieces)], TOKENIZER)) == learned(
        conversations([pieces], TOKENIZER)
    )


def test_completions_are_conversations_of_two_pieces():
    pieces = [((p, False), (c, True)) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    options = {"prompt_weight": 0.5, "batch_size": 3, "seed": 1, "sequence_length": 8}

    with pytest.warns(UserWarning, match="lose their end"):
        one = learned(completions(PROMPTS, COMPLETIONS, TOKENIZER, **options))
    with pytest.warns(UserWarning, match="lose their end"):
        other = learned(conversations(np.array(pieces, object), TOKENIZER, **options))

    assert one == other


def test_examples_may_have_weights():
    data = completions(["a", "b"], ["c", "d"], TOKENIZER, sample_weight=[3, 0.5], prompt_weight=2)

    assert sorted(learned(data), key=lambda example: example[1][1]) == [
        ([*ids("bd"), END], [None, 0.5, 0.5]),
        ([*ids("ac"), END], [None, 3, 3]),
    ]


def test_special_tokens_written_out_are_ordinary_text():
    [(tokens, _)] = learned(completions(["a"], ["<|endoftext|>"], TOKENIZER))

    assert tokens == [*ids("a<|endoftext|>"), END]
    assert tokens.count(END) == 1


# === Lengths ===


def test_an_example_fits_if_the_model_reads_all_but_its_last_token():
    fits = completions(["abc"], ["de"], TOKENIZER, sequence_length=5)

    assert learned(fits)[0][0] == [*ids("abcde"), END]
    [(x, _, _)] = fits
    assert x["token_ids"].shape == (1, 5)


def test_what_is_too_long_loses_its_end_and_that_is_said_once():
    with pytest.warns(
        UserWarning, match=r"^2 of 3 texts are longer than sequence_length=5"
    ) as warned:
        data = completions(["abcd", "abcde", "a"], ["efg", "f", "b"], TOKENIZER, 5, seed=None)

    assert len(warned) == 1
    assert learned(data) == [
        ([*ids("ab"), END], [None, 1, 1]),
        (ids("abcdef"), [None, 0, 0, 0, 1, 1]),
        (ids("abcdef"), [None, 0, 0, 0, 0, 1]),
    ]


def test_what_is_too_long_loses_its_beginning_if_asked_for():
    with pytest.warns(UserWarning, match=r"1 of 1 .*lose their start"):
        data = completions(["abcd"], ["efg"], TOKENIZER, 5, truncate="start")

    assert learned(data) == [([*ids("cdefg"), END], [None, 0, 1, 1, 1, 1])]


def test_a_prompt_that_leaves_no_room_for_its_completion_is_said():
    with pytest.warns(UserWarning, match="of 2") as warned:
        completions(["abcdef", "a"], ["b", "b"], TOKENIZER, 5)

    assert "1 of 2 texts are longer than sequence_length=5" in str(warned[0].message)
    assert "1 of 2 examples have nothing to learn" in str(warned[1].message)
    assert 'or truncate="start"' in str(warned[1].message)


def test_prompts_that_all_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r'sequence_length=3 .*or truncate="start"'):
        completions(["abcdef", "abcd"], ["b", "b"], TOKENIZER, 3)
    with pytest.raises(ValueError, match="pieces that do not count"):
        conversations([[("ab", False)]], TOKENIZER)


def test_batches_have_examples_of_similar_length():
    texts = ["ab"] * 8 + ["x" * 120] * 8

    lengths = [x["token_ids"].shape[1] for x, *_ in documents(texts, TOKENIZER, 128, batch_size=4)]

    assert sorted(lengths) == [16, 16, 128, 128]


# === Refusals ===


@pytest.mark.parametrize(
    "wrong", [["ab"], "ab", [("a", 1)], [("a", "b")], [(1, True)], [], [("a",)], 5, ["ab", True]]
)
def test_conversations_that_are_no_pieces_are_refused(wrong):
    with pytest.raises(ValueError, match=r"pieces \(text, counts\).*at index 1"):
        conversations([[("a", True)], wrong], TOKENIZER)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((["a"], ["b", "c"]), "1 prompts, 2 completions"),
        (([], []), "at least one example"),
        ((["a"], [None]), "completions must be texts"),
        (("a", ["b"]), "prompts must be a list"),
    ],
)
def test_wrong_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        completions(*columns, TOKENIZER)


def test_a_tokenizer_without_an_end_of_text_is_refused():
    vocabulary = json.loads(PLAIN.get_config()["tokenizer_json"])
    vocabulary["added_tokens"] = []
    vocabulary["model"]["vocab"].pop("<|endoftext|>", None)
    without = kgpt.Tokenizer(json.dumps(vocabulary))

    with pytest.raises(ValueError, match=r"with_special_tokens\(\(\"<\|endoftext\|>\",\)\)"):
        documents(["ab"], without)


# === Models ===


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("prompt_weight", [0.0, 1.0])
def test_the_loss_is_that_of_transformers_with_labels_of_minus_100(batch_size, prompt_weight):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    lm = make_lm()
    twin = transformers_twin(lm.backbone)
    data = completions(
        PROMPTS, COMPLETIONS, TOKENIZER, batch_size=batch_size, prompt_weight=prompt_weight
    )
    for x, y, weights in data:
        rows, length = y.shape
        input_ids = np.zeros((rows, length + 1), "int64")
        labels = np.full((rows, length + 1), -100)
        for i, real in enumerate(x["padding_mask"].sum(axis=1)):
            input_ids[i, : real + 1] = [x["token_ids"][i, 0], *y[i, :real]]
            labels[i, 1 : real + 1] = np.where(weights[i, :real] > 0, y[i, :real], -100)
        mask = np.arange(length + 1) <= x["padding_mask"].sum(axis=1)[:, None]
        with torch.no_grad():
            theirs = twin(
                input_ids=torch.tensor(input_ids),
                attention_mask=torch.tensor(mask.astype("int64")),
                labels=torch.tensor(labels),
            ).loss

        ours = lm.compute_loss(x, y, sample_weight=weights, training=False)

        np.testing.assert_allclose(to_numpy(ours), theirs.numpy(), rtol=1e-5)


def test_evaluate_gives_the_mean_over_all_learned_tokens_whatever_the_batches():
    lm = make_lm()

    losses = [
        lm.evaluate(
            completions(PROMPTS, COMPLETIONS, TOKENIZER, batch_size=batch_size),
            verbose=0,
            return_dict=True,
        )
        for batch_size in (3, 8)
    ]

    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["accuracy"] == pytest.approx(losses[1]["accuracy"])


def test_accumulated_batches_make_the_update_of_one_large_batch():
    whole = make_lm()
    parts = make_lm(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4))

    whole.fit(completions(PROMPTS, COMPLETIONS, TOKENIZER, batch_size=8), verbose=0)
    parts.fit(completions(PROMPTS, COMPLETIONS, TOKENIZER, batch_size=2), verbose=0)

    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_run_that_was_stopped_in_an_epoch_goes_on_at_the_same_batch(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    def fit(lm, callbacks):
        data = completions(PROMPTS, COMPLETIONS, TOKENIZER, batch_size=2)
        lm.fit(data, epochs=2, verbose=0, callbacks=callbacks)
        return lm.get_weights()

    expected = fit(make_lm(), [])
    with pytest.raises(KeyboardInterrupt):
        fit(make_lm(), [kgpt.callbacks.ResumableCheckpoint(tmp_path, save_freq=1), Stop()])

    found = fit(make_lm(), [kgpt.callbacks.ResumableCheckpoint(tmp_path, save_freq=1)])

    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.compiled
def test_a_model_learns_to_complete_and_to_end():
    lm = make_lm(keras.optimizers.Adam(1e-2), num_layers=1)
    prompts, answers = ["a:", "b:", "c:", "d:"], ["x", "yy", "zzz", ""]

    lm.fit(completions(prompts, answers, TOKENIZER, repeat=True), steps_per_epoch=60, verbose=0)

    found = lm.generate(prompts, 6, sampler="greedy", return_prompt=False)
    assert found == answers


@pytest.mark.parametrize(
    "make_head",
    [
        lambda backbone: kgpt.TextClassifier(backbone, 2),
        kgpt.TextRegressor,
        kgpt.MultipleChoice,
        lambda backbone: kgpt.Head(backbone, keras.layers.Dense(1)),
    ],
)
def test_heads_refuse_batches_of_next_tokens(make_head, tmp_path):
    head = make_head(make_lm().backbone)
    head.compile()
    np.save(tmp_path / "tokens.npy", np.ones(50, "uint16"))
    windows = kgpt.data.windows(tmp_path / "tokens.npy", 8, 2)

    for batches in (documents(["ab"], TOKENIZER), windows):
        with pytest.raises(ValueError, match=r"learns labels.*next tokens.*a kgpt\.CausalLM"):
            head.fit(batches, verbose=0)


def test_a_language_model_refuses_labelled_batches():
    lm = make_lm()

    for batches in (
        classification(["ab", "c"], [0, 1], TOKENIZER),
        similarity(["ab"], ["c"], None, TOKENIZER),
    ):
        with pytest.raises(ValueError, match=r"learns the next token.*kgpt\.data\.documents"):
            lm.evaluate(batches, verbose=0)


def test_logits_of_rows_of_several_lengths_are_refused():
    lm = make_lm()
    one = documents(["ab", "c"], TOKENIZER, batch_size=1)
    several = documents(["ab", "c" * 40], TOKENIZER, batch_size=1)

    assert lm.predict(one, verbose=0).shape == (2, 8, TOKENIZER.vocabulary_size)
    with pytest.raises(ValueError, match=r"several lengths.*lm\.score"):
        lm.predict(several, verbose=0)


def test_ids_beyond_the_vocabulary_are_refused_though_they_are_only_targets():
    backbone = kgpt.GPTBackbone(END, 1, 1, 4)
    lm = kgpt.CausalLM(backbone)
    lm.compile()

    with pytest.raises(ValueError, match="token id must lie in"):
        lm.fit(completions(["a"], ["b"], PLAIN.with_special_tokens(())), verbose=0)
