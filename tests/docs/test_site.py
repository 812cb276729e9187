"""The built site: no dead link, nothing from the network, every public name in llms.txt.

``nox -s docs`` builds the site and runs this on it; the variable REGHEAD_SITE names its folder.
"""

import json
import os
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SURFACE = json.loads(Path(__file__).parents[1].joinpath("api_surface.json").read_text())
SITE = Path(os.environ.get("REGHEAD_SITE", "")).resolve()
PAGES = sorted(SITE.rglob("*.html")) if os.environ.get("REGHEAD_SITE") else []
pytestmark = pytest.mark.skipif(not os.environ.get("REGHEAD_SITE"), reason="nox -s docs builds the site and tests it")
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Page(HTMLParser):
    """The anchors of a page, where it links to, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "img":
            self.images.append(values)
        for name, value in attrs:
            if value is None:
                continue
            if tag == "a" and name == "href":
                self.links.append(value)
            elif (tag, name) in LOADED:
                self.loaded.append(value)


@cache
def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def target(page: Path, link: str) -> Path | None:
    """The file that ``link`` on ``page`` leads to; None if it leads out of the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page


def dead_links(page: Path) -> list[str]:
    dead = []
    for link in read(page).links:
        file = target(page, link)
        if file is None:
            continue
        anchor = unquote(urlsplit(link).fragment)
        # "#" leads to the top of the page; the theme's own buttons use it.
        if not file.is_file() or (anchor and file.suffix == ".html" and anchor not in read(file).anchors):
            dead.append(link)
    return dead


def test_the_site_is_there() -> None:
    names = {page.relative_to(SITE).as_posix() for page in PAGES}
    assert {"index.html", "search.html", "tutorials/six_steps.html", "api/nn.html"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SITE).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<p id="here"><a href="#here">a</a><a href="#gone">b</a><a href="no.html">c</a></p>')
    assert dead_links(page) == ["#gone", "no.html"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SITE).as_posix())
def test_everything_a_page_loads_is_in_the_site(page: Path) -> None:
    outside = [link for link in read(page).loaded if (file := target(page, link)) is None or not file.is_file()]
    assert outside == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SITE).as_posix())
def test_every_image_says_what_it_shows(page: Path) -> None:
    assert all(len(image.get("alt") or "") > 10 for image in read(page).images if "_images" in (image["src"] or ""))


def test_tutorials_show_what_they_printed_and_drew() -> None:
    tutorials = [
        page for page in (SITE / "tutorials").glob("*.html") if page.stem not in ("index", "several_processes")
    ]
    assert len(tutorials) >= 7
    for page in [SITE / "index.html", *tutorials]:
        assert 'class="printed' in page.read_text(), page
        assert any("_images" in (image["src"] or "") for image in read(page).images), page


def test_formulas_have_their_script_and_fonts() -> None:
    assert "_static/mathjax/tex-chtml.js" in (SITE / "theory" / "film.html").read_text()
    fonts = SITE / "_static" / "mathjax" / "output" / "chtml" / "fonts" / "woff-v2"
    assert len(list(fonts.glob("*.woff"))) > 10


def test_the_search_finds_words_of_the_pages() -> None:
    index = (SITE / "searchindex.js").read_text()
    assert all(f'"{word}"' in index or f"{word}:" in index for word in ("pinbal", "conform"))


def test_llms_txt_has_every_public_name() -> None:
    text = (SITE / "llms.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    for package, names in SURFACE.items():
        for name in names:
            # What the top module re-exports stands in its package.
            assert any(line.startswith((f"- `{name}`", f"- `{name}(")) for line in lines), f"{package}.{name}"
    for page in ("benchmarks", "tutorials/scikit_learn_and_command", "tutorials/sequence_model"):
        assert f"({page}.html)" in text
    assert "pip install" in text
    assert ":class:" not in text
    assert "``" not in text
    for line in lines:
        if line.startswith("- [") and "](" in line:
            assert (SITE / line.partition("](")[2].partition(")")[0]).is_file(), line
