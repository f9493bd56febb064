"""Who may import whom, read off the syntax trees: imports inside functions count as well."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("seedvr2", "pipelines", "serving")


@dataclass(frozen=True)
class Import:
    """One import: the module that imports, the module it wants, and whether it happens at import time."""

    importer: str
    wanted: str
    lazy: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.wanted}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def imports_of(path: Path, content: str | None = None) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8") if content is None else content)
    importer = module_name(path)
    package = importer if path.stem == "__init__" else importer.rpartition(".")[0]
    lazy_nodes = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            wanted = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            wanted = [value.value for value in node.args[:1] if isinstance(value, ast.Constant)]
        else:
            continue
        for name in wanted:
            yield Import(importer, name, node in lazy_nodes, node.lineno)


def all_imports(*rooms: str) -> list[Import]:
    return [found for room in rooms for path in sources(room) for found in imports_of(path)]


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def forbidden(importers: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """Imports of `wanted` by `importers`, both given as packages or modules."""
    return [
        str(found)
        for found in all_imports(*ROOMS)
        if within(found.importer, *importers) and within(found.wanted, *wanted)
    ]


def test_imports_are_found_wherever_they_stand() -> None:
    """The tests below would pass on a walk that sees nothing."""
    path = REPOSITORY / "seedvr2" / "video" / "example.py"
    content = """
import ray, os.path as p
from . import io
from ..models import generator as g
from seedvr2.video.io import probe
def late():
    from pipelines import cli
    importlib.import_module("serving.app")
"""
    found = {(i.wanted, i.lazy) for i in imports_of(path, content)}
    assert found == {
        ("ray", False),
        ("os.path", False),
        ("seedvr2.video.io", False),
        ("seedvr2.models.generator", False),
        ("seedvr2.video.io.probe", False),
        ("pipelines.cli", True),
        ("serving.app", True),
    }
    assert len(all_imports("seedvr2")) > 100


def test_the_library_knows_no_cluster_no_server_and_no_command_line() -> None:
    outside = ("ray", "deepspeed", "mlflow", "click", "fastapi", "rich", "pipelines", "serving", "tests")
    assert forbidden(("seedvr2",), outside) == []


def test_flash_attention_is_imported_late_and_in_one_file() -> None:
    uses = [found for found in all_imports(*ROOMS) if within(found.wanted, "flash_attn")]
    assert {found.importer for found in uses} <= {"seedvr2.models.attention"}
    assert all(found.lazy for found in uses)


def test_pipelines_and_serving_do_not_know_each_other() -> None:
    assert forbidden(("serving",), ("pipelines",)) == []
    uses = [f for f in all_imports("pipelines") if within(f.wanted, "serving")]
    assert {found.importer for found in uses} <= {"pipelines.cli"}
    assert all(found.lazy for found in uses)


def test_errors_and_configuration_lie_at_the_bottom() -> None:
    assert forbidden(("seedvr2.errors",), ("seedvr2",)) == []
    assert [
        str(found)
        for found in all_imports("seedvr2")
        if found.importer == "seedvr2.config"
        and within(found.wanted, "seedvr2")
        and not within(found.wanted, "seedvr2.errors")
    ] == []


def test_video_and_models_do_not_know_each_other() -> None:
    assert forbidden(("seedvr2.video",), ("seedvr2.models",)) == []
    assert forbidden(("seedvr2.models",), ("seedvr2.video",)) == []


def test_training_knows_no_files_of_video() -> None:
    assert forbidden(("seedvr2.training",), ("seedvr2.video", "av", "cv2")) == []


@pytest.mark.parametrize("upper", ["restore", "training"])
def test_nothing_below_imports_the_upper_floors(upper: str) -> None:
    own = f"seedvr2.{upper}"
    below = {module_name(path) for path in sources("seedvr2")}
    below = {name for name in below if not within(name, own) and name != "seedvr2"}
    assert forbidden(tuple(below), (own,)) == []


def calls(room: str) -> Iterator[tuple[str, ast.Call]]:
    for path in sources(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{module_name(path)}:{node.lineno}", node


@pytest.mark.parametrize("room", ROOMS)
def test_weights_are_always_loaded_strictly(room: str) -> None:
    loose = [
        place
        for place, call in calls(room)
        for option in call.keywords
        if option.arg == "strict" and ast.unparse(option.value) == "False" and ast.unparse(call.func) != "zip"
    ]
    assert loose == []


def test_the_library_prints_nothing() -> None:
    assert [place for place, call in calls("seedvr2") if ast.unparse(call.func) == "print"] == []


def test_pickles_are_read_as_weights_only() -> None:
    loads = [(p, c) for room in ROOMS for p, c in calls(room) if ast.unparse(c.func) == "torch.load"]
    for place, call in loads:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("weights_only") == "True", place
    readers = ("pickle.load", "pickle.loads", "pickle.Unpickler", "dill", "joblib")
    assert forbidden(ROOMS, readers) == []
    assert not [p for room in ROOMS for p, c in calls(room) if ast.unparse(c.func) in readers]


def test_the_environment_is_read_by_the_command_line_alone() -> None:
    readers = [
        f"{module_name(path)}:{node.lineno}"
        for path in sources("seedvr2")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    ]
    assert readers == []


def test_no_file_is_a_drawer_for_everything() -> None:
    names = [path.name for room in ROOMS for path in sources(room)]
    assert not {"utils.py", "helpers.py", "common.py", "misc.py"} & set(names)
