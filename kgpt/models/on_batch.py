"""`train_on_batch`, `test_on_batch` and `predict_on_batch` of all models, on checked data."""

import keras

from kgpt.arguments import checked
from kgpt.data.filling import fill_batch
from kgpt.models.checks import check_something_counts
from kgpt.models.default_optimizer import compile_if_needed, match_optimizer
from kgpt.models.fit_data import with_arrays
from kgpt.models.sample_weights import set_class_weight


@checked
def train_on_batch(
    self, x, y=None, sample_weight=None, class_weight=None, return_dict: bool = False
):
    """Trains on one batch, as `keras.Model.train_on_batch` does.

    Args:
        self: the model.
        x: token ids, as an array, a list of rows or a dict, as for `fit`; texts and batches of
            `kgpt.data` are for `fit`.
        y: labels, targets or next tokens of the batch, as for `fit`.
        sample_weight: as for `fit`.
        class_weight: as for `fit`.
        return_dict: bool. Whether to return a dict by name in place of a list.

    Returns:
        list of floats, what `metrics_names` names, as means over the batch; a float where that is
        the loss alone; with `return_dict` a dict of them.

    Raises:
        ValueError: for data that the model can't learn from, as `fit`.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        lm.train_on_batch(token_ids, return_dict=True)
    """
    compile_if_needed(self)
    x, y, sample_weight = with_arrays(x, y, sample_weight)
    self.check_data(x, y, sample_weight)
    check_something_counts(x, sample_weight)
    match_optimizer(self)
    set_class_weight(self, class_weight)
    batch = fill_batch((x, y, sample_weight))
    return keras.Model.train_on_batch(self, *batch, return_dict=return_dict)


@checked
def test_on_batch(self, x, y=None, sample_weight=None, return_dict: bool = False):  # noqa: PT028
    """Evaluates one batch, as `keras.Model.test_on_batch` does.

    Args:
        self: the model.
        x: as for `train_on_batch`.
        y: as for `train_on_batch`.
        sample_weight: as for `train_on_batch`.
        return_dict: bool. Whether to return a dict by name in place of a list.

    Returns:
        list of floats, a float or a dict, as from `train_on_batch`.

    Raises:
        ValueError: for data that the model can't be run on, as `evaluate`.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        lm.test_on_batch(token_ids, return_dict=True)
    """
    compile_if_needed(self)
    x, y, sample_weight = with_arrays(x, y, sample_weight)
    self.check_data(x, y, sample_weight)
    batch = fill_batch((x, y, sample_weight))
    return keras.Model.test_on_batch(self, *batch, return_dict=return_dict)


@checked
def predict_on_batch(self, x):
    """Returns the outputs for one batch, as `keras.Model.predict_on_batch` does.

    Args:
        self: the model.
        x: as for `train_on_batch`.

    Returns:
        numpy array: what the model's docstring says under "Returns".

    Raises:
        ValueError: for data that the model can't be run on, as `predict`.
        RuntimeError: if another thread is in a `fit` of a model over the same backbone.

    Example:
        logits = lm.predict_on_batch(token_ids)
    """
    x, _, _ = with_arrays(x)
    self.check_data(x)
    return keras.Model.predict_on_batch(self, x)
