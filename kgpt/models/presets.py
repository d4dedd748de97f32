"""The sizes of GPT models by name, for `GPTBackbone.from_preset`."""

import os
from typing import TypeVar

import keras

Model = TypeVar("Model")
_GPT1 = {
    "vocabulary_size": 40478,
    "num_layers": 12,
    "num_heads": 12,
    "hidden_dim": 768,
    "max_sequence_length": 512,
    "norm_first": False,
}
_GPT2 = {"vocabulary_size": 50257, "max_sequence_length": 1024}

# The first five are the papers'; the last three train on a laptop.
PRESETS = {
    "gpt1": _GPT1,
    "gpt2": {**_GPT2, "num_layers": 12, "num_heads": 12, "hidden_dim": 768},
    "gpt2_medium": {**_GPT2, "num_layers": 24, "num_heads": 16, "hidden_dim": 1024},
    "gpt2_large": {**_GPT2, "num_layers": 36, "num_heads": 20, "hidden_dim": 1280},
    "gpt2_xl": {**_GPT2, "num_layers": 48, "num_heads": 25, "hidden_dim": 1600},
    "gpt_nano": {
        "vocabulary_size": 4096,
        "num_layers": 3,
        "num_heads": 3,
        "hidden_dim": 96,
        "max_sequence_length": 128,
    },
    "gpt_micro": {
        "vocabulary_size": 8192,
        "num_layers": 4,
        "num_heads": 4,
        "hidden_dim": 192,
        "max_sequence_length": 256,
    },
    "gpt_mini": {
        "vocabulary_size": 8192,
        "num_layers": 6,
        "num_heads": 6,
        "hidden_dim": 384,
        "max_sequence_length": 256,
    },
}


# Where OpenAI's weights and tokenizers are.
HUB = {
    "gpt1": "openai-community/openai-gpt",
    "gpt2": "openai-community/gpt2",
    "gpt2_medium": "openai-community/gpt2-medium",
    "gpt2_large": "openai-community/gpt2-large",
    "gpt2_xl": "openai-community/gpt2-xl",
}


@classmethod
def from_preset(cls: type[Model], preset=None, load_weights: bool = True, **overrides) -> Model:
    """Returns a model of a known size, of a folder, or of the hub, with weights and tokenizer.

    Args:
        cls: the class of the model.
        preset: a name, one of `presets()`: `"gpt1"`, `"gpt2"`, `"gpt2_medium"`, `"gpt2_large"` and
            `"gpt2_xl"` bring OpenAI's weights and tokenizer, downloaded once; `"gpt_nano"`,
            `"gpt_micro"` and `"gpt_mini"` are sizes for laptops, without weights. Or a folder, as
            `save_to_preset` or transformers write it; or a handle on the hub,
            `"hf://organization/name"`.
            A head over the files of a language model, or of a head of another kind or number of
            outputs, is new; the start, delimiter and classify tokens that it needs are added where
            the tokenizer lacks them.
        load_weights: bool. False gives a fresh body of that size, a head of the sizes that a folder
            of its kind has, and no tokenizer.
        **overrides: arguments of the model, such as its `name` or `num_classes` of a
            `TextClassifier`, and of the backbone. Those that change a weight's shape need
            `load_weights=False`. `dropout` is the head's, where the model has a head with one.

    Returns:
        A model of the class.

    Raises:
        ValueError: for an unknown name, and for overrides that the weights do not allow.
        TypeError: for overrides that are no arguments, with the one that was probably meant.
        FileNotFoundError: if the hub can't be reached and its cache has not the files.

    Example:
        backbone = kgpt.GPTBackbone.from_preset("gpt_nano", load_weights=False)
    """
    from kgpt.convert import presets

    return presets.load(cls, preset, load_weights, overrides)


def save_to_preset(self, folder, **card) -> None:
    """Writes the model as a folder that `from_preset` opens, with its tokenizer and a card.

    The files are transformers', where it has the model; else Keras's, with the tokenizer. A
    manifest has their hashes; the card, `README.md`, is not in it and may be edited.

    Args:
        self: the model.
        folder: where to write; must not exist, or be empty.
        **card: what the card says of the model, as for `kgpt.model_card`.

    Raises:
        ValueError: for a folder that is in use.

    Example:
        lm.save_to_preset("my-model")
        lm = kgpt.CausalLM.from_preset("my-model")
    """
    from kgpt.convert import presets

    presets.save(self, folder, **card)


def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None, **card) -> str:
    """Uploads the model to Hugging Face's hub, with its tokenizer and a card.

    Args:
        self: the model.
        repo_id: the repository, `"user/name"`; made if need be.
        private: bool. Whether a new repository is private.
        token: optional access token; by default the one of `hf auth login`.
        **card: what the card says of the model, as for `kgpt.model_card`.

    Returns:
        The repository's address.

    Raises:
        ImportError: if huggingface_hub is not installed.
        TypeError: for words that `kgpt.model_card` lacks, before anything is uploaded.
        ValueError: for a `private` that is no bool, and a repository that is no str.

    Example:
        lm.push_to_hub("user/my-model", private=True, language="en")
    """
    from kgpt.convert import presets

    return presets.push(self, repo_id, private, token, card)


def preset_names(cls) -> list[str]:
    """Returns the names of the sizes that `from_preset` takes.

    Args:
        cls: the class of the model.

    Returns:
        list of str.

    Example:
        kgpt.GPTBackbone.presets()
    """
    return list(PRESETS)


# === Sizes ===

SIZES = (
    *("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "max_sequence_length"),
    "intermediate_dim",
)
_MOST_PARAMETERS = 10**12


def num_parameters(
    vocabulary_size: int,
    num_layers: int,
    hidden_dim: int,
    max_sequence_length: int = 1024,
    intermediate_dim: int | None = None,
    rotary_positions: bool = False,
    **_,
) -> int:
    """Returns the number of weights of a body without its last norm, of a `GPTBackbone`'s sizes."""
    inner = intermediate_dim or 4 * hidden_dim
    block = 4 * hidden_dim**2 + 2 * hidden_dim * inner + 9 * hidden_dim + inner
    num_positions = 0 if rotary_positions else max_sequence_length
    return (vocabulary_size + num_positions) * hidden_dim + num_layers * block


def check_sizes(options: dict):
    """Raises ValueError unless the heads divide the width, and for sizes that nobody means."""
    num_heads, hidden_dim = options["num_heads"], options["hidden_dim"]
    if num_parameters(**options) > _MOST_PARAMETERS:
        _refuse_sizes(options, f"A model has at most {_MOST_PARAMETERS:,} weights.")
    if hidden_dim % num_heads:
        divisors = [d for d in range(1, 129) if hidden_dim % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - num_heads))
        raise ValueError(
            f"num_heads must divide hidden_dim. Received: num_heads={num_heads}, "
            f"hidden_dim={hidden_dim}. Try num_heads={nearest}."
        )


def check_memory(config: dict):
    """Raises ValueError for a config from a file whose model can't be in this machine's memory."""
    known = {name: config[name] for name in SIZES if isinstance(config.get(name), int)}
    if not {"vocabulary_size", "num_layers", "num_heads", "hidden_dim"} <= known.keys():
        return  # which the constructor refuses
    memory = _bytes_of_memory()
    least = 2 * num_parameters(**{**config, **known})  # in 16 bits
    if memory is not None and least > memory and keras.distribution.distribution() is None:
        _refuse_sizes(known, f"This machine has {memory:,} bytes of memory.")


def _refuse_sizes(options, limit):
    sizes = ", ".join(f"{name}={options[name]}" for name in SIZES if options.get(name))
    raise ValueError(
        f"{limit} Received: {sizes}, or {num_parameters(**options):,} weights. Try smaller sizes; "
        "if they are from a file, it is damaged or not for this machine."
    )


def _bytes_of_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
