"""Texts -> GPT-1's input sequences (GPT-1, section 3.3 and figure 1).

An example is a list of sequences, and a sequence a list of token ids.
"""


def sequences_of(examples: list, tokenizer, sequence_length: int, both_orders: bool) -> list:
    """Returns the sequences of texts, of pairs of texts, or of contexts with their choices."""
    first = examples[0]
    if isinstance(first, str):
        return single_sequences(examples, tokenizer, sequence_length)
    if isinstance(first[1], str):
        return pair_sequences(examples, tokenizer, sequence_length, both_orders)
    return choice_sequences(*zip(*examples, strict=True), tokenizer, sequence_length)


def single_sequences(texts: list[str], tokenizer, sequence_length: int) -> list[list[list[int]]]:
    """Returns `[start] text [classify]`, with the text truncated at its end."""
    start, _, classify = _special_ids(tokenizer, sequence_length)
    room = sequence_length - 2
    return [[[start, *ids[:room], classify]] for ids in tokenizer.encode_batch(texts)]


def pair_sequences(pairs, tokenizer, sequence_length: int, both_orders: bool) -> list:
    """Returns `[start] first [delimiter] second [classify]`, and with both orders the reverse too.

    The longer text is truncated until both have the same length, then both are.
    """
    start, delimiter, classify = _special_ids(tokenizer, sequence_length)
    firsts = tokenizer.encode_batch([first for first, _ in pairs])
    seconds = tokenizer.encode_batch([second for _, second in pairs])
    room = sequence_length - 3
    sequences = []
    for first, second in zip(firsts, seconds, strict=True):
        most = max(room // 2, room - min(len(first), len(second)))
        first, second = first[:most], second[:most]
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
    sequences = []
    for i, context in enumerate(tokenizer.encode_batch(contexts)):
        endings = [ids[:room] for ids in encoded[i * num_choices : (i + 1) * num_choices]]
        beginning = max(0, len(context) + max(map(len, endings)) - room)
        context = context[beginning:]
        sequences.append([[start, *context, delimiter, *ids, classify] for ids in endings])
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
