r"""
Export and serve
================

In the end your model answers over HTTP, and runs in two programs that know nothing of Keras: ONNX
Runtime and CTranslate2. Each is compared with the model that it came from.

It takes a minute on 2 cores, with the model of ``examples/pretrain_your_text.py``, which it trains
if it is not there, in three more. Of the other programs those are used that are installed:
``pip install onnx onnxruntime`` with ``tf2onnx`` (TensorFlow backend) or ``onnxscript`` (PyTorch
backend), and ``pip install ctranslate2 transformers torch``.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no remarks of TensorFlow's on the machine

import importlib.util
import json
import runpy
import shutil
import threading
import time
import urllib.error
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np

import kgpt

MODEL = Path("runs/pretrain_your_text/lm.keras")  # or a model of your own
PROMPT = "The value of the"
LENGTH = 30  # new tokens
REQUESTS = 8
RUN = Path("runs/export_and_serve")

if not MODEL.exists():
    runpy.run_path(str(Path(kgpt.__file__).parents[1] / "examples/pretrain_your_text.py"))
RUN.mkdir(parents=True, exist_ok=True)
lm = keras.models.load_model(MODEL)


def are_installed(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        print("left out; to see it: pip install", *missing)
    return not missing


expected = lm.generate(PROMPT, LENGTH, sampler="greedy")
print(expected)

# %%
# A web endpoint
# --------------
#
# Python's own ``http.server`` is enough for a demonstration and for a few users in a house. One
# thread answers each request, and models of kgpt may be called from several threads. What comes
# from outside is checked before the model sees it: its size, its form, the number of tokens. Errors
# of the user get a 400 with the reason, and not a traceback.

MOST_BYTES, MOST_TOKENS = 10_000, 200


def answer(request):
    """The reply to a request, both as dicts; raises ValueError for what can't be served."""
    if not isinstance(request, dict) or not isinstance(request.get("prompt"), str):
        raise ValueError('Send an object such as {"prompt": "Once", "max_new_tokens": 20}.')
    count = request.get("max_new_tokens", 20)
    if type(count) is not int or not 1 <= count <= MOST_TOKENS:
        raise ValueError(f"max_new_tokens must be an int from 1 to {MOST_TOKENS}.")
    text = lm.generate(request["prompt"], count, sampler="greedy", sliding_window=True)
    return {"text": text}


class Handler(BaseHTTPRequestHandler):
    """Answers POST requests of JSON."""

    timeout = 10  # seconds that a client may let us wait

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= MOST_BYTES:
                raise ValueError(f"A request may have {MOST_BYTES} bytes.")
            status, reply = 200, answer(json.loads(self.rfile.read(length)))
        except ValueError as error:  # JSON's errors are some, too
            status, reply = 400, {"error": str(error)}
        body = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Says nothing; a server of yours may count its requests here."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)  # 0: any free port; this machine alone
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
print("serving at", url)

# %%
# The first call for a new size compiles, so a server calls its model once before it opens. From a
# shell: ``curl -d '{"prompt": "The value"}' http://127.0.0.1:8000/``.


def ask(request):
    data = json.dumps(request).encode()
    try:
        with urllib.request.urlopen(url, data, timeout=300) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        return json.load(error)


assert ask({"prompt": PROMPT, "max_new_tokens": LENGTH}) == {"text": expected}
print(ask({"prompt": 3}))
print(ask({"prompt": PROMPT, "max_new_tokens": 10**9}))

# %%
# Many at once: the model computes one call at a time, on all cores, so eight clients wait for each
# other, and each gets what it would have got alone.

start = time.perf_counter()
with ThreadPoolExecutor(REQUESTS) as threads:
    replies = list(threads.map(ask, [{"prompt": PROMPT, "max_new_tokens": LENGTH}] * REQUESTS))
seconds = time.perf_counter() - start
assert all(reply == {"text": expected} for reply in replies)
print(f"{REQUESTS} requests in {seconds:.2f} s: {REQUESTS * LENGTH / seconds:.0f} tokens/s")

start = time.perf_counter()
lm.generate([PROMPT] * REQUESTS, LENGTH, sampler="greedy")  # compiles for this number of rows
start = time.perf_counter()
lm.generate([PROMPT] * REQUESTS, LENGTH, sampler="greedy")
seconds = time.perf_counter() - start
print(f"as one batch: {REQUESTS * LENGTH / seconds:.0f} tokens/s")

# %%
# The batch is several times as fast, since each matrix is read once for all rows. A server for many
# users collects requests for some milliseconds and answers them together; that is most of what
# serving programs do.

server.shutdown()
server.server_close()

# %%
# ONNX Runtime
# ------------
#
# ``export`` writes the arithmetic without Python: token ids in, logits out. Where it runs, ONNX
# Runtime and a tokenizer are all that is needed, in any of a dozen languages.

converters = {"tensorflow": ("tf2onnx",), "torch": ("onnxscript",)}.get(keras.backend.backend())
if converters is None:
    print("left out: the jax backend exports no ONNX. Load the model on another backend.")
elif are_installed("onnx", "onnxruntime", *converters):
    import onnxruntime

    with warnings.catch_warnings(action="ignore"):  # of Keras and tf2onnx, on shapes and NumPy
        lm.export(RUN / "lm.onnx", format="onnx")
    session = onnxruntime.InferenceSession(RUN / "lm.onnx")
    token_ids = np.array([lm.tokenizer.encode(expected)], "int32")  # (batch, length)
    [logits] = session.run(["outputs"], {"token_ids": token_ids})  # (batch, length, vocabulary)
    difference = np.abs(logits - keras.ops.convert_to_numpy(lm(token_ids))).max()
    print(f"lm.onnx: {(RUN / 'lm.onnx').stat().st_size / 1e6:.1f} MB, {difference=:.0e}")

# %%
# For writing there is ``lm.export_generation_step``, in which keys and values go in and out, so
# that each token is computed once; ``examples/generate_with_onnxruntime.py`` is the loop around it.
#
# CTranslate2
# -----------
#
# CTranslate2 runs GPT-2's on a CPU in 8 bits, with a loop in C++. It reads the format of
# transformers, in which ``kgpt.to_huggingface`` writes.

if are_installed("ctranslate2", "transformers", "torch", "safetensors", "huggingface_hub"):
    import ctranslate2
    import tokenizers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for folder in ("huggingface", "ctranslate2"):
        shutil.rmtree(RUN / folder, ignore_errors=True)
    kgpt.to_huggingface(lm, RUN / "huggingface")
    converter = ctranslate2.converters.TransformersConverter(
        str(RUN / "huggingface"), copy_files=["tokenizer.json"]
    )
    converter.convert(str(RUN / "ctranslate2"), quantization="int8")

    generator = ctranslate2.Generator(str(RUN / "ctranslate2"), compute_type="int8")
    tokenizer = tokenizers.Tokenizer.from_file(str(RUN / "ctranslate2" / "tokenizer.json"))
    [result] = generator.generate_batch(
        [tokenizer.encode(PROMPT).tokens],
        max_length=LENGTH,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    text = PROMPT + tokenizer.decode(result.sequences_ids[0])
    print(text)
    size = (RUN / "ctranslate2" / "model.bin").stat().st_size
    print(f"{size / 1e6:.1f} MB in place of {lm.count_params() * 4 / 1e6:.1f}")
    print("the same text" if text == expected else "another text: 8 bits round")

# %%
# Which one?
# ----------
#
# - A classifier, or a language other than Python: ONNX Runtime.
# - Text from a CPU: CTranslate2 in 8 bits.
# - A GPU and a Python service: ``lm.generate`` in a process of its own.
#
# `docs/serving.md` has the table, threads, llama.cpp, LiteRT, and what each of them can't do.
#
# Things to try
# -------------
#
# - Stream: ``for piece in lm.generate(prompt, stream=True)`` and ``self.wfile.write(piece)``.
# - Collect requests for 20 ms and answer them as one batch. What happens to the time of one
#   request, and to the tokens per second?
# - Serve a classifier: ``classifier.predict_text([text], probabilities=True)``.
#
# Next: ``examples/many_devices.py``, for when one machine is too small.
