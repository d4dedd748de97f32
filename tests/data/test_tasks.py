import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kgpt
from kgpt.data import classification, entailment, multiple_choice, regression, similarity
from kgpt.data.tasks import choice_sequences, pair_sequences, single_sequences

PLAIN = kgpt.Tokenizer.train(
    ["abcdefghijklmnopqrstuvwxyz <|>_0123456789"], style="characters", special_tokens=()
)
TOKENIZER = PLAIN.with_special_tokens()  # a token is a character
START, DELIMITER, CLASSIFY = TOKENIZER.start_id, TOKENIZER.delimiter_id, TOKENIZER.classify_id

short_text = st.text("abcdefgh", max_size=25)
length = st.integers(5, 30)


def ids(text):
    return TOKENIZER.encode(text)


def rows(data):
    """The sequences of one pass without their padding, and all labels, in the order of the data."""
    sequences, labels = [], []
    for x, *y in data:
        token_ids, mask = x["token_ids"], x["padding_mask"]
        flat = token_ids.reshape(-1, token_ids.shape[-1]), mask.reshape(-1, mask.shape[-1])
        sequences += [row[real].tolist() for row, real in zip(*flat, strict=True)]
        labels += y[0].tolist() if y else []
    return sequences, labels


def numbered(count, **arguments):
    """Texts of all lengths, of which no two are alike; the label is the text's number."""
    texts = [f"{i:03}" + "x" * (7 * i % 61) for i in range(count)]
    return classification(texts, list(range(count)), TOKENIZER, sequence_length=128, **arguments)


def order(data):
    return [int(label) for _, labels in data for label in labels]


# === layouts (GPT-1, figure 1) ===


def test_a_text_stands_between_start_and_classify():
    data = classification(["bad"], [0], TOKENIZER, seed=None)

    assert rows(data) == ([[START, *ids("bad"), CLASSIFY]], [0])


def test_a_delimiter_stands_between_premise_and_hypothesis():
    data = entailment(["it rains"], ["it is wet"], [1], TOKENIZER, seed=None)

    expected = [START, *ids("it rains"), DELIMITER, *ids("it is wet"), CLASSIFY]
    assert rows(data) == ([expected], [1])


def test_similarity_has_both_orders_of_a_pair():
    data = similarity(["one"], ["other"], [1], TOKENIZER, seed=None)

    one, other = ids("one"), ids("other")
    [(x, labels)] = data
    assert x["token_ids"].shape[:2] == (1, 2)
    assert rows(data)[0] == [
        [START, *one, DELIMITER, *other, CLASSIFY],
        [START, *other, DELIMITER, *one, CLASSIFY],
    ]
    assert labels.tolist() == [1]


@pytest.mark.parametrize("both_orders", [True, False])
def test_regression_reads_a_pair_in_both_orders_or_in_one(both_orders):
    pairs = [("one", "other")]
    data = regression(pairs, [2.5], TOKENIZER, both_orders=both_orders, seed=None)

    [(x, targets)] = data
    assert x["token_ids"].ndim == (3 if both_orders else 2)
    assert rows(data)[0][0] == [START, *ids("one"), DELIMITER, *ids("other"), CLASSIFY]
    assert targets.dtype == np.float32
    assert targets.tolist() == [[2.5]]


def test_regression_takes_single_texts_and_rows_of_targets():
    data = regression(["one", "two"], [[1, 2, 3], [4, 5, 6]], TOKENIZER, seed=None)

    assert rows(data) == (
        [[START, *ids("one"), CLASSIFY], [START, *ids("two"), CLASSIFY]],
        [[1, 2, 3], [4, 5, 6]],
    )


def test_multiple_choice_has_a_sequence_for_each_choice():
    data = multiple_choice(["sky"], [["blue", "loud", "x"]], [2], TOKENIZER, seed=None)

    [(x, labels)] = data
    assert x["token_ids"].shape[:2] == (1, 3)
    assert labels.tolist() == [2]
    assert rows(data)[0] == [
        [START, *ids("sky"), DELIMITER, *ids(choice), CLASSIFY] for choice in ("blue", "loud", "x")
    ]


def test_arrays_have_the_documented_types():
    for x, labels in numbered(7, batch_size=3):
        assert x["token_ids"].dtype == np.int32
        assert x["padding_mask"].dtype == bool
        assert x["token_ids"].shape == x["padding_mask"].shape
        assert labels.dtype == np.int32
        assert (x["token_ids"][~x["padding_mask"]] == 0).all()


def test_an_empty_text_is_start_and_classify():
    data = classification(["", "a"], [0, 1], TOKENIZER, seed=None)

    assert rows(data)[0][0] == [START, CLASSIFY]


def test_special_tokens_spelled_out_are_plain_text():
    [[sequence]] = single_sequences(["<|classify|><|delimiter|>"], TOKENIZER, 64)

    assert sequence[0] == START
    assert sequence[-1] == CLASSIFY
    assert len(sequence) == 2 + len("<|classify|><|delimiter|>")
    assert not {START, DELIMITER, CLASSIFY} & set(sequence[1:-1])


# === what does not fit ===


@given(text=short_text, length=length)
@settings(max_examples=60, deadline=None)
def test_a_long_text_is_cut_at_its_end(text, length):
    [[sequence]] = single_sequences([text], TOKENIZER, length)

    assert sequence == [START, *ids(text[: length - 2]), CLASSIFY]


@given(first=short_text, second=short_text, length=length)
@settings(max_examples=150, deadline=None)
def test_of_a_pair_the_longer_text_is_cut_first(first, second, length):
    [[sequence]] = pair_sequences([(first, second)], TOKENIZER, length, both_orders=False)

    assert len(sequence) <= length
    assert sequence[0] == START
    assert sequence[-1] == CLASSIFY
    place = sequence.index(DELIMITER)
    a, b = sequence[1:place], sequence[place + 1 : -1]
    assert a == ids(first)[: len(a)]
    assert b == ids(second)[: len(b)]
    room = length - 3
    if len(first) + len(second) <= room:
        assert (len(a), len(b)) == (len(first), len(second))
    else:
        assert len(a) + len(b) >= room - 1  # of an odd room, one place may stay free
        cut = [len(kept) < len(text) for kept, text in ((a, first), (b, second))]
        if all(cut):
            assert len(a) == len(b)
        else:
            assert (len(a) > len(b)) == cut[0] or len(a) == len(b)


@given(first=short_text, second=short_text, length=length)
@settings(max_examples=60, deadline=None)
def test_swapping_a_pair_swaps_its_two_sequences(first, second, length):
    [pair] = pair_sequences([(first, second)], TOKENIZER, length, both_orders=True)
    [swapped] = pair_sequences([(second, first)], TOKENIZER, length, both_orders=True)

    assert swapped == pair[::-1]


@given(context=short_text, choices=st.lists(short_text, min_size=2, max_size=4), length=length)
@settings(max_examples=150, deadline=None)
def test_of_a_long_context_the_end_is_kept_the_same_for_all_choices(context, choices, length):
    [sequences] = choice_sequences([context], [choices], TOKENIZER, length)

    contexts = set()
    for sequence, choice in zip(sequences, choices, strict=True):
        assert len(sequence) <= length
        assert sequence[0] == START
        assert sequence[-1] == CLASSIFY
        place = sequence.index(DELIMITER)
        contexts.add(tuple(sequence[1:place]))
        assert sequence[place + 1 : -1] == ids(choice)[: length - 3]
    [kept] = contexts
    assert list(kept) == ids(context)[len(context) - len(kept) :]
    assert len(kept) == len(context) or max(map(len, sequences)) == length


@pytest.mark.parametrize("make", [entailment, similarity])
def test_pairs_longer_than_the_context_keep_their_special_tokens(make):
    data = make(["a" * 100], ["b" * 90], [0], TOKENIZER, sequence_length=11, seed=None)

    for sequence in rows(data)[0]:
        assert len(sequence) == 11
        assert sequence[0] == START
        assert sequence[5] == DELIMITER
        assert sequence[-1] == CLASSIFY


# === lengths ===


def test_short_texts_are_not_padded_to_the_longest():
    texts = ["ab"] * 8 + ["x" * 120] * 8
    data = classification(texts, [0] * 16, TOKENIZER, sequence_length=128, batch_size=4)

    lengths = sorted(x["token_ids"].shape[1] for x, _ in data)

    assert lengths[:2] == [16, 16]
    assert lengths[2:] == [128, 128]


def test_a_pass_has_few_different_lengths():
    texts = ["x" * i for i in range(500)]
    data = classification(texts, [0] * 500, TOKENIZER, sequence_length=512, batch_size=4)

    lengths = {x["token_ids"].shape[1] for x, _ in data}

    assert len(lengths) == 5
    assert data.longest_sequence == max(lengths) == 504


def test_nothing_is_padded_beyond_the_sequence_length():
    data = classification(["x" * 50], [0], TOKENIZER, sequence_length=37)

    [(x, _)] = data
    assert x["token_ids"].shape == (1, 37)


# === order ===


def test_the_order_is_random_the_same_in_every_run_and_another_in_each_pass():
    def orders(seed):
        data = numbered(50, batch_size=4, seed=seed)
        return [tuple(order(data)) for _ in range(3)]

    assert orders(0) == orders(0)
    assert len({*orders(0), *orders(1)}) == 6


@given(count=st.integers(1, 23), batch_size=st.integers(1, 9), seed=st.none() | st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_each_example_comes_once_in_each_pass(count, batch_size, seed):
    data = numbered(count, batch_size=batch_size, seed=seed)

    for _ in range(2):
        batches = list(data)
        assert len(batches) == len(data) == -(-count // batch_size)
        assert sorted(order(batches)) == list(range(count))


def test_a_text_keeps_its_own_label():
    data = numbered(23, batch_size=4, seed=1)

    sequences, labels = rows(data)

    for sequence, label in zip(sequences, labels, strict=True):
        assert sequence[1:4] == ids(f"{label:03}")


def test_batches_do_not_always_hold_the_same_neighbours():
    data = numbered(40, batch_size=4, seed=0)

    groups = [{frozenset(labels.tolist()) for _, labels in data} for _ in range(2)]

    assert groups[0] != groups[1]


def test_without_a_seed_each_pass_goes_by_length():
    data = numbered(23, batch_size=4, seed=None)

    first, second = order(data), order(data)
    lengths = [x["token_ids"].shape[1] for x, _ in data]

    assert first == second
    assert lengths == sorted(lengths)


@given(step=st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_resuming_at_any_step_equals_the_uninterrupted_stream(step):
    new = lambda: numbered(23, batch_size=4, seed=3)  # noqa: E731
    uninterrupted, resumed = new(), new()
    stream = [label for _ in range(6) for label in map(tuple, (y for _, y in uninterrupted))]

    state = json.loads(json.dumps({**new().get_state(), "next_batch": step}))
    resumed.set_state(state)

    got = [tuple(y) for _ in range(2) for _, y in resumed]
    assert got == stream[step : step + 2 * len(resumed)]


@pytest.mark.parametrize(
    "other",
    [
        lambda: numbered(22, batch_size=4, seed=3),
        lambda: numbered(23, batch_size=5, seed=3),
        lambda: numbered(23, batch_size=4, seed=4),
    ],
)
def test_the_state_of_other_data_is_refused(other):
    with pytest.raises(ValueError, match="must come from the same data"):
        numbered(23, batch_size=4, seed=3).set_state(other().get_state())


def test_repeat_lets_the_passes_follow_each_other():
    data, single = (numbered(10, batch_size=4, seed=2, repeat=repeat) for repeat in (True, False))
    expected = [tuple(y) for _ in range(3) for _, y in single]

    got = [tuple(y) for (_, y), _ in zip(data, range(9), strict=False)]

    assert got == expected


@pytest.mark.parametrize("seed", [None, 0])
def test_rows_by_length_are_put_back_in_the_order_of_the_texts(seed):
    data = numbered(23, batch_size=4, seed=seed)
    data.set_state({**data.get_state(), "next_batch": 2})  # as after a resumed run

    by_length = data.in_order_of_length()
    outputs = np.concatenate([y for _, y in by_length])

    assert by_length.original_order(outputs).tolist() == list(range(23))
    assert data.get_state()["next_batch"] == 2


# === columns ===


def expect_two_examples(data, class_names=None):
    assert rows(data) == (
        [[START, *ids("ab"), CLASSIFY], [START, *ids("c"), CLASSIFY]][::-1],
        [1, 0],
    )
    assert data.class_names == class_names


def test_numpy_columns_are_taken():
    expect_two_examples(
        classification(np.array(["ab", "c"]), np.array([0, 1], "uint8"), TOKENIZER, seed=None)
    )
    names = np.array(["bad", "good"])
    expect_two_examples(
        classification(np.array(["ab", "c"], object), names, TOKENIZER, seed=None), ["bad", "good"]
    )


def test_pandas_columns_are_taken():
    pandas = pytest.importorskip("pandas", reason="pandas is no part of kgpt[test]")
    frame = pandas.DataFrame({"text": ["drop", "ab", "c"], "label": [9, 0, 1]})[1:]
    names = pandas.Series(["bad", "good"], dtype="category")

    expect_two_examples(classification(frame["text"], frame["label"], TOKENIZER, seed=None))
    expect_two_examples(
        classification(frame["text"], frame["label"].astype("Int64"), TOKENIZER, seed=None)
    )
    expect_two_examples(
        classification(frame["text"].astype("string"), names, TOKENIZER, seed=None), ["bad", "good"]
    )
    targets = regression(frame["text"], frame["label"] / 2, TOKENIZER, seed=None).labels
    assert targets.tolist() == [[0], [0.5]]


def test_columns_of_a_hugging_face_dataset_are_taken():
    datasets = pytest.importorskip("datasets", reason="datasets is no part of kgpt[test]")
    data = datasets.Dataset.from_dict(
        {"text": ["ab", "c"], "label": [0, 1], "options": [["a", "b"], ["c", "d"]]}
    )

    expect_two_examples(classification(data["text"], data["label"], TOKENIZER, seed=None))
    choices = multiple_choice(data["text"], data["options"], data["label"], TOKENIZER, seed=None)
    assert choices.labels.tolist() == [0, 1]
    assert choices.sequences_per_example == 2


@pytest.mark.parametrize("label", [True, np.bool_(True), np.int64(1), np.uint8(1)])
def test_labels_may_be_of_any_integer_type(label):
    assert classification(["ab"], [label], TOKENIZER).labels.tolist() == [1]


def test_names_of_classes_are_numbered_in_alphabetical_order_or_as_given():
    texts, names = ["a", "b", "c"], ["dull", "fine", "dull"]

    by_name = classification(texts, names, TOKENIZER)
    as_given = classification(texts, names, TOKENIZER, class_names=["fine", "dull", "rare"])

    assert (by_name.labels.tolist(), by_name.class_names) == ([0, 1, 0], ["dull", "fine"])
    assert as_given.labels.tolist() == [1, 0, 1]
    assert as_given.class_names == ["fine", "dull", "rare"]


def test_without_labels_there_are_only_inputs():
    data = classification(["ab", "c"], None, TOKENIZER, seed=None)

    assert data.labels is None
    assert [len(batch) for batch in data] == [1]


# === bad input ===


def missing_by_pandas():
    return pytest.importorskip("pandas", reason="pandas is no part of kgpt[test]").NA


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "Received: 3 texts, 2 labels"),
        ([], "Received: 3 texts, 0 labels"),
        ([0, -1, 1], "labels must be 0 or larger. Received: -1 at index 1"),
        ([0, None, 1], "Each example needs a label. Received: None at index 1"),
        ([0, float("nan"), 1], "Each example needs a label. Received: nan at index 1"),
        (["a", "b", np.nan], "Each example needs a label. Received: nan at index 2"),
        (np.array([0, np.nan, 1]), "needs a label.*nan.*at index 1"),
        ([0, 1.0, 1], "labels must be ints.*Received: 1.0, a float, at index 1.*regression"),
        ([0, "good", 1], "all ints or all names. Received: 0 at index 0 and 'good' at index 1"),
        (np.eye(3, dtype=int), r"labels must be ints from 0.*ndarray, at index 0"),
        ("bad", "labels must be a list"),
        ({"a": 0}, "labels must be a list"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        classification(["a", "b", "c"], labels, TOKENIZER)


def test_missing_labels_of_pandas_are_refused():
    with pytest.raises(ValueError, match=r"Each example needs a label.*NA.*at index 1"):
        classification(["a", "b"], [1, missing_by_pandas()], TOKENIZER)
    with pytest.raises(ValueError, match="targets must be"):
        regression(["a", "b"], [1, missing_by_pandas()], TOKENIZER)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["good", "odd"], "must be one of class_names. Received: 'odd' at index 1"),
        ([0, 2], "labels must be below 2, from 0. Received: 2 at index 1"),
    ],
)
def test_labels_that_are_no_class_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        classification(["a", "b"], labels, TOKENIZER, class_names=["bad", "good"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1.0, float("nan")], "targets must be finite.*nan.*at index 1"),
        ([float("inf"), 1.0], "targets must be finite.*inf.*at index 0"),
        ([1e39, 1.0], "targets must be finite float32"),
        ([1.0, None], "targets must be finite.*at index 1"),
        ([[1.0, 2.0], [3.0]], "rows of as many numbers each"),
        ([1.0, "high"], "targets must be numbers"),
        ([1.0], "Received: 2 texts, 1 targets"),
        (3.0, "targets must be a list"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        regression(["a", "b"], targets, TOKENIZER)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "texts must be texts, str. Received: None at index 1"),
        (["a", 3], "texts must be texts, str. Received: 3 at index 1"),
        (["a", float("nan")], "texts must be texts, str. Received: nan at index 1"),
        (["a", b"b"], "texts must be texts, str. Received: b'b' at index 1"),
        ("ab", "texts must be a list.*Received: 'ab', a str"),
        ({"a": 0, "b": 1}, "texts must be a list.*a dict"),
        (None, "texts must be a list.*a NoneType"),
        ((text for text in "ab"), "texts must be a list.*a generator"),
    ],
)
@pytest.mark.parametrize("make", [classification, regression])
def test_what_is_no_list_of_texts_is_refused(make, texts, message):
    if make is regression and isinstance(texts, list):
        message = "texts"
    with pytest.raises(ValueError, match=message):
        make(texts, [0, 1], TOKENIZER)


def test_a_table_is_refused_where_a_column_belongs():
    pandas = pytest.importorskip("pandas", reason="pandas is no part of kgpt[test]")
    frame = pandas.DataFrame({"first": ["a", "b"], "second": ["c", "d"]})

    with pytest.raises(ValueError, match=r"texts must be a list, an array or one column"):
        regression(frame, [0, 1], TOKENIZER)


@pytest.mark.parametrize(
    "make",
    [
        lambda: classification([], [], TOKENIZER),
        lambda: entailment([], [], [], TOKENIZER),
        lambda: similarity([], [], [], TOKENIZER),
        lambda: regression([], [], TOKENIZER),
        lambda: multiple_choice([], [], [], TOKENIZER),
        lambda: classification([], None, TOKENIZER),
    ],
)
def test_no_examples_are_refused(make):
    with pytest.raises(ValueError, match="There must be at least one example"):
        make()


@pytest.mark.parametrize("make", [entailment, similarity])
def test_unequal_lists_of_a_pair_are_refused(make):
    with pytest.raises(ValueError, match=r"There must be as many of each. Received: 2 .*, 1 "):
        make(["a", "b"], ["c"], [0, 1], TOKENIZER)


@pytest.mark.parametrize(
    "pairs",
    [[("a", "b"), "c"], [("a", "b"), ("a", "b", "c")], ["a", ("b", "c")], [("a", None)], [3]],
)
def test_what_is_no_pair_is_refused(pairs):
    with pytest.raises(ValueError, match=r"Received: .* at index"):
        regression(pairs, [0.0] * len(pairs), TOKENIZER)


@pytest.mark.parametrize(
    ("choices", "labels", "message"),
    [
        ([["a", "b"], ["a"]], [0, 0], "2 for the first example and 1 for example 1"),
        ([["a"], ["b"]], [0, 0], "at least 2. Received: 1 for the first"),
        ([["a", "b"], ["a", "b"]], [0, 2], "Received: 2 for example 1, which has 2 choices"),
        ([["a", "b"], "ab"], [0, 0], r"choices\[1\] must be a list of texts"),
        ([["a", "b"], None], [0, 0], r"choices\[1\] must be a list of texts"),
        ([["a", "b"], ["a", None]], [0, 0], r"choices\[1\] must be texts, str. Received: None"),
        ([["a", "b"]], [0, 0], "Received: 2 contexts, 1 choices, 2 labels"),
    ],
)
def test_bad_choices_are_refused(choices, labels, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(["x", "y"], choices, labels, TOKENIZER)


def test_a_tokenizer_without_task_tokens_is_refused():
    with pytest.raises(ValueError, match=r"start, delimiter and classify.*with_special_tokens\(\)"):
        classification(["a"], [0], PLAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 4}, "sequence_length=4. Try at least 5"),
        ({"sequence_length": 12.5}, "sequence_length=12.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        classification(["a"], [0], TOKENIZER, **arguments)
