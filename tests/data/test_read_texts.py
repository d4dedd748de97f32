"""Tables have a reader: a column of `.jsonl`, `.csv`, `.parquet`, plain or compressed."""

import bz2
import gzip
import itertools
import lzma
import sys
import tracemalloc

import numpy as np
import pytest

import kgpt
from kgpt.data import read_texts, tables

pandas = pytest.importorskip("pandas", reason="columns and tables of pandas are what is tested")
pyarrow = pytest.importorskip("pyarrow", reason="columns and tables of pyarrow are what is tested")
pytest.importorskip("pyarrow.parquet", reason="columns and tables of pyarrow are what is tested")

TEXTS = [
    "N/A",
    'two\nlines, a "quote"\tand a tab',
    "",
    "H\u00fcter \u4e2d\u6587 \U0001f600",
    "24/7",
]
FRAME = pandas.DataFrame({"number": range(5), "text": TEXTS, "more": ["x"] * 5})
WRITERS = {
    ".csv": lambda frame: frame.to_csv(index=False).encode(),
    ".tsv": lambda frame: frame.to_csv(index=False, sep="\t").encode(),
    ".jsonl": lambda frame: frame.to_json(orient="records", lines=True).encode(),
    ".ndjson": lambda frame: frame.to_json(orient="records", lines=True).encode(),
    ".parquet": lambda frame: frame.to_parquet(index=False),
}
COMPRESSORS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("format", WRITERS)
def test_a_column_is_read_row_by_row(tmp_path, format, compression):
    path = tmp_path / f"rows{format}{compression}"
    path.write_bytes(COMPRESSORS[compression](WRITERS[format](FRAME)))

    texts = read_texts(path)

    assert list(texts) == TEXTS
    assert list(texts) == TEXTS  # from the beginning again
    assert list(read_texts(str(path), column="more")) == ["x"] * 5


@pytest.mark.parametrize("format", [".csv", ".tsv", ".jsonl"])
def test_tables_in_utf16_and_in_a_named_encoding_are_read(tmp_path, format):
    table = WRITERS[format](FRAME[:3].replace("", "H\u00fcter")).decode()
    (tmp_path / f"a{format}").write_bytes(table.encode("utf-16"))
    (tmp_path / f"b{format}").write_bytes(table.encode("cp1252"))
    expected = [*TEXTS[:2], "H\u00fcter"]

    assert list(read_texts(tmp_path / f"a{format}")) == expected
    assert list(read_texts(tmp_path / f"b{format}", encoding="cp1252")) == expected
    if format != ".jsonl":  # pandas escapes there
        with pytest.raises(ValueError, match=rf"not UTF-8 text.*b{format}.*encoding="):
            list(read_texts(tmp_path / f"b{format}"))


def test_a_folder_is_its_tables_in_sorted_order(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.csv").write_text("text\na\n")
    (tmp_path / "notes.txt").write_text("not a table")
    (tmp_path / ".hidden.csv").write_text("text\nhidden\n")

    assert list(read_texts(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("format", [".csv", ".jsonl"])
def test_rows_of_any_length_are_read(tmp_path, monkeypatch, format):
    monkeypatch.setattr(tables, "_BLOCK_LENGTH", 256)
    texts = ["a word " * (i**2 % 397) for i in range(50)]
    (tmp_path / f"a{format}").write_bytes(WRITERS[format](pandas.DataFrame({"text": texts})))

    assert list(read_texts(tmp_path / f"a{format}")) == texts


def test_rows_of_json_may_lack_a_column_the_first_one_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": 2, "text": null}\n{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": null}\n{"text": 5}\n')

    assert list(read_texts(tmp_path / "a.jsonl")) == ["", "", "a"]
    with pytest.raises(ValueError, match=r"must hold texts.*which holds int"):
        read_texts(tmp_path / "b.jsonl")


def test_missing_values_are_empty_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": "a", "n": 1}\n{"n": "x"}\n')
    table = pyarrow.table({"text": pyarrow.array(["a", None]).dictionary_encode()})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")

    assert list(read_texts(tmp_path / "a.jsonl")) == ["", "a", ""]
    assert list(read_texts(tmp_path / "a.parquet")) == ["a", ""]


@pytest.mark.parametrize("format", [".csv", ".tsv", ".parquet"])
def test_a_column_of_which_there_are_two_is_refused(tmp_path, format):
    table = pyarrow.Table.from_arrays([["a"], ["b"], ["c"]], names=["text", "x", "text"])
    if format == ".parquet":
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    else:
        (tmp_path / f"a{format}").write_bytes(WRITERS[format](table.to_pandas()))

    with pytest.raises(ValueError, match=rf"several columns of this name.*'text' for .*a{format}"):
        read_texts(tmp_path / f"a{format}")
    assert list(read_texts(tmp_path / f"a{format}", column="x")) == ["b"]


@pytest.mark.parametrize("is_coded", [False, True])
def test_bytes_in_parquet_that_are_no_text_are_refused_or_replaced(tmp_path, is_coded):
    buffers = [None, *map(pyarrow.py_buffer, (np.array([0, 1, 3], "int32"), b"ab\xff"))]
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    column = column.dictionary_encode() if is_coded else column
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")

    with pytest.raises(ValueError, match=r"can't be read: not UTF-8 text.*a\.parquet") as caught:
        list(read_texts(tmp_path / "a.parquet"))
    assert caught.type is ValueError
    assert list(read_texts(tmp_path / "a.parquet", errors="replace")) == ["a", "b\ufffd"]


@pytest.mark.parametrize("format", [".csv", ".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path, monkeypatch, format):
    monkeypatch.setattr(tables, "_BLOCK_LENGTH", 2**16)
    monkeypatch.setattr(tables, "_CHUNK_LENGTH", 2**16)
    frame = pandas.DataFrame({"text": [f"{i} " + "many words " * 100 for i in range(8000)]})
    (tmp_path / f"a{format}").write_bytes(WRITERS[format](frame))  # 9 MB of text
    texts = read_texts(tmp_path / f"a{format}")

    tracemalloc.start()
    length = sum(map(len, texts))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert length == frame["text"].str.len().sum()
    assert peak < 3_000_000


def test_a_column_trains_a_tokenizer_and_becomes_tokens(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(WRITERS[".jsonl"](FRAME)))
    texts = read_texts(tmp_path / "a.jsonl.gz")

    tokenizer = kgpt.Tokenizer.train(texts, style="characters", special_tokens=())
    written = kgpt.data.write_tokens(texts, tokenizer, tmp_path / "train.npy", progress=False)

    assert tokenizer.token_to_id("{") is None
    assert written.num_documents == 4
    decoded = tokenizer.decode(np.load(written.path))
    assert decoded == "".join(text + "<|endoftext|>" for text in TEXTS if text)


# === Refused ===


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,review\n1,a\n", r"no such column.*column='text'.*\['id', 'review'\]"),
        ("a.jsonl", b'{"review": "a"}\n', r"no such column.*\['review'\]"),
        ("a.csv", b"", r"no such column.*the columns \[\]"),
        ("a.jsonl", b"", r"no such column.*the columns \[\]"),
        ("a.jsonl", b'{"text": 3}\n', "must hold texts.*holds int"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "table can't be read.*string to number"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "table can't be read"),
        ("a.jsonl", b'["a", "b"]\n', "line 1 is not an object"),
        ("a.jsonl", b"a text\n", "line 1 is not JSON"),
        ("a.csv", b"id,text\n1,a\n1,a,b\n", "table can't be read.*Expected 2 columns, got 3"),
        ("a.parquet", b"PAR1 and no more", "table can't be read"),
        ("a.csv.gz", b"text\na\n", "compressed file is damaged.*a.csv.gz"),
        ("a.txt", b"a text", r"must be a table.*a.txt.*try Path\(...\) itself"),
        ("a.json", b'[{"text": "a"}]', r"must be a table.*a.json"),
    ],
)
def test_what_is_no_such_table_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=message):
        list(read_texts(tmp_path / name))


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [0.5, None]])
def test_a_parquet_column_of_something_else_is_refused(tmp_path, values):
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")

    with pytest.raises(ValueError, match=r"must hold texts.*a.parquet, which holds"):
        read_texts(tmp_path / "a.parquet")


def test_a_wrong_column_is_refused_before_the_first_row(tmp_path):
    (tmp_path / "a.csv").write_text("review\na\n")

    with pytest.raises(ValueError, match="no such column"):
        read_texts(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="name of one column"):
        read_texts(tmp_path / "a.csv", column=["review"])


def test_a_missing_table_and_a_folder_without_tables_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.csv"):
        read_texts(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="must be a table"):
        read_texts(tmp_path)


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("format", WRITERS)
def test_a_table_given_as_text_is_refused_with_the_name_of_the_reader(
    tmp_path, format, compression
):
    path = tmp_path / f"rows{format}{compression}"
    path.write_bytes(COMPRESSORS[compression](WRITERS[format](FRAME)))

    with pytest.raises(ValueError, match=r'kgpt.data.read_texts\(path, column="text"\).*pyarrow'):
        kgpt.Tokenizer.train(path, 300)


def test_without_pyarrow_the_refusal_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text\na\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_texts(tmp_path / "a.csv")


def test_an_iteration_that_stops_early_leaves_the_table_usable(tmp_path):
    (tmp_path / "a.csv").write_bytes(WRITERS[".csv"](FRAME))
    texts = read_texts(tmp_path / "a.csv")

    assert list(itertools.islice(texts, 2)) == TEXTS[:2]
    assert list(texts) == TEXTS
