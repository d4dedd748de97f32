"""What a language model is trained on: which token each position is scored by, and the loss."""

import functools

from keras import ops

from kgpt.kernels.cross_entropy import cross_entropy, reference, rows_at_once
from kgpt.layers.padding import from_right_padding, to_right_padding


def next_token_targets(
    token_ids, padding_mask=None, segment_ids=None, targets=None, sample_weight=None
):
    """Returns the token that scores each position, and the weight of the position.

    The next token is the next real one, wherever padding stands. A position counts if it and the
    next token are real and of the same document.

    Args:
        token_ids: int tensor `(batch, length)`.
        padding_mask: optional bool or int tensor `(batch, length)`; True marks real tokens.
        segment_ids: optional int tensor `(batch, length)`: the number of the document that each
            token belongs to.
        targets: optional int tensor `(batch, length)`: the next tokens, if the one after the last
            position is known too; a negative one does not count. None takes them from `token_ids`;
            the last position, whose next token is unknown, then has weight 0.
        sample_weight: optional float tensor `(batch, length)` or `(batch, 1)`: a factor of the
            weights. Beside `targets`, the first says alone which real tokens count.

    Returns:
        Two tensors `(batch, length)`: the targets, and float32 weights, 0 or 1 without
        `sample_weight`.
    """
    order = padding_mask if targets is None else None  # given targets follow their positions
    says_which = targets is not None and sample_weight is not None and sample_weight.shape[1] != 1
    ids, segments, is_real = (
        to_right_padding(x, order) for x in (token_ids, segment_ids, padding_mask)
    )
    weights = ops.ones_like(ids, dtype="float32")
    if targets is None:
        targets = from_right_padding(_next(ids), order)
        length = ops.shape(weights)[1]
        weights = weights * ops.cast(ops.arange(length) + 1 < length, "float32")
    else:
        weights = weights * ops.cast(targets >= 0, "float32")
        targets = ops.maximum(targets, 0)
    if is_real is not None:
        is_real = ops.cast(ops.cast(is_real, "bool"), "float32")
        weights = weights * is_real * (1.0 if says_which else _next(is_real))
    if segments is not None and not says_which:
        weights = weights * ops.cast(ops.equal(_next(segments), segments), "float32")
    weights = from_right_padding(weights, order)
    return targets, weights if sample_weight is None else weights * sample_weight


def next_token_loss(hidden_states, embedding, targets, weights, training: bool = False):
    """Returns the cross-entropy of the tied output softmax (GPT-1, equation 1), a sum over tokens.

    Args:
        hidden_states: float tensor `(batch, length, hidden_dim)`; without `embedding`, logits
            `(batch, length, vocabulary_size)`.
        embedding: the built `keras.layers.ReversibleEmbedding` that the output is tied to, or None.
        targets: int tensor `(batch, length)`: the token that follows each position.
        weights: float tensor `(batch, length)`: the weight of each position, usually 0 or 1.
        training: bool. Whether the result will be differentiated.

    Returns:
        Two float32 scalars: the weighted sum of negative log-likelihoods in nats, and the weighted
        number of positions whose most likely token is the target.
    """
    rows = ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))  # (batch * length, hidden_dim)
    targets = ops.reshape(ops.cast(targets, "int32"), (-1,))
    weights = ops.reshape(ops.cast(weights, "float32"), (-1,))
    if embedding is None:
        return reference(rows, lambda logits: logits, targets, weights)
    if not embedding.quantization_mode:
        # The reshape hands over a tensor: TensorFlow's custom gradients take no variables.
        projection = ops.reshape(embedding.embeddings, embedding.embeddings.shape)
    elif training:  # its own product has no gradient: it rounds
        projection = embedding(ops.arange(embedding.input_dim))
    else:
        projection = functools.partial(embedding, reverse=True)
    rows_per_chunk = rows_at_once(embedding.input_dim)
    return cross_entropy(rows, projection, targets, weights, rows_per_chunk, training)


def _next(x):
    """Returns the successor of each position; of the last position, itself."""
    x = ops.convert_to_tensor(x)
    return ops.concatenate([x[:, 1:], x[:, -1:]], axis=1)
