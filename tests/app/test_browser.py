"""The app in a real browser: the system's Chromium, driven by Selenium."""

import json
import shutil
import threading
import time

import pytest
from app_page import Client, folder_of_rows, started, ticks

from deepsynth_min.options import option_of

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra test)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]
StaleElementReferenceException = pytest.importorskip(
    "selenium.common.exceptions"
).StaleElementReferenceException
TABS = "Pages", "Read", "Runs", "Data", "Train"
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
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        told = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})
        self.open(address)

    def open(self, address: str) -> None:
        self.browser.get(address)
        self.until(lambda: self.all("textarea"))

    def all(self, selector: str) -> list:
        """What is shown of it."""
        return [e for e in self.browser.find_elements("css selector", selector) if shown(e)]

    def text(self, selector: str) -> str:
        return "\n".join(e.text for e in self.all(selector))

    def script(self, code: str, *arguments):
        return self.browser.execute_script(code, *arguments)

    def button(self, name: str, role: str = "button"):
        return next(
            e
            for e in self.all("button")
            if e.accessible_name.strip(" ▼\n") == name and e.aria_role == role
        )

    def click(self, name: str) -> None:
        self.until(lambda: self.button(name).is_enabled())
        self.script("arguments[0].scrollIntoView({block: 'center'})", self.button(name))
        self.button(name).click()

    def tab(self, name: str) -> None:
        self.button(name, "tab").click()

    def until(self, holds, seconds: float = 60):
        """What `holds` gives, once it is true."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := holds():
                    return found
            except (StopIteration, IndexError, StaleElementReferenceException):
                pass  # drawn anew meanwhile
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.1)

    def labelled(self, label: str):
        """The control of that name among those that are shown."""
        return next(e for e in self.all("input, textarea") if e.accessible_name.startswith(label))

    def value(self, label: str) -> str:
        return self.labelled(label).get_attribute("value")

    def unfold(self, *titles: str) -> None:
        for title in titles:
            self.click(title)

    def set(self, **values: str) -> None:
        """Types into controls that are shown."""
        for name, value in values.items():
            self.until(lambda: self.labelled(option_of(name))).send_keys(value)


def shown(element) -> bool:
    try:
        return element.is_displayed()
    except StaleElementReferenceException:
        return False


@pytest.fixture
def page(address):
    found = Page(address)
    yield found
    severe = [line for line in found.browser.get_log("browser") if line["level"] == "SEVERE"]
    found.browser.quit()
    assert severe == []


def test_a_pasted_text_becomes_pages_and_counts(page):
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    page.until(lambda: "1 of 256 px" in page.text(".facts") and "2.05" in page.text(".facts"))
    assert "21" in page.text(".facts")
    assert "deepsynth_min.generate --model=tiny-reader" in page.text("code")


def test_a_file_that_is_chosen_becomes_pages(page, root):
    (root / "a<b>.txt").write_text(TEXT)
    page.browser.find_element("css selector", "input[type=file]").send_keys(str(root / "a<b>.txt"))
    page.until(lambda: "1 of 256 px" in page.text(".facts"))
    assert page.text("code").endswith("ab.txt")  # Gradio leaves out what a name should not have


def test_a_setting_changes_the_pages(page):
    page.labelled("Text").send_keys(TEXT)
    page.unfold("Page settings")
    page.set(font_size="12")
    page.until(lambda: "--font-size=12" in page.text("code"))


def test_a_wrong_setting_is_told_in_one_line_as_text(page):
    page.labelled("Text").send_keys(TEXT)
    page.unfold("Page settings")
    page.set(main_font="<b>x</b>")
    page.until(
        lambda: "--font <b>x</b>: nothing of that name" in page.text("[data-testid=toast-body]")
    )


def test_an_answer_is_streamed_and_stepped_through(page):
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    page.tab("Read")
    page.click("Read")
    lengths = set()

    def done():
        lengths.add(len(page.text(".spoken")))
        return len(page.all(".scroll tr")) == 5

    page.until(done)
    assert len(lengths) > 2  # it grew
    before = page.all("img.map")[0].get_attribute("src")
    page.click("next token ▶")
    page.until(lambda: "token 2 of" in page.text(".where"))
    assert page.all("img.map")[0].get_attribute("src") != before
    page.click("◀ token before")
    page.until(lambda: "token 1 of" in page.text(".where"))
    slider = next(e for e in page.all("input[type=range]"))
    slider.send_keys("\ue014\ue014")  # arrow right
    page.until(lambda: "token 3 of" in page.text(".where"))


def test_script_in_a_text_is_shown_and_not_run(page):
    page.labelled("Text").send_keys(EVIL + "\u4e00")
    page.until(lambda: page.all(".said mark"))
    page.until(lambda: EVIL in page.text(".said"))
    assert page.browser.title == "deepsynth_min" and not page.all(".said img")


def test_a_bad_file_is_checked(page):
    page.tab("Data")
    page.set(data="bad.jsonl")
    page.click("Check")
    page.until(lambda: page.all("iframe"))
    assert "error: bad.jsonl:21: " in page.value("What the command says")
    page.browser.switch_to.frame(page.all("iframe")[0])
    assert "Training would stop" in page.text("body")
    page.browser.switch_to.default_content()


def test_a_training_is_started_watched_stopped_and_goes_on(page, address):
    page.tab("Train")
    page.unfold("data", "optim", "evaluation", "run")
    page.set(**SHORT)
    page.until(lambda: "--out=runs/one" in page.text("code"))
    page.click("Start")
    page.until(lambda: "running, step" in page.text("p[role=status]"))
    page.until(lambda: page.all("iframe"))
    curves = page.all("iframe")[0].get_attribute("srcdoc")
    page.until(lambda: page.all("iframe")[0].get_attribute("srcdoc") != curves)
    assert "step" in page.value("What it prints")
    page.browser.get("about:blank")  # the page is closed, and opened again
    page.open(address)
    page.tab("Train")
    page.click("Stop (saves)")
    page.until(lambda: "stopped" in page.text("p[role=status]"))
    page.click("Go on")  # once the process has ended too
    page.until(lambda: "running, step" in page.text("p[role=status]"))
    page.click("Stop (saves)")
    page.until(lambda: "stopped" in page.text("p[role=status]"))
    page.tab("Runs")
    page.until(lambda: page.labelled("runs/one: stopped")).click()
    page.until(lambda: "Loss, nats per token" in page.all("iframe")[0].get_attribute("srcdoc"))


def test_two_browsers_do_not_see_each_other_s_texts(page, address):
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    other = Page(address)
    try:
        assert other.value("Text") == ""
        other.tab("Read")
        other.click("Read")
        other.until(lambda: "there is no text yet" in other.text("[data-testid=toast-body]"))
    finally:
        other.browser.quit()


def test_who_must_wait_sees_the_place_in_the_queue(page, app):
    slow = {"Text": TEXT * 3, "--beams": "8", "--max-new-tokens": "200"}
    others = [threading.Thread(target=Client(app[0]).ask, args=("read", slow)) for _ in range(2)]
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    page.tab("Read")
    for other in others:
        other.start()
    page.click("Read")
    page.until(lambda: "queue: " in page.text("body"))
    page.until(lambda: page.text(".spoken"))
    for other in others:
        other.join()


@pytest.mark.parametrize(("tab", "most"), [("Read", 10), ("Runs", 30), ("Train", 30)])
def test_idle_with_a_page_open_it_takes_little_of_a_processor(page, app, tab, most):
    """In 20 seconds, in hundredths of one. Runs and Train look every 4 s, while they are shown."""
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    for name in ("Runs", "Train", tab):
        page.tab(name)
        time.sleep(1)
    time.sleep(3)
    before = ticks(app[1])
    time.sleep(20)
    assert ticks(app[1]) - before <= most


def test_the_tabs_are_reached_by_keys(page):
    first = page.button("Pages", "tab")
    page.script("arguments[0].focus()", first)
    for key in ("\ue004", "\ue007"):  # tabulator, enter
        page.browser.switch_to.active_element.send_keys(key)
    page.until(lambda: page.button("Read", "tab").get_attribute("aria-selected") == "true")


def test_a_browser_asks_no_other_machine(page, address):
    page.labelled("Text").send_keys(TEXT)
    page.until(lambda: page.all(".thumbs img"))
    for tab in TABS:
        page.tab(tab)
        time.sleep(0.5)
    told = [json.loads(line["message"])["message"] for line in page.browser.get_log("performance")]
    told = [one["params"] for one in told if one["method"] == "Network.requestWillBeSent"]
    asked = {one["request"]["url"] for one in told}
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)


@pytest.mark.parametrize("width", [400, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_is_wider_than_the_window(address, width, scheme):
    page = Page(address, width, scheme)
    try:
        dark = page.script("return getComputedStyle(document.body).backgroundColor") != (
            "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
        for tab in TABS:
            page.tab(tab)
            time.sleep(1)
            for fold in [
                e for e in page.all("button.label-wrap") if "open" not in e.get_attribute("class")
            ]:
                page.script("arguments[0].click()", fold)
            time.sleep(1)
            assert page.script("return document.documentElement.scrollWidth") <= width
            unnamed = [e for e in page.all("input, select, textarea") if not e.accessible_name]
            assert not [e.get_attribute("outerHTML") for e in unnamed]
    finally:
        page.browser.quit()
