"""The states of all generators of random numbers that a run draws from."""

import keras


def _seeds(model):
    """Returns the states of the model's random generators, which weight files leave out."""
    return [v for v in model.non_trainable_variables if v.path.endswith("seed_generator_state")]


def random_states(model):
    """Returns the states of all generators, as a JSON-serializable dict."""
    states = {"seeds": [keras.ops.convert_to_numpy(seed).tolist() for seed in _seeds(model)]}
    if keras.config.backend() == "torch":  # its dropout draws from generators of its own
        import torch

        states["torch"] = torch.get_rng_state().tolist()
        states["torch_cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states


def set_random_states(model, states):
    """Sets the states that `random_states` returned."""
    for seed, state in zip(_seeds(model), states["seeds"], strict=True):
        seed.assign(state)
    if keras.config.backend() == "torch" and "torch" in states:
        import torch

        torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
        if len(states["torch_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(
                [torch.tensor(state, dtype=torch.uint8) for state in states["torch_cuda"]]
            )
