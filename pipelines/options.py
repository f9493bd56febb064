"""What options of the `seedvr2` command mean to the library."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from seedvr2.checkpoint import bundled_model
from seedvr2.errors import ConfigError, VideoError
from seedvr2.restore import RestoreOptions
from seedvr2.video.io import VideoInfo
from seedvr2.video.output import check_output

BUNDLED = "nano"
"""Name of the model that ships with the package."""
_ENCODE = ("codec", "crf", "preset", "bit_depth")


def model_folder(model: str) -> Path:
    """The directory of a model: the bundled one by its name, else a path."""
    return bundled_model() if model == BUNDLED else Path(model)


def restore_options(choices: dict[str, Any]) -> RestoreOptions:
    """Options of the library from those of the command.

    Args:
        choices: Values by the name of the option, with underscores.

    Raises:
        ConfigError: Naming the option that is out of range, or that excludes another.
    """
    tree: dict[str, Any] = {
        name: value for name, value in choices.items() if name not in (*_ENCODE, "no_audio")
    }
    tree["audio"] = not choices["no_audio"]
    tree["encode"] = {name: choices[name] for name in _ENCODE}
    try:
        return RestoreOptions.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][-1]).replace('_', '-')} {first['input']}: " if first["loc"] else ""
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise ConfigError(f"{option}{reason}; see `seedvr2 restore --help`") from error


def choose_device(name: str) -> torch.device:
    """The device of an option: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: Unknown, or not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ConfigError(f"--device {name}: {there} CUDA devices are there; use --device auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The floating type of an option on a device: auto is bfloat16 on CUDA, else float32."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def default_output(info: VideoInfo, options: RestoreOptions) -> str:
    """Where a result goes if nothing is said: beside its source and named after it, in a form that holds it.

    A picture becomes .png, a sequence a directory, a video .mp4, or .mkv if its audio does not fit into .mp4.
    """
    path = Path(info.path)
    if info.kind == "picture":
        return str(path.with_name(f"{path.stem}_restored.png"))
    if info.kind == "sequence" and path.is_dir():
        folder = path if path.name not in ("", "..") else path.resolve()
        return f"{folder.with_name(f'{folder.name}_restored')}/"
    if info.kind == "sequence":
        name = re.split(r"[%*?\[]", path.name)[0].rstrip("-_. ")
        return f"{path.with_name(f'{name}_restored'.lstrip('_'))}/"
    outputs = [str(path.with_name(f"{path.stem}_restored{suffix}")) for suffix in (".mp4", ".mkv")]
    for output in outputs:
        with suppress(VideoError):
            check_output(output, info, options.encode, overwrite=True, audio=options.audio)
            return output
    return outputs[0]
