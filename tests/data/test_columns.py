import numpy as np
import pytest
from labelled import CLASSIFY, START, TOKENIZER, ids, rows

from kgpt.data import (
    classification,
    completions,
    conversations,
    entailment,
    multiple_choice,
    regression,
    similarity,
)

datasets = pytest.importorskip(
    "datasets", reason="columns and tables of datasets are what is tested"
)
pandas = pytest.importorskip("pandas", reason="columns and tables of pandas are what is tested")


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


# === Wrong columns ===


def test_masked_values_are_refused():
    masked = np.ma.array([1.0, 2.0, 3.0], mask=[False, False, True])

    with pytest.raises(ValueError, match=r"targets must not have masked.*index 2"):
        regression(["a", "b", "c"], masked, TOKENIZER)
    with pytest.raises(ValueError, match=r"sample_weight must not have masked.*index 2"):
        regression(["a", "b", "c"], [1, 2, 3], TOKENIZER, sample_weight=masked)
    assert regression(["a", "b"], masked[:2], TOKENIZER).num_examples == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "Received: 3 texts, 2 labels"),
        ([], "Received: 3 texts, 0 labels"),
        ([0, -1, 1], "labels must be at least 0. Received: -1 at index 1"),
        ([0, 2**32, 1], "less than 2,147,483,648. Received: 4294967296 at index 1"),
        ([0, 2**65, 1], "less than 2,147,483,648. Received: 36893488147419103232 at index 1"),
        ([0, None, 1], "Each example needs a label. Received: None at index 1"),
        ([0, float("nan"), 1], "Each example needs a label. Received: nan at index 1"),
        (["a", "b", np.nan], "Each example needs a label. Received: nan at index 2"),
        (np.array([0, np.nan, 1]), "needs a label.*nan.*at index 1"),
        ([0, 1.0, 1], "labels must be ints.*Received: 1.0, a float, at index 1.*regression"),
        ([0, "good", 1], "all ints or all names. Received: 0 at index 0 and 'good' at index 1"),
        (np.arange(3)[:, None], r"a column for each class\. Received: shape \(3, 1\)"),
        (np.zeros((3, 2, 2)), r"a column for each class\. Received: shape \(3, 2, 2\)"),
        ("bad", "labels must be a list"),
        ({"a": 0}, "labels must be a list"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        classification(["a", "b", "c"], labels, TOKENIZER)


def test_missing_labels_of_pandas_are_refused():
    with pytest.raises(ValueError, match=r"Each example needs a label.*NA.*at index 1"):
        classification(["a", "b"], [1, pandas.NA], TOKENIZER)
    with pytest.raises(ValueError, match="targets must be"):
        regression(["a", "b"], [1, pandas.NA], TOKENIZER)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["good", "odd"], "must be one of class_names. Received: 'odd' at index 1"),
        ([0, 2], "labels must be at least 0 and less than 2. Received: 2 at index 1"),
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
        ([[1.0, 2.0], [3.0]], "rows of numbers of the same length"),
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
        (["a", None], "texts must be texts, of type str. Received: None at index 1"),
        (["a", 3], "texts must be texts, of type str. Received: 3 at index 1"),
        (["a", float("nan")], "texts must be texts, of type str. Received: nan at index 1"),
        (["a", b"b"], "texts must be texts, of type str. Received: b'b' at index 1"),
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
    with pytest.raises(ValueError, match="must have at least one example"):
        make()


@pytest.mark.parametrize("make", [entailment, similarity])
def test_unequal_lists_of_a_pair_are_refused(make):
    with pytest.raises(
        ValueError, match=r"All columns must have the same length. Received: 2 .*, 1 "
    ):
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
        (
            [["a", "b"], ["a", None]],
            [0, 0],
            r"choices\[1\] must be texts, of type str. Received: None",
        ),
        ([["a", "b"]], [0, 0], "Received: 2 contexts, 1 choices, 2 labels"),
    ],
)
def test_bad_choices_are_refused(choices, labels, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(["x", "y"], choices, labels, TOKENIZER)


OPTIONS = {"text": ["c", "d"], "label": ["A", "B"]}  # as in ARC and CommonsenseQA


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: classification({"a", "b"}, [0, 1], TOKENIZER),
            "texts must be in the order.*a set",
        ),
        (lambda: classification(["a", "b"], {0, 1}, TOKENIZER), "labels must be in the order"),
        (lambda: regression({"a", "b"}, [0, 1], TOKENIZER), "texts must be in the order"),
        (
            lambda: completions({"a", "b"}, ["c", "d"], TOKENIZER),
            "prompts must be in the order",
        ),
        (
            lambda: conversations([{("a", True), ("b", False)}], TOKENIZER),
            r"conversations\[0\] must be in the order",
        ),
        (
            lambda: multiple_choice(["a", "b"], [["c", "d"], {"e", "f"}], [0, 1], TOKENIZER),
            r"choices\[1\] must be in the order",
        ),
        (
            lambda: multiple_choice(["a", "b"], [OPTIONS] * 2, [0, 1], TOKENIZER),
            r"keys \['text', 'label'\]. Try choices=\[choice\['text'\] for choice in choices\]",
        ),
        (
            lambda: multiple_choice(["a", "b"], [["c", "d"], OPTIONS], [0, 1], TOKENIZER),
            r"Try choices\[1\]=table\['text'\]",
        ),
    ],
)
def test_sets_and_dicts_are_no_columns(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("labels", [["B", "C"], ["0", "1"], np.array(["A", "B"]), [0, "B"]])
def test_names_of_choices_are_refused(labels):
    with pytest.raises(ValueError, match=r"numbers of the right choices.*Received: the str '.*at"):
        multiple_choice(["x", "y"], [["a", "b", "c"]] * 2, labels, TOKENIZER)


@pytest.mark.parametrize("labels", [np.eye(3, dtype=int)[:2], [[0], [1]]])
def test_rows_of_labels_for_choices_are_refused(labels):
    with pytest.raises(ValueError, match=r"the one right choice.*try np\.argmax"):
        multiple_choice(["x", "y"], [["a", "b", "c"]] * 2, labels, TOKENIZER)


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        ("ab", "list of names.*Received: class_names='ab'"),
        (["a", "a"], "must differ"),
        ([1, 0], r"in their order.*\[1, 0\].*class_names=\['1', '0'\]"),
        ([1, 2], r"Numbers as class_names must be those of the classes, 0, 1"),
    ],
)
def test_class_names_that_name_no_classes_are_refused(class_names, message):
    with pytest.raises(ValueError, match=message):
        classification(["x", "y"], [0, 1], TOKENIZER, class_names=class_names)


@pytest.mark.parametrize(
    ("package", "make"), [("torch", "tensor"), ("jax.numpy", "array"), ("tensorflow", "constant")]
)
def test_tensors_of_any_backend_are_labels(package, make):
    tensor = getattr(pytest.importorskip(package), make)
    texts, choices = ["a", "b", "c"], [["d", "e"]] * 3

    for labels in (tensor([0, 1, 1]), [tensor(0), tensor(1), tensor(1)]):
        assert classification(texts, labels, TOKENIZER).labels.tolist() == [0, 1, 1]
        assert multiple_choice(texts, choices, labels, TOKENIZER).labels.tolist() == [0, 1, 1]
    several = [[0, 1], [1, 1], [0, 0]]
    for labels in (tensor(several), [tensor([float(i) for i in row]) for row in several]):
        assert classification(texts, labels, TOKENIZER).labels.tolist() == several
    with pytest.raises(ValueError, match=r"labels must be ints from 0.*0\.0"):
        classification(texts, tensor([0.0, 1.0, 1.0]), TOKENIZER)


def test_a_hugging_face_dataset_of_tensors_is_taken():
    pytest.importorskip("torch")
    data = datasets.Dataset.from_dict({"text": ["ab", "c"], "label": [0, 1]}).with_format("torch")

    for of_rows in (lambda column: column, lambda column: column[:]):
        expect_two_examples(
            classification(of_rows(data["text"]), of_rows(data["label"]), TOKENIZER, seed=None)
        )
