"""The language model: the body and a next-token head tied to its token embedding."""

import keras
from keras import ops

from kgpt import generation
from kgpt.losses import Perplexity, next_token_loss
from kgpt.models.backbone import complete_inputs
from kgpt.models.task import Task


@keras.saving.register_keras_serializable(package="kgpt")
class CausalLM(Task):
    """A GPT that gives the logits of the next token at each position.

    `P(next) = softmax(h_L E^T)` (GPT-1, equation 2), tied to the token embedding `E`, no bias.

    `compile()` with no loss trains by next-token cross-entropy, equation 1 of GPT-1, as a mean over
    the tokens that count. Its targets, `y`, are the next tokens: `fit(token_ids, next_token_ids)`.
    Without `y` they are the token ids themselves, shifted by one. What counts is said by
    `sample_weight`, `(batch,)` or `(batch, length)`; without it, all positions but those whose next
    token is padding by `padding_mask` or belongs to another document by `segment_ids`. Reported are
    `loss` (nats per token), `perplexity` and `accuracy`, exact over all tokens.

    Args:
        backbone: a `GPTBackbone`.
        tokenizer: optional `kgpt.Tokenizer`, for text in and out; saved in the model's file.

    Call arguments:
        inputs: as for `GPTBackbone`: token ids `(batch, length)`, or a dict.

    Returns:
        float tensor `(batch, length, vocabulary_size)`: logits.

    Raises:
        ValueError: if the tokenizer has more tokens than the backbone.

    Example:
        lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
        lm.compile(kgpt.recipes.pretraining_optimizer(steps=2000))
        lm.fit(kgpt.data.windows("train.npy", sequence_length=256, batch_size=32, seed=0))
        lm.generate("def main(", max_new_tokens=100)
    """

    def __init__(self, backbone, tokenizer=None, **kwargs):
        super().__init__(
            backbone,
            inputs=backbone.input,
            outputs=backbone.embedding(backbone.output, reverse=True),
            tokenizer=tokenizer,
            **kwargs,
        )
        self.own_metrics = [
            keras.metrics.Mean(name="loss"),
            Perplexity(name="perplexity"),
            keras.metrics.Mean(name="accuracy"),
        ]

    def standardize_inputs(self, inputs):
        return complete_inputs(inputs)

    def check_data(self, x, y=None):
        super().check_data(x, y)
        self.check_ids("next tokens (y)", y)

    def compute_output_spec(self, inputs, training=None, mask=None):
        hidden_states = self.backbone.compute_output_spec(inputs)
        return self.backbone.embedding.compute_output_spec(hidden_states, reverse=True)

    def outputs_in_step(self, inputs, hidden_states):
        if self._compile_metrics is None:
            return None
        return self.backbone.embedding(hidden_states, reverse=True)

    def own_loss(self, x, y, hidden_states, outputs, sample_weight, training):
        targets, weights = _targets_and_weights(x, y, sample_weight)
        loss_sum, correct = next_token_loss(
            hidden_states, self.backbone.token_embedding, targets, weights, training
        )
        count = ops.sum(weights)
        mean = ops.divide_no_nan(loss_sum, count)
        total = mean + self.regularization()
        loss, perplexity, accuracy = self.own_metrics
        loss.update_state(ops.stop_gradient(total), sample_weight=count)
        perplexity.update_state(ops.stop_gradient(mean), sample_weight=count)
        correct = ops.stop_gradient(ops.divide_no_nan(correct, count))
        accuracy.update_state(correct, sample_weight=count)
        return total

    def generate(self, prompts, max_new_tokens=100, **kwargs):
        """Continues text or token ids; see `kgpt.generation.generate`."""
        return generation.generate(self, prompts, max_new_tokens, **kwargs)

    def export_generation_step(self, filepath, format="onnx", verbose=True, **kwargs):
        """Writes one cached step; see `kgpt.convert.export.export_generation_step`."""
        from kgpt.convert.export import export_generation_step

        export_generation_step(self, filepath, format, verbose=verbose, **kwargs)


def _targets_and_weights(x, y, sample_weight):
    """The next token of each position and what it counts, both `(batch, length)`."""
    token_ids = x["token_ids"]
    targets = _next(token_ids) if y is None else ops.convert_to_tensor(y)
    if targets.shape[-1] == 1 and len(targets.shape) == 3:
        targets = targets[..., 0]
    ones = ops.ones_like(token_ids, dtype="float32")
    if sample_weight is not None:
        weights = ops.cast(sample_weight, "float32")
        weights = weights[:, None] if len(weights.shape) == 1 else weights
        return targets, ones * weights
    weights = ones
    if y is None:
        weights = weights * ops.cast(
            ops.arange(ops.shape(ones)[1]) + 1 < ops.shape(ones)[1], "float32"
        )
    if x["padding_mask"] is not None:
        weights = weights * ops.cast(_next(x["padding_mask"]), "float32")
    if x["segment_ids"] is not None:
        same = ops.equal(_next(x["segment_ids"]), x["segment_ids"])
        weights = weights * ops.cast(same, "float32")
    return targets, weights


def _next(x):
    """Each position's successor; the last position, whose successor is unknown, has itself."""
    x = ops.convert_to_tensor(x)
    return ops.concatenate([x[:, 1:], x[:, -1:]], axis=1)
