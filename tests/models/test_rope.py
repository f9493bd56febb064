import re

import pytest
import torch

from seedvr2.errors import ConfigError
from seedvr2.models.rope import (
    Rope,
    packed_positions,
    rope_frequencies,
    rotate,
    text_positions,
    video_positions,
)
from seedvr2.models.windows import windows
from tests.conftest import golden_cases, load_golden, max_difference

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["language", "pixel"])


def reference_tables(path):
    """(kind, head_dim, entry of the JSON, its tensors) for each table of a golden file."""
    tensors, facts = load_golden(path)
    for name, entry in facts["keys"].items():
        if "rotary_dim_arg" in entry:
            kind, head_dim = "pixel", entry.get("head_dim", 2 * entry["rotary_dim_arg"])
        else:
            kind, head_dim = "language", entry["rope_dim"]
        prefix = f"{name}."
        yield (
            kind,
            head_dim,
            entry,
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
        )


def window_positions(kind, entry):
    """Positions of the video of all windows of a golden entry, and of their text."""
    shapes = [tuple(shape) for shape in entry["window_shapes"]]
    lengths = entry.get("txt_len_per_window", [0] * len(shapes))
    video = [video_positions(kind, shape, length) for shape, length in zip(shapes, lengths, strict=True)]
    return torch.cat(video), torch.cat([text_positions(kind, length) for length in lengths])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("rope/*.safetensors"))
def test_angles_equal_the_released_ones(path):
    for kind, head_dim, entry, tensors in reference_tables(path):
        rope = Rope(kind, head_dim)
        for modality, positions in zip(("vid", "txt"), window_positions(kind, entry), strict=True):
            if modality in tensors:
                angles = rope.angles(positions).repeat_interleave(2, dim=-1)
                tolerance = {"rtol": 1e-6, "atol": 0.0} if kind == "language" else {"rtol": 0.0, "atol": 1e-4}
                torch.testing.assert_close(angles, tensors[modality], **tolerance)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("rope/*.safetensors"))
def test_frequencies_equal_the_released_ones(path):
    tensors, _ = load_golden(path)
    for name, stored in tensors.items():
        if match := re.fullmatch(r"(\w+)_dim(\d+)\.inv_freqs", name):
            language = match[1].startswith("mm")
            head_dim = int(match[2]) if language else 2 * int(match[2])
            canonical = rope_frequencies("language" if language else "pixel", head_dim)
            torch.testing.assert_close(canonical, stored, rtol=1e-6, atol=0.0)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("rope/*.safetensors"))
def test_rotated_heads_equal_the_released_ones(path):
    for kind, head_dim, entry, tensors in reference_tables(path):
        rope = Rope(kind, head_dim)
        video, text = window_positions(kind, entry)
        for name, heads in tensors.items():
            if name.startswith("in."):
                positions = text if "txt" in name else video
                rotated = rotate(heads, rope(positions))
                assert max_difference(rotated, tensors[name.replace("in.", "out.", 1)]) <= 2e-5


def test_pixel_angles_are_single_float32_products():
    frequencies = rope_frequencies("pixel", 128)
    positions = video_positions("pixel", (1, 15, 27), 0)
    exact = torch.linspace(-1, 1, 27)[None, :] * frequencies[:, None]
    angles = Rope("pixel", 128).angles(positions).view(15, 27, 3, 10)
    assert torch.equal(angles[4, :, 2].T, exact)


def test_language_time_starts_after_the_text():
    assert video_positions("language", (2, 1, 2), 7).tolist() == [[7, 0, 0], [7, 0, 1], [8, 0, 0], [8, 0, 1]]
    assert text_positions("language", 2).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_pixel_positions_span_each_window_whatever_its_size():
    assert video_positions("pixel", (1, 2, 3), 7).tolist() == [
        [-1, -1, -1], [-1, -1, 0], [-1, -1, 1], [-1, 1, -1], [-1, 1, 0], [-1, 1, 1]
    ]  # fmt: skip


@KINDS
def test_packed_positions_start_again_in_every_window(kind):
    grid, shifted = (3, 30, 41), True
    table = packed_positions(kind, ((1, 2, 2), grid), (4, 5), (4, 3, 3), shifted, CPU)
    assert table.shape == (4 + 3 * 30 * 41 + 4 + 5, 3)
    video = table[4:-9].view(*grid, 3)
    for t, h, w in windows(grid, shifted=shifted):
        extent = (t.stop - t.start, h.stop - h.start, w.stop - w.start)
        assert torch.equal(video[t, h, w].reshape(-1, 3), video_positions(kind, extent, 5))


@KINDS
def test_positions_are_kept_by_value(kind):
    first = packed_positions(kind, ((1, 4, 4),), (2,), (4, 3, 3), False, CPU)
    assert packed_positions(kind, ((1, 4, 4),), (2,), (4, 3, 3), False, CPU) is first
    assert packed_positions(kind, ((1, 4, 4),), (3,), (4, 3, 3), False, CPU) is not first


def test_pixel_text_is_not_rotated():
    heads = torch.randn(5, 2, 24)
    assert torch.equal(rotate(heads, Rope("pixel", 24)(text_positions("pixel", 5))), heads)


@KINDS
def test_rotation_keeps_lengths_and_the_last_channels(kind):
    heads = torch.randn(24, 2, 32)
    rope = Rope(kind, 32)
    turned = rotate(heads, rope(video_positions(kind, (2, 3, 4), 3)))
    rotated = 2 * 3 * len(rope.frequencies)
    assert torch.equal(turned[..., rotated:], heads[..., rotated:])
    torch.testing.assert_close(turned.norm(dim=-1), heads.norm(dim=-1))
    assert not torch.allclose(turned[..., :rotated], heads[..., :rotated])


def test_language_rotation_depends_on_distance_only():
    rope = Rope("language", 32)
    q, k = torch.randn(1, 1, 32, dtype=torch.float64).float(), torch.randn(1, 1, 32)
    near, far = ((torch.tensor([[a]]) + torch.zeros(1, 3) for a in pair) for pair in ((2, 5), (12, 15)))
    scores = [(rotate(q, rope(a)) * rotate(k, rope(b))).sum() for a, b in (near, far)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


@KINDS
def test_frequencies_stay_float32_through_casts_and_reloads(kind):
    rope = Rope(kind, 64)
    exact = rope.frequencies.clone()
    for cast in (rope.to(torch.bfloat16), rope.half(), rope.double(), rope.to("cpu", torch.bfloat16)):
        assert cast.frequencies.dtype == torch.float32
        assert torch.equal(cast.frequencies, exact)
    assert list(rope.state_dict()) == ["frequencies"]
    other = Rope(kind, 64).to(torch.bfloat16)
    other.load_state_dict(rope.state_dict(), strict=True)
    assert torch.equal(other.frequencies, exact)


def test_frequencies_follow_the_model_off_the_meta_device():
    with torch.device("meta"):
        rope = Rope("pixel", 64)
    rope = rope.to(torch.bfloat16).to_empty(device="cpu")
    rope.load_state_dict(Rope("pixel", 64).state_dict(), strict=True)
    assert torch.equal(rope.frequencies, rope_frequencies("pixel", 64))


def test_odd_heads_are_refused():
    with pytest.raises(ConfigError, match="even head_dim"):
        Rope("language", 33)
