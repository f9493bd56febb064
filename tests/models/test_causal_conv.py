"""Causal convolution: replicate head, zero border, state between slices."""

import pytest
import torch
import torch.nn.functional as F

from seedvr2.models.causal_conv import CacheWalk, CausalCache, CausalConv3d
from tests.conftest import max_difference


def plain(conv: CausalConv3d, x: torch.Tensor) -> torch.Tensor:
    """The definition: two copies of the first frame in front, zeros around."""
    x = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
    return F.conv3d(F.pad(x, conv.padding), conv.weight, conv.bias, conv.stride)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_slices_give_what_the_definition_gives(stride):
    torch.manual_seed(0)
    padding = (0, 1, 0, 1) if stride[0] == 2 else None
    conv = CausalConv3d(4, 6, stride=stride, padding=padding)
    x = torch.randn(2, 4, 9, 8, 10)
    whole = conv(x, CacheWalk(keep=False))
    assert max_difference(whole, plain(conv, x)) <= 1e-5
    cache, parts = CausalCache(), []
    for start, stop in ((0, 1), (1, 5), (5, 9)):
        walk = CacheWalk(cache)
        parts.append(conv(x[:, :, start:stop], walk))
        cache = walk.result()
    assert max_difference(torch.cat(parts, dim=2), whole) <= 1e-5


def test_a_walk_does_not_change_the_cache_it_started_from():
    conv = CausalConv3d(2, 2)
    first = CacheWalk()
    conv(torch.randn(1, 2, 3, 4, 4), first)
    cache = first.result()
    before = [state.clone() for state in cache.states]
    conv(torch.randn(1, 2, 3, 4, 4), CacheWalk(cache))
    assert all(torch.equal(a, b) for a, b in zip(before, cache.states, strict=True))


def test_a_frame_by_frame_kernel_has_no_state():
    walk = CacheWalk()
    CausalConv3d(2, 3, kernel=(1, 1, 1))(torch.randn(1, 2, 3, 4, 4), walk)
    assert walk.result().is_start
