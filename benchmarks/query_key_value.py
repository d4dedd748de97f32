"""What moves between devices for query, key and value: one matrix, viewed, or three of their own.

kgpt keeps the three maps as one kernel `(D, 3D)`, in files, for LoRA and for Muon, and views it as
`(D, 3, D)` inside the call, where each device of the model axis takes its heads of all three. Here
a step of the projection and its attention (forward, backward, update) on eight simulated devices is
compared with that of a variable `(D, 3, D)` which is divided so from the start: the bytes that its
collectives move on each device, of weights and of activations, read off XLA's text, and the median
time of a step.

    KERAS_BACKEND=jax python benchmarks/query_key_value.py
"""

import argparse
import os
import re
import statistics
import time

os.environ["KERAS_BACKEND"] = "jax"
if __name__ == "__main__":
    flag = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

import jax
import keras
import numpy as np
from keras import ops

from kgpt.distribution import pin
from kgpt.kernels.attention import attend
from kgpt.kernels.linear import affine

MOVES = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
STYLES = {"tensor": None, "tensor_fsdp": "batch"}  # the axis that divides rows of matrices too


def main():
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 512), ("heads", 8), ("length", 160), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print("| style | kernel | weights moved, MB | activations moved, MB | step, ms |")
    print("|---|---|---|---|---|")
    for style in STYLES:
        for is_viewed in (True, False):
            found = measure(style, is_viewed, options)
            kernel = "(D, 3D), viewed" if is_viewed else "(D, 3, D)"
            print("| {} | {} | {:.4f} | {:.4f} | {:.1f} |".format(style, kernel, *found))


def measure(style, is_viewed, options):
    """Returns the megabytes of weights and of activations that a device moves, and milliseconds."""
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=keras.distribution.LayoutMap(mesh))
    )
    dim, rng = options.width, np.random.default_rng(0)
    kernel_shape = (dim, 3 * dim) if is_viewed else (dim, 3, dim)
    layout = ("model", STYLES[style]) if is_viewed else (STYLES[style], None, "model")
    kernel = laid_out(rng.normal(0, 0.02, kernel_shape), layout, mesh)
    x = laid_out(rng.normal(size=(options.batch, options.length, dim)), ("batch", None, None), mesh)

    def loss(kernel, x):
        projected = projection(kernel, x, is_viewed)
        heads = (*x.shape[:2], 3, options.heads, dim // options.heads)
        projected = pin(ops.reshape(projected, heads), "batch", None, None, "model")
        return ops.mean(ops.square(attend(*ops.unstack(projected, axis=2))))

    def step(kernel, x):
        of_kernel, of_x = jax.grad(loss, argnums=(0, 1))(kernel, x)
        return kernel - 0.1 * of_kernel, of_x

    shardings = (kernel.sharding, x.sharding)
    step = jax.jit(step, out_shardings=shardings).lower(kernel, x).compile()
    times = []
    for _ in range(options.steps):
        begun = time.perf_counter()
        jax.block_until_ready(step(kernel, x))
        times.append(1e3 * (time.perf_counter() - begun))
    return *moved(step.as_text(), options), statistics.median(times)


def projection(kernel, x, is_viewed):
    """Returns query, key and value, `(batch, length, 3, D)` or with the last two as one."""
    if is_viewed:
        return affine(x, kernel, split="thirds")
    kernel = pin(kernel, None, None, "model")
    return pin(ops.tensordot(x, kernel, axes=1), "batch", ..., "model")


def laid_out(values, axes, mesh):
    """Returns float32 values divided among the devices."""
    layout = keras.distribution.TensorLayout(axes, mesh)
    return keras.distribution.distribute_tensor(ops.convert_to_tensor(values, "float32"), layout)


def moved(text, options):
    """Returns the megabytes that collectives give one device: of weights, and of activations.

    Activations are what has a multiple of the texts' length as an axis.
    """
    weights = activations = 0
    for line in re.findall(rf"= (\S.*?) (?:{MOVES})(?:-start)?\(", text):
        for shape in re.findall(r"f32\[([\d,]+)\]", line):
            sizes = [int(n) for n in shape.split(",")]
            if any(size % options.length == 0 for size in sizes):
                activations += 4 * np.prod(sizes)
            else:
                weights += 4 * np.prod(sizes)
    return weights / 1e6, activations / 1e6


if __name__ == "__main__":
    main()
