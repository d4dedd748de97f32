"""The sizes of GPT models by name, for `GPTBackbone.from_preset`."""

import numbers

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


def checked_sizes(options):
    """Returns the sizes among the options as plain ints, or raises ValueError."""
    names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    sizes = {name: options[name] for name in (*names, "max_sequence_length")}
    if sizes["intermediate_dim"] is None:
        sizes["intermediate_dim"] = 4 * sizes["hidden_dim"]
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name} must be an int of at least 1. Received: {name}={size!r}.")
    if sizes["hidden_dim"] % sizes["num_heads"]:
        divisors = [d for d in range(1, 129) if sizes["hidden_dim"] % d == 0]
        nearest = min(divisors, key=lambda d: abs(d - sizes["num_heads"]))
        raise ValueError(
            f"num_heads must divide hidden_dim. Received: num_heads={sizes['num_heads']}, "
            f"hidden_dim={sizes['hidden_dim']}. Try num_heads={nearest}."
        )
    return {name: int(size) for name, size in sizes.items()}
