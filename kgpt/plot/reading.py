"""What a language model computes while it reads a text: pieces, expectations, attention."""

from typing import NamedTuple

import numpy as np
from keras import ops

from kgpt.generation import arguments
from kgpt.locks import locked


class Reading(NamedTuple):
    """A text as the model reads it. Position `i` expects the token at `i + 1`."""

    pieces: list[str]  # the text of each token
    token_ids: np.ndarray  # (length,)
    log_probabilities: np.ndarray  # (length, vocabulary), in nats: what each position expects
    attention: np.ndarray | None  # (layers, heads, length, length)

    @property
    def bits(self) -> np.ndarray:
        """How many bits each token but the first takes: `-log2 p`, `(length - 1,)`."""
        nats = self.log_probabilities[np.arange(len(self.token_ids) - 1), self.token_ids[1:]]
        return -nats / np.log(2)


@locked
def read(lm, text, with_attention: bool = False) -> Reading:
    """Runs a language model over one text.

    Args:
        lm: a `CausalLM`.
        text: str or token ids.
        with_attention: bool. Whether the attention weights of all heads are wanted.

    Raises:
        ValueError: for several texts, none, or more tokens than the model can read.
        RuntimeError: if another thread trains the model.
    """
    backbone = lm.backbone
    texts, is_single = arguments.read_prompts(text, "text")
    if not is_single:
        raise ValueError(f"text must be one text. Received: {len(texts)} texts.")
    (token_ids,) = arguments.encode(texts, lm.tokenizer, backbone.vocabulary_size, "text")
    if not 1 <= len(token_ids) <= backbone.max_sequence_length:
        raise ValueError(
            f"text must have from 1 to {backbone.max_sequence_length} tokens, the backbone's "
            f"max_sequence_length. Received: {len(token_ids)} tokens."
        )
    h = backbone.embedding(np.array([token_ids], "int32"), training=False)
    scores = []
    for block in backbone.decoder_blocks:
        if with_attention:
            x = block.attention_norm(h) if block.norm_first else h
            found = block.attention(x, training=False, return_attention_scores=True)[1]
            scores.append(ops.convert_to_numpy(ops.cast(found, "float32"))[0])
        h = block(h, training=False)
    h = h if backbone.final_norm is None else backbone.final_norm(h)
    logits = ops.cast(backbone.token_embedding(h, reverse=True), "float32")
    return Reading(
        pieces_of(lm.tokenizer, token_ids),
        np.array(token_ids),
        ops.convert_to_numpy(ops.log_softmax(logits))[0],
        np.stack(scores) if with_attention else None,
    )


def likeliest(tokenizer, log_probabilities: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Returns the `k` likeliest next tokens of one position and their probabilities."""
    best = np.argsort(-log_probabilities, kind="stable")[:k]
    texts = [pieces_of(tokenizer, [token_id])[0] for token_id in best.tolist()]
    return list(zip(texts, np.exp(log_probabilities[best]).tolist(), strict=True))


def pieces_of(tokenizer, token_ids: list[int]) -> list[str]:
    """Returns the text of each token; of characters over several tokens, the last one has it."""
    if tokenizer is None:
        return [str(token_id) for token_id in token_ids]
    pieces, done = [], 0
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end])
        pieces.append(text[done:] if end == len(token_ids) else text.rstrip("\ufffd")[done:])
        done += len(pieces[-1])
    return pieces
