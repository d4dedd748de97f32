"""Tokenizers in the `tokenizers` library's JSON: what would change ids in silence is refused."""

import json
import math

from kgpt.console import warn
from kgpt.reading import one_line
from kgpt.text import shorten
from kgpt.tokenizer.gpt1_words import gpt1_rules
from kgpt.tokenizer.styles import END_OF_WORD, UNKNOWN
from kgpt.tokenizer.training import tokenizer_from_parts

_PARTS = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
    *("post_processor", "decoder", "model"),
}
_OF_MODEL = {
    *("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
    *("fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"),
}
_MOST_GROWTH = 100  # of a text by a normalizer
# How many characters become of one, at most (unicode.org/faq/normalization.html).
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "ByteLevel": 4}


def read_tokenizer(tokenizer_json: str):
    """Returns a `tokenizers.Tokenizer` in which `<unk>` is an ordinary token.

    transformers makes it special. But it stands for text, so that decoded text must show it. Its
    GPT-1 splits text as for BERT, which gives other ids than GPT-1's: such a vocabulary gets
    GPT-1's own way to the words. What `encode` leaves out, truncation, padding and tokens that a
    post-processor adds, is warned of.

    Raises:
        ValueError: for another format, and for what would change ids in silence.
    """
    parts = _read_parts(tokenizer_json)
    model = parts["model"]
    _refuse_unknown("The tokenizer", parts, _PARTS)
    if model.get("type", "BPE") == "BPE":
        _refuse_unknown("The tokenizer's model", model, _OF_MODEL)
    if model.get("dropout"):
        raise ValueError(
            "A tokenizer must give the same ids each time. Received: a model with "
            f"dropout={model['dropout']!r}. Set it to null in the file."
        )
    try:
        return _made(parts)
    except (AttributeError, KeyError, TypeError) as error:  # values of another kind
        problem = f"{type(error).__name__}, {one_line(error)}"
    except BaseException as error:
        if isinstance(error, ValueError) or not _is_of_library(error):
            raise
        problem = one_line(error)
    raise ValueError(_WRONG_FORMAT.format(problem, shorten(tokenizer_json)))


def _made(parts):
    from tokenizers import Tokenizer

    model, added = parts["model"], parts.get("added_tokens") or []
    if _is_split_for_bert(parts):
        special = sorted((x for x in added if x["content"] != UNKNOWN), key=lambda x: x["id"])
        lines = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
        return tokenizer_from_parts(model["vocab"], lines, "gpt1", [x["content"] for x in special])
    _leave_out_what_encode_does_not_do(parts)
    _check_growth(parts.get("normalizer"))
    if model.get("unk_token") == UNKNOWN and UNKNOWN in model["vocab"]:
        parts["added_tokens"] = [x for x in added if x["content"] != UNKNOWN]
    return Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))


def _is_of_library(error) -> bool:
    """Returns whether an error is tokenizers' own: of no class of its own, or a panic of Rust."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


_WRONG_FORMAT = (
    "tokenizer_json must be a tokenizer in the tokenizers library's own format: {}. Received: {}. "
    "To read a file, try Tokenizer.from_file(path)."
)


def _read_parts(tokenizer_json) -> dict:
    try:
        parts = json.loads(tokenizer_json)
        if isinstance(parts["model"]["vocab"], dict | list):
            return parts
        problem = "its vocabulary is no object"
    except (ValueError, RecursionError) as error:
        problem = one_line(error)
    except (TypeError, KeyError, IndexError):
        problem = "it has no model with a vocabulary"
    raise ValueError(_WRONG_FORMAT.format(problem, shorten(tokenizer_json)))


def _refuse_unknown(what: str, values: dict, known: set):
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ValueError(
            f"{what} has parts that this version does not know, and its ids may depend on them. "
            f"Received: {', '.join(unknown)[:200]}. Try a later version of kgpt."
        )


def _leave_out_what_encode_does_not_do(parts: dict):
    left_out = [name for name in ("truncation", "padding") if parts.get(name)]
    if not _adds_nothing(parts.get("post_processor")):
        left_out.append("post_processor")
        parts["post_processor"] = None
    for name in ("truncation", "padding"):
        parts[name] = None
    if left_out:
        warn(
            f"Of the tokenizer, {' and '.join(left_out)} is left out: encode gives the ids of the "
            "whole text and adds nothing. kgpt.data and generate add what a model needs.",
        )


def _adds_nothing(post_processor) -> bool:
    if post_processor is None:
        return True
    if post_processor.get("type") == "Sequence":
        return all(map(_adds_nothing, post_processor.get("processors", ())))
    if post_processor.get("type") == "TemplateProcessing":
        return all(set(piece) == {"Sequence"} for piece in post_processor["single"])
    return post_processor.get("type") == "ByteLevel"  # of offsets alone


# === Normalizers ===


def _check_growth(normalizer):
    """Raises ValueError for a normalizer that makes long texts of short ones."""
    if normalizer is None or normalizer == _own_rules():
        return
    growth = _growth(normalizer)
    if not growth <= _MOST_GROWTH:
        raise ValueError(
            f"A normalizer must not make a text more than {_MOST_GROWTH} times as long. "
            f"Received: one that may make it {growth:.3g} times as long, {shorten(normalizer)}. "
            "Set it to null in the file, or use a tokenizer from a source that you trust."
        )


def _own_rules() -> dict:
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = gpt1_rules()
    return json.loads(tokenizer.to_str())["normalizer"]


def _growth(normalizer) -> float:
    """Returns how many characters may become of one at most, as far as the parts say it."""
    kind = normalizer.get("type")
    if kind == "Sequence":
        return math.prod(map(_growth, normalizer["normalizers"]))
    if kind == "Prepend":
        return max(1, len(normalizer["prepend"]))
    if kind == "Replace":
        content, literal = len(normalizer["content"]), normalizer["pattern"].get("String")
        if literal:
            return max(1, content / len(literal))
        # A space in place of a run of characters is usual; between all characters it doubles.
        return 1 + content if content else 1
    return _GROWTH.get(kind, 1)


# === transformers' GPT-1 ===


def _is_split_for_bert(parts: dict) -> bool:
    """Returns whether a tokenizer has GPT-1's vocabulary, but splits text as for BERT."""
    types = {(parts.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer")}
    of_gpt1 = (parts.get("model") or {}).get("end_of_word_suffix") == END_OF_WORD
    return of_gpt1 and bool(types & {"BertNormalizer", "BertPreTokenizer"})
