"""Training, validation, evaluation and prediction of one model, one after the other."""

import keras
import numpy as np
import pytest
from labelled import TOKENIZER

import kgpt

TEXTS = ["ab", "cd", "efg", "h", "ijk"]
CHOICES = [["x", "yz", text] for text in TEXTS]
LABELS = [0, 1, 0, 1, 1]


def make_backbone():
    keras.utils.set_random_seed(0)
    return kgpt.GPTBackbone(TOKENIZER.vocabulary_size, 1, 1, 4, 16, dropout=0.0)


@keras.saving.register_keras_serializable("tests")
class AnyNumber(kgpt.Head):
    """A head of any number of sequences."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, head=keras.layers.Dense(1), **kwargs)

    def task_loss(self, y, outputs):
        return keras.ops.mean(keras.ops.softplus(outputs[:, :, 0]), axis=-1)


def task(function, *columns):
    return lambda **options: function(*columns, TOKENIZER, 16, batch_size=2, **options)


SINGLES = task(kgpt.data.classification, TEXTS, LABELS)
PAIRS = task(kgpt.data.similarity, TEXTS, TEXTS[::-1], LABELS)
CASES = {
    "classifier": (lambda: kgpt.TextClassifier(make_backbone(), 2, dropout=0.0), SINGLES),
    "pairs": (
        lambda: kgpt.TextClassifier(make_backbone(), 2, both_orders=True, dropout=0.0),
        PAIRS,
    ),
    "chooser": (
        lambda: kgpt.MultipleChoice(make_backbone(), dropout=0.0),
        task(kgpt.data.multiple_choice, TEXTS, CHOICES, [2, 0, 1, 2, 2]),
    ),
    "head_of_any_number": (lambda: AnyNumber(make_backbone()), SINGLES),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_evaluate_and_predict_go_on_after_a_fit_with_validation_data(case):
    make_model, make_data = case
    model, test = make_model(), make_data(seed=None)
    model.compile(keras.optimizers.SGD(0.1))

    for _ in range(2):
        history = model.fit(make_data(seed=0), validation_data=test, verbose=0).history
        figures = model.evaluate(test, verbose=0, return_dict=True)

        for name, figure in figures.items():
            np.testing.assert_allclose(history[f"val_{name}"], [figure], rtol=1e-5)
    assert len(model.predict(test, verbose=0)) == len(TEXTS)


def test_a_language_model_evaluates_after_a_fit_with_validation_data(tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(41) % TOKENIZER.vocabulary_size)
    train, test = (kgpt.data.windows(tmp_path / "tokens.npy", 5, 3, seed) for seed in (0, None))
    model = kgpt.CausalLM(make_backbone())
    model.compile(keras.optimizers.SGD(0.1))

    history = model.fit(train, validation_data=test, verbose=0).history
    figures = model.evaluate(test, verbose=0, return_dict=True)

    for name, figure in figures.items():
        np.testing.assert_allclose(history[f"val_{name}"], [figure], rtol=1e-5)


def test_arrays_with_and_without_an_axis_of_sequences_may_follow_each_other():
    model = kgpt.TextClassifier(make_backbone(), 2, dropout=0.0)
    model.compile(keras.optimizers.SGD(0.0))
    token_ids = np.random.default_rng(0).integers(0, TOKENIZER.vocabulary_size, (4, 5))
    x = {"token_ids": token_ids, "padding_mask": np.arange(5) < [[5], [3], [1], [2]]}
    with_axis = {name: array[:, None] for name, array in x.items()}
    y = np.array([0, 1, 1, 0])

    outputs = [model.predict(each, verbose=0) for each in (x, with_axis, x)]
    figures = [model.evaluate(each, y, verbose=0) for each in (x, with_axis, x)]
    losses = [model.fit(each, y, verbose=0).history["loss"] for each in (x, with_axis, x)]

    for found in (outputs, figures, losses):
        np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[2], found[0], rtol=1e-5, atol=1e-6)


def test_a_head_of_any_number_of_sequences_takes_one_and_then_two():
    model = AnyNumber(make_backbone())
    model.compile(keras.optimizers.SGD(0.0))

    def figures():
        return [model.evaluate(data(), verbose=0) for data in (SINGLES, PAIRS)]

    np.testing.assert_allclose(figures(), figures(), rtol=1e-6)
    assert model.predict(SINGLES(), verbose=0).shape == (5, 1, 1)
    assert model.predict(PAIRS(), verbose=0).shape == (5, 2, 1)


class TestWhatIsTrainedChangesBetweenFits:
    IDS = np.random.default_rng(0).integers(0, 11, (4, 6)).astype("int32")
    CHANGES = (
        lambda body: body.enable_lora(2),
        lambda body: body.freeze(1),
        lambda body: body.unfreeze(),
    )

    def make_lm(self, *optimizer, **options):
        keras.utils.set_random_seed(0)
        lm = kgpt.CausalLM(kgpt.GPTBackbone(11, 2, 1, 4, 4, 0.0, 6))
        lm.freeze(0)
        lm.compile(*optimizer, **options)
        lm.fit(self.IDS, verbose=0)
        return lm

    @pytest.mark.parametrize("change", CHANGES, ids=["lora", "freeze", "unfreeze"])
    def test_the_default_optimizer_is_made_anew(self, change):
        lm = self.make_lm(metrics=[keras.metrics.SparseCategoricalAccuracy(name="hits")])
        change(lm.backbone)
        before = [keras.ops.convert_to_numpy(v).copy() for v in lm.trainable_variables]
        frozen = [keras.ops.convert_to_numpy(v).copy() for v in lm.non_trainable_variables]

        history = lm.fit(self.IDS, verbose=0, epochs=2).history

        assert "hits" in history
        assert int(lm.optimizer.iterations) == 2
        changed = [
            (b != keras.ops.convert_to_numpy(v)).any()
            for b, v in zip(before, lm.trainable_variables, strict=True)
        ]
        assert sum(changed) > len(changed) / 2
        for b, v in zip(frozen, lm.non_trainable_variables, strict=True):
            np.testing.assert_array_equal(b, keras.ops.convert_to_numpy(v))

    def test_a_single_batch_is_trained_on_as_in_a_fit(self):
        lm = self.make_lm()
        lm.enable_lora(2)
        before = [keras.ops.convert_to_numpy(v).copy() for v in lm.trainable_variables]

        for _ in range(2):  # the warm-up begins at 0
            lm.train_on_batch(self.IDS)

        changed = [
            (b != keras.ops.convert_to_numpy(v)).any()
            for b, v in zip(before, lm.trainable_variables, strict=True)
        ]
        assert sum(changed) > 0
        lm.compile("adam")
        lm.train_on_batch(self.IDS)
        lm.unfreeze()
        lm.merge_lora()
        with pytest.raises(ValueError, match="What is trained has changed since compile"):
            lm.train_on_batch(self.IDS)

    def test_what_else_was_compiled_is_kept(self):
        options = {"run_eagerly": True, "jit_compile": False, "auto_scale_loss": False}
        lm = self.make_lm(weighted_metrics=["accuracy"], loss_weights=None, **options)
        compiled = lm.get_compile_config()
        lm.enable_lora(2)

        lm.fit(self.IDS, verbose=0)
        twin = kgpt.CausalLM.from_config(lm.get_config())
        twin.compile_from_config(compiled)

        assert options.items() <= compiled.items()
        assert lm.get_compile_config() == twin.get_compile_config() == compiled

    @pytest.mark.parametrize("change", CHANGES[::2], ids=["lora", "unfreeze"])
    def test_an_optimizer_of_ones_own_needs_compile_again(self, change):
        lm = self.make_lm("adam")
        change(lm.backbone)

        with pytest.raises(ValueError, match="What is trained has changed since compile"):
            lm.fit(self.IDS, verbose=0)

        lm.compile("adam")
        lm.fit(self.IDS, verbose=0)

    def test_predictions_and_figures_are_those_of_what_the_model_is_now(self, tmp_path):
        lm = self.make_lm("adam")
        twin = kgpt.CausalLM.from_config(lm.get_config())
        twin.set_weights(lm.get_weights())
        twin.enable_lora(2)
        for layer in twin.backbone.decoder_blocks[0]._flatten_layers():
            if getattr(layer, "lora_enabled", False):
                layer.lora_kernel_b.assign(
                    np.arange(layer.lora_kernel_b.shape[1]) + np.ones((2, 1))
                )
        twin.save_lora_weights(tmp_path / "a.lora.h5")

        def of(model):
            return model.predict(self.IDS, verbose=0), model.evaluate(self.IDS, verbose=0)[0]

        before = of(lm)
        lm.load_lora_weights(tmp_path / "a.lora.h5")
        twin.compile("sgd")

        for found, expected, old in zip(of(lm), of(twin), before, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert not np.allclose(found, old, atol=1e-5)
