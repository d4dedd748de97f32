"""The three styles of tokenizer: their special tokens and their pipelines in `tokenizers`."""

from collections.abc import Sequence

from kgpt.tokenizer.gpt1_words import gpt1_rules, has_ftfy_and_spacy, import_ftfy_and_spacy

END_OF_TEXT = "<|endoftext|>"
TASK_TOKENS = ("<|start|>", "<|delimiter|>", "<|classify|>")  # GPT-1, section 3.3
UNKNOWN = "<unk>"
END_OF_WORD = "</w>"
STYLES = ("gpt2", "gpt1", "characters")
_DECODERS = {"ByteLevel": "gpt2", "BPEDecoder": "gpt1", "Fuse": "characters"}


def pipeline(model, style: str, exact: bool):
    """Returns the `tokenizers.Tokenizer` of a style around a BPE model."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    if style == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif style == "gpt1":
        if not exact:
            tokenizer.normalizer = gpt1_rules()
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
        tokenizer.decoder = decoders.BPEDecoder(END_OF_WORD)
    else:
        tokenizer.decoder = decoders.Fuse()
    return tokenizer


def style_of(tokenizer) -> str | None:
    """Returns the style of a `tokenizers.Tokenizer`, or None if it has none of the three."""
    return _DECODERS.get(type(tokenizer.decoder).__name__)


def check_style(style: str, exact: bool | None, styles: Sequence[str] = STYLES) -> bool:
    """Returns whether ftfy and spaCy split the text into words.

    Raises:
        ValueError: for an unknown style, and for `exact` with a style other than GPT-1's.
        ImportError: for `exact=True` if ftfy or spaCy is not installed.
    """
    if style not in styles:
        raise ValueError(f"style must be one of {', '.join(styles)}. Received: style={style!r}.")
    if style != "gpt1":
        if exact is not None:
            raise ValueError(
                f'exact is for style="gpt1". Received: exact={exact!r}, style={style!r}.'
            )
        return False
    if exact:
        import_ftfy_and_spacy()
    return has_ftfy_and_spacy() if exact is None else bool(exact)


def check_special_tokens(tokens: Sequence[str]) -> list[str]:
    """Returns the special tokens as a list.

    Raises:
        ValueError: for tokens that are empty or not ASCII strings.
    """
    tokens = [tokens] if isinstance(tokens, str) else tokens
    if not isinstance(tokens, list | tuple):  # ids go by the order, which a set has not
        raise ValueError(f"Special tokens must be a list of str. Received: {tokens!r}.")
    for token in tokens:
        if not isinstance(token, str) or not token or not token.isascii():
            raise ValueError(
                "A special token must be a non-empty str of ASCII characters. "
                f'Received: {token!r}. Try "<|name|>".'
            )
    return list(tokens)


def check_new(tokens: Sequence[str], tokenizer):
    """Raises ValueError if one of the special tokens is not new, but a token of text."""
    for token in tokens:
        if tokenizer.token_to_id(token) is not None:
            raise ValueError(
                "A special token must not be an ordinary token of the vocabulary. "
                f"Received: {token!r}, which has id {tokenizer.token_to_id(token)}. "
                'Try "<|name|>".'
            )
