"""See samples while training."""

import math
import os
import time
from pathlib import Path

import keras

from kgpt.arguments import checked, flag, integer, refuse
from kgpt.console import show
from kgpt.generation import arguments, generate


def _texts(name, value):
    """Returns prompts as a list of str."""
    texts, _ = arguments.read_prompts(value)
    return texts if all(isinstance(text, str) for text in texts) else refuse(name, value, "texts")


def _only_text(name, value):
    return refuse(name, value, "False: samples are printed whole") if flag(name, value) else value


class GenerateSamples(keras.callbacks.Callback):
    """Prints what the model writes after each epoch, and writes it to TensorBoard if you like.

    Args:
        prompts: str or list of str to continue.
        max_new_tokens: int.
        log_dir: optional. The folder of `keras.callbacks.TensorBoard`; samples go into `samples/`
            in it, and TensorBoard shows them by epoch on its page "Text". Needs tensorboard, on any
            backend.
        **kwargs: further arguments of `CausalLM.generate`, such as `sampler`; checked here, before
            the first epoch.

    Raises:
        TypeError: for keywords that `generate` lacks.
        ValueError: for values that it refuses, and for `stream` and `return_log_probabilities`;
            when training begins, for a model that writes no text, or not so much.
        ImportError: for a `log_dir` without tensorboard.

    Example:
        samples = kgpt.callbacks.GenerateSamples(["Hello", "The"], max_new_tokens=5, seed=0)
        lm.fit(train, epochs=2, callbacks=[samples])
    """

    @checked(
        passes_on=generate,
        max_new_tokens=integer(1),
        prompts=_texts,
        stream=_only_text,
        return_log_probabilities=_only_text,
    )
    def __init__(
        self,
        prompts,
        max_new_tokens: int = 50,
        *,
        log_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        super().__init__()
        arguments.read_options(max_new_tokens=max_new_tokens, **kwargs)
        arguments.read_stops(kwargs.get("stop_token_ids"), None, math.inf)
        if log_dir is not None:
            _tensorboard()
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.log_dir = log_dir
        self.kwargs = kwargs

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "generate"):
            raise ValueError(
                "Samples need a model that writes, a kgpt.CausalLM. Received: a "
                f"{type(self.model).__name__}."
            )
        ends = ("min_new_tokens", "stop_token_ids", "stop", "sliding_window")
        ends = {name: self.kwargs[name] for name in ends if name in self.kwargs}
        arguments.read_call(self.model, self.prompts, self.max_new_tokens, **ends)

    def on_epoch_end(self, epoch, logs=None):
        texts = self.model.generate(self.prompts, self.max_new_tokens, **self.kwargs)
        texts = keras.tree.flatten(texts)  # several for a prompt are lists
        show()
        for text in texts:
            show(text, end="\n\n")
        if self.log_dir is not None:
            _write(Path(self.log_dir) / "samples", texts, epoch)


def _write(folder, texts, epoch):
    """Adds the samples of an epoch to the events in a folder."""
    text_pb, event_file_writer, event_pb2 = _tensorboard()
    # TensorBoard reads Markdown; indented, a text is shown as it is.
    texts = ["    " + text.replace("\n", "\n    ") for text in texts]
    event = event_pb2.Event(wall_time=time.time(), step=epoch, summary=text_pb("samples", texts))
    writer = event_file_writer.EventFileWriter(str(folder))
    writer.add_event(event)
    writer.close()


def _tensorboard():
    """Returns what writes events; it is TensorBoard's own and asks for no backend."""
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer import event_file_writer
    except ImportError as error:
        raise ImportError(
            "log_dir= writes for TensorBoard, which is not installed. Try: pip install tensorboard"
        ) from error
    return text_pb, event_file_writer, event_pb2
