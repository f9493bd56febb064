import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from einops import rearrange
from torch.nn import functional

from seedvr2.errors import ConfigError, ShapeError
from seedvr2.video import color
from tests.conftest import golden_cases, load_golden, max_difference

METHODS = get_args(color.ColorMethod)
PER_FRAME = ("wavelet", "wavelet_capped", "adain")


def smooth(seed: int, frames: int = 2, height: int = 40, width: int = 56) -> torch.Tensor:
    coarse = torch.rand(frames, 3, 5, 7, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return functional.interpolate(coarse, size=(height, width), mode="bilinear")


def with_detail(frames: torch.Tensor, seed: int, strength: float = 0.1) -> torch.Tensor:
    return frames + strength * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))


def corrected(name: str, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    if match := re.fullmatch(r"lab_w([\d.]+)", name):
        return color.lab(content, style, luminance_kept=float(match[1]))
    return color.match_color(content, style, name)


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("color/*.safetensors"))
def test_every_method_matches_the_reference(path: Path):
    tensors, _ = load_golden(path)
    compared = set()
    for key, expected in tensors.items():
        size, name = key.split(".", 1)
        if name in ("content", "style"):
            continue
        compared.add(name)
        result = corrected(name, tensors[f"{size}.content"], tensors[f"{size}.style"])
        difference = (result - expected).abs()
        if name in PER_FRAME:
            assert float(difference.max()) < 2e-6, key
        else:  # matching by rank: single pixels may swap
            assert float(difference.mean()) < 1e-5, key
            assert float((difference > 1e-4).float().mean()) < 1e-3, key
    assert compared


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("pipeline/*.safetensors"))
def test_corrected_pipeline_output_matches_the_reference(path: Path):
    tensors, facts = load_golden(path)
    decoded = tensors["decoded(t,c,h,w)"][: facts["ori_length"]]
    source = rearrange(tensors["input(c,t,h,w)"], "c t h w -> t c h w")[: facts["ori_length"]]
    result = color.match_color(decoded, source).clamp(-1, 1).mul(0.5).add(0.5).mul(255).round()
    difference = (rearrange(result, "t c h w -> t h w c") - tensors["out_u8.wavelet"]).abs()
    assert float(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 5e-4


@pytest.mark.parametrize("dilation", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [(40, 56), (7, 3), (1, 1)])
def test_blur_equals_a_dilated_convolution_even_on_tiny_frames(size: tuple[int, int], dilation: int):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    taps = torch.tensor(color.BINOMIAL)
    kernel = (taps[:, None] * taps / 16).expand(3, 1, 3, 3)
    padded = functional.pad(image[None], (dilation,) * 4, mode="replicate")
    expected = functional.conv2d(padded, kernel, dilation=dilation, groups=3)[0]
    assert max_difference(color._blur(image, dilation), expected) < 1e-6


@pytest.mark.parametrize("method", ["wavelet", "wavelet_capped", "adain", "hsv", "wavelet_adaptive", "lab"])
def test_frames_with_the_right_colors_stay(method: color.ColorMethod):
    frames = smooth(0)
    assert max_difference(color.match_color(frames, frames, method), frames) < 1e-4


def test_none_returns_the_content_itself():
    frames = smooth(0)
    assert color.match_color(frames, smooth(1), "none") is frames


def test_a_color_cast_is_removed_and_detail_kept():
    style = smooth(1)
    content = with_detail(style, seed=2)
    cast = content + torch.tensor([0.2, -0.1, 0.05]).view(1, 3, 1, 1)
    assert max_difference(color.wavelet(cast, style), color.wavelet(content, style)) < 2e-6


@pytest.mark.parametrize("method", PER_FRAME)
def test_frames_are_corrected_alone(method: color.ColorMethod):
    style = smooth(3, frames=3)
    content = with_detail(smooth(4, frames=3), seed=5)
    whole = color.match_color(content, style, method)
    pieces = [color.match_color(content[t : t + 1], style[t : t + 1], method) for t in range(3)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 30)])
def test_tiny_frames_and_overshoot_stay_finite(method: color.ColorMethod, size: tuple[int, int]):
    style = smooth(6, 2, *size)
    content = 5 * with_detail(smooth(7, 2, *size), seed=8)
    result = color.match_color(content, style, method)
    assert result.shape == content.shape
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("method", ["wavelet_capped", "lab", "hsv", "wavelet_adaptive"])
def test_results_stay_in_range(method: color.ColorMethod):
    result = color.match_color(2 * with_detail(smooth(9), seed=1), smooth(10), method)
    assert float(result.abs().max()) <= 1 + 1e-6


def test_hsv_keeps_value_and_takes_the_styles_saturation():
    content, style = smooth(11, height=90, width=90), 0.4 * smooth(11, height=90, width=90)
    result = color.hsv(content, style)
    assert max_difference(result.amax(dim=1), content.amax(dim=1)) < 1e-5
    assert float(color._to_hsv(result)[1].mean()) < float(color._to_hsv(content)[1].mean())


def test_lab_gives_the_styles_distribution_of_chroma():
    content, style = with_detail(smooth(12), seed=1, strength=0.02) * 0.5, smooth(13) * 0.5
    result, wanted = color._to_lab(color.lab(content, style)), color._to_lab(style)
    for channel in (1, 2):
        got = result[:, channel].flatten().sort().values
        assert float((got - wanted[:, channel].flatten().sort().values).abs().mean()) < 0.5


def test_inputs_are_left_alone():
    content, style = with_detail(smooth(1), seed=1), smooth(2)
    copies = content.clone(), style.clone()
    for method in METHODS:
        color.match_color(content, style, method)
    assert torch.equal(content, copies[0])
    assert torch.equal(style, copies[1])


def test_wrong_shapes_and_methods_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        color.match_color(smooth(0), smooth(0, height=41))
    with pytest.raises(ShapeError, match="T, 3, H, W"):
        color.match_color(smooth(0)[0], smooth(0)[0])
    with pytest.raises(ConfigError, match="wavelet_adaptive"):
        color.match_color(smooth(0), smooth(1), "sepia")  # type: ignore[arg-type]
