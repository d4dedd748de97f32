"""The states of the generators of random numbers that a run draws from outside of the model.

Those of layers are variables of the model, and saved with it. numpy's generator shuffles arrays on
JAX; on PyTorch its own shuffles them, and unseeded layers of Keras draw from it. Python's shuffles
a PyDataset, and gives samples their seeds.
"""

import random

import keras
import numpy as np


def random_states() -> dict[str, np.ndarray]:
    """Returns the states of all generators as arrays."""
    version, words, gauss = random.getstate()
    arrays = {
        "random/python": np.array([version, *words]),
        "random/python_gauss": np.array([] if gauss is None else [gauss]),
    }
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] == "MT19937":  # another one is the user's own
        inner = state["state"]
        arrays["random/numpy"] = np.array(inner["key"])
        arrays["random/numpy_place"] = np.array([inner["pos"], state["has_gauss"], state["gauss"]])
    if keras.config.backend() == "torch":
        import torch

        arrays["random/torch"] = torch.get_rng_state().numpy()
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            arrays[f"random/torch_cuda_{number}"] = state.numpy()
    return arrays


def set_random_states(arrays):
    """Sets the states that `random_states` returned, as far as there are such generators here."""
    if "random/python" in arrays:
        version, *words = arrays["random/python"].tolist()
        gauss = next(iter(arrays["random/python_gauss"].tolist()), None)
        random.setstate((version, tuple(words), gauss))
    if "random/numpy" in arrays:
        position, has_gauss, gauss = arrays["random/numpy_place"]
        keys = arrays["random/numpy"]
        np.random.set_state(("MT19937", keys, int(position), int(has_gauss), float(gauss)))
    if keras.config.backend() == "torch" and "random/torch" in arrays:
        import torch

        torch.set_rng_state(torch.from_numpy(arrays["random/torch"]))
        cuda = [name for name in arrays if name.startswith("random/torch_cuda_")]
        if len(cuda) == torch.cuda.device_count():
            for number in range(len(cuda)):
                state = torch.from_numpy(arrays[f"random/torch_cuda_{number}"])
                torch.cuda.set_rng_state(state, number)


def set_random_states_of_first_format(model, states):
    """Sets the states in a checkpoint of kgpt 0.1, whose weights file leaves them out."""
    seeds = [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]
    for seed, state in zip(seeds, states["seeds"], strict=True):
        seed.assign(state)
    arrays = {f"random/torch_cuda_{n}": s for n, s in enumerate(states.get("torch_cuda", []))}
    if "torch" in states:
        arrays["random/torch"] = states["torch"]
    set_random_states({name: np.array(state, "uint8") for name, state in arrays.items()})
