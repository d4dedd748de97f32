"""Texts -> GPT-1's input sequences (GPT-1, section 3.3 and figure 1).

An example is a list of sequences, and a sequence a list of token ids.
"""

from kgpt.console import warn


def sequences_of(
    examples: list, tokenizer, sequence_length: int, both_orders: bool, truncate: str = "end"
) -> list:
    """Returns the sequences of texts, of pairs of texts, or of contexts with their choices."""
    first = examples[0]
    if isinstance(first, str):
        return single_sequences(examples, tokenizer, sequence_length, truncate)
    if isinstance(first[1], str):
        return pair_sequences(examples, tokenizer, sequence_length, both_orders, truncate)
    return choice_sequences(*zip(*examples, strict=True), tokenizer, sequence_length)


def single_sequences(
    texts: list[str], tokenizer, sequence_length: int, truncate: str = "end"
) -> list[list[list[int]]]:
    """Returns `[start] text [classify]`, with the text truncated at its end or its start."""
    start, _, classify = _special_ids(tokenizer, sequence_length)
    room = sequence_length - 2
    encoded = tokenizer.encode_batch(texts)
    warn_of_truncation(sum(len(ids) > room for ids in encoded), texts, sequence_length, truncate)
    return [[[start, *cut(ids, room, truncate), classify]] for ids in encoded]


def cut(ids: list[int], room: int, truncate: str) -> list[int]:
    """Returns the first tokens of a text that is too long, or with `"start"` the last ones."""
    return ids[max(0, len(ids) - room) :] if truncate == "start" else ids[:room]


def warn_of_truncation(number: int, texts, sequence_length: int, truncate: str | None):
    """Says how many texts are too long, if any are; None for contexts and their choices."""
    if not number:
        return
    other = "end" if truncate == "start" else "start"
    what, lose, hint = "texts", f"lose their {truncate}", f", or truncate={other!r}"
    if truncate is None:
        what, lose, hint = "contexts with their choices", "lose their start", ""
    warn(
        f"{number} of {len(texts)} {what} are longer than sequence_length={sequence_length} and "
        f"{lose}. Try a larger sequence_length{hint}.",
    )


def pair_sequences(
    pairs, tokenizer, sequence_length: int, both_orders: bool, truncate: str = "end"
) -> list:
    """Returns `[start] first [delimiter] second [classify]`, and with both orders the reverse too.

    The longer text is truncated until both have the same length, then both are.
    """
    start, delimiter, classify = _special_ids(tokenizer, sequence_length)
    firsts = tokenizer.encode_batch([first for first, _ in pairs])
    seconds = tokenizer.encode_batch([second for _, second in pairs])
    room = sequence_length - 3
    long = sum(len(a) + len(b) > room for a, b in zip(firsts, seconds, strict=True))
    warn_of_truncation(long, pairs, sequence_length, truncate)
    sequences = []
    for first, second in zip(firsts, seconds, strict=True):
        most = max(room // 2, room - min(len(first), len(second)))
        first, second = cut(first, most, truncate), cut(second, most, truncate)
        example = [[start, *first, delimiter, *second, classify]]
        if both_orders:
            example.append([start, *second, delimiter, *first, classify])
        sequences.append(example)
    return sequences


def choice_sequences(contexts, choices, tokenizer, sequence_length: int) -> list:
    """Returns `[start] context [delimiter] choice [classify]` for each choice.

    The context is truncated at its beginning, the same for all choices; only a choice that is too
    long by itself is truncated, at its end.
    """
    start, delimiter, classify = _special_ids(tokenizer, sequence_length)
    room = sequence_length - 3
    num_choices = len(choices[0])
    encoded = tokenizer.encode_batch([choice for of_one in choices for choice in of_one])
    sequences, number = [], 0
    for i, context in enumerate(tokenizer.encode_batch(contexts)):
        endings = encoded[i * num_choices : (i + 1) * num_choices]
        too_many = max(0, len(context) + max(map(len, endings)) - room)
        number += too_many > 0
        context, endings = context[too_many:], [ids[:room] for ids in endings]
        sequences.append([[start, *context, delimiter, *ids, classify] for ids in endings])
    warn_of_truncation(number, contexts, sequence_length, None)
    return sequences


def _special_ids(tokenizer, sequence_length: int) -> tuple[int, int, int]:
    if sequence_length < 5:
        raise ValueError(
            "sequence_length must be at least 5: start, delimiter, classify and one token of each "
            f"text. Received: sequence_length={sequence_length}."
        )
    ids = (tokenizer.start_id, tokenizer.delimiter_id, tokenizer.classify_id)
    if None in ids:
        raise ValueError(
            "The tokenizer must have the tokens start, delimiter and classify. "
            f"Received: special tokens {tokenizer.special_tokens}. Try "
            "tokenizer = tokenizer.with_special_tokens() and "
            "backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)."
        )
    return ids
