"""The sizes of GPT models by name, for `GPTBackbone.from_preset`."""

from typing import TypeVar

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
def from_preset(cls: type[Model], name, load_weights: bool = True, **overrides) -> Model:
    """Returns a model of a known size, of a folder, or of the hub, with weights and tokenizer.

    Args:
        cls: the class of the model.
        name: a preset, one of `presets()`: `"gpt1"`, `"gpt2"`, `"gpt2_medium"`, `"gpt2_large"` and
            `"gpt2_xl"` bring OpenAI's weights and tokenizer, downloaded once; `"gpt_nano"`,
            `"gpt_micro"` and `"gpt_mini"` are sizes for laptops, without weights. Or a folder, as
            `save_to_preset` or transformers write it; or a handle on the hub,
            `"hf://organization/name"`.
            A head over the files of a language model is new; the start, delimiter and classify
            tokens that it needs are added where the tokenizer lacks them.
        load_weights: bool. False gives a fresh body of that size, and no tokenizer.
        **overrides: arguments of the model, such as `num_classes` of a `TextClassifier`, and of
            the backbone. Those that change a weight's shape need `load_weights=False`. `dropout`
            is the head's, where the model has a head with one.

    Raises:
        ValueError: for an unknown name, and for overrides that the weights do not allow.
        TypeError: for overrides that are no arguments, with the one that was probably meant.
        FileNotFoundError: if the hub can't be reached and its cache has not the files.

    Example:
        backbone = kgpt.GPTBackbone.from_preset("gpt_nano", load_weights=False)
    """
    from kgpt.convert import presets

    return presets.load(cls, name, load_weights, overrides)


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
    """
    from kgpt.convert import presets

    return presets.push(self, repo_id, private, token, card)


def preset_names(cls) -> list[str]:
    """Returns the names of the sizes that `from_preset` takes."""
    return list(PRESETS)


def check_heads(num_heads: int, hidden_dim: int):
    """Raises ValueError unless the heads divide the width, with a number of heads that does."""
    if hidden_dim % num_heads:
        divisors = [d for d in range(1, 129) if hidden_dim % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - num_heads))
        raise ValueError(
            f"num_heads must divide hidden_dim. Received: num_heads={num_heads}, "
            f"hidden_dim={hidden_dim}. Try num_heads={nearest}."
        )
