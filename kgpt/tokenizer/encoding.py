"""Text -> token ids and back: methods of `Tokenizer`."""

import re
from collections.abc import Iterable

from kgpt.arguments import checked
from kgpt.tokenizer.checks import check_ids, check_texts, check_unicode
from kgpt.tokenizer.gpt1_words import gpt1_words


@checked
def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Turns a text into token ids.

    Args:
        self: the tokenizer.
        text: str.
        allow_special: bool. Whether special tokens written out in the text become their ids.
            Only for text that you trust.

    Returns:
        list of int; nothing is added at either end.

    Raises:
        ValueError: if `text` is not a str or not valid Unicode.
        ImportError: if the tokenizer has `exact=True` and ftfy or spaCy is not installed.

    Example:
        tokenizer.encode("Hello world")
        tokenizer.encode("The end.<|endoftext|>", allow_special=True)
    """
    return self.encode_batch([text], allow_special)[0]


@checked
def encode_batch(self, texts: Iterable[str], allow_special: bool = False) -> list[list[int]]:
    """Turns texts into token ids, on all cores.

    Args:
        self: the tokenizer.
        texts: iterable of str.
        allow_special: bool. Whether special tokens written out in a text become their ids.

    Returns:
        list of lists of int, one for each text.

    Raises:
        ValueError: if a text is not a str or not valid Unicode.
        ImportError: if the tokenizer has `exact=True` and ftfy or spaCy is not installed.

    Example:
        tokenizer.encode_batch(["Hello world", "def main("])
    """
    texts = check_texts(texts)
    if allow_special and self._special:
        return _encode_with_special(self, texts)
    prepared = list(gpt1_words(texts)) if self.exact else texts
    try:
        encodings = self._rust.encode_batch_fast(prepared, add_special_tokens=False)
    except TypeError:
        check_unicode(texts)
        raise
    return [encoding.ids for encoding in encodings]


@checked
def decode(self, ids, skip_special_tokens: bool = False) -> str:
    """Turns token ids into text.

    Bytes that are not UTF-8, such as a part of a character, become U+FFFD.

    Args:
        self: the tokenizer.
        ids: list, numpy array or tensor of int, with one axis.
        skip_special_tokens: bool. Whether to omit special tokens.

    Returns:
        str.

    Raises:
        ValueError: if an id is not an int in `[0, vocabulary_size)`.

    Example:
        tokenizer.decode([40, 41, 42])
    """
    return self._rust.decode(
        check_ids(ids, self.vocabulary_size), skip_special_tokens=skip_special_tokens
    )


@checked
def decode_batch(self, batch, skip_special_tokens: bool = False) -> list[str]:
    """Turns rows of token ids into texts.

    Args:
        self: the tokenizer.
        batch: list of lists, arrays or tensors of int, or one array or tensor with two axes.
        skip_special_tokens: bool. Whether to omit special tokens.

    Returns:
        list of str, one for each row.

    Raises:
        ValueError: if an id is not an int in `[0, vocabulary_size)`.

    Example:
        tokenizer.decode_batch([[40, 41], [42]])
    """
    rows = [check_ids(ids, self.vocabulary_size) for ids in batch]
    return self._rust.decode_batch(rows, skip_special_tokens=skip_special_tokens)


@checked
def token_to_id(self, token: str) -> int | None:
    """Returns the id of a token.

    Args:
        self: the tokenizer.
        token: str, written as in the vocabulary: in GPT-2's a space is `\u0120`.

    Returns:
        int, or None if there is no such token.

    Raises:
        ValueError: for what is no str.

    Example:
        tokenizer.token_to_id("<|endoftext|>")
    """
    return self._rust.token_to_id(token)


def id_to_token(self, token_id: int) -> str:
    """Returns the token of an id.

    Args:
        self: the tokenizer.
        token_id: int.

    Returns:
        str, written as in the vocabulary: in GPT-2's a space is `\u0120`.

    Raises:
        ValueError: if the id is not an int in `[0, vocabulary_size)`.

    Example:
        tokenizer.id_to_token(0)
    """
    return self._rust.id_to_token(check_ids([token_id], self.vocabulary_size)[0])


def _encode_with_special(tokenizer, texts: list[str]) -> list[list[int]]:
    longest_first = sorted(tokenizer._special, key=len, reverse=True)
    special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    split = [special.split(text) for text in texts]  # plain, special, plain, ... plain
    plain = iter(tokenizer.encode_batch([part for parts in split for part in parts[::2]]))
    return [
        [
            token_id
            for place, part in enumerate(parts)
            for token_id in ([tokenizer._special[part]] if place % 2 else next(plain))
        ]
        for parts in split
    ]
