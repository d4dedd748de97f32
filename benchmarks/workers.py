"""What is measured: kgpt and its peers at the same work, each in a process of its own.

The first line on standard input is the task, as JSON; the answer is a line of JSON with what is
known once it is prepared. Each further line asks for one measurement, whose answer has a "value".
Between the lines the process is idle, so that several of them can take turns.
"""

import contextlib
import gc
import itertools
import json
import math
import os
import re
import statistics
import sys
import time
import traceback
from pathlib import Path

import limits

WARM_UP_STEPS = 3


# === Models: the same GPT-2, dropout everywhere or nowhere ===


def make_kgpt(spec):
    import kgpt

    size = spec["size"]
    backbone = kgpt.GPTBackbone(
        size["vocabulary"],
        size["layers"],
        size["heads"],
        size["width"],
        dropout=spec.get("dropout", 0.0),
        attention_dropout=spec.get("attention_dropout"),
        max_sequence_length=size["context"],
        dtype=spec["dtype"],
    )
    return kgpt.CausalLM(backbone)


def kgpt_attention(spec, length):
    """How kgpt's attention is computed in training: "fused", "tiled" or "reference"."""
    from kgpt.kernels import attention

    size, rate = spec["size"], spec.get("attention_dropout")
    shape = (size["batch"], length, size["heads"], size["width"] // size["heads"])
    rate = spec.get("dropout", 0.0) if rate is None else rate
    return attention.choice(shape, spec["dtype"].removeprefix("mixed_"), rate)


def make_keras_hub(spec):
    import keras_hub

    size = spec["size"]
    backbone = keras_hub.models.GPT2Backbone(
        size["vocabulary"],
        size["layers"],
        size["heads"],
        size["width"],
        4 * size["width"],
        dropout=spec.get("dropout", 0.0),
        max_sequence_length=size["context"],
        dtype=spec["dtype"],
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def make_bare_keras(spec):
    """What Keras's own layers give without a package, as in a tutorial."""
    import keras
    from keras import layers

    keras.config.set_dtype_policy(spec["dtype"])
    size, rate = spec["size"], spec.get("dropout", 0.0)
    width, heads = size["width"], size["heads"]
    token_ids = keras.Input((size["context"],), dtype="int32")
    tokens = layers.ReversibleEmbedding(
        size["vocabulary"], width, embeddings_initializer=keras.initializers.RandomNormal(0, 0.02)
    )
    positions = layers.Embedding(
        size["context"], width, embeddings_initializer=keras.initializers.RandomNormal(0, 0.02)
    )
    h = layers.Dropout(rate)(tokens(token_ids) + positions(keras.ops.arange(size["context"])))
    for _ in range(size["layers"]):
        normed = layers.LayerNormalization(epsilon=1e-5)(h)
        attention = layers.MultiHeadAttention(heads, width // heads, dropout=rate)
        h = h + layers.Dropout(rate)(attention(normed, normed, use_causal_mask=True))
        inner = layers.Dense(4 * width)(layers.LayerNormalization(epsilon=1e-5)(h))
        inner = layers.Activation(lambda x: keras.ops.gelu(x, approximate=True))(inner)
        h = h + layers.Dropout(rate)(layers.Dense(width)(inner))
    h = layers.LayerNormalization(epsilon=1e-5)(h)
    return keras.Model(token_ids, tokens(h, reverse=True))


def make_transformers(spec):
    import transformers

    size, rate = spec["size"], spec.get("dropout", 0.0)
    config = transformers.GPT2Config(
        vocab_size=size["vocabulary"],
        n_positions=size["context"],
        n_embd=size["width"],
        n_layer=size["layers"],
        n_head=size["heads"],
        resid_pdrop=rate,
        embd_pdrop=rate,
        attn_pdrop=rate,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.GPT2LMHeadModel(config)


KERAS_MODELS = {
    "kgpt": make_kgpt,
    "kgpt_int8": make_kgpt,
    "kgpt_full_logits": make_kgpt,
    "keras_hub": make_keras_hub,
    "bare_keras": make_bare_keras,
}


# === Training: random tokens, AdamW, each step's end and loss ===


def make_trainer(spec):
    """A function of a number of steps that gives `(end, loss)` of each, and the parameters."""
    if spec["implementation"].startswith("transformers"):
        return transformers_trainer(spec)
    return keras_trainer(spec)


def random_windows(spec, rows):
    """Token ids and the next token of each, both `(rows, context)`."""
    import numpy as np

    size = spec["size"]
    shape = (rows, size["context"] + 1)
    tokens = np.random.default_rng(0).integers(0, size["vocabulary"], shape, dtype="int32")
    return tokens[:, :-1], tokens[:, 1:]


def keras_trainer(spec):
    import keras
    import numpy as np

    name = spec["implementation"]
    model = KERAS_MODELS[name](spec)
    own_loss = name == "kgpt"
    loss = None if own_loss else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.AdamW(1e-4, weight_decay=0.01),
        loss=loss,
        jit_compile=spec.get("jit_compile", "auto"),
    )
    batch = spec["size"]["batch"]

    def run(steps):
        x, y = random_windows(spec, steps * batch)
        if name == "keras_hub":
            x = {"token_ids": x, "padding_mask": np.ones_like(x)}
        return fit(model, x, y, batch)

    return run, model.count_params()


def fit(model, x, y, batch):
    """Trains one epoch; `(end, loss)` of each step."""
    import keras

    ends = []
    record = keras.callbacks.LambdaCallback(
        # The loss is read first, which waits for the step to end.
        on_train_batch_end=lambda _, logs: ends.append((float(logs["loss"]), time.perf_counter()))
    )
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0, callbacks=[record])
    return [(end, loss) for loss, end in ends]


def transformers_trainer(spec):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_transformers(spec).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.01, fused=True)
    is_mixed = spec["dtype"] != "float32"
    batch = spec["size"]["batch"]

    def loss_of(token_ids, targets):
        logits = model(input_ids=token_ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    if spec["implementation"] == "transformers_compiled":
        loss_of = torch.compile(loss_of)

    def run(steps):
        ends = []
        arrays = [torch.tensor(a).long().split(batch) for a in random_windows(spec, steps * batch)]
        for token_ids, targets in zip(*arrays, strict=True):
            with torch.autocast(device, torch.bfloat16, enabled=is_mixed):
                loss = loss_of(token_ids.to(device), targets.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ends.append((time.perf_counter(), loss.item()))
        return ends

    return run, sum(p.numel() for p in model.parameters())


def train(spec):
    """Tokens/s of training steps."""
    size = spec["size"]
    run, parameters = make_trainer(spec)
    start = time.perf_counter()
    ends = run(WARM_UP_STEPS)
    initial_loss = ends[0][1]
    check_same_work(size, parameters, initial_loss)
    is_kgpt = spec["implementation"].startswith("kgpt")
    yield {
        **({"attention": kgpt_attention(spec, size["context"])} if is_kgpt else {}),
        "parameters": parameters,
        "initial_loss": initial_loss,
        "first_step_seconds": ends[0][0] - start,
    }
    while True:
        seconds = step_seconds(run(spec["steps"] + 1))
        tokens_per_second = size["batch"] * size["context"] / statistics.median(seconds)
        yield {"value": tokens_per_second, "seconds": seconds, "peak_mb": peak_mb()}


def step_seconds(ends):
    """From the end of one step to that of the next; the first one prepares the data too."""
    times = [end for end, _ in ends]
    return [b - a for a, b in itertools.pairwise(times)]


def check_same_work(size, parameters, initial_loss):
    """Raises ValueError if the model is another one, or its loss another mean.

    States of unit variance and embeddings of N(0, 0.02) make logits of variance 0.02^2 width, and
    these an expected loss of ln V + variance / 2. keras-hub's are N(0, 0.01): 1% less for GPT-2.
    """
    expected = math.log(size["vocabulary"]) + 0.02**2 * size["width"] / 2
    if parameters != limits.count_parameters(size) or abs(initial_loss / expected - 1) > 0.02:
        raise ValueError(
            f"Not the same work: {parameters} parameters and a first loss of {initial_loss:.4f}, "
            f"expected {limits.count_parameters(size)} and {expected:.4f}."
        )


def peak_mb():
    """The most memory so far: of the accelerator, if there is one, else of the process."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if os.environ.get("KERAS_BACKEND") == "jax" and "jax" in sys.modules:
        import jax

        statistics_ = jax.local_devices()[0].memory_stats()
        if statistics_ and jax.default_backend() != "cpu":
            return statistics_["peak_bytes_in_use"] / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory(spec):
    """Peak memory of two training steps, in MB, without that of the imports."""
    import_package(spec["implementation"])
    baseline = peak_mb()
    run, _ = make_trainer(spec)
    run(2)
    yield {"value": peak_mb() - baseline, "imports_mb": baseline}


def import_package(name):
    if name.startswith("transformers"):
        import torch  # noqa: F401
        import transformers  # noqa: F401

        return
    import keras  # noqa: F401

    if name.startswith("kgpt"):
        import kgpt  # noqa: F401
    if name == "keras_hub":
        import keras_hub  # noqa: F401


def startup(spec):
    """Seconds from the start of the process to the end of an import, or of a first step."""
    if spec["steps"]:
        run, _ = make_trainer(spec)
        run(spec["steps"])
    else:
        import_package(spec["implementation"])
    yield {"value": time.time() - spec["started"]}


def classify(spec):
    """Examples/s of fine-tuning a classifier, with the auxiliary loss."""
    import numpy as np

    import kgpt

    size, length = spec["size"], spec["length"]
    model = kgpt.TextClassifier(make_kgpt(spec).backbone, num_classes=2)
    model.compile(kgpt.recipes.finetuning_optimizer(steps=1000))
    rng = np.random.default_rng(0)

    def run(steps):
        rows = steps * size["batch"]
        lengths = rng.integers(length // 2, length, (rows, 1), endpoint=True)
        x = {
            "token_ids": rng.integers(0, size["vocabulary"], (rows, length), dtype="int32"),
            "padding_mask": np.arange(length) < lengths,
        }
        return fit(model, x, rng.integers(0, 2, rows), size["batch"])

    run(WARM_UP_STEPS)
    yield {
        "flops_per_unit": length * limits.flops_per_token({**size, "context": length}),
        "attention": kgpt_attention(spec, length),
    }
    while True:
        seconds = step_seconds(run(spec["steps"] + 1))
        value = size["batch"] / statistics.median(seconds)
        yield {"value": value, "seconds": seconds, "peak_mb": peak_mb()}


# === Generation: greedy, from prompts of equal length ===


def kgpt_generator(spec, prompts):
    lm = make_kgpt(spec)
    if spec["implementation"] == "kgpt_int8":
        lm.quantize("int8")

    def call():
        new = lm.generate(
            prompts, spec["new_tokens"], sampler="greedy", stop_token_ids=None, return_prompt=False
        )
        return [len(row) for row in new]

    return call, keras_bytes(lm)


def keras_hub_generator(spec, prompts):
    import keras
    import numpy as np

    lm = make_keras_hub(spec)
    # On TensorFlow XLA is the faster; elsewhere Keras's own choice is the only one that works.
    jit_compile = True if keras.config.backend() == "tensorflow" else "auto"
    lm.compile(sampler="greedy", jit_compile=jit_compile)
    padding = ((0, 0), (0, spec["new_tokens"]))
    inputs = {
        "token_ids": np.pad(prompts, padding),
        "padding_mask": np.pad(np.ones_like(prompts), padding),
    }

    def call():
        mask = lm.generate(inputs, stop_token_ids=None)["padding_mask"]
        return [int(row.sum()) - prompts.shape[1] for row in keras.ops.convert_to_numpy(mask)]

    return call, keras_bytes(lm)


def transformers_generator(spec, prompts):
    import torch

    model = make_transformers(spec).eval()
    prompts = torch.from_numpy(prompts).long()

    def call():
        new = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=spec["new_tokens"],
            do_sample=False,
            pad_token_id=0,
        )
        return [len(row) - prompts.shape[1] for row in new]

    return call, sum(p.numel() * p.element_size() for p in model.parameters())


def keras_bytes(model):
    def width(dtype):
        bits = re.search(r"\d+$", str(dtype))
        return int(bits[0]) / 8 if bits else 1

    return sum(math.prod(v.shape) * width(v.dtype) for v in model.variables)


def generate(spec):
    """Tokens/s of generation after the first call."""
    size = spec["size"]
    prompts = random_windows(spec, size["batch"])[0][:, : spec["prompt"]]
    makers = {"keras_hub": keras_hub_generator, "transformers": transformers_generator}
    call, weight_bytes = makers.get(spec["implementation"], kgpt_generator)(spec, prompts)
    start = time.perf_counter()
    lengths = call()
    if lengths != [spec["new_tokens"]] * size["batch"]:
        raise ValueError(f"Not the same work: {lengths} new tokens.")
    item = 4 if spec["dtype"] == "float32" else 2
    mean_length = spec["prompt"] + spec["new_tokens"] / 2
    yield {
        "weight_bytes": weight_bytes,
        "cache_bytes": 2 * item * size["layers"] * size["batch"] * mean_length * size["width"],
        "first_call_seconds": time.perf_counter() - start,
        "ready_seconds": time.time() - spec["started"],
    }
    while True:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        value = size["batch"] * spec["new_tokens"] / seconds
        yield {"value": value, "seconds": [seconds], "peak_mb": peak_mb()}


# === Text and tokens ===


def corpus(spec):
    """Writes a tokenizer and texts of the standard library into a folder, for `tokenize`."""
    import kgpt

    texts, total = [], 0
    for file in kgpt.data.standard_library_files():
        if total < spec["megabytes"] * 1e6:
            texts.append(file.read_text(encoding="utf-8"))
            total += len(texts[-1].encode())
    tokenizer = kgpt.Tokenizer.train(texts, vocabulary_size=spec["vocabulary"], special_tokens=())
    tokenizer.save(Path(spec["folder"]) / "tokenizer.json")
    (Path(spec["folder"]) / "texts.json").write_text(json.dumps(texts))
    yield {"bytes": total}


def tokenize(spec):
    """MB/s from text to token ids, a list of texts at once."""
    texts = json.loads((Path(spec["folder"]) / "texts.json").read_text())
    if spec["implementation"] == "keras_hub_graph":
        texts = texts[: len(texts) // 20 + 1]  # it would take minutes
    encode = make_encoder(spec["implementation"], Path(spec["folder"]) / "tokenizer.json")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    yield {"tokens": sum(len(ids) for ids in encode(texts)), "megabytes": megabytes}
    while True:
        start = time.perf_counter()
        encode(texts)
        yield {"value": megabytes / (time.perf_counter() - start)}


def make_encoder(name, path):
    if name == "kgpt":
        import kgpt

        return kgpt.Tokenizer.from_file(path).encode_batch
    if name == "tokenizers":
        import tokenizers

        rust = tokenizers.Tokenizer.from_file(str(path))
        return lambda texts: [encoding.ids for encoding in rust.encode_batch_fast(texts)]
    import keras_hub

    model = json.loads(path.read_text())["model"]
    merges = [" ".join(pair) for pair in model["merges"]]
    make = keras_hub.tokenizers.BytePairTokenizer
    if name == "keras_hub":  # the `tokenizers` library too
        return make(vocabulary=model["vocab"], merges=merges)
    return make(vocabulary=model["vocab"], merges=merges, _allow_python_workflow=False)


def data(spec):
    """Tokens/s of shuffled windows from a file, in memory or not."""
    import numpy as np

    import kgpt

    size = spec["size"]
    path = Path(spec["folder"]) / f"{spec['implementation']}.npy"
    rng = np.random.default_rng(0)
    np.save(path, rng.integers(0, size["vocabulary"], spec["tokens"], dtype="uint16"))

    def read():
        if spec["implementation"] == "cold":
            evict(path)
        batches = kgpt.data.windows(path, size["context"], size["batch"], seed=0)
        start, count = time.perf_counter(), 0
        for count, _ in enumerate(batches, start=1):
            if count == spec["batches"]:
                break
        return count * size["batch"] * size["context"] / (time.perf_counter() - start)

    read()
    yield {"file_mb": path.stat().st_size / 1e6}
    while True:
        yield {"value": read()}


def evict(path):
    """Drops a file's pages from memory; they have to be on disk, and unmapped."""
    gc.collect()
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def machine(spec):
    """The limits, see `limits.measure`; "value" is there for the form."""
    yield {}
    while True:
        yield {"value": 0, **limits.measure(spec["library"], spec["quick"])}


TASKS = {
    task.__name__: task
    for task in (train, memory, startup, classify, generate, corpus, tokenize, data, machine)
}


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    spec = json.loads(sys.stdin.readline())
    try:
        for answer in TASKS[spec["task"]](spec):
            print(json.dumps(answer), file=answers)
            if not sys.stdin.readline():
                return
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"error": message}), file=answers)


if __name__ == "__main__":
    main()
