import hashlib
import re
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kgpt
from kgpt.convert.model_card import model_card
from kgpt.models import MultipleChoice, TextClassifier, TextRegressor

yaml = pytest.importorskip("yaml", reason="PyYAML is the reference for the front matter")
hub = pytest.importorskip("huggingface_hub", reason="the extra `hub`")


@pytest.fixture(scope="module")
def lm():
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 12, "max_sequence_length": 11}
    return kgpt.CausalLM(kgpt.GPTBackbone(1053, **sizes), name="small")


def front_matter(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_a_card_says_what_the_model_is(lm, tmp_path):
    model_card(lm, tmp_path, tokens_seen=8_000_000)

    text = (tmp_path / "README.md").read_text()
    assert "# small" in text
    assert f"| parameters | {lm.count_params():,} |" in text
    assert "| vocabulary | 1,053 tokens |" in text
    assert "| tokens seen | 8,000,000 |" in text
    assert front_matter(text) == {
        "library_name": "keras",
        "pipeline_tag": "text-generation",
        "tags": ["gpt", "keras", "kgpt"],
    }


def test_a_card_says_that_weights_are_quantized(lm, tmp_path):
    lm = keras.models.clone_model(lm)
    lm.quantize("int8")

    model_card(lm, tmp_path)

    text = (tmp_path / "README.md").read_text()
    assert "| dtype of the weights | quantized to int8; others float32 |" in text


def test_what_is_not_known_is_left_out(lm, tmp_path):
    model_card(lm.backbone, tmp_path / "card.md")

    text = (tmp_path / "card.md").read_text()
    for word in ("None", "tokens seen", "Evaluation", "sha256", "optimizer", "model-index"):
        assert word not in text


@pytest.mark.parametrize(
    ("make", "tag"),
    [
        (lambda backbone: TextClassifier(backbone, num_classes=2), "text-classification"),
        (TextRegressor, "text-classification"),
        (MultipleChoice, "multiple-choice"),
        (lambda backbone: backbone, "feature-extraction"),
    ],
)
def test_each_head_has_its_task_on_the_hub(lm, make, tag, tmp_path):
    model_card(make(lm.backbone), tmp_path)

    assert front_matter((tmp_path / "README.md").read_text())["pipeline_tag"] == tag


def test_a_path_without_a_suffix_is_a_folder_that_is_made(lm, tmp_path):
    kgpt.model_card(lm, tmp_path / "my-gpt")
    kgpt.model_card(lm, tmp_path / "card.md")

    written = (tmp_path / "my-gpt" / "README.md").read_text(encoding="utf-8")
    assert written == (tmp_path / "card.md").read_text(encoding="utf-8")


def test_data_are_named_with_their_hashes_and_tokens(lm, tmp_path):
    np.save(tmp_path / "train.npy", np.arange(1234, dtype="uint16"))
    (tmp_path / "notes.txt").write_text("abc")

    model_card(lm, tmp_path, training_data=[tmp_path / "train.npy", tmp_path / "notes.txt"])

    text = (tmp_path / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "train.npy").read_bytes()).hexdigest()
    assert re.search(rf"\| train\.npy \| .* bytes, 1,234 tokens \| {digest} \|", text)
    assert f"| notes.txt | 3 bytes | {hashlib.sha256(b'abc').hexdigest()} |" in text
    assert str(tmp_path) not in text


def test_figures_stand_in_the_text_and_in_the_front_matter(lm, tmp_path):
    figures = {"loss": np.float32(1.5), "perplexity": 4.4816891}

    model_card(lm, tmp_path, evaluation=figures, evaluation_data="my corpus", name="my gpt")

    text = (tmp_path / "README.md").read_text()
    assert "## Evaluation on my corpus" in text
    assert "| perplexity | 4.48169 |" in text
    [index] = front_matter(text)["model-index"]
    assert index["name"] == "my gpt"
    [result] = index["results"]
    assert result["dataset"]["name"] == "my corpus"
    assert result["metrics"][0] == {"type": "loss", "value": 1.5}


def test_the_hubs_own_reader_takes_the_card(lm, tmp_path):
    name = 'my: "gpt"\n---\n# {x}'

    model_card(lm, tmp_path, evaluation={"loss": 1.5}, name=name, language="en", license="mit")

    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "keras"
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", 1.5)
    assert card.data.model_name == 'my: "gpt" --- # {x}'


@settings(deadline=None, max_examples=50)
@given(st.text(), st.text(), st.text())
def test_any_text_survives_the_front_matter_in_one_line(lm, tmp_path_factory, name, data, key):
    if any("\ud800" <= character <= "\udfff" for character in name + data + key):
        return
    path = tmp_path_factory.getbasetemp() / "card.md"

    model_card(lm, path, evaluation={key: 1.5}, evaluation_data=data, name=name)

    [index] = front_matter(path.read_text(encoding="utf-8"))["model-index"]
    name, data, key = (" ".join(text.split()) for text in (name, data, key))
    assert index["name"] == (name or "small")
    [result] = index["results"]
    assert result["dataset"] == {"name": data or "unnamed", "type": data or "unnamed"}
    assert result["metrics"] == [{"type": key, "value": 1.5}]


def test_the_hubs_package_is_named_where_it_is_missing(lm, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(ImportError, match="pip install safetensors huggingface_hub"):
        model_card(lm, tmp_path)


def test_signs_of_markdown_in_names_are_text(lm, tmp_path):
    model_card(lm, tmp_path, evaluation={"a|b": 1.0}, evaluation_data="<b>\n# x", name="*n*")

    text = (tmp_path / "README.md").read_text()
    assert r"| a\|b | 1 |" in text
    assert r"## Evaluation on &lt;b> \# x" in text
    assert r"# \*n\*" in text


def test_an_optimizers_updates_are_counted(tmp_path):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(13, 1, 1, 4, max_sequence_length=8))
    lm.compile(keras.optimizers.SGD(0.1))
    lm.fit(np.ones((6, 5), "int32"), batch_size=2, epochs=2, verbose=0)

    model_card(lm, tmp_path)

    assert "| updates | 6 |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens_seen": -1}, "Received: tokens_seen=-1"),
        ({"evaluation": {"loss": float("nan")}}, "finite numbers.*nan"),
        ({"evaluation": [3.2, 24.5]}, "evaluation must be a dict of figures"),  # of evaluate()
        ({"evaluation": {"loss": [3.2]}}, "evaluation must be a dict of figures"),  # of fit()
    ],
)
def test_figures_that_can_not_be_are_refused(lm, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        model_card(lm, tmp_path, **options)

    assert not any(tmp_path.iterdir())


def test_an_existing_card_stays_if_a_file_is_missing(lm, tmp_path):
    (tmp_path / "README.md").write_text("as it was")

    with pytest.raises(FileNotFoundError):
        model_card(lm, tmp_path, training_data=tmp_path / "nowhere.npy")

    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]
