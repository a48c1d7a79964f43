"""The packages are ours, and siblings do not import each other."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "utils")
ALLOWED = {
    "models": {"models"},
    "datasets": {"datasets"},
    "utils": {"utils"},
    "opts": {"models", "datasets", "utils"},
    "main": {"scripts", "opts", "models", "datasets", "utils"},
    "scripts": {"scripts", "opts", "models", "datasets", "utils"},
    "test": {"scripts", "opts", "models", "datasets", "utils"},
}
SOURCES = sorted(
    path for name in (*PACKAGES, "scripts") for path in (ROOT / name).rglob("*.py")
) + [ROOT / f"{name}.py" for name in ("opts", "main", "test")]


@pytest.mark.parametrize("name", PACKAGES)
def test_package_is_the_repository_s(name):
    module = importlib.import_module(name)
    assert Path(module.__file__).parent == ROOT / name
    assert module.__doc__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rule(path):
    owner = path.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = set(ALLOWED) | {"tests"}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            imported.add(node.module.split(".")[0])
    assert imported & ours <= ALLOWED[owner]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_say_what_they_are_and_stay_small(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    # The programs are where siblings meet, and can hand nothing on to them.
    assert len(text.splitlines()) <= (520 if path.parent == ROOT else 420)


def test_no_source_reads_outside_the_project():
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in [*SOURCES, *scripts]:
        assert "/work" not in path.read_text(), path
        assert "shared/" not in path.read_text(), path
