import pytest
import torch

from seedvr2.config import GeneratorConfig
from seedvr2.errors import ConfigError
from seedvr2.models.attention import AttentionPlan, WindowAttention, packed_attention
from seedvr2.models.layers import SEPARATE
from seedvr2.models.rope import Rope, packed_positions
from seedvr2.models.windows import window_layout, windows
from tests.conftest import max_difference

GRIDS = ((3, 24, 40), (2, 3, 90), (1, 2, 2))
TEXT_LENGTHS = (5, 9, 1)
NUM_WINDOWS = (4, 3, 3)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels of variable length need CUDA")


def layout_on(device, shifted=True, grids=GRIDS, text_lengths=TEXT_LENGTHS):
    return window_layout(tuple(grids), tuple(text_lengths), NUM_WINDOWS, shifted, torch.device(device))


def random_heads(layout, heads=2, head_dim=16, **options):
    tokens = sum(layout.video_lengths) + sum(layout.text_lengths)
    return [torch.randn(tokens, heads, head_dim, **options) for _ in range(3)]


def plain_attention(q, k, v):
    """Softmax attention of one sequence (tokens, heads, head_dim)."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v)


def looped_attention(q, k, v, grids, text_lengths, shifted):
    """What `packed_attention` should give, one window after another."""
    sizes = [t * h * w for t, h, w in grids]
    parts = [x.split([sum(sizes), sum(text_lengths)]) for x in (q, k, v)]
    videos = [x[0].split(sizes) for x in parts]
    texts = [x[1].split(list(text_lengths)) for x in parts]
    video_out, text_out = [], []
    for sample, grid in enumerate(grids):
        boxes = windows(grid, NUM_WINDOWS, shifted)
        video = [x[sample].unflatten(0, grid) for x in videos]
        out = torch.zeros_like(video[0])
        text_sum = torch.zeros_like(texts[0][sample])
        for box in boxes:
            sequence = [
                torch.cat((x[box].flatten(0, 2), y[sample])) for x, y in zip(video, texts, strict=True)
            ]
            attended = plain_attention(*sequence)
            count = len(attended) - text_lengths[sample]
            out[box] = attended[:count].unflatten(0, out[box].shape[:3])
            text_sum = text_sum + attended[count:]
        video_out.append(out.flatten(0, 2))
        text_out.append(text_sum / len(boxes))
    return torch.cat(video_out), torch.cat(text_out)


@pytest.mark.parametrize("shifted", [False, True])
def test_dense_kernel_equals_a_loop_over_windows(shifted):
    torch.manual_seed(0)
    layout = layout_on("cpu", shifted)
    q, k, v = random_heads(layout)
    expected = looped_attention(q, k, v, GRIDS, TEXT_LENGTHS, shifted)
    for got, want in zip(packed_attention(q, k, v, layout, backend="sdpa"), expected, strict=True):
        assert max_difference(got, want) <= 1e-5


def test_dense_kernel_has_the_gradients_of_the_loop():
    torch.manual_seed(0)
    grids, lengths = ((2, 12, 50), (1, 3, 3)), (4, 2)
    layout = layout_on("cpu", True, grids, lengths)
    heads = random_heads(layout, dtype=torch.float64, requires_grad=True)
    gradients = []
    for video, text in (
        packed_attention(*heads, layout, backend="sdpa"),
        looped_attention(*heads, grids, lengths, shifted=True),
    ):
        loss = video.square().sum() + text.pow(3).sum()
        gradients.append(torch.autograd.grad(loss, heads))
    for got, want in zip(*gradients, strict=True):
        assert max_difference(got, want) <= 1e-9


def test_a_sample_without_text_attends_to_itself():
    torch.manual_seed(0)
    grids, lengths = ((1, 4, 6), (1, 2, 3)), (0, 2)
    layout = layout_on("cpu", False, grids, lengths)
    q, k, v = random_heads(layout)
    video, text = packed_attention(q, k, v, layout)
    assert text.shape[0] == 2
    assert max_difference(video[:24], plain_attention(q[:24], k[:24], v[:24])) <= 1e-5


def test_no_token_sees_another_sample():
    torch.manual_seed(0)
    layout = layout_on("cpu")
    q, k, v = random_heads(layout)
    before, _ = packed_attention(q, k, v, layout)
    first = layout.video_lengths[0]
    v = v.clone()
    v[first : sum(layout.video_lengths)] += 1
    after, _ = packed_attention(q, k, v, layout)
    assert torch.equal(before[:first], after[:first])
    assert not torch.equal(before[first:], after[first:])


def test_attention_dtype_is_inside_only():
    torch.manual_seed(0)
    layout = layout_on("cpu")
    q, k, v = random_heads(layout)
    exact, _ = packed_attention(q, k, v, layout)
    short, text = packed_attention(q, k, v, layout, dtype=torch.bfloat16)
    assert short.dtype == text.dtype == torch.float32
    assert 0 < max_difference(short, exact) <= 2e-2


def test_auto_is_the_dense_kernel_on_cpu():
    layout = layout_on("cpu")
    heads = random_heads(layout)
    auto, dense = (packed_attention(*heads, layout, backend=name)[0] for name in ("auto", "sdpa"))
    assert torch.equal(auto, dense)


@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_kernels_of_variable_length_say_what_they_need(backend):
    layout = layout_on("cpu")
    with pytest.raises(
        ConfigError, match=r"runs on CUDA in float16 or bfloat16, got torch.float32 on cpu; use"
    ):
        packed_attention(*random_heads(layout), layout, backend=backend)


@CUDA
@pytest.mark.parametrize(
    ("backend", "module"), [("varlen", "torch.nn.attention.varlen"), ("flash", "flash_attn")]
)
def test_kernels_of_variable_length_equal_a_loop_over_windows(backend, module):
    pytest.importorskip(module)
    torch.manual_seed(0)
    layout = layout_on("cuda")
    heads = random_heads(layout, head_dim=64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    got = packed_attention(*heads, layout, backend=backend)
    want = looped_attention(*(x.float() for x in heads), GRIDS, TEXT_LENGTHS, shifted=True)
    for a, b in zip(got, want, strict=True):
        assert max_difference(a, b) <= 2e-2
    gradients = [torch.autograd.grad(x[0].float().square().sum(), heads) for x in (got, want)]
    for a, b in zip(*gradients, strict=True):
        assert max_difference(a, b) <= 5e-2


def test_core_treats_each_head_alone():
    torch.manual_seed(0)
    config = GeneratorConfig(width=24, heads=4, head_dim=6, layers=1)
    attention = WindowAttention(config, SEPARATE)
    key = (GRIDS, TEXT_LENGTHS, NUM_WINDOWS, True, torch.device("cpu"))
    layout = window_layout(*key)
    plan = AttentionPlan(layout, Rope("language", 6)(packed_positions("language", *key)))
    q, k, v = random_heads(layout, heads=4, head_dim=6)
    whole, _ = attention.core(q, k, v, plan)
    half, _ = attention.core(q[:, 2:], k[:, 2:], v[:, 2:], plan)
    assert max_difference(whole[:, 2:], half) <= 1e-6
