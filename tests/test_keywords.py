"""Misspelt and foreign keywords: refused, with kgpt's name for what was probably meant."""

import keras
import pytest

import kgpt
from kgpt import arguments, layers, recipes

SIZES = {"vocabulary_size": 19, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}


@pytest.fixture(scope="module")
def backbone():
    return kgpt.GPTBackbone(**SIZES, max_sequence_length=16)


def tokenizer():
    return kgpt.Tokenizer.train(["a fine film"] * 3, 265)


def on_backbone(make):
    """Returns a function of keywords alone from one of a backbone and keywords."""
    make.takes_backbone = True
    return make


MAKERS = {
    "GPTBackbone": lambda **kwargs: kgpt.GPTBackbone(**{**SIZES, **kwargs}),
    "from_preset": lambda **kwargs: kgpt.GPTBackbone.from_preset(
        "gpt_nano", load_weights=False, **kwargs
    ),
    "CausalLM": on_backbone(lambda backbone, **kwargs: kgpt.CausalLM(backbone, **kwargs)),
    "TextClassifier": on_backbone(lambda b, **kwargs: kgpt.TextClassifier(b, **kwargs)),
    "TextRegressor": on_backbone(lambda b, **kwargs: kgpt.TextRegressor(b, **kwargs)),
    "MultipleChoice": on_backbone(lambda b, **kwargs: kgpt.MultipleChoice(b, **kwargs)),
    "Head": on_backbone(lambda b, **kwargs: kgpt.Head(b, keras.layers.Dense(1), **kwargs)),
    "predict_text": on_backbone(lambda b, **kwargs: kgpt.MultipleChoice(b).predict_text(**kwargs)),
    "enable_lora": on_backbone(lambda b, **kwargs: b.enable_lora(**kwargs)),
    "save_lora_weights": on_backbone(lambda b, **kwargs: b.save_lora_weights(**kwargs)),
    "freeze": on_backbone(lambda b, **kwargs: b.freeze(**kwargs)),
    "with_max_sequence_length": on_backbone(
        lambda b, **kwargs: b.with_max_sequence_length(**kwargs)
    ),
    "TokenAndPositionEmbedding": layers.TokenAndPositionEmbedding,
    "CausalSelfAttention": layers.CausalSelfAttention,
    "FeedForward": layers.FeedForward,
    "DecoderBlock": layers.DecoderBlock,
    "AdamW": recipes.AdamW,
    "WarmupCosine": recipes.WarmupCosine,
    "WarmupLinear": recipes.WarmupLinear,
    "pretraining_optimizer": recipes.pretraining_optimizer,
    "finetuning_optimizer": recipes.finetuning_optimizer,
    "fast_optimizer": recipes.fast_optimizer,
    "Tokenizer.train": kgpt.Tokenizer.train,
    "Tokenizer.encode": lambda **kwargs: tokenizer().encode("a", **kwargs),
    "windows": kgpt.data.windows,
    "plan": kgpt.plan,
    "classification": kgpt.data.classification,
    "write_tokens": kgpt.data.write_tokens,
    "ResumableCheckpoint": kgpt.callbacks.ResumableCheckpoint,
    "GenerateSamples": kgpt.callbacks.GenerateSamples,
    "Scores": kgpt.callbacks.Scores,
}
MISSPELT = [
    ("GPTBackbone", "droput", "dropout"),
    ("GPTBackbone", "num_layer", "num_layers"),
    ("GPTBackbone", "vocabulary_sizes", "vocabulary_size"),
    ("GPTBackbone", "attention_droput", "attention_dropout"),
    ("GPTBackbone", "recomputation", "recompute"),
    ("GPTBackbone", "dtypes", "dtype"),
    ("from_preset", "num_layer", "num_layers"),
    ("CausalLM", "tokeniser", "tokenizer"),
    ("CausalLM", "backbon", "backbone"),
    ("CausalLM", "trainabel", "trainable"),
    ("TextClassifier", "tokeniser", "tokenizer"),
    ("TextClassifier", "num_clases", "num_classes"),
    ("TextClassifier", "lm_weight", "lm_loss_weight"),
    ("TextRegressor", "both_order", "both_orders"),
    ("MultipleChoice", "drop_out", "dropout"),
    ("Head", "metrics", "task_metrics"),
    ("predict_text", "probability", "probabilities"),
    ("enable_lora", "ranks", "rank"),
    ("TokenAndPositionEmbedding", "learned_position", "learned_positions"),
    ("CausalSelfAttention", "rotary", "rotary_positions"),
    ("FeedForward", "kernel_initialiser", "kernel_initializer"),
    ("DecoderBlock", "norm_frist", "norm_first"),
    ("AdamW", "layerdecay", "layer_decay"),
    ("AdamW", "weightdecay", "weight_decay"),
    ("WarmupCosine", "step", "steps"),
    ("WarmupLinear", "warm_up", "warmup"),
    ("pretraining_optimizer", "warmup_step", "warmup_steps"),
    ("finetuning_optimizer", "learning_rates", "learning_rate"),
    ("fast_optimizer", "final_rate", "final_learning_rate"),
    ("Tokenizer.train", "special_token", "special_tokens"),
    ("windows", "sequence_lenght", "sequence_length"),
    ("plan", "batchsize", "batch_size"),
    ("plan", "recomputation", "recompute"),
    ("classification", "class_name", "class_names"),
    ("write_tokens", "validation_fractions", "validation_fraction"),
    ("ResumableCheckpoint", "save_frequency", "save_freq"),
    ("GenerateSamples", "max_new_token", "max_new_tokens"),
    ("GenerateSamples", "sliding_windows", "sliding_window"),
    ("Scores", "prefixes", "prefix"),
]
FOREIGN = [
    ("Tokenizer.encode", "allowed_special", "allow_special"),
    *(("GPTBackbone", name, "vocabulary_size") for name in ("vocab_size", "n_vocab")),
    *(("GPTBackbone", name, "num_layers") for name in ("n_layer", "num_hidden_layers")),
    *(("GPTBackbone", name, "num_heads") for name in ("n_head", "num_attention_heads")),
    *(("GPTBackbone", name, "hidden_dim") for name in ("n_embd", "hidden_size")),
    ("GPTBackbone", "n_inner", "intermediate_dim"),
    *(
        ("GPTBackbone", name, "max_sequence_length")
        for name in ("block_size", "n_positions", "n_ctx", "max_position_embeddings")
    ),
    ("GPTBackbone", "resid_pdrop", "dropout"),
    ("GPTBackbone", "attn_pdrop", "attention_dropout"),
    ("GPTBackbone", "activation_function", "activation"),
    ("GPTBackbone", "gradient_checkpointing", "recompute"),
    ("from_preset", "n_layer", "num_layers"),
    ("CausalLM", "preprocessor", "tokenizer"),
    ("TextClassifier", "preprocessor", "tokenizer"),
    ("TextClassifier", "num_labels", "num_classes"),
    ("TextClassifier", "id2label", "class_names"),
    ("TextClassifier", "problem_type", "multi_label"),
    ("TextClassifier", "label_smoothing_factor", "label_smoothing"),
    ("TextRegressor", "num_labels", "num_outputs"),
    ("enable_lora", "alpha", "lora_alpha"),
    ("enable_lora", "target_modules", "target_layer_names"),
    ("freeze", "n_transfer", "num_blocks"),
    ("with_max_sequence_length", "n_positions", "max_sequence_length"),
    ("save_lora_weights", "filepath", "path"),
    ("DecoderBlock", "layer_norm_eps", "layer_norm_epsilon"),
    ("pretraining_optimizer", "max_iters", "steps"),
    ("pretraining_optimizer", "lr", "learning_rate"),
    ("pretraining_optimizer", "min_lr", "final_learning_rate"),
    ("pretraining_optimizer", "num_warmup_steps", "warmup_steps"),
    ("finetuning_optimizer", "warmup_ratio", "warmup"),
    ("finetuning_optimizer", "max_grad_norm", "clip_norm"),
    ("Tokenizer.train", "vocab_size", "vocabulary_size"),
    ("windows", "block_size", "sequence_length"),
    ("plan", "n_layer", "num_layers"),
    ("classification", "max_length", "sequence_length"),
    ("GenerateSamples", "do_sample", "temperature"),
    ("GenerateSamples", "eos_token_id", "stop_token_ids"),
]


@pytest.mark.parametrize(("maker", "keyword", "meant"), [*MISSPELT, *FOREIGN])
def test_a_keyword_is_refused_with_the_one_that_was_meant(backbone, maker, keyword, meant):
    make = MAKERS[maker]
    first = (backbone,) if hasattr(make, "takes_backbone") else ()

    with pytest.raises(TypeError, match=rf"has no argument '{keyword}'\. Did you mean {meant}\?"):
        make(*first, **{keyword: 2})


def test_all_keywords_that_are_unknown_are_named_at_once():
    with pytest.raises(TypeError) as refused:
        kgpt.GPTBackbone(vocab_size=65, n_layer=6, n_head=6, n_embd=384)

    for meant in ("vocabulary_size", "num_layers", "num_heads", "hidden_dim"):
        assert f"Did you mean {meant}?" in str(refused.value)


def test_a_keyword_like_no_other_is_refused_with_all_that_there_are(backbone):
    with pytest.raises(TypeError, match=r"CausalLM\(\) has no argument 'zzz'. It has backbone,"):
        kgpt.CausalLM(backbone, zzz=1)


@pytest.mark.parametrize("head", ["CausalLM", "TextClassifier", "TextRegressor", "MultipleChoice"])
@pytest.mark.parametrize(
    ("keyword", "advice"),
    [("activation", r"keras\.ops\.softmax"), ("dtype", r"GPTBackbone\(\.\.\., dtype=")],
)
def test_what_a_head_does_not_choose_is_refused_with_the_place_where_it_is(
    backbone, head, keyword, advice
):
    with pytest.raises(TypeError, match=rf"{head}\(\) has no argument '{keyword}'.*{advice}"):
        MAKERS[head](backbone, **{keyword: "softmax"})


def test_samples_are_not_asked_for_another_model(backbone):
    with pytest.raises(TypeError, match="has no argument 'model'"):
        kgpt.callbacks.GenerateSamples("a", model=kgpt.CausalLM(backbone))


# === What goes on working ===


class Reward(kgpt.Head):
    """A head of a user's, which takes an argument of its own out of the keywords."""

    def __init__(self, backbone, scale=1.0, **kwargs):
        self_margin = kwargs.pop("margin", 0.0)
        super().__init__(backbone, head=keras.layers.Dense(1), **kwargs)
        self.scale, self.margin = scale, self_margin


def test_a_head_of_ones_own_passes_its_keywords_on(backbone):
    head = Reward(backbone, margin=0.5, lm_loss_weight=0.0, name="reward", trainable=False)

    assert (head.margin, head.lm_loss_weight, head.name) == (0.5, 0.0, "reward")
    assert not head.trainable


@pytest.mark.parametrize(
    ("keyword", "meant"), [("scal", "scale"), ("lm_loss_weigth", "lm_loss_weight")]
)
def test_the_keywords_of_a_head_of_ones_own_are_checked_too(backbone, keyword, meant):
    with pytest.raises(TypeError, match=rf"Reward\(\) has no .* Did you mean {meant}\?"):
        Reward(backbone, **{keyword: 0.5})


def test_keras_keywords_of_layers_and_optimizers_stay():
    layer = layers.FeedForward(6, name="mine", trainable=False, dtype="float16", autocast=False)
    optimizer = recipes.AdamW(1e-3, 0.0, use_ema=True, name="mine")

    assert (layer.name, layer.compute_dtype, layer.autocast) == ("mine", "float16", False)
    assert (optimizer.weight_decay, optimizer.use_ema, optimizer.name) == (0.0, True, "mine")


@pytest.mark.parametrize(
    "make",
    [
        lambda b: kgpt.CausalLM(b, name="lm", trainable=False),
        lambda b: kgpt.TextClassifier(b, class_names=["a", "b"], name="c"),
        lambda b: kgpt.TextRegressor(b, num_outputs=3),
        lambda b: kgpt.MultipleChoice(b),
        lambda b: kgpt.GPTBackbone(**SIZES, dtype="bfloat16", name="b", trainable=False),
        lambda b: layers.DecoderBlock(2, 8, dtype="float16", name="block"),
        lambda b: recipes.pretraining_optimizer(5),
        lambda b: recipes.WarmupLinear(1e-3, 5, start=2),
    ],
)
def test_a_config_is_read_again(backbone, make):
    made = make(backbone)

    again = type(made).from_config(made.get_config())

    if isinstance(made, keras.layers.Layer):
        assert (again.name, again.trainable) == (made.name, made.trainable)
        assert again.dtype_policy == made.dtype_policy
    else:
        assert again.get_config() == made.get_config()


def test_a_checked_function_keeps_its_signature_and_docstring():
    @arguments.checked
    def function(steps: int, *, repeat: bool = False):
        """Counts."""

    assert function.__doc__ == "Counts."
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'steps'"):
        function(repeat=True)


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("add_special_tokens", "Nothing is added at either end"),
        ("padding", "kgpt.data make batches"),
    ],
)
def test_a_tokenizer_says_what_it_does_in_place_of_transformers_keywords(keyword, words):
    for encode in (tokenizer().encode, tokenizer()):
        with pytest.raises(TypeError, match=f"no argument '{keyword}'. .*{words}"):
            encode("a", **{keyword: True})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda lm: lm.compile(lr=1),
            r"CausalLM\.compile\(\) .* 'lr'. It belongs to the optimizer",
        ),
        (lambda lm: lm.generate([1], maximum=1), r"CausalLM\.generate\(\) has no argument"),
        (lambda lm: lm.score([1], scoring_mode="loss"), 'CausalLM.score.*reduction="none"'),
        (lambda lm: lm.score([1], target_ids=[1]), "is the next one"),
        (lambda lm: tokenizer().encode("a", zzz=1), r"Tokenizer\.encode\(\) has no argument 'zzz'"),
        (lambda lm: kgpt.data.windows("a", zzz=1), r"^windows\(\) has no argument 'zzz'"),
    ],
)
def test_a_method_is_named_with_its_class(backbone, call, words):
    with pytest.raises(TypeError, match=words):
        call(kgpt.CausalLM(backbone))
