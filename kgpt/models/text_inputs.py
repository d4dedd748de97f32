"""Texts straight into `fit`, `evaluate` and `predict`: `kgpt.data` makes batches of them."""

from kgpt.data import tasks
from kgpt.data.columns import check_order
from kgpt.data.completions import documents
from kgpt.data.multi_labels import are_rows, names_in
from kgpt.data.task_batches import TaskBatches
from kgpt.data.text_sources import TextDataset, is_text, rows_of


def batches_of(task, x, y=None, sample_weight=None, batch_size=None, seed=None):
    """Returns the batches that a model reads, made of texts by its tokenizer.

    Args:
        task: the model.
        x: texts, pairs or contexts with choices, as rows or as a tuple of two columns; or a
            `tf.data.Dataset` of batches of strings.
        y: labels or targets, or None.
        sample_weight: weights, or None.
        batch_size: optional int; 32 if None.
        seed: int for a random order in each pass, None for the order of length.
    """
    check_tokenizer(task)
    options = {"sequence_length": task.sequence_length or task.backbone.max_sequence_length}
    options |= {"truncate": task.truncate, "seed": seed}

    def encode(x, y, sample_weight):
        rows = rows_of(x)
        size = batch_size or (len(rows) if is_dataset else 32)
        return task.text_batches(rows, y, batch_size=size, sample_weight=sample_weight, **options)

    is_dataset = hasattr(x, "element_spec")
    return TextDataset(x, encode) if is_dataset else encode(x, y, sample_weight)


def check_tokenizer(task):
    """Raises ValueError if a model has no tokenizer."""
    if task.tokenizer is None:
        name = type(task).__name__
        raise ValueError(
            f"To read text, a model needs its tokenizer. Received: a {name} without one. "
            f"Try {name}(..., tokenizer=tokenizer), or batches of kgpt.data."
        )


def learn_class_names(classifier, x, labels):
    """Sets the names of the classes from the first texts or batches whose labels are names."""
    names = []
    if isinstance(x, TaskBatches):
        names = x.class_names or []
    elif is_text(x) and labels is not None:
        names = sorted(names_in(labels))
    if classifier.class_names is not None or not names:
        return
    if names == [str(number) for number in range(classifier.num_classes)]:  # of range(5)
        return
    if len(names) != classifier.num_classes:
        raise ValueError(
            f"The labels must have as many names as there are classes. Received: {len(names)} "
            f"names, {', '.join(names)[:100]}, with num_classes={classifier.num_classes}. "
            "Try class_names=[...] with all of them, in the model and in the data."
        )
    classifier.class_names = names


def classifier_batches(self, rows, labels, **options):
    """Returns batches of texts or pairs with their classes."""
    options["class_names"] = self.class_names
    if self.class_names is None and labels is not None:
        if names := names_in(labels):
            raise ValueError(
                f"Labels that are names need class_names. Received: {min(names)!r} and a "
                f"{type(self).__name__} without them. Try TextClassifier(..., class_names=[...]), "
                "or fit on lists first."
            )
        if are_rows(labels):  # lists of numbers do not say how many classes there are
            options["class_names"] = range(self.num_classes)
    if isinstance(rows[0], str) or not hasattr(rows[0], "__len__"):  # a missing text has none
        return tasks.classification(rows, labels, self.tokenizer, **options)
    make = tasks.similarity if self.both_orders else tasks.entailment
    return make(*_columns(rows), labels, self.tokenizer, **options)


def regressor_batches(self, rows, targets, **options):
    """Returns batches of texts or pairs with their numbers."""
    options["both_orders"] = self.both_orders
    return tasks.regression(rows, targets, self.tokenizer, **options)


def choice_batches(self, rows, labels, **options):
    """Returns batches of contexts and choices with the numbers of the right ones."""
    options.pop("truncate")
    return tasks.multiple_choice(*_columns(rows), labels, self.tokenizer, **options)


def document_batches(self, rows, targets, **options):
    """Returns batches of documents."""
    if targets is not None:
        raise ValueError(
            "A language model's targets are in the texts. Received: texts and y. Try "
            "kgpt.data.completions(prompts, completions, tokenizer)."
        )
    return documents(rows, self.tokenizer, **options)


def _columns(rows):
    for i, row in enumerate(rows):
        check_order(f"x[{i}]", row)
        if isinstance(row, str) or not hasattr(row, "__len__") or len(row) != 2:
            raise ValueError(
                "Each example must be a pair, or x a tuple of two columns. "
                f"Received: {row!r:.60} at index {i}."
            )
    return zip(*rows, strict=True)
