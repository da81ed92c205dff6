"""The page as people use it: image in, streamed text out, actions, reload, settings, live, phone, screen readers."""

import base64
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from server_process import ROOT, data_uri, question
from web_page import Page

PAGE = ROOT / "src" / "fastvlm" / "web" / "page"
SHOTS = os.environ.get("FASTVLM_SCREENSHOTS")  # a folder; nothing is written without it
LONG = '{"type": "string", "minLength": 4000}'  # a reply that takes long
EXAMPLES = {
    "letter.png": "K",
    "red_star.png": "It is a star.",
    "five_shapes.png": "5",
    "word.png": "OAK",
    "objects.png": "A cloud and a banana.",
    "shapes.png": "It is a cross.",
}


@pytest.fixture
def page(browser, server):
    visit = Page(browser, server.url)
    yield visit
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == [], "the browser's console has errors"


@pytest.fixture
def phone(page):
    page.resize(390, 844, is_mobile=True)
    yield page
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.prefer(None)


def shot(page, name):
    if SHOTS:
        page.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


# ------------------------------------------------------------------------------------------ questions, answers


def test_every_example_on_the_page_gets_the_right_answer(server):
    source = (PAGE / "questions.js").read_text(encoding="utf-8")
    listed = re.search(r"const EXAMPLES = (\[.*?\n\]);", source, re.DOTALL)
    answers = {}
    for name, text in json.loads(re.sub(r",\s*\]$", "]", listed[1])):
        reply = server.chat(question(text, data_uri(PAGE / "examples" / name)))
        answers[name] = reply.json()["choices"][0]["message"]["content"]
    assert answers == EXAMPLES


def test_an_example_is_one_click_away_and_the_answer_streams_in(page):
    [letter, *_] = page.all("#examples button")
    letter.click()
    assert page.answered() == ["K"]
    assert re.fullmatch(r"first word after \d+ ms( · \d+ tokens/s)?( · cut.*)?", page.text(".turn.assistant .stats"))
    assert len(page.all(".turn.user img")) == 1 and not page.is_shown("#examples")
    from selenium.webdriver import Keys

    page.type("What color is the letter?")
    page.press(Keys.ENTER)
    assert page.answered(2)[1] == "red"


def test_a_long_conversation_scrolls_in_one_place(page):
    page.resize(600, 480)
    try:
        for _ in range(5):
            page.ask("Hello?")
        inside = page.run("const m = document.querySelector('main'); return m.scrollHeight - m.clientHeight")
        whole = page.run("const d = document.documentElement; return d.scrollHeight - d.clientHeight")
        assert inside > 100 and whole == 0
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


GIVE = """
  const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
  const event = arguments[1] === "drop"
    ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
"""


def test_a_picked_a_dropped_and_a_pasted_image_go_with_the_question(page):
    page.pick_example("red_star")
    data = base64.b64encode((ROOT / "examples" / "letter.png").read_bytes()).decode()
    for count, kind in enumerate(("drop", "paste"), start=2):
        page.run(GIVE, data, kind)
        page.until(lambda count=count: len(page.all("#images img")) == count)
    page.click("#images li:nth-child(2) button")
    assert len(page.all("#images img")) == 2
    page.ask("What do you see?")
    assert len(page.all(".turn.user img")) == 2 and page.all("#images img") == []


def test_the_json_preset_gives_json(page):
    page.pick_example("red_star")
    page.click("#presets button:nth-child(4)")
    page.answered()
    assert set(json.loads(page.text(".turn.assistant pre code"))) == {"shape", "color", "count"}


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_a_reply_that_stays(page, server, how):
    from selenium.webdriver import Keys

    page.fill("#schema", LONG)
    page.fill("#max-tokens", "1024")
    page.type("Talk.")
    page.click("#send")
    page.until(lambda: len(page.text(".turn.assistant .body")) > 10)
    assert page.is_shown("#stop") and not page.is_shown("#send")
    page.click("#stop") if how == "button" else page.press(Keys.ESCAPE)
    [answer] = page.answered()
    assert answer.startswith('"') and page.text(".turn.assistant .stats").endswith("stopped")
    server.until_idle()


def test_errors_are_in_words_and_nothing_is_lost(browser, server):
    page = Page(browser, server.url)
    for text, words in (
        ("Is <|im_end|> a word?", r"^The text \S+ .*is a special token of the model"),
        ("many words " * 1500, r"too long for this model \(it holds 2,048 tokens, reply included\)"),
    ):
        page.fill("#question", text)
        page.click("#send")
        page.until(lambda words=words: re.search(words, page.text("#error")))
        assert page.value("#question") == text and page.all(".turn") == []
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.click("#send")
    page.until(lambda: "Is it still running?" in page.text("#error"))
    browser.get_log("browser")  # the refused requests stand in it


# ------------------------------------------------------------------------------------------ rejected files, limits


def test_a_rejected_file_stays_with_its_reason_until_others_are_added(page, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.png").write_bytes(b"no image either")
    page.pick(tmp_path / "notes.txt", tmp_path / "broken.png")
    page.until(lambda: len(page.all("#images .rejected")) == 2)
    notes, broken = page.texts("#images .rejected")
    assert notes.startswith("notes.txt: this is not an image") and "broken.png: this browser cannot show it" in broken
    page.click("#images li:nth-child(2) button")
    page.ask("Hello?")
    page.pick_example("letter")
    page.until(lambda: len(page.all("#images img")) == 1)
    assert page.all("#images .rejected") == []


def test_a_pdf_is_sent_where_the_server_accepts_it_and_a_video_is_refused(page, tmp_path):
    Image.open(ROOT / "examples" / "letter.png").convert("RGB").save(tmp_path / "letter.pdf")
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    page.pick(tmp_path / "letter.pdf", tmp_path / "clip.mp4")
    page.until(lambda: len(page.all("#images li")) == 2)
    assert page.text("#images .file") == "PDF"
    assert "clip.mp4: this server does not accept a video (start it with --accept video)" in page.text(
        "#images .rejected"
    )
    assert page.run("return document.querySelector('#files').accept") == "image/*,application/pdf"
    page.ask("What letter is this?")
    assert page.answered() == ["K"] and page.text(".turn.user .file") == "PDF"


def test_limits_are_those_of_the_server(page):
    page.pick(*[ROOT / "examples" / f"{name}.png" for name in ("letter", "word", "shapes", "objects")])
    page.until(lambda: len(page.all("#images li")) == 4)
    assert "at most 3 images" in page.text("#images .rejected")
    assert page.run("return document.querySelector('#max-tokens').max") == "1024"
    sizes = page.run("return [...document.querySelector('#image-size').options].map((one) => one.text)")
    assert sizes == ["512 x 512 px, 64 tokens", *(f"{n} x {n} px, {(n // 64) ** 2} tokens" for n in (128, 256, 384))]
    assert page.text("#about").startswith("Drawings only, one question at a time")


# ------------------------------------------------------------------------------------------ actions, reload, export


def test_copy_retry_edit_and_undo(page):
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.pick_example("letter")
    assert page.ask("What letter is this?") == ["K"]
    page.click(".turn.assistant [title=Copy]")
    page.until(lambda: page.text("#status") == "Copied.")
    copied = page.driver.execute_async_script("const [done] = arguments; navigator.clipboard.readText().then(done)")
    assert copied == "K"

    page.click(".turn.assistant [title='Ask again']")
    page.until(lambda: "always the same" in page.text("#notice"))
    page.fill("#temperature", "2")
    page.click(".turn.assistant [title='Ask again']")
    page.until(lambda: "was replaced" in page.text("#notice") and page.answered())
    page.click("#undo")
    assert page.texts(".turn.assistant .body") == ["K"]
    page.fill("#temperature", "0")
    page.ask("What color is the letter?")
    page.click(".turn.user [title='Edit the question']")
    assert page.all(".turn") == [] and page.value("#question") == "What letter is this?"
    assert len(page.all("#images img")) == 1
    page.click("#undo")
    assert page.texts(".turn.assistant .body") == ["K", "red"] and page.value("#question") == ""
    assert not page.is_shown("#notice")


def test_conversation_draft_and_settings_survive_a_reload_and_new_can_be_undone(page):
    page.pick_example("red_star")
    page.ask("What shape is this?")
    page.type("And the")
    page.fill("#temperature", "0.7")
    page.until(lambda: stored(page, "draft")["text"] == "And the")
    page.reload()
    assert page.texts(".turn .body") == ["What shape is this?", "It is a star."] and page.all(".turn img")
    assert page.value("#question") == "And the" and page.value("#temperature") == "0.7"
    page.click("#new")
    page.until(lambda: page.is_shown("#examples") and page.is_shown("#undo"))
    assert page.all(".turn") == [] and page.value("#question") == ""
    page.until(lambda: stored(page, "conversation")["turns"] == [])
    page.reload()
    page.click("#undo")
    page.until(lambda: page.value("#question") == "And the")
    assert page.texts(".turn.assistant .body") == ["It is a star."]


def test_a_reload_in_the_middle_of_a_reply_keeps_question_and_text(page):
    page.fill("#schema", LONG)
    page.type("Talk.")
    page.click("#send")
    page.until(lambda: len(page.text(".turn.assistant .body")) > 10)
    page.reload()
    assert page.texts(".turn.user .body") == ["Talk."] and page.is_shown("[title='Ask again']")


def stored(page, key):
    script = "const [key, done] = arguments; import('/store.js').then((s) => s.load(key)).then(done)"
    return page.driver.execute_async_script(script, key)


def test_export_as_markdown_and_as_json(page, tmp_path):
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    page.pick_example("letter")
    page.ask("What letter is this?")
    for kind in ("markdown", "json"):
        page.click("#export")
        page.click(f"#export-{kind}")
    page.until(lambda: {"conversation.md", "conversation.json"} <= {file.name for file in tmp_path.iterdir()})
    text = (tmp_path / "conversation.md").read_text()
    assert "**You**\n\n![Image 1](data:image/png;base64," in text and "**mini**\n\nK\n" in text
    content = json.loads((tmp_path / "conversation.json").read_text())
    assert content["model"] == "mini" and content["temperature"] == 0
    assert [message["role"] for message in content["messages"]] == ["user", "assistant"]


# ------------------------------------------------------------------------------------------ model, settings

TWO_MODELS = """
  const real = window.fetch;
  window.asked = [];
  window.fetch = async (path, options) => {
    if (options?.body) window.asked.push(JSON.parse(options.body));
    const response = await real(path, options);
    if (path !== "/v1/models") return response;
    const list = await response.json();
    list.data.push({ ...list.data[0], id: "poet", parent: "mini", description: null });
    return new Response(JSON.stringify(list));
  };
"""


def test_a_model_or_adapter_is_chosen_and_the_choice_is_kept(browser, server):
    from selenium.webdriver.support.ui import Select

    page = Page(browser, server.url, TWO_MODELS)
    choice = Select(page.all("#model-choice")[0])
    assert [option.text for option in choice.options] == ["mini", "poet (adapter)"]
    choice.select_by_value("poet")
    assert page.text("#about").startswith("adapter of mini · images at 512 x 512 px, 64 tokens each · 2,048 tokens")
    page.type("Hello?")
    page.click("#send")
    page.until(lambda: "no longer has this model" in page.text("#error"))
    assert page.run("return window.asked.at(-1).model") == "poet"
    assert page.run("return localStorage.getItem('model')") == "poet"
    browser.get_log("browser")  # the refused request stands in it


def test_the_settings_move_nothing_and_go_with_the_question(browser, server):
    page = Page(browser, server.url, TWO_MODELS)
    places = """
      const parts = document.querySelectorAll("header, main, form, #send");
      return [...parts].map((one) => one.getBoundingClientRect().toJSON());
    """
    before = page.run(places)
    page.click("#settings-open")
    assert page.is_shown("#settings") and page.run(places) == before
    page.fill("#schema", '{"enum": ["circle", "star"')
    assert "not JSON" in page.text("#schema-error")
    page.fill("#schema", '{"enum": ["circle", "star"]}')
    for selector, value in (("#system", "Be brief."), ("#temperature", "0.5"), ("#top-p", "0.9"), ("#seed", "7")):
        page.fill(selector, value)
    page.fill("#image-size", "384")
    page.fill("#image-fit", "crop")
    from selenium.webdriver import Keys

    page.press(Keys.ESCAPE)
    assert not page.is_shown("#settings")
    page.pick_example("red_star")
    assert page.ask("What shape is this?")[0] in ('"circle"', '"star"')
    asked = page.run("return window.asked.at(-1)")
    assert (asked["temperature"], asked["top_p"], asked["seed"], asked["max_tokens"]) == (0.5, 0.9, 7, 256)
    assert asked["mm_processor_kwargs"] == {"image_size": 384, "image_fit": "crop"}
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    page.fill("#temperature", "3")
    page.type("Again?")
    page.click("#send")
    page.until(lambda: page.text("#error").startswith("Temperature in the settings"))
    page.click("#settings-open")
    page.click("#settings-reset")
    assert page.value("#temperature") == "0" and page.value("#schema") == ""


NEEDS_KEY = """
  const real = window.fetch;
  window.fetch = async (path, options) => {
    if (options.headers.Authorization === "Bearer right key") return real(path, options);
    return new Response(JSON.stringify({ error: { message: "", code: "invalid_api_key" } }), { status: 401 });
  };
"""


def test_an_api_key_is_asked_for_and_forgotten_with_the_tab(page):
    page.run(NEEDS_KEY)
    page.type("Hello?")
    page.click("#send")
    page.until(lambda: page.is_shown("#key"))
    assert page.text("#error") == "This server needs an API key." and page.value("#question") == "Hello?"
    page.fill("#key", "right key")
    page.click("#key-save")
    page.until(lambda: not page.is_shown("#key"))
    page.click("#send")
    assert page.answered()
    assert page.run("return [sessionStorage.getItem('key'), localStorage.length]") == ["right key", 0]


# ------------------------------------------------------------------------------------------ Markdown

RENDER = """
  const [texts, done] = arguments;
  import("/markdown.js").then(({ MarkdownView }) => done(texts.map((text) => {
    const place = document.createElement("div");
    const view = new MarkdownView(place);
    for (const end of [Math.floor(text.length / 2), text.length]) view.show(text.slice(0, end));
    const whole = document.createElement("div");
    new MarkdownView(whole).show(text);
    const attributes = [...place.querySelectorAll("*")].flatMap((e) => [...e.attributes].map((a) => [a.name, a.value]));
    return { html: place.innerHTML, isSame: place.innerHTML === whole.innerHTML, text: place.textContent, attributes,
      tags: [...new Set([...place.querySelectorAll("*")].map((e) => e.localName))] };
  })), (e) => done(String(e)));
"""
LISTS_AND_TABLES = {"ul", "ol", "li", "div", "table", "thead", "tbody", "tr", "th", "td"}
TAGS = {"p", "pre", "code", "blockquote", "hr", "strong", "em", "del", "br", "a", *LISTS_AND_TABLES}
HREF = re.compile(r"(https?:|mailto:)", re.IGNORECASE)
ATTRIBUTES = {"class", "tabindex", "target", "rel", "start"}


def render(page, *texts):
    return page.driver.execute_async_script(RENDER, list(texts))


def test_markdown_becomes_elements_and_html_stays_text(page):
    hostile = (
        "<img src=x onerror=alert(1)> [x](javascript:alert(1)) ![y](https://e.org/y.png) <script>alert(1)</script>"
    )
    text = "# Title\n\nSome **bold** `code`, [link](https://e.org)\n\n- a\n- b\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n"
    text += "```py\nx < 1\n```"
    good, bad = render(page, text, hostile)
    assert {"strong", "code", "a", "ul", "li", "table", "pre"} <= set(good["tags"])
    assert good["text"].startswith("TitleSome bold code, link") and "x < 1" in good["text"]
    assert bad["tags"] == ["p"] and bad["text"] == hostile


@settings(max_examples=6)
@given(st.lists(st.text(alphabet="<>[]()*_~`|-#!&;:/\\ \n\"'=1.xjs", max_size=60), min_size=20, max_size=30))
def test_any_text_gives_known_elements_only(page_for_texts, texts):
    for shown in render(page_for_texts, *texts):
        assert shown["isSame"], "a text that grew looks other than one that came whole"
        assert set(shown["tags"]) <= TAGS
        for name, value in shown["attributes"]:
            assert name in ATTRIBUTES or (name == "href" and HREF.match(value)), (name, value)


@pytest.fixture(scope="module")
def page_for_texts(browser, server):
    return Page(browser, server.url)


def test_a_text_that_is_slow_to_parse_stays_plain(page):
    for shown in render(page, "_a*" * 2000, "x" * 100_000, "> " * 3900):
        assert shown["tags"] == ["p"] and shown["text"]


# ------------------------------------------------------------------------------------------ camera, live


def test_the_camera_gives_an_image(page):
    page.click("#camera")
    page.until(lambda: page.all("#images img"))


def skipped(page):
    return int((re.search(r"(\d+) unchanged", page.text("#live-stats")) or [0, 0])[1])


STILL_CAMERA = """
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  canvas.getContext("2d").fillRect(0, 0, 32, 32);
  navigator.mediaDevices.getUserMedia = async () => {
    setInterval(() => canvas.getContext("2d").fillRect(0, 0, 32, 32), 50);
    return canvas.captureStream();
  };
"""


def test_live_is_large_shows_its_question_and_skips_what_did_not_change(page):
    page.click("#live-camera")
    page.until(lambda: page.text("#live-answer"))
    assert page.text("#live-question") == "What is this?"
    page.type("What color is it?")
    page.until(lambda: page.text("#live-question") == "What color is it?")
    video, window = page.all("#live-video")[0].size, page.run("return innerWidth * innerHeight")
    assert video["width"] * video["height"] > 0.25 * window
    page.until(lambda: int((re.search(r"(\d+) answer", page.text("#live-stats")) or [0, 0])[1]) >= 2)
    page.click("#live-end")
    assert not page.is_shown("#live") and page.is_shown("#welcome")
    page.run(STILL_CAMERA)
    page.click("#live-camera")
    page.until(lambda: skipped(page) >= 3)
    answers = page.text("#live-stats").partition(" answer")[0]
    page.until(lambda: skipped(page) >= 6)
    assert page.text("#live-stats").startswith(f"{answers} answer"), "the same image was asked about again"
    page.click("#live-snap")
    page.until(lambda: len(page.all("#images img")) == 1)
    page.click("#live-end")


# ------------------------------------------------------------------------------------------ phone, screen readers


def test_everything_can_be_reached_with_the_keyboard(page):
    from selenium.webdriver import Keys

    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = set()
    for _ in range(30):
        page.press(Keys.TAB)
        reached.add(page.run("return document.activeElement.id"))
    assert {"new", "question", "pick", "camera", "live-camera", "live-screen", "settings-open", "send"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_at_any_width(phone, scheme):
    phone.prefer(scheme)
    assert phone.faults() == [], "welcome"
    phone.all("#examples button")[1].click()
    assert phone.answered() == ["It is a star."]
    for width in (390, 1280):
        phone.resize(width, 844, is_mobile=width < 600)
        shot(phone, f"conversation-{width}-{scheme}")
        phone.click("#settings-open")
        shot(phone, f"settings-{width}-{scheme}")
        assert phone.faults() == [], "conversation, settings"
        phone.click("#settings-open")


def test_axe_finds_no_fault_in_live_mode_and_beside_messages(phone, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    phone.pick(tmp_path / "notes.txt")
    phone.fill("#question", "Is <|im_end|> a word?")
    phone.click("#send")
    phone.until(lambda: phone.text("#error"))
    assert phone.faults() == []
    phone.fill("#question", "")
    phone.click("#live-camera")
    phone.until(lambda: phone.text("#live-answer"))
    assert phone.faults() == []
    phone.click("#live-end")
    phone.driver.get_log("browser")  # the refused request stands in it


def test_a_phone_shows_everything_and_the_actions_in_one_row(phone):
    phone.resize(360, 740, is_mobile=True)
    assert phone.run("return document.documentElement.scrollWidth") <= 360
    boxes = [one.rect for one in phone.all(".row button") if one.is_displayed()]
    assert len(boxes) == 6 and len({box["y"] for box in boxes}) == 1
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and min(box["height"], box["width"]) >= 40
    assert all(one.accessible_name for one in phone.all(".row button") if one.is_displayed())


# ------------------------------------------------------------------------------------------ Firefox

ANSWERS = "[...document.querySelectorAll('.turn.assistant:has(.stats:not([hidden])) .body')].map((e) => e.innerText)"
TABLE = "| a | b |\\n|--|--|\\n| 1 | <b>2</b> |"


def test_firefox_asks_keeps_undoes_and_shows_markdown(firefox, server):
    firefox.open(server.url)
    firefox.until("document.querySelector('#model').textContent === 'mini'")
    firefox.run("document.querySelector('#examples button').click()")
    assert firefox.until(f"({ANSWERS})[0]") == "K"
    firefox.open(server.url)
    assert firefox.until(f"({ANSWERS})[0]") == "K", "a reload keeps the conversation"
    firefox.run("document.querySelector('#new').click()")
    firefox.until("document.querySelector('#undo').checkVisibility()")
    assert firefox.run(ANSWERS) == []
    firefox.run("document.querySelector('#undo').click()")
    assert firefox.until(f"({ANSWERS})[0]") == "K"
    firefox.run("document.querySelector('#settings-open').click()")
    assert firefox.until("document.querySelector('#settings:popover-open')?.getBoundingClientRect().top >= 0")
    shown = firefox.run(
        "import('/markdown.js').then(({ MarkdownView }) => { const place = document.createElement('div');"
        f"new MarkdownView(place).show('{TABLE}'); return [place.querySelectorAll('td').length, place.textContent] }})"
    )
    assert shown == [2, "ab1<b>2</b>"]
