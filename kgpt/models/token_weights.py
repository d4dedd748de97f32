"""Which tokens of a language model's batch count, and how much: methods of `CausalLM`."""

from keras import ops

from kgpt.data.task_batches import TaskBatches
from kgpt.losses import next_token_targets
from kgpt.models.checks import check_ids
from kgpt.models.inputs import complete_inputs, widened
from kgpt.models.sample_weights import check_weight_shape

# Targets that mark a position as not counted, as in transformers and in nanoGPT.
IGNORED_TARGETS = (-100, -1)


def weigh(self, x, y, sample_weight, class_weight=None):
    """Weighs the tokens of a batch, inside the step: a target that does not count becomes -1."""
    shape = x["token_ids"].shape
    check_weight_shape(sample_weight, shape[:1], (shape[0], 1), shape)
    if sample_weight is not None:
        sample_weight = ops.cast(sample_weight, "float32")
        if len(sample_weight.shape) == 1:
            sample_weight = sample_weight[:, None]
    if y is None:
        return None, sample_weight, 0.0
    y = widened(ops.convert_to_tensor(y))
    y = ops.squeeze(y, axis=-1) if len(y.shape) == 3 else y
    is_token = ops.logical_and(y >= 0, y < self.backbone.vocabulary_size)
    is_ignored = ops.logical_or(*(ops.equal(y, target) for target in IGNORED_TARGETS))
    wrong = ops.sum(1.0 - ops.cast(ops.logical_or(is_token, is_ignored), "float32"))
    return ops.where(is_token, y, -1), sample_weight, wrong


def known_targets(self, x):
    """Returns the next tokens of arrays of inputs, -100 where there is none to count."""
    y, weights = next_token_targets(**complete_inputs(x))
    return ops.convert_to_numpy(ops.where(weights > 0, y, IGNORED_TARGETS[0]))


def count_tokens(self, x, y, sample_weight):
    """Returns what the loss of a batch is a mean over: the sum of its tokens' weights."""
    x = complete_inputs(x)
    y, sample_weight, _ = self.weigh(x, y, sample_weight)
    return ops.sum(next_token_targets(**x, targets=y, sample_weight=sample_weight)[1])


def check_next_tokens(self, x, y):
    """Raises ValueError for labels, and for targets that are neither tokens nor to be ignored."""
    if isinstance(x, TaskBatches) and (x.labels is not None or x.sequences_per_example > 1):
        raise ValueError(
            f"A {type(self).__name__} learns the next token. Received: {x!r:.80}, labelled batches "
            "for a TextClassifier, TextRegressor or MultipleChoice. Try kgpt.data.documents or "
            "kgpt.data.completions."
        )
    check_ids("next tokens (y)", y, self.backbone.vocabulary_size, ignored=IGNORED_TARGETS)
