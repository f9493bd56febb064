import pytest

from seedvr2.config import parse_config
from seedvr2.errors import ConfigError
from seedvr2.video.degrade_config import DegradationConfig, FamilyWeights

NO_FAMILIES = dict.fromkeys(FamilyWeights().model_dump(), 0.0)


def test_overriding_one_number_of_the_second_stage_keeps_its_other_defaults():
    config = parse_config(DegradationConfig, {"second": {"blur": {"sigma_step": 0.0}}}, origin="test")
    assert config.second.blur.sigma == (0.2, 1.5)
    assert config.second.blur.probability == 0.8
    assert config.second.resize == DegradationConfig().second.resize


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"first": {"blur": {"sigma": [3.0, 0.2]}}}, "range"),
        ({"first": {"blur": {"sigma": [0.0, 1.0]}}}, "above zero"),
        ({"first": {"blur": {"kernel_size": [7, 20]}}}, "odd"),
        ({"first": {"blur": {"families": NO_FAMILIES}}}, "family"),
        ({"first": {"resize": {"scale": [0.2, 0.9]}}}, "contain 1"),
        ({"first": {"resize": {"up": 0.0, "down": 0.0, "keep": 0.0}}}, "above zero"),
        ({"first": {"jpeg": {"quality": [0, 95]}}}, "1..100"),
        ({"codec": {"codecs": ["av1"]}}, "libx264"),
        ({"codec": {"bit_rate": [10, 1]}}, "bit rates"),
        ({"second": {"blur": {"probability": 1.5}}}, "less than"),
        ({"unsharp": True}, "extra"),
    ],
)
def test_impossible_ranges_are_refused(tree: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_config(DegradationConfig, tree, origin="test")


def test_configuration_survives_json():
    config = DegradationConfig()
    assert DegradationConfig.model_validate_json(config.model_dump_json()) == config
