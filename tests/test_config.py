from pathlib import Path

import pytest
from pydantic import ValidationError

from seedvr2.config import (
    AutoencoderConfig,
    Config,
    GeneratorConfig,
    ModelConfig,
    apply_overrides,
    load_config,
    load_preset,
    parse_config,
)
from seedvr2.errors import ConfigError

PRESETS = sorted(path.stem for path in (Path(__file__).parent.parent / "seedvr2" / "presets").glob("*.toml"))


class Inner(Config):
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


class Outer(Config):
    name: str
    steps: int = 3
    inner: Inner = Inner()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "outer.toml"
    path.write_text('name = "first"\n[inner]\nrate = 0.25\n')
    return path


def test_a_file_is_read_with_defaults_for_the_rest(file: Path) -> None:
    assert load_config(Outer, file) == Outer(name="first", inner=Inner(rate=0.25))


def test_configurations_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Outer(name="first").steps = 4


def test_overrides_descend_into_tables_and_are_toml(file: Path) -> None:
    overrides = ("steps=7", "inner.sizes=[4, 5]", "name = 'second'", "inner.rate=1e-3")
    assert load_config(Outer, file, overrides) == Outer(
        name="second", steps=7, inner=Inner(rate=1e-3, sizes=(4, 5))
    )


def test_a_value_that_is_no_toml_is_taken_as_text() -> None:
    assert apply_overrides({}, ("name=two words",)) == {"name": "two words"}


def test_a_later_override_wins() -> None:
    assert apply_overrides({"steps": 1}, ("steps=2", "steps=3")) == {"steps": 3}


def test_overrides_make_missing_tables_and_leave_the_original_alone() -> None:
    tree = {"inner": {"rate": 1.0}}
    assert apply_overrides(tree, ("inner.more.deep=true",)) == {
        "inner": {"rate": 1.0, "more": {"deep": True}}
    }
    assert tree == {"inner": {"rate": 1.0}}


@pytest.mark.parametrize("override", ["steps", "=3", " = 3", ""])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        apply_overrides({}, (override,))


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"steps.*below a value"):
        apply_overrides({"steps": 3}, ("steps.more=1",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=4", "stpes: extra inputs"),
        ("inner.rates=4", "inner.rates: extra inputs"),
        ("steps='many'", "steps: .*integer"),
        ("inner=3", "inner: .*dictionary"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Outer, file, (override,))
    assert str(file) in str(caught.value)


def test_further_errors_are_counted() -> None:
    with pytest.raises(ConfigError, match=r"\(and 2 more\)"):
        parse_config(Outer, {"a": 1, "b": 2}, origin="somewhere")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_config(Outer, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load_config(Outer, tmp_path / "absent.toml")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read(name: str) -> None:
    assert isinstance(load_preset(name), ModelConfig)


def test_the_defaults_are_the_released_3b_model() -> None:
    assert load_preset("3b") == ModelConfig(generator=GeneratorConfig(), autoencoder=AutoencoderConfig())


def test_released_flavours_share_their_autoencoder() -> None:
    assert load_preset("7b").autoencoder == load_preset("3b").autoencoder


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(PRESETS)):
        load_preset("13b")


def test_channels_that_do_not_split_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels \[30\]"):
        AutoencoderConfig(channels=(16, 30, 64, 64), norm_groups=4)


def test_resolved_configurations_survive_json() -> None:
    config = load_preset("7b")
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_the_generator_reads_noise_condition_and_mask() -> None:
    assert GeneratorConfig(latent_channels=16).in_channels == 33
