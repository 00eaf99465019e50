"""The pages cite files and functions that exist; built, every link leads somewhere and nothing needs the network."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "benchmarks|csrc|docs|examples|stca|tests|tools"
NEEDED = ("sphinx", "furo", "myst_parser", "math_core")


def _cited(page: Path) -> list[tuple[str, str]]:
    """Every `path` and `path:function` of this repository that a page names."""
    return re.findall(rf"`((?:{FOLDERS})/[\w./]*\w)(?::([\w.]+))?`", page.read_text())


def _wrong(page: Path) -> list[str]:
    """What a page cites that is not there."""
    wrong = []
    for path, function in _cited(page):
        file = ROOT / path
        if not file.exists():
            wrong.append(path)
        elif function and not all(re.search(rf"\b{name}\b", file.read_text()) for name in function.split(".")):
            wrong.append(f"{path}:{function}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_cites_exists(page: Path) -> None:
    assert not _wrong(page)


def test_a_citation_of_nothing_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`stca/nn/stack.py:STCA.forward` `stca/nn/stack.py:STCA.fast` `csrc/none.cpp` `README`")
    assert _wrong(page) == ["stca/nn/stack.py:STCA.fast", "csrc/none.cpp"]
    assert len(_cited(ROOT / "docs/life_of_a_call.md")) > 40


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_of_pages_outside_docs(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert links
    assert not [link for link in links if not (page.parent / link).exists()]


class _Page(HTMLParser):
    """What an HTML page links to, loads, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.loads, self.ids = path, set[str](), set[str](), set[str]()
        self.equations = self.maths = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if tag == "a" and "href" in found else set()
        self.loads |= {found[name] for name in ("src", "href") if name in found and tag in ("script", "img", "link")}
        self.equations += tag == "div" and found.get("class") == "math"
        self.maths += tag == "math" and found.get("display") == "block"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Page]:
    """The pages of docs/, warnings being errors."""
    for module in NEEDED:
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed: make docs")
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: _Page(path) for path in out.rglob("*.html")}


def test_links_and_equations(built: dict[Path, _Page]) -> None:
    assert sum(page.equations for page in built.values()) > 25
    wrong = []
    for page in built.values():
        assert page.equations == page.maths, page.path.name
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                assert link not in page.loads, f"{page.path.name} loads {link}"
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in built and anchor not in built[target].ids):
                wrong.append(f"{page.path.name}: {link}")
    assert not wrong


@pytest.mark.parametrize("module", ["nn", "ops", "batch", "data", "serving"])
def test_every_public_name_is_documented(module: str, built: dict[Path, _Page]) -> None:
    ids = set().union(*(page.ids for page in built.values()))
    names = importlib.import_module(f"stca.{module}").__all__
    assert not [name for name in names if f"stca.{module}.{name}" not in ids]
