"""The page in a browser: what it shows, what it does, whom it asks, and who can use it.

Driven by Playwright in Debian's Chromium; skipped where either is absent. With
PAGE_PICTURES=docs/images the pictures of docs/page.md are taken anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api")
Image = pytest.importorskip("PIL.Image")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "tests" / "data" / "shrink-report.json"
PICTURES = os.environ.get("PAGE_PICTURES")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
KEY = "a-key-for-the-page"
VIEWS = ("chat", "complete", "attention", "lens", "tokens", "compare", "front", "machine")
DESK, PHONE = (1240, 820), (360, 740)
PICTURE_BYTES = 80_000
SHOWN_TOO = (("complete", "-phone"), ("attention", "-dark"))  # beside every view on a desk
MODELS = ("miudo-6m", str(ROOT / "models" / "en-6m"), str(ROOT / "models" / "en-6m-quarter"))
PATIENCE_MS = 60_000


def serving(*models: str, **environment: str) -> Iterator[str]:
    command = [sys.executable, "-m", "miudo", "serve", *models, "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
    try:
        yield json.loads(line)["url"]
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    yield from serving(*MODELS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page, with all that it asked for and complained of."""

    def __init__(self, browser: Any, url: str, **how: Any) -> None:
        width, height = how.pop("size", DESK)
        self.url = url
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, locale="en-GB", **how
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.context.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, view: str, model: str | None = None) -> Any:
        self.page.goto(f"{self.url}/#{view}")
        self.page.wait_for_selector(f".view.{view}")
        self.page.wait_for_selector("#model option", state="attached")
        if model is not None:
            self.page.select_option("#model", model)
        return self.page


@pytest.fixture
def watched(browser: Any, url: str) -> Iterator[Callable[..., Watched]]:
    """Opens pages; when the test ends none may have complained or asked anybody else."""
    made: list[Watched] = []

    def make(**how: Any) -> Watched:
        made.append(Watched(browser, how.pop("url", url), **how))
        return made[-1]

    yield make
    for each in made:
        assert each.complaints == []
        assert each.asked
        assert all(u.startswith((each.url, f"blob:{each.url}")) for u in each.asked)
        each.context.close()


def chatted(page: Any) -> None:
    page.get_by_label("Message").fill("Hello! What do you like to do?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".foot .link")


def completed(page: Any) -> None:
    page.get_by_label("Seed").evaluate("box => { box.value = 6 }")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector("main button.primary:enabled")


def filled(page: Any, view: str) -> None:
    """Has the view show what it is for."""
    if view == "chat":
        chatted(page)
    elif view == "complete":
        completed(page)
        page.locator(".strip .tok:not(.given)").nth(3).click()
    elif view == "attention":
        page.wait_for_selector(".map")
    elif view == "lens":
        page.wait_for_selector(".lens-table")
    elif view == "tokens":
        page.wait_for_selector(".piece")
    elif view == "compare":
        page.get_by_label("First model").select_option("en-6m")
        page.get_by_label("Second model").select_option("en-6m-quarter")
        page.get_by_role("button", name="Show").click()
        page.wait_for_selector("table.plain")
    elif view == "front":
        page.set_input_files("input[type=file]", REPORT)
        page.wait_for_selector(".plot")
    else:
        page.wait_for_selector(".facts")
    page.mouse.move(0, 0)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("name", "how"),
    [("", {}), ("-phone", {"size": PHONE}), ("-dark", {"color_scheme": "dark"})],
)
def test_every_view_can_be_read(
    watched: Callable[..., Watched], tmp_path: Path, view: str, name: str, how: dict[str, Any]
) -> None:
    """Nothing sticks out, all text has contrast, and there is a picture of it."""
    one = watched(**how)
    page = one.open(view)
    filled(page, view)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(CONTRAST) == []
    picture = tmp_path / "view.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 10_000  # an empty page has fewer
    if PICTURES and (not name or (view, name) in SHOWN_TOO):
        kept = Path(PICTURES) / f"page-{view}{name}.png"
        drawn = Image.open(picture).convert("RGB")
        drawn.quantize(256, dither=Image.Dither.NONE).save(kept, optimize=True)
        assert kept.stat().st_size < PICTURE_BYTES


def test_a_chat_streams_stops_and_shows_its_probabilities(watched: Callable[..., Watched]) -> None:
    one = watched()
    page = one.open("chat")
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("400")
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_label("Message").fill("Tell me a story")
    page.get_by_role("button", name="Send").click()
    playwright.expect(page.locator(".turn.assistant .text")).to_have_text(re.compile(r"\S{3}"))
    page.wait_for_selector(".foot .link")
    text = page.locator(".turn.assistant .text").inner_text()
    page.get_by_role("button", name="Show probabilities").click()
    assert page.locator(".strip .tok").count() > 3
    page.get_by_role("button", name="Show text").click()
    assert page.locator(".turn.assistant .text").inner_text() == text
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0


def test_stop_ends_an_answer_at_once(watched: Callable[..., Watched]) -> None:
    page = watched().open("complete", "en-6m")
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("240")
    # A new token waits for this many others: a slow machine without one.
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector(".strip .tok:not(.given)")
    stop = page.get_by_role("button", name="Stop")
    if stop.is_visible():
        stop.click()
    page.wait_for_selector("main button.primary:enabled")
    assert page.locator(".notice").inner_text() == ""


def test_an_alternative_begins_a_branch(watched: Callable[..., Watched]) -> None:
    page = watched().open("complete")
    completed(page)
    texts = page.locator(".strip .tok").all_inner_texts()
    at = page.locator(".strip .tok.given").count() + 2
    page.locator(".strip .tok").nth(at).focus()
    shares = page.locator(".panel .number").all_inner_texts()
    values = [float(share.rstrip("%")) for share in shares]
    assert values == sorted(values, reverse=True)
    page.keyboard.press("Enter")  # into the alternatives
    taken = page.evaluate("document.activeElement.querySelector('code').textContent")
    page.keyboard.press("Enter")
    page.wait_for_selector(".tab >> nth=1")
    page.wait_for_selector("main button.primary:enabled")
    again = page.locator(".strip .tok").all_inner_texts()
    assert "".join(again).startswith("".join(texts[:at]) + taken.replace("·", " "))
    assert page.locator(".tab[aria-pressed=true]").inner_text() == f"2 {taken}"
    page.locator(".tab").first.click()
    assert page.locator(".strip .tok").all_inner_texts() == texts


def test_attention_rows_sum_to_one_and_follow_the_token(watched: Callable[..., Watched]) -> None:
    one = watched()
    page = one.open("attention")
    page.wait_for_selector(".map")
    strips = page.locator(".panels .strip")
    assert strips.count() == 2
    sums = strips.first.evaluate(
        "strip => [...strip.children].map((t) => Number(t.style.getPropertyValue('--heat-share')))"
    )
    assert sum(sums) == pytest.approx(1, abs=1e-4)
    heading = page.locator(".panels .reads").first
    assert "Paris" in heading.inner_text()
    strips.first.locator("button[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "We" in heading.inner_text()
    page.get_by_label("Layer", exact=True).select_option("0")
    page.get_by_label("Head", exact=True).select_option("-1")
    assert page.locator(".small-map[aria-pressed=true]").count() == 4  # all heads of a layer


def test_the_lens_ends_in_what_the_model_says(watched: Callable[..., Watched], url: str) -> None:
    one = watched()
    page = one.open("lens")
    page.wait_for_selector(".lens-table")
    rows = page.locator(".lens-table tbody tr")
    assert rows.count() == 7  # six layers and the input
    text = page.get_by_label("Text", exact=True).input_value()
    ask = {"model": "miudo-6m", "prompt": text, "max_tokens": 1, "temperature": 0}
    said = page.request.post(f"{url}/v1/completions", data=ask).json()["choices"][0]["text"]
    best = rows.first.locator("button").last.inner_text()
    assert best.replace("·", " ") == said
    rows.first.locator("button").last.focus()
    page.keyboard.press("ArrowDown")
    assert "Layer 5" in page.locator(".panel h3").inner_text()


def test_tokens_are_cut_as_the_tokenizer_cuts(watched: Callable[..., Watched]) -> None:
    page = watched().open("tokens")
    page.get_by_label("Text", exact=True).fill("Olá, \n Paris")
    playwright.expect(page.locator(".figures")).to_contain_text("13 bytes")
    pieces = page.locator(".piece code").all_inner_texts()
    assert "".join(p for p in pieces if p != "∅").startswith("Ol")
    assert page.locator(".piece small").first.inner_text().isdigit()


def test_two_models_are_compared_and_told_apart(watched: Callable[..., Watched]) -> None:
    one = watched()
    page = one.open("compare")
    filled(page, "compare")
    kls = [float(x) for x in page.locator("tbody .with-bar .number").all_inner_texts()]
    assert kls
    assert all(kl >= 0 for kl in kls)
    assert max(kls) > 0.01
    page.get_by_label("Second model").select_option("miudo-6m")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("cut text differently").wait_for()
    assert page.locator(".with-bar").count() == 0
    page.get_by_label("First model").select_option("miudo-6m")
    page.get_by_role("button", name="Show").click()
    playwright.expect(page.locator(".notice")).to_contain_text("two different")


def test_the_divergence_is_never_above_the_true_one(watched: Callable[..., Watched]) -> None:
    """Of two distributions over 50 tokens the likeliest are told, as the API tells them."""
    page = watched().open("chat")
    rng = np.random.default_rng(5)
    for told in (1, 5, 20, 50):
        a, b = (rng.dirichlet(np.full(50, 0.3)) + 1e-12 for _ in range(2))
        true = float((a * np.log(a / b)).sum())
        sides = [
            {
                "logprob": -1.0,
                "top": [
                    {"text": f"t{i}", "logprob": float(np.log(p[i]))} for i in np.argsort(-p)[:told]
                ],
            }
            for p in (a, b)
        ]
        found = page.evaluate(
            "([a, b]) => import('/page/divergence.js').then((m) => m.divergence(a, b))", sides
        )
        assert 0 <= found <= true + 1e-6
        if told == 50:
            assert found == pytest.approx(true, abs=1e-6)


def test_a_report_is_drawn_and_another_file_refused(
    watched: Callable[..., Watched], tmp_path: Path
) -> None:
    page = watched().open("front")
    filled(page, "front")
    rows = json.loads(REPORT.read_text())["rows"]
    assert page.locator(".plot .dot").count() == len(rows)
    assert page.locator(".plot .ring").count() == sum(row["chosen"] for row in rows)
    other = tmp_path / "other.json"
    other.write_text('{"schema": 1, "rows": [{"name": "<img src=x onerror=alert(1)>"}]}')
    page.set_input_files("input[type=file]", other)
    playwright.expect(page.locator(".notice")).to_contain_text("no report")
    assert page.locator("main img, .notice img").count() == 0


def test_what_a_model_writes_is_never_markup(watched: Callable[..., Watched]) -> None:
    one = watched()
    page = one.open("complete")
    page.get_by_label("Text to go on from").fill("<b id=bold>x</b><script>window.hit = 1</script>")
    completed(page)
    assert "<b id=bold>" in "".join(page.locator(".strip .tok").all_inner_texts())
    assert page.locator("#bold").count() == 0
    assert page.evaluate("window.hit") is None
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<p>'; return false } catch { return true } }"
    )
    assert refused
    (told,) = one.complaints  # the browser's own line about it
    assert "TrustedHTML" in told
    one.complaints.clear()


def test_the_evidence_names_model_settings_and_probabilities(
    watched: Callable[..., Watched], url: str
) -> None:
    page = watched().open("complete")
    page.locator("#save").click()
    page.get_by_text("Nothing to save").wait_for()
    completed(page)
    with page.expect_download() as coming:
        page.locator("#save").click()
    found = json.loads(Path(coming.value.path()).read_text())
    named = page.request.get(f"{url}/inspect/model/miudo-6m").json()
    assert found["schema"] == 1
    assert found["view"] == "complete"
    assert found["models"][0] == {
        "name": "miudo-6m",
        "sha256": named["sha256"],
        "tokenizer_sha256": named["tokenizer_sha256"],
    }
    (branch,) = found["branches"]
    assert branch["settings"]["seed"] == 6
    assert all(token["logprob"] <= 0 for token in branch["tokens"][1:])
    page.goto(f"{url}/#attention")
    page.wait_for_selector(".map")
    with page.expect_download() as coming:
        page.locator("#save").click()
    shown = json.loads(Path(coming.value.path()).read_text())
    rows = shown["sentences"][0]["layers"][shown["layer"]]["heads"][shown["head"]]
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in rows)


def test_the_same_words_in_both_languages(watched: Callable[..., Watched]) -> None:
    one = watched()
    page = one.open("chat")
    page.click("#language")
    page.wait_for_selector("html[lang=pt]")
    assert page.locator("h1").inner_text() == "Conversa"
    page.goto(f"{one.url}/#lens")  # kept without being in the address
    page.wait_for_selector(".view.lens")
    assert page.locator("html").get_attribute("lang") == "pt"
    keys = page.evaluate(
        "import('/page/words.js').then(({ WORDS }) => Object.values(WORDS).map(Object.keys))"
    )
    assert keys[0] == keys[1]
    assert page.evaluate(CONTRAST) == []


FOCUSED = """() => {
  const element = document.activeElement, outline = getComputedStyle(element).outlineStyle;
  if (element === document.body) return ["BODY", true];
  return [element.id || element.textContent.trim(), outline !== "none"];
}"""


def test_everything_is_reached_by_keyboard_and_seen_where_it_is(
    watched: Callable[..., Watched],
) -> None:
    page = watched().open("complete")
    reached = dict[str, bool]()  # whether it shows that it has the focus
    for _ in range(40):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(FOCUSED)
        if name == "BODY" or name in reached:
            break
        reached[name] = seen
    assert [name for name, seen in reached.items() if not seen] == []
    names = list(reached)
    assert names[0] == "Skip to content"
    links = page.locator("nav a").all_inner_texts()
    assert len(links) == len(VIEWS)
    for name in ("model", "save", "language", *links, "Go on", "Settings"):
        assert name in names
    completed(page)
    stops = page.locator(".strip .tok[tabindex='0']")
    assert stops.count() == 1  # for all tokens: arrows go among them
    stops.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.previousElementSibling.tabIndex") == -1
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any) -> None:
    for url in serving("miudo-6m", MIUDO_API_KEY=KEY):
        one = Watched(browser, url)
        page = one.page
        page.goto(url)
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("does not open").wait_for()
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        chatted(page)
        assert all("401" in complaint for complaint in one.complaints)  # the browser's own lines
        assert page.evaluate("JSON.stringify({ ...localStorage })").find(KEY) < 0
        assert KEY not in "".join(one.asked)
        one.context.close()
