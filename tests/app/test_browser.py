"""The app in a real browser: the system's Chromium, driven by Selenium."""

import shutil
import threading
import time

import pytest
from app_page import Client, folder_of_rows, started, ticks

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra test)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]
TEXT = "The mayor of Hull, Ada Kern, met 45 bakers."
EVIL = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
SHORT = {"data": "rows.jsonl", "out": "runs/one", "max_steps": "300", "batch_size": "2"}
SHORT |= {"val_fraction": "0.2", "eval_every": "20", "val_samples": "2", "answer_samples": "2"}
SHORT |= {"ablation_samples": "0", "log_every": "1", "threads": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return folder_of_rows(tmp_path_factory.mktemp("below") / "root")


@pytest.fixture(scope="module")
def app(root):
    with started(root) as found:
        yield found


@pytest.fixture
def address(app):
    return f"http://127.0.0.1:{app[0]}/"


class Page:
    """A browser of its own, at the page."""

    def __init__(self, address: str, width: int = 1000, scheme: str = "light"):
        options = webdriver.ChromeOptions()
        for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(option)
        options.binary_location = CHROMIUM
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        told = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})
        self.browser.get(address)

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def click(self, selector: str) -> None:
        self.all(selector)[0].click()

    def text(self, selector: str) -> str:
        return self.all(selector)[0].text

    def script(self, code: str, *arguments):
        return self.browser.execute_script(code, *arguments)

    def until(self, holds, seconds: float = 300):
        """What `holds` gives, once it is true."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            assert time.monotonic() < end, self.text("main")
            time.sleep(0.1)
        return found

    def paste(self, text: str) -> None:
        self.script("arguments[0].value = arguments[1]", self.all("#text")[0], text)
        self.all("#text")[0].send_keys(" ")

    def set(self, where: str, **values: str) -> None:
        """Fills in controls, as typing does."""
        for name, value in values.items():
            self.script(
                "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
                "e.dispatchEvent(new Event('input', { bubbles: true }))",
                f"{where} [data-name={name}]",
                value,
            )


@pytest.fixture
def page(address):
    found = Page(address)
    yield found
    severe = [line for line in found.browser.get_log("browser") if line["level"] == "SEVERE"]
    found.browser.quit()
    assert [line for line in severe if "favicon" not in line["message"]] == []


def test_a_pasted_text_becomes_pages_and_counts(page):
    page.paste(TEXT)
    page.until(lambda: page.all("#pages .thumbs img"))
    assert "1 of 256 px" in page.text("#pages .facts") and "21" in page.text("#pages .facts")
    assert "deepsynth_min.generate --model=tiny-reader" in page.text("#pages .command")


def test_an_answer_is_streamed_and_stepped_through(page):
    page.paste(TEXT)
    page.click("#tab-read")
    page.click("#do-read")
    lengths = set()

    def done():
        lengths.add(len(page.text("#read .spoken")))
        return len(page.all("#read .costs tr")) == 5

    page.until(done)
    assert len(lengths) > 2  # it grew
    before = page.text("#read .where")
    page.click("#read .on")
    assert page.text("#read .where") != before and "token 2 of" in page.text("#read .where")
    painted = "const c = document.querySelector('#read canvas');"
    painted += "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    assert page.script(painted)


def test_script_in_a_text_is_shown_and_not_run(page):
    page.paste(EVIL + "\u4e00")
    page.until(lambda: page.all("#pages .marks mark"))
    assert EVIL in page.text("#pages .marks")
    assert page.browser.title == "deepsynth_min" and not page.all("#pages .marks img")


def test_a_bad_file_is_checked(page):
    page.click("#tab-data")
    page.set("#data-controls", data="bad.jsonl")
    page.click("#do-check")
    page.until(lambda: page.all("#data iframe"))
    assert "error: bad.jsonl:21: " in page.text("#data .lines")


def test_a_training_is_started_watched_stopped_and_goes_on(page, address):
    page.click("#tab-train")
    page.set("#train-controls", **SHORT)
    page.until(lambda: "--out=runs/one" in page.text("#train .command"))
    page.click("#do-train")
    page.until(lambda: "running, step" in page.text("#train .state"))
    page.until(lambda: page.all("#train iframe"))
    curves = page.script("return document.querySelector('#train iframe').srcdoc.length")
    page.until(
        lambda: (
            page.script("return document.querySelector('#train iframe').srcdoc.length") != curves
        )
    )
    page.browser.get("about:blank")  # the page is closed, and opened again
    page.browser.get(address)
    page.click("#tab-train")
    page.until(lambda: page.all("#do-stop")[0].is_enabled())
    page.click("#do-stop")
    page.until(lambda: "stopped, step" in page.text("#train .state"))
    page.until(lambda: page.all("#do-on")[0].is_enabled())  # the process has ended too
    page.click("#do-on")
    page.until(lambda: "running, step" in page.text("#train .state"))
    page.until(lambda: page.all("#do-stop")[0].is_enabled())
    page.click("#do-stop")
    page.until(lambda: "stopped, step" in page.text("#train .state"))
    page.click("#tab-runs")
    page.until(lambda: "runs/one" in page.text("#runs .list"))


def test_two_browsers_do_not_see_each_other_s_texts(page, address):
    page.paste(TEXT)
    page.until(lambda: page.all("#pages .thumbs img"))
    other = Page(address)
    try:
        other.click("#tab-read")
        assert other.script("return document.querySelector('#text').value") == ""
        other.click("#do-read")
        other.until(lambda: other.all("#read [role=alert]"))
        assert "there is no text yet" in other.text("#read [role=alert]")
    finally:
        other.browser.quit()


def test_who_must_wait_sees_the_place_in_the_queue(page, app):
    slow = {"text": TEXT * 3, "settings": {"beams": "8", "max_new_tokens": "200"}}
    others = [threading.Thread(target=Client(app[0]).ask, args=("read", slow)) for _ in range(2)]
    for other in others:
        other.start()
    page.paste(TEXT)
    page.click("#tab-read")
    page.click("#do-read")
    page.until(lambda: "before yours" in page.text("#read [role=status]"))
    page.until(lambda: page.text("#read .spoken"))
    for other in others:
        other.join()


@pytest.mark.parametrize(("tab", "most"), [("#tab-read", 2), ("#tab-runs", 20)])
def test_idle_with_a_page_open_it_takes_no_processor(page, app, tab, most):
    """In 20 seconds; Runs looks for runs every 2 s, for at most a hundredth of the time."""
    page.paste(TEXT)
    page.until(lambda: page.all("#pages .thumbs img"))
    page.click(tab)
    time.sleep(3)
    before = ticks(app[1])
    time.sleep(20)
    assert ticks(app[1]) - before <= most


def test_the_tabs_are_reached_by_keys(page):
    page.all("#tab-pages")[0].send_keys("\ue014")  # arrow right
    assert page.all("#tab-read")[0].get_attribute("aria-selected") == "true"
    assert page.script("return document.activeElement.id") == "tab-read"


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_is_wider_than_the_window(address, width, scheme):
    page = Page(address, width, scheme)
    try:
        dark = page.script("return getComputedStyle(document.body).backgroundColor") != (
            "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
        for tab in page.all("nav button"):
            tab.click()
            page.script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
            assert page.script("return document.documentElement.scrollWidth") <= width
        unnamed = [e for e in page.all("input, select, textarea") if not e.accessible_name]
        assert not [e.get_attribute("outerHTML") for e in unnamed if e.is_displayed()]
    finally:
        page.browser.quit()
