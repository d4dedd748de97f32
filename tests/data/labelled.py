"""A tokenizer of characters, and what tests read from batches of labelled text."""

import kgpt
from kgpt.data import classification

PLAIN = kgpt.Tokenizer.train(
    ["abcdefghijklmnopqrstuvwxyz <|>_0123456789"], style="characters", special_tokens=()
)
TOKENIZER = PLAIN.with_special_tokens()  # a token is a character
START, DELIMITER, CLASSIFY = TOKENIZER.start_id, TOKENIZER.delimiter_id, TOKENIZER.classify_id


def ids(text):
    return TOKENIZER.encode(text)


def rows(data):
    """Returns one pass: the sequences without padding, and all labels, in the data's order."""
    sequences, labels = [], []
    for x, *y in data:
        token_ids, mask = x["token_ids"], x["padding_mask"]
        flat = token_ids.reshape(-1, token_ids.shape[-1]), mask.reshape(-1, mask.shape[-1])
        sequences += [row[real].tolist() for row, real in zip(*flat, strict=True)]
        labels += y[0].tolist() if y else []
    return sequences, labels


def numbered(count, **arguments):
    """Returns batches of texts of different lengths, all distinct, labelled by their number."""
    texts = [f"{i:03}" + "x" * (7 * i % 61) for i in range(count)]
    return classification(texts, list(range(count)), TOKENIZER, sequence_length=128, **arguments)


def order(data):
    return [int(label) for _, labels in data for label in labels]
