"""What a folder holds: encodings and compressed files are read, what is not read is said."""

import bz2
import gzip
import importlib.util
import lzma
import sys
import warnings

import numpy as np
import pytest

import kgpt
from kgpt.text import documents

TEXT = "H\u00fcter der Stra\u00dfe,\r\n\u4e2d\u6587 \U0001f600\n"
COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
encoded = pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-16-le", b"\xff\xfe"),  # "Unicode" of Windows' editors
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\0\0"),
        ("utf-32-be", b"\0\0\xfe\xff"),
        ("utf-8", b"\xef\xbb\xbf"),
    ],
)


# === Encodings ===


@encoded
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding, mark):
    (tmp_path / "a.txt").write_bytes(mark + TEXT.encode(encoding))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(documents(tmp_path)) == [TEXT]
        assert list(documents(tmp_path / "a.txt")) == [TEXT]
        assert list(documents(tmp_path / "a.txt", encoding="latin-1")) == [TEXT]


@encoded
def test_a_file_that_is_only_a_byte_order_mark_is_empty(tmp_path, encoding, mark):
    (tmp_path / "a.txt").write_bytes(mark)

    assert list(documents([tmp_path / "a.txt", "a text"])) == ["a text"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "utf-16-be", "shift-jis"])
@pytest.mark.parametrize("length", [1, 3, 100])
def test_another_encoding_is_an_argument(tmp_path, encoding, length):
    text = "\u65e5\u672c\n" if encoding == "shift-jis" else "H\u00fcter\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))

    pieces = kgpt.text.document_pieces(tmp_path, piece_length=length, encoding=encoding)

    assert "".join(piece for piece, _ in pieces) == text


def test_the_encoding_is_an_argument_of_training_and_writing(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("H\u00fcter".encode("cp1252"))

    tokenizer = kgpt.Tokenizer.train(file, style="characters", encoding="cp1252")
    path = tmp_path / "train.npy"
    kgpt.data.write_tokens(file, tokenizer, path, encoding="cp1252", progress=False)

    assert tokenizer.decode(np.load(path)[:-1]) == "H\u00fcter"


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "", None])
def test_an_unknown_encoding_is_refused(encoding):
    with pytest.raises(ValueError, match="encoding must be the name of a text encoding"):
        list(documents(["a text"], encoding=encoding))


def test_files_in_another_encoding_are_counted_and_named(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "windows.txt").write_bytes(b"\x93quoted\x94")

    with pytest.raises(
        ValueError, match=r"2 files that are not UTF-8 text: latin.txt, more/windows.txt.*encoding="
    ):
        list(documents(tmp_path))
    assert list(documents(tmp_path, errors="replace")) == [
        "plain",
        "caf\ufffd",
        "\ufffdquoted\ufffd",
    ]
    assert list(documents(tmp_path, encoding="cp1252"))[1:] == ["caf\xe9", "\u201cquoted\u201d"]


@pytest.mark.parametrize("encoding", ["utf-16", "UTF-32"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_an_encoding_that_needs_a_byte_order_mark_is_refused_without_one(
    tmp_path, encoding, errors
):
    name = encoding.lower()
    (tmp_path / "a.txt").write_bytes("a text".encode(f"{name}-le"))

    with pytest.raises(ValueError, match=rf"not {name} text.*a\.txt.*{name}-le") as caught:
        list(documents(tmp_path / "a.txt", errors, encoding))
    assert caught.type is ValueError
    with pytest.raises(ValueError, match=r"text.*a\.txt"):
        list(documents(tmp_path, errors, encoding))


def test_a_character_cut_off_at_the_end_of_utf16_is_reported(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe" + "ab".encode("utf-16-le") + b"c")

    with pytest.raises(ValueError, match=r"not utf-16-le text.*byte 0x63 at offset 6"):
        list(documents(tmp_path / "a.txt"))


# === Compressed files ===


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compressed_text_is_read(tmp_path, suffix):
    compress = COMPRESSORS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(TEXT.encode()))
    (tmp_path / f"b{suffix.upper()}").write_bytes(compress(b"one") + compress(b"two"))  # two parts
    (tmp_path / f"c.txt{suffix}").write_bytes(compress(TEXT.encode("utf-16")))

    assert list(documents(tmp_path)) == [TEXT, "onetwo", TEXT]
    assert list(documents(tmp_path / f"a.txt{suffix}")) == [TEXT]


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"plain text"])
def test_a_damaged_compressed_file_is_refused_by_name(tmp_path, suffix, damage):
    data = COMPRESSORS[suffix](TEXT.encode() * 50)
    (tmp_path / f"a.txt{suffix}").write_bytes(damage(data))

    with pytest.raises(ValueError, match=f"compressed file is damaged.*a.txt{suffix}"):
        list(documents(tmp_path / f"a.txt{suffix}"))


def test_zstandard_is_read_if_it_is_installed(tmp_path):
    if not importlib.util.find_spec("zstandard"):
        pytest.skip("zstandard is no dependency of kgpt: without it .zst files are refused")
    import zstandard

    data = zstandard.compress(TEXT.encode())
    (tmp_path / "a.txt.zst").write_bytes(data + data)
    (tmp_path / "cut.zst").write_bytes(data[:-3])

    assert list(documents(tmp_path / "a.txt.zst")) == [TEXT * 2]
    with pytest.raises(ValueError, match=r"compressed file is damaged.*ended before the end"):
        list(documents(tmp_path / "cut.zst"))


def test_without_zstandard_its_files_are_said_or_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"compressed")
    (tmp_path / "b.txt").write_text("b")

    with pytest.raises(ImportError, match="pip install zstandard"):
        list(documents(tmp_path / "a.txt.zst"))
    with pytest.warns(UserWarning, match=r"1 file \(a.txt.zst\).*pip install zstandard"):
        assert list(documents(tmp_path)) == ["b"]


# === What is not read ===


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.md").write_text("d")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "empty.txt").write_text("")
    return tmp_path


def test_a_folder_is_its_text_files_in_sorted_order_without_hidden_ones(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(documents(folder)) == ["a", "b", "d"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("picture.png", b"\x89PNG\0\0", "binary"),
        ("windows.txt", "no mark".encode("utf-16-le"), 'encoding="utf-16-le"'),
        ("rows.jsonl", b'{"text": "a"}\n', r'kgpt.data.read_texts\(path, column="text"\).*pyarrow'),
        ("rows.ndjson", b'{"text": "a"}\n', "kgpt.data.read_texts"),
        ("rows.csv", b"text\na\n", "kgpt.data.read_texts"),
        ("rows.TSV", b"text\na\n", "kgpt.data.read_texts"),
        ("rows.parquet", b"PAR1", "kgpt.data.read_texts"),
        ("rows.csv.gz", gzip.compress(b"text\na\n", mtime=0), "kgpt.data.read_texts"),
        ("tar.gz", gzip.compress(b"a.txt\0\0\0", mtime=0), "binary"),
    ],
)
def test_a_file_that_is_no_text_is_said_in_a_folder_and_refused_alone(
    folder, name, content, reason
):
    (folder / "c" / name).write_bytes(content)

    with pytest.warns(UserWarning, match=rf"1 file \(c/{name}\), as they are .*{reason}"):
        assert list(documents(folder)) == ["a", "b", "d"]
    with pytest.raises(ValueError, match=rf"can't be read as text.*{name}.*{reason}"):
        list(documents(folder / "c" / name))


def test_what_is_not_read_is_counted_and_named_with_its_reasons(folder):
    for i in range(13):
        (folder / f"{i:02}.csv").write_text("text\na\n")
    (folder / "z.bin").write_bytes(b"\0\1")

    with pytest.warns(UserWarning, match="Not read in the folder") as caught:
        list(documents(folder))

    [message] = [str(warning.message) for warning in caught]
    assert str(folder) in message
    assert "13 files (00.csv, 01.csv" in message
    assert "09.csv, and 3 others)" in message
    assert "1 file (z.bin), as they are binary" in message


def test_links_that_are_not_followed_are_said(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "e.txt").write_text("e")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "broken.txt").symlink_to(folder / "missing")

    with pytest.warns(UserWarning, match="Not read in the folder") as caught:
        assert list(documents(folder)) == ["a", "b", "d"]

    assert "1 file (linked), as they are links to folders" in str(caught[0].message)
    assert "1 file (broken.txt), as they are broken links" in str(caught[0].message)


def test_a_folder_in_which_nothing_is_read_is_refused_with_the_reason(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    with pytest.raises(ValueError, match=r"no text to read.*1 file \(rows.jsonl\).*read_texts"):
        kgpt.Tokenizer.train(tmp_path, 300)
