"""Imports go one way: programs, opts, models, datasets, utils."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "datasets", "utils")
RANKS = {
    "utils": 0, "datasets": 1, "models": 2, "opts": 3, "hubconf": 4, "scripts": 4, "main": 4, "test": 4,
}  # fmt: skip
PROGRAMS = {"hubconf", "scripts", "main", "test"}
PAGES = [path for folder in (".", "docs", "ckpts") for path in sorted((ROOT / folder).glob("*.md"))]
SOURCES = sorted(path for name in (*PACKAGES, "scripts") for path in (ROOT / name).rglob("*.py")) + [
    ROOT / f"{name}.py" for name in ("opts", "main", "test", "hubconf")
]


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
            measured = owner == "scripts" and name in ("scripts", "main")  # the benchmark takes main's steps
            assert name not in {"tests", *PROGRAMS} or measured, f"{owner} imports {name}"
            assert RANKS.get(name, 0) <= RANKS[owner], f"{owner} imports {name}"


def test_the_code_stays_small():
    """The budget, lowered with each rebuilt part; a new feature has to make room for itself."""
    tests = [path.read_text().count("\n") for path in (ROOT / "tests").glob("*.py")]
    product = [path.read_text().count("\n") for path in SOURCES]
    assert len(SOURCES) <= 62
    assert sum(product) <= 14_941
    assert sum(tests) <= 15_728
    pages = [page for page in PAGES if page.parent.name == "docs" or page == ROOT / "README.md"]
    assert sum(len(page.read_text().split()) for page in pages) <= 11_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text()
    assert text.count("\n") <= (120 if page == ROOT / "README.md" else 150)
    for link in re.findall(r"\]\((?!https:|\.\./\.\./)([^)\s]+)\)", text):  # ../../ is GitHub's
        name, _, heading = link.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), link
        titles = re.findall(r"^#+ (.+)", linked.read_text().lower(), re.M) if heading else [""]
        assert heading in {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}, link


def test_no_source_reads_outside_the_project():
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()]
    for path in [*SOURCES, *scripts]:
        assert "/work" not in path.read_text(), path
        assert "shared/" not in path.read_text(), path
