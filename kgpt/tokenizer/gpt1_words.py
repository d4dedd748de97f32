"""Text -> GPT-1's words: exactly, by ftfy and spaCy, or as rules inside `tokenizers`."""

import functools
import importlib.util
import re
import threading
from collections.abc import Iterable, Iterator

# === By ftfy and spaCy ===


def has_ftfy_and_spacy() -> bool:
    """Returns whether both packages are installed, without importing them."""
    return all(importlib.util.find_spec(name) for name in ("ftfy", "spacy"))


@functools.cache
def import_ftfy_and_spacy() -> tuple:
    """Returns ftfy, spaCy's blank English pipeline, and a lock for it.

    Raises:
        ImportError: if one of the packages is missing, with the way to install it.
    """
    try:
        import ftfy
        import spacy
    except ImportError as error:
        raise ImportError(
            "This tokenizer splits text into GPT-1's words by ftfy and spaCy (exact=True), and "
            f"{error.name} is not installed. Try `pip install ftfy spacy`, or create the "
            "tokenizer with exact=False, which needs neither but gives slightly different ids."
        ) from error
    return ftfy, spacy.blank("en"), threading.Lock()


def gpt1_words(texts: Iterable[str]) -> Iterator[str]:
    """Yields each text as GPT-1's words by ftfy and spaCy: lower case, separated by spaces."""
    ftfy, english, lock = import_ftfy_and_spacy()
    for text in texts:
        text = ftfy.fix_text(text)
        text = re.sub("[\u2013-\u2015]", "-", text).replace("\u2026", "...").replace("\u00b4", "'")
        text = re.sub(
            r'(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|}+|{+|\|+|_+)', r" \1 ", text
        )
        text = re.sub(r"\s*\n\s*", " \n ", text)
        text = re.sub(r"[^\S\n]+", " ", text).strip()
        with lock, english.memory_zone():  # outside one, spaCy caches every new word forever
            words = [word.text.strip(" ").lower() for word in english.tokenizer(text)]
        yield " ".join(words)


# === spaCy's English exceptions ===

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


def _after_space(words: Iterable[str]) -> list[str]:
    return [rf"\s{word}" for word in words]


# === By rules ===

# ftfy's `fix_text` and the original code's clean-up.
_CLEAN_UP = [
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

# The other patterns match the empty string where a word ends and a space belongs.
_END = r"(?!\S)"
_ALONE = r"""[!";?+,)(*\[\]}{_\p{So}]"""
_IN_RUNS = [rf"(?<={sign})(?!{sign})|(?<!{sign})(?={sign})" for sign in ("-", "~", "/", r"\|")]
_SIGNS = rf"(?<={_ALONE})|(?={_ALONE})|{'|'.join(_IN_RUNS)}|(?<=\.\.)(?!\.)|(?<!\.)(?=\.\.)"
_PREFIXES = (
    r"(?<=\s')(?!'?(?:em|s|ll|re|d|cause|cos|coz|cuz|bout|nuff)?\.?(?!\S))"
    r"|(?<=\s[:<=])(?![DPOXpox013](?!\S))"
    r"|(?<=\s[\u00a7%>#&`$\u00a3\u20ac\u00a5\u00ab\u00bb\u201e\u201a\u00bf\u00a1\u00b7]|\sUS\$)"
)
_SUFFIXES = (
    r"(?:(?<=\S)(?=[:<>#&`\u00ab\u00bb\u201e\u201a\u00bf\u00a1\u00b7]+(?!\S))"
    r"|(?<=[^\s'])(?='{1,2}(?!\S)))"
    rf"(?<!\s[:<=]|{'|'.join(_after_space(_either_case(_CLIPPED)))})"
)
_POSSESSIVE = rf"(?<=\S)(?='[sS]{_END})"
_POSSESSIVE_OR_UNIT = (
    rf"{_POSSESSIVE}|(?<=\s=|==)(?==+{_END})|(?<=[0-9])(?=(?:{_UNITS}){_END})"
    rf"|(?<=\s[1-9]|\s1[0-2])(?=[ap](?:m|\.m\.){_END})"
)
_FULL_STOP = (
    r"(?:(?<=[0-9\p{Ll}\p{Lo}%\u00b2'\"`])|(?<=\p{Lu}\p{Lu}))(?=\.(?!\S))"
    r"(?<!\s[a-z\u00e4\u00f6\u00fc]|"
    rf"{'|'.join(_after_space(map(re.escape, _ABBREVIATIONS.split())))})"
)
_INFIXES = (
    r"(?<!\sPh|\sPh\.)(?:(?<=[\p{Ll}\p{Lo}'])(?=\.[\p{Lu}\p{Lo}'])"
    r"|(?<=[\p{Ll}\p{Lo}']\.)(?=[\p{Lu}\p{Lo}']))"
    r"|(?<=[\p{L}0-9])(?=[:<>=]\p{L})|(?<=[\p{L}0-9][:<>=])(?=\p{L})"
    r"|(?<=[0-9])(?=\^[0-9-])|(?<=[0-9]\^)(?=[0-9-])"
)
_CONTRACTED = "|".join(
    rf"\s(?:{'|'.join(_either_case(words))})\K(?={rest}{_END})" for words, rest in _CONTRACTIONS
)
_CONTRACTED_HAVE = rf"\s(?:n'?t|'d|'ll)\K(?='?ve{_END})"
_WORD_ENDS = [  # in the order in which spaCy splits a chunk
    *(_SIGNS, _PREFIXES, _PREFIXES, _SUFFIXES, _POSSESSIVE_OR_UNIT, _FULL_STOP, _SUFFIXES),
    *(_INFIXES, _POSSESSIVE, _CONTRACTED, _CONTRACTED_HAVE),
]


def gpt1_rules():
    """Returns a normalizer of `tokenizers` that puts a space between GPT-1's words.

    The rules follow ftfy's `fix_text`, the original code's clean-up and spaCy's English rules.
    Lower case comes last, as some of them depend on case.
    """
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [normalizers.Replace(Regex(pattern), text) for pattern, text in _CLEAN_UP]
        + [normalizers.NFC(), normalizers.Prepend(" ")]
        + [normalizers.Replace(Regex(pattern), " ") for pattern in _WORD_ENDS]
        + [normalizers.Lowercase()]
    )
