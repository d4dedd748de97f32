"""Values that can't be meant: each argument acts, or is refused where it is given."""

import functools
import inspect
import math
import typing
from pathlib import Path

import keras
import numpy as np
import pytest

import kgpt
from kgpt import arguments, data, layers, recipes

NAN, INF = math.nan, math.inf
COUNTS = [0, -1, 1.5, "2", True, NAN]
NUMBERS = [0, -0.1, NAN, INF, "1", True, [0.1]]  # for those above 0
NOT_BELOW_ZERO = [-0.1, NAN, INF, "0.1", True]
SHARES = [-0.1, 1.0, NAN, INF, "0.1", True]
FLAGS = ["no", 2, 0, []]
PLACES = [-1, 1.5, "2", True]  # ints of at least 0
TOKENIZERS = ["tokenizer.json", Path("tokenizer.json"), 5, kgpt.Tokenizer]

SIZES = {"vocabulary_size": 300, "num_layers": 1, "num_heads": 2, "hidden_dim": 8}


@functools.cache
def backbone():
    return kgpt.GPTBackbone(**SIZES, max_sequence_length=16)


@functools.cache
def tokenizer():
    return kgpt.Tokenizer.train(["a fine film and a dull film"] * 3, 265)


def corpora():
    return [data.windows(Path(__file__).parent / "files" / "tokens.npy", 4, 2)]


def made(function, **needed):
    """Returns a function that calls another with what it needs, some of it by `functions`."""

    def make(**arguments):
        ready = {name: value() if callable(value) else value for name, value in needed.items()}
        return function(**{**ready, **arguments})

    return make


LABELLED = {"labels": [0, 1], "tokenizer": tokenizer}
PAIRS = {"premises": ["a", "b"], "hypotheses": ["c", "d"], **LABELLED}
TEXTS = ["a fine film and a dull film"] * 3
MAKERS = {
    "GPTBackbone": made(kgpt.GPTBackbone, **SIZES),
    "CausalLM": made(kgpt.CausalLM, backbone=backbone),
    "TextClassifier": made(kgpt.TextClassifier, backbone=backbone, num_classes=2),
    "TextRegressor": made(kgpt.TextRegressor, backbone=backbone),
    "MultipleChoice": made(kgpt.MultipleChoice, backbone=backbone),
    "Head": made(
        lambda **arguments: kgpt.Head(**{"head": keras.layers.Dense(1), **arguments}),
        backbone=backbone,
    ),
    "from_preset": lambda **arguments: kgpt.GPTBackbone.from_preset(
        **{"preset": "gpt_nano", "load_weights": False, **arguments}
    ),
    "enable_lora": lambda **arguments: backbone().enable_lora(**{"rank": 2, **arguments}),
    "freeze": lambda **arguments: backbone().freeze(**arguments),
    "take_blocks": lambda **arguments: backbone().take_blocks(backbone(), **arguments),
    "with_max_sequence_length": lambda **arguments: backbone().with_max_sequence_length(
        **arguments
    ),
    "with_vocabulary_size": lambda **arguments: backbone().with_vocabulary_size(**arguments),
    "predict_text": lambda **arguments: kgpt.TextClassifier(
        backbone(), 2, tokenizer=tokenizer()
    ).predict_text(["a"], **arguments),
    "multi_label_scores": made(
        kgpt.metrics.multi_label_scores, labels=[[0, 1]], logits=[[0.5, -0.5]]
    ),
    "score": lambda **arguments: kgpt.CausalLM(backbone(), tokenizer()).score("a", **arguments),
    "perplexity": lambda **arguments: kgpt.CausalLM(backbone(), tokenizer()).perplexity(
        "a", **arguments
    ),
    "embed": lambda **arguments: kgpt.CausalLM(backbone(), tokenizer()).embed("a", **arguments),
    "TokenAndPositionEmbedding": made(
        layers.TokenAndPositionEmbedding, vocabulary_size=5, max_sequence_length=6, hidden_dim=8
    ),
    "CausalSelfAttention": made(layers.CausalSelfAttention, num_heads=2),
    "FeedForward": made(layers.FeedForward, intermediate_dim=6),
    "DecoderBlock": made(layers.DecoderBlock, num_heads=2, intermediate_dim=6),
    "AdamW": recipes.AdamW,
    "WarmupCosine": made(recipes.WarmupCosine, learning_rate=1e-3, steps=10),
    "WarmupLinear": made(recipes.WarmupLinear, learning_rate=1e-3, steps=10),
    "pretraining_optimizer": made(recipes.pretraining_optimizer, steps=10),
    "finetuning_optimizer": made(recipes.finetuning_optimizer, steps=10),
    "fast_optimizer": made(recipes.fast_optimizer, steps=10),
    "classification": made(data.classification, texts=["a", "b"], **LABELLED),
    "entailment": made(data.entailment, **PAIRS),
    "similarity": made(data.similarity, first_texts=["a"], second_texts=["b"], labels=[0]),
    "regression": made(data.regression, texts=["a"], targets=[0.5], tokenizer=tokenizer),
    "multiple_choice": made(
        data.multiple_choice, contexts=["a", "b"], choices=[["c", "d"]] * 2, **LABELLED
    ),
    "completions": made(data.completions, prompts=["a"], completions=["b"], tokenizer=tokenizer),
    "conversations": made(data.conversations, conversations=[[("a", True)]], tokenizer=tokenizer),
    "documents": made(data.documents, texts=["a", "b"], tokenizer=tokenizer),
    "windows": made(data.windows, path="no.npy", sequence_length=8, batch_size=2),
    "mixture": made(data.mixture, datasets=corpora, weights=[1]),
    "plan": made(kgpt.plan, **SIZES),
    "write_tokens": made(
        data.write_tokens, files_or_texts=TEXTS, tokenizer=tokenizer, path="no.npy"
    ),
    "read_texts": data.read_texts,
    "function_docstrings": data.function_docstrings,
    "character_categories": data.character_categories,
    "stories": data.stories,
    "story_endings": data.story_endings,
    "paraphrases": data.paraphrases,
    "from_beginning": lambda **arguments: data.classification(
        ["a", "b"], [0, 1], tokenizer()
    ).from_beginning(**arguments),
    "Tokenizer.train": made(kgpt.Tokenizer.train, files_or_texts=TEXTS, vocabulary_size=265),
    "Tokenizer.from_file": kgpt.Tokenizer.from_file,
    "Tokenizer.save": lambda **options: tokenizer().save(**options),
    "encode": lambda **arguments: tokenizer().encode("a", **arguments),
    "decode": lambda **arguments: tokenizer().decode([1], **arguments),
    "decode_batch": lambda **arguments: tokenizer().decode_batch(**{"batch": [[1]], **arguments}),
    "token_to_id": lambda **arguments: tokenizer().token_to_id(**arguments),
    "ResumableCheckpoint": made(kgpt.callbacks.ResumableCheckpoint, folder="run"),
    "GenerateSamples": made(kgpt.callbacks.GenerateSamples, prompts=lambda: "a"),
    "Scores": lambda **arguments: kgpt.callbacks.Scores(
        **{"data": data.classification(["a", "b"], [0, 1], tokenizer()), **arguments}
    ),
    "training_curves": made(kgpt.plot.training_curves, history={"loss": [1.0]}, path="no.png"),
    **{
        name: lambda *, _name=name, **arguments: getattr(kgpt.plot, _name)(
            kgpt.CausalLM(backbone(), tokenizer()), "a", **arguments
        )
        for name in ("attention", "next_tokens", "embedding_neighbours")
    },
}
HEADS = ("TextClassifier", "TextRegressor", "MultipleChoice", "Head")
RECIPES = ("pretraining_optimizer", "finetuning_optimizer", "fast_optimizer")
TASKS = ("classification", "entailment", "similarity", "regression", "multiple_choice")
OF_TOKENS = ("completions", "conversations", "documents")

# What is refused with a ValueError that names the argument and the value.
WRONG = [
    *(("GPTBackbone", name, [*COUNTS, None]) for name in SIZES),
    ("GPTBackbone", "intermediate_dim", COUNTS),
    ("GPTBackbone", "max_sequence_length", COUNTS),
    *((maker, "dropout", [*SHARES, None]) for maker in ("GPTBackbone", "DecoderBlock")),
    *((maker, "attention_dropout", SHARES) for maker in ("GPTBackbone", "DecoderBlock")),
    *((maker, "layer_norm_epsilon", NUMBERS) for maker in ("GPTBackbone", "DecoderBlock")),
    *((maker, "norm_first", [*FLAGS, "false"]) for maker in ("GPTBackbone", "DecoderBlock")),
    *(
        (maker, name, FLAGS)
        for maker in ("GPTBackbone", "DecoderBlock", "CausalSelfAttention")
        for name in ("query_key_norm", "rotary_positions")
    ),
    ("GPTBackbone", "zero_init_residual", [*FLAGS, None]),
    *((maker, "recompute", [*FLAGS, None]) for maker in ("GPTBackbone", "DecoderBlock")),
    *(
        (maker, "activation", [None, 5, ["relu"], "gelu_new"])
        for maker in ("GPTBackbone", "DecoderBlock", "FeedForward")
    ),
    ("GPTBackbone", "trainable", ["no", 1]),
    *(("plan", name, COUNTS) for name in ("batch_size", "sequence_length", "steps", "tokens")),
    *(("plan", name, NUMBERS) for name in ("peak_flops", "mfu")),
    ("plan", "price", NOT_BELOW_ZERO),
    ("plan", "compile", [*FLAGS, None]),
    ("plan", "style", ["zero", None, 5]),
    ("plan", "mesh", [0, -1, 1.5, "2", True, None, (2, 2, 2), (2, 0)]),
    ("plan", "optimizer", ["adamwx", 5, keras.optimizers.SGD]),
    ("plan", "hidden_dim", COUNTS),
    ("CausalSelfAttention", "num_heads", COUNTS),
    ("CausalSelfAttention", "dropout", SHARES),
    ("CausalSelfAttention", "attention_dropout", SHARES),
    ("DecoderBlock", "num_heads", COUNTS),
    ("DecoderBlock", "intermediate_dim", COUNTS),
    ("FeedForward", "intermediate_dim", COUNTS),
    *(
        ("TokenAndPositionEmbedding", name, COUNTS)
        for name in ("vocabulary_size", "max_sequence_length", "hidden_dim")
    ),
    ("TokenAndPositionEmbedding", "dropout", SHARES),
    ("TokenAndPositionEmbedding", "learned_positions", FLAGS),
    *((head, "lm_loss_weight", [*NOT_BELOW_ZERO, "no", None]) for head in HEADS),
    *((head, "dropout", [*SHARES, None]) for head in HEADS[:3]),
    ("TextClassifier", "num_classes", [0, 1, 2.0, True, "2", NAN]),
    ("TextClassifier", "class_names", ["ab", 5, {"a", "b"}, {0: "a", 1: "b"}, ["a", "a"]]),
    ("TextClassifier", "class_names", [["a"], [], [None, "b"], [["a"], ["b"]]]),
    *((head, "both_orders", [*FLAGS, None]) for head in ("TextClassifier", "TextRegressor")),
    ("TextClassifier", "multi_label", [*FLAGS, None]),
    ("TextClassifier", "label_smoothing", [*SHARES, None]),
    ("TextRegressor", "num_outputs", COUNTS),
    ("Head", "head", [None, "dense"]),
    ("Head", "num_sequences", COUNTS),
    ("Head", "task_metrics", ["accuracy", ["accuracy"], None]),
    ("from_preset", "preset", ["gpt5", None, ["gpt2"]]),
    ("from_preset", "dropout", [1.0]),
    ("from_preset", "load_weights", FLAGS),
    ("enable_lora", "rank", [*COUNTS, None]),
    ("enable_lora", "lora_alpha", [*NUMBERS, ["query"]]),
    ("enable_lora", "target_layer_names", ["query", [], ["querry"], [5], 4]),
    ("freeze", "num_blocks", [*PLACES, 2, None]),
    ("take_blocks", "num_blocks", [*PLACES, 2, None]),
    ("with_max_sequence_length", "max_sequence_length", [*COUNTS, None]),
    ("with_vocabulary_size", "vocabulary_size", [*COUNTS, 299, 300.0]),
    ("predict_text", "batch_size", COUNTS),
    ("predict_text", "probabilities", FLAGS),
    *(
        (maker, "threshold", [0, 1, 50, *NUMBERS])
        for maker in ("predict_text", "multi_label_scores")
    ),
    *((method, "batch_size", COUNTS) for method in ("score", "perplexity", "embed")),
    *((method, "stride", [*COUNTS, 17]) for method in ("score", "perplexity")),
    ("score", "reduction", ["max", None, True]),
    ("embed", "pooling", ["first", None, True]),
    ("embed", "layer", [*PLACES, 2]),
    *((recipe, "steps", [*COUNTS, None]) for recipe in RECIPES),
    *((recipe, "learning_rate", [*NUMBERS, None]) for recipe in RECIPES),
    *((recipe, "weight_decay", NOT_BELOW_ZERO) for recipe in RECIPES),
    *((recipe, "clip_norm", NUMBERS) for recipe in RECIPES),
    *((recipe, "gradient_accumulation_steps", COUNTS) for recipe in RECIPES),
    *(
        (recipe, name, values)
        for recipe in ("pretraining_optimizer", "fast_optimizer")
        for name, values in {
            "warmup_steps": [-1, 0.1, "3", True, NAN],
            "final_learning_rate": [*NOT_BELOW_ZERO, 1.0],
        }.items()
    ),
    ("pretraining_optimizer", "warmup_steps", [11]),
    ("pretraining_optimizer", "beta_1", SHARES),
    ("pretraining_optimizer", "beta_2", SHARES),
    ("finetuning_optimizer", "warmup", [*NOT_BELOW_ZERO, 1.5, 100, None]),
    ("finetuning_optimizer", "layer_decay", [*NUMBERS, 1.1]),
    ("finetuning_optimizer", "exact", FLAGS),
    ("AdamW", "learning_rate", [*NOT_BELOW_ZERO, None]),
    ("AdamW", "weight_decay", NOT_BELOW_ZERO),
    *(("AdamW", name, NUMBERS) for name in ("clipnorm", "global_clipnorm", "clipvalue")),
    ("AdamW", "beta_1", SHARES),
    ("WarmupCosine", "alpha", [*NOT_BELOW_ZERO, 1.5]),
    *(
        (schedule, name, values)
        for schedule in ("WarmupCosine", "WarmupLinear")
        for name, values in {"learning_rate": NUMBERS, "steps": COUNTS, "start": PLACES}.items()
    ),
    *((task, "sequence_length", [*COUNTS, None]) for task in (*TASKS, *OF_TOKENS)),
    *((task, "batch_size", COUNTS) for task in (*TASKS, *OF_TOKENS)),
    *((task, "seed", PLACES) for task in (*TASKS, *OF_TOKENS)),
    *((task, "repeat", FLAGS) for task in (*TASKS, *OF_TOKENS)),
    *((task, "truncate", ["middle", None, True, ["end"]]) for task in OF_TOKENS),
    *((task, "prompt_weight", [*NOT_BELOW_ZERO, None]) for task in OF_TOKENS[:2]),
    ("classification", "sequence_length", [4]),
    ("classification", "class_names", ["ab", {"a", "b"}, {0: "a", 1: "b"}, 5, [None, "b"]]),
    ("regression", "both_orders", FLAGS),
    ("windows", "sequence_length", COUNTS),
    ("windows", "batch_size", COUNTS),
    ("windows", "seed", PLACES),
    *(("windows", name, FLAGS) for name in ("random_offset", "segment_ids", "repeat")),
    ("mixture", "repeat", [*FLAGS, None]),
    ("windows", "drop_remainder", FLAGS),
    ("windows", "end_of_text_id", [*PLACES, 2]),
    ("windows", "vocabulary_size", COUNTS),
    ("windows", "shard_index", PLACES),
    ("windows", "shard_count", COUNTS),
    ("from_beginning", "steps", COUNTS),
    ("write_tokens", "validation_fraction", [*SHARES, None]),
    *(("write_tokens", name, [*FLAGS, None]) for name in ("end_of_text", "progress")),
    ("write_tokens", "errors", ["ignore", 5]),
    ("write_tokens", "encoding", ["utf-99", 5]),
    ("function_docstrings", "num_choices", [1, *COUNTS]),
    ("function_docstrings", "seed", PLACES),
    ("character_categories", "in_words", FLAGS),
    ("story_endings", "short", FLAGS),
    *((name, "num_stories", COUNTS) for name in ("stories", "story_endings")),
    ("paraphrases", "num_pairs", COUNTS),
    *((name, "seed", PLACES) for name in ("stories", "story_endings", "paraphrases")),
    ("Tokenizer.train", "vocabulary_size", [*COUNTS, None, 10]),
    ("Tokenizer.train", "style", ["gpt3", None, ["gpt2"]]),
    ("Tokenizer.train", "exact", ["no", 1]),
    ("encode", "allow_special", FLAGS),
    ("decode", "skip_special_tokens", FLAGS),
    ("decode_batch", "batch", [5, None, "abc"]),
    ("token_to_id", "token", [5, None]),
    ("ResumableCheckpoint", "save_freq", ["step", 0, 1.5, True, None]),
    ("GenerateSamples", "max_new_tokens", [*COUNTS, None]),
    ("GenerateSamples", "prompts", [5, None, [5], {"text": ["a"]}]),
    ("GenerateSamples", "stream", [True, "no"]),
    ("GenerateSamples", "seed", PLACES),
    ("GenerateSamples", "sampler", ["topk", 5, None]),
    ("GenerateSamples", "stop_token_ids", ["end", [1.5], -1, True]),
    ("GenerateSamples", "return_prompt", FLAGS),
    ("GenerateSamples", "temperature", NUMBERS),
    ("GenerateSamples", "top_k", COUNTS),
    ("GenerateSamples", "stop", ["", [5], []]),
    ("GenerateSamples", "min_new_tokens", [*PLACES, 51]),
    ("GenerateSamples", "num_return_sequences", COUNTS),
    ("GenerateSamples", "return_log_probabilities", [True, "no"]),
    ("Scores", "prefix", [None, 5]),
    ("training_curves", "steps_per_epoch", COUNTS),
    ("attention", "layer", PLACES),
    ("attention", "head", PLACES),
    ("next_tokens", "k", COUNTS),
    ("embedding_neighbours", "k", COUNTS),
]


@pytest.mark.parametrize(
    ("maker", "argument", "value"),
    [
        pytest.param(maker, argument, value, id=f"{maker}-{argument}-{i}")
        for maker, argument, values in WRONG
        for i, value in enumerate(values)
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(maker, argument, value):
    with pytest.raises(ValueError, match=r"Received: (.|\n)") as refused:
        MAKERS[maker](**{argument: value})

    assert argument in str(refused.value)


# === Objects of another kind, and advice ===


@pytest.mark.parametrize(
    ("maker", "argument", "value", "advice"),
    [
        *(
            (maker, "backbone", lambda: kgpt.CausalLM(backbone()), r"Try backbone=model\.backbone")
            for maker in ("CausalLM", *HEADS)
        ),
        ("TextClassifier", "backbone", lambda: None, "backbone=None"),
        ("TextClassifier", "backbone", lambda: "gpt2", "from_huggingface"),
        ("Head", "backbone", lambda: keras.layers.Dense(1), "of type keras.Dense"),
        *(
            (maker, "tokenizer", lambda value=value: value, "Tokenizer")
            for maker in ("CausalLM", *HEADS, *TASKS, *OF_TOKENS, "write_tokens")
            for value in TOKENIZERS
        ),
        ("CausalLM", "tokenizer", lambda: "t.json", r"Try .*Tokenizer\.from_file\('t\.json'\)"),
        ("windows", "path", lambda: None, "path must be a path"),
        ("read_texts", "path", lambda: 5, "path must be a path"),
        ("write_tokens", "path", lambda: 5, "path must be a path"),
        ("Tokenizer.from_file", "path", lambda: 5, "path must be a path"),
        ("Tokenizer.save", "path", lambda: None, "path must be a path"),
        ("ResumableCheckpoint", "folder", lambda: None, "folder must be a path"),
    ],
)
def test_an_object_of_another_kind_is_refused_with_advice(maker, argument, value, advice):
    with pytest.raises(TypeError, match=rf"{argument} must be a.* Received: .*") as refused:
        MAKERS[maker](**{argument: value()})

    assert refused.match(advice)


def test_a_tokenizer_of_transformers_is_refused_with_the_way_to_read_it():
    transformers = pytest.importorskip("transformers")
    rust = tokenizer()._rust
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=rust)

    with pytest.raises(TypeError, match=r"kgpt\.Tokenizer\(theirs\.backend_tokenizer\.to_str"):
        kgpt.CausalLM(backbone(), tokenizer=theirs)
    with pytest.raises(TypeError, match=r"kgpt\.Tokenizer\(theirs\.to_str\(\)\)"):
        kgpt.CausalLM(backbone(), tokenizer=rust)
    read = kgpt.Tokenizer(theirs.backend_tokenizer.to_str())
    assert read.encode("a fine film") == tokenizer().encode("a fine film")


@pytest.mark.parametrize(
    ("maker", "argument", "value", "advice"),
    [
        ("pretraining_optimizer", "warmup_steps", 0.1, r"for a share, try int\(share \* steps\)"),
        ("finetuning_optimizer", "warmup", 100, r"for a count, try count / steps"),
        ("pretraining_optimizer", "final_learning_rate", 1.0, "not be above the peak"),
        ("TextClassifier", "class_names", {0: "a", 1: "b"}, r"list\(class_names\.values\(\)\)"),
        ("GPTBackbone", "activation", "gelu_new", "gelu_tanh"),
        ("read_texts", "path", "a\0b", "path must be a path, in which no name has a NUL"),
        ("write_tokens", "path", Path("a\0b.npy"), "path must be a path, in which no name"),
        ("ResumableCheckpoint", "folder", "a\0b", "folder must be a path, in which no name"),
        (
            "GPTBackbone",
            "dropout",
            1.0,
            r"dropout must be a number in \[0, 1\)\. Received: .*=1\.0",
        ),
        ("GPTBackbone", "num_layers", "2", "num_layers='2' of type str"),
    ],
)
def test_a_refusal_says_what_to_do(maker, argument, value, advice):
    with pytest.raises(ValueError, match=advice):
        MAKERS[maker](**{argument: value})


@pytest.mark.parametrize("tokens", [5, None, [5], {"<a>", "<b>"}, {"<a>": 1}])
def test_special_tokens_without_an_order_are_refused(tokens):
    for call in (
        lambda: tokenizer().with_special_tokens(tokens),
        lambda: kgpt.Tokenizer.train(TEXTS, 265, special_tokens=tokens),
    ):
        with pytest.raises(ValueError, match=r"pecial token.*must be a"):
            call()


@pytest.mark.parametrize("state", [5, None, {"next_batch": 1.5}, {"next_batch": "1"}, {}])
def test_a_state_that_is_none_is_refused(state):
    batches = data.classification(["a", "b"], [0, 1], tokenizer())

    with pytest.raises(ValueError, match="must come from the same data"):
        batches.set_state(state)


# === What is meant goes on ===


def test_numpys_numbers_become_pythons():
    made = kgpt.GPTBackbone(
        np.int64(19), np.int32(1), np.uint8(2), np.int64(8), dropout=np.float32(0.5),
        norm_first=np.bool_(False), max_sequence_length=np.int16(9),
    )  # fmt: skip

    for name, kind in {"num_layers": int, "dropout": float, "norm_first": bool}.items():
        assert type(getattr(made, name)) is kind
    assert made.dropout == 0.5


def test_ends_of_intervals_are_taken_where_they_belong():
    assert MAKERS["GPTBackbone"](dropout=0, attention_dropout=None).dropout == 0
    assert MAKERS["TextClassifier"](lm_loss_weight=0).lm_loss_weight == 0
    assert MAKERS["finetuning_optimizer"](layer_decay=1, warmup=1, weight_decay=0).layer_decay == 1
    optimizer = MAKERS["pretraining_optimizer"](final_learning_rate=0, clip_norm=None, beta_1=0)
    assert (optimizer.global_clipnorm, optimizer.beta_1) == (None, 0)
    assert recipes.AdamW(0.0).get_config()["learning_rate"] == 0  # as of a saved one
    assert recipes.AdamW(keras.optimizers.schedules.CosineDecay(1.0, 5)).learning_rate == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_batch_for_each_update_is_no_accumulation(recipe):
    optimizer = MAKERS[recipe](gradient_accumulation_steps=1)

    assert optimizer.get_config() == {**MAKERS[recipe]().get_config(), "name": optimizer.name}


@pytest.mark.parametrize("names", [("a", "b"), np.array(["a", "b"]), iter(["a", "b"])])
def test_names_of_classes_may_be_any_sequence(names):
    assert MAKERS["TextClassifier"](num_classes=None, class_names=names).class_names == ["a", "b"]


def test_samples_take_what_generate_takes():
    samples = kgpt.callbacks.GenerateSamples(
        ["a", "b"], 5, sampler="greedy", seed=1, stop_token_ids="auto", sliding_window=True
    )

    assert samples.prompts == ["a", "b"]
    assert samples.kwargs["sampler"] == "greedy"


# === All of them ===

PUBLIC = [
    *(getattr(kgpt, name).__init__ for name in ("GPTBackbone", "CausalLM", *HEADS)),
    *(getattr(layers, name).__init__ for name in layers.__all__),
    *(getattr(data, name) for name in data.__all__),
    *(
        recipe.__init__ if inspect.isclass(recipe) else recipe
        for recipe in (getattr(recipes, name) for name in recipes.__all__ if name != "Settings")
    ),
    *(
        getattr(kgpt.callbacks, name).__init__
        for name in ("ResumableCheckpoint", "GenerateSamples", "Scores")
    ),
    *(
        getattr(kgpt.Tokenizer, name)
        for name in ("train", "encode_batch", "decode", "decode_batch")
    ),
    kgpt.CausalLM.generate,
    kgpt.CausalLM.score,
    kgpt.CausalLM.perplexity,
    kgpt.CausalLM.embed,
    *(getattr(kgpt, head).predict_text for head in HEADS[:3]),
    kgpt.metrics.multi_label_scores,
    *(
        getattr(kgpt.GPTBackbone, name)
        for name in ("enable_lora", "save_lora_weights", "load_lora_weights", "freeze")
    ),
    kgpt.GPTBackbone.take_blocks,
    kgpt.GPTBackbone.with_vocabulary_size,
    kgpt.GPTBackbone.with_max_sequence_length,
    *(getattr(kgpt.plot, name) for name in kgpt.plot.__all__),
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__qualname__)
def test_each_number_and_flag_of_a_public_function_has_a_rule(function):
    signature = inspect.signature(function)
    parameters = {
        name: one.annotation
        for name, one in signature.parameters.items()
        if {int, float, bool} & {one.annotation, *typing.get_args(one.annotation)}
    }

    assert set(parameters) <= {*arguments.RULES, "save_freq"}
    assert not parameters or hasattr(function, "__wrapped__")
