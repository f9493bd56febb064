"""Model directories and training states on disk: safetensors, strict, with digests.

    MODEL/
      model.json                  format, configuration, stage, parent, digest and size of every file
      generator.safetensors
      autoencoder.safetensors
      text_embedding.safetensors  `positive` and `negative`, (tokens, text_channels)

`model.json` is written last: a directory without it is not a model. A stage that trains one network
writes a directory with that network alone. Pickles are never read here; `released.py` converts them.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seedvr2.config import AutoencoderConfig, Config, GeneratorConfig
from seedvr2.errors import CheckpointError
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.storage import write_atomic

FORMAT = 1


class FileRecord(Config):
    """One file of a model directory."""

    sha256: str
    bytes: int


class ModelRecord(Config):
    """Contents of `model.json`."""

    format: int = FORMAT
    name: str
    """What people call it: nano, 3b, 7b."""
    stage: str
    """Where it comes from: a training stage, or `released`."""
    parent: str = ""
    """Digest of the model it was trained from, if any."""
    commit: str = ""
    """Revision of the code that made it, if known."""
    generator: GeneratorConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One digest for all weights."""
        return hashlib.sha256("".join(self.files[k].sha256 for k in sorted(self.files)).encode()).hexdigest()


@dataclass(frozen=True)
class TextEmbedding:
    """The two fixed prompts, as tokens (L, text_channels)."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Model:
    """Everything that restoration needs."""

    record: ModelRecord
    generator: Generator
    autoencoder: Autoencoder
    text: TextEmbedding


def bundled_model() -> Path:
    """Directory of the trained `nano` model that ships with the package."""
    return Path(str(resources.files("seedvr2") / "nano"))


def save_model(
    folder: Path,
    *,
    name: str = "custom",
    stage: str,
    generator: Generator | None = None,
    autoencoder: Autoencoder | None = None,
    text: TextEmbedding | None = None,
    dtype: torch.dtype | None = None,
    parent: str = "",
    commit: str = "",
) -> ModelRecord:
    """Write a model directory, `model.json` last.

    Args:
        folder: Made if it does not exist; files of the same names are replaced.
        name: What people call the model.
        stage: Training stage that made it.
        generator: Network to save, if any.
        autoencoder: Network to save, if any.
        text: Prompts to save, if any.
        dtype: Floating type of the stored weights; None keeps each tensor's own.
        parent: Digest of the model it was trained from.
        commit: Revision of the code.
    """
    parts: dict[str, Mapping[str, Tensor]] = {}
    if generator is not None:
        parts["generator"] = generator.state_dict()
    if autoencoder is not None:
        parts["autoencoder"] = autoencoder.state_dict()
    if text is not None:
        parts["text_embedding"] = {"positive": text.positive, "negative": text.negative}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").unlink(missing_ok=True)
    files = {}
    for part, state in parts.items():
        stored = {k: v.detach().cpu().contiguous() for k, v in state.items()}
        if dtype is not None:  # positions are exact only in fp32
            stored = {k: v if "frequencies" in k else v.to(dtype) for k, v in stored.items()}
        path = folder / f"{part}.safetensors"
        _write_tensors(path, stored)
        files[path.name] = FileRecord(sha256=file_digest(path), bytes=path.stat().st_size)
    record = ModelRecord(
        name=name,
        stage=stage,
        parent=parent,
        commit=commit,
        generator=None if generator is None else generator.config,
        autoencoder=None if autoencoder is None else autoencoder.config,
        files=files,
    )
    with write_atomic(folder / "model.json") as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return record


def read_record(folder: Path) -> ModelRecord:
    """Read `model.json`.

    Raises:
        CheckpointError: Not a model directory, or one of another format.
    """
    path = folder / "model.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        record = ModelRecord.model_validate(tree)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: not a model directory, it has no readable model.json; "
            "make one from released weights with `seedvr2 convert`"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: damaged or of another version ({reason}); copy the model again"
        ) from error
    if record.format != FORMAT:
        raise CheckpointError(
            f"{path}: format {record.format}, this version reads {FORMAT}; convert the weights again"
        )
    return record


def load_model(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """Load a complete model directory strictly.

    Args:
        folder: A directory written by `save_model`.
        device: Where the weights go.
        dtype: Floating type of the weights in memory.

    Raises:
        CheckpointError: A file or tensor is missing, extra, misshaped or damaged.
    """
    record = read_record(folder)
    prompts = read_tensors(folder, record, "text_embedding")
    if set(prompts) != {"positive", "negative"}:
        raise CheckpointError(f"{folder}/text_embedding.safetensors: expected tensors positive and negative")
    text = TextEmbedding(prompts["positive"].to(device, dtype), prompts["negative"].to(device, dtype))
    return Model(
        record=record,
        generator=load_generator(folder, device=device, dtype=dtype),
        autoencoder=load_autoencoder(folder, device=device, dtype=dtype),
        text=text,
    )


def load_generator(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Generator:
    """Load the generator of a model directory; see `load_model`."""
    record = read_record(folder)
    if record.generator is None:
        raise CheckpointError(f"{folder}: has no generator, it comes from stage {record.stage!r}")
    with torch.device("meta"):
        network = Generator(record.generator)
    _fill(network, read_tensors(folder, record, "generator"), folder / "generator.safetensors")
    return network.to(device, dtype).eval()


def load_autoencoder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Autoencoder:
    """Load the autoencoder of a model directory; see `load_model`."""
    record = read_record(folder)
    if record.autoencoder is None:
        raise CheckpointError(f"{folder}: has no autoencoder, it comes from stage {record.stage!r}")
    with torch.device("meta"):
        network = Autoencoder(record.autoencoder)
    _fill(network, read_tensors(folder, record, "autoencoder"), folder / "autoencoder.safetensors")
    return network.to(device, dtype).eval()


def read_tensors(folder: Path, record: ModelRecord, part: str) -> dict[str, Tensor]:
    """Tensors of one file of a model directory, after checking its digest.

    Raises:
        CheckpointError: The file is missing, damaged, or not the one that was saved.
    """
    path = folder / f"{part}.safetensors"
    expected = record.files.get(path.name)
    if expected is None or not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the whole model directory again")
    if path.stat().st_size != expected.bytes or file_digest(path) != expected.sha256:
        raise CheckpointError(
            f"{path}: damaged, its digest is not the one in model.json; copy the file again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); copy the file again"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str | Path) -> None:
    """Compare names and shapes of tensors with what a network wants.

    Raises:
        CheckpointError: Naming how many are missing, extra or misshaped, and the first.
    """
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    if missing or extra:
        parts = [
            f"{len(names)} tensors {what}, first {names[0]!r}"
            for what, names in (("missing", missing), ("extra", extra))
            if names
        ]
        raise CheckpointError(f"{origin}: {'; '.join(parts)}; these weights belong to another model")
    misshaped = [key for key in wanted if found[key].shape != wanted[key].shape]
    if misshaped:
        key = misshaped[0]
        raise CheckpointError(
            f"{origin}: {len(misshaped)} tensors misshaped, first {key!r} with {tuple(found[key].shape)} "
            f"instead of {tuple(wanted[key].shape)}; these weights belong to another model"
        )


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with write_atomic(path) as temporary:
        mode = temporary.stat().st_mode
        save_file(tensors, temporary)
        temporary.chmod(mode)  # safetensors makes files that nobody else may read


def _fill(network: nn.Module, tensors: dict[str, Tensor], origin: Path) -> None:
    check_tensors(tensors, network.state_dict(), origin)
    network.load_state_dict(tensors, strict=True, assign=True)


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested state of dicts, lists, tensors and plain values: tensors apart, the tree as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}

    def strip(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            name = f"{len(tensors)}{path}"  # a key with a slash may spell the path of another
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, strip(value, f"{path}/{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {"list": [strip(value, f"{path}/{i}") for i, value in enumerate(node)]}
        return {"value": node}

    tree = strip(state, "")
    _write_tensors(folder / "state.safetensors", tensors)
    with write_atomic(folder / "state.json") as temporary:
        temporary.write_text(json.dumps(tree), encoding="utf-8")


def load_training_state(folder: Path) -> dict[str, Any]:
    """Read what `save_training_state` wrote.

    Raises:
        CheckpointError: A file is missing or damaged.
    """

    def rebuild(node: Any) -> Any:
        ((kind, value),) = node.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "dict":
            return {key: rebuild(child) for key, child in value}
        return [rebuild(child) for child in value] if kind == "list" else value

    try:
        tensors = load_file(folder / "state.safetensors")
        state: dict[str, Any] = rebuild(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{folder}: damaged training state ({reason}); delete it to resume earlier"
        ) from error
    return state
