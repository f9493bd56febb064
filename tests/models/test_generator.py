import copy
import json

import pytest
import torch
from torch import nn

from seedvr2.config import GeneratorConfig
from seedvr2.errors import ConfigError, ShapeError
from seedvr2.models.generator import Generator
from seedvr2.models.rope import rope_frequencies
from seedvr2.released import generator_from_released
from tests.conftest import golden_cases, load_golden, max_difference, released_generator_config

CONFIG_3B = GeneratorConfig()
CONFIG_7B = GeneratorConfig(
    width=3072, heads=24, layers=36, separate_layers=36, mlp="gelu", rope="pixel", output_norm=False,
    video_only_last_layer=False,
)  # fmt: skip
SMALL = {"width": 24, "heads": 2, "head_dim": 12, "layers": 3, "text_channels": 10, "latent_channels": 4}
SMALL_3B = CONFIG_3B.model_copy(update={**SMALL, "separate_layers": 1})
SMALL_7B = CONFIG_7B.model_copy(update={**SMALL, "separate_layers": 3})
FLAVOURS = pytest.mark.parametrize("config", [SMALL_3B, SMALL_7B], ids=["3b", "7b"])


def small_generator(config, **options):
    torch.manual_seed(0)
    return Generator(config, **options)


def small_batch(config, sizes=((3, 12, 44), (1, 8, 6), (2, 48, 10)), text_lengths=(5, 0, 9)):
    torch.manual_seed(1)
    videos = [torch.randn(config.in_channels, *size) for size in sizes]
    texts = [torch.randn(length, config.text_channels) for length in text_lengths]
    return videos, torch.linspace(1000, 125, len(sizes)), texts


def cases_holding(key):
    """The golden cases that store a tensor of this name."""
    cases = golden_cases("dit_*/case_*.safetensors")
    return [
        c
        for c in cases
        if c.values[0] is None or key in json.loads(c.values[0].with_suffix(".json").read_text())["tensors"]
    ]


def reference_run(path, **options):
    """A generator with reference weights, the inputs of a case, and all tensors of the case."""
    case, _ = load_golden(path)
    weights, facts = load_golden(path.parent / "weights.safetensors")
    config = released_generator_config(facts["config"])
    generator = Generator(config, **options).eval()
    generator.load_state_dict(generator_from_released(weights, config), strict=True)
    shapes = [tuple(shape) for shape in case["in.vid_shape"].tolist()]
    pieces = case["in.vid"].split([t * h * w for t, h, w in shapes])
    videos = [piece.unflatten(0, shape).movedim(-1, 0) for piece, shape in zip(pieces, shapes, strict=True)]
    texts = list(case["in.txt"].split(case["in.txt_shape"].flatten().tolist()))
    return generator, (videos, case["in.timestep"], texts), case


def flat(velocities, case, expected):
    """Velocities as the reference stores them: (tokens, channels), maybe some rows only."""
    tokens = torch.cat([velocity.movedim(0, -1).flatten(0, 2) for velocity in velocities])
    kept = "out.rows" in case and len(expected) == len(case["out.rows"])
    return tokens[case["out.rows"].long()] if kept else tokens


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/case_*.safetensors"))
def test_velocity_equals_the_released_one(path):
    generator, batch, case = reference_run(path)
    expected = case.get("out.vid_separate", case["out.vid"])  # the released 3B mixes up packed texts
    with torch.no_grad():
        velocities = generator(*batch)
    assert max_difference(flat(velocities, case, expected), expected) <= 2e-5


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/case_*.safetensors"))
def test_activations_equal_the_released_ones(path):
    generator, batch, case = reference_run(path)
    seen = {}

    def keep(module: nn.Module, *names: str) -> None:
        def hook(_, __, output):
            outputs = output if isinstance(output, tuple) else (output,)
            seen.update(zip(names, outputs, strict=True))

        module.register_forward_hook(hook)

    keep(generator.patch_in, "act.vid_in")
    keep(generator.text_in, "act.txt_in")
    keep(generator.time_in.proj_out, "act.emb")
    for index, block in enumerate(generator.blocks):
        keep(block.attention, f"act.block{index}.attn.vid", f"act.block{index}.attn.txt")
        keep(block, f"act.block{index}.vid", f"act.block{index}.txt")
    if generator.output_norm is not None:
        keep(generator.output_norm, "act.vid_out_ada")
    with torch.no_grad():
        generator(*batch)

    # Where packed and separate runs of the released code differ, its first sample is still right.
    mixed_up = "out.vid_separate" in case
    video_end = batch[0][0][0].numel() // 4 if mixed_up else None
    text_end = len(batch[2][0]) if mixed_up else None
    rows = case["act.rows"].long() if "act.rows" in case else None
    meaningless = {"act.rows"} | {f"act.block{i}.txt" for i, b in enumerate(generator.blocks) if b.video_only}
    for name in sorted({name for name in case if name.startswith("act.")} - meaningless):
        got, expected = seen[name], case[name]
        if name.endswith((".txt", "txt_in")):
            got, expected = got[:text_end], expected[:text_end]
        elif name != "act.emb":
            got = got if rows is None else got[rows]
            kept = (
                slice(None)
                if not mixed_up
                else (torch.arange(len(got)) if rows is None else rows) < video_end
            )
            got, expected = got[kept], expected[kept]
        assert max_difference(got, expected) <= 2e-5, name


@pytest.mark.golden
@pytest.mark.parametrize("path", cases_holding("out.vid_bf16attn"))
def test_velocity_with_bfloat16_attention_is_near_the_released_one(path):
    generator, batch, case = reference_run(path, attention_dtype=torch.bfloat16)
    with torch.no_grad():
        velocities = generator(*batch)
    expected = case["out.vid_bf16attn"]
    assert max_difference(flat(velocities, case, expected), expected) <= 2e-2


@pytest.mark.parametrize(
    ("config", "parameters"), [(CONFIG_3B, 3_391_475_776), (CONFIG_7B, 8_239_607_872)], ids=["3b", "7b"]
)
def test_parameter_count_is_that_of_the_paper(config, parameters):
    with torch.device("meta"):
        generator = Generator(config)
    assert sum(p.numel() for p in generator.parameters()) == parameters
    assert [name for name, _ in generator.named_buffers()] == ["rope.frequencies"]


@FLAVOURS
def test_packed_samples_equal_samples_alone(config):
    generator = small_generator(config)
    videos, timesteps, texts = small_batch(config)
    with torch.no_grad():
        packed = generator(videos, timesteps, texts)
        separate = [generator([video], timesteps[i, None], [texts[i]])[0] for i, video in enumerate(videos)]
    for index, (velocity, alone) in enumerate(zip(packed, separate, strict=True)):
        assert velocity.shape == (config.latent_channels, *videos[index].shape[1:])
        assert max_difference(velocity, alone) <= 1e-5


def test_text_and_timestep_matter_to_their_sample_only():
    generator = small_generator(SMALL_3B)
    videos, timesteps, texts = small_batch(SMALL_3B)
    before = generator(videos, timesteps, texts)
    after = generator(videos, timesteps, [texts[0] + 1, *texts[1:]])
    later = generator(videos, timesteps - torch.tensor([0.0, 0.0, 100.0]), texts)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert [torch.equal(a, b) for a, b in zip(before, later, strict=True)] == [True, True, False]


@FLAVOURS
def test_hidden_tokens_are_those_after_the_chosen_blocks(config):
    generator = small_generator(config)
    batch = small_batch(config)
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    first, second = generator.hidden(*batch, after=(0, 1))
    assert len(seen) == 2, "blocks behind the last tap are not run"
    assert torch.equal(torch.cat(first), seen[0])
    assert torch.equal(torch.cat(second), seen[1])
    assert [tuple(tokens.shape) for tokens in first] == [(3 * 6 * 22, 24), (12, 24), (2 * 24 * 5, 24)]


def test_hidden_tokens_of_a_block_that_does_not_exist_are_refused():
    with pytest.raises(ConfigError, match="block indices from 0 to 2, got \\[3\\]"):
        small_generator(SMALL_3B).hidden(*small_batch(SMALL_3B), after=(3,))


@FLAVOURS
def test_recomputed_activations_give_the_same_gradients(config):
    gradients = []
    for recompute in (False, True):
        generator = small_generator(config, checkpoint_activations=recompute)
        sum(velocity.square().mean() for velocity in generator(*small_batch(config))).backward()
        gradients.append({name: p.grad for name, p in generator.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name


@FLAVOURS
def test_gradients_reach_every_parameter_that_the_output_depends_on(config):
    generator = small_generator(config)
    sum(velocity.square().mean() for velocity in generator(*small_batch(config))).backward()
    without = {name for name, p in generator.named_parameters() if p.grad is None or not p.grad.any()}
    last = f"blocks.{config.layers - 1}"
    text_only = {name for name in without if name.startswith(last) and ".text." in name}
    assert without == text_only, "only the last layer's text is unused"


@FLAVOURS
def test_short_model_keeps_exact_frequencies_and_stays_near(config):
    generator = small_generator(config).eval()
    short = copy.deepcopy(generator).to(torch.bfloat16)
    assert torch.equal(short.rope.frequencies, rope_frequencies(config.rope, config.head_dim))
    batch = small_batch(config)
    with torch.no_grad():
        for exact, rounded in zip(generator(*batch), short(*batch), strict=True):
            assert rounded.dtype == torch.bfloat16
            assert max_difference(exact, rounded) <= 0.05 * float(exact.abs().max())


@FLAVOURS
def test_autocast_computes_the_stream_in_bfloat16_and_trains_float32_weights(config):
    generator = small_generator(config)
    batch = small_batch(config)
    streams = []
    generator.blocks[0].register_forward_hook(lambda module, inputs, output: streams.extend(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocities = generator(*batch)
    sum(velocity.float().square().mean() for velocity in velocities).backward()
    assert {tensor.dtype for tensor in (*streams, *velocities)} == {torch.bfloat16}
    assert generator.patch_in.weight.grad.dtype == torch.float32
    with torch.no_grad():
        for exact, rounded in zip(generator(*batch), velocities, strict=True):
            assert max_difference(exact, rounded) <= 0.05 * float(exact.abs().max())


@pytest.mark.parametrize(("config", "index"), [(SMALL_3B, 2), (SMALL_7B, 1)], ids=["3b-last", "7b-shifted"])
def test_block_compiles_without_graph_breaks(config, index):
    generator = small_generator(config)
    streams = generator.embed(*small_batch(config, sizes=((1, 8, 6), (2, 4, 40)), text_lengths=(3, 4)))
    block = generator.blocks[index]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for got, want in zip(compiled(*streams), block(*streams), strict=True):
        assert max_difference(got.detach(), want.detach()) <= 1e-5


def test_layouts_are_shared_between_forward_passes():
    generator = small_generator(SMALL_3B)
    plans = [generator.embed(*small_batch(SMALL_3B))[3] for _ in range(2)]
    assert plans[0].regular.layout is plans[1].regular.layout
    assert plans[0].shifted.layout is plans[1].shifted.layout
    assert plans[0].regular.layout is not plans[0].shifted.layout


def test_inference_mode_does_not_spoil_later_training():
    generator = small_generator(SMALL_3B)
    batch = small_batch(SMALL_3B, sizes=((2, 14, 26),), text_lengths=(3,))
    with torch.inference_mode():
        expected = generator(*batch)[0].clone()
    velocity = generator(*batch)[0]
    velocity.sum().backward()
    assert max_difference(velocity.detach(), expected) <= 1e-6


def test_sizes_that_do_not_fit_are_refused():
    generator = small_generator(SMALL_3B)
    videos, timesteps, texts = small_batch(SMALL_3B)
    for bad, message in (
        (
            ([videos[0][:, :, 1:], *videos[1:]], timesteps, texts),
            r"even latent height and width, got \(11, 44\)",
        ),
        (([videos[0][1:], *videos[1:]], timesteps, texts), r"videos of shape \(9, T, h, w\)"),
        ((videos, timesteps[:2], texts), "one text and one timestep per video"),
        ((videos, timesteps, texts[:2]), "one text and one timestep per video"),
        ((videos, timesteps, [text[:, 1:] for text in texts]), r"texts of shape \(tokens, 10\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            generator(*bad)


def test_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="no attention backend 'magic'; choose from auto"):
        Generator(SMALL_3B, attention_backend="magic")
