"""The floors of the house: imports run downward only."""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "model", "jobs")
MOST_MODULES = 13
RAY_STEPS = {"preprocess", "curating", "embedding", "caption_files", "handover", "ray_steps", "survey"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_import_neither_model_nor_jobs(path: Path) -> None:
    assert not tops(path) & {"model", "jobs"}


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_pipelines_need_no_torch(path: Path) -> None:
    assert not tops(path) & {"torch", "transformers", "diffusers", "deepspeed"}


@pytest.mark.parametrize("path", files("model"), ids=str)
def test_model_takes_nothing_of_pipelines_but_the_sample_and_files_and_needs_no_ray(path: Path) -> None:
    assert not tops(path) & {"ray", "jobs"}
    taken = {name for name in imports(path) if name.startswith("pipelines.")}
    assert all(f"{name}.".startswith(("pipelines.sample.", "pipelines.storage.files.")) for name in taken)


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def graph() -> dict[str, set[str]]:
    """What each module imports of this project, at its top, within functions, and for types alone."""
    modules = {module_of(path): path for package in PACKAGES for path in files(package)}
    return {name: {found for found in imports(path) if found in modules} - {name} for name, path in modules.items()}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0] if not (ROOT / module.replace(".", "/")).is_dir() else module


def test_no_module_is_imported_by_what_it_imports() -> None:
    assert tuple(TopologicalSorter(graph()).static_order())  # CycleError names the circle


def test_no_folder_is_imported_by_what_it_imports() -> None:
    folders: dict[str, set[str]] = {}
    for module, imported in graph().items():
        folder = folder_of(module)
        folders.setdefault(folder, set()).update({folder_of(name) for name in imported} - {folder})
    assert tuple(TopologicalSorter(folders).static_order())


def test_no_folder_has_more_modules_than_one_takes_in_at_a_glance() -> None:
    counts = Counter(path.parent for package in PACKAGES for path in files(package) if path.stem != "__init__")
    assert {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_the_name_of_a_public_class_means_one_thing() -> None:
    places: dict[str, list[str]] = {}
    for package in PACKAGES:
        for path in files(package):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(module_of(path))
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("path", files("pipelines"), ids=str)
def test_only_the_steps_on_ray_import_ray(path: Path) -> None:
    if path.stem not in RAY_STEPS:
        assert "ray" not in tops(path)


def test_the_sample_is_on_the_ground_floor() -> None:
    standard = {"json", "collections", "dataclasses", "enum", "typing"}
    assert tops(ROOT / "pipelines" / "sample.py") <= standard | {"numpy"}


def test_the_top_level_is_the_design_cards() -> None:
    allowed = {"pipelines", "model", "jobs", "cluster", "tests", "README.md", "pyproject.toml"}
    made = {"uv.lock", "out", "dist", "build"}  # ignored by git
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert names - made - {name for name in names if name.endswith(".egg-info")} == allowed
