"""Steps on PyTorch without Python: operations are recorded once and run again.

Uncompiled, most of a step's time is Python's: hundreds of calls of Keras, then of PyTorch. The
latter's own compiler would do more, but takes long and needs one for C++ on the machine.
"""

import warnings

from keras import tree

from kgpt.kernels.cache import prefix_ends
from kgpt.kernels.platform import has_accelerator
from kgpt.locks import Lock

# From so many slots on, in all rows together, a step reads the filled prefix of a cache alone. Each
# of its sizes has a record of its own, which takes time in the first call.
_PREFIXES_FROM = 1024

_recording = Lock()  # PyTorch's tracing, and its warnings, are of the whole process


def record(step):
    """Records the operations of a first call, for later ones with tensors of the same shapes.

    Args:
        step: a function of token ids, cache, slot and the static `new_slots` and `seen` as of
            `kgpt.generation.compiled.step`, that returns logits, hidden states and the cache.

    Returns:
        The same function without `seen`, which it chooses: where the caches are large, there is a
        record for each size of the filled prefix. It writes into the cache that it is given, where
        `step` makes a copy, unless the cache's rows share memory.
    """
    import torch

    records = {}

    def run(token_ids, cache, slot, new_slots):
        slot = torch.as_tensor(slot, dtype=torch.int32, device=token_ids.device)
        # Of one prompt, `ops.repeat` gives rows that share memory: they can't be written apart.
        cache = tree.map_structure(torch.Tensor.contiguous, cache)
        inputs = token_ids, cache, slot
        rows, slots = token_ids.shape[0], cache["layers"][0][0].shape[2]
        seen = slots
        if rows * slots >= _PREFIXES_FROM and not has_accelerator():
            seen = next(end for end in prefix_ends(slots) if end > int(slot))
        key = rows, slots, new_slots, seen
        if key not in records:
            with _recording.held():
                records[key] = _record_once(step, inputs, new_slots, seen)
        logits, hidden_states, *cache_tensors = records[key](*tree.flatten(inputs))
        return logits, hidden_states, tree.pack_sequence_as(cache, cache_tensors)

    return run


def _record_once(step, inputs, new_slots, seen):
    """Returns the operations of one call as a function of the flat list of `inputs`."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # cuDNN's kernel returns sizes, which no record holds.
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def flat_step(*tensors):
        inner = tree.pack_sequence_as(inputs, tensors)
        return tuple(tree.flatten(step(*inner, new_slots, seen)))

    tensors = tree.flatten(inputs)
    with sdpa_kernel(kernels):
        module = make_fx(flat_step)(*tensors)
    copies = torch.ops.aten.index_copy.default
    for node in module.graph.find_nodes(op="call_function", target=copies):
        node.target = torch.ops.aten.index_copy_.default
    module.graph.eliminate_dead_code()
    module.recompile()
    for name, weight in list(module.named_parameters()):  # the same memory, without a gradient
        delattr(module, name)
        module.register_buffer(name, weight.detach())
    return _without_python(module, tensors)


def _without_python(module, tensors):
    """Returns a function of the same tensors that runs the module's operations.

    `torch.jit.trace` would do, but what it makes is registered in the process and never freed.
    `torch.export` has nothing that runs without Python.
    """
    import torch
    from torch.jit._trace import _get_trace_graph, _unique_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        graph, _ = _get_trace_graph(module, tuple(tensors))
    weights = list(_unique_state_dict(module, keep_vars=True).values())  # its further inputs
    function = torch._C._create_function_from_graph("step", graph)
    return lambda *inputs: function(*inputs, *weights)
