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
