import keras
import numpy as np
import pytest
from full_passes import make_lm
from keras import ops, tree

from kgpt.generation.compiled import prefill, step
from kgpt.generation.layout import lay_out

if keras.config.backend() != "torch":
    pytest.skip("the recorder is PyTorch's", allow_module_level=True)

from kgpt.generation.torch_recorder import record

NEW_SLOTS = 144
SLOTS = 6, 7, 36, 37, 74, 75, 111, 112, 149  # the ends of the four prefixes of 150 slots


@pytest.fixture(scope="module")
def backbone():
    return make_lm(max_sequence_length=200).backbone


@pytest.fixture
def a_step(backbone):
    def run(token_ids, cache, slot, new_slots, seen=None):
        h, cache = step(backbone, token_ids, cache, slot, new_slots, seen)
        return backbone.token_embedding(h, reverse=True), h, cache

    return run


def prompts(backbone, rows):
    """A cache of 150 slots after prompts of different lengths."""
    contexts = [list(range(1, 2 + row % 5)) for row in range(rows)]
    tokens, lengths = map(ops.convert_to_tensor, lay_out(contexts, 6))
    return prefill(backbone, tokens, lengths, NEW_SLOTS)[0]


# 150 slots are 1,024 with 7 rows: from there on a step reads the filled prefix alone.
@pytest.mark.parametrize(("rows", "records"), [(2, 1), (8, 4)])
def test_recorded_steps_give_what_the_step_gives(backbone, a_step, passes, rows, records):
    import torch

    recorded = record(a_step)
    cache, other = prompts(backbone, rows), prompts(backbone, rows)
    passes.clear()

    with torch.inference_mode():
        for slot in SLOTS:
            token_ids = ops.full((rows, 1), slot % 23, "int32")
            expected = a_step(token_ids, cache, slot, NEW_SLOTS)
            found = recorded(token_ids, other, slot, NEW_SLOTS)
            cache, other = expected[2], found[2]
            for one, two in zip(expected[:2], found[:2], strict=True):
                np.testing.assert_allclose(two.cpu(), one.cpu(), atol=1e-5)

    assert len(passes) == len(SLOTS) + records


def test_a_recorded_step_of_rotary_positions_turns_each_position_by_its_own_angle():
    import torch

    backbone = make_lm(rotary_positions=True, max_sequence_length=200).backbone

    def a_step(token_ids, cache, slot, new_slots, seen=None):
        h, cache = step(backbone, token_ids, cache, slot, new_slots, seen)
        return h, h, cache

    recorded = record(a_step)
    cache, other = prompts(backbone, 2), prompts(backbone, 2)

    with torch.inference_mode():
        for slot in range(6, 12):
            token_ids = ops.full((2, 1), slot, "int32")
            expected, _, cache = a_step(token_ids, cache, slot, NEW_SLOTS)
            found, _, other = recorded(token_ids, other, slot, NEW_SLOTS)
            np.testing.assert_allclose(found.cpu(), expected.cpu(), atol=1e-5)


def test_rows_of_a_cache_that_share_memory_are_written_apart(backbone, a_step):
    import torch

    recorded, cache = record(a_step), prompts(backbone, 1)
    shared = tree.map_structure(lambda x: x.expand(3, *x.shape[1:]), cache)
    apart = tree.map_structure(lambda x: x.repeat(3, *[1] * (x.ndim - 1)), cache)
    token_ids = torch.tensor([[3], [4], [5]], dtype=torch.int32)

    with torch.inference_mode():
        expected = a_step(token_ids, apart, 6, NEW_SLOTS)
        found = recorded(token_ids, shared, 6, NEW_SLOTS)

    for one, two in zip(tree.flatten(expected), tree.flatten(found), strict=True):
        np.testing.assert_allclose(two.cpu(), one.cpu(), atol=1e-5)


def test_a_recorded_step_writes_into_the_cache_that_it_is_given(backbone, a_step):
    import torch

    recorded, cache = record(a_step), prompts(backbone, 2)
    before = [x.clone() for x in tree.flatten(cache["layers"])]

    with torch.inference_mode():
        recorded(ops.full((2, 1), 3, "int32"), cache, 6, NEW_SLOTS)

    changed = [x != old for x, old in zip(tree.flatten(cache["layers"]), before, strict=True)]
    assert all(x[:, :, 6].any() and not x[:, :, 7:].any() for x in changed)


def test_a_step_is_recorded_with_kernels_that_a_record_can_hold(a_step, backbone):
    import torch

    def spy(*inputs):
        found.append(torch.backends.cuda.cudnn_sdp_enabled())
        return a_step(*inputs)

    found, was_enabled = [], torch.backends.cuda.cudnn_sdp_enabled()
    with torch.inference_mode():
        record(spy)(ops.full((2, 1), 3, "int32"), prompts(backbone, 2), 6, NEW_SLOTS)

    assert found == [False]  # cuDNN's returns sizes beside tensors
    assert torch.backends.cuda.cudnn_sdp_enabled() == was_enabled
