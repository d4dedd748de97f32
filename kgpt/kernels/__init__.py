"""The operations of a GPT: one a file, its plain formula `reference` first, then its fast paths.

Notation, here and in `kgpt.layers`: batch, length (positions), heads, head_dim (width of a head),
hidden_dim (= heads x head_dim), vocabulary.
"""
