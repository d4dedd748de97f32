import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from kgpt.text import document_pieces, documents

# letters, digits, punctuation, contractions, and white space of many kinds
TEXT = st.text(st.sampled_from("abé7_'st.,中😀 \n\t\r\x0b\x1c\x85\xa0\u2003\u3000"), max_size=60)


def joined_documents(pieces):
    """Put pieces of documents together again."""
    whole, text = [], ""
    for piece, ends_document in pieces:
        text += piece
        if ends_document:
            whole.append(text)
            text = ""
    assert text == ""
    return whole


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE with GPT-2's split pattern."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a b  a b\n\nabs 'st  's  \n  7 a é é 中 \t\t 中"] * 9, trainer)
    return tokenizer


def test_a_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")

    assert list(documents(tmp_path / "a.txt")) == ["one\ntwo"]


def test_texts_and_paths_mix_in_any_iterable(tmp_path):
    (tmp_path / "a.txt").write_text("from file")

    mixed = (item for item in ["a text", tmp_path / "a.txt", "", "another text"])

    assert list(documents(mixed)) == ["a text", "from file", "another text"]


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list(documents(tmp_path / "missing"))


def test_bytes_that_are_not_utf8_are_reported_with_file_and_offset(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("中".encode() * 5 + b"caf\xe9 ole")

    with pytest.raises(ValueError, match=r'latin.txt, with byte 0xe9 at offset 18.*"replace"'):
        list(document_pieces(file, piece_length=4))
    assert list(documents(file, errors="replace")) == ["中" * 5 + "caf\ufffd ole"]


def test_a_character_cut_off_at_the_end_of_a_file_is_reported(tmp_path):
    (tmp_path / "cut.txt").write_bytes(b"ab" + "中".encode()[:2])

    with pytest.raises(ValueError, match="offset 2"):
        list(documents(tmp_path / "cut.txt"))


def test_half_a_surrogate_pair_in_a_text_is_reported_or_replaced():
    with pytest.raises(ValueError, match=r"at character 3.*replace"):
        list(documents(["abc\ud83d d"]))
    assert list(documents(["abc\ud83d d"], errors="replace")) == ["abc\ufffd d"]


def test_a_byte_order_mark_is_dropped_and_newlines_are_kept(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")

    assert list(documents(tmp_path / "windows.txt")) == ["one\r\ntwo\rthree\n"]


@pytest.mark.parametrize("nothing", [[], [""], ["", ""]])
def test_no_text_at_all_is_refused(nothing):
    with pytest.raises(ValueError, match="no text to read"):
        list(documents(nothing))


@pytest.mark.parametrize("wrong", [b"bytes", 7, [b"bytes"], [["nested"]], None])
def test_what_is_neither_text_nor_path_is_refused(wrong):
    with pytest.raises(ValueError, match="Received"):
        list(documents(wrong))


def test_an_unknown_error_handler_is_refused():
    with pytest.raises(ValueError, match="errors='ignore'"):
        list(documents(["text"], errors="ignore"))


@given(texts=st.lists(TEXT, max_size=4), length=st.integers(1, 20))
@settings(deadline=None)
def test_pieces_put_together_are_the_documents(texts, length):
    texts = ["a text\n", *(text + "\n" for text in texts)]

    assert joined_documents(document_pieces(texts, piece_length=length)) == texts


@given(text=TEXT, length=st.integers(1, 20))
@settings(deadline=None)
def test_a_file_gives_the_characters_that_were_written(tmp_path_factory, text, length):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes(("x" + text).encode())

    assert joined_documents(document_pieces(file, piece_length=length)) == ["x" + text]


@given(text=TEXT, length=st.integers(8, 20))  # 60 characters are never cut inside a word
@settings(deadline=None)
def test_cutting_into_pieces_changes_no_tokens(tokenizer, text, length):
    text += "\n"

    pieces = [piece for piece, _ in document_pieces([text], piece_length=length)]

    token_ids = [i for piece in pieces for i in tokenizer.encode(piece).ids]
    assert token_ids == tokenizer.encode(text).ids


def test_a_long_text_comes_in_pieces_of_about_the_asked_length():
    pieces = [piece for piece, _ in document_pieces(["a word " * 1000], piece_length=100)]

    assert max(map(len, pieces)) < 210
    assert all(piece.startswith(" ") and not piece.endswith(" ") for piece in pieces[1:-1])


def test_a_text_without_white_space_is_cut_in_the_end():
    pieces = [piece for piece, _ in document_pieces(["x" * 5000], piece_length=100)]

    assert "".join(pieces) == "x" * 5000
    assert max(map(len, pieces)) <= 900
