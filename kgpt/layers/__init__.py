"""What a GPT is made of: each layer is usable alone in anybody's Keras model."""

from kgpt.layers.attention import CausalSelfAttention
from kgpt.layers.decoder_block import DecoderBlock
from kgpt.layers.embedding import TokenAndPositionEmbedding
from kgpt.layers.feed_forward import FeedForward

__all__ = ["CausalSelfAttention", "DecoderBlock", "FeedForward", "TokenAndPositionEmbedding"]
