"""Presets: names, folders and handles on the hub -> models with weights, and back."""

import shutil

import keras
import numpy as np
import pytest
from labelled import TOKENIZER
from oracles import randomize

import kgpt

pytest.importorskip("safetensors", reason="presets with weights need safetensors")
hub = pytest.importorskip("huggingface_hub", reason="presets on the hub need huggingface_hub")

SIZES = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "max_sequence_length": 16}
IDS = np.array([[1, 2, 3]])


def make_lm(**options):
    keras.utils.set_random_seed(0)
    backbone = randomize(kgpt.GPTBackbone(TOKENIZER.vocabulary_size, **SIZES, **options))
    return kgpt.CausalLM(backbone, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "model"
    make_lm().save_to_preset(path)
    return path


@pytest.fixture
def served(folder, monkeypatch):
    """The hub's download, served from a folder; what was asked for."""
    asked = []

    def snapshot_download(name, allow_patterns, **options):
        asked.append((name, "model.safetensors" in allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def outputs(model):
    return keras.ops.convert_to_numpy(model(IDS))


class TestNames:
    def test_a_published_size_brings_its_weights_and_tokenizer(self, served):
        lm = kgpt.CausalLM.from_preset("gpt2_medium")

        assert served == [("openai-community/gpt2-medium", True)]
        np.testing.assert_allclose(outputs(lm), outputs(make_lm()), atol=1e-6)
        assert lm.tokenizer.encode("abc") == TOKENIZER.encode("abc")

    @pytest.mark.parametrize("name", ["gpt2", "hf://some/repository"])
    def test_backbones_and_heads_have_the_same_body(self, served, name):
        expected = outputs(make_lm().backbone)

        backbone = kgpt.GPTBackbone.from_preset(name)
        classifier = kgpt.TextClassifier.from_preset(name, num_classes=3, dropout=0.0)

        np.testing.assert_allclose(outputs(backbone), expected, atol=1e-6)
        np.testing.assert_allclose(outputs(classifier.backbone), expected, atol=1e-6)
        assert classifier.num_classes == 3
        assert classifier.tokenizer is not None

    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_a_fresh_head_has_the_tokens_that_it_needs(self, tmp_path, files):
        tokenizer = kgpt.Tokenizer.train(["a fine film, a dull one"], 258, special_tokens=())
        options = {} if files == "transformers" else {"query_key_norm": True}
        backbone = randomize(kgpt.GPTBackbone(tokenizer.vocabulary_size, **SIZES, **options))
        kgpt.CausalLM(backbone, tokenizer=tokenizer).save_to_preset(tmp_path / "lm")

        classifier = kgpt.TextClassifier.from_preset(tmp_path / "lm", num_classes=2, dropout=0.0)

        expected = tokenizer.with_special_tokens().vocabulary_size
        assert classifier.backbone.vocabulary_size == expected > tokenizer.vocabulary_size
        np.testing.assert_allclose(outputs(classifier.backbone), outputs(backbone), atol=1e-6)
        assert classifier.predict(["a fine film"], verbose=0).shape == (1, 2)

    def test_the_activation_of_a_head_is_refused(self, served):
        for options in ({}, {"load_weights": False}):
            with pytest.raises(TypeError, match=r"no argument 'activation'.*softmax\(logits\)"):
                kgpt.TextClassifier.from_preset("gpt2", activation="softmax", **options)

    def test_a_folder_of_the_name_is_not_taken_for_the_repository(
        self, served, monkeypatch, tmp_path
    ):
        monkeypatch.chdir(tmp_path)
        for name in ("openai-community/gpt2", "some/repository"):
            (tmp_path / name).mkdir(parents=True)

        for name in ("gpt2", "hf://some/repository"):
            lm = kgpt.CausalLM.from_preset(name)
            np.testing.assert_allclose(outputs(lm), outputs(make_lm()), atol=1e-6)

    def test_without_weights_nothing_is_downloaded(self, served):
        backbone = kgpt.GPTBackbone.from_preset("gpt_nano", load_weights=False, num_layers=1)
        lm = kgpt.CausalLM.from_preset("gpt_nano", load_weights=False, num_layers=1)

        assert served == []
        assert backbone.num_layers == lm.backbone.num_layers == 1
        assert lm.tokenizer is None

    def test_a_size_without_published_weights_says_so(self):
        with pytest.raises(ValueError, match=r"no published weights for 'gpt_mini'.*load_weights"):
            kgpt.CausalLM.from_preset("gpt_mini")

    def test_an_override_of_a_weights_shape_needs_a_fresh_body(self, served):
        with pytest.raises(ValueError, match="num_layers is given by the weights"):
            kgpt.CausalLM.from_preset("gpt2", num_layers=3)
        assert kgpt.GPTBackbone.from_preset("gpt2", dropout=0.3).dropout == 0.3

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("gpt2_base_en", "Did you mean 'gpt2'"),
            ("gpt2-medium", "Did you mean 'gpt2_medium'"),
            ("some/repository", "Did you mean 'hf://some/repository'"),
            ("llama", "hf://organization/name"),
        ],
    )
    def test_an_unknown_name_is_answered_with_the_nearest(self, name, hint):
        with pytest.raises(ValueError, match=hint):
            kgpt.CausalLM.from_preset(name)

    @pytest.mark.parametrize("model", [kgpt.GPTBackbone, kgpt.CausalLM, kgpt.TextRegressor])
    def test_a_model_may_have_a_name_of_its_own(self, folder, model):
        assert model.from_preset(preset=folder, name="mine").name == "mine"
        fresh = model.from_preset("gpt_nano", load_weights=False, num_layers=1, name="mine")
        assert fresh.name == "mine"
        with pytest.raises(ValueError, match=r"name is what the model is called: try preset="):
            model.from_preset(name="gpt2")

    def test_a_misspelt_override_is_answered_with_the_nearest(self):
        with pytest.raises(TypeError, match="num_classes"):
            kgpt.TextClassifier.from_preset("gpt2", num_labels=3)

    def test_without_the_network_one_line_says_what_to_do(self, monkeypatch):
        def offline(*args, **kwargs):
            raise hub.errors.LocalEntryNotFoundError("a long story")

        monkeypatch.setattr(hub, "snapshot_download", offline)

        for read in (kgpt.CausalLM.from_preset, kgpt.from_huggingface):
            with pytest.raises(FileNotFoundError, match=r"Bring the folder with conf") as error:
                read("gpt2")
            assert "\n" not in str(error.value)

    def test_what_is_no_handle_is_refused_under_the_arguments_name(self):
        with pytest.raises(FileNotFoundError, match=r'preset must be .* such as "hf://openai-co'):
            kgpt.CausalLM.from_preset("hf://a/b/c")
        with pytest.raises(TypeError, match=r"argument 'revision'. kgpt.from_huggingface has it"):
            kgpt.CausalLM.from_preset("gpt2", revision="main")


class TestFolders:
    def test_a_language_model_comes_back_with_its_card(self, folder):
        lm = kgpt.CausalLM.from_preset(folder)

        np.testing.assert_allclose(outputs(lm), outputs(make_lm()), atol=1e-6)
        assert (folder / "README.md").exists()
        assert (folder / "config.json").exists()

    def test_a_fresh_body_of_its_size(self, folder):
        backbone = kgpt.GPTBackbone.from_preset(folder, load_weights=False, num_layers=2)

        assert (backbone.num_layers, backbone.hidden_dim) == (2, 4)

    def test_a_trained_head_comes_back(self, tmp_path):
        classifier = kgpt.TextClassifier(
            make_lm().backbone, class_names=["bad", "good"], tokenizer=TOKENIZER
        )
        classifier.compile(keras.optimizers.SGD(0.1))
        classifier.fit(["a", "b"], ["bad", "good"], verbose=0)

        classifier.save_to_preset(tmp_path / "head")
        loaded = kgpt.TextClassifier.from_preset(tmp_path / "head")

        assert loaded.class_names == ["bad", "good"]
        np.testing.assert_allclose(
            loaded.predict(["ab"], verbose=0), classifier.predict(["ab"], verbose=0), atol=1e-5
        )

    def test_what_transformers_lacks_is_a_file_of_keras(self, tmp_path, capsys):
        lm = make_lm(rotary_positions=True)

        lm.save_to_preset(tmp_path / "rotary")
        loaded = kgpt.CausalLM.from_preset(tmp_path / "rotary")
        head = kgpt.TextRegressor.from_preset(tmp_path / "rotary")

        assert "rotary_positions" in capsys.readouterr().out
        np.testing.assert_allclose(outputs(loaded), outputs(lm), atol=1e-6)
        np.testing.assert_allclose(outputs(head.backbone), outputs(lm.backbone), atol=1e-6)
        assert head.tokenizer.encode("abc") == TOKENIZER.encode("abc")

    @pytest.mark.parametrize(
        "card", [{"licence": "mit"}, {"tokens_seen": -1}, {"evaluation": {"loss": np.nan}}], ids=str
    )
    def test_a_card_that_is_refused_leaves_nothing_behind(self, tmp_path, card):
        with pytest.raises((TypeError, ValueError), match=next(iter(card))):
            make_lm().save_to_preset(tmp_path / "lm", **card)

        assert not (tmp_path / "lm").exists()

    def test_a_folder_in_use_is_refused(self, folder):
        with pytest.raises(ValueError, match="must not exist, or be empty"):
            make_lm().save_to_preset(folder)


def make_classifier(files, **options):
    body = make_lm(query_key_norm=files == "keras").backbone
    options = {"tokenizer": TOKENIZER, "class_names": ["bad", "good"], **options}
    classifier = kgpt.TextClassifier(body, **options)
    classifier.output_projection.set_weights([np.arange(8).reshape(4, 2), np.array([0.5, -1])])
    return classifier


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Folders with a trained head: in transformers' files, and in Keras's."""
    path = tmp_path_factory.mktemp("heads")
    for files in ("transformers", "keras"):
        make_classifier(files).save_to_preset(path / files)
    pairs = make_classifier("keras", both_orders=True)
    pairs.quantize("int8")
    pairs.save_to_preset(path / "pairs")
    kgpt.TextRegressor(make_lm().backbone, tokenizer=TOKENIZER).save_to_preset(path / "regressor")
    return path


def logits(model, texts=("ab", "c")):
    return model.predict(list(texts), verbose=0)


class TestOptionsOverTrainedHeads:
    @pytest.mark.parametrize(
        "options",
        [
            {"sequence_length": 12},
            {"dropout": 0.3},
            {"name": "taste"},
            {"trainable": False},
            {"num_classes": 2},
            {"class_names": ["no", "yes"]},
            {"tokenizer": TOKENIZER},
        ],
        ids=lambda options: next(iter(options)),
    )
    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_of_the_head_leave_it_its_weights(self, heads, files, options):
        classifier = kgpt.TextClassifier.from_preset(heads / files, **options)

        expected = logits(make_classifier(files))
        np.testing.assert_allclose(logits(classifier), expected, atol=1e-5)
        assert {name: getattr(classifier, name) for name in options} == options

    @pytest.mark.parametrize("options", [{"recompute": True}, {"attention_dropout": 0.5}], ids=str)
    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_of_the_body_leave_the_head_its_weights(self, heads, files, options):
        classifier = kgpt.TextClassifier.from_preset(heads / files, **options)

        expected = logits(make_classifier(files))
        np.testing.assert_allclose(logits(classifier), expected, atol=1e-5)
        assert {name: getattr(classifier.backbone, name) for name in options} == options

    @pytest.mark.parametrize("options", [{"recompute": True}, {"class_names": ["a", "b"]}], ids=str)
    def test_a_quantized_head_for_pairs_keeps_its_weights(self, heads, options):
        pairs = kgpt.TextClassifier.from_preset(heads / "pairs")
        texts = [("ab", "c"), ("a", "b")]

        other = kgpt.TextClassifier.from_preset(heads / "pairs", **options)

        np.testing.assert_allclose(logits(other, texts), logits(pairs, texts), atol=1e-6)
        assert other.both_orders
        assert other.output_projection.quantization_mode == "int8"

    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_a_dtype_acts_and_leaves_the_weights(self, heads, files):
        classifier = kgpt.TextClassifier.from_preset(heads / files, dtype="bfloat16")

        assert classifier.backbone.variable_dtype == "bfloat16"
        np.testing.assert_allclose(
            logits(classifier), logits(make_classifier(files)), rtol=0.1, atol=0.2
        )

    def test_a_regressor_keeps_its_head(self, heads):
        regressor = kgpt.TextRegressor.from_preset(heads / "regressor")
        other = kgpt.TextRegressor.from_preset(heads / "regressor", sequence_length=9)

        np.testing.assert_array_equal(logits(other), logits(regressor))
        assert (other.sequence_length, other.both_orders) == (9, True)

    @pytest.mark.parametrize(
        "options", [{"num_classes": 3}, {"class_names": ["a", "b", "c"]}], ids=str
    )
    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_another_number_of_classes_is_a_fresh_head_alone(self, heads, files, options):
        classifier = kgpt.TextClassifier.from_preset(heads / files, **options)

        expected = make_classifier(files)
        assert logits(classifier).shape == (2, 3)
        assert classifier.class_names == options.get("class_names")
        np.testing.assert_allclose(
            outputs(classifier.backbone), outputs(expected.backbone), atol=1e-6
        )

    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_a_regressor_over_a_classifier_has_a_fresh_head(self, heads, files):
        regressor = kgpt.TextRegressor.from_preset(heads / files, dropout=0.0)

        body = make_classifier(files).backbone
        assert (regressor.num_outputs, regressor.dropout) == (1, 0.0)
        np.testing.assert_allclose(outputs(regressor.backbone), outputs(body), atol=1e-6)

    @pytest.mark.parametrize("files", ["transformers", "keras"])
    def test_without_weights_a_head_has_the_sizes_of_the_files(self, heads, files):
        options = {"load_weights": False, "num_layers": 2}

        fresh = kgpt.TextClassifier.from_preset(heads / files, **options)
        of_three = kgpt.TextClassifier.from_preset(heads / files, num_classes=3, **options)

        assert (fresh.class_names, fresh.backbone.num_layers) == (["bad", "good"], 2)
        assert (of_three.num_classes, of_three.class_names, fresh.tokenizer) == (3, None, None)


@pytest.mark.parametrize("options", [{}, {"query_key_norm": True}])
def test_push_to_hub_uploads_what_from_preset_opens(monkeypatch, tmp_path, options):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private, exist_ok))
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / "uploaded")

    monkeypatch.setattr(hub, "HfApi", Api)

    def snapshot_download(name, allow_patterns, **_):
        assert name == "me/name"
        unwanted = [
            path.name
            for path in (tmp_path / "uploaded").iterdir()
            if not any(path.match(pattern) for pattern in allow_patterns)
        ]
        shutil.copytree(
            tmp_path / "uploaded", tmp_path / "cache", ignore=lambda *_: unwanted,
            dirs_exist_ok=True,
        )  # fmt: skip
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    lm = kgpt.CausalLM(
        randomize(kgpt.GPTBackbone(TOKENIZER.vocabulary_size, **SIZES, **options)),
        tokenizer=TOKENIZER,
    )

    address = lm.push_to_hub("me/name", private=True, token="secret", license="mit")

    assert calls == ["secret", ("me/name", True, True)]
    assert address == "https://huggingface.co/me/name"
    assert "\nlicense: mit\n" in (tmp_path / "uploaded" / "README.md").read_text(encoding="utf-8")
    fresh = kgpt.GPTBackbone.from_preset("hf://me/name", load_weights=False, num_layers=1)
    assert (fresh.num_layers, fresh.query_key_norm) == (1, bool(options))
    opened = kgpt.CausalLM.from_preset("hf://me/name")
    np.testing.assert_allclose(outputs(opened), outputs(lm), atol=1e-6)


def test_arguments_of_an_upload_are_refused_before_it(folder):
    lm = kgpt.CausalLM.from_preset(folder)

    with pytest.raises(ValueError, match=r"private must be a bool. Received: private='no'"):
        lm.push_to_hub("me/name", private="no")
    with pytest.raises(ValueError, match=r"repo_id must be a str. Received: repo_id=None"):
        lm.push_to_hub(None)


def test_a_class_of_ones_own_comes_back_from_its_preset(tmp_path):
    class Mine(kgpt.CausalLM):
        """Not registered."""

    lm = Mine(make_lm().backbone, tokenizer=TOKENIZER)
    lm.save_to_preset(tmp_path / "mine")

    assert type(Mine.from_preset(tmp_path / "mine")) is Mine
    with pytest.raises(ValueError, match=r"model\.keras.*class that is not known here.*: Mine\."):
        kgpt.CausalLM.from_preset(tmp_path / "mine")


@pytest.mark.parametrize("name", ["save_to_preset", "push_to_hub"])
def test_words_that_a_card_lacks_are_refused_under_the_name_of_the_method(folder, tmp_path, name):
    lm = kgpt.CausalLM.from_preset(folder)

    with pytest.raises(TypeError, match=rf"^{name}\(\) has no .*'overwrite'. It has training_data"):
        getattr(lm, name)(str(tmp_path / "new"), overwrite=True)
    assert not (tmp_path / "new").exists()
