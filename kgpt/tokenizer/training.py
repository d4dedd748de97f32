"""Text, or OpenAI's vocabulary files -> a tokenizer of the `tokenizers` library."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence

from kgpt.arguments import is_int
from kgpt.console import warn
from kgpt.reading import read_json, read_text
from kgpt.text import document_pieces
from kgpt.tokenizer.gpt1_words import gpt1_words
from kgpt.tokenizer.styles import (
    END_OF_TEXT,
    END_OF_WORD,
    STYLES,
    UNKNOWN,
    check_new,
    check_special_tokens,
    check_style,
    pipeline,
)

_PIECE_LENGTH = 2**16  # `tokenizers` holds some hundred pieces at once in training

# === Training ===


def train_tokenizer(
    files_or_texts: os.PathLike | Iterable[str | os.PathLike],
    vocabulary_size: int | None,
    style: str,
    errors: str,
    special_tokens: Sequence[str],
    exact: bool | None,
    encoding: str,
):
    """Returns a trained `tokenizers.Tokenizer`; the arguments are those of `Tokenizer.train`."""
    exact = check_style(style, exact)
    special_tokens = list(dict.fromkeys([END_OF_TEXT, *check_special_tokens(special_tokens)]))
    expected = type(None) if style == "characters" else int
    if not isinstance(vocabulary_size, expected):
        raise ValueError(
            'vocabulary_size must be an int, and None with style="characters". '
            f"Received: vocabulary_size={vocabulary_size}, style={style!r}."
        )
    documents = document_pieces(files_or_texts, errors, _PIECE_LENGTH, encoding)
    pieces = (piece for piece, _ in documents)
    if style == "characters":
        model = _character_model(pieces)
    elif style == "gpt2":
        model = _train_byte_level(pieces, vocabulary_size, len(special_tokens))
    else:
        model = _train_on_words(pieces, vocabulary_size, exact, len(special_tokens))
    tokenizer = pipeline(model, style, exact)
    check_new([token for token in special_tokens if token != UNKNOWN], tokenizer)
    tokenizer.add_special_tokens(special_tokens)
    size = tokenizer.get_vocab_size()
    if style != "characters" and size < vocabulary_size:
        warn(
            f"The text is too small for a vocabulary of {vocabulary_size} tokens: no pair of "
            f"tokens is left that occurs twice. This tokenizer has {size}.",
        )
    return tokenizer


def _character_model(pieces: Iterable[str]):
    from tokenizers import models

    characters = sorted(set().union(*map(set, pieces)))
    ids = {token: i for i, token in enumerate([UNKNOWN, *characters])}
    return models.BPE(ids, [], unk_token=UNKNOWN)


def _train_byte_level(pieces: Iterator[str], vocabulary_size: int, num_special: int):
    """GPT-2's BPE, over the bytes of the text."""
    from tokenizers import models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = _trainer_options(alphabet, vocabulary_size, num_special)
    tokenizer = pipeline(models.BPE(), "gpt2", exact=False)
    tokenizer.train_from_iterator(pieces, trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    return tokenizer.model


def _train_on_words(pieces: Iterator[str], vocabulary_size: int, exact: bool, num_special: int):
    """GPT-1's BPE, over the characters of words, the last one of which is marked."""
    from tokenizers import models, trainers

    # The trainer numbers characters with a suffix in an order that changes from run to run.
    # Hence a first one only counts the words; the second one gets the alphabet in GPT-1's order.
    counter = trainers.BpeTrainer(vocab_size=0, show_progress=False)
    counting = pipeline(models.BPE(), "gpt1", exact)
    counting.train_from_iterator(gpt1_words(pieces) if exact else pieces, counter)
    words = sorted(json.loads(counter.__getstate__())["BpeTrainer"]["words"].items())
    characters = sorted(set().union(*(word for word, _ in words)))
    alphabet = [UNKNOWN, *characters, *(character + END_OF_WORD for character in characters)]
    options = _trainer_options(alphabet, vocabulary_size, num_special)
    model = models.BPE(unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
    tokenizer = pipeline(model, "gpt1", exact=True)  # the words have been split already
    trainer = trainers.BpeTrainer(
        special_tokens=alphabet, end_of_word_suffix=END_OF_WORD, **options
    )
    tokenizer.train_from_iterator(_repeat(words), trainer)
    return tokenizer.model


def _trainer_options(alphabet: Sequence[str], vocabulary_size: int, num_special: int) -> dict:
    trained_size = vocabulary_size - num_special
    if trained_size < len(alphabet):
        raise ValueError(
            f"vocabulary_size must be at least {len(alphabet) + num_special}: {len(alphabet)} for "
            f"the alphabet and {num_special} for special tokens. "
            f"Received: vocabulary_size={vocabulary_size}."
        )
    return {"vocab_size": trained_size, "min_frequency": 2, "show_progress": False}


def _repeat(words: list[tuple[str, int]], at_once: int = 1000) -> Iterator[str]:
    """Yields each word as often as it was counted, in lines of at most `at_once` words."""
    for word, count in words:
        for start in range(0, count, at_once):
            yield " ".join([word] * min(at_once, count - start))


# === OpenAI's files ===


def tokenizer_from_vocabulary(
    vocabulary: str | os.PathLike,
    merges: str | os.PathLike,
    style: str,
    special_tokens: Sequence[str],
    exact: bool | None,
):
    """Returns a `tokenizers.Tokenizer`; the arguments are those of `Tokenizer.from_vocabulary`."""
    ids = read_json(vocabulary, hint="It must be a JSON object of tokens and ids.")
    lines = read_text(merges, "It must have two tokens in each line.").split("\n")
    lines = [line for line in lines if line and line[:9] != "#version:"]
    return tokenizer_from_parts(
        ids, lines, style, special_tokens, exact, sources=(str(vocabulary), str(merges))
    )


def tokenizer_from_parts(
    ids: dict[str, int],
    merges: Iterable[str],
    style: str,
    special_tokens: Sequence[str] = (),
    exact: bool | None = None,
    sources: tuple[str, str] = ("a vocabulary", "merges"),
):
    """As `tokenizer_from_vocabulary`, of a dict and lines in place of the two files."""
    from tokenizers import models

    chosen = exact
    exact = check_style(style, exact, styles=STYLES[:2])
    if style == "gpt1" and not exact and chosen is None:
        warn(
            "ftfy and spaCy are not installed: some ids will differ from those that GPT-1 was "
            "trained with. Try `pip install ftfy spacy`, or exact=False for no warning.",
        )
    special_tokens = check_special_tokens(special_tokens)
    pairs = _checked_pairs(ids, list(merges), style, special_tokens, sources)
    options = {"unk_token": UNKNOWN, "end_of_word_suffix": END_OF_WORD} if style == "gpt1" else {}
    tokenizer = pipeline(models.BPE(ids, pairs, **options), style, exact)
    merged = {first + second for first, second in pairs}
    check_new([token for token in special_tokens if token in merged or len(token) == 1], tokenizer)
    known = [END_OF_TEXT] if END_OF_TEXT in ids else []
    tokenizer.add_special_tokens([*known, *special_tokens])
    return tokenizer


def _checked_pairs(ids, lines, style: str, special_tokens: Sequence[str], sources):
    """Returns the merged pairs, which must match the ids."""
    pairs = [tuple(line.split(" ")) for line in lines]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    no_id = next((item for item in ids.items() if not is_int(item[1])), None)
    if wrong or no_id:
        problem = f"a line {' '.join(wrong)!r:.60}" if wrong else "{!r}: {!r:.60}".format(*no_id)
        raise ValueError(
            "The vocabulary must be a JSON object of tokens and ids, and each line of the merges "
            "two tokens separated by a space. "
            f"Received: {' and '.join(sources)}, with {problem}. Try another copy."
        )
    from tokenizers import pre_tokenizers

    merged = {first + second for first, second in pairs}
    symbols = {token for token in ids if len(token.removesuffix(END_OF_WORD)) == 1}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet()) if style == "gpt2" else {UNKNOWN}
    parts = {part for pair in pairs for part in pair}
    missing = sorted((alphabet | parts | merged) - set(ids))
    unmerged = sorted(set(ids) - merged - symbols - {END_OF_TEXT, UNKNOWN, *special_tokens})
    if missing or unmerged or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(
            "The vocabulary and the merges must belong to one model, and to "
            f"style={style!r}. Received: {sources[0]} with {len(ids)} tokens and {sources[1]} with "
            f"{len(pairs)} merges; {len(missing)} symbols are not in the vocabulary "
            f"{missing[:3]}, {len(unmerged)} tokens are the result of no merge {unmerged[:3]}. "
            "Try the other style, or both files of one model."
        )
    return pairs
