import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from seedvr2.checkpoint import (
    FORMAT,
    Model,
    TextEmbedding,
    check_tensors,
    file_digest,
    load_autoencoder,
    load_generator,
    load_model,
    load_training_state,
    read_record,
    save_model,
    save_training_state,
)
from seedvr2.errors import CheckpointError
from tests.conftest import TINY_AUTOENCODER, TINY_GENERATOR, make_tiny_generator

PARTS = ("autoencoder", "generator", "text_embedding")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def same_state(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def resave(folder: Path, part: str, change) -> None:
    """Rewrite a file of tensors and its digest, as a faulty writer would."""
    path = folder / f"{part}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    record = json.loads((folder / "model.json").read_text())
    record["files"][path.name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    (folder / "model.json").write_text(json.dumps(record))


def test_a_model_comes_back_exactly(tmp_path: Path, tiny_model: Model) -> None:
    save_model(
        tmp_path / "copy",
        name="tiny",
        stage="test",
        generator=tiny_model.generator,
        autoencoder=tiny_model.autoencoder,
        text=tiny_model.text,
        parent=tiny_model.record.digest,
        commit="abc",
    )
    copy = load_model(tmp_path / "copy")
    assert same_state(copy.generator, tiny_model.generator)
    assert same_state(copy.autoencoder, tiny_model.autoencoder)
    assert torch.equal(copy.text.positive, tiny_model.text.positive)
    assert torch.equal(copy.text.negative, tiny_model.text.negative)
    assert (copy.record.generator, copy.record.autoencoder) == (TINY_GENERATOR, TINY_AUTOENCODER)
    assert (copy.record.name, copy.record.stage, copy.record.commit) == ("tiny", "test", "abc")
    assert copy.record.parent == copy.record.digest == tiny_model.record.digest


def test_a_loaded_model_is_ready_for_inference(tiny_model: Model) -> None:
    for network in (tiny_model.generator, tiny_model.autoencoder):
        assert not network.training
        assert not any(parameter.is_meta for parameter in network.parameters())


def test_the_record_tells_size_and_digest_of_every_file(tiny_folder: Path) -> None:
    record = read_record(tiny_folder)
    assert sorted(record.files) == [f"{part}.safetensors" for part in PARTS]
    for name, file in record.files.items():
        path = tiny_folder / name
        assert (file.bytes, file.sha256) == (path.stat().st_size, file_digest(path))


def test_the_digest_of_a_model_depends_on_its_weights_alone(folder: Path, tiny_model: Model) -> None:
    first = read_record(folder)
    assert first.model_copy(update={"name": "other"}).digest == first.digest

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["positive"][0, 0] += 1

    resave(folder, "text_embedding", nudge)
    assert read_record(folder).digest != first.digest


def test_half_precision_files_keep_rotary_frequencies_in_float32(tmp_path: Path, tiny_model: Model) -> None:
    save_model(tmp_path, stage="test", generator=tiny_model.generator, dtype=torch.float16)
    stored = load_file(tmp_path / "generator.safetensors")
    for name, tensor in stored.items():
        assert tensor.dtype == (torch.float32 if "frequencies" in name else torch.float16), name
    loaded = load_generator(tmp_path)
    assert torch.equal(loaded.rope.frequencies, tiny_model.generator.rope.frequencies)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_model_in_memory_of_half_precision_keeps_rotary_frequencies_in_float32(
    tiny_folder: Path, tiny_model: Model
) -> None:
    model = load_model(tiny_folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.generator.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.autoencoder.parameters()} == {torch.bfloat16}
    assert model.text.positive.dtype == torch.bfloat16
    assert torch.equal(model.generator.rope.frequencies, tiny_model.generator.rope.frequencies)


def test_a_stage_may_save_one_network_alone(tmp_path: Path, tiny_model: Model) -> None:
    save_model(tmp_path, stage="autoencoder", autoencoder=tiny_model.autoencoder)
    assert same_state(load_autoencoder(tmp_path), tiny_model.autoencoder)
    with pytest.raises(CheckpointError, match="no generator, it comes from stage 'autoencoder'"):
        load_generator(tmp_path)
    with pytest.raises(CheckpointError, match="text_embedding"):
        load_model(tmp_path)


def test_a_directory_without_an_autoencoder_says_so(tmp_path: Path, tiny_model: Model) -> None:
    save_model(tmp_path, stage="regression", generator=tiny_model.generator, text=tiny_model.text)
    with pytest.raises(CheckpointError, match="no autoencoder"):
        load_model(tmp_path)


def test_a_directory_is_no_model_until_it_is_complete(folder: Path) -> None:
    (folder / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"no readable model\.json.*seedvr2 convert"):
        load_model(folder)
    with pytest.raises(CheckpointError, match="not a model directory"):
        read_record(folder / "absent")


def test_saving_again_replaces_the_model(folder: Path) -> None:
    generator = make_tiny_generator()
    with torch.no_grad():
        generator.patch_in.bias += 1
    save_model(folder, stage="test", generator=generator)
    assert same_state(load_generator(folder), generator)


@pytest.mark.parametrize("part", PARTS)
def test_a_flipped_bit_is_noticed(folder: Path, part: str) -> None:
    path = folder / f"{part}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{part}.*damaged.*copy the file again"):
        load_model(folder)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_truncated_file_is_noticed(folder: Path, part: str, kept: int) -> None:
    path = folder / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=f"{part}.*damaged"):
        load_model(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file_is_noticed(folder: Path, part: str) -> None:
    (folder / f"{part}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{part}.*missing"):
        load_model(folder)


def test_a_file_that_never_was_safetensors_is_named(folder: Path) -> None:
    path = folder / "generator.safetensors"
    path.write_bytes(b"\x80\x04not a tensor in sight")
    record = json.loads((folder / "model.json").read_text())
    record["files"][path.name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    (folder / "model.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_generator(folder)


def drop_first(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def add_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["stowaway"] = torch.zeros(1)


def reshape_first(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(*tensors[name].shape, 2)


@pytest.mark.parametrize("part", ["generator", "autoencoder"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_first, "1 tensors missing, first"),
        (add_one, "1 tensors extra, first 'stowaway'"),
        (reshape_first, "1 tensors misshaped, first .* instead of"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, part: str, change, message: str) -> None:
    resave(folder, part, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert f"{part}.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [drop_first, add_one])
def test_prompts_other_than_two_are_refused(folder: Path, change) -> None:
    resave(folder, "text_embedding", change)
    with pytest.raises(CheckpointError, match="positive and negative"):
        load_model(folder)


def test_missing_and_extra_tensors_are_counted_together() -> None:
    wanted = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="2 tensors missing, first 'a'; 1 tensors extra, first 'c'"):
        check_tensors({"c": torch.zeros(1)}, wanted, "somewhere")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"a": 1}', b"\xff\xfe\x00", b'{"format": 1, "name": "x"}']
)
def test_a_foreign_model_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json: damaged") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_another_format_is_refused_by_number(folder: Path) -> None:
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | {"format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this version reads {FORMAT}"):
        load_model(folder)


def optimiser_after_steps(network: nn.Module) -> torch.optim.AdamW:
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, betas=(0.8, 0.9))
    for step in range(2):
        network(torch.full((2, 3), float(step))).square().mean().backward()
        optimiser.step()
    return optimiser


def test_a_training_state_comes_back_with_types_and_order(tmp_path: Path) -> None:
    state = {
        "tensor": torch.arange(6.0).reshape(2, 3).t(),  # not contiguous
        "half": torch.ones(2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0),
        "nested": {"z": [1, 2.5, None, True, "text"], 7: {"deep": torch.ones(1)}, "a/b": torch.zeros(1)},
        "a": {"b": torch.ones(1)},
        "nothing": {},
    }
    save_training_state(tmp_path / "state", state)
    loaded = load_training_state(tmp_path / "state")
    assert list(loaded) == list(state)
    assert list(loaded["nested"]) == ["z", 7, "a/b"]
    assert loaded["nested"]["z"] == [1, 2.5, None, True, "text"]
    assert loaded["nothing"] == {}
    for name in ("tensor", "half", "scalar", "empty"):
        assert loaded[name].dtype == state[name].dtype
        assert torch.equal(loaded[name], state[name])
    assert torch.equal(loaded["nested"]["a/b"], torch.zeros(1))
    assert torch.equal(loaded["a"]["b"], torch.ones(1))


def test_keys_that_look_like_paths_do_not_collide(tmp_path: Path) -> None:
    state = {"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)}
    save_training_state(tmp_path, state)
    loaded = load_training_state(tmp_path)
    assert torch.equal(loaded["a"]["b"], torch.ones(1))
    assert torch.equal(loaded["a/b"], torch.zeros(1))


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    weight = torch.ones(4)
    save_training_state(tmp_path, {"whole": weight, "again": weight, "part": weight[:2]})
    loaded = load_training_state(tmp_path)
    assert torch.equal(loaded["part"], torch.ones(2))
    assert torch.equal(loaded["again"], torch.ones(4))


def test_an_optimiser_continues_as_if_never_interrupted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = nn.Linear(3, 3)
    optimiser = optimiser_after_steps(first)
    save_training_state(tmp_path, {"model": first.state_dict(), "optimiser": optimiser.state_dict()})
    state = load_training_state(tmp_path)
    second = nn.Linear(3, 3)
    second.load_state_dict(state["model"])
    other = torch.optim.AdamW(second.parameters(), lr=9.0)
    other.load_state_dict(state["optimiser"])
    for network, steps in ((first, optimiser), (second, other)):
        steps.zero_grad()
        network(torch.ones(2, 3)).square().mean().backward()
        steps.step()
    assert same_state(first, second)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_training_state_is_named(tmp_path: Path, name: str, damage: str) -> None:
    save_training_state(tmp_path, {"a": torch.ones(3), "b": [1, 2]})
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"damaged training state.*resume earlier"):
        load_training_state(tmp_path)


def test_halves_of_two_training_states_do_not_make_one(tmp_path: Path) -> None:
    save_training_state(tmp_path / "a", {"a": torch.ones(3)})
    save_training_state(tmp_path / "b", {"b": torch.ones(3)})
    shutil.copy(tmp_path / "b" / "state.safetensors", tmp_path / "a")
    with pytest.raises(CheckpointError, match="damaged training state"):
        load_training_state(tmp_path / "a")


def test_prompts_are_plain_values() -> None:
    text = TextEmbedding(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(AttributeError):
        text.positive = torch.ones(1, 2)  # type: ignore[misc]
