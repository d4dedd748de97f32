"""The class: text <-> token ids."""

import os
from collections.abc import Iterable, Sequence

import keras

from kgpt.arguments import checked
from kgpt.files import written_whole
from kgpt.reading import read_text
from kgpt.tokenizer import encoding, styles
from kgpt.tokenizer.reading import read_tokenizer
from kgpt.tokenizer.styles import END_OF_TEXT, TASK_TOKENS, style_of
from kgpt.tokenizer.training import tokenizer_from_vocabulary, train_tokenizer


@keras.saving.register_keras_serializable(package="kgpt")
class Tokenizer:
    """Turns text into token ids and back, in Rust, by the `tokenizers` library.

    `Tokenizer.train`, `Tokenizer.from_vocabulary` and `Tokenizer.from_file` create one. There are
    three styles:

    - `"gpt2"`: byte-level BPE without normalization or a prefix space (GPT-2, section 2.2). It is
      lossless, `decode(encode(text)) == text`, and has no unknown token.
    - `"gpt1"`: BPE over the characters of lower-cased words (GPT-1, section 4.1). Characters
      outside the vocabulary become `<unk>`; decoded text has a space between all words.
    - `"characters"`: each character is a token; those outside the vocabulary are `<unk>`, id 0.

    Special tokens written out in a text are ordinary text: `encode("<|endoftext|>")` gives the
    tokens of that string, so untrusted text can't end a document or begin a task. Insert their
    ids yourself (`end_of_text_id`, `start_id`, `delimiter_id`, `classify_id`; None without such a
    token), or call `encode(text, allow_special=True)`. `tokenizer(text)` is `encode(text)`.

    How text is split into GPT-1's words is part of the tokenizer and is saved with it:

    - `exact=True`: by ftfy and spaCy, as in the original code (`pip install ftfy spacy`; no model
      is downloaded). The ids equal those of the original code run with ftfy 6.3 and spaCy 3.8 on
      all of 215 texts, 90 of them chosen to be difficult. spaCy's rules have changed since the
      original's version (2.0.11 of 2018), which gives other ids on about 3% of such texts.
    - `exact=False`: by rules inside `tokenizers`, which are saved in the file and need no other
      package. The ids are equal on 212 of those 215 texts; 0.3% of all tokens differ, under 0.1%
      on plain prose. Not covered are full-width forms, repair of wrongly decoded text, web
      addresses and rare contractions (`I'ma`).

    Args:
        tokenizer_json: str. A tokenizer in the `tokenizers` library's JSON format.

    Raises:
        ValueError: if `tokenizer_json` is not in that format, or is of none of the three styles.

    Source:
        GPT-1, sections 3.3 and 4.1; GPT-2, section 2.2; Sennrich et al. 2016 (BPE).

    Example:
        tokenizer = kgpt.Tokenizer.train(Path("books/"), vocabulary_size=8192)
        tokenizer.decode(tokenizer.encode("Hello world"))
    """

    def __init__(self, tokenizer_json: str):
        self._rust = read_tokenizer(tokenizer_json)
        style = style_of(self._rust)
        ids = set(self._rust.get_vocab(with_added_tokens=True).values())
        if style is None or ids != set(range(len(ids))):
            raise ValueError(
                "The tokenizer must be of GPT-2's, GPT-1's or the characters' style, with ids "
                f"0, 1, 2 ... without gaps. Received: decoder={self._rust.decoder}, {len(ids)} "
                f"tokens, largest id {max(ids, default=None)}. Try Tokenizer.train."
            )
        self.style = style
        self.exact = style == "gpt1" and self._rust.normalizer is None
        self.vocabulary_size = len(ids)
        added = self._rust.get_added_tokens_decoder().items()
        self._special = {token.content: i for i, token in sorted(added) if token.special}
        self._rust.encode_special_tokens = True  # as ordinary text

    @classmethod
    @checked
    def train(
        cls,
        files_or_texts: os.PathLike | Iterable[str | os.PathLike],
        vocabulary_size: int | None = None,
        style: str = "gpt2",
        errors: str = "strict",
        special_tokens: Sequence[str] = TASK_TOKENS,
        exact: bool | None = None,
        encoding: str = "utf-8",
    ) -> "Tokenizer":
        """Learns a vocabulary from text, read as a stream, on all cores.

        Training is deterministic. Pairs that occur once are not merged; if the text has too few
        others for `vocabulary_size`, the vocabulary is smaller and a warning says so.

        Args:
            files_or_texts: a `pathlib.Path` (file or folder), or an iterable of paths and texts.
                A `str` is a text. What is read is described at `kgpt.text.documents`.
            vocabulary_size: int. Number of tokens, special ones included. Must be None with
                `style="characters"`, whose tokens are all characters of the text.
            style: `"gpt2"`, `"gpt1"` or `"characters"`.
            errors: `"strict"` or `"replace"`. Whether bytes that are not of the encoding raise, or
                are read as the replacement character U+FFFD.
            special_tokens: special tokens after `<|endoftext|>`, which always exists; all have
                the last ids. By default GPT-1's start, delimiter and classify, so that a
                pretrained model can be fine-tuned with the same vocabulary; () for none.
            exact: bool. With `style="gpt1"`, whether words are split by ftfy and spaCy rather
                than by rules. None means True if both are installed.
            encoding: str. The encoding of files without a byte order mark.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if there is no text or something else in its place (a single `str`, a
                table), `vocabulary_size` is smaller than the alphabet, or a special token is a
                token of the text.
            ImportError: if `exact=True` and ftfy or spaCy is not installed.
            FileNotFoundError: if a path does not exist.

        Example:
            kgpt.Tokenizer.train(["a fine film", "a dull one"], style="characters")
        """
        rust = train_tokenizer(
            files_or_texts, vocabulary_size, style, errors, special_tokens, exact, encoding
        )
        return cls(rust.to_str())

    @classmethod
    @checked
    def from_vocabulary(
        cls,
        vocabulary: str | os.PathLike,
        merges: str | os.PathLike,
        style: str = "gpt2",
        special_tokens: Sequence[str] = (),
        exact: bool | None = None,
    ) -> "Tokenizer":
        """Reads a vocabulary from two files in OpenAI's format.

        GPT-2's files contain `<|endoftext|>` (id 50256). GPT-1's contain no special token, and
        GPT-1 was trained without an end of text: `end_of_text_id` is None unless `special_tokens`
        has one, whose embedding is then untrained.

        Args:
            vocabulary: path of `encoder.json` (GPT-2) or `encoder_bpe_40000.json` (GPT-1).
            merges: path of `vocab.bpe` (GPT-2) or `vocab_40000.bpe` (GPT-1).
            style: `"gpt2"` or `"gpt1"`.
            special_tokens: special tokens; those not in the vocabulary get the next free ids. A
                token of text can't be one.
            exact: bool. With `style="gpt1"`, whether words are split by ftfy and spaCy rather
                than by rules. None means True if both are installed, else False with a warning.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if a file is malformed, the files don't belong to one model, or a special
                token is a token of text.
            ImportError: if `exact=True` and ftfy or spaCy is not installed.

        Example:
            folder = Path("finetune-transformer-lm/model")
            vocabulary = folder / "encoder_bpe_40000.json"
            kgpt.Tokenizer.from_vocabulary(vocabulary, folder / "vocab_40000.bpe", style="gpt1")
        """
        rust = tokenizer_from_vocabulary(vocabulary, merges, style, special_tokens, exact)
        return cls(rust.to_str())

    @classmethod
    @checked
    def from_file(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a tokenizer written by `save`, by the `tokenizers` library or by transformers.

        transformers' GPT-1 splits text as for BERT, which gives other ids than GPT-1 was trained
        with: of its file the vocabulary alone is read, and text is split into GPT-1's words, by
        ftfy and spaCy if they are installed, as by `from_vocabulary`.

        Args:
            path: path of a `tokenizer.json`.

        Returns:
            `Tokenizer`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or contains another kind of tokenizer, and for what
                would change ids in silence, such as dropout.

        Example:
            tokenizer.save("tokenizer.json")
            kgpt.Tokenizer.from_file("tokenizer.json")
        """
        try:
            return cls(read_text(path))
        except ValueError as error:
            raise ValueError(f"There is no tokenizer in the file {path}. {error}") from None

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file, which `tokenizers.Tokenizer.from_file` can read too.

        It is written whole or not at all, through a power cut too. With `exact=True` the file has
        GPT-1's BPE but not the splitting into words, which is done in Python; the `tokenizers`
        library alone then splits at spaces and expects text in lower case.

        Args:
            path: path of the file, in a folder that exists; an existing file is replaced.

        Raises:
            OSError: if it can't be written; an existing file stays.

        Example:
            tokenizer.save("tokenizer.json")
        """
        with written_whole(path) as unfinished:
            unfinished.write_text(self._rust.to_str(), encoding="utf-8", newline="\n")

    def with_special_tokens(self, tokens: Sequence[str] = TASK_TOKENS) -> "Tokenizer":
        """Returns a tokenizer that also has these special tokens, for fine-tuning.

        Missing tokens get the next free ids, in the order given; all other ids are unchanged.
        After GPT-1's own vocabulary, start, delimiter and classify are 40478, 40479 and 40480, as
        in the original.

        Args:
            tokens: special tokens; by default GPT-1's start, delimiter and classify.

        Returns:
            `Tokenizer`.

        Raises:
            ValueError: if one of them is already an ordinary token.

        Example:
            tokenizer.with_special_tokens(["<|user|>", "<|assistant|>"])
        """
        from tokenizers import Tokenizer as RustTokenizer

        missing = [
            token for token in styles.check_special_tokens(tokens) if token not in self._special
        ]
        styles.check_new(missing, self._rust)
        copy = RustTokenizer.from_str(self._rust.to_str())
        copy.add_special_tokens(missing)
        return type(self)(copy.to_str())

    encode = __call__ = encoding.encode
    encode_batch = encoding.encode_batch
    decode, decode_batch = encoding.decode, encoding.decode_batch
    token_to_id, id_to_token = encoding.token_to_id, encoding.id_to_token

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
        """Returns the same tokenizer as a keras-hub layer, for use inside `tf.data`.

        Returns:
            `keras_hub.tokenizers.BytePairTokenizer`.

        Raises:
            ValueError: for styles other than `"gpt2"`, and split patterns other than GPT-2's.
            ImportError: if keras-hub is not installed.

        Example:
            tokenizer.to_keras_hub()(["Hello world"])
        """
        from kgpt.convert.keras_hub import tokenizer_to_keras_hub

        return tokenizer_to_keras_hub(self)

    def get_config(self) -> dict:
        """Returns the tokenizer as a dict, for Keras's serialization."""
        return {"tokenizer_json": self._rust.to_str()}

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        """Returns the tokenizer of a dict from `get_config`."""
        if set(config) != {"tokenizer_json"}:
            raise ValueError(
                "A tokenizer's config has tokenizer_json and nothing else. Received: "
                f"{sorted(config)}. Was it written by a later version of kgpt?"
            )
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
