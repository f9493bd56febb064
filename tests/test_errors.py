import pickle

import pytest

from seedvr2 import errors
from seedvr2.errors import SeedVR2Error, TrainingDiverged

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_the_common_base(kind: type[Exception]) -> None:
    assert issubclass(kind, SeedVR2Error)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_survives_the_way_to_another_process(kind: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(kind("expected this, got that; do so")))
    assert type(error) is kind
    assert str(error) == "expected this, got that; do so"


def test_the_tree_is_drawn_in_the_module() -> None:
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in ALL)


def test_divergence_carries_its_place_to_another_process() -> None:
    error = pickle.loads(
        pickle.dumps(TrainingDiverged("diverged", stage="autoencoder", step=3, term="loss/l1"))
    )
    assert (str(error), error.stage, error.step, error.term) == ("diverged", "autoencoder", 3, "loss/l1")


def test_fields_of_divergence_are_optional() -> None:
    error = TrainingDiverged("diverged")
    assert (error.stage, error.step, error.term) == ("", 0, "")
