"""The language model: the backbone and a next-token head tied to its token embedding."""

import keras
from keras import ops

from kgpt import generation
from kgpt.arguments import checked
from kgpt.kernels.platform import sum_over_replicas
from kgpt.losses import next_token_loss, next_token_targets
from kgpt.metrics import Perplexity
from kgpt.models import scoring, text_inputs, token_weights
from kgpt.models.inputs import complete_inputs
from kgpt.models.own_metrics import mean
from kgpt.models.task import Task
from kgpt.models.tied_output import TiedOutput


@keras.saving.register_keras_serializable(package="kgpt")
class CausalLM(Task):
    """A GPT whose outputs are the logits of the next token at each position.

    `P(next) = softmax(h_L E^T)` (GPT-1, equation 2), tied to the token embedding `E`, no bias.

    `compile()` with no loss trains by next-token cross-entropy, equation 1 of GPT-1, as a mean over
    the tokens that count. Its targets, `y`, are the next tokens: `fit(token_ids, next_token_ids)`.
    Without `y` they are the token ids themselves, shifted by one. A position counts as much as
    `sample_weight` says, `(batch,)` or `(batch, length)`, where it and its next token are no
    padding by `padding_mask` and of one document by `segment_ids`. Beside `y`, weights
    `(batch, length)` say alone which of the real tokens count. A target of -100 or -1 does not
    count. Reported are `loss` (nats per token), `perplexity` and `accuracy`, exact over all
    tokens. A Keras loss and compiled metrics have the same targets and count the same tokens.

    Args:
        backbone: a `GPTBackbone`.
        tokenizer: optional `kgpt.Tokenizer`, for text in and out; saved in the model's file.
        sequence_length: optional int. Most tokens of a text that goes into `fit` and `evaluate`;
            the backbone's maximum if None.
        truncate: "end" or "start": what a longer text loses.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: as for `GPTBackbone`: token ids `(batch, length)`, or a dict.

    Returns:
        float tensor `(batch, length, vocabulary_size)`: logits.

    Raises:
        ValueError: if the tokenizer has more tokens than the backbone, and for values out of range.
        TypeError: for keywords that are no arguments, with the one that was probably meant.

    Example:
        lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
        lm.compile(kgpt.recipes.pretraining_optimizer(steps=2000))
        lm.fit(kgpt.data.windows("train.npy", sequence_length=256, batch_size=32, seed=0))
        lm.generate("def main(", max_new_tokens=100)
    """

    @checked
    def __init__(
        self,
        backbone,
        tokenizer=None,
        sequence_length: int | None = None,
        truncate: str = "end",
        **kwargs,
    ):
        logits = TiedOutput(backbone.embedding, name="tied_output")(backbone.output)
        text = {"tokenizer": tokenizer, "sequence_length": sequence_length, "truncate": truncate}
        super().__init__(backbone, backbone.input, logits, **text, **kwargs)
        self.own_metrics = [mean("loss"), Perplexity(name="perplexity"), mean("accuracy", "up")]

    outputs_are_logits = True

    def standardize_inputs(self, inputs):
        """Returns inputs as the full dict; what is left out is None."""
        return complete_inputs(inputs)

    def check_data(self, x, y=None, sample_weight=None):
        super().check_data(x, y, sample_weight)
        token_weights.check_next_tokens(self, x, y)

    def compute_output_spec(self, inputs, training=None, mask=None):
        """Returns the shape and the dtype of the logits."""
        hidden_states = self.backbone.compute_output_spec(inputs)
        return self.backbone.embedding.compute_output_spec(hidden_states, reverse=True)

    def states_and_outputs(self, inputs, training):
        """Returns the hidden states, and the logits if compiled metrics use them, else None."""
        hidden_states = self.backbone(inputs, training=training)
        if self._compile_metrics is None:
            return hidden_states, None
        return hidden_states, self.backbone.embedding(hidden_states, reverse=True)

    # === Loss and metrics ===

    text_batches = text_inputs.document_batches
    known_targets, check_set = token_weights.known_targets, token_weights.check_set
    count = token_weights.count_tokens
    weigh = token_weights.weigh

    def own_loss(self, x, y, hidden_states, outputs, sample_weight, training):
        """Returns the mean next-token loss of a batch, and updates the own metrics."""
        targets, weights = next_token_targets(**x, targets=y, sample_weight=sample_weight)
        states, embedding = hidden_states, self.backbone.token_embedding
        if states is None:
            states, embedding = outputs, None
        loss_sum, correct = next_token_loss(states, embedding, targets, weights, training)
        count = ops.sum(weights)
        loss = ops.stop_gradient(ops.divide_no_nan(loss_sum, count))
        correct = ops.stop_gradient(ops.divide_no_nan(correct, count))
        added = self.regularization()
        figures = ops.stop_gradient(loss + added), loss, correct
        for metric, figure in zip(self.own_metrics, figures, strict=True):
            metric.update_state(figure, sample_weight=count)
        return ops.divide_no_nan(loss_sum, sum_over_replicas(count)) + added

    def counted(self, x, y, sample_weight, is_real):
        y, weights = next_token_targets(**x, targets=y, sample_weight=sample_weight)
        return y, weights, ops.not_equal(weights, 0)

    generate = generation.generate

    score, perplexity, embed = scoring.score, scoring.perplexity, scoring.embed

    def export_generation_step(self, filepath, format="onnx", verbose=True, **kwargs):
        """Writes one cached step, as `kgpt.convert.export.export_generation_step` does.

        Args:
            filepath: where to write.
            format: as for `export`.
            verbose: bool. Whether to print where it was written.
            **kwargs: what the format takes, as for `export`.

        Raises:
            ValueError: if the backend can't make the format, and for an unsuitable path.
            ImportError: if the converter is not installed.
            OSError: if there is no room or no permission.

        Example:
            import onnxruntime

            lm.export_generation_step("step.onnx", format="onnx")
            step = onnxruntime.InferenceSession("step.onnx")
        """
        from kgpt.convert.export import export_generation_step

        export_generation_step(self, filepath, format, verbose=verbose, **kwargs)
