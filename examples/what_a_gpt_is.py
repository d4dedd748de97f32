"""
What a GPT is
=============

A GPT is a function from tokens to the probabilities of the next token. Here it is opened up: each
part is computed by hand, in the line beside its formula, and compared with the layer of kgpt that
does the same. In the end you have seen every number on the way from a text to its loss.

It takes half a minute on a laptop and needs no download. The papers are Radford et al. 2018 (GPT-1)
and 2019 (GPT-2); the numbers of equations are GPT-1's.
"""

# sphinx_gallery_thumbnail_number = 2

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import keras
import numpy as np

import kgpt

EPOCHS = 40  # over the two lines of text

keras.utils.set_random_seed(0)


def array(tensor):
    """The numbers of a tensor of any backend."""
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def difference(mine, layers):
    return f"largest difference: {np.abs(mine - array(layers)).max():.0e}"


# %%
# Text becomes tokens
# -------------------
#
# A tokenizer cuts text into pieces that it knows, and a token is the number of a piece. Byte pair
# encoding learns the pieces: it begins with single bytes and joins, again and again, the two
# neighbours that occur most often together. Frequent words become one token, rare ones several, and
# no text is ever unknown.

TEXT = """The cat sat on the mat. The dog sat on the rug. The cat saw the dog and the dog saw the
cat. The cat ran to the rug and the dog ran to the mat. """

tokenizer = kgpt.Tokenizer.train([TEXT], vocabulary_size=285)
token_ids = tokenizer.encode("The cat sat on the mat")
print([tokenizer.decode([token_id]) for token_id in token_ids])
print(token_ids)

# %%
# Tokens become vectors
# ---------------------
#
# A model computes with vectors. Each token has one, a row of a table that is learned, and so has
# each position: without the second, the model could not tell "dog saw cat" from "cat saw dog".
#
# .. math:: h_0 = E[\text{token}] + P[\text{position}] \qquad \text{(equation 2)}
#
# The vectors have 32 numbers here and 768 in GPT-1.

LENGTH, WIDTH, HEADS = len(token_ids), 32, 4

embedding = kgpt.layers.TokenAndPositionEmbedding(
    tokenizer.vocabulary_size, max_sequence_length=64, hidden_dim=WIDTH
)
inputs = np.array([token_ids])  # (batch, length): one text
h_0 = embedding(inputs)

E, P = (array(weight) for weight in embedding.weights)
by_hand = E[token_ids] + P[:LENGTH]  # (length, width)
print("E", E.shape, "P", P.shape, "h_0", h_0.shape)
print(difference(by_hand, h_0[0]))

# %%
# Positions look at each other: causal attention
# ----------------------------------------------
#
# So far each position knows its own token alone. Attention lets it take something from the others:
# a *query* says what a position looks for, a *key* what it offers, and the product of the two how
# well they fit. A softmax makes shares of these scores, and the position gets the *values* of the
# others, mixed by these shares:
#
# .. math:: \text{softmax}\left(\frac{Q K^T}{\sqrt{d}}\right) V
#
# The mask makes it causal: a position sees itself and what is before it, never what comes after,
# for that is what it is going to predict. Several heads do this side by side, each with its own
# part of the vectors.

attention = kgpt.layers.CausalSelfAttention(HEADS)
attended, scores = attention(h_0, return_attention_scores=True)

W, b, W_o, b_o = (array(weight) for weight in attention.weights)
x = array(h_0[0])  # (length, width)
may_see = np.tril(np.ones((LENGTH, LENGTH), bool))  # the lower triangle
queries, keys, values = np.split(x @ W + b, 3, axis=-1)  # each (length, width)
heads, shares = [], []
for part in np.split(np.arange(WIDTH), HEADS):  # the columns of each head
    q, k, v = queries[:, part], keys[:, part], values[:, part]
    score = np.where(may_see, q @ k.T / np.sqrt(len(part)), -np.inf)  # (length, length)
    share = np.exp(score) / np.exp(score).sum(-1, keepdims=True)  # each row sums to 1
    heads.append(share @ v)
    shares.append(share)
by_hand = np.concatenate(heads, axis=-1) @ W_o + b_o  # (length, width)

print("attended", attended.shape, "shares", scores.shape)
print(difference(by_hand, attended[0]))
print(difference(np.stack(shares), scores[0]))

# %%
# The triangle is easy to see. The model has learned nothing yet, so a position looks at all that it
# may see about equally: the first at itself alone, the second at two, and so on.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
image = axes.imshow(shares[0], cmap="Blues", vmin=0, vmax=1)
names = [tokenizer.decode([token_id]) for token_id in token_ids]
axes.set_xticks(range(LENGTH), names, rotation=90)
axes.set_yticks(range(LENGTH), names)
axes.set(xlabel="is looking at", ylabel="the token that looks")
_ = figure.colorbar(image, label="share")

# %%
# A block: attention, then a network for each position
# ----------------------------------------------------
#
# After the positions have exchanged something, a small network works on each alone: up to four
# times the width, a GELU, and down again. Both parts *add* what they found to what was there (a
# residual), and layer norm keeps the numbers in a range in which training is stable. GPT-2's block
# is
#
# .. math::
#    n &= h + \text{Attention}(\text{LayerNorm}(h)) \\
#    h &= n + \text{FeedForward}(\text{LayerNorm}(n))
#
# (GPT-1 normalises after the sum: ``norm_first=False``.)

block = kgpt.layers.DecoderBlock(HEADS, intermediate_dim=4 * WIDTH)
out = block(h_0)


def layer_norm(x, layer, epsilon=1e-5):
    gain, shift = (array(weight) for weight in layer.weights)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + epsilon
    ) * gain + shift


def feed_forward(x, layer):
    W_1, b_1, W_2, b_2 = (array(weight) for weight in layer.weights)
    x = x @ W_1 + b_1  # (length, 4 * width)
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # GELU
    return x @ W_2 + b_2


n = x + array(
    block.attention(keras.ops.array(layer_norm(x, block.attention_norm)[None], "float32"))[0]
)
by_hand = n + feed_forward(layer_norm(n, block.feed_forward_norm), block.feed_forward)
print(difference(by_hand, out[0]))

# %%
# Vectors become probabilities
# ----------------------------
#
# After the last block the vectors meet the table of tokens once more: the product of a position's
# vector with each token's row is that token's *logit*, and a softmax makes probabilities of them.
# The same table at both ends means that a token that is likely next has a vector like it.
#
# .. math:: P(\text{next token}) = \text{softmax}(h_n E^T) \qquad \text{(equation 2)}
#
# This is all of GPT: an embedding, a stack of blocks, and the table again.

backbone = kgpt.GPTBackbone(
    tokenizer.vocabulary_size,
    num_layers=2,
    num_heads=HEADS,
    hidden_dim=WIDTH,
    max_sequence_length=64,
    dropout=0.0,
)
lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
logits = lm(inputs)

h = array(backbone(inputs)[0])  # (length, width)
by_hand = h @ array(backbone.token_embedding.embeddings).T  # (length, vocabulary)
print("logits", logits.shape)
print(difference(by_hand, logits[0]))
print(f"{backbone.count_params():,} parameters; GPT-1 has 116,534,784")

# %%
# Training: make the next token likely
# ------------------------------------
#
# The loss is the mean of :math:`-\log P` of the token that really came next: equation 1 of the
# paper, with its sign changed. A model that knows nothing gives each of its tokens the same
# probability, and its loss is the logarithm of their number.

probabilities = np.exp(by_hand) / np.exp(by_hand).sum(-1, keepdims=True)
of_next = probabilities[np.arange(LENGTH - 1), token_ids[1:]]
print(f"loss by hand: {-np.log(of_next).mean():.4f}")
print(f"loss of kgpt: {-lm.score('The cat sat on the mat', reduction='mean'):.4f}")
print(f"knowing nothing: {np.log(tokenizer.vocabulary_size):.4f}")

# %%
# ``fit`` lowers it. The text has two lines, so the model soon knows them by heart.

rows = np.array([tokenizer.encode(TEXT * 2)[start : start + 33] for start in range(40)])
lm.compile(keras.optimizers.Adam(3e-3))
history = lm.fit(rows[:, :-1], rows[:, 1:], batch_size=8, epochs=EPOCHS, verbose=0)
print("loss after epochs 1, 5, 9, ...:", *(f"{loss:.2f}" for loss in history.history["loss"][::4]))
print(lm.generate("The dog", max_new_tokens=20, sampler="greedy", stop="."))

# %%
# Now the heads look at something. The last row is the last *the*, after which the model must say
# what the dog sat on. Some heads look at *dog*: in this text cats sit on mats and dogs on rugs.

figure = kgpt.plot.attention(lm, "The cat sat on the mat. The dog sat on the", layer=1)
figure

# %%
# And the model expects what comes:

kgpt.plot.next_tokens(lm, "The cat sat on the", k=5)

# %%
# Things to try
# -------------
#
# - Change a word late in a text and compare the logits before it: they stay the same, that is what
#   causal means.
# - Leave the position table out (``embedding.weights[1].assign(0 * P)``) and look at what changes.
# - Read the layers: ``kgpt/layers/`` is what you have just computed, in 400 lines of code.
#
# Next: ``examples/pretrain_your_text.py`` trains such a model on a real text.
