"""The built site: links lead somewhere, pictures can be drawn, public names are described. `make docs` builds it."""

import shutil
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.helpers.commands import ROOT

SITE = ROOT / "build/docs"
PACKAGES = ("lma_jax", "lma_torch", "convert")
# Widths of a desktop's and of a phone's window, in pixels.
WIDTHS = (1280, 390)
# Of a screenshot; Chromium takes none that are much taller.
TALLEST = 16_000

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="there is no site: make docs builds it")


class Page(HTMLParser):
    """What a page has: anchors, links, pictures, and the scripts and styles that it loads."""

    def __init__(self, file: Path):
        super().__init__()
        self.anchors: set[str | None] = set()
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors |= {values.get("id"), values.get("name")}
        if tag == "img":
            self.pictures.append(values)
        address = values.get("src") or values.get("href")
        if address:
            (self.links if tag == "a" else self.loaded).append(address)


@cache
def page(file: Path) -> Page:
    return Page(file)


def pages() -> list[Path]:
    return sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts)


def target_of(address: str, file: Path) -> tuple[Path, str]:
    """The file and the anchor of an address on a page."""
    parts = urlsplit(address)
    return (file.parent / unquote(parts.path)).resolve() if parts.path else file, unquote(parts.fragment)


def is_external(address: str) -> bool:
    return bool(urlsplit(address).scheme or urlsplit(address).netloc)


def test_links_lead_to_pages_and_anchors_that_exist():
    broken, checked = [], 0
    for file in pages():
        for address in {*page(file).links, *page(file).loaded}:
            if is_external(address):
                continue
            target, anchor = target_of(address, file)
            exists = target.is_file() and target.is_relative_to(SITE)
            if not exists or (anchor and target.suffix == ".html" and anchor not in page(target).anchors):
                broken.append(f"{file.relative_to(SITE)}: {address}")
            checked += 1
    assert not broken
    assert checked > 500


def test_pages_load_nothing_from_elsewhere():
    loaded = {address for file in pages() for address in page(file).loaded}
    assert {address for address in loaded if is_external(address) and not address.startswith("data:")} == set()


def test_pictures_can_be_drawn_and_are_described():
    pictures = [(file, picture) for file in pages() for picture in page(file).pictures]
    for file, picture in pictures:
        path, _ = target_of(picture["src"] or "", file)
        if path.suffix == ".svg":
            ElementTree.parse(path)
        else:
            with Image.open(path) as image:
                image.load()
        assert picture.get("alt"), f"{file.relative_to(SITE)}: {picture['src']} has no description"
    drawn_at_build = [picture for _, picture in pictures if (picture["src"] or "").endswith(".png")]
    assert len(drawn_at_build) >= 6


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_described(package):
    # The reference leaves out what has no docstring.
    public = {f"{package}.{name}" for name in import_module(package).__all__}
    assert public <= page(SITE / f"api/{package}.html").anchors


@pytest.fixture(scope="module")
def browser():
    """Chromium, Playwright's or the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, and a Chromium")
    with playwright.sync_playwright() as engines:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        if not system and not Path(engines.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed")
        # Containers run as root, and have little shared memory.
        running = engines.chromium.launch(executable_path=system, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.mark.process
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_every_page(browser, width):
    """Screenshots go to build/screenshots; no picture is broken, no request fails, nothing is wider than the window."""
    problems: list[str] = []
    tab = browser.new_page(viewport=dict(width=width, height=900))
    tab.on("requestfailed", lambda request: problems.append(f"{tab.url}: {request.url} cannot be loaded"))
    tab.on("pageerror", lambda error: problems.append(f"{tab.url}: {error}"))
    for file in pages():
        name = file.relative_to(SITE).with_suffix("")
        tab.goto(file.as_uri())
        broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
        problems += [f"{name}: {source} is broken" for source in tab.evaluate(broken)]
        if (wide := tab.evaluate("document.documentElement.scrollWidth")) > width:
            problems.append(f"{name} is {wide} pixels wide")
        height = min(tab.evaluate("document.documentElement.scrollHeight"), TALLEST)
        clip = dict(x=0, y=0, width=width, height=height)
        tab.screenshot(path=ROOT / f"build/screenshots/{width}/{name}.png", full_page=True, clip=clip)
    assert not problems
