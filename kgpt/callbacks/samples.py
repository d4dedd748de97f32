"""See samples while training."""

import math

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
    """Prints what the model writes after each epoch.

    Args:
        prompts: str or list of str to continue.
        max_new_tokens: int.
        **kwargs: further arguments of `CausalLM.generate`, such as `sampler`; checked here, before
            the first epoch.

    Raises:
        TypeError: for keywords that `generate` lacks.
        ValueError: for values that it refuses, and for `stream` and `return_log_probabilities`.
    """

    @checked(
        passes_on=generate,
        max_new_tokens=integer(1),
        prompts=_texts,
        stream=_only_text,
        return_log_probabilities=_only_text,
    )
    def __init__(self, prompts, max_new_tokens: int = 50, **kwargs):
        super().__init__()
        arguments.check_options(max_new_tokens=max_new_tokens, **kwargs)
        arguments.read_stops(kwargs.get("stop_token_ids"), None, math.inf)
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.kwargs = kwargs

    def on_epoch_end(self, epoch, logs=None):
        texts = self.model.generate(self.prompts, self.max_new_tokens, **self.kwargs)
        show()
        for text in texts:
            show(text, end="\n\n")
