"""Which tokens a model holds to be alike."""

import keras
import numpy as np

from kgpt.arguments import checked
from kgpt.generation import arguments
from kgpt.locks import lock_of
from kgpt.plot.figure import COLOURS, fonts, new_figure, visible_text
from kgpt.plot.reading import pieces_of


@checked
def embedding_neighbours(lm, texts, k: int = 8):
    """Draws, for some tokens, the tokens with the nearest vectors in the embedding.

    Nearness is the cosine between the vectors. A model that has learned from too little text has
    neighbours of no meaning.

    Args:
        lm: a `CausalLM`.
        texts: str or list of str, each the text of one token (in byte-level vocabularies words
            begin with their space: `" film"`), or a list of token ids.
        k: int. How many neighbours of each.

    Returns:
        `matplotlib.figure.Figure`. A notebook shows it; `figure.savefig(path)` writes it.

    Raises:
        ValueError: for a text of several tokens or of none.

    Example:
        kgpt.plot.embedding_neighbours(lm, ["a", "e"], k=3)
    """
    token_ids = _one_token_each(lm, texts)
    with lock_of(lm).held():
        table = _table(lm.backbone.token_embedding)
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    columns = min(4, len(token_ids))
    rows = -(-len(token_ids) // columns)
    figure = new_figure(2.6 * columns, rows * (0.5 + 0.24 * k))
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
    for axes, token_id in zip(grid, token_ids, strict=False):
        cosines = table @ table[token_id]
        nearest = [i for i in np.argsort(-cosines, kind="stable") if i != token_id][:k]
        axes.barh(range(len(nearest)), cosines[nearest], color=COLOURS[0])
        axes.set_yticks(range(len(nearest)), _texts(lm, nearest), family=fonts(), fontsize=8)
        axes.invert_yaxis()
        axes.set_title(_texts(lm, [token_id])[0], family=fonts(), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(token_ids) :]:
        axes.axis("off")
    figure.supxlabel("cosine", fontsize=9)
    return figure


def _table(embedding):
    """Returns the vectors of all tokens, float32: of quantized ones, what the model reads."""
    vectors = embedding.embeddings
    if embedding.quantization_mode is not None:
        vectors = embedding(np.arange(embedding.input_dim, dtype="int32"))
    return keras.ops.convert_to_numpy(keras.ops.cast(vectors, "float32"))


def _one_token_each(lm, texts):
    is_list = isinstance(texts, list | tuple | np.ndarray) and len(texts)
    is_ids = is_list and not isinstance(texts[0], str)
    texts = [[int(token_id)] for token_id in texts] if is_ids else texts
    many, _ = arguments.read_prompts(texts, "texts")
    rows = arguments.encode(many, lm.tokenizer, lm.backbone.vocabulary_size, "texts")
    for text, row in zip(many, rows, strict=True):
        if len(row) != 1:
            raise ValueError(
                f"Each of texts must be one token. Received: {text!r:.60}, which is {len(row)} "
                "tokens. Try a shorter word, or a token id."
            )
    return [row[0] for row in rows]


def _texts(lm, token_ids):
    return [f"'{visible_text(pieces_of(lm.tokenizer, [int(i)])[0])}'" for i in token_ids]
