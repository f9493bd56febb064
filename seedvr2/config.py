"""Frozen, typed configuration: presets of model sizes, recipes, and overrides from the command line.

TOML is written by hand, resolved JSON by machines. There is no inheritance and no interpolation; an
unknown key is an error that names the file.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from seedvr2.errors import ConfigError


class Config(BaseModel):
    """A frozen configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GeneratorConfig(Config):
    """Sizes and switches of the Swin-MMDiT generator; the defaults are the 3B flavour.

    Source: Table 6 and the released configurations.
    """

    width: int = Field(2560, ge=1)
    """Channels of the residual stream, video and text alike."""
    heads: int = Field(20, ge=1)
    head_dim: int = Field(128, ge=2)
    layers: int = Field(32, ge=1)
    separate_layers: int = Field(10, ge=0)
    """Leading layers with own weights per modality; the later ones share them."""
    text_channels: int = Field(5120, ge=1)
    """Channels of one text token."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    rope: Literal["language", "pixel"] = "language"
    """3-axis rotary embedding: of video and text (3B), or of video only (7B)."""
    output_norm: bool = True
    """Normalise and modulate before the last projection (3B)."""
    video_only_last_layer: bool = True
    """Text is neither modulated nor updated in the last layer (3B)."""
    num_windows: tuple[int, int, int] = (4, 3, 3)
    """Windows along (frames, height, width) of a 720p clip, Eq. 1."""
    latent_channels: int = Field(16, ge=1)
    norm_eps: float = Field(1e-5, gt=0)

    @property
    def in_channels(self) -> int:
        """Noisy latent, condition latent and mask."""
        return 2 * self.latent_channels + 1


class AutoencoderConfig(Config):
    """Sizes of the causal video autoencoder; the defaults are the released ones."""

    channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    """Channels at full, 1/2, 1/4 and 1/8 resolution."""
    encoder_resnets: int = Field(2, ge=1)
    decoder_resnets: int = Field(3, ge=1)
    latent_channels: int = Field(16, ge=1)
    norm_groups: int = Field(32, ge=1)
    norm_eps: float = Field(1e-6, gt=0)
    scaling_factor: float = Field(0.9152, gt=0)
    """Factor from a posterior draw to a latent."""

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if bad := [c for c in self.channels if c % self.norm_groups]:
            raise ValueError(f"channels {bad} are not multiples of norm_groups = {self.norm_groups}")
        return self


class ModelConfig(Config):
    """One model: generator and autoencoder."""

    generator: GeneratorConfig
    autoencoder: AutoencoderConfig


ConfigT = TypeVar("ConfigT", bound=Config)


def load_config(kind: type[ConfigT], path: str | Path, overrides: tuple[str, ...] = ()) -> ConfigT:
    """Read a TOML file as a typed configuration.

    Args:
        kind: The configuration class.
        path: A TOML file.
        overrides: `key=value` strings; dots descend into tables, values are TOML.

    Raises:
        ConfigError: Unreadable file, unknown key, value of the wrong type or out of range.
    """
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot read configuration: {error}") from error
    return parse_config(kind, apply_overrides(tree, overrides), origin=str(path))


def parse_config(kind: type[ConfigT], tree: dict[str, Any], origin: str) -> ConfigT:
    """Check a parsed tree against a configuration class; `origin` names it in errors."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{origin}: {where}: {first['msg'].lower()}{more}") from error


def apply_overrides(tree: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `tree` with `key=value` overrides; a value that is no TOML is taken as a string.

    Raises:
        ConfigError: No `=`, or a dotted key that descends into something that is no table.
    """
    if not overrides:
        return tree
    key, separator, text = overrides[0].partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {overrides[0]}: expected KEY=VALUE")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return apply_overrides(_with_value(tree, key.strip().split("."), value, key.strip()), overrides[1:])


def _with_value(tree: Any, path: list[str], value: Any, key: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"--set {key}: {path[0]!r} lies below a value, not a table")
    head, *rest = path
    return {**tree, head: _with_value(tree.get(head, {}), rest, value, key) if rest else value}


def load_preset(name: str) -> ModelConfig:
    """The configuration of a model size that ships with the package: nano, 3b or 7b.

    Raises:
        ConfigError: No preset of that name.
    """
    folder = resources.files("seedvr2") / "presets"
    known = sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )
    if name not in known:
        raise ConfigError(f"no preset {name!r}; choose from {', '.join(known)}")
    with resources.as_file(folder / f"{name}.toml") as path:
        return load_config(ModelConfig, path)
