"""Which changes make another run, each with its line, and which do not. Nothing is trained."""

import functools
import json

import keras
import numpy as np
import pytest

import kgpt
from kgpt.callbacks.data_identity import fingerprint
from kgpt.callbacks.run_identity import differences, identity, new_learning_rate, notes

TEXTS, LABELS = ["a cab", "bad", "abc", "dab cab"], ["x", "y", "y", "x"]


@pytest.fixture(scope="module")
def tokenizer():
    return kgpt.Tokenizer.train(["a cab", "bad dab"], vocabulary_size=300)


def body(vocabulary_size=20, **options):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    return kgpt.GPTBackbone(vocabulary_size, **{**sizes, "max_sequence_length": 8, **options})


def language_model(**options):
    return kgpt.CausalLM(body(**options))


@functools.cache
def one_lm():
    """A language model that is compiled anew, and changed in no other way."""
    return language_model()


@functools.cache
def one_classifier():
    return classifier()


def identity_of(model, data=None, optimizer="default", loss=None, settings=(), **compiled):
    model.compile(optimizer, loss, **compiled)
    return identity(model, data, dict(settings))


def assert_differs(saved, now, *names):
    """Asserts that one line for each of the names says what was and what is."""
    found = differences(saved, now)

    assert [line.split(":")[0] for line in found] == list(names)
    assert all(" in the checkpoint, " in line and line.endswith(" now") for line in found)
    assert all("\n" not in line and len(line) < 250 for line in found)


def test_the_same_run_is_the_same_in_whatever_order_models_are_made():
    saved = identity_of(language_model())
    for _ in range(2):  # Keras numbers names
        kgpt.TextClassifier(body(), num_classes=2)

    assert differences(saved, identity_of(language_model())) == []
    assert notes(saved, identity_of(language_model())) == []


def test_an_identity_is_the_same_when_it_comes_out_of_a_file():
    now = identity_of(one_lm(), np.zeros((2, 3)), settings={"class_weight": {0: 1, 1: 2}})

    assert json.loads(json.dumps(now)) == now


def test_a_checkpoint_without_an_identity_is_of_any_run():
    now = identity_of(one_lm())

    assert differences(None, now) == notes(None, now) == []
    assert new_learning_rate(None, now) is None


# === The model ===


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("vocabulary_size", 21), ("num_layers", 3), ("num_heads", 4), ("hidden_dim", 12)),
        *(("intermediate_dim", 24), ("dropout", 0.2), ("max_sequence_length", 9)),
        *(("norm_first", False), ("activation", "relu"), ("layer_norm_epsilon", 1e-6)),
        *(("query_key_norm", True), ("rotary_positions", True), ("zero_init_residual", True)),
        *(("attention_dropout", 0.0), ("dtype", "mixed_bfloat16")),
    ],
)
def test_each_option_of_a_body_makes_another_run(option, value):
    now = identity_of(language_model(**{option: value}))

    assert_differs(identity_of(one_lm()), now, f"backbone.{option}")


def test_recomputation_goes_on_with_a_run():
    assert differences(identity_of(one_lm()), identity_of(language_model(recompute=True))) == []


def test_every_option_of_a_body_is_known():
    options = set(body().get_config())
    options -= {
        "name",
        "trainable",
        "quantization",
        "num_frozen_blocks",
        "trainable_layers",
        "recompute",
    }
    options = {name for name in options if not name.startswith("lora_")}

    assert options <= set(identity_of(one_lm())["run"]["backbone"])


def classifier(**options):
    return kgpt.TextClassifier(body(), **{"num_classes": 2, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("num_classes", 3), ("dropout", 0.2), ("lm_loss_weight", 0.0), ("both_orders", True)),
        *(("label_smoothing", 0.1), ("multi_label", True), ("class_names", ["y", "x"])),
    ],
)
def test_each_option_of_a_head_makes_another_run(option, value):
    given = {"class_names": ["x", "y"]} if option == "class_names" else {}
    saved = identity_of(classifier(**given))

    assert_differs(saved, identity_of(classifier(**{option: value})), f"model.{option}")


@keras.saving.register_keras_serializable("tests")
class OwnHead(kgpt.Head):
    def __init__(self, backbone, units=1, **kwargs):
        super().__init__(backbone, head=keras.layers.Dense(units), **kwargs)

    def task_loss(self, y, outputs):
        return keras.ops.softplus(outputs[:, 0, 0])


def test_each_kind_of_head_is_another_run():
    heads = [
        *(kgpt.TextClassifier(body(), 2), kgpt.TextRegressor(body()), kgpt.MultipleChoice(body())),
        *(kgpt.CausalLM(body()), OwnHead(body())),
    ]
    identities = list(map(identity_of, heads))

    for i, one in enumerate(identities):
        for j, other in enumerate(identities):
            assert_differs(one, other, *["model"] * (i != j))


@pytest.mark.parametrize("kind", [kgpt.TextRegressor, kgpt.MultipleChoice, kgpt.TextClassifier])
def test_every_option_of_a_head_is_known(kind):
    model = kind(body(), **({"num_classes": 2} if kind is kgpt.TextClassifier else {}))
    elsewhere = {"name", "trainable", "quantization", "trainable_layers", "backbone", "tokenizer"}
    options = set(model.get_config()) - elsewhere - {"sequence_length", "truncate"}

    assert options <= set(identity_of(model)["run"]["model"])


def test_the_layers_of_a_head_of_ones_own_are_known():
    saved = identity_of(OwnHead(body()))

    assert differences(saved, identity_of(OwnHead(body()))) == []
    assert_differs(saved, identity_of(OwnHead(body(), units=2)), "model.layers.dense.units")


def test_another_tokenizer_of_the_same_size_makes_another_run(tokenizer):
    other = kgpt.Tokenizer.train(["fog hog", "log fog"], tokenizer.vocabulary_size)
    saved, now, without = (
        identity_of(kgpt.CausalLM(body(tokenizer.vocabulary_size), tokenizer=one))
        for one in (tokenizer, other, None)
    )

    assert_differs(saved, now, "tokenizer")
    assert_differs(saved, without, "tokenizer")


def freeze_a_bias(model):
    model.backbone.decoder_blocks[1].feed_forward.expansion.bias.trainable = False


def freeze_the_head(model):
    model.output_projection.trainable = False


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m.freeze(0), "frozen: [] in the checkpoint, ['backbone/embedding'] now"),
        (lambda m: m.freeze(1), "['backbone/embedding', 'backbone/decoder_block_0'] now"),
        (lambda m: setattr(m.backbone, "trainable", False), "['backbone'] now"),
        (freeze_the_head, "['output_projection'] now"),
        (freeze_a_bias, "['backbone/decoder_block_1/feed_forward/expansion/bias'] now"),
        (lambda m: m.enable_lora(2), "lora: None in the checkpoint, rank 2, lora_alpha None, in q"),
    ],
)
def test_what_is_trained_makes_another_run(change, line):
    model = classifier()
    saved = identity_of(model)
    change(model)

    (found,) = differences(saved, identity_of(model))

    assert line in found


@pytest.mark.parametrize(
    "options", [{"rank": 4}, {"lora_alpha": 8}, {"target_layer_names": ["key"]}]
)
def test_how_lora_is_enabled_makes_another_run(options):
    saved, now = language_model(), language_model()
    saved.enable_lora(2)
    now.enable_lora(**{"rank": 2, **options})

    assert_differs(identity_of(saved), identity_of(now), "lora")


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_quantized_weights_make_another_run():
    saved, now = language_model(), language_model()
    now.quantize("int8")
    for model in (saved, now):
        model.enable_lora(2)

    (line,) = differences(identity_of(saved), identity_of(now))

    assert line == "quantization: None in the checkpoint, int8 now"


# === How it is trained ===


def adam(**options):
    return keras.optimizers.AdamW(**{"learning_rate": 0.125, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("beta_1", 0.5), ("beta_2", 0.5), ("epsilon", 1e-3), ("amsgrad", True)),
        *(("weight_decay", 0.5), ("clipnorm", 1.0), ("global_clipnorm", 1.0), ("clipvalue", 1.0)),
        *(("use_ema", True), ("ema_momentum", 0.5), ("ema_overwrite_frequency", 3)),
        *(("gradient_accumulation_steps", 2), ("loss_scale_factor", 2.0)),
    ],
)
def test_each_hyperparameter_of_an_optimizer_makes_another_run(option, value):
    given = {"use_ema": True} if option.startswith("ema") else {}
    saved = identity_of(one_lm(), optimizer=adam(**given))

    now = identity_of(one_lm(), optimizer=adam(**{**given, option: value}))

    assert_differs(saved, now, f"optimizer.{option}")


def test_another_optimizer_makes_another_run():
    saved = identity_of(one_lm(), optimizer=adam())

    now = identity_of(one_lm(), optimizer=keras.optimizers.SGD())

    assert differences(saved, now) == ["optimizer: AdamW in the checkpoint, SGD now"]


def test_an_optimizer_that_scales_the_loss_is_compared_inside():
    model = language_model(dtype="mixed_float16")
    saved, now = (
        identity_of(
            model,
            optimizer=keras.optimizers.LossScaleOptimizer(adam(weight_decay=decay)),
        )
        for decay in (0.0, 0.5)
    )

    assert_differs(saved, now, "optimizer.inner_optimizer.weight_decay")


@pytest.mark.parametrize(
    ("rate", "name"),
    [
        (0.125, "optimizer.learning_rate"),
        (kgpt.recipes.WarmupCosine(1.0, 100), "optimizer.learning_rate"),
        (kgpt.recipes.WarmupLinear(1.0, 200), "optimizer.learning_rate.steps"),
        (kgpt.recipes.WarmupLinear(2.0, 100), "optimizer.learning_rate.learning_rate"),
    ],
)
def test_another_schedule_makes_another_run(rate, name):
    saved = identity_of(one_lm(), optimizer=adam(learning_rate=kgpt.recipes.WarmupLinear(1.0, 100)))

    now = identity_of(one_lm(), optimizer=adam(learning_rate=rate))

    assert_differs(saved, now, name)


class Steps(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule without a config."""

    def __init__(self, rate, every):
        self.rate, self.every = rate, every

    def __call__(self, step):
        return self.rate * 0.5 ** (step // self.every)


def test_a_schedule_without_a_config_is_known_by_its_numbers():
    saved, now = (
        identity_of(one_lm(), optimizer=adam(learning_rate=Steps(0.5, every))) for every in (10, 20)
    )

    assert_differs(saved, now, "optimizer.learning_rate.every")
    other = identity_of(one_lm(), optimizer=adam(learning_rate=Steps(0.5, 10), beta_1=0.5))
    assert_differs(saved, other, "optimizer.beta_1")


def test_the_default_optimizer_is_the_same_before_and_after_a_fit_has_begun():
    model = language_model()
    saved = identity_of(model)
    model.optimizer.learning_rate = model.default_schedule(100, 0)  # as each fit does

    assert differences(saved, identity(model, None, {})) == []
    same = kgpt.recipes.pretraining_optimizer(100)
    assert_differs(saved, identity_of(language_model(), optimizer=same), "optimizer.learning_rate")


@pytest.mark.parametrize(
    "loss", ["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True), lambda a, b: 0.0]
)
def test_another_loss_makes_another_run(loss):
    saved = identity_of(one_lm())

    assert_differs(saved, identity_of(one_lm(), loss=loss), "loss")


def test_the_settings_of_a_loss_make_another_run():
    saved, now = (
        identity_of(
            one_classifier(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored),
        )
        for ignored in (None, 1)
    )

    assert_differs(saved, now, "loss.ignore_class")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("batch_size", 16), ("steps_per_epoch", 7), ("shuffle", False)),
        ("class_weight", {0: 1.0, 1: 2.0}),
    ],
)
def test_each_setting_of_a_fit_makes_another_run(setting, value):
    now = identity_of(one_classifier(), settings={setting: value})
    given = {"batch_size": 32, "shuffle": True} if setting == "shuffle" else {}
    saved = identity_of(one_classifier(), settings=given)

    assert_differs(saved, now, f"fit.{setting}")


def test_steps_per_execution_make_another_run():
    saved = identity_of(one_lm())

    now = identity_of(one_lm(), steps_per_execution=4)

    assert_differs(saved, now, "fit.steps_per_execution")


# === The data ===


@pytest.fixture(scope="module")
def token_files(tmp_path_factory):
    """Two files of as many tokens, of which one is another."""
    folder = tmp_path_factory.mktemp("tokens")
    tokens = np.random.default_rng(0).integers(0, 20, 300).astype("uint16")
    np.save(folder / "a.npy", tokens)
    np.save(folder / "moved.npy", tokens)
    tokens[170] = 20 - tokens[170]
    np.save(folder / "other.npy", tokens)
    return folder


def windows(path, **options):
    given = {"sequence_length": 8, "batch_size": 4, "seed": 0, **options}
    return identity_of(one_lm(), kgpt.data.windows(path, **given))


def test_another_token_file_of_the_same_length_makes_another_run(token_files):
    saved = windows(token_files / "a.npy")

    assert differences(saved, windows(token_files / "moved.npy")) == []
    assert_differs(saved, windows(token_files / "other.npy"), "data.tokens")


def test_other_token_files_of_the_same_lengths_make_another_run(token_files, tmp_path):
    a, moved, other = (token_files / f"{name}.npy" for name in ("a", "moved", "other"))
    saved = windows([a, moved])

    for name in ("x", "y"):
        (tmp_path / f"{name}.npy").write_bytes(a.read_bytes())
    assert differences(saved, windows(tmp_path)) == []
    assert_differs(saved, windows([a, other]), "data.tokens")
    np.save(tmp_path / "x.npy", np.load(a)[:200])
    np.save(tmp_path / "y.npy", np.append(np.load(a), np.load(a)[:100]))
    assert_differs(saved, windows(tmp_path), "data.lengths", "data.tokens")
    assert_differs(saved, windows([a, moved, other]), "data.lengths", "data.tokens")
    assert_differs(saved, windows(a), "data.lengths", "data.tokens")


def test_of_many_large_token_files_blocks_are_looked_at(tmp_path):
    for name in "abc":
        shape = (2**20,)
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype="uint16", shape=shape)
    files = [np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="r+") for name in "abc"]
    seen = windows(tmp_path)

    for file, place in ((files[0], 0), (files[0], 2**15 - 1), (files[2], -1)):
        file[place] = 1
        assert_differs(seen, windows(tmp_path), "data.tokens")
        file[place] = 0
    assert differences(seen, windows(tmp_path)) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("batch_size", 5), ("sequence_length", 7), ("seed", 1), ("repeat", True)),
        *(("random_offset", True), ("drop_remainder", False)),
    ],
)
def test_each_option_of_windows_makes_another_run(token_files, option, value):
    path = token_files / "a.npy"

    assert_differs(windows(path), windows(path, **{option: value}), f"data.{option}")


def test_a_large_token_file_is_looked_at_in_blocks_from_its_beginning_to_its_end(tmp_path):
    tokens = np.lib.format.open_memmap(
        tmp_path / "a.npy", mode="w+", dtype="uint16", shape=(8 * 2**20 + 1,)
    )
    seen = fingerprint(tokens)

    for place in (0, 2**15 - 1, len(tokens) // 63, -1):
        tokens[place] = 1
        assert fingerprint(tokens) != seen
        tokens[place] = 0
    assert fingerprint(tokens) == seen


def labelled(tokenizer, texts=TEXTS, labels=LABELS, **options):
    data = kgpt.data.classification(texts, labels, tokenizer, **{"batch_size": 2, **options})
    return identity_of(one_classifier(), data)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"texts": ["a cab", "bad", "abq", "dab cab"]}, ["data.tokens"]),
        ({"texts": ["a cab", "bad", "dab cab", "abc"]}, ["data.tokens", "data.lengths"]),
        ({"labels": ["x", "y", "y", "y"]}, ["data.labels"]),
        ({"class_names": ["y", "x"]}, ["data.class_names", "data.labels"]),
        ({"sample_weight": [1, 1, 1, 2]}, ["data.sample_weight"]),
        ({"seed": 1}, ["data.seed"]),
        ({"batch_size": 3}, ["data.batch_size"]),
        ({"sequence_length": 100}, ["data.sequence_length"]),
        ({"repeat": True}, ["data.repeat"]),
    ],
)
def test_labelled_batches_are_told_apart(tokenizer, change, names):
    assert differences(labelled(tokenizer), labelled(tokenizer)) == []
    assert_differs(labelled(tokenizer), labelled(tokenizer, **change), *names)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"completions": [" dab", " abd"]}, "data.tokens"),
        ({"prompt_weight": 0.5}, "data.token_weights"),
        ({"sample_weight": [1, 2]}, "data.token_weights"),
    ],
)
def test_completions_are_told_apart(tokenizer, change, name):
    def made(**options):
        given = {"prompts": ["a", "b"], "completions": [" dab", " abc"], **options}
        data = kgpt.data.completions(tokenizer=tokenizer, **given)
        return identity_of(one_lm(), data)

    assert_differs(made(), made(**change), name)


@pytest.mark.parametrize("part", ["x", "y", "sample_weight"])
def test_arrays_are_told_apart(part):
    data = {"x": np.zeros((3, 4)), "y": np.zeros(3), "sample_weight": np.ones(3)}
    model = one_lm()
    saved = identity_of(model, tuple(data.values()))
    changed = {**data, part: data[part] + 1}

    assert differences(saved, identity(model, tuple(map(np.copy, data.values())), {})) == []
    assert_differs(saved, identity(model, tuple(changed.values()), {}), f"data.{part}")


def test_arrays_in_a_dict_of_any_library_are_told_apart():
    model = one_lm()
    zeros, ones = np.zeros((3, 4), "int32"), np.ones((3, 4), "int32")
    saved = identity_of(model, {"token_ids": zeros, "padding_mask": ones})

    tensors = {"token_ids": zeros, "padding_mask": keras.ops.convert_to_tensor(ones)}

    assert differences(saved, identity(model, tensors, {})) == []
    tensors["padding_mask"] = keras.ops.convert_to_tensor(zeros)
    assert_differs(saved, identity(model, tensors, {}), "data.x.padding_mask")


@pytest.mark.parametrize(
    "array", [np.array(["a", None], "object"), np.array(["a", "b"]), np.array(3), np.zeros((0, 2))]
)
def test_every_array_has_a_fingerprint(array):
    assert fingerprint(array) == fingerprint(array.copy())


def test_of_a_large_array_blocks_are_looked_at():
    array = np.zeros(2**28 + 1, "uint8")
    seen = fingerprint(array)
    array[-1] = 1

    assert fingerprint(array) != seen


def test_of_a_large_array_of_long_texts_blocks_are_looked_at():
    array = np.zeros(2**11, "U32768")  # 2^28 bytes of text, none of it touched
    seen = fingerprint(array)
    array[-1] = "other"

    assert fingerprint(array) != seen


class Batches(keras.utils.PyDataset):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return np.zeros((1, 8))


def test_of_other_sources_the_type_and_the_length_are_known():
    model = one_lm()
    saved = identity_of(model, Batches(3))

    assert differences(saved, identity(model, Batches(3), {})) == []
    assert_differs(saved, identity(model, Batches(4), {}), "data.length")
    assert_differs(saved, identity(model, (i for i in range(3)), {}), "data")
    assert_differs(saved, identity(model, np.zeros((3, 8)), {}), "data")


# === What may change ===


@pytest.mark.parametrize(
    "compiled",
    [
        {"run_eagerly": True},
        {"jit_compile": False},
        {"metrics": ["mse"]},
        {"weighted_metrics": ["mse"]},
    ],
)
def test_how_the_step_is_compiled_and_what_is_measured_may_change(compiled):
    saved, now = identity_of(one_lm()), identity_of(one_lm(), **compiled)

    assert differences(saved, now) == notes(saved, now) == []


@pytest.mark.parametrize(
    "settings",
    [{"validation_data": 1, "validation_batch_size": 3}, {"verbose": 1}, {"validation_freq": 2}],
)
def test_what_is_not_known_to_matter_may_change(settings):
    saved, now = identity_of(one_lm()), identity_of(one_lm(), settings=settings)

    assert differences(saved, now) == notes(saved, now) == []


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        (
            "default",
            "epochs: 3 in the checkpoint, 5 now; the learning rate's schedule is laid over all of "
            "them anew",
        ),
        ("adam", "epochs: 3 in the checkpoint, 5 now"),
    ],
)
def test_more_epochs_are_noted(optimizer, line):
    saved, now = (
        identity_of(one_lm(), optimizer=optimizer, settings={"epochs": epochs}) for epochs in (3, 5)
    )

    assert differences(saved, now) == []
    assert notes(saved, now) == [line]


def test_a_learning_rate_that_is_a_number_may_be_another_and_counts():
    saved, same, now = (
        identity_of(one_lm(), optimizer=adam(learning_rate=rate)) for rate in (0.125, 0.125, 0.5)
    )

    assert differences(saved, now) == []
    assert notes(saved, now) == ["learning_rate: 0.125 in the checkpoint, 0.5 now, which counts"]
    assert new_learning_rate(saved, now) == 0.5
    assert new_learning_rate(saved, same) is None
    assert notes(saved, same) == []


def test_another_version_may_have_options_that_this_one_lacks():
    saved = identity_of(one_lm())
    now = json.loads(json.dumps(saved))
    now["run"]["backbone"]["sliding_window"] = 128

    assert_differs(saved, now, "backbone.sliding_window")
    now["versions"]["kgpt"] = "later"
    assert differences(saved, now) == []


# === Plain Keras models ===


def plain(units=3, activation="relu", skip=False, optimizer="adam", dropout=0.1):
    x = keras.Input((4,))
    h = keras.layers.Dense(units, activation=activation)(x)
    h = keras.layers.Dropout(dropout)(h)
    y = keras.layers.Dense(units)(h)
    model = keras.Model(x, keras.layers.Dense(1)(y + h if skip else y + y))
    model.compile(optimizer, "mse")
    return identity(model, np.zeros((2, 4)), {})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"activation": "tanh"}, "model.layers.dense.activation"),
        ({"dropout": 0.2}, "model.layers.dropout.rate"),
        ({"skip": True}, "model.wiring"),
        ({"optimizer": "sgd"}, "optimizer"),
    ],
)
def test_a_model_of_keras_is_known_by_its_config_and_its_optimizer(change, name):
    assert differences(plain(), plain()) == []
    assert_differs(plain(), plain(**change), name)


class Subclassed(keras.Model):
    def __init__(self, size):
        super().__init__()
        self.dense = keras.layers.Dense(size)

    def call(self, x):
        return self.dense(x)


def test_a_subclassed_model_is_known_by_its_layers():
    def made(size):
        model = Subclassed(size)
        model.compile("adam", "mse")
        return identity(model, None, {})

    assert differences(made(2), made(2)) == []
    assert_differs(made(2), made(3), "model.layers.dense.units")
