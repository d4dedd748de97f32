"""The output of a language model, tied to its embedding."""

import functools

import keras


@keras.saving.register_keras_serializable(package="kgpt")
class TiedOutput(keras.layers.Layer):
    """Hidden states to logits by the matrix of an embedding: `h E^T` (GPT-1, equation 2).

    The weights are the embedding's alone: a model that has both lists them once.

    Args:
        embedding: the `TokenAndPositionEmbedding`.
        **kwargs: as for `keras.layers.Layer`; the dtype policy is the embedding's if none is given.

    Call arguments:
        hidden_states: float tensor `(batch, length, hidden_dim)`.

    Returns:
        float tensor `(batch, length, vocabulary_size)`.
    """

    def __init__(self, embedding, **kwargs):
        super().__init__(**{"dtype": embedding.dtype_policy, **kwargs})
        # A function and not the layer, whose weights would be counted and saved as this one's too.
        self.project = functools.partial(embedding, reverse=True)

    def call(self, hidden_states):
        return self.project(hidden_states)

    def compute_output_spec(self, hidden_states):
        return self.project.func.compute_output_spec(hidden_states, reverse=True)

    def get_config(self):
        embedding = keras.saving.serialize_keras_object(self.project.func)
        return {**super().get_config(), "embedding": embedding}

    @classmethod
    def from_config(cls, config):
        embedding = keras.saving.deserialize_keras_object(config["embedding"])
        return cls(**{**config, "embedding": embedding})
