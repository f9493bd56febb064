"""Released weight files to a model directory.

Reads `.pth` and `.pt` archives as torch writes them, and the `.safetensors` files with the same names that the
community shares. An archive holds a pickle, which could run code: only tensors and plain containers are
unpickled, anything else is refused, and so are bare pickles. Checksums are verified where the archive has them.

Tensors stay mapped to the file they come from until they are written, so that converting needs memory for one
tensor rather than for the model. They keep the dtype of the file.

Source: the released 3B, 7B and autoencoder checkpoints and the two text embeddings beside them.
"""

import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from seedvr2.checkpoint import ModelRecord, TextEmbedding, save_model
from seedvr2.config import GeneratorConfig, load_preset
from seedvr2.errors import CheckpointError, SeedVR2Error
from seedvr2.models.autoencoder import Autoencoder
from seedvr2.models.generator import Generator
from seedvr2.released import (
    autoencoder_config_from_released,
    autoencoder_from_released,
    generator_config_from_released,
    generator_from_released,
)
from seedvr2.storage import write_directory

RELEASED_NORM_GROUPS = 32
"""Groups of the released autoencoder's norms, which leave no trace in its weights."""
_ARCHIVE_MAGIC = b"PK\x03\x04"
_BLOCK = 1 << 20
_T = TypeVar("_T")


def convert_released(
    folder: Path,
    generator: Path,
    autoencoder: Path | None = None,
    text: tuple[Path, Path] | None = None,
    *,
    overwrite: bool = False,
    norm_groups: int = RELEASED_NORM_GROUPS,
) -> ModelRecord:
    """Write a model directory from released files; it appears only when complete.

    Args:
        folder: The directory to make; its parent must exist.
        generator: Weights of the generator, 3B or 7B; which one is read off their shapes.
        autoencoder: Weights of the autoencoder, if the directory is to have one.
        text: Positive and negative text embedding, if the directory is to have them.
        overwrite: Replace a model that is there.
        norm_groups: Groups of the autoencoder's norms.

    Raises:
        CheckpointError: A file is missing, damaged, no weight file or more than weights; tensors are missing,
            extra or misshaped; or `folder` cannot be written. Nothing is left in `folder` then.
    """
    _refuse_existing(folder, [generator, autoencoder, *(text or ())], overwrite)
    network = _convert(generator, _generator)
    return _save(
        folder,
        network,
        _convert(autoencoder, lambda state: _autoencoder(state, norm_groups)) if autoencoder else None,
        _text_embedding(*text, network.config) if text else None,
    )


def read_released(path: Path) -> dict[str, Tensor]:
    """Named tensors of a `.pth` or `.safetensors` file, mapped into memory.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, holds more than tensors by name, or
            a tensor of it is not of finite floating-point numbers.
    """
    state = _read(path)
    if not isinstance(state, dict) or not state:
        found = f"a {type(state).__name__}" if not isinstance(state, dict) else "nothing"
        raise CheckpointError(f"{path}: expected tensors by name, found {found}; choose a file of weights")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, found a {type(tensor).__name__} under {name!r}; "
                "choose a file of weights alone"
            )
        _require_numbers(path, name, tensor)
    return state


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ARCHIVE_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read: {error.strerror}; check the path") from error
    if not magic:
        raise CheckpointError(f"{path}: the file is empty; download it again")
    if magic == _ARCHIVE_MAGIC:
        return _read_archive(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: neither a .pth archive nor a .safetensors file, or damaged ({_line(error)}); "
            "download it again"
        ) from error


def _read_archive(path: Path) -> Any:
    try:
        _verify_checksums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols, which either load or fail
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than weights, reading it could run code; get the weights from a source you "
            "trust, or as .safetensors"
        ) from error
    except Exception as error:  # the unpickler may fail in any way on bytes that are no checkpoint
        raise CheckpointError(
            f"{path}: damaged, or no archive of weights ({_line(error)}); download it again"
        ) from error


def _verify_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.CRC:  # torch can be told to leave them out
                with archive.open(member) as file:
                    while file.read(_BLOCK):
                        pass


def _require_numbers(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or not tensor.is_floating_point():
        raise CheckpointError(
            f"{path}: {name!r} is of type {tensor.dtype}, expected floating-point weights; "
            "choose a file that is not quantised"
        )
    if not tensor.float().isfinite().all():
        raise CheckpointError(
            f"{path}: {name!r} holds infinite or undefined numbers; download the file again"
        )


def _convert(path: Path, build: Callable[[dict[str, Tensor]], _T]) -> _T:
    """The network that `build` makes of a file's tensors; its errors get the file's name."""
    state = read_released(path)
    try:
        return build(state)
    except SeedVR2Error as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ArithmeticError, LookupError, ValueError) as error:  # sizes that make no network
        raise CheckpointError(
            f"{path}: the shapes of its tensors fit no known model ({_line(error)}); choose another file"
        ) from error


def _generator(state: Mapping[str, Tensor]) -> Generator:
    config = generator_config_from_released(state)
    with torch.device("meta"):
        network = Generator(config)
    network.load_state_dict(generator_from_released(state, config), strict=True, assign=True)
    return network


def _autoencoder(state: Mapping[str, Tensor], norm_groups: int) -> Autoencoder:
    config = autoencoder_config_from_released(state, norm_groups)
    with torch.device("meta"):
        network = Autoencoder(config)
    network.load_state_dict(autoencoder_from_released(state, config), strict=True, assign=True)
    return network


def _text_embedding(positive: Path, negative: Path, config: GeneratorConfig) -> TextEmbedding:
    tokens = []
    for path in (positive, negative):
        content = _read(path)
        if isinstance(content, dict) and len(content) == 1:  # as .safetensors has to name its tensor
            (content,) = content.values()
        if not isinstance(content, Tensor) or content.ndim != 2 or content.shape[1] != config.text_channels:
            found = tuple(content.shape) if isinstance(content, Tensor) else f"a {type(content).__name__}"
            raise CheckpointError(
                f"{path}: expected one text embedding (tokens, {config.text_channels}), found {found}; "
                "choose the embedding that comes with this generator"
            )
        _require_numbers(path, "embedding", content)
        tokens.append(content.clone())
    return TextEmbedding(*tokens)


def _refuse_existing(folder: Path, sources: list[Path | None], overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file; choose the name of a directory")
    if not overwrite and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: exists already; choose another name or pass --overwrite")
    for source in sources:
        if source is not None and source.resolve().parent == folder.resolve():
            raise CheckpointError(f"{folder}: holds the source {source}; choose another directory")


def _save(
    folder: Path, generator: Generator, autoencoder: Autoencoder | None, text: TextEmbedding | None
) -> ModelRecord:
    names = [name for name in ("3b", "7b") if load_preset(name).generator == generator.config]
    try:
        with write_directory(folder) as temporary:
            return save_model(
                temporary,
                name=names[0] if names else "custom",
                stage="released",
                generator=generator,
                autoencoder=autoencoder,
                text=text,
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot write: {_line(error)}; check that its parent exists and has space"
        ) from error


def _line(error: BaseException) -> str:
    """The first line of an error, or its name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
