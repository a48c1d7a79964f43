"""The packages are ours, and imports go one way: programs, opts, models, datasets, utils."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "utils")
RANKS = {"utils": 0, "datasets": 1, "models": 2, "opts": 3, "scripts": 4, "main": 5, "test": 5}
SOURCES = sorted(path for name in (*PACKAGES, "scripts") for path in (ROOT / name).rglob("*.py")) + [
    ROOT / f"{name}.py" for name in ("opts", "main", "test")
]


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_the_repository_s(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).parent == ROOT / name
    assert module.__doc__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    owner = path.relative_to(ROOT).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [node.module.split(".")[0]]
        else:
            continue
        for name in names:
            assert name != "tests"
            assert RANKS.get(name, 0) <= RANKS[owner], f"{owner} imports {name}"


def test_no_source_reads_outside_the_project():
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in [*SOURCES, *scripts]:
        assert "/work" not in path.read_text(), path
        assert "shared/" not in path.read_text(), path
