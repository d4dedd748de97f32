"""Training loops of one's own take the model's loss from `compute_loss`, compiled or not."""

import keras
import numpy as np
import pytest
from oracles import gradients, randomize, to_numpy

import kgpt

VOCABULARY, LENGTH = 11, 6
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH)).astype("int32")
LABELS = np.array([0, 1, 1], "int32")


def make_backbone():
    keras.utils.set_random_seed(0)
    return randomize(kgpt.GPTBackbone(VOCABULARY, 1, 1, 4, 4, 0.0, LENGTH))


MODELS = {
    "language model": (lambda: kgpt.CausalLM(make_backbone()), None),
    "classifier": (lambda: randomize(kgpt.TextClassifier(make_backbone(), 2, dropout=0.0)), LABELS),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, y = MODELS[request.param]
    return make(), y


def step_of_fit(model, y):
    """Returns the loss, and the gradients as what a step of SGD with rate 1 subtracts."""
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0))
    loss = model.train_on_batch(IDS, y, return_dict=True)["loss"]
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    for variable, value in zip(model.trainable_variables, before, strict=True):
        variable.assign(value)
    return loss, [a - b for a, b in zip(before, after, strict=True)]


def test_the_gradients_of_compute_loss_are_those_of_fit(case):
    model, y = case
    if keras.backend.backend() == "jax":
        found = jax_gradients(model, y)
    else:
        found = gradients(lambda: model.compute_loss(IDS, y), model.trainable_variables)

    _, expected = step_of_fit(model, y)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def jax_gradients(model, y):
    import jax

    def loss_of(trainable):
        others = [v.value for v in model.non_trainable_variables]
        metrics = [v.value for v in model.metrics_variables]
        loss, _ = model.stateless_compute_loss(trainable, others, metrics, x=IDS, y=y)
        return loss

    return jax.grad(loss_of)([v.value for v in model.trainable_variables])


def test_the_loss_of_a_model_that_is_not_compiled_is_that_of_evaluate(case):
    model, y = case

    loss = keras.ops.convert_to_numpy(model.compute_loss(IDS, y, training=False))

    model.compile()
    np.testing.assert_allclose(loss, model.evaluate(IDS, y, verbose=0)[0], rtol=1e-5)


@pytest.mark.parametrize("as_list", [False, True])
def test_targets_to_leave_out_and_weights_count_as_in_fit(as_list):
    lm = kgpt.CausalLM(make_backbone())
    y, weights = np.roll(IDS, -1, axis=1), np.array([1.0, 2.0, 0.0], "float32")
    y[:, -1] = -100

    given = weights.tolist() if as_list else weights
    loss = keras.ops.convert_to_numpy(lm.compute_loss(IDS, y, sample_weight=given))

    lm.compile()
    expected = lm.evaluate(IDS, y, sample_weight=weights, verbose=0)[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_outputs_that_were_computed_already_give_the_same_loss():
    lm = kgpt.CausalLM(make_backbone())

    loss = lm.compute_loss(IDS, y_pred=lm(IDS))

    np.testing.assert_allclose(
        *map(keras.ops.convert_to_numpy, (loss, lm.compute_loss(IDS))), rtol=1e-5
    )


def test_a_head_refuses_outputs_without_hidden_states():
    model = MODELS["classifier"][0]()

    with pytest.raises(ValueError, match="Leave y_pred out"):
        model.compute_loss(IDS, LABELS, y_pred=model(IDS))


@keras.saving.register_keras_serializable("tests")
class OwnStep(kgpt.CausalLM):
    """A model with a step of its own, as in Keras's guides."""

    if keras.backend.backend() == "tensorflow":

        def train_step(self, data):
            import tensorflow as tf

            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, sample_weight=sample_weight)
            found = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(found, self.trainable_variables)
            return {"loss": loss}

    elif keras.backend.backend() == "torch":

        def train_step(self, data):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            self.zero_grad()
            loss = self.compute_loss(x, y, sample_weight=sample_weight)
            loss.backward()
            found = [v.value.grad for v in self.trainable_variables]
            self.optimizer.apply(found, self.trainable_variables)
            return {"loss": loss}

    else:

        def train_step(self, state, data):
            import jax

            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            trainable, others, optimizer, metrics = state

            def loss_of(trainable):
                return self.stateless_compute_loss(
                    trainable, others, metrics, x=x, y=y, sample_weight=sample_weight
                )

            (loss, (_, others, metrics)), found = jax.value_and_grad(loss_of, has_aux=True)(
                trainable
            )
            trainable, optimizer = self.optimizer.stateless_apply(optimizer, found, trainable)
            return {"loss": loss}, (trainable, others, optimizer, metrics)


def test_a_subclass_with_its_own_step_learns_as_fit_does():
    plain, own = kgpt.CausalLM(make_backbone()), OwnStep(make_backbone())
    for model in (plain, own):
        model.compile(keras.optimizers.SGD(0.5))

    losses = [model.fit(IDS, epochs=2, verbose=0).history["loss"] for model in (plain, own)]

    np.testing.assert_allclose(*losses, rtol=1e-5)
    for a, b in zip(plain.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


class Sharper(kgpt.CausalLM):
    """A language model whose `call` gives other logits, without `super().call`."""

    def call(self, inputs, training=None, mask=None):
        states = self.backbone(inputs, training=training)
        return 2 * self.backbone.token_embedding(states, reverse=True)


class Doubled(kgpt.CausalLM):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize("has_metric", [False, True])
def test_the_loss_of_a_subclass_is_that_of_the_outputs_of_its_call(has_metric):
    model = Sharper(make_backbone())
    metric = keras.metrics.SparseCategoricalCrossentropy(name="again", from_logits=True)
    model.compile(metrics=[metric] * has_metric or None)
    logits = to_numpy(model(IDS))[:, :-1].astype("float64")
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logits, IDS[:, 1:, None], -1).mean()

    found = model.evaluate(IDS, batch_size=2, verbose=0, return_dict=True)

    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.get("again", expected), expected, rtol=1e-5)
    assert model.fit(IDS, epochs=3, verbose=0).history["loss"][-1] < expected


def test_a_call_that_doubles_the_pair_of_a_step_is_refused():
    with pytest.raises(ValueError, match=r"super.*call.*of a Doubled returns a pair.*4 values"):
        Doubled(make_backbone()).evaluate(IDS, verbose=0)


class WithPenalty(kgpt.CausalLM):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) + 5.0


class WithAnotherLoss(kgpt.CausalLM):
    def compute_loss(self, *args, **kwargs):
        return keras.ops.sum(self.backbone.token_embedding.embeddings**2)


def logs_of(model, **compiled):
    model.compile(keras.optimizers.SGD(0.0), **compiled)
    history = model.fit(IDS, validation_data=(IDS,), batch_size=3, verbose=0).history
    assert model.evaluate(IDS, verbose=0, return_dict=True)["loss"] == history["val_loss"][0]
    return {name: values[0] for name, values in history.items()}


@pytest.mark.parametrize("loss", [None, keras.losses.SparseCategoricalCrossentropy(True)])
def test_what_a_subclass_adds_to_the_loss_is_reported(loss):
    compiled = {} if loss is None else {"loss": loss}
    expected = logs_of(kgpt.CausalLM(make_backbone()), **compiled)

    found = logs_of(WithPenalty(make_backbone()), **compiled)

    for name, value in expected.items():
        added = 5.0 if name.endswith("loss") else 0.0
        np.testing.assert_allclose(found[name], value + added, rtol=1e-5)
    assert list(found) == list(expected)


def test_a_subclass_with_another_loss_reports_it_and_nothing_of_the_models_own():
    lm = WithAnotherLoss(make_backbone())
    expected = np.sum(np.square(to_numpy(lm.backbone.token_embedding.embeddings)))

    logs = logs_of(lm)

    assert set(logs) == {"loss", "val_loss"}
    np.testing.assert_allclose(list(logs.values()), expected, rtol=1e-5)
