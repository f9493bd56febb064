"""Released weight files become a model directory with the same numbers, or one clear line."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seedvr2.checkpoint import load_generator, load_model, read_record
from seedvr2.config import AutoencoderConfig, GeneratorConfig
from seedvr2.convert import convert_released, read_released
from seedvr2.errors import CheckpointError
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.released import _AUTOENCODER_RULES, _released_name, _rename
from tests.conftest import golden_cases, load_golden
from tests.pipelines.conftest import assert_one_line, run_command

GROUPS = 32
GENERATOR = GeneratorConfig(width=12, heads=1, head_dim=12, layers=2, separate_layers=1, text_channels=8)
AUTOENCODER = AutoencoderConfig(channels=(32, 32, 32, 32), encoder_resnets=1, decoder_resnets=1)


@dataclass(frozen=True)
class Released:
    """Paths of the four released files, and what is in them."""

    generator: Path
    autoencoder: Path
    positive: Path
    negative: Path
    networks: tuple[Generator, Autoencoder]

    @property
    def options(self):
        names = ("generator", "autoencoder", "positive", "negative")
        return [word for name in names for word in (f"--{name}", getattr(self, name))]


def released_generator(network):
    """A state dict as it was released: one table of frequencies per layer."""
    state = {_released_name(k): v for k, v in network.state_dict().items() if k != "rope.frequencies"}
    for layer in range(network.config.layers):
        state[f"blocks.{layer}.attn.rope.rope.freqs"] = network.state_dict()["rope.frequencies"].clone()
    return state


def write(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.fixture
def run(capfd):
    return partial(run_command, capfd)


@pytest.fixture
def released(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator, autoencoder = Generator(GENERATOR), Autoencoder(AUTOENCODER)
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        positive, negative = torch.randn(5, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    state = {_rename(k, _AUTOENCODER_RULES): v for k, v in autoencoder.state_dict().items()}
    return Released(
        write(folder / "generator.pth", released_generator(generator)),
        write(folder / "vae.pth", state),
        write(folder / "pos_emb.pt", positive),
        write(folder / "neg_emb.pt", negative),
        (generator, autoencoder),
    )


def same(ours, theirs):
    """Whether two networks hold the same tensors, bit by bit."""
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_released_files_become_a_model_that_loads(tmp_path, released, run):
    answer = run("convert", *released.options, tmp_path / "model")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{tmp_path / 'model'}: model custom, 3 files, ")
    assert answer.out.count("\n") == 1
    model = load_model(tmp_path / "model")
    assert same(model.generator, released.networks[0])
    assert same(model.autoencoder, released.networks[1])
    positive = torch.load(released.positive, weights_only=True)
    assert torch.equal(model.text.positive, positive.float())
    assert model.record.stage == "released"


def test_half_precision_safetensors_keep_their_numbers_and_dtype(tmp_path, released):
    half = {name: tensor.half() for name, tensor in released_generator(released.networks[0]).items()}
    path = write(tmp_path / "generator_fp16.safetensors", half)
    embedding = {"emb": torch.load(released.positive, weights_only=True)}
    positive = write(tmp_path / "pos_emb.safetensors", embedding)
    convert_released(tmp_path / "model", path, text=(positive, released.negative))
    stored = load_file(tmp_path / "model" / "generator.safetensors")
    rope = stored.pop("rope.frequencies")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert torch.equal(rope, released.networks[0].state_dict()["rope.frequencies"])  # positions stay exact
    expected = released.networks[0].half().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())
    assert load_file(tmp_path / "model" / "text_embedding.safetensors")["positive"].dtype == torch.bfloat16


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_cases("dit_*/weights.safetensors"))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reference_generators_convert(tmp_path, path, suffix):
    weights, _ = load_golden(path)
    convert_released(tmp_path / "model", write(tmp_path / f"generator{suffix}", weights))
    record = read_record(tmp_path / "model")
    network = load_generator(tmp_path / "model")
    converted = released_generator(network)
    assert record.generator == network.config
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weights[name]) for name in weights)


def test_an_incomplete_model_says_what_restoring_needs(tmp_path, released, run):
    answer = run("convert", "--generator", released.generator, tmp_path / "model")
    assert answer.code == 0
    assert "not complete: `seedvr2 restore` also needs --autoencoder, --positive and --negative" in answer.out


def test_one_embedding_alone_is_refused(tmp_path, released, run):
    command = ("convert", "--generator", released.generator, "--positive", released.positive)
    assert_one_line(run(*command, tmp_path / "model"), "belong together; give both or none", code=2)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def malicious_archive(path, marker):
    torch.save({"vid_in.proj.weight": torch.zeros(2), "more": Payload(marker)}, path)


def malicious_pickle(path, marker):
    path.write_bytes(pickle.dumps({"more": Payload(marker)}, protocol=2))


def malicious_new_protocol(path, marker):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(marker), protocol=5))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


MALICIOUS = [malicious_archive, malicious_pickle, malicious_new_protocol]


@pytest.mark.parametrize("attack", MALICIOUS)
def test_the_attack_would_work_on_a_careless_reader(tmp_path, attack):
    attack(tmp_path / "a.pth", tmp_path / "marker")
    with suppress(RuntimeError):  # a bare pickle is run first and refused later
        torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", MALICIOUS)
@pytest.mark.parametrize("target", ["generator", "autoencoder", "positive"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, released, run, attack, target):
    path = getattr(released, target)
    attack(path, tmp_path / "marker")
    answer = run("convert", *released.options, tmp_path / "model")
    assert_one_line(answer, path, "; ")
    if attack is malicious_archive:
        assert "holds more than weights, reading it could run code" in answer.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["downloads"]


def changed(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def as_safetensors(path, change=lambda content: content):
    buffer = path.with_suffix(".safetensors")
    save_file(torch.load(path, weights_only=True), buffer)
    path.write_bytes(change(buffer.read_bytes()))
    buffer.unlink()


def some_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("document.xml", "<a/>" * 100)


def put(name, value):
    return lambda path: changed(path, lambda state: state.update({name: value}))


BAD_WEIGHTS = {
    "missing file": (lambda path: path.unlink(), "cannot read: No such file or directory"),
    "empty file": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n" * 9),
        "neither a .pth",
    ),
    "other archive": (some_archive, "damaged, or no archive of weights"),
    "flipped bit": (flip_a_byte, "damaged, or no archive of weights (Bad CRC-32"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-2000]), "damaged"),
    "cut off safetensors": (lambda path: as_safetensors(path, lambda c: c[:-2000]), "or damaged"),
    "old format": (
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
        "neither a .pth archive nor a .safetensors file",
    ),
    "missing tensor": (
        lambda p: changed(p, lambda s: s.pop("txt_in.bias")),
        "1 missing, first 'txt_in.bias'",
    ),
    "extra tensor": (put("surprise", torch.zeros(2)), "1 extra, first 'surprise'"),
    "misshaped tensor": (put("txt_in.bias", torch.zeros(3)), "1 misshaped, first 'txt_in.bias'"),
    "tensor without sides": (put("txt_in.weight", torch.zeros(8)), "fit no known model"),
    "no head size": (put("blocks.0.attn.norm_q.vid.weight", torch.zeros(0)), "fit no known model"),
    "integers": (put("txt_in.bias", torch.zeros(12, dtype=torch.int8)), "not quantised"),
    "undefined numbers": (put("txt_in.bias", torch.full((12,), torch.nan)), "infinite or undefined"),
    "nested": (lambda path: torch.save({"state_dict": {"a": torch.zeros(2)}}, path), "found a dict under"),
    "list": (lambda path: torch.save([torch.zeros(2)], path), "expected tensors by name, found a list"),
    "nothing": (lambda path: torch.save({}, path), "expected tensors by name, found nothing"),
    "other network": (
        lambda path: torch.save({"a": torch.zeros(2)}, path),
        "tensors of a released generator",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_a_generator_that_does_not_fit_is_named_and_nothing_is_left(tmp_path, released, run, case):
    damage, reason = BAD_WEIGHTS[case]
    damage(released.generator)
    before = released.generator.read_bytes() if released.generator.exists() else None
    answer = run("convert", *released.options, tmp_path / "model")
    assert_one_line(answer, released.generator, reason, "; ")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["downloads"]
    assert before is None or released.generator.read_bytes() == before


def test_an_autoencoder_that_does_not_fit_is_named(tmp_path, released, run):
    changed(released.autoencoder, lambda state: state.pop("encoder.conv_in.bias"))
    answer = run("convert", *released.options, tmp_path / "model")
    assert_one_line(answer, released.autoencoder, "1 missing, first 'encoder.conv_in.bias'")


def test_an_autoencoder_of_other_width_is_named(tmp_path, released):
    narrow = Autoencoder(
        AutoencoderConfig(channels=(8, 8, 8, 8), encoder_resnets=1, decoder_resnets=1, norm_groups=4)
    )
    state = {_rename(k, _AUTOENCODER_RULES): v for k, v in narrow.state_dict().items()}
    write(released.autoencoder, state)
    with pytest.raises(CheckpointError, match="fit no known model"):
        convert_released(tmp_path / "model", released.generator, released.autoencoder)
    convert_released(tmp_path / "model", released.generator, released.autoencoder, norm_groups=4)
    assert read_record(tmp_path / "model").autoencoder == narrow.config


@pytest.mark.parametrize(
    ("embedding", "found"),
    [
        (torch.zeros(5, 7), "found (5, 7)"),
        (torch.zeros(8), "found (8,)"),
        ([torch.zeros(5, 8)], "found a list"),
        (torch.full((5, 8), torch.inf), "infinite or undefined"),
    ],
)
def test_an_embedding_that_does_not_fit_is_named(tmp_path, released, run, embedding, found):
    torch.save(embedding, released.negative)
    answer = run("convert", *released.options, tmp_path / "model")
    assert_one_line(answer, released.negative, found, "; ")


def test_an_existing_model_is_kept_without_overwrite_and_replaced_with_it(tmp_path, released, run):
    folder = tmp_path / "model"
    command = ("convert", *released.options, folder)
    assert run(*command).code == 0
    (folder / "note.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_one_line(run(*command), folder, "exists already; choose another name or pass --overwrite")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    changed(released.generator, lambda state: state["txt_in.bias"].add_(1))
    assert run(*command, "--overwrite").code == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted(before)
    assert torch.equal(load_model(folder).generator.text_in.bias, released.networks[0].text_in.bias + 1)


def test_a_failed_overwrite_leaves_the_old_model(tmp_path, released, run):
    folder = tmp_path / "model"
    command = ("convert", *released.options, folder)
    run(*command)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flip_a_byte(released.autoencoder)
    assert run(*command, "--overwrite").code == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_sources_inside_the_output_are_refused(released, run):
    folder = released.generator.parent
    answer = run("convert", *released.options, folder, "--overwrite")
    assert_one_line(answer, folder, "holds the source", "choose another directory")


@pytest.mark.parametrize(
    "place", ["missing/model", "downloads/generator.pth", "downloads/generator.pth/model"]
)
def test_an_output_that_cannot_be_written_is_named(tmp_path, released, run, place):
    before = released.generator.read_bytes()
    answer = run("convert", *released.options, tmp_path / place)
    assert_one_line(answer, tmp_path / place, "; ")
    assert released.generator.read_bytes() == before


def test_a_full_disk_leaves_nothing_behind(tmp_path, released):
    command = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))"
    command += "; from pipelines.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", command, "convert", *map(str, released.options), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"seedvr2: error: {tmp_path / 'model'}: cannot write: ")
    assert ended.stderr.count("\n") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["downloads"]


def test_tensors_stay_in_the_file_until_they_are_written(tmp_path):
    size = 1 << 20
    path = write(tmp_path / "big.pth", {f"{number}": torch.ones(size) for number in range(4)})
    state = read_released(path)
    with path.open("r+b") as file:  # a change of the file shows in the tensors: they are mapped, not copied
        content = file.read()
        file.seek(content.rindex(torch.ones(4).numpy().tobytes()))
        file.write(torch.full((4,), 2.0).numpy().tobytes())
    assert any(bool((tensor == 2).any()) for tensor in state.values())


def test_an_archive_without_checksums_is_read(tmp_path):
    buffer = io.BytesIO()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, buffer)
    finally:
        torch.serialization.set_crc32_options(True)
    (tmp_path / "a.pth").write_bytes(buffer.getvalue())
    assert torch.equal(read_released(tmp_path / "a.pth")["a"], torch.ones(3))
