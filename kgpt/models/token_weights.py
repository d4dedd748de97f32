"""Which tokens of a language model's batch count, and how much: methods of `CausalLM`."""

from keras import ops

from kgpt.arguments import check_is_int
from kgpt.data.task_batches import TaskBatches
from kgpt.kernels.platform import check_shape_of
from kgpt.losses import next_token_targets
from kgpt.models.checks import as_array, check_ids, check_one_array
from kgpt.models.inputs import check_shapes, complete_inputs, widened
from kgpt.models.sample_weights import read_weights

# Targets that mark a position as not counted, as in transformers and in nanoGPT.
IGNORED_TARGETS = (-100, -1)


def weigh(self, x, y, sample_weight, class_weight=None):
    """Weighs the tokens of a batch, inside the step: a target that does not count becomes -1."""
    shape = x["token_ids"].shape
    sample_weight = read_weights(sample_weight, shape[:1], (shape[0], 1), shape)
    if sample_weight is not None and len(sample_weight.shape) == 1:
        sample_weight = sample_weight[:, None]
    if y is None:
        return None, sample_weight, 0.0
    y = widened(ops.convert_to_tensor(y))
    y = ops.squeeze(y, axis=-1) if len(y.shape) == 3 and y.shape[-1] in (1, None) else y
    check_shape_of("token_ids", x["token_ids"], **{"next tokens (y)": y})
    check_is_int("next tokens (y)", y)
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
    check_one_array("y", y)
    check_shapes(x, 2)
    token_ids = x.get("token_ids") if isinstance(x, dict) else x
    shape = tuple(getattr(y, "shape", None) or ())
    targets = y[..., 0] if len(shape) == 3 and shape[-1] == 1 else y
    check_shape_of("token_ids", token_ids, **{"next tokens (y)": targets})
    check_ids("next tokens (y)", y, self.backbone.vocabulary_size, ignored=IGNORED_TARGETS)


def check_set(self, x, y):
    """Raises ValueError for arrays of a whole set in which no token counts."""
    targets, ids = as_array(y), as_array(x["token_ids"] if isinstance(x, dict) else x)
    if y is not None or ids is None:
        if targets is not None and not (targets >= 0).any():
            raise ValueError(
                "y must leave something to count. Received: targets that are all to be ignored, "
                f"{' or '.join(map(str, IGNORED_TARGETS))}."
            )
        return
    mask = as_array(x.get("padding_mask")) if isinstance(x, dict) else None
    if (ids.shape[1] if mask is None else (mask != 0).sum(axis=1).max()) < 2:
        raise ValueError(
            "Without y, the next tokens are those of a row itself, which must have two at least. "
            f"Received: token_ids of shape {ids.shape}, with one real token in each row."
        )
