"""Keras's ordinary ways with a model: cloned, copied, pickled, frozen, cut, printed."""

import copy
import inspect
import json
import pickle

import keras
import numpy as np
import pytest
from oracles import randomize, to_numpy

import kgpt

VOCABULARY, LAYERS, HEADS, WIDTH, BATCH, LENGTH = 19, 2, 3, 12, 4, 5
TOKEN_IDS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH)).astype("int32")
CHOICES = np.random.default_rng(1).integers(0, VOCABULARY, (BATCH, 2, LENGTH)).astype("int32")
NUMBERS = np.arange(4.0)[:, None]
LARGE = kgpt.Tokenizer.train(["a text"], vocabulary_size=260)

# Of each kind: how it is made of a backbone, and data.
TASKS = {
    "lm": (kgpt.CausalLM, TOKEN_IDS, None),
    "classifier": (lambda b, **kw: kgpt.TextClassifier(b, 3, **kw), TOKEN_IDS, np.arange(4) % 3),
    "regressor": (lambda b, **kw: kgpt.TextRegressor(b, 1, **kw), TOKEN_IDS, NUMBERS),
    "choice": (kgpt.MultipleChoice, CHOICES, np.arange(4) % 2),
}
each_task = pytest.mark.parametrize("kind", TASKS)


def make_backbone(**options):
    sizes = {"max_sequence_length": 8, "dropout": 0.0}
    return kgpt.GPTBackbone(VOCABULARY, LAYERS, HEADS, WIDTH, **{**sizes, **options})


def make(kind, **options):
    task, x, y = TASKS[kind]
    return randomize(task(make_backbone(), **options)), x, y


def same_outputs(one, other, x):
    return np.allclose(to_numpy(one(x)), to_numpy(other(x)), atol=1e-6)


class TestCloneModel:
    @each_task
    def test_a_clone_has_the_class_and_the_config_and_weights_of_its_own(self, kind):
        model, x, _ = make(kind)

        clone = keras.models.clone_model(model)

        assert type(clone) is type(model)
        assert clone.get_config() == model.get_config()
        assert not {id(w) for w in clone.weights} & {id(w) for w in model.weights}
        assert not same_outputs(clone, model, x)
        clone.set_weights(model.get_weights())
        assert same_outputs(clone, model, x)

    def test_a_cloned_language_model_generates(self):
        lm, _, _ = make("lm")

        clone = keras.models.clone_model(lm)

        assert np.shape(clone.generate(TOKEN_IDS[0, :2], max_new_tokens=2)) == (4,)

    def test_a_backbone_is_cloned_alone_and_inside_a_users_model(self):
        backbone = make_backbone()
        inputs = keras.Input((LENGTH,), dtype="int32")
        model = keras.Model(inputs, keras.layers.Dense(2)(backbone(inputs)))

        alone, around = keras.models.clone_model(backbone), keras.models.clone_model(model)

        assert type(alone) is kgpt.GPTBackbone
        (inside,) = (layer for layer in around.layers if isinstance(layer, kgpt.GPTBackbone))
        assert inside is not backbone
        assert around(TOKEN_IDS).shape == (BATCH, LENGTH, 2)

    @each_task
    def test_a_clone_is_compiled_as_the_model(self, kind):
        model, x, y = make(kind)
        model.compile(keras.optimizers.SGD(1e-3))

        clone = keras.models.clone_model(model)
        history = clone.fit(x, y, verbose=0).history

        assert clone.optimizer.get_config() == model.optimizer.get_config()
        assert set(history) == {metric.name for metric in model.own_metrics}

    def test_a_default_compilation_is_cloned(self):
        lm, _, _ = make("lm")
        lm.compile()

        assert isinstance(keras.models.clone_model(lm).optimizer, kgpt.recipes.AdamW)

    def test_a_head_of_ones_own_is_cloned(self):
        class Reward(kgpt.Head):
            def __init__(self, backbone, **kwargs):
                super().__init__(backbone, head=keras.layers.Dense(1), **kwargs)

        model = Reward(make_backbone(), lm_loss_weight=0.25)

        clone = keras.models.clone_model(model)

        assert type(clone) is Reward
        assert clone.lm_loss_weight == 0.25

    @each_task
    def test_a_clone_function_that_copies_layers_as_they_are_is_followed(self, kind):
        model, _, _ = make(kind)
        seen = []

        def copied(layer):
            seen.append(layer.name)
            return type(layer).from_config(layer.get_config())

        clone = keras.models.clone_model(model, clone_function=copied)

        assert type(clone) is type(model)
        inputs = {x.name for x in model.inputs}
        assert set(seen) == {operation.name for operation in model.operations} - inputs

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"clone_function": lambda layer: layer}, "clone_function"),
            ({"clone_function": lambda layer: keras.layers.Identity()}, "clone_function"),
            ({"call_function": lambda layer, *x, **kw: layer(*x, **kw)}, "call_function"),
        ],
        ids=["shared_layers", "other_layers", "call_function"],
    )
    def test_what_a_clone_cannot_follow_is_refused(self, arguments, message):
        lm, _, _ = make("lm")

        with pytest.raises(ValueError, match=rf"cloned from its config.*Received: a {message}"):
            keras.models.clone_model(lm, **arguments)

    def test_other_inputs_are_refused(self):
        lm, _, _ = make("lm")
        inputs = {name: keras.Input((LENGTH,), name=name) for name in lm.input}

        with pytest.raises(ValueError, match="Received: other input_tensors"):
            keras.models.clone_model(lm, input_tensors=inputs)

    def test_readers_see_the_signatures_of_the_constructors(self):
        assert list(inspect.signature(kgpt.CausalLM).parameters)[:2] == ["backbone", "tokenizer"]
        assert "num_layers" in inspect.signature(kgpt.GPTBackbone).parameters


class TestCopyAndPickle:
    @each_task
    def test_copies_of_a_trained_model_train_on_as_the_model(self, kind):
        model, x, y = make(kind, **({} if kind in ("lm", "regressor") else {"dropout": 0.0}))
        if kind == "regressor":
            model = randomize(kgpt.TextRegressor(make_backbone(), 1, dropout=0.0))
        model.compile(kgpt.recipes.AdamW(1e-2))
        model.fit(x, y, verbose=0)

        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]

        for twin in twins:
            assert type(twin) is type(model)
            assert same_outputs(twin, model, x)
            assert int(twin.optimizer.iterations) == int(model.optimizer.iterations) == 1
        expected, *found = (
            each.fit(x, y, epochs=2, shuffle=False, verbose=0).history for each in (model, *twins)
        )
        for history in found:
            assert set(history) == set(expected)
            np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)

    def test_a_copy_keeps_the_default_optimizer_and_a_loss_of_keras(self):
        lm, x, _ = make("lm")
        lm.compile()
        assert copy.deepcopy(lm)._optimizer_is_default
        lm.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

        history = copy.deepcopy(lm).fit(x, x, verbose=0).history

        assert set(history) == {"loss"}  # and no perplexity

    def test_a_copy_has_the_tokenizer(self):
        tokenizer = kgpt.Tokenizer.train(["abc" * 9], style="characters")
        lm = kgpt.CausalLM(make_backbone(), tokenizer=tokenizer)

        twin = pickle.loads(pickle.dumps(lm))

        assert twin.tokenizer.encode("cab") == tokenizer.encode("cab")


class TestTrainable:
    @each_task
    def test_over_a_backbone_made_frozen_a_task_trains_its_own_variables_only(self, kind):
        task, x, y = TASKS[kind]
        model = task(make_backbone(trainable=False))
        before = model.backbone.get_weights()

        of_head = [] if kind == "lm" else model.output_projection.weights
        assert [id(v) for v in model.trainable_variables] == [id(v) for v in of_head]
        if kind != "lm":
            model.compile(keras.optimizers.SGD(0.1))
            model.fit(x, y, verbose=0)
        for one, other in zip(before, model.backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("when", ["made", "set"])
    def test_a_frozen_backbone_is_frozen_after_saving_and_loading(self, when, tmp_path):
        backbone = make_backbone(trainable=when == "set")
        backbone.trainable = False
        model = kgpt.TextClassifier(backbone, 3)
        model.save(tmp_path / "model.keras")

        loaded = keras.models.load_model(tmp_path / "model.keras")

        assert len(loaded.trainable_variables) == len(model.trainable_variables) == 2
        loaded.backbone.trainable = True
        assert len(loaded.trainable_variables) == len(loaded.weights)

    @each_task
    def test_a_task_made_frozen_is_frozen_in_a_users_model_too(self, kind):
        model, x, _ = make(kind, trainable=False)
        inputs = keras.Input(x.shape[1:], dtype="int32")

        around = keras.Model(inputs, keras.layers.Dense(1)(model(inputs)))

        assert model.trainable_variables == []
        assert len(around.trainable_variables) == 2

    @pytest.mark.parametrize(
        "layer",
        [
            lambda: kgpt.layers.DecoderBlock(3, 24, query_key_norm=True, trainable=False),
            lambda: kgpt.layers.CausalSelfAttention(3, query_key_norm=True, trainable=False),
            lambda: kgpt.layers.FeedForward(24, trainable=False),
        ],
        ids=["block", "attention", "feed_forward"],
    )
    def test_a_layer_made_frozen_is_frozen_in_a_model_and_after_its_config(self, layer):
        layer = layer()
        twin = type(layer).from_config(json.loads(json.dumps(layer.get_config())))

        for each in (layer, twin):
            inputs = keras.Input((LENGTH, WIDTH))
            model = keras.Model(inputs, keras.layers.Dense(1)(each(inputs)))
            assert len(model.trainable_variables) == 2
            each.trainable = True
            assert len(model.trainable_variables) == len(model.weights)

    def test_an_embedding_made_frozen_is_frozen_in_a_model(self):
        layer = kgpt.layers.TokenAndPositionEmbedding(VOCABULARY, 8, WIDTH, trainable=False)
        inputs = keras.Input((LENGTH,), dtype="int32")

        model = keras.Model(inputs, keras.layers.Dense(1)(layer(inputs)))

        assert len(model.trainable_variables) == 2

    def test_lora_over_a_frozen_backbone_trains_the_additions(self):
        backbone = make_backbone(trainable=False)

        backbone.enable_lora(2)

        assert {v.name for v in backbone.trainable_variables} == {"lora_kernel_a", "lora_kernel_b"}

    def test_additions_that_were_frozen_are_frozen_after_their_config(self):
        backbone = make_backbone()
        backbone.enable_lora(2)
        backbone.trainable = False

        twin = kgpt.GPTBackbone.from_config(backbone.get_config())

        assert kgpt.TextClassifier(twin, 3).trainable_variables[0].name == "kernel"


class TestAssignment:
    @each_task
    def test_of_another_backbone_is_refused(self, kind):
        model, x, _ = make(kind)
        before = to_numpy(model(x))

        with pytest.raises(AttributeError, match=r"backbone is fixed .* over the other body"):
            model.backbone = model.backbone.with_vocabulary_size(VOCABULARY + 1)

        model.backbone = model.backbone
        np.testing.assert_array_equal(to_numpy(model(x)), before)

    @pytest.mark.parametrize("name", ["lm_loss_weight", "dropout", "label_smoothing"])
    def test_of_what_a_head_is_made_with_is_refused_with_what_to_do(self, name):
        head, x, _ = make("classifier")

        with pytest.raises(AttributeError, match=rf"from_config\(.*'{name}': ...}}\)"):
            setattr(head, name, 0.9)

        other = kgpt.TextClassifier.from_config({**head.get_config(), name: 0.9})
        other.set_weights(head.get_weights())
        assert getattr(other, name) == 0.9
        assert same_outputs(other, head, x)

    def test_of_a_bodys_options_is_refused(self):
        backbone = make_backbone()

        for name in ("dropout", "recompute", "num_layers", "activation"):
            with pytest.raises(AttributeError, match=f"{name} is fixed when a GPTBackbone is made"):
                setattr(backbone, name, 3)

    def test_of_what_acts_is_free(self):
        class WithMargin(kgpt.TextRegressor):
            def __init__(self, backbone, **kwargs):
                super().__init__(backbone, **kwargs)
                self.lm_loss_weight = 0.0
                self.margin = 1.0

        model = WithMargin(make_backbone())
        model.margin, model.sequence_length, model.truncate = 2.0, 4, "start"
        model.backbone.trainable = model.trainable = False

        assert (model.margin, model.lm_loss_weight, model.truncate) == (2.0, 0.0, "start")
        with pytest.raises(AttributeError, match="lm_loss_weight is fixed when a WithMargin"):
            model.lm_loss_weight = 1.0

    @pytest.mark.parametrize("kind", ["lm", "classifier"])
    def test_of_layers_is_refused(self, kind):
        model, x, _ = make(kind)
        body, before = model.backbone, to_numpy(model(x))
        other = make_backbone()

        for name in ("embedding", "decoder_blocks", "final_norm", "token_embedding"):
            with pytest.raises(AttributeError, match=f"{name} is fixed .* weights may be set"):
                setattr(body, name, getattr(other, name))
        with pytest.raises(TypeError):
            body.decoder_blocks[0] = other.decoder_blocks[0]
        if kind == "classifier":
            with pytest.raises(AttributeError, match="output_projection is fixed"):
                model.output_projection = keras.layers.Dense(5)

        body.decoder_blocks, body.embedding = body.decoder_blocks, body.embedding
        np.testing.assert_array_equal(to_numpy(model(x)), before)

    def test_of_layers_beside_the_graph_is_free(self):
        model, _, _ = make("classifier")

        for teacher in (make_backbone(), keras.layers.Dense(2)):
            model.teacher = teacher
            assert model.teacher is teacher

    def test_of_the_arguments_of_a_built_layer_is_refused(self):
        body = make_backbone()
        block, alone = body.decoder_blocks[0], kgpt.layers.FeedForward(8)
        alone.intermediate_dim = 4  # which acts: it is not built

        layers = block, block.attention, block.feed_forward, body.embedding, block
        names = "dropout", "num_heads", "activation", "max_sequence_length", "rotary_positions"
        for layer, name in zip(layers, names, strict=True):
            kind = type(layer).__name__
            with pytest.raises(AttributeError, match=f"{name} is fixed .* {kind} is made.*Try"):
                setattr(layer, name, 5)
        assert alone(np.ones((1, 2, 6))).shape == (1, 2, 6)
        assert alone.expansion.units == 4

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("tokenizer", "tokenizer.json", "tokenizer must be a kgpt.Tokenizer"),
            ("tokenizer", LARGE, "an embedding for each token .* with vocabulary_size=260 and"),
            ("sequence_length", 9, "must not be longer than max_sequence_length"),
            ("sequence_length", 0, "sequence_length must be an int of at least 1"),
            ("truncate", "middle", "truncate must be one of 'end', 'start'"),
            ("class_names", ["a", "b"], "a name for each class.*num_classes=3"),
            ("class_names", "abc", "class_names must be a list of names"),
        ],
    )
    def test_of_what_the_model_cannot_read_is_refused(self, name, value, message):
        model = kgpt.TextClassifier(make_backbone(), num_classes=3)
        before = getattr(model, name)

        with pytest.raises((TypeError, ValueError), match=message):
            setattr(model, name, value)

        assert getattr(model, name) == before
        setattr(model, name, before)


class TestCutOut:
    def test_a_part_of_the_body_takes_its_mask_and_segments_as_none(self):
        backbone = randomize(make_backbone())
        states = backbone.get_layer("decoder_block_0").output

        first = keras.Model(backbone.input, states)

        inputs = {"token_ids": TOKEN_IDS, "padding_mask": None, "segment_ids": None}
        expected = backbone.decoder_blocks[0](backbone.embedding(TOKEN_IDS))
        np.testing.assert_allclose(to_numpy(first(inputs)), to_numpy(expected), atol=1e-6)


class TestSummary:
    @pytest.fixture(autouse=True)
    def wide_terminal(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "150")

    def rows(self, model):
        """The printed table by layer: shape, number of parameters."""
        lines = []
        model.summary(print_fn=lines.append)
        table = [
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in "\n".join(lines).splitlines()
            if "│" in line
        ]
        return {row[0].split(" ")[0]: row[1:3] for row in table if row[1]}

    def test_the_embedding_gives_hidden_states_and_the_tied_output_logits(self):
        lm, _, _ = make("lm")
        weights = VOCABULARY * WIDTH + 8 * WIDTH

        for model in (lm.backbone, lm):
            assert self.rows(model)["embedding"] == ["(None, None, 12)", str(weights)]
        assert self.rows(lm)["tied_output"] == ["(None, None, 19)", "0"]
        assert "tied_output" not in self.rows(lm.backbone)

    def test_the_tied_output_adds_no_weights(self):
        lm, _, _ = make("lm")

        assert [w.path for w in lm.weights] == [w.path for w in lm.backbone.weights]
        assert lm.count_params() == lm.backbone.count_params()

    def test_a_users_model_of_the_logits_is_saved_and_stays_tied(self, tmp_path):
        lm, _, _ = make("lm")
        inputs = {"token_ids": TOKEN_IDS, "padding_mask": None, "segment_ids": None}
        model = keras.Model(lm.input, lm.output * 2)
        model.save(tmp_path / "model.keras")

        loaded = keras.models.load_model(tmp_path / "model.keras")

        assert len(loaded.weights) == len(lm.weights)
        np.testing.assert_allclose(to_numpy(loaded(inputs)), 2 * to_numpy(lm(TOKEN_IDS)), atol=1e-5)


def test_a_model_is_saved_without_its_optimizer_on_request(tmp_path):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 2, 64, max_sequence_length=6))
    lm.compile("adam", run_eagerly=keras.backend.backend() == "tensorflow")
    x = np.ones((2, 5), int)
    lm.train_on_batch(x)
    with_state, without = tmp_path / "a.keras", tmp_path / "b.keras"

    lm.save(with_state)
    lm.save(without, include_optimizer=False)
    lm.train_on_batch(x)  # goes on

    loaded = keras.models.load_model(without)
    assert int(lm.optimizer.iterations) == 2
    assert not loaded.compiled
    assert int(keras.models.load_model(with_state).optimizer.iterations) == 1
    assert without.stat().st_size < 0.7 * with_state.stat().st_size


@pytest.mark.parametrize(
    "less", [{"num_layers": 1}, {"norm_first": False}, {"rotary_positions": True}], ids=str
)
@pytest.mark.parametrize("kind", [kgpt.CausalLM, lambda body: body, kgpt.MultipleChoice])
def test_weights_of_layers_that_a_model_lacks_are_refused(tmp_path, kind, less):
    def make(**options):
        sizes = {"num_layers": 2, "query_key_norm": True, **options}
        body = kgpt.GPTBackbone(11, num_heads=2, hidden_dim=8, max_sequence_length=6, **sizes)
        return kind(body)

    make().save_weights(tmp_path / "a.weights.h5")
    make().load_weights(tmp_path / "a.weights.h5")  # the same layers are read

    with pytest.raises(ValueError, match=r"same layers.*Received: a file with weights in \d+ lay"):
        make(**less).load_weights(tmp_path / "a.weights.h5")
    with pytest.warns(UserWarning, match="same layers"):
        make(**less).load_weights(tmp_path / "a.weights.h5", skip_mismatch=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["lm.keras", "lm.weights.h5"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name, dtype):
    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6, dtype=dtype))
    kernel = lm.backbone.decoder_blocks[0].attention.weights[0]
    read = lm.load_weights if name.endswith("h5") else keras.models.load_model
    write = lm.save_weights if name.endswith("h5") else lm.save
    write(tmp_path / name)
    read(tmp_path / name)  # whole ones are read

    kernel.assign(np.where(np.arange(24) == 5, np.nan, to_numpy(kernel)))
    write(tmp_path / name)

    with pytest.raises(ValueError, match=r"NaN or infinity in .*attention.* of the file"):
        read(tmp_path / name)


def test_a_model_is_not_written_into_hdf5_by_the_function_either(tmp_path):
    backbone = kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6)
    token_ids = keras.Input((None,), dtype="int32")
    plain = keras.Model(token_ids, keras.layers.Dense(2)(backbone(token_ids)))

    with pytest.raises(ValueError, match=r"HDF5 .* a CausalLM .*save\('model\.keras'\)"):
        keras.saving.save_model(kgpt.CausalLM(backbone), tmp_path / "lm.h5")
    keras.saving.save_model(plain, tmp_path / "plain.h5")  # a body in a plain model is read

    read = keras.saving.load_model(tmp_path / "plain.h5")
    ids = np.array([[1, 2, 3]])
    np.testing.assert_allclose(to_numpy(read(ids)), to_numpy(plain(ids)), atol=1e-6)


@pytest.mark.parametrize("wrong", [-1, 11])
@pytest.mark.parametrize("kind", [kgpt.CausalLM, kgpt.TextRegressor])
def test_arrays_of_ids_that_the_vocabulary_lacks_are_refused_in_a_call(kind, wrong):
    backbone = kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6)
    ids, mask = np.array([[1, 2, wrong]]), np.array([[True, True, False]])

    for model in (backbone, kind(backbone)):
        for inputs in (ids, {"token_ids": ids}, {"token_ids": ids, "padding_mask": ids != 1}):
            with pytest.raises(ValueError, match=r"in token_ids must lie in \[0, 11\)"):
                model(inputs)
        if wrong < 0:  # which padding may be
            model({"token_ids": ids, "padding_mask": mask})


def test_ragged_rows_are_refused_whose_gaps_would_be_tokens():
    ragged = pytest.importorskip("tensorflow").ragged.constant([[1, 2, 3], [4]])
    lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 1, 2, 8, max_sequence_length=6))

    for run in (lm, lm.backbone, lm.fit, lm.evaluate, lm.predict, lm.train_on_batch):
        for x in (ragged, {"token_ids": ragged}):
            with pytest.raises(ValueError, match=r"rows of one length.*\.to_tensor\(\)"):
                run(x)
