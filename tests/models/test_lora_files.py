"""LoRA's additions in files of their own, and in a run that is cut and resumed."""

import os

import h5py
import keras
import numpy as np
import pytest
from killed_runs import killed_and_resumed
from oracles import randomize, to_numpy

import kgpt

VOCABULARY, LENGTH = 19, 7


def make_backbone(width=12, num_layers=2, dropout=0.0):
    keras.utils.set_random_seed(0)
    return randomize(
        kgpt.GPTBackbone(VOCABULARY, num_layers, 3, width, max_sequence_length=9, dropout=dropout)
    )


def make_lm(rank=None, *options, **sizes):
    lm = kgpt.CausalLM(make_backbone(**sizes))
    if rank:
        learn(lm.enable_lora(rank, *options) or lm)
    return lm


def make_classifier(num_classes=3, rank=None):
    model = kgpt.TextClassifier(make_backbone(), num_classes, dropout=0.0)
    if rank:
        learn(model.enable_lora(rank) or model)
    return model


def learn(model, seed=1):
    """Gives what is trained other values."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape))


@pytest.fixture(scope="module")
def token_ids():
    return np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH)).astype("int32")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.lora.h5"


def arrays(model):
    return [to_numpy(weight) for weight in model.weights]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_file_is_a_small_part_of_the_models_file(tmp_path):
    sizes = {"num_layers": 1, "vocabulary_size": 5}
    body = kgpt.GPTBackbone.from_preset("gpt1", load_weights=False, **sizes)
    body.save(tmp_path / "body.keras")
    body.enable_lora(8)

    body.save_lora_weights(tmp_path / "body.lora.h5")

    small, whole = (os.path.getsize(tmp_path / f"body.{e}") for e in ("lora.h5", "keras"))
    assert 0.01 < small / whole < 0.03


@pytest.mark.parametrize("options", [(), (6.0,), (6.0, ["value", "feedforward_output_dense"])])
@pytest.mark.parametrize("enabled", [False, True])
def test_a_fresh_model_over_the_same_body_gives_the_same(path, token_ids, options, enabled):
    lm = make_lm(4, *options)
    plain = to_numpy(make_lm()(token_ids))

    lm.save_lora_weights(path)
    fresh = make_lm()
    if enabled:
        fresh.enable_lora(4, *options)
    fresh.load_lora_weights(str(path))

    assert_same(arrays(fresh), arrays(lm))
    np.testing.assert_array_equal(to_numpy(fresh(token_ids)), to_numpy(lm(token_ids)))
    assert np.abs(to_numpy(lm(token_ids)) - plain).max() > 0.1
    assert len(fresh.trainable_variables) == len(lm.trainable_variables)


def test_additions_go_over_a_quantized_body_too(path, token_ids):
    def quantized():
        lm = make_lm()
        lm.quantize("int8")
        return lm

    lm = quantized()
    lm.enable_lora(4)
    learn(lm)
    lm.save_lora_weights(path)

    fresh = quantized()
    fresh.load_lora_weights(path)

    np.testing.assert_array_equal(to_numpy(fresh(token_ids)), to_numpy(lm(token_ids)))


# === Heads ===


def test_of_a_head_the_file_has_its_own_weights(path, token_ids):
    model = make_classifier(rank=4)
    model.save_lora_weights(path)

    fresh = make_classifier()
    fresh.load_lora_weights(path)

    assert_same(arrays(fresh), arrays(model))
    np.testing.assert_array_equal(to_numpy(fresh(token_ids)), to_numpy(model(token_ids)))


def test_a_classifier_takes_the_names_of_the_classes_and_no_other_order(path, token_ids):
    model = make_classifier(rank=4)
    model.class_names = [str(i) * 30_000 for i in (5, 7, 6)]  # more than an attribute holds
    model.save_lora_weights(path)
    fresh, renamed, turned = make_classifier(), make_classifier(), make_classifier()
    renamed.class_names, turned.class_names = ["a", "b", "c"], sorted(model.class_names)

    fresh.load_lora_weights(path)
    renamed.load_lora_weights(path)
    with pytest.raises(ValueError, match="count the classes in the same order"):
        turned.load_lora_weights(path)

    assert fresh.class_names == model.class_names
    assert renamed.class_names == ["a", "b", "c"]
    assert turned.backbone.lora_rank is None
    make_lm().load_lora_weights(path)


def test_bodies_and_language_models_take_the_additions_of_a_heads_file(path, token_ids):
    model = make_classifier(rank=4)
    model.save_lora_weights(path)
    body, lm = make_backbone(), make_lm()

    body.load_lora_weights(path)
    lm.load_lora_weights(path)

    assert_same(arrays(body), arrays(model.backbone))
    assert_same(arrays(lm), arrays(body))


def test_a_head_keeps_its_own_weights_beside_a_bodys_file(path):
    lm = make_lm(4)
    lm.save_lora_weights(path)
    model = make_classifier()
    kernel = to_numpy(model.output_projection.kernel)

    model.load_lora_weights(path)

    assert_same(arrays(model.backbone), arrays(lm.backbone))
    np.testing.assert_array_equal(to_numpy(model.output_projection.kernel), kernel)


# === What does not fit ===


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_lm(2), "'rank': 4.*'rank': 2"),
        (lambda: make_lm(4, 2.0), "'lora_alpha': 4.0.*'lora_alpha': 2.0"),
        (lambda: make_lm(4, None, ["query"]), r"\['query'\]"),
        (lambda: make_lm(width=15), r"\(12, 4\).*\(15, 4\)"),
        (lambda: make_lm(num_layers=1), r"decoder_block_1.* \[\] in the model"),
        (lambda: make_lm(num_layers=3), r"decoder_block_2.* shapes \[\]"),
        (lambda: make_classifier(2), r"head .*\(12, 3\).*\(12, 2\)"),
    ],
    ids=["rank", "alpha", "names", "width", "fewer blocks", "more blocks", "classes"],
)
def test_another_model_is_refused_in_one_line_and_stays_as_it_is(path, make, message):
    make_classifier(3, rank=4).save_lora_weights(path)
    model = make()
    before, rank = arrays(model), model.backbone.lora_rank

    with pytest.raises(ValueError, match=message) as refused:
        model.load_lora_weights(path)

    assert "\n" not in str(refused.value)
    assert model.backbone.lora_rank == rank
    assert_same(arrays(model), before)


def test_a_model_without_additions_and_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="enable_lora"):
        make_lm().save_lora_weights(tmp_path / "some.lora.h5")
    for name in ("some.h5", "some.keras"):
        with pytest.raises(ValueError, match=rf"must end in '.lora.h5'. Received: path=.*{name}"):
            make_lm(4).save_lora_weights(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_other_files_are_refused(path):
    with pytest.raises(FileNotFoundError, match=r"some\.lora\.h5"):
        make_lm().load_lora_weights(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="There are no additions"):
        make_lm().load_lora_weights(path)
    with h5py.File(path, "w") as file:
        file["lora/vars/rank"] = 4
    with pytest.raises(ValueError, match="There are no additions"):
        make_lm().load_lora_weights(path)


def test_a_file_is_written_whole_or_not_at_all(path, monkeypatch):
    lm = make_lm(4)
    lm.save_lora_weights(path)
    before = path.read_bytes()
    learn(lm, seed=2)

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(h5py.Group, "__setitem__", fail)
    with pytest.raises(OSError, match="no space left"):
        lm.save_lora_weights(path)

    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# === A run that is cut and resumed ===


@pytest.mark.parametrize("mode", [None, "int8"])
def test_a_killed_run_ends_as_one_that_was_not_to_the_bit(tmp_path, token_ids, mode):
    np.save(tmp_path / "tokens.npy", np.tile(token_ids.ravel(), 4).astype("uint16"))

    def fit(*callbacks):
        lm = kgpt.CausalLM(make_backbone(num_layers=1, dropout=0.2))
        if mode:
            lm.quantize(mode)
        lm.enable_lora(4)
        lm.compile(keras.optimizers.Adam(1e-2))
        train = kgpt.data.windows(tmp_path / "tokens.npy", LENGTH, 4, seed=0)
        lm.fit(train, epochs=2, callbacks=list(callbacks), verbose=0)
        return lm

    expected = fit()

    resumed = killed_and_resumed(fit, tmp_path / "run", at=2)

    assert int(resumed.optimizer.iterations) == int(expected.optimizer.iterations) == 6
    assert_same(arrays(resumed), arrays(expected))
    np.testing.assert_array_equal(to_numpy(resumed(token_ids)), to_numpy(expected(token_ids)))
