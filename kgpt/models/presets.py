"""The sizes of GPT models by name, for `GPTBackbone.from_preset`."""

_GPT1 = {
    "vocabulary_size": 40478,
    "num_layers": 12,
    "num_heads": 12,
    "hidden_dim": 768,
    "max_sequence_length": 512,
    "norm_first": False,
}
_GPT2 = {"vocabulary_size": 50257, "max_sequence_length": 1024}

# Architectures only. The first five are the papers'; the last three train on a laptop.
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


def from_preset(cls, name: str, **overrides):
    """Returns a backbone of a known size, with new weights.

    Args:
        cls: the class of the backbone.
        name: one of `kgpt.GPTBackbone.presets()`, such as `"gpt1"` or `"gpt_mini"`.
        **overrides: constructor arguments that differ from the preset's.

    Raises:
        ValueError: if there is no such preset.
        TypeError: for overrides that are no arguments, with the one that was probably meant.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(
            f"Unknown preset. Received: name={name!r}. Try one of {', '.join(PRESETS)}."
        )
    return cls(**{**PRESETS[name], **overrides})


def preset_names(cls) -> list[str]:
    """Returns the names that `from_preset` takes."""
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
