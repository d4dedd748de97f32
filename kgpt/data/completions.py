"""Prompts with completions, conversations, and short documents -> batches for a language model."""

from collections.abc import Sequence

import numpy as np

from kgpt.arguments import checked
from kgpt.console import warn
from kgpt.data.columns import check_columns, check_order, read_text_column, read_weights
from kgpt.data.sequences import cut, warn_of_truncation
from kgpt.data.task_batches import TaskBatches


@checked
def completions(
    prompts: Sequence[str],
    completions: Sequence[str],
    tokenizer,
    sequence_length: int = 512,
    batch_size: int = 32,
    seed: int | None = 0,
    *,
    prompt_weight: float = 0.0,
    truncate: str = "end",
    repeat: bool = False,
    sample_weight: Sequence[float] | None = None,
) -> TaskBatches:
    """Returns batches of `prompt completion [end of text]`, of which the completion is learned.

    For `kgpt.CausalLM`. The loss is a mean over the tokens of completions and their end of text;
    `prompt_weight` adds the prompts' (labels of -100 elsewhere are a `prompt_weight` of 0). Prompt
    and completion are encoded one by one, as `generate` encodes a prompt: a space between them
    belongs to one of them. A completion after an empty prompt starts from the end-of-text token, as
    in `generate`. Columns may be lists, numpy arrays, pandas columns or columns of a Hugging Face
    dataset.

    Args:
        prompts: a text for each example.
        completions: the text that follows each prompt.
        tokenizer: a `kgpt.Tokenizer` with an end-of-text token.
        sequence_length: int. Maximum number of tokens that the model reads of an example. The last
            token, usually the end of text, is only a target.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        prompt_weight: float of at least 0. Weight of a prompt's token in the loss, beside 1 for a
            completion's.
        truncate: `"end"` or `"start"`. What an example loses that is too long: its end, end of
            text included, or its beginning. A warning says how many do.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: a factor of its tokens'
            weights.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, y, sample_weight)`, all
        `(batch, length)`: `y` int32, the next tokens, `sample_weight` float32, their weights.

    Raises:
        ValueError: for columns of different lengths, texts that are not str, a tokenizer without an
            end-of-text token, and prompts that all leave no room for their completions.

    Example:
        train = kgpt.data.completions(["2 + 3 ="], [" 5"], tokenizer)
    """
    check_columns(prompts=prompts, completions=completions, sample_weight=sample_weight)
    prompts = read_text_column("prompts", prompts)
    completions = read_text_column("completions", completions)
    examples = [[(p, False), (c, True)] for p, c in zip(prompts, completions, strict=True)]
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    weights = (1.0, prompt_weight), sample_weight
    return _batches(examples, tokenizer, sequence_length, truncate, *weights, **batching)


@checked
def conversations(
    conversations: Sequence[Sequence[tuple[str, bool]]],
    tokenizer,
    sequence_length: int = 512,
    batch_size: int = 32,
    seed: int | None = 0,
    *,
    prompt_weight: float = 0.0,
    truncate: str = "end",
    repeat: bool = False,
    sample_weight: Sequence[float] | None = None,
) -> TaskBatches:
    """Returns batches of several pieces of text, some of which are learned, and `[end of text]`.

    As `completions`, which are conversations of two pieces. The pieces follow each other as they
    are: names of speakers and line breaks belong to them. The end of text counts as the last piece
    does.

    Args:
        conversations: a list of pieces `(text, counts)` for each example: a str, and a bool that
            says whether the piece is learned.
        tokenizer: a `kgpt.Tokenizer` with an end-of-text token.
        sequence_length: int. Maximum number of tokens that the model reads of an example. The last
            token, usually the end of text, is only a target.
        batch_size: int. Examples in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        prompt_weight: float of at least 0. Weight of a token in pieces that do not count, beside 1
            for the others.
        truncate: `"end"` or `"start"`. What an example loses that is too long: its end, end of
            text included, or its beginning. A warning says how many do.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each example: a factor of its tokens'
            weights.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, y, sample_weight)`, as of `completions`.

    Raises:
        ValueError: for conversations that are no lists of pieces, a tokenizer without an
            end-of-text token, and conversations in none of which anything is learned.

    Example:
        talk = [("Q: 2 + 3? A:", False), (" 5", True), (" Q: 1 + 1? A:", False), (" 2", True)]
        train = kgpt.data.conversations([talk], tokenizer)
    """
    check_columns(conversations=conversations, sample_weight=sample_weight)
    for i, pieces in enumerate(conversations):
        check_order(f"conversations[{i}]", pieces)
    examples = [_read_pieces(i, pieces) for i, pieces in enumerate(conversations)]
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    weights = (1.0, prompt_weight), sample_weight
    return _batches(examples, tokenizer, sequence_length, truncate, *weights, **batching)


@checked
def documents(
    texts: Sequence[str],
    tokenizer,
    sequence_length: int = 512,
    batch_size: int = 32,
    seed: int | None = 0,
    *,
    truncate: str = "end",
    repeat: bool = False,
    sample_weight: Sequence[float] | None = None,
) -> TaskBatches:
    """Returns batches of whole short texts, `[end of text] text [end of text]`, all learned.

    For `kgpt.CausalLM` on a corpus of names, sentences or poems: each row is one document, in
    batches of similar length. The first token is only read, so that `generate("")`, which starts
    from it, writes a whole document. For long texts see `windows`.

    Args:
        texts: the texts.
        tokenizer: a `kgpt.Tokenizer` with an end-of-text token.
        sequence_length: int. Maximum number of tokens that the model reads of a text, the first
            end of text included. The last one is only a target.
        batch_size: int. Texts in a batch; the last one of a pass may be smaller.
        seed: optional int. With a seed, each pass has another random order, the same in every
            run; None sorts by length, for validation.
        truncate: `"end"` or `"start"`. What a text loses that is too long: its end, end of text
            included, or its beginning. A warning says how many do.
        repeat: bool. Whether passes follow each other without end, for `fit` with
            `steps_per_epoch`.
        sample_weight: optional numbers of at least 0, one for each text: a factor of its tokens'
            weights.

    Returns:
        `TaskBatches` of `({"token_ids", "padding_mask"}, y, sample_weight)`, as of `completions`.

    Raises:
        ValueError: for texts that are not str, and a tokenizer without an end-of-text token.

    Example:
        train = kgpt.data.documents(["Ada", "Grace", "Barbara"], tokenizer, sequence_length=32)
    """
    check_columns(texts=texts, sample_weight=sample_weight)
    examples = [[(text, True)] for text in read_text_column("texts", texts)]
    batching = {"batch_size": batch_size, "seed": seed, "repeat": repeat}
    weights = (1.0, 0.0), sample_weight
    return _batches(examples, tokenizer, sequence_length, truncate, *weights, **batching)


def _read_pieces(i: int, pieces) -> list[tuple[str, bool]]:
    """Returns the pieces of conversation `i` as pairs; raises ValueError for anything else."""
    try:
        pairs = [(piece, None) if isinstance(piece, str) else tuple(piece) for piece in pieces]
        types = {(type(text), type(counts)) for text, counts in pairs}
    except (TypeError, ValueError):
        pairs, types = [], set()
    right = all(issubclass(a, str) and issubclass(b, bool | np.bool_) for a, b in types)
    if not right or not pairs:
        raise ValueError(
            "A conversation must be a list of pieces (text, counts), of a str and a bool, such as "
            f'[("Hello.", False), (" Hello!", True)]. Received: {pieces!r:.80} at index {i}.'
        )
    return pairs


def _batches(
    examples: list,
    tokenizer,
    sequence_length: int,
    truncate: str,
    weights: tuple,
    sample_weight,
    **batching,
) -> TaskBatches:
    """Returns the batches of examples of pieces, which weigh `weights = (learned, others)`."""
    sequences, counts = _sequences(examples, tokenizer)
    limit = sequence_length + 1  # the last one is only a target
    num_long = sum(len(ids) > limit for ids in sequences)
    warn_of_truncation(num_long, examples, sequence_length, truncate)
    sequences, counts = ([cut(x, limit, truncate) for x in rows] for rows in (sequences, counts))
    _check_something_counts(counts, sequence_length, truncate)
    factors = read_weights(sample_weight, examples)
    factors = [1.0] * len(examples) if factors is None else factors
    learned, others = weights
    return TaskBatches(
        [[ids] for ids in sequences],
        None,
        sequence_length=sequence_length,
        token_weights=[
            np.where(row, learned, others) * factor
            for row, factor in zip(counts, factors, strict=True)
        ],
        **batching,
    )


def _sequences(examples: list, tokenizer) -> tuple[list[list[int]], list[list[bool]]]:
    """Returns the token ids of each example, and which of them are learned."""
    end = tokenizer.end_of_text_id
    if end is None:
        raise ValueError(
            "The tokenizer must have an end-of-text token. "
            f"Received: special tokens {tokenizer.special_tokens}. Try "
            'tokenizer = tokenizer.with_special_tokens(("<|endoftext|>",)) and '
            "backbone = backbone.with_vocabulary_size(tokenizer.vocabulary_size)."
        )
    encoded = iter(tokenizer.encode_batch([text for pieces in examples for text, _ in pieces]))
    sequences, counts = [], []
    for pieces in examples:
        ids, row = [], []
        for _, is_learned in pieces:
            of_piece = next(encoded)
            ids += of_piece
            row += [is_learned] * len(of_piece)
        if not row or row[0]:  # the first token needs one to follow
            ids, row = [end, *ids], [False, *row]
        sequences.append([*ids, end])
        counts.append([*row, pieces[-1][1]])
    return sequences, counts


def _check_something_counts(counts: list, sequence_length: int, truncate: str):
    """Says in how many examples nothing is left to learn; raises ValueError if in all of them."""
    size = f"sequence_length={sequence_length}"
    num_empty = sum(not any(row[1:]) for row in counts)
    other = ' or truncate="start"' if truncate == "end" else ""
    if num_empty == len(counts):
        raise ValueError(
            "The examples must have something to learn. Received: examples whose prompts leave no "
            f"room for their completions, or pieces that do not count, with {size} and "
            f'truncate="{truncate}". Try a larger sequence_length{other}.'
        )
    if num_empty:
        warn(
            f"{num_empty} of {len(counts)} examples have nothing to learn: their prompts leave no "
            f"room for their completions with {size}, or none of their pieces counts. "
            f"Try a larger sequence_length{other}, or leave them out.",
        )
