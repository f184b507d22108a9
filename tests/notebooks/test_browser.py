"""What people see: the notebooks' sliders in JupyterLab and the report, in a real browser, without leaving this machine."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("playwright.sync_api", reason="the browser tests need Playwright: pip install playwright")
from playwright.sync_api import expect, sync_playwright

TOP = Path(__file__).resolve().parents[2]
NOTEBOOK = "02_base_model_and_progressive_distillation.ipynb"
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
SECONDS = 240  # for anything to happen; on an idle machine Run All takes 20, all else a few
PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


def installed_browser(playwright) -> str | None:
    """The first program that is a Chromium and starts (some systems have a stand-in that only says how to get one)."""
    found = [shutil.which(name) for name in ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")]
    own = playwright.chromium.executable_path
    for program in [*filter(None, found), *([own] if Path(own).exists() else [])]:
        if subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0:
            return program
    return None


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        program = installed_browser(playwright)
        if program is None:
            pytest.skip(
                "no chromium or google-chrome on the PATH: apt-get install chromium, or playwright install chromium"
            )
        arguments = ["--no-sandbox", *ARGUMENTS] if os.geteuid() == 0 else ARGUMENTS  # root has no sandbox to enter
        opened = playwright.chromium.launch(executable_path=program, args=arguments)
        yield opened
        opened.close()


def watched_page(browser, allowed: str, **options):
    """A page, and the list of addresses it asked for that do not match `allowed`; those get no answer."""
    page, outside = browser.new_page(**options), []
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)

    def refuse(route):
        outside.append(route.request.url)
        route.abort()

    page.route(lambda url: not re.match(allowed, url), refuse)
    return page, outside


def eventually(page, happened, what: str):
    """The first true value of happened(), asked again and again; fails after SECONDS."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if result := happened():
            return result
        page.wait_for_timeout(50)
    pytest.fail(f"in {SECONDS} s not seen: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- JupyterLab ---


def smoke_copy(folder: Path, out: Path) -> list[str]:
    """Put NOTEBOOK with the smoke study's parameters into the folder; returns the functions its widgets draw with."""
    notebook = nbformat.read(TOP / "notebooks" / NOTEBOOK, as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = f"profile, seed, out = 'smoke', 0, {str(out)!r}"
    notebook.cells.append(nbformat.v4.new_code_cell("print('every cell', 'ran')"))
    nbformat.write(notebook, folder / NOTEBOOK)
    return [
        name for c in notebook.cells if c.cell_type == "code" for name in re.findall(r"^explore\((\w+)", c.source, re.M)
    ]


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a free port, on the loopback interface only: (its folder, its address, its token)."""
    root, runtime = tmp_path / "root", tmp_path / "runtime"
    news = tmp_path / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    for folder in (root, runtime, news.parent):
        folder.mkdir(parents=True)
    news.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))  # else a pop-up asks about it
    places = {
        "JUPYTER_CONFIG_DIR": tmp_path / "config",
        "JUPYTER_DATA_DIR": tmp_path / "data",
        "IPYTHONDIR": tmp_path / "ipython",
        "JUPYTER_RUNTIME_DIR": runtime,
        "JUPYTERLAB_SETTINGS_DIR": tmp_path / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": tmp_path / "workspaces",
    }
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--ServerApp.root_dir={root}",
    ]
    with open(tmp_path / "log", "wb") as log:
        environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield root, *address_of(server, runtime, tmp_path / "log")
    finally:
        server.terminate()  # it ends its kernels too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def address_of(server: subprocess.Popen, runtime: Path, log: Path) -> tuple[str, str]:
    """Address and token, once the server answers."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            info = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())
            ask(info["url"], info["token"], "api/status")
            return info["url"], info["token"]
        except (OSError, ValueError):
            time.sleep(0.1)
    pytest.fail(f"JupyterLab did not answer in {SECONDS} s:\n{log.read_text()}")


def ask(url: str, token: str, path: str, method: str = "GET"):
    request = urllib.request.Request(url + path, method=method, headers={"Authorization": f"token {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or "null")


class Notebook:
    """NOTEBOOK, open in JupyterLab."""

    def __init__(self, page, folder: Path, url: str, token: str):
        self.page, self.file, self.url, self.token = page, folder / NOTEBOOK, url, token
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.idle = page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle"))
        page.goto(f"{url}lab/tree/{NOTEBOOK}?reset&token={token}")
        expect(self.idle).to_be_visible()

    def run_all(self) -> None:
        for item in ("Run", "Run All Cells"):
            self.page.get_by_role("menuitem", name=item, exact=True).click()
        expect(self.panel.locator(".jp-OutputArea-output", has_text="every cell ran")).to_be_visible()
        expect(self.idle).to_be_visible()

    def widget(self, function: str):
        """The cell that explores the function, scrolled to."""
        cell = self.panel.locator(".jp-CodeCell", has_text=f"explore({function},")
        cell.scroll_into_view_if_needed()
        return cell

    def pictures(self, cell) -> list[str]:
        """The pixels of all pictures under a cell."""
        images = cell.locator(".jp-Cell-outputArea img")
        return [images.nth(i).evaluate(PIXELS) for i in range(images.count())]

    def press(self, cell, key: str) -> list[str]:
        """Press one key on the cell's first slider, wait for another picture; returns the pictures."""
        before = eventually(self.page, lambda: self.pictures(cell), "a picture in the widget")
        cell.get_by_role("slider").first.press(key)
        return eventually(
            self.page, lambda: (now := self.pictures(cell)) != before and now, f"another picture after {key}"
        )

    def reopen(self) -> None:
        """Save, end the kernel, load the page anew."""
        self.page.keyboard.press("Control+s")
        eventually(self.page, lambda: "every cell ran" in self.file.read_text(), "the outputs in the saved file")
        for session in ask(self.url, self.token, "api/sessions"):
            ask(self.url, self.token, f"api/sessions/{session['id']}", "DELETE")
        self.page.reload()
        expect(self.idle).to_be_visible()


def test_sliders_redraw_their_pictures_and_a_saved_notebook_reopens_without_complaints(
    browser, smoke_run, lab, tmp_path
):
    folder, url, token = lab
    functions = smoke_copy(folder, smoke_run[0])
    assert len(set(functions)) >= 2
    page, outside = watched_page(browser, rf"{re.escape(url)}|ws://127\.0\.0\.1|blob:|data:", viewport=DESKTOP)
    try:
        notebook = Notebook(page, folder, url, token)
        notebook.run_all()
        assert notebook.panel.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
        for function in functions[:2]:
            cell = notebook.widget(function)
            first = notebook.press(cell, "ArrowLeft")
            second = notebook.press(cell, "ArrowLeft")
            assert notebook.press(cell, "ArrowRight") == first != second  # the same value draws the same picture
            cell.screenshot(path=tmp_path / f"{function}.png")
            assert complaints(cell) == []
        notebook.reopen()
        for function in functions:
            cell = notebook.widget(function)
            expect(cell).not_to_contain_text("Loading widget")
            eventually(page, lambda: visible_text(cell).strip(), "words where the widget was")  # noqa: B023, asked at once
            cell.screenshot(path=tmp_path / f"{function}_reopened.png")
        for cell in notebook.panel.locator(".jp-CodeCell").all():
            assert complaints(cell) == []
    finally:
        page.screenshot(path=tmp_path / "lab.png")
        page.close()
    assert outside == []


def visible_text(cell) -> str:
    cell.scroll_into_view_if_needed()  # JupyterLab lays out what is in sight, which moves all below
    return " ".join(cell.locator(".jp-OutputArea").all_inner_texts())


def complaints(cell) -> list[str]:
    """What a reader would take for a fault in what is visible of a cell's outputs."""
    return re.findall(
        "model not found|error displaying widget|loading widget|traceback", visible_text(cell), flags=re.I
    )


# --- the app ---


@pytest.fixture
def classroom(tmp_path):
    """`rdd app` with the models of digits in the box: its address."""
    pytest.importorskip("voila", reason="the app needs an extra: pip install 'rddlib[app]'")
    url = f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "rddlib.cli", "app", "--out", str(tmp_path / "out"), "--port", str(port)]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + SECONDS
        while True:
            try:
                urllib.request.urlopen(url, timeout=30).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()  # it ends its kernels too
        server.wait(60)


def changed(page, picture, before: str) -> str:
    """The picture's pixels, once they are others."""
    return eventually(page, lambda: (now := picture.evaluate(PIXELS)) != before and now, "another picture")


@pytest.mark.slow
def test_the_app_shows_prose_and_pictures_that_answer_to_clicks_and_no_code(browser, classroom, tmp_path):
    page, outside = watched_page(browser, rf"{re.escape(classroom)}|ws://127\.0\.0\.1|blob:|data:", viewport=DESKTOP)
    try:
        page.goto(classroom)
        links = page.locator("a[href*='.ipynb']").evaluate_all("links => links.map(link => link.href)")
        assert len(links) == 5
        for link in sorted(links):
            page.goto(link)
            live = page.locator("img[src^='blob:']")
            expect(live.last).to_be_visible()
            assert "Question." in page.inner_text("body")
            assert page.locator(".jp-CodeMirrorEditor, .jp-InputPrompt").count() == 0
            assert complaints(page.locator("body")) == []
            page.screenshot(path=tmp_path / f"{link.split('/')[-1][:2]}.png")
            if "Relations" in link:
                picture, box = live.first, live.first.bounding_box()
                before = picture.evaluate(PIXELS)
                pixel = {"x": 0.1 * box["width"], "y": 0.7 * box["height"]}  # of the first image
                picture.click(position=pixel)
                after = changed(page, picture, before)
                page.get_by_role("slider").nth(2).press("ArrowLeft")  # its row
                changed(page, picture, after)
    finally:
        page.close()
    assert outside == []


# --- the report ---

PICTURES = "images => images.map(image => image.complete && image.naturalWidth > 0)"
LOST = """found => found.filter(element => {
    if (element.getBoundingClientRect().right <= window.innerWidth + 1) return false;
    for (let box = element; box; box = box.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
    return true;
}).map(element => element.textContent.trim().slice(0, 60) || element.tagName)"""

NOWHERE = """() => [...document.querySelectorAll("a[href^='#']")].map(link => decodeURIComponent(link.hash.slice(1)))
    .filter(name => name && !document.getElementById(name))"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_report_opens_from_a_file_and_its_pictures_load(browser, smoke_run, tmp_path, size):
    out, index = smoke_run
    options = dict(is_mobile=True, device_scale_factor=2, has_touch=True) if size is PHONE else {}
    page, outside = watched_page(browser, "file:|data:|blob:", viewport=size, **options)
    try:
        page.goto(index.as_uri())
        assert_fits_and_shows_pictures(page, at_least=2)
        page.screenshot(path=tmp_path / "report.png", full_page=True)
        assert page.evaluate(NOWHERE) == []
        links = page.locator("a").evaluate_all("links => links.map(link => link.href)")
        files = {Path(urllib.request.url2pathname(link.removeprefix("file://").split("#")[0])) for link in links}
        assert files and not [file for file in files if not file.is_file()]
        pages = sorted(file for file in files - {index} if file.suffix == ".html")
        assert [file.stem for file in pages] == [file.stem for file in sorted((out / "notebooks").glob("*.ipynb"))]
        for file in pages:
            page.goto(file.as_uri())
            assert_fits_and_shows_pictures(page, at_least=2)  # notebook 00 has two, all others more
            hidden = page.locator("details:not(.rdd-code)").all_text_contents()
            assert hidden and all(len(text) > 30 for text in hidden), f"{file.name} shows its solutions to all"
            page.screenshot(path=tmp_path / f"{file.stem}.png", full_page=True)
            code = page.locator(".rdd-code").last
            assert not code.locator("pre").is_visible()
            code.locator("summary").click()
            expect(code.locator("pre")).to_be_visible()
    finally:
        page.close()
    assert outside == []


def assert_fits_and_shows_pictures(page, at_least: int) -> None:
    """The page is no wider than the window, what is wider scrolls on its own, and every picture is there."""
    pictures = page.locator("img").evaluate_all(PICTURES)
    assert len(pictures) >= at_least and all(pictures), page.url
    content, window = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert content <= window, f"{page.url} is {content} pixels wide in a window of {window}"
    assert page.locator("img, pre, table, math").evaluate_all(LOST) == [], page.url
