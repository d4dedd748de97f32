"""The parts of the examples that users copy; the scripts themselves run for minutes."""

import argparse
import importlib.util
import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import kgpt

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_head_of_ones_own_is_short_learns_and_travels_in_a_file(tmp_path):
    example = load("custom_head")
    keras.utils.set_random_seed(0)
    preferred, others = example.comparisons("validation", 96)
    tokenizer = kgpt.Tokenizer.train([*preferred, *others], vocabulary_size=400)
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 2, 24, max_sequence_length=64)
    model = example.RewardModel(backbone, tokenizer=tokenizer, lm_loss_weight=0.1)
    model.compile(keras.optimizers.Adam(1e-2))
    data = example.batches(preferred, others, tokenizer)

    model.fit(data, epochs=6, verbose=0)
    scores = model.predict(data, verbose=0)[..., 0]  # (batch, 2)
    model.save(tmp_path / "reward.keras")
    loaded = keras.saving.load_model(tmp_path / "reward.keras")

    assert len(inspect.getsource(example.RewardModel).splitlines()) < 20
    assert (scores[:, 0] > scores[:, 1]).mean() > 0.9
    np.testing.assert_allclose(loaded.predict(data, verbose=0)[..., 0], scores, atol=1e-5)


@pytest.mark.parametrize("with_validation", [True, False])
def test_the_tutorial_reads_a_table_of_ones_own(tmp_path, monkeypatch, with_validation):
    pytest.importorskip("datasets", reason="own tables are read by the package datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [f'text "{i}" of many, with a comma\t{i % 2}' for i in range(20)]
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "\n".join(rows[:10]) + "\n")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "\n".join(rows[10:]) + "\n")
    arguments = argparse.Namespace(
        train=str(tmp_path / "train.tsv"),
        validation=str(tmp_path / "dev.tsv") if with_validation else None,
        text=["sentence"],
        label="label",
        regression=False,
    )

    columns = load("finetune").own_table(arguments)

    train, valid = columns("train"), columns("validation")
    assert (len(train["texts"]), len(valid["texts"])) == ((10, 10) if with_validation else (9, 1))
    assert set(train["labels"]) == {0, 1}
    assert not set(train["texts"]) & set(valid["texts"])
    if with_validation:
        assert train["texts"][0] == 'text "0" of many, with a comma'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("one,0.5\ntwo,1\n", "classes, one in each row.*--regression"),
        ("one,x\ntwo,\n", "Received: None.*Remove rows without"),
    ],
)
def test_labels_that_the_tutorial_can_not_learn_from_are_refused(
    tmp_path, monkeypatch, rows, message
):
    pytest.importorskip("datasets", reason="own tables are read by the package datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.csv").write_text("text,label\n" + 5 * rows)
    arguments = argparse.Namespace(
        train=str(tmp_path / "a.csv"),
        validation=None,
        text=["text"],
        label="label",
        regression=False,
    )

    with pytest.raises(ValueError, match=message):
        load("finetune").own_table(arguments)("train")


def test_the_ablation_reads_the_tasks_as_their_authors_publish_them(tmp_path):
    example = load("ablation")
    files = {
        "sst2/train.tsv": "a fine film\t1\n",
        "cola/in_domain_train.tsv": 'gj04\t0\t*\tHe "said.\n',
        "stsb/sts-train.csv": 'a\tb\tc\t1\t4.2\tOne "quote\tTwo texts\textra\n',
        "rte/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA premise\tSo\tentailment\n",
        "copa/copa-dev.xml": '<copa-corpus><item id="1" asks-for="cause" '
        'most-plausible-alternative="2"><p>It fell.</p><a1>No</a1><a2>Yes</a2></item>'
        "</copa-corpus>",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    read = {task: example.READERS[task](tmp_path / task, True) for task in example.READERS}

    assert read["sst2"] == (["a fine film"], [1])
    assert read["cola"] == (['He "said.'], [0])
    assert read["stsb"] == ([('One "quote', "Two texts")], [pytest.approx(1.0)])
    assert read["rte"] == ([("A premise", "So")], [1])
    assert read["copa"] == ((["It fell. What was the cause?"], [["No", "Yes"]]), [1])


def test_a_linear_model_of_words_is_scored_on_each_task():
    pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")
    example = load("ablation")
    texts = ["good good film", "bad dull film"] * 4
    pairs = [("a cat sat", "a cat sat"), ("a cat sat", "the dog ran")] * 4
    choices = ["one two three"] * 8, [["one two", "nine ten"], ["six ten", "two three"]] * 4
    train = {"sst2": (texts, [1, 0] * 4), "stsb": (pairs, [1.0, -1.0] * 4)}
    train["copa"] = choices, [0, 1] * 4

    outputs = {task: example.tf_idf_outputs(task, train[task], train[task]) for task in train}

    assert outputs["sst2"].argmax(axis=1).tolist() == [1, 0] * 4
    assert outputs["copa"].argmax(axis=1).tolist() == [0, 1] * 4
    assert np.corrcoef(outputs["stsb"][:, 0], train["stsb"][1])[0, 1] > 0.99


@pytest.mark.parametrize("compression", ["gzip", "xz", "bz2"])
def test_the_tutorial_reads_a_compressed_table(tmp_path, monkeypatch, compression):
    pandas = pytest.importorskip("pandas", reason="pandas writes the table of this test")
    pytest.importorskip("datasets", reason="own tables are read by the package datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    frame = pandas.DataFrame({"text": [f"text {i}" for i in range(20)], "label": [0, 1] * 10})
    suffix = {"gzip": "gz"}.get(compression, compression)
    file = tmp_path / f"train.csv.{suffix}"
    frame.to_csv(file, index=False, compression=compression)
    arguments = argparse.Namespace(
        train=str(file), validation=None, text=["text"], label="label", regression=False
    )

    columns = load("finetune").own_table(arguments)

    assert len(columns("train")["texts"]) == 18
    assert set(columns("train")["texts"]) < set(frame["text"])


def run(monkeypatch, name, *arguments):
    example = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    example.main()


SMALL = {  # arguments, or constants of a script that has none, for a run of seconds
    "pretrain": [
        *("--preset", "gpt_nano", "--vocabulary-size", "300", "--sequence-length", "16"),
        *("--batch-size", "2", "--steps", "2", "--epochs", "1"),
    ],
    "shakespeare": {"STEPS": 100, "EVALUATIONS": 1, "CONTEXT": 16, "BATCH": 2},
    "fast": {"STEPS": 2, "EVALUATIONS": 1, "CONTEXT": 16, "BATCH": 2},
}
BOOK = "".join(f"Chapter {i}. It was the best of {i % 7} times \u2603.\n" for i in range(400))


def run_small(monkeypatch, name, folder):
    (folder / "book.txt").write_text(BOOK, encoding="utf-8")
    options = SMALL[name]
    example = load(name)
    if isinstance(options, dict):
        for constant, value in options.items():
            monkeypatch.setattr(example, constant, value)
        one_block = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8}
        backbone = kgpt.GPTBackbone
        monkeypatch.setattr(kgpt, "GPTBackbone", lambda **sizes: backbone(**{**sizes, **one_block}))
        options = []
    arguments = [folder / "book.txt", "--output", folder / "run", *options]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    example.main()


@pytest.mark.parametrize("name", ["pretrain", "shakespeare", "fast"])
def test_a_model_is_saved_before_anything_can_go_wrong_with_it(tmp_path, monkeypatch, name):
    def fail(*args, **kwargs):
        raise RuntimeError("after training")

    monkeypatch.setattr(kgpt.CausalLM, "generate", fail)
    monkeypatch.setattr(kgpt.callbacks.GenerateSamples, "on_epoch_end", lambda *args: None)
    monkeypatch.setattr(kgpt.plot, "training_curves", fail)

    with pytest.raises(RuntimeError, match="after training"):
        run_small(monkeypatch, name, tmp_path)

    keras.saving.load_model(tmp_path / "run" / "lm.keras")


@pytest.mark.parametrize(
    ("name", "arguments", "file", "last"),
    [
        ("custom_head", [], "reward.keras", "predict"),
        ("finetune", ["--task", "categories"], "categories/model.keras", "predict_text"),
    ],
)
def test_a_head_is_saved_before_it_predicts(tmp_path, monkeypatch, name, arguments, file, last):
    def fail(*args, **kwargs):
        raise RuntimeError("after training")

    for kind in (kgpt.CausalLM, kgpt.Head):
        monkeypatch.setattr(kind, "fit", lambda *args, **kwargs: None)
    monkeypatch.setattr(kgpt.Head if last == "predict" else kgpt.TextClassifier, last, fail)

    with pytest.raises(RuntimeError, match="after training"):
        run(monkeypatch, name, *arguments, "--output", tmp_path)

    keras.saving.load_model(tmp_path / file)


COLUMNS = {  # of each kind, in small, as the tutorial's tasks give them
    "classes": {"texts": ["a fine film", "a dull one"] * 4, "labels": ["good", "bad"] * 4},
    "numbers": {"texts": ["one half", "one ten"] * 4, "targets": [0.5, 10.0] * 4},
    "pairs": {
        "first_texts": ["Ben saw Mia."] * 8,
        "second_texts": ["Mia was seen by Ben.", "Ben was seen by Mia."] * 4,
        "labels": ["same", "different"] * 4,
    },
    "choices": {
        "contexts": ["The sky is"] * 8,
        "choices": [["blue", "loud"]] * 8,
        "labels": [0] * 8,
    },
    "sums": {"prompts": ["1 + 2 = ", "2 + 2 = "] * 4, "completions": ["3", "4"] * 4},
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_tutorial_says_how_good_it_is_and_where_it_is_wrong(
    tmp_path, monkeypatch, capsys, kind
):
    example = load("finetune")
    task = example.Task(lambda split: COLUMNS[kind], epochs=1)
    monkeypatch.setitem(example.BUILT_IN, "categories", task)
    monkeypatch.setattr(example, "MOST_TOKENS", 32)
    monkeypatch.setattr(example, "pretrain", lambda *args: None)
    monkeypatch.setattr(kgpt.CausalLM, "fit", lambda *args, **kwargs: None)
    monkeypatch.setattr(kgpt.Head, "fit", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        sys, "argv", ["finetune.py", "--task", "categories", "--output", str(tmp_path)]
    )

    example.main()

    out = capsys.readouterr().out
    assert "On 8 examples that it has not seen:" in out
    assert (tmp_path / "categories" / "answers.png").stat().st_size > 1000
    expected = {
        "classes": ["50.0% right: the commonest answer, good", "50.0% right: a guess among 2"],
        "numbers": ["4.750 mean absolute error of always the mean", "The farthest:"],
        "pairs": ["Ben saw Mia. / ", "50.0% right: the commonest answer, same"],
        "choices": ["50.0% right: a guess", "The sky is\n    -> "],
        "sums": ["50.0% right: the commonest answer, 3", "1 + 2 =\n    -> "],
    }
    for line in expected[kind]:
        assert line in out


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_tutorial_pretrains_on_the_texts_of_a_small_table(tmp_path, count):
    example = load("finetune")
    columns = {"texts": ["a fine film", "a dull one"] * count}
    tokenizer = kgpt.Tokenizer.train(columns["texts"], style="characters")
    backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, 1, 1, 4, max_sequence_length=64)

    example.pretrain(backbone, tokenizer, columns, 2, 64, tmp_path)

    assert (tmp_path / "lm.keras").exists()


def test_the_built_in_tasks_have_columns_that_a_reader_understands():
    example = load("finetune")
    columns = {name: task.load("validation") for name, task in example.BUILT_IN.items()}

    labels = dict(zip(columns["categories"]["texts"], columns["categories"]["labels"], strict=True))
    value = example.BUILT_IN["values"].say
    values = dict(zip(columns["values"]["texts"], columns["values"]["targets"], strict=True))
    assert len(columns) == 5
    assert all(" " in label or label in ("dash", "space") for label in labels.values())
    for name, target in values.items():
        if "FIFTY" in name.split() and "THOUSAND" not in name:
            assert value(target) == "50"
    assert value(math.log10(1.5)) == "0.5"
    assert value(-math.log10(1.5)) == "-0.5"


@pytest.fixture
def untrainable(monkeypatch):
    def fit(*args, **kwargs):
        raise AssertionError("training has begun")

    monkeypatch.setattr(keras.Model, "fit", fit)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pretrain", ["--steps", 2, "--epochs", 3]),
        ("pretrain", ["--column", "text"]),
        ("finetune", ["--epochs", 0]),
        ("finetune", ["--train", "missing.csv"]),
        ("finetune", ["--train", "missing.tsv.gz"]),
        ("finetune", ["--train", __file__]),
        ("finetune", ["--train", "."]),
        ("finetune", ["--train", "a/b", "--validation", "dev.csv"]),
        ("finetune", ["--train", "a/b", "--task", "values"]),
        ("finetune", ["--train", "a/b", "--text", "a", "b", "c"]),
        ("finetune", ["--task", "values", "--validation", "dev.csv"]),
        ("finetune", ["--regression"]),
        ("ablation", ["data", "--epochs", 0]),
        ("ablation", ["data", "--examples", 0]),
        ("shakespeare", ["--column", "text"]),
        ("fast", ["--column", "text"]),
        ("generate_with_onnxruntime", ["--prompt", ""]),
    ],
)
def test_arguments_that_can_not_work_are_refused(untrainable, monkeypatch, capsys, name, arguments):
    if name == "generate_with_onnxruntime":
        pytest.importorskip("onnxruntime", reason="the example imports onnxruntime")
    with pytest.raises(SystemExit):
        run(monkeypatch, name, *arguments)
    assert f"{name}.py: error: " in capsys.readouterr().err


def test_packages_of_the_ablation_are_asked_for_before_training(untrainable, monkeypatch, capsys):
    example = load("ablation")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["ablation.py", "data"])

    with pytest.raises(SystemExit):
        example.main()

    assert "pip install scikit-learn scipy" in capsys.readouterr().err


def test_files_of_the_ablation_are_read_before_training(untrainable, monkeypatch, tmp_path):
    for package in ("sklearn", "scipy"):
        pytest.importorskip(package, reason="the ablation asks for it first")

    with pytest.raises(FileNotFoundError, match=r"train\.tsv"):
        run(monkeypatch, "ablation", tmp_path, "--tasks", "sst2", "--output", tmp_path / "run")


def start_python(*arguments, **environment):
    """Runs Python in a process of its own; its output, with its errors between."""
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend(), **environment}
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which JAX has set in this process
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.mark.slow  # a process of its own
def test_the_first_command_runs_to_its_end_with_short_windows_on_a_console_of_ascii(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK, encoding="utf-8")

    done = start_python(
        EXAMPLES / "pretrain.py",
        *(tmp_path / "book.txt", "--output", tmp_path / "run", *SMALL["pretrain"]),
        *("--prompt", "\u2603"),
        PYTHONIOENCODING="ascii",
    )

    out = done.stdout.decode("ascii")
    assert done.returncode == 0, out
    assert (tmp_path / "run" / "lm.keras").exists()
    assert "perplexity" in out
    assert "what it writes after '?'" in out
    assert re.search(r"held out: perplexity [\d.]+, [\d.]+ bits per byte", out)
    following = out.split("what to do next")[1]
    assert all(script in following for script in ("generate(", "finetune.py", "pretrain.py"))
    _, own = out.split("Training the tokenizer")
    noise = re.compile(r"^(?:[IWEF]\d{4} |WARNING)|GeneratorDataset|profiler|CUDA", re.MULTILINE)
    assert not noise.findall(own)


def is_tutorial(path):
    return "# %%" in path.read_text(encoding="utf-8")


HELP = """
import runpy, sys
for sys.argv in [[path, "--help"] for path in sys.argv[1:]]:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code)
"""


@pytest.mark.slow  # a process of its own, one for all: it takes its time to import TensorFlow
def test_an_example_says_what_it_does():
    paths = [path for path in sorted(EXAMPLES.glob("*.py")) if not is_tutorial(path)]
    if importlib.util.find_spec("onnxruntime") is None:
        paths = [path for path in paths if path.stem != "generate_with_onnxruntime"]

    done = start_python("-c", HELP, *paths)

    out = done.stdout.decode(errors="replace")
    assert done.returncode == 0, out
    assert out.count("ended with 0") == len(paths), out
    for path in paths:
        source = path.read_text(encoding="utf-8")
        assert f"usage: {path.name}" in out
        assert 'sys.stdout.reconfigure(errors="replace")' in source
        assert source.index("TF_CPP_MIN_LOG_LEVEL") < source.index("import keras")


@pytest.mark.parametrize("kind", ["book", "table"])
def test_pretraining_reads_one_book_or_table_of_ones_own(tmp_path, monkeypatch, kind):
    lines = [f"Chapter {i}. It was the best of {i % 7} times.\n" for i in range(800)]
    (tmp_path / "my_book.txt").write_text("".join(lines))
    if kind == "table":
        pytest.importorskip("pyarrow", reason="tables are read by pyarrow (the extra `tables`)")
        quoted = "".join(f'"{line}"\n' for line in lines)
        (tmp_path / "reviews.csv").write_text("review\n" + quoted)
    source = {"book": ["my_book.txt"], "table": ["reviews.csv", "--column", "review"]}[kind]

    def stop(lm, batches, **options):
        raise RuntimeError(f"{len(batches)} batches have been read")

    (tmp_path / "run").mkdir()  # of an earlier run on other text
    kgpt.Tokenizer.train(["xyz"], style="characters").save(tmp_path / "run" / "tokenizer.json")
    monkeypatch.setattr(kgpt.CausalLM, "fit", stop)  # the first command goes on to the end
    with pytest.raises(RuntimeError, match="batches have been read"):
        run(
            monkeypatch,
            "pretrain",
            tmp_path / source[0],
            *source[1:],
            *("--output", tmp_path / "run", "--preset", "gpt_nano", "--vocabulary-size", 300),
            *("--sequence-length", 128, "--batch-size", 2, "--steps", 2, "--epochs", 1),
        )

    tokenizer = kgpt.Tokenizer.from_file(tmp_path / "run" / "tokenizer.json")
    assert (tokenizer.style, tokenizer.vocabulary_size) == ("gpt2", 300)
    held_out = tokenizer.decode(np.load(tmp_path / "run" / "tokens.validation.npy"))
    held_out = held_out.replace("<|endoftext|>", "")
    assert set(held_out.splitlines(keepends=True)) <= set(lines)
    if kind == "book":
        assert "".join(lines).endswith(held_out)
