"""The rendered book in a real browser: offline, without errors, legible on a telephone and in the dark."""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from nladv_core import book, claims, pages
from nladv_core.errors import SpecError

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
NAMES = [TOC["root"], *(chapter["file"] for chapter in TOC["chapters"])]
# One worker builds the book, opens the browser and looks at every page.
pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book at `smoke`, executed and rendered once."""
    return book.build("smoke", tmp_path_factory.mktemp("book")).parent


@pytest.fixture(scope="session")
def address(html: Path) -> Iterator[str]:
    """The book on a local port, as a site would serve it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        message = f"no browser: none of {', '.join(names)} is on the PATH"
        if os.environ.get("CI"):
            pytest.fail(f"{message}; .ci/run installs one")
        pytest.skip(f"{message}; install Chromium to test the pages")
    quiet = ["background-networking", "component-update", "sync", "default-apps", "extensions", "gpu"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that has finished loading, and what happened meanwhile."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)


class Visits:
    """Opens pages of the book; requests to other places are noted and refused."""

    def __init__(self, browser: Browser, address: str):
        self.browser, self.address = browser, address

    @contextlib.contextmanager
    def __call__(self, path: str, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Iterator[Visit]:
        """`/path` at a width and a colour scheme, finished loading."""
        context = self.browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(120_000)  # of a machine with much else to do
        visited = Visit(context.new_page())

        def refuse(route) -> None:
            visited.outside.append(route.request.url)
            route.abort()

        context.route(lambda url: not url.startswith((f"{self.address}/", "data:", "blob:")), refuse)
        page = visited.page
        page.on("console", lambda m: visited.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("requestfinished", lambda r: visited.weights.update({r.url: r.sizes()["responseBodySize"]}))
        page.on("pageerror", lambda error: visited.complaints.append(str(error)))
        page.on("requestfailed", lambda request: visited.complaints.append(f"failed: {request.url}"))
        page.on("response", lambda r: visited.complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        # `load` waits for the pictures; an idle network alone can be that of a browser that has yet to ask for them.
        page.goto(f"{self.address}/{path}", wait_until="load")
        page.wait_for_load_state("networkidle")
        # Formulas are set after loading; scroll once through the page for whatever loads late.
        page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise : null")
        page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_load_state("networkidle")
        try:
            yield visited
        finally:
            context.close()


@pytest.fixture(scope="session")
def visit(browser: Browser, address: str) -> Visits:
    """What opens a page that is one test's own."""
    return Visits(browser, address)


@pytest.fixture(scope="class")
def visited(name: str, visit: Visits) -> Iterator[Visit]:
    """The page `name` on a screen, loaded once for all tests of `TestEveryPage`, which pytest sorts by page."""
    with visit(f"{name}.html") as found:
        yield found


@pytest.mark.parametrize("name", NAMES, scope="class")
class TestEveryPage:
    """The tests share one page each and run in this order: those that change what they look at come last."""

    def test_loads_without_complaint_or_request_outside(self, visited: Visit) -> None:
        assert not visited.outside
        assert not visited.complaints
        assert visited.page.locator("article h1").count() == 1

    def test_weighs_less_than_3_mib_all_that_it_loads_included(self, visited: Visit) -> None:
        """Uncompressed, nothing in a cache."""
        weights = visited.weights
        assert len(weights) > 5 and 500_000 < sum(weights.values()) < 3 << 20, weights

    def test_images_load_and_say_what_they_show(self, visited: Visit, name: str) -> None:
        page = visited.page
        script = "all => all.map(i => [i.complete && i.naturalWidth > 0, i.getAttribute('alt'), i.src])"
        images = page.eval_on_selector_all("article img", script)
        if (ROOT / f"{name}.ipynb").exists():
            assert images or page.locator("article svg").count()
        for loaded, alt, source in images:
            assert loaded, source
            # Sphinx writes the file's name where nothing better is given.
            assert alt and alt.strip() and not re.search(r"\.(png|svg|jpe?g|webp|gif)$", alt), (alt, source)

    def test_formulas_are_set(self, visited: Visit, name: str) -> None:
        page = visited.page
        raw = page.locator("article .math").count()
        assert page.locator("article .math mjx-container").count() >= raw
        # An unknown command is no error to MathJax: it writes its name in red.
        wrong = "article mjx-merror, article [data-mjx-error], article mjx-mtext[style*='red']"
        assert page.locator(wrong).count() == 0
        if (ROOT / f"{name}.ipynb").exists():
            assert raw > 0

    def test_does_not_scroll_sideways(self, visited: Visit) -> None:
        assert _sideways(visited.page) == (False, [])

    def test_does_not_scroll_sideways_on_a_telephone(self, visit: Visits, name: str) -> None:
        with visit(f"{name}.html", width=360) as visited:
            assert _sideways(visited.page) == (False, [])

    def test_axe_finds_nothing_serious(self, visited: Visit, name: str) -> None:
        found = Axe().run(visited.page).response
        serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        nodes = [(rule["id"], rule["help"], [node["html"][:200] for node in rule["nodes"]]) for rule in serious]
        assert not serious, nodes
        if name == NAMES[0]:  # its list of what passed shows that it has looked
            full = Axe().run(visited.page, options={}).response
            assert {"color-contrast", "image-alt", "link-name"} <= {rule["id"] for rule in full["passes"]}

    def test_keyboard_reaches_whatever_can_be_clicked(self, visited: Visit) -> None:
        lost = visited.page.evaluate(
            """() => {
                const elements = 'a[href], button, input, select, textarea, summary', roles = 'button, slider, link';
                const clickable = `${elements}, [onclick], ${roles.split(', ').map(r => `[role=${r}]`)}`;
                return [...document.querySelectorAll(clickable)].filter(e => {
                    if (!e.checkVisibility({visibilityProperty: true}) || e.disabled) return false;
                    e.focus();
                    return e.tabIndex < 0 || document.activeElement !== e;
                }).map(e => e.outerHTML.slice(0, 160));
            }"""
        )
        assert not lost

    def test_dark_scheme_can_be_chosen_and_is_legible(self, visited: Visit) -> None:
        page = visited.page
        for _ in range(3):  # the button goes round: automatic, light, dark
            if page.locator("html[data-theme=dark]").count():
                break
            page.locator("button.theme-switch-button:visible").first.click()
        assert page.locator("html[data-theme=dark]").count() == 1
        # The weakest contrast (WCAG's ratio) of a visible text against what lies behind it.
        weakest = page.evaluate(CONTRAST)
        assert weakest["ratio"] >= 4.0, weakest


def _sideways(page: Page) -> tuple[bool, list[str]]:
    """Whether the page is wider than its window, and whatever reaches beyond it without a scrolling box of its own."""
    inner, outer = page.evaluate("() => [document.scrollingElement.scrollWidth, window.innerWidth]")
    culprits = page.evaluate(
        """() => [...document.querySelectorAll('article *')].filter(e => {
            if (e.getBoundingClientRect().right <= window.innerWidth + 1) return false;
            for (let p = e.parentElement; p && p.tagName !== 'ARTICLE'; p = p.parentElement)
                if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX)) return false;
            return !['auto', 'scroll'].includes(getComputedStyle(e).overflowX) && !e.closest('mjx-assistive-mml');
        }).map(e => e.outerHTML.slice(0, 120))"""
    )
    return inner > outer, culprits


def test_one_process_has_all_of_this_file(request: pytest.FixtureRequest) -> None:
    """Otherwise each builds the book; pytest 9.2 hides the name by which pytest-xdist 3.8 keeps a group together."""
    if getattr(request.config.option, "loadgroup", False):  # in a process of pytest-xdist, with --dist=loadgroup
        assert request.node.nodeid.endswith("@page")


def test_dark_scheme_follows_the_system(visit: Visits) -> None:
    with visit(f"{NAMES[0]}.html", scheme="dark") as visited:
        assert visited.page.locator("html[data-theme=dark]").count() == 1


def test_first_address_leads_to_the_book(visit: Visits, address: str) -> None:
    with visit("") as visited:
        visited.page.wait_for_url(f"{address}/{NAMES[0]}.html")


def test_search_finds_a_word(visit: Visits) -> None:
    with visit("search.html?q=linearization") as visited:
        visited.page.wait_for_selector("#search-results li")


def test_no_file_of_the_book_loads_from_outside(html: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=[\"'](?:https?:)?//[^\"']+")
    for page in html.rglob("*.html"):
        assert not loads.findall(page.read_text()), page.name


def test_scoreboard_shows_the_verdicts_of_today(visit: Visits) -> None:
    with visit("book/index.html") as visited:
        rows = visited.page.locator("article table:has(th:has-text('verdict')) tbody tr")
        shown = [row.locator("td").all_inner_texts() for row in rows.all()]
    judged = claims.judge()
    assert [(cells[0], cells[2]) for cells in shown] == [(one.claim.id, one.verdict) for one in judged]
    assert {one.verdict for one in judged} > {"reproduced"}


def test_reference_has_an_entry_to_link_to(visit: Visits) -> None:
    with visit("book/api.html") as visited:
        entry = visited.page.locator("dt[id='nladv_core.paths.path_length']")
        assert "normalized=True" in entry.inner_text()
        assert "UnsupportedNetwork" in entry.locator("xpath=following-sibling::dd").inner_text()


def test_links_inside_the_book_lead_somewhere(html: Path) -> None:
    for name in NAMES:
        page = html / f"{name}.html"
        for target in re.findall(r"<a\b[^>]*?\bhref=\"([^\"#:?]+)(?:#[^\"]*)?\"", page.read_text()):
            assert (page.parent / target).exists(), f"{name}: {target}"


class TestBuild:
    """What `build` does and refuses, beside the pages themselves."""

    def test_nothing_changed_means_nothing_done(self, html: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (html / "index.html").stat().st_mtime_ns
        assert book.build("smoke", html.parent) == html / "index.html"
        assert (html / "index.html").stat().st_mtime_ns == before
        assert capsys.readouterr().out == "book: nothing has changed\n"

    def test_one_notebook_becomes_a_page_of_its_own(self, html: Path, browser: Browser, tmp_path: Path) -> None:
        notebook = tmp_path / "mine.ipynb"
        shutil.copyfile(html.parent / "notebooks" / "06_accuracy_and_depth.ipynb", notebook)
        found = book.page(notebook)
        assert found == tmp_path / "mine_page" / "book" / "mine.html"
        assert {path.name for path in tmp_path.iterdir()} == {"mine.ipynb", "mine_page"}
        seen = browser.new_page()
        seen.goto(found.as_uri(), wait_until="load")
        assert seen.locator("mjx-container").count() and seen.locator("article img").count()
        pictures = seen.eval_on_selector_all("article img", "all => all.map(i => i.complete && i.naturalWidth > 0)")
        assert all(pictures)
        seen.close()
        shutil.copyfile(html.parent / "notebooks" / "02_path_length.ipynb", notebook)
        assert "Path length" in book.page(notebook).read_text()  # takes the place of the old one
        with pytest.raises(SpecError, match="no notebook"):
            book.page(tmp_path / "none.ipynb")
        notebook.write_text("{")
        with pytest.raises(SpecError, match="not a notebook"):
            book.page(notebook)
        assert found.is_file()

    def test_a_notebook_s_page_computes_what_it_takes_and_nothing_else(
        self, html: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = []
        monkeypatch.setattr(pages, "substitutions", lambda: counted.append(1) or {"said": "found in a record"})
        notebook = tmp_path / "mine.ipynb"
        executed = json.loads((html.parent / "notebooks" / "A2_active_share.ipynb").read_text())
        notebook.write_text(json.dumps(executed))
        book.page(notebook)
        assert not counted
        executed["cells"][0]["source"] = ["# A page\n", "\n", "This was {{ said }}."]
        notebook.write_text(json.dumps(executed))
        assert "This was found in a record." in book.page(notebook).read_text()
        assert counted == [1]

    def test_leaves_no_scaffolding(self, html: Path) -> None:
        assert {path.name for path in html.parent.iterdir()} - {".lock"} == {"html", "notebooks"}
        assert not [path for path in html.parent.glob("notebooks/*") if path.name.startswith(".")]

    def test_a_warning_stops_the_build_and_keeps_the_old_pages(
        self, html: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "build"
        shutil.copytree(html.parent / "notebooks", folder / "notebooks")
        (folder / "html").mkdir()
        (folder / "html" / "index.html").write_text("old")
        configuration = book._configuration()
        broken = configuration.replace("bibtex_bibfiles:", "no_such_setting: 1\n    bibtex_bibfiles:")
        assert broken != configuration
        monkeypatch.setattr(book, "_configuration", lambda: broken)
        with pytest.raises(book.BuildError, match="the previous pages are still there"):
            book.build("smoke", folder)
        assert "no_such_setting" in capfd.readouterr().err
        assert (folder / "html" / "index.html").read_text() == "old"

    def test_buttons_only_with_an_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = yaml.safe_load(book._configuration())
        assert plain["repository"]["url"] == "" and not plain["launch_buttons"]["binderhub_url"]
        assert not any(plain["html"][f"use_{kind}_button"] for kind in ("repository", "edit_page", "issues"))
        monkeypatch.setenv("NLADV_REPOSITORY_URL", "https://github.com/someone/somewhere/")
        found = yaml.safe_load(book._configuration())
        assert found["repository"]["url"] == "https://github.com/someone/somewhere"
        assert found["launch_buttons"]["binderhub_url"]
        assert all(found["html"][f"use_{kind}_button"] for kind in ("repository", "edit_page", "issues"))

    @pytest.mark.parametrize(
        "url", ["github.com/a/b", "http://github.com/a/b", "https://github.com/a", "https://x.org/a/b"]
    )
    def test_refuses_an_address_it_cannot_use(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("NLADV_REPOSITORY_URL", url)
        with pytest.raises(SpecError, match="expected https://github.com/OWNER/NAME"):
            book._configuration()


CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > 0.5) return c;
    }
    return [255, 255, 255, 1];
  };
  let weakest = {ratio: 99, text: ''};
  for (const e of document.querySelectorAll('article *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const seen = e.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!own || !seen || e.closest('svg, a.headerlink, button')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < weakest.ratio) weakest = {ratio, text: e.textContent.slice(0, 60), html: e.outerHTML.slice(0, 120)};
  }
  return weakest;
}"""
