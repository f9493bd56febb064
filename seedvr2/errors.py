"""Everything that users, files and clusters can cause.

    SeedVR2Error
    ├── ConfigError        an option, recipe or preset is wrong (exit code 2)
    ├── ShapeError         sizes that cannot be processed
    ├── VideoError         a file that cannot be read or written
    ├── CheckpointError    weights that do not fit or are damaged
    ├── StageError         a training stage lacks what it needs
    └── TrainingDiverged   a loss is no longer finite

A message says what was expected, what came and what to do. The command line prints it as one line; any
other exception is a bug and keeps its traceback. Each class survives pickling between processes, so extra
fields have defaults.
"""


class SeedVR2Error(Exception):
    """Base of all errors that have a remedy outside the code."""


class ConfigError(SeedVR2Error):
    """An option, recipe or preset is wrong."""


class ShapeError(SeedVR2Error):
    """Sizes that cannot be processed."""


class VideoError(SeedVR2Error):
    """A video or picture that cannot be read or written."""


class CheckpointError(SeedVR2Error):
    """Weights that are missing, extra, misshaped or damaged."""


class StageError(SeedVR2Error):
    """A training stage lacks what it needs."""


class TrainingDiverged(SeedVR2Error):
    """A loss is no longer finite."""

    def __init__(self, message: str, stage: str = "", step: int = 0, term: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.step = step
        self.term = term

    def __reduce__(self) -> tuple[type["TrainingDiverged"], tuple[str, str, int, str]]:
        return type(self), (str(self), self.stage, self.step, self.term)
