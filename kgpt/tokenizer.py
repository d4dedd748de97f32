"""Text <-> token ids: training, GPT-1's and GPT-2's own vocabularies, single characters."""

import functools
import importlib.util
import json
import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from kgpt.text import document_pieces

END_OF_TEXT = "<|endoftext|>"
TASK_TOKENS = ("<|start|>", "<|delimiter|>", "<|classify|>")  # GPT-1, section 3.3
_UNKNOWN = "<unk>"
_STYLES = ("gpt2", "gpt1", "characters")
_PIECE_LENGTH = 2**16  # `tokenizers` holds some hundred pieces at once in training


@keras.saving.register_keras_serializable(package="kgpt")
class Tokenizer:
    """Turns text into token ids and back, in Rust, by the `tokenizers` library.

    Make one with `Tokenizer.train`, `Tokenizer.from_vocabulary` or `Tokenizer.from_file`. There
    are three styles:

    - `"gpt2"`: byte-level BPE, no clean-up of the text, no space put in front (GPT-2, section
      2.2). Any text survives `decode(encode(text))`, and no text has unknown parts.
    - `"gpt1"`: BPE over the characters of lower-cased words (GPT-1, section 4.1). Symbols that
      the vocabulary lacks become `<unk>`, and decoded text has a space between all words.
    - `"characters"`: one token a character; characters that it lacks become `<unk>`, id 0.

    Special tokens are never made from the text: `encode("<|endoftext|>")` gives the pieces of
    that string, as of any other, so text from outside can't end a document or begin a task.
    Put their ids in by hand (`end_of_text_id`, `start_id`, `delimiter_id`, `classify_id`; None
    for those that the tokenizer has not), or ask with `encode(text, allow_special=True)`.

    The way to GPT-1's words is part of the tokenizer and of its file; `exact` tells which:

    - `exact=True`: ftfy and spaCy, as in the original (`pip install kgpt[gpt1]`; no model is
      downloaded). Same ids as the original code run with ftfy 6.3 and spaCy 3.8: all of 215
      texts, 90 of them chosen to be difficult. spaCy's rules have changed since the version of
      2018 (2.0.11); that makes other ids in about 3% of such texts.
    - `exact=False`: the same steps as rules inside `tokenizers`, which travel in the file and
      need nothing else. Equal on 212 of those 215 texts, with 0.3% of tokens different; on
      plain prose under 0.1%. It lacks full-width forms, repair of wrongly decoded text, web
      addresses and rare contractions (`I'ma`).

    Args:
        tokenizer_json: str. A tokenizer as the `tokenizers` library writes it.

    Raises:
        ValueError: if `tokenizer_json` is not that, or of none of the three styles.

    Source:
        Radford et al. 2018 (GPT-1), sections 3.3 and 4.1; Radford et al. 2019 (GPT-2), section
        2.2; Sennrich et al. 2016 (BPE).

    Example:
        tokenizer = kgpt.Tokenizer.train("books/", vocabulary_size=8192)
        tokenizer.decode(tokenizer.encode("Hello world"))
    """

    def __init__(self, tokenizer_json: str):
        import tokenizers

        try:
            self._rust = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as error:
            raise ValueError(
                "tokenizer_json must be a tokenizer in the tokenizers library's own format: "
                f"{error}. Received: {_shorten(tokenizer_json)}. To read a file, try "
                "Tokenizer.from_file(path)."
            ) from error
        decoder = type(self._rust.decoder).__name__
        style = {"ByteLevel": "gpt2", "BPEDecoder": "gpt1", "Fuse": "characters"}.get(decoder)
        ids = set(self._rust.get_vocab(with_added_tokens=True).values())
        if style is None or ids != set(range(len(ids))):
            raise ValueError(
                "The tokenizer must be of GPT-2's, GPT-1's or the characters' style, with ids "
                f"0, 1, 2 ... without gaps. Received: decoder={decoder}, {len(ids)} tokens, "
                f"largest id {max(ids, default=None)}. Try Tokenizer.train."
            )
        self.style = style
        self.exact = style == "gpt1" and self._rust.normalizer is None
        self.vocabulary_size = len(ids)
        added = self._rust.get_added_tokens_decoder().items()
        self._special = {token.content: i for i, token in sorted(added) if token.special}
        self._rust.no_truncation()
        self._rust.no_padding()
        self._rust.encode_special_tokens = True  # as ordinary text

    @classmethod
    def train(
        cls,
        files_or_texts: str | os.PathLike | Iterable[str | os.PathLike],
        vocabulary_size: int | None = None,
        style: str = "gpt2",
        errors: str = "strict",
        special_tokens: Sequence[str] = TASK_TOKENS,
        exact: bool | None = None,
    ) -> "Tokenizer":
        """Learns a vocabulary from text, read as a stream, on all cores.

        The same text gives the same tokenizer. Pairs seen only once are not merged; if the text
        has too few others for `vocabulary_size`, the vocabulary is smaller and a warning says so.

        Args:
            files_or_texts: paths and texts, as for `kgpt.text.documents`.
            vocabulary_size: int. Number of all tokens, special ones included. None for
                characters, and only for them: there is a token for each one in the text.
            style: `"gpt2"`, `"gpt1"` or `"characters"`.
            errors: `"strict"` or `"replace"`: what to do with bytes that are not UTF-8.
            special_tokens: more special tokens, after `<|endoftext|>`, which is always there.
                They have the last ids. In general start, delimiter and classify, so that a model
                that was pretrained can be fine-tuned as it is; () is none.
            exact: bool. GPT-1's words by ftfy and spaCy, or by rules; see `Tokenizer`. None is
                True where both are installed.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if there is no text, or `vocabulary_size` has no room for the alphabet.
        """
        from tokenizers import models

        exact = _check_style(style, exact)
        special_tokens = list(dict.fromkeys([END_OF_TEXT, *_check_special(special_tokens)]))
        needs = type(None) if style == "characters" else int
        if not isinstance(vocabulary_size, needs):
            raise ValueError(
                'vocabulary_size must be an int, and None with style="characters". '
                f"Received: vocabulary_size={vocabulary_size}, style={style!r}."
            )
        pieces = (piece for piece, _ in document_pieces(files_or_texts, errors, _PIECE_LENGTH))
        if style == "characters":
            characters = sorted(set().union(*map(set, pieces)))
            ids = {token: i for i, token in enumerate([_UNKNOWN, *characters])}
            model = models.BPE(ids, [], unk_token=_UNKNOWN)
        else:
            model = _train_bpe(pieces, vocabulary_size, style, exact, len(special_tokens))
        tokenizer = _assemble(model, style, exact)
        tokenizer.add_special_tokens(special_tokens)
        size = tokenizer.get_vocab_size()
        if style != "characters" and size < vocabulary_size:
            warnings.warn(
                f"The text is too small for a vocabulary of {vocabulary_size} tokens: no pair of "
                f"tokens is left that occurs twice. This tokenizer has {size}.",
                stacklevel=2,
            )
        return cls(tokenizer.to_str())

    @classmethod
    def from_vocabulary(
        cls,
        vocabulary: str | os.PathLike,
        merges: str | os.PathLike,
        style: str = "gpt2",
        special_tokens: Sequence[str] = (),
        exact: bool | None = None,
    ) -> "Tokenizer":
        """Reads a vocabulary in OpenAI's two files, its own or one in the same form.

        GPT-2's files have `<|endoftext|>` in them (id 50256). GPT-1's have no special token, and
        it was trained without an end of text: `end_of_text_id` is None unless you ask for one
        in `special_tokens`; its embedding is then untrained.

        Args:
            vocabulary: path of `encoder.json` (GPT-2) or `encoder_bpe_40000.json` (GPT-1).
            merges: path of `vocab.bpe` (GPT-2) or `vocab_40000.bpe` (GPT-1).
            style: `"gpt2"` or `"gpt1"`.
            special_tokens: special tokens; those not in the vocabulary come after it.
            exact: bool. GPT-1's words by ftfy and spaCy, or by rules; see `Tokenizer`. None is
                True where both are installed, else False with a warning.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if the files are not what they should be or don't belong together.
        """
        from tokenizers import models

        without_choice = exact is None
        exact = _check_style(style, exact, styles=_STYLES[:2])
        if style == "gpt1" and not exact and without_choice:
            warnings.warn(
                "ftfy and spaCy are not installed: some ids will differ from those that GPT-1 was "
                'trained with. Try `pip install "kgpt[gpt1]"`, or exact=False for no warning.',
                stacklevel=2,
            )
        special_tokens = _check_special(special_tokens)
        ids, pairs = _read_vocabulary(vocabulary, merges, style, special_tokens)
        options = {"unk_token": _UNKNOWN, "end_of_word_suffix": "</w>"} if style == "gpt1" else {}
        tokenizer = _assemble(models.BPE(ids, pairs, **options), style, exact)
        known = [END_OF_TEXT] if END_OF_TEXT in ids else []
        tokenizer.add_special_tokens([*known, *special_tokens])
        return cls(tokenizer.to_str())

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a tokenizer that `save` or the `tokenizers` library has written.

        Args:
            path: path of a `tokenizer.json`.

        Returns:
            `Tokenizer`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or holds another kind of tokenizer.
        """
        try:
            return cls(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"There is no tokenizer in the file {path}. {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file, which `tokenizers.Tokenizer.from_file` reads too.

        A file is whole or not there at all: it is written under another name and then renamed.
        With `exact=True` it holds GPT-1's BPE but not the way to the words, which is Python; the
        `tokenizers` library alone then splits at spaces and wants text in lower case.

        Args:
            path: path of the file; an existing one is replaced.
        """
        path = Path(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            unfinished.write_text(self._rust.to_str(), encoding="utf-8", newline="\n")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    def with_special_tokens(self, tokens: Sequence[str] = TASK_TOKENS) -> "Tokenizer":
        """Makes a tokenizer that has these special tokens too, for fine-tuning.

        Tokens that are missing get the next free ids, in the order given; all others keep theirs.
        After GPT-1's own vocabulary, start, delimiter and classify are 40478, 40479 and 40480, as
        in the original.

        Args:
            tokens: special tokens; by default GPT-1's start, delimiter and classify.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if one of them is an ordinary token already.
        """
        from tokenizers import Tokenizer as RustTokenizer

        missing = [token for token in _check_special(tokens) if token not in self._special]
        for token in missing:
            if self.token_to_id(token) is not None:
                raise ValueError(
                    "A special token must not be an ordinary token of the vocabulary. "
                    f"Received: {token!r}, which has id {self.token_to_id(token)}."
                )
        copy = RustTokenizer.from_str(self._rust.to_str())
        copy.add_special_tokens(missing)
        return type(self)(copy.to_str())

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Turns a text into token ids.

        Args:
            text: str.
            allow_special: bool. Whether special tokens written out in the text become their ids.
                Only for text that you wrote yourself.

        Returns:
            list of int; nothing is added at either end.

        Raises:
            ValueError: if `text` is not a str or not valid Unicode.
            ImportError: if the tokenizer has `exact=True` and ftfy or spaCy is missing.
        """
        return self.encode_batch([text], allow_special)[0]

    def encode_batch(self, texts: Iterable[str], allow_special: bool = False) -> list[list[int]]:
        """Turns texts into token ids, on all cores.

        Args:
            texts: iterable of str.
            allow_special: bool. As for `encode`.

        Returns:
            list of lists of int, one for each text.

        Raises:
            ValueError: as `encode`.
            ImportError: as `encode`.
        """
        texts = _check_texts(texts)
        if allow_special and self._special:
            return self._encode_with_special(texts)
        prepared = list(_gpt1_words(texts)) if self.exact else texts
        try:
            encodings = self._rust.encode_batch_fast(prepared, add_special_tokens=False)
        except TypeError:
            _check_unicode(texts)
            raise
        return [encoding.ids for encoding in encodings]

    def _encode_with_special(self, texts: list[str]) -> list[list[int]]:
        longest_first = sorted(self._special, key=len, reverse=True)
        special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        split = [special.split(text) for text in texts]  # plain, special, plain, ... plain
        plain = iter(self.encode_batch([part for parts in split for part in parts[::2]]))
        return [
            [
                token_id
                for place, part in enumerate(parts)
                for token_id in ([self._special[part]] if place % 2 else next(plain))
            ]
            for parts in split
        ]

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        """Turns token ids into text.

        Bytes that are not UTF-8, as at a cut inside a character, become U+FFFD.

        Args:
            ids: list, numpy array or tensor of int, of one axis.
            skip_special_tokens: bool. Whether special tokens are left out of the text.

        Returns:
            str.

        Raises:
            ValueError: if an id is not an int in `[0, vocabulary_size)`.
        """
        return self._rust.decode(self._check_ids(ids), skip_special_tokens=skip_special_tokens)

    def decode_batch(self, batch, skip_special_tokens: bool = False) -> list[str]:
        """Turns rows of token ids into texts.

        Args:
            batch: list of what `decode` takes, or an array or tensor of two axes.
            skip_special_tokens: bool. As for `decode`.

        Returns:
            list of str, one for each row.

        Raises:
            ValueError: as `decode`.
        """
        rows = [self._check_ids(ids) for ids in batch]
        return self._rust.decode_batch(rows, skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, written as in the vocabulary; None if there is no such token."""
        return self._rust.token_to_id(token)

    def id_to_token(self, token_id: int) -> str:
        """The token of an id, written as in the vocabulary (in GPT-2's, a space is `\u0120`)."""
        return self._rust.id_to_token(self._check_ids([token_id])[0])

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order of their ids."""
        return list(self._special)

    @property
    def end_of_text_id(self) -> int | None:
        """The id of `<|endoftext|>`, or None."""
        return self._special.get(END_OF_TEXT)

    @property
    def start_id(self) -> int | None:
        """The id of `<|start|>`, or None."""
        return self._special.get(TASK_TOKENS[0])

    @property
    def delimiter_id(self) -> int | None:
        """The id of `<|delimiter|>`, or None."""
        return self._special.get(TASK_TOKENS[1])

    @property
    def classify_id(self) -> int | None:
        """The id of `<|classify|>`, or None."""
        return self._special.get(TASK_TOKENS[2])

    def to_keras_hub(self):
        """Makes the same tokenizer as a keras-hub layer, for use inside `tf.data`.

        Returns:
            `keras_hub.tokenizers.BytePairTokenizer`.

        Raises:
            ValueError: for other styles than `"gpt2"`, and other split patterns than GPT-2's.
        """
        parts = json.loads(self._rust.to_str())
        splits = parts["pre_tokenizer"] or {}
        own = splits.get("use_regex") and not splits.get("add_prefix_space")
        if self.style != "gpt2" or not own or parts["normalizer"]:
            raise ValueError(
                "keras-hub can do byte-level BPE with GPT-2's split pattern only. Received: "
                f"style={self.style!r}, pre_tokenizer={splits.get('type')}. Encode before "
                "tf.data: see kgpt.data.write_tokens."
            )
        ids = self._rust.get_vocab(with_added_tokens=True)
        return _keras_hub_class()(
            vocabulary=dict(sorted(ids.items(), key=lambda item: item[1])),
            merges=[" ".join(pair) for pair in parts["model"]["merges"]],
            unsplittable_tokens=[],
        )

    def get_config(self) -> dict:
        """The tokenizer as a dict, for Keras's serialisation."""
        return {"tokenizer_json": self._rust.to_str()}

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        """Makes the tokenizer from what `get_config` gave."""
        return cls(**config)

    def __reduce__(self):
        return type(self), (self._rust.to_str(),)

    def __len__(self) -> int:
        return self.vocabulary_size

    def __repr__(self) -> str:
        exact = f", exact={self.exact}" if self.style == "gpt1" else ""
        return (
            f"<Tokenizer style={self.style!r}{exact}, vocabulary_size={self.vocabulary_size}, "
            f"special_tokens={self.special_tokens}>"
        )

    def _check_ids(self, ids) -> list[int]:
        is_list = isinstance(ids, (list, tuple, np.ndarray))
        ids = np.asarray(ids) if is_list else keras.ops.convert_to_numpy(ids)
        if ids.size == 0 and ids.ndim == 1:
            return []
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                "ids must be integers along one axis. "
                f"Received: shape={ids.shape}, dtype={ids.dtype}, {_shorten(ids.tolist())}."
            )
        outside = np.flatnonzero((ids < 0) | (ids >= self.vocabulary_size))
        if outside.size:
            raise ValueError(
                f"Each id must lie in [0, {self.vocabulary_size}), the vocabulary. "
                f"Received: {ids[outside[0]]} at position {outside[0]}."
            )
        return ids.tolist()


@functools.cache
def _keras_hub_class():
    import tensorflow as tf
    from keras_hub.tokenizers import BytePairTokenizer

    class GPT2BytePairTokenizer(BytePairTokenizer):
        """keras-hub's tokenizer, with GPT-2's two tokens for an empty line before text.

        keras-hub's own keeps a run of line breaks in one piece, as Llama 3 does; GPT-2's pattern
        leaves the last one to the text that follows. Hence each is cut there first.
        """

        def tokenize(self, inputs):
            texts = tf.convert_to_tensor(inputs)
            ids = self._tokenize_flat(tf.reshape(texts, [-1]))
            return ids[0] if texts.shape.rank == 0 else ids

        # A graph, even outside tf.data, where keras-hub would split by Llama 3's pattern.
        @tf.function(input_signature=[tf.TensorSpec([None], "string")])
        def _tokenize_flat(self, texts):
            cut = tf.strings.regex_replace(texts, r"(\s)\n(\S)", "\\1\uffff\n\\2")
            pieces = tf.strings.split(cut, "\uffff")  # (batch, pieces)
            ids = super().tokenize(pieces.flat_values)  # (all pieces, length)
            return tf.RaggedTensor.from_row_splits(ids, pieces.row_splits).merge_dims(1, 2)

    return GPT2BytePairTokenizer


def _assemble(model, style: str, exact: bool):
    """The `tokenizers` pipeline of a style around a BPE model."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    if style == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif style == "gpt1":
        if not exact:
            tokenizer.normalizer = _gpt1_rules()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
        tokenizer.decoder = decoders.BPEDecoder("</w>")
    else:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _train_bpe(pieces: Iterator[str], vocabulary_size: int, style: str, exact: bool, special: int):
    from tokenizers import models, pre_tokenizers, trainers

    def options(alphabet: Sequence[str]):
        room = vocabulary_size - special
        if room < len(alphabet):
            raise ValueError(
                f"vocabulary_size must be at least {len(alphabet) + special}: {len(alphabet)} for "
                f"the alphabet and {special} for special tokens. "
                f"Received: vocabulary_size={vocabulary_size}."
            )
        return {"vocab_size": room, "min_frequency": 2, "show_progress": False}

    if style == "gpt2":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer = _assemble(models.BPE(), style, exact)
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **options(alphabet))
        tokenizer.train_from_iterator(pieces, trainer)
        return tokenizer.model

    # The trainer numbers characters with a suffix in an order that changes from run to run. So
    # it counts the words first, and then gets the whole alphabet, in GPT-1's order.
    counter = trainers.BpeTrainer(vocab_size=0, show_progress=False)
    counting = _assemble(models.BPE(), style, exact)
    counting.train_from_iterator(_gpt1_words(pieces) if exact else pieces, counter)
    words = sorted(json.loads(counter.__getstate__())["BpeTrainer"]["words"].items())
    characters = sorted(set().union(*(word for word, _ in words)))
    alphabet = [_UNKNOWN, *characters, *(character + "</w>" for character in characters)]
    model = models.BPE(unk_token=_UNKNOWN, end_of_word_suffix="</w>")
    tokenizer = _assemble(model, style, exact=True)
    trainer = trainers.BpeTrainer(
        special_tokens=alphabet, end_of_word_suffix="</w>", **options(alphabet)
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    return tokenizer.model


def _repeated(words: list[tuple[str, int]], at_once: int = 1000) -> Iterator[str]:
    for word, count in words:
        for start in range(0, count, at_once):
            yield " ".join([word] * min(at_once, count - start))


def _read_vocabulary(vocabulary, merges, style: str, special_tokens: Sequence[str]):
    """OpenAI's files as token ids and pairs, which have been seen to belong together."""
    try:
        ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        lines = Path(merges).read_text(encoding="utf-8").split("\n")
        pairs = [tuple(line.split(" ")) for line in lines if line and line[:9] != "#version:"]
        made = {first + second for first, second in pairs}
        numbers = sorted(ids.values())
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            "The vocabulary must be a JSON object of tokens and ids, and each line of the merges a "
            f"pair with a space between. Received: {vocabulary} and {merges}, where: {error}."
        ) from error
    from tokenizers import pre_tokenizers

    symbols = {token for token in ids if len(token.removesuffix("</w>")) == 1}
    alphabet = set(pre_tokenizers.ByteLevel.alphabet()) if style == "gpt2" else {_UNKNOWN}
    parts = {part for pair in pairs for part in pair}
    lacking = sorted((alphabet | parts | made) - set(ids))
    unmade = sorted(set(ids) - made - symbols - {END_OF_TEXT, _UNKNOWN, *special_tokens})
    if lacking or unmade or numbers != list(range(len(ids))):
        raise ValueError(
            f"The vocabulary and the merges don't belong together, or not to style={style!r}. "
            f"Received: {vocabulary} with {len(ids)} tokens and {merges} with {len(pairs)} merges; "
            f"{len(lacking)} symbols are not in the vocabulary {lacking[:3]}, {len(unmade)} tokens "
            f"are made by no merge {unmade[:3]}. Try the other style, or both files of one model."
        )
    return ids, pairs


def _gpt1_words(texts: Iterable[str]) -> Iterator[str]:
    """GPT-1's words by ftfy and spaCy, in lower case, with a space between."""
    ftfy, english, lock = _ftfy_and_spacy()
    for text in texts:
        text = ftfy.fix_text(text)
        text = re.sub("[\u2013-\u2015]", "-", text).replace("\u2026", "...").replace("\u00b4", "'")
        text = re.sub(
            r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)', r" \1 ", text
        )
        text = re.sub(r"\s*\n\s*", " \n ", text)
        text = re.sub(r"[^\S\n]+", " ", text).strip()
        with lock, english.memory_zone():  # spaCy would keep each new word for ever
            words = [word.text.strip(" ").lower() for word in english.tokenizer(text)]
        yield " ".join(words)


@functools.cache
def _ftfy_and_spacy():
    try:
        import ftfy
        import spacy
    except ImportError as error:
        raise ImportError(
            "This tokenizer takes GPT-1's words from ftfy and spaCy (exact=True), and "
            f'{error.name} is missing. Try `pip install "kgpt[gpt1]"`, or make the tokenizer with '
            "exact=False, which needs neither but gives slightly different ids."
        ) from error
    return ftfy, spacy.blank("en"), threading.Lock()


def _gpt1_rules():
    """GPT-1's words as rules for `tokenizers`: a space goes wherever a word ends, case last.

    They follow ftfy's `fix_text`, the original's clean-up and spaCy's English rules, in the order
    in which spaCy takes a chunk apart: opening signs, closing signs, inside, contractions.
    """
    from tokenizers import Regex, normalizers

    end = r"(?!\S)"
    clean_up = [
        (r"\x1b\[[\d;]*[A-Za-z]", ""),
        (r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffb]", ""),
        (r"[\r\x85\u2028\u2029]", "\n"),
        (r"[\u02bc\u2018-\u201b\u00b4]", "'"),
        (r"[\u201c-\u201f]", '"'),
        (r"[\u2013-\u2015]", "-"),
        (r"\u2026", "..."),
        (r"\ufb01", "fi"),
        (r"\ufb02", "fl"),
        (r"\A\s+|\s+\z", ""),
        (r"\s*\n\s*", " \n "),
        (r"[^\S\n]+", " "),
    ]
    alone = r"""[!";?+,)(*\[\]}{_\p{So}]"""
    in_runs = [rf"(?<={sign})(?!{sign})|(?<!{sign})(?={sign})" for sign in ("-", "~", "/", r"\|")]
    signs = rf"(?<={alone})|(?={alone})|{'|'.join(in_runs)}|(?<=\.\.)(?!\.)|(?<!\.)(?=\.\.)"
    opening = (
        r"(?<=\s')(?!'?(?:em|s|ll|re|d|cause|cos|coz|cuz|bout|nuff)?\.?(?!\S))"
        r"|(?<=\s[:<=])(?![DPOXpox013](?!\S))"
        r"|(?<=\s[\u00a7%>#&`$\u00a3\u20ac\u00a5\u00ab\u00bb\u201e\u201a\u00bf\u00a1\u00b7]|\sUS\$)"
    )
    clipped = "|".join(rf"\s{word}" for word in _either_case(_CLIPPED))
    closing = (
        r"(?:(?<=\S)(?=[:<>#&`\u00ab\u00bb\u201e\u201a\u00bf\u00a1\u00b7]+(?!\S))"
        rf"|(?<=[^\s'])(?='{{1,2}}(?!\S)))(?<!\s[:<=]|{clipped})"
    )
    possessive_or_unit = (
        rf"(?<=\S)(?='[sS]{end})|(?<=\s=|==)(?==+{end})|(?<=[0-9])(?=(?:{_UNITS}){end})"
        rf"|(?<=\s[1-9]|\s1[0-2])(?=[ap](?:m|\.m\.){end})"
    )
    abbreviation = "|".join(rf"\s{re.escape(word)}" for word in _ABBREVIATIONS.split())
    full_stop = (
        r"(?:(?<=[0-9\p{Ll}\p{Lo}%\u00b2'\"`])|(?<=\p{Lu}\p{Lu}))(?=\.(?!\S))"
        rf"(?<!\s[a-z\u00e4\u00f6\u00fc]|{abbreviation})"
    )
    inside = (
        r"(?<!\sPh|\sPh\.)(?:(?<=[\p{Ll}\p{Lo}'])(?=\.[\p{Lu}\p{Lo}'])"
        r"|(?<=[\p{Ll}\p{Lo}']\.)(?=[\p{Lu}\p{Lo}']))"
        r"|(?<=[\p{L}0-9])(?=[:<>=]\p{L})|(?<=[\p{L}0-9][:<>=])(?=\p{L})"
        r"|(?<=[0-9])(?=\^[0-9-])|(?<=[0-9]\^)(?=[0-9-])"
    )
    contractions = "|".join(
        rf"\s(?:{'|'.join(_either_case(words))})\K(?={rest}{end})" for words, rest in _CONTRACTIONS
    )
    rules = [signs, opening, opening, closing, possessive_or_unit, full_stop, closing, inside]
    rules += [rf"(?<=\S)(?='[sS]{end})", contractions, rf"\s(?:n'?t|'d|'ll)\K(?='?ve{end})"]
    return normalizers.Sequence(
        [normalizers.Replace(Regex(pattern), text) for pattern, text in clean_up]
        + [normalizers.NFC(), normalizers.Prepend(" ")]
        + [normalizers.Replace(Regex(pattern), " ") for pattern in rules]
        + [normalizers.Lowercase()]
    )


# spaCy's English exceptions.
_CLIPPED = "doin goin havin lovin nothin nuthin somethin ol"
_UNITS = (
    "km|m|dm|cm|mm|ha|nm|yd|in|ft|kg|g|mg|t|lb|oz|kmh|mph|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K"
    r"|%|[$\u00a3\u20ac\u00a5]"
)
_ABBREVIATIONS = (
    "Adm Ak Ala Apr Ariz Ark Aug Bros Calif Co Colo Conn Corp Dec Del Dr Feb Fla Ga Gen Gov Ia Id "
    "Ill Inc Ind Jan Jr Jul Jun Kan Kans Ky La Ltd Mar Mass Md Messrs Mich Minn Miss Mo Mont Mr "
    "Mrs Ms Mt Neb Nebr Nev Nov Oct Okla Ore Pa Prof Rep Rev Sen Sep Sept St Tenn Va Wash Wis co "
    "vs E.g I.e e.g i.e a.m p.m v.s"
)
_NOUNS = "he how i it she that there these they this those we what when where who why you"
_CONTRACTIONS = [  # first words, and what may follow them
    (
        "ai are ca could dare did do does had has have is may might must need ought sha should "
        "was were wo would",
        "n'?t(?:'?ve)?",
    ),
    (_NOUNS, "'(?:d|ll)(?:'ve)?"),
    (f"{_NOUNS} could might must not should would", "'?ve"),
    (_NOUNS, "'re"),
    ("he how i it that there these they this those we what when where who why you", "d"),
    ("how it that there these they this those what when where who why you", "ll"),
    ("how there these they those what when where why you", "re"),
    ("he how she that there this what when where who why", "s"),
    ("i", "'?m"),
    ("can", "not"),
    ("gon", "na"),
    ("got", "ta"),
    ("y'", "all"),
    ("c'm", "on"),
]


def _either_case(words: str) -> list[str]:
    return [f"[{word[0].upper()}{word[0]}]{word[1:]}" for word in words.split()]


def _check_style(style: str, exact: bool | None, styles: Sequence[str] = _STYLES) -> bool:
    """Whether GPT-1's words come from ftfy and spaCy."""
    if style not in styles:
        raise ValueError(f"style must be one of {', '.join(styles)}. Received: style={style!r}.")
    if style != "gpt1":
        if exact is not None:
            raise ValueError(
                f'exact is for style="gpt1". Received: exact={exact!r}, style={style!r}.'
            )
        return False
    if exact:
        _ftfy_and_spacy()
    if exact is None:
        exact = all(importlib.util.find_spec(name) for name in ("ftfy", "spacy"))
    return bool(exact)


def _check_special(tokens: Sequence[str]) -> list[str]:
    tokens = [tokens] if isinstance(tokens, str) else list(tokens)
    for token in tokens:
        if not isinstance(token, str) or not token or not token.isascii():
            raise ValueError(
                "A special token must be a str of ASCII characters, not empty. "
                f'Received: {token!r}. Try "<|name|>".'
            )
    return tokens


def _check_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise ValueError(
            "texts must be a list of str. "
            f"Received: {_shorten(texts)} of type {type(texts).__name__}. For one text, try encode."
        )
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            hint = ' Try text.decode("utf-8").' if isinstance(text, bytes) else ""
            raise ValueError(
                "A text to encode must be a str. "
                f"Received: {_shorten(text)} of type {type(text).__name__}.{hint}"
            )
    return texts


def _check_unicode(texts: list[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "A text to encode must be valid Unicode. "
                f"Received: {_shorten(text)}, with half of a surrogate pair, "
                f"{text[error.start]!r}, at character {error.start}. Try "
                'text.encode(errors="replace").decode() to have a question mark in its place.'
            ) from error


def _shorten(value, limit: int = 80) -> str:
    text = repr(value[:limit] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= limit else text[:limit] + "..."
