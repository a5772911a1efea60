"""The flat vector cut into blocks: every element once, in order, and no block larger than the cache allows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_averaging.torch.model import blocks

LIMIT = 8


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=8))
def test_blocks_are_the_vector_in_order_and_of_limited_size(sizes):
    tensors = [torch.arange(2.0 * n)[::2] if spread else torch.arange(float(n)) for n, spread in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CPU_BLOCK", LIMIT)
        cut = blocks.blocks_of(tensors, torch.device("cpu"))
    found = [part.of(tensors[part.index]) for block in cut for part in block.parts]
    expected = [tensor.reshape(-1) for tensor in tensors]
    assert torch.equal(torch.cat([torch.zeros(0), *found]), torch.cat([torch.zeros(0), *expected]))
    assert [block.start for block in cut] == [0, *(block.stop for block in cut[:-1])][: len(cut)]
    for block in cut:
        assert sum(block.sizes) == block.stop - block.start
        whole = all(tensors[part.index].is_contiguous() for part in block.parts)
        assert block.stop - block.start <= LIMIT or not whole


def test_a_large_tensor_is_cut_into_full_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", LIMIT)
    tensors = [torch.zeros(3), torch.zeros(4 * LIMIT)]
    assert [block.stop for block in blocks.blocks_of(tensors, torch.device("cpu"))] == [8, 16, 24, 32, 35]


def test_small_tensors_share_a_block_wherever_it_begins(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", LIMIT)
    tensors = [torch.zeros(LIMIT), torch.zeros(3), torch.zeros(4)]
    assert [block.stop for block in blocks.blocks_of(tensors, torch.device("cpu"))] == [8, 15]
