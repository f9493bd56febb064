import json
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from seedvr2.errors import ShapeError
from seedvr2.video import resize
from tests.conftest import golden_cases, load_golden, max_difference


def random_frames(*shape: int, bit_depth: int = 8, seed: int = 0) -> np.ndarray:
    kind = np.uint8 if bit_depth == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bit_depth, (*shape, 3), dtype=kind)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("resize/resize*.safetensors"))
def test_resized_and_cropped_pixels_match_the_reference(path: Path):
    tensors, facts = load_golden(path)
    for name, case in facts["cases"].items():
        frames = rearrange(tensors[f"{name}.in_u8"], "t c h w -> t h w c").numpy()
        size = resize.size_for_area(*frames.shape[1:3], case["res_h"] * case["res_w"])
        resized = resize.resize_pixels(resize.frames_to_pixels(frames), size)
        expected = rearrange(tensors[f"{name}.resized"].clamp(0, 1) * 2 - 1, "t c h w -> 1 c t h w")
        assert max_difference(resized, expected) < 4e-5  # 2e-5 in [0, 1]
        assert max_difference(resize.crop_to_multiple(resized)[0], tensors[f"{name}.out"]) < 4e-5


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("resize/tables*.json"))
def test_sizes_and_crops_match_the_reference(path: Path):
    for row in json.loads(path.read_text())["resize_crop_geometry"]:
        size = resize.size_for_area(*row["in"], row["res_h"] * row["res_w"])
        assert list(size) == row["resized"]
        if 0 in row["cropped"]:
            with pytest.raises(ShapeError, match="at least 16x16"):
                resize.crop_box(*size)
        else:
            assert resize.crop_box(*size) == (row["crop_top"], row["crop_left"], *row["cropped"])


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("resize/tables*.json"))
def test_padded_lengths_match_the_reference(path: Path):
    for row in json.loads(path.read_text())["frame_padding"]:
        assert resize.padded_length(row["frames_in"], row["sp_size"]) == row["frames_out"]


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("pipeline/*.safetensors"))
def test_pipeline_input_and_output_match_the_reference(path: Path):
    tensors, facts = load_golden(path)
    frames = rearrange(tensors["frames_u8"], "t c h w -> t h w c").numpy()
    size = resize.size_for_area(*frames.shape[1:3], facts["res_h"] * facts["res_w"])
    pixels = resize.crop_to_multiple(resize.resize_pixels(resize.frames_to_pixels(frames), size))
    # Stored before the frames are padded.
    assert max_difference(pixels[0], tensors["input(c,t,h,w)"]) < 4e-5
    assert resize.padded_length(len(frames)) == facts["encoded_frames"]

    decoded = rearrange(tensors["decoded(t,c,h,w)"], "t c h w -> 1 c t h w")[:, :, : facts["ori_length"]]
    assert np.array_equal(resize.pixels_to_frames(decoded), tensors["out_u8.nofix"].numpy())


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(256, 10_000_000))
def test_area_rule_keeps_area_and_aspect(height: int, width: int, area: int):
    new_height, new_width = resize.size_for_area(height, width, area)
    assert min(new_height, new_width) >= 1
    scale = (area / (height * width)) ** 0.5
    assert abs(new_height - max(1, height * scale)) <= 0.5 + 1e-6
    assert abs(new_width - max(1, width * scale)) <= 0.5 + 1e-6


def test_half_sides_round_to_even():
    assert resize.size_for_scale(5, 7, 0.5) == (2, 4)
    assert resize.crop_box(18 + 16 * 3, 22 + 16 * 2) == (1, 3, 64, 48)
    assert resize.crop_box(17, 19) == (0, 2, 16, 16)


def test_short_side_is_met_in_both_orientations():
    assert resize.size_for_short_side(480, 854, 720) == (720, 1281)
    assert resize.size_for_short_side(854, 480, 720) == (1281, 720)
    assert resize.size_for_short_side(3, 3, 16) == (16, 16)


def test_same_size_is_returned_untouched():
    pixels = torch.full((1, 3, 2, 8, 9), 1.5)
    assert resize.resize_pixels(pixels, (8, 9)) is pixels


def test_overshoot_is_clamped():
    edge = torch.full((1, 3, 1, 8, 8), -1.0)
    edge[..., 4:] = 1
    result = resize.resize_pixels(edge, (32, 32))
    assert float(result.min()) == -1
    assert float(result.max()) == 1


@pytest.mark.parametrize("size", [(48, 70), (9, 11), (23, 80)])
def test_frames_one_at_a_time_give_the_same_pixels(size: tuple[int, int]):
    frames = random_frames(5, 24, 31)
    whole = resize.resize_pixels(resize.frames_to_pixels(frames), size)
    pieces = [resize.resize_pixels(resize.frames_to_pixels(frames[t : t + 1]), size) for t in range(5)]
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    padded = [resize.pad_to_multiple(piece) for piece in pieces]
    assert torch.equal(torch.cat(padded, dim=2), resize.pad_to_multiple(whole))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3))
def test_padding_is_undone_by_cropping(height: int, width: int, frames: int):
    pixels = resize.frames_to_pixels(random_frames(frames, height, width))
    padded = resize.pad_to_multiple(pixels)
    assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0
    assert padded.shape[-2] - height < 16
    assert padded.shape[-1] - width < 16
    assert torch.equal(resize.crop_to_size(padded, (height, width)), pixels)
    assert torch.equal(padded[..., -1, -1], pixels[..., -1, -1])


def test_a_single_pixel_can_be_padded_to_a_block():
    pixels = resize.frames_to_pixels(random_frames(1, 1, 1))
    padded = resize.pad_to_multiple(pixels)
    assert padded.shape == (1, 3, 1, 16, 16)
    assert torch.equal(padded, pixels.expand_as(padded))
    assert resize.resize_pixels(pixels, (32, 48)).shape == (1, 3, 1, 32, 48)


def test_repeating_the_last_frame_fills_a_segment():
    pixels = resize.frames_to_pixels(random_frames(6, 4, 4))
    padded = resize.repeat_last_frame(pixels, resize.padded_length(6))
    assert padded.shape[2] == 9
    assert torch.equal(padded[:, :, :6], pixels)
    assert (padded[:, :, 6:] == pixels[:, :, 5:6]).all()
    assert resize.repeat_last_frame(pixels, 6) is pixels


@given(st.integers(1, 500), st.integers(1, 4))
def test_padded_length_is_the_least_that_fits(frames: int, devices: int):
    length = resize.padded_length(frames, devices)
    assert length >= frames
    assert (length - 1) % (4 * devices) == 0
    assert length == 1 if frames == 1 else length >= 5
    assert resize.padded_length(length, devices) == length
    assert length - 4 * devices < max(frames, 2)


@pytest.mark.parametrize("bit_depth", [8, 10, 12, 16])
def test_frames_survive_the_way_to_pixels_and_back(bit_depth: int):
    frames = random_frames(2, 9, 7, bit_depth=bit_depth)
    pixels = resize.frames_to_pixels(frames, bit_depth)
    assert pixels.shape == (1, 3, 2, 9, 7)
    assert pixels.dtype == torch.float32
    assert float(pixels.abs().max()) <= 1
    back = resize.pixels_to_frames(pixels, bit_depth)
    assert back.dtype == frames.dtype
    assert np.array_equal(back, frames)


def test_every_value_survives_the_way_to_pixels_and_back():
    for bit_depth, kind in ((8, np.uint8), (16, np.uint16)):
        ramp = np.arange(2**bit_depth, dtype=kind)
        frames = np.repeat(ramp.reshape(1, -1, 16, 1), 3, axis=-1)
        assert np.array_equal(
            resize.pixels_to_frames(resize.frames_to_pixels(frames, bit_depth), bit_depth), frames
        )


def test_pixels_are_clipped_and_rounded_half_to_even():
    values = torch.tensor([-3.0, -1.0, 0.5 / 255 * 2 - 1, 1.5 / 255 * 2 - 1, 1.0, 7.0]).double()
    exact = torch.tensor([0.0, 0.0, 0.5, 1.5, 255.0, 255.0])
    frames = resize.pixels_to_frames(values.float().reshape(1, 1, 1, 1, -1).expand(1, 3, -1, -1, -1))
    assert np.abs(frames[0, 0, :, 0] - exact.numpy()).max() <= 0.5
    half = torch.zeros(1, 3, 1, 1, 1)  # 127.5
    assert int(resize.pixels_to_frames(half)[0, 0, 0, 0]) == 128


def test_wrong_frames_and_pixels_are_refused():
    with pytest.raises(ShapeError, match="10 bit frames as uint16"):
        resize.frames_to_pixels(random_frames(1, 2, 2), bit_depth=10)
    with pytest.raises(ShapeError, match="T, H, W, 3"):
        resize.frames_to_pixels(random_frames(2, 2))
    with pytest.raises(ShapeError, match="8 to 16 bits"):
        resize.frames_to_pixels(random_frames(1, 2, 2), bit_depth=7)
    with pytest.raises(ShapeError, match="one video"):
        resize.pixels_to_frames(torch.zeros(2, 3, 1, 4, 4))


def test_impossible_sizes_are_refused():
    pixels = torch.zeros(1, 3, 1, 8, 40)
    with pytest.raises(ShapeError, match="pad instead"):
        resize.crop_to_multiple(pixels)
    with pytest.raises(ShapeError, match="within 8x40"):
        resize.crop_to_size(pixels, (9, 40))
    with pytest.raises(ShapeError, match="height"):
        resize.resize_pixels(pixels, (0, 4))
    with pytest.raises(ShapeError, match="scale"):
        resize.size_for_scale(4, 4, 0.0)
    with pytest.raises(ShapeError, match="frames"):
        resize.padded_length(0)
    with pytest.raises(ShapeError, match="between 1 and 0"):
        resize.repeat_last_frame(pixels, 0)


def test_frames_in_reverse_order_are_taken():
    frames = np.arange(2 * 16 * 16 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 16, 16, 3)
    assert torch.equal(resize.frames_to_pixels(frames[:1][::-1]), resize.frames_to_pixels(frames[:1]))
    assert torch.equal(resize.frames_to_pixels(frames[::-1]), resize.frames_to_pixels(frames).flip(2))
