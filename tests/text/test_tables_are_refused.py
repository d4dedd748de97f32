"""A table in place of texts would be iterated by the names of its columns."""

import numpy as np
import pytest

import kgpt
from kgpt.text import documents

datasets = pytest.importorskip(
    "datasets", reason="columns and tables of datasets are what is tested"
)
pandas = pytest.importorskip("pandas", reason="columns and tables of pandas are what is tested")
pyarrow = pytest.importorskip("pyarrow", reason="columns and tables of pyarrow are what is tested")

ROWS = {"number": [1, 2], "text": ["a film", "a book"]}
DATASET = datasets.Dataset.from_dict(ROWS)
TABLES = {
    "DataFrame": (pandas.DataFrame(ROWS), r"table\['text'\]"),
    "dict of columns": (ROWS, r"table\['text'\]"),
    "Dataset": (DATASET, r"table\['text'\]"),
    "DatasetDict": (datasets.DatasetDict(train=DATASET), r"table\['train'\]\['text'\]"),
    "IterableDataset": (DATASET.to_iterable_dataset(), r"table\['text'\]"),
    "IterableDatasetDict": (
        datasets.IterableDatasetDict({"train": DATASET.to_iterable_dataset()}),
        r"table\['train'\]\['text'\]",
    ),
    "pyarrow": (pyarrow.table(ROWS), r"table\['text'\]"),
    "structured array": (
        np.array([(1, "a film")], [("number", int), ("text", "U9")]),
        r"table\['text'\]",
    ),
    "another name": (pandas.DataFrame({"id": [1], "review": ["fine"]}), r"table\['review'\]"),
    "dict of texts": ({"a.txt": "a text", "b.txt": "another"}, r"list\(table.values\(\)\)"),
}
TOKENIZER = kgpt.Tokenizer.train(["abcdefghijklmnopqrstuvwxyz "], style="characters")

READERS = {
    "documents": lambda table, folder: list(documents(table)),
    "train": lambda table, folder: kgpt.Tokenizer.train(table, style="characters"),
    "write_tokens": lambda table, folder: kgpt.data.write_tokens(
        table, TOKENIZER, folder / "train.npy"
    ),
    "encode_batch": lambda table, folder: TOKENIZER.encode_batch(table),
    "texts": lambda table, folder: kgpt.data.classification(table, [0, 1], TOKENIZER),
    "texts or pairs": lambda table, folder: kgpt.data.regression(table, [0, 1], TOKENIZER),
    "labels": lambda table, folder: kgpt.data.classification(["a", "b"], table, TOKENIZER),
    "premises": lambda table, folder: kgpt.data.entailment(table, ["a", "b"], [0, 1], TOKENIZER),
    "choices": lambda table, folder: kgpt.data.multiple_choice(
        ["a", "b"], table, [0, 1], TOKENIZER
    ),
    "sample_weight": lambda table, folder: kgpt.data.classification(
        ["a", "b"], [0, 1], TOKENIZER, sample_weight=table
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_refused_with_the_column_to_choose(tmp_path, reader, kind):
    table, hint = TABLES[kind]

    with pytest.raises(ValueError, match=rf"one column.*with the columns \[.*Try \w+={hint}"):
        READERS[reader](table, tmp_path)


@pytest.mark.parametrize(
    "column",
    [
        pandas.DataFrame(ROWS)["text"],
        DATASET["text"],
        DATASET.to_iterable_dataset()["text"],
        np.array(ROWS["text"]),
        {"a film": None, "a book": None}.keys(),
    ],
    ids=["pandas", "datasets", "streamed", "numpy", "keys"],
)
def test_a_column_is_read(column):
    assert list(documents(column)) == ["a film", "a book"]


def test_rows_are_refused_with_the_way_to_one_column():
    rows = [{"number": 1, "text": "a film"}]

    with pytest.raises(ValueError, match=r'of type dict. Try \[row\["text"\]'):
        list(documents(rows))
