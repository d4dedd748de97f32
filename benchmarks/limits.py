"""What the machine can do: its largest matrix-product rate and its memory bandwidth.

A benchmark measures both between its own rounds, so that a result can be read as a share of them.
"""

import statistics
import time

SIDE, VECTOR_MB = {"cpu": 2048, "device": 8192}, {"cpu": 256, "device": 2048}


def flops_per_token(size):
    """Forward and backward: 6 a weight, and 12 L d T for the scores (Chowdhery et al. 2022, B).

    All weights but the positions' count, since the token embedding is also the output's matrix.
    """
    layers, width, context = size["layers"], size["width"], size["context"]
    weights = count_parameters(size) - context * width
    return 6 * weights + 12 * layers * width * context


def count_parameters(size):
    """Weights of a GPT-2 with tied output."""
    layers, width = size["layers"], size["width"]
    embeddings = (size["vocabulary"] + size["context"]) * width
    return embeddings + layers * (12 * width**2 + 13 * width) + 2 * width


def limit_of(spec, facts, limits):
    """The most of a task's unit that the machine allows, or None."""
    if spec["task"] in ("train", "classify"):
        dtype = "float32" if spec["dtype"] == "float32" else "bfloat16"
        flops = facts.get("flops_per_unit") or flops_per_token(spec["size"])
        return limits[f"{dtype}_flops"] / flops if limits.get(f"{dtype}_flops") else None
    if spec["task"] == "generate":
        read = facts["weight_bytes"] + facts["cache_bytes"]  # for a token of each row
        return spec["size"]["batch"] * limits["bytes_per_second"] / read
    return None


def measure(library, quick=False):
    """One look at the limits, in FLOP/s and bytes/s.

    Args:
        library: `"torch"` or `"jax"`, on the accelerator if there is one.
        quick: whether small arrays will do.
    """
    arrays = (_torch if library == "torch" else _jax)()
    kind = "cpu" if arrays.device == "cpu" else "device"
    side, floats = (512, 2**18) if quick else (SIDE[kind], VECTOR_MB[kind] * 2**18)
    found = {}
    for dtype in ("float32", "bfloat16"):
        a, b = arrays.ones(side, side, dtype), arrays.ones(side, side, dtype)
        found[f"{dtype}_flops"] = 2 * side**3 / _seconds(arrays, arrays.product, a, b)
    matrix, vector = arrays.ones(floats // 1024, 1024), arrays.ones(1024, 1)
    by_product = 4 * floats / _seconds(arrays, arrays.product, matrix, vector)
    by_copy = 2 * 4 * floats / _seconds(arrays, arrays.copy, matrix)
    found["bytes_per_second"] = max(by_product, by_copy)
    return {"device": arrays.device, **found}


def _seconds(arrays, function, *inputs, calls=5):
    """Median of a few calls; each is waited for."""
    times = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        arrays.wait(function(*inputs))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class _torch:  # noqa: N801
    def __init__(self):
        import torch

        self.torch, self.product, self.copy = torch, torch.matmul, torch.clone
        self.place = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.cuda.get_device_name() if self.place == "cuda" else "cpu"

    def ones(self, rows, columns, dtype="float32"):
        return self.torch.ones(rows, columns, dtype=getattr(self.torch, dtype), device=self.place)

    def wait(self, array):
        if self.place == "cuda":
            self.torch.cuda.synchronize()


class _jax:  # noqa: N801
    def __init__(self):
        import jax

        self.numpy = jax.numpy
        self.product, self.copy = jax.jit(jax.numpy.matmul), jax.jit(lambda x: x + 1)
        self.wait = jax.block_until_ready
        device = jax.devices()[0]
        self.device = "cpu" if device.platform == "cpu" else device.device_kind

    def ones(self, rows, columns, dtype="float32"):
        return self.numpy.ones((rows, columns), dtype)
