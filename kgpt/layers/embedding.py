"""Tokens and positions in, hidden states out; and, with the same matrix, back to tokens."""

import keras
from keras import ops

from kgpt.arguments import FixedOnceBuilt, checked
from kgpt.distribution import pin
from kgpt.initializers import normal_initializer
from kgpt.kernels.platform import check_axes, check_shape_of, to_logits
from kgpt.layers.dropout import Dropout


@keras.saving.register_keras_serializable(package="kgpt")
class TokenAndPositionEmbedding(FixedOnceBuilt, keras.layers.Layer):
    """The sum of a learned token vector and a learned position vector.

    `h_0 = E[token] + P[position]` (GPT-1, equation 2), then dropout. The output of a model can be
    tied to it: `layer(hidden_states, reverse=True)` gives the logits `h E^T`.

    Args:
        vocabulary_size: int. Number of tokens.
        max_sequence_length: int. Number of positions; no sequence may be longer.
        hidden_dim: int. Width of the vectors.
        dropout: float in [0, 1). Share of the summed entries dropped in training.
        embeddings_initializer: initializer of the token matrix; N(0, 0.02) if None.
        position_initializer: initializer of the position matrix; N(0, 0.02) if None.
        learned_positions: bool. False leaves the position vectors out, for blocks that get to know
            positions in another way.
        **kwargs: `name`, `dtype` and `trainable`, as for `keras.layers.Layer`.

    Call arguments:
        inputs: int tensor `(batch, length)` of token ids in `[0, vocabulary_size)`; with `reverse`,
            float tensor `(batch, length, hidden_dim)`.
        segment_ids: optional int tensor `(batch, length)`: the number of the document that each
            token belongs to, for several documents packed into one window. A document's tokens
            are neighbours, and its positions start at 0.
        position_ids: optional int tensor `(batch, length)` or `(length,)`, values in
            `[0, max_sequence_length)`: the positions themselves, in place of 0, 1, 2, ...
        reverse: bool. Whether to map hidden states back to tokens.

    Returns:
        float tensor `(batch, length, hidden_dim)`; with `reverse`,
        `(batch, length, vocabulary_size)`.

    Raises:
        ValueError: for values out of range, and if a sequence is longer than `max_sequence_length`.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        embedding = kgpt.layers.TokenAndPositionEmbedding(300, 256, hidden_dim=12)
        hidden_states = embedding(token_ids)
        logits = embedding(hidden_states, reverse=True)
    """

    @checked(passes_on=keras.layers.Layer)
    def __init__(
        self,
        vocabulary_size: int,
        max_sequence_length: int,
        hidden_dim: int,
        dropout: float = 0.0,
        embeddings_initializer=None,
        position_initializer=None,
        learned_positions: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.max_sequence_length = max_sequence_length
        self.hidden_dim = hidden_dim
        self.dropout = dropout
        self.embeddings_initializer = normal_initializer(embeddings_initializer)
        self.position_initializer = normal_initializer(position_initializer)
        part = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.token_embedding = keras.layers.ReversibleEmbedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=self.embeddings_initializer,
            name="token_embedding",
            **part,
        )
        self.learned_positions = learned_positions
        self.position_embedding = None
        if learned_positions:
            self.position_embedding = keras.layers.Embedding(
                max_sequence_length,
                hidden_dim,
                embeddings_initializer=self.position_initializer,
                name="position_embedding",
                **part,
            )
        self.dropout_layer = Dropout(dropout, dtype=self.dtype_policy, name="dropout")
        self.supports_masking = True
        self.autocast = False  # token ids are integers; a cast to a float type would lose them

    def build(self, inputs_shape):
        """Makes the tables."""
        self.token_embedding.build()
        if self.position_embedding is not None:
            self.position_embedding.build()
        self.dropout_layer.build((*inputs_shape, self.hidden_dim))
        self.built = True

    def call(self, inputs, segment_ids=None, position_ids=None, reverse=False, training=None):
        """Returns the embedded tokens; with `reverse`, the logits of hidden states."""
        if reverse:
            return pin(to_logits(self.token_embedding, inputs), "batch", ..., "model")
        self.compute_output_shape(inputs.shape)  # refuses a wrong one
        h = self.token_embedding(inputs)  # (batch, length, hidden_dim)
        if self.position_embedding is not None:
            if position_ids is None:
                position_ids = _positions(inputs, segment_ids)  # (length,), or with a batch
            h = h + self.position_embedding(position_ids)
        return self.dropout_layer(pin(h, "batch"), training=training)

    def check_length(self, length: int | None):
        """Refuses a length that there are no positions for.

        Args:
            length: int, or None if it is not known, which passes.

        Raises:
            ValueError: if it is above `max_sequence_length`.

        Example:
            backbone.embedding.check_length(token_ids.shape[1])
        """
        if isinstance(length, int) and length > self.max_sequence_length:
            raise ValueError(
                "A sequence must not be longer than max_sequence_length. "
                f"Received: length={length}, max_sequence_length={self.max_sequence_length}. "
                "Cut the sequence, or make the model with a larger max_sequence_length."
            )

    def compute_output_spec(self, inputs, *args, reverse=False, **kwargs):
        """Returns the shape and the dtype of the output."""
        if reverse:
            return self.token_embedding.compute_output_spec(inputs, reverse=True)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def compute_output_shape(self, inputs_shape, *args, **kwargs):
        """Returns the shape of the output."""
        check_axes("token_ids", inputs_shape, "batch", "length")
        self.check_length(inputs_shape[1])
        return (*inputs_shape, self.hidden_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "max_sequence_length": self.max_sequence_length,
            "hidden_dim": self.hidden_dim,
            "dropout": self.dropout,
            "embeddings_initializer": keras.initializers.serialize(self.embeddings_initializer),
            "position_initializer": keras.initializers.serialize(self.position_initializer),
            "learned_positions": self.learned_positions,
        }


def _positions(token_ids, segment_ids):
    """Returns 0, 1, 2, ... along the length, from 0 again where a new document begins."""
    length = ops.shape(token_ids)[1]
    positions = ops.arange(length, dtype="int32")  # (length,)
    if segment_ids is None:
        return positions
    check_shape_of("the inputs", token_ids, segment_ids=segment_ids)
    same = ops.equal(segment_ids[:, :, None], segment_ids[:, None, :])  # (batch, length, length)
    earlier = positions[None, :, None] > positions[None, None, :]
    return ops.sum(ops.cast(ops.logical_and(same, earlier), "int32"), axis=-1)  # (batch, length)
