"""The figures behind the pictures are those of transformers, and a browser shows them."""

import base64
import io
import json
import re
import shutil

import keras
import numpy as np
import pytest

import kgpt
from kgpt import plot
from kgpt.plot.reading import read

TEXT = "the cat sat on the mat, didn't it?\nthe café </script> did not.\n"
OPTIONS = {
    "gpt2": {},
    "gpt1": {"norm_first": False},
    "rotary": {"rotary_positions": True, "query_key_norm": True},
}


@pytest.fixture(scope="module")
def tokenizer():
    return kgpt.Tokenizer.train([TEXT] * 3, vocabulary_size=290)


@pytest.fixture(scope="module")
def models(tokenizer):
    rng = np.random.default_rng(0)
    made = {}
    for name, options in OPTIONS.items():
        sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 64}
        backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, **sizes, **options)
        for weight in backbone.weights:
            weight.assign(weight + 0.3 * rng.normal(size=weight.shape))
        made[name] = kgpt.CausalLM(backbone, tokenizer=tokenizer)
    return made


@pytest.fixture
def lm(models):
    return models["gpt2"]


@pytest.mark.parametrize("kind", ["gpt2", "gpt1"])
def test_attention_and_surprise_are_those_of_transformers(models, kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the reference of this test")
    torch = pytest.importorskip("torch", reason="transformers runs on it")
    pytest.importorskip("safetensors", reason="the extra `hub`")
    lm = models[kind]
    kgpt.to_huggingface(lm, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    token_ids = torch.tensor([lm.tokenizer.encode(TEXT)])

    reading = read(lm, TEXT, with_attention=True)

    with torch.no_grad():
        outputs = theirs(token_ids, output_attentions=True)
    expected = np.stack([layer[0].numpy() for layer in outputs.attentions])
    np.testing.assert_allclose(reading.attention, expected, atol=1e-5)
    np.testing.assert_allclose(reading.attention.sum(-1), 1, atol=1e-5)
    nats = torch.log_softmax(outputs.logits[0], -1)
    np.testing.assert_allclose(reading.log_probabilities, nats.numpy(), atol=1e-4)
    bits = -nats[:-1].gather(1, token_ids[0, 1:, None])[:, 0].numpy() / np.log(2)
    np.testing.assert_allclose(reading.bits, bits, atol=1e-4)


def test_the_bits_are_those_of_score(models):
    for lm in models.values():
        scores = lm.score(TEXT, reduction="none")

        np.testing.assert_allclose(read(lm, TEXT).bits, -scores / np.log(2), atol=1e-4)


def test_pieces_join_to_the_text_with_characters_of_several_tokens(lm):
    text = "the cat 猫 sat ☃\n"

    pieces = read(lm, text).pieces

    assert "".join(pieces) == text
    assert "猫" in pieces
    assert "\ufffd" not in pieces


# === Pictures ===


def test_maps_of_attention_stand_by_layer_and_head(lm):
    expected = read(lm, "the cat", with_attention=True).attention

    every = [axes for axes in plot.attention(lm, "the cat").axes if axes.images]
    (one,) = [axes for axes in plot.attention(lm, "the cat", 1, 2).axes if axes.images]

    assert [axes.get_title() for axes in every[:4]] == [
        *(f"layer 0, head {head}" for head in range(3)),
        "layer 1, head 0",
    ]
    np.testing.assert_array_equal(every[4].images[0].get_array(), expected[1, 1])
    np.testing.assert_array_equal(one.images[0].get_array(), expected[1, 2])
    labels = [label.get_text() for label in one.get_yticklabels()]
    assert labels == read(lm, "the cat").pieces


def test_each_word_has_the_colour_of_its_bits(lm):
    figure = plot.surprise(lm, TEXT)

    axes = figure.axes[0]
    bits = read(lm, TEXT).bits
    assert "".join(text.get_text() for text in axes.texts) == TEXT.replace("\n", "↵")
    assert axes.patches[0].get_facecolor()[3] == 0  # nothing is before the first word
    darkest, lightest = (
        axes.patches[1 + i].get_facecolor()[0] for i in (bits.argmax(), bits.argmin())
    )
    assert darkest < lightest


def test_signs_that_cannot_be_seen_have_ones_that_can(lm):
    texts = plot.surprise(lm, "the\tcat\rsat").axes[0].texts

    assert "".join(text.get_text() for text in texts) == "the→cat↵sat"


def test_long_lines_and_wide_characters_are_broken(lm):
    texts = plot.surprise(lm, "猫" * 15 + "x " * 3).axes[0].texts
    many = kgpt.Tokenizer.train(["猫x "], style="characters", special_tokens=())
    backbone = kgpt.GPTBackbone(many.vocabulary_size, 1, 1, 4, max_sequence_length=128)
    broken = plot.surprise(kgpt.CausalLM(backbone, tokenizer=many), "猫" * 60).axes[0].texts

    assert "".join(text.get_text() for text in texts) == "猫" * 15 + "x " * 3
    assert [text.get_position() for text in broken[39:41]] == [(78, 0), (0, -1)]


def test_the_likeliest_next_tokens_have_their_probabilities(lm, tokenizer):
    (axes,) = plot.next_tokens(lm, "the cat", k=4).axes

    logits = keras.ops.convert_to_numpy(lm(np.array([tokenizer.encode("the cat")])))[0, -1]
    expected = np.sort(np.exp(logits) / np.exp(logits).sum())[::-1][:4]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], expected, rtol=1e-4)
    best = tokenizer.decode([int(logits.argmax())])
    assert axes.get_yticklabels()[0].get_text() == f"'{best}'".replace("\n", "↵")


def test_neighbours_are_the_nearest_vectors(lm, tokenizer):
    table = keras.ops.convert_to_numpy(lm.backbone.token_embedding.embeddings)
    (token_id,) = tokenizer.encode("t")
    cosines = (
        table @ table[token_id] / np.linalg.norm(table, axis=1) / np.linalg.norm(table[token_id])
    )
    expected = np.sort(np.delete(cosines, token_id))[::-1][:3]

    by_text, by_id = (plot.embedding_neighbours(lm, what, k=3) for what in ("t", [token_id]))

    for figure in (by_text, by_id):
        widths = [bar.get_width() for bar in figure.axes[0].patches]
        np.testing.assert_allclose(widths, expected, rtol=1e-5)


def test_panels_without_a_token_are_empty(lm):
    figure = plot.embedding_neighbours(lm, list(range(5)), k=2)

    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_neighbours_of_quantized_vectors_are_those_that_the_model_reads(lm, mode):
    lm = keras.models.clone_model(lm)
    lm.backbone.token_embedding.embeddings.assign(
        np.random.default_rng(1).normal(1, 1, lm.backbone.token_embedding.embeddings.shape)
    )
    lm.quantize(mode)
    token_ids = np.arange(lm.backbone.vocabulary_size)
    table = keras.ops.convert_to_numpy(lm.backbone.token_embedding(token_ids))
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    expected = np.sort(np.delete(table @ table[5], 5))[::-1][:3]

    figure = plot.embedding_neighbours(lm, [5], k=3)

    widths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(widths, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: plot.attention(lm, "the", layer=2), r"layer must be an int in \[0, 1\]"),
        (lambda lm: plot.attention(lm, "the", head=3), r"head must be an int in \[0, 2\]"),
        (lambda lm: plot.surprise(lm, ["a", "b"]), "one text. Received: 2 texts"),
        (lambda lm: plot.next_tokens(lm, "the cat " * 99), "from 1 to 64 tokens"),
        (lambda lm: plot.embedding_neighbours(lm, "the mat, it"), "must be one token"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lm, call, message):
    with pytest.raises(ValueError, match=message):
        call(lm)


# === Classes ===


@pytest.mark.parametrize("names", [["a", "b"], ["asyncio", "multiprocessing", "xml", "tkinter"]])
def test_a_confusion_matrix_fits_into_its_picture(names):
    figure = plot.confusion_matrix(names, names)
    figure.savefig(io.BytesIO())

    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= box.x0 < box.x1 <= width
    assert 0 <= box.y0 < box.y1 <= height


@pytest.mark.parametrize(
    ("labels", "predictions", "names"),
    [
        ([0, 0, 1, 2], [0, 1, 1, 1], ["a", "b", "c"]),
        (["a", "a", "b", "c"], ["a", "b", "b", "b"], None),
        (np.array(["a", "a", "b", "c"], "object"), ["a", "b", "b", "b"], None),  # as pandas has
        (np.array(["a", "a", "b", "c"], "object"), [0, 1, 1, 1], ["a", "b", "c"]),
        ([0, 0, 1, 2], np.eye(3)[[0, 1, 1, 1]] - 5, None),
    ],
)
def test_a_confusion_matrix_counts_right_and_predicted_classes(labels, predictions, names):
    axes = plot.confusion_matrix(labels, predictions, names).axes[0]

    counts = [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert [text.get_text() for text in axes.texts] == [str(n) for row in counts for n in row]
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.5, 0.5, 0])


@pytest.mark.parametrize(
    ("labels", "predictions", "names"),
    [
        *(([0], [0, 1], None), ([], [], None), ([0, 3], [0, 1], ["a", "b"]), ([-1], [0], ["a"])),
        *((["a", "b"], [0, 1], None), (["a", "b"], np.eye(2), None), ([0, 1], ["a", "b"], None)),
    ],
)
def test_classes_that_do_not_fit_are_refused(labels, predictions, names):
    with pytest.raises(ValueError, match=r"labels and predictions must be .*Received"):
        plot.confusion_matrix(labels, predictions, names)


# === The page ===


def test_the_page_holds_the_figures_in_one_file(lm, tmp_path):
    path = tmp_path / "new folder" / "page.html"

    plot.surprise(lm, TEXT, html=path)

    html = path.read_text(encoding="utf-8")
    assert html.count("</script>") == 1  # the text's own does not end it
    assert not re.search(r"""(src|href)\s*=|https?://""", html)
    data = json.loads(re.search(r"const data = (\{.*\});", html)[1])
    reading = read(lm, TEXT, with_attention=True)
    assert "".join(data["pieces"]) == TEXT
    weights = np.frombuffer(base64.b64decode(data["attention"]), "<u2") / 65535
    np.testing.assert_allclose(
        weights.reshape(reading.attention.shape), reading.attention, atol=1e-5
    )
    np.testing.assert_allclose(data["bits"][1:], reading.bits, rtol=1e-6)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="drives a browser")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def cells(page, table):
    rows = page.locator(f"#{table} tr").all()
    return [[cell.inner_text() for cell in row.locator("td").all()] for row in rows]


def test_one_points_at_a_word_and_reads_what_it_looks_at(lm, tmp_path, browser):
    plot.attention(lm, TEXT, html=tmp_path / "page.html")
    reading = read(lm, TEXT, with_attention=True)
    word = 4
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.select_option("#layer", "1")
    page.select_option("#head", "2")

    page.locator(".word").nth(word).hover()

    looks = {int(row[0]): float(row[2]) for row in cells(page, "looks")}
    for number, share in looks.items():
        assert share == pytest.approx(reading.attention[1, 2, word, number], abs=1e-4)
    assert max(looks, key=looks.get) == reading.attention[1, 2, word].argmax()
    expected = [float(row[1]) for row in cells(page, "expected")]
    before = np.sort(np.exp(reading.log_probabilities[word - 1]))[::-1]
    np.testing.assert_allclose(expected, before[:5], atol=1e-4)
    assert f"{reading.bits[word - 1]:.2f} bits" in page.inner_text("#about")

    page.select_option("#layer", "all")
    page.select_option("#head", "all")

    mean = reading.attention.mean((0, 1))[word]
    for number, _, share in cells(page, "looks"):
        assert float(share) == pytest.approx(mean[int(number)], abs=1e-4)
