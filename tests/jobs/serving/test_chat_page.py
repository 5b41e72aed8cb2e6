"""The chat page in a real browser: what a person does with it."""

import base64
import json
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from jobs.serving.page_events import CASES, TRIES
from pipelines.media.codecs import encode
from pipelines.sample import Image, Modality
from pipelines.world.conversations import converse
from pipelines.world.render import render
from tests.benchmarks.chat_server import ChatServer
from tests.pipelines.browsing import chromium

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("chat"), pytest.mark.browser, pytest.mark.timeout(900)]
SUFFIX = {Modality.IMAGE: "png", Modality.VIDEO: "mp4", Modality.AUDIO: "wav"}
TAG = {Modality.IMAGE: "img", Modality.VIDEO: "video", Modality.AUDIO: "audio"}
# What each case shows, and must at least get back.
WANTED = {
    "Picture → sound": ({Modality.IMAGE}, {Modality.AUDIO}),
    "Video → sound": ({Modality.VIDEO}, {Modality.AUDIO}),
    "Picture → picture + video": ({Modality.IMAGE}, {Modality.IMAGE, Modality.VIDEO}),
    "Words → all three": (set(), set(Modality)),
}
MEDIA = """() => [...document.querySelectorAll('#chat .medium')].map(e => ({
  tag: e.tagName.toLowerCase(), source: e.getAttribute('src'), width: e.naturalWidth || e.videoWidth || 0,
  seconds: e.duration || 0, error: e.error && e.error.message, user: !!e.closest('.user'),
  there: e.tagName === 'IMG' ? e.complete && e.naturalWidth > 0 : e.readyState >= 2 }))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def visit(browser: Browser, chat: ChatServer, width: int = 1280, **more: Any) -> Page:
    context = browser.new_context(viewport={"width": width, "height": 850}, **more)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(chat.url)
    expect(page.locator("#box textarea")).to_be_visible()
    return page


@pytest.fixture
def page(browser: Browser, chat: ChatServer) -> Iterator[Page]:
    page = visit(browser, chat)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.context.close()
    assert not errors


def answered(page: Page, replies: int) -> list[dict[str, Any]]:
    """Waits until so many replies are whole; returns the media that are seen."""
    expect(page.locator(f"#state [data-replies='{replies}'][data-busy='false']")).to_be_attached(timeout=90_000)
    expect(page.locator("#chat .coming")).to_have_count(0)
    deadline = time.monotonic() + 60
    while True:
        media: list[dict[str, Any]] = page.evaluate(MEDIA)
        if all(medium["there"] for medium in media) or time.monotonic() > deadline:
            return media
        page.wait_for_timeout(100)


def send(page: Page, text: str = "", *files: Path) -> None:
    if files:
        page.locator("#box input[type=file]").set_input_files([str(file) for file in files])
        expect(page.locator("#box .thumbnail-item")).to_have_count(len(files))
    if text:
        page.locator("#box textarea").fill(text)
    page.locator("#box .submit-button").click()


def said(page: Page, who: str) -> str:
    return " ".join(page.locator(f"#chat .{who}.message, #chat .message.{who}").all_inner_texts())


@pytest.mark.parametrize("title", CASES)
def test_each_case_of_the_tutorial_is_one_click(page: Page, title: str) -> None:
    page.get_by_role("button", name=title).click()
    shown, wanted = WANTED[title]
    media = answered(page, 1)
    assert {medium["tag"] for medium in media if medium["user"]} == {TAG[modality] for modality in shown}
    assert {medium["tag"] for medium in media if not medium["user"]} >= {TAG[modality] for modality in wanted}
    for medium in media:
        assert medium["error"] is None
        assert medium["seconds"] > 0 if medium["tag"] == "audio" else medium["width"] >= 32
        assert medium["tag"] == "img" or medium["seconds"] > 0.3


@pytest.mark.parametrize("modality", TRIES)
def test_the_first_look_says_what_the_model_makes_and_each_is_one_click_away(page: Page, modality: Modality) -> None:
    expect(page.locator("#chat .placeholder")).to_contain_text("makes pictures, videos and sounds")
    title, _ = TRIES[modality]
    page.get_by_role("button", name=f"Try: {title.lower()}").click()
    media = answered(page, 1)
    assert TAG[modality] in {medium["tag"] for medium in media if not medium["user"]}
    if modality is Modality.IMAGE:
        box = page.locator("#chat img.medium").bounding_box()
        assert box is not None
        assert box["width"] == 256
        assert page.locator("#chat img.medium").evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"


def test_videos_play(page: Page) -> None:
    page.get_by_role("button", name="Video → sound").click()
    answered(page, 1)
    before = page.evaluate("document.querySelector('#chat video').currentTime")
    page.wait_for_timeout(400)
    assert page.evaluate("document.querySelector('#chat video').currentTime") != before
    page.evaluate("document.querySelector('#chat audio').play()")
    page.wait_for_timeout(500)
    assert page.evaluate("document.querySelector('#chat audio').currentTime") > 0


def test_words_are_written_while_they_come_and_a_later_turn_knows_the_earlier(page: Page) -> None:
    send(page, "Draw a small red circle at the left.")
    answered(page, 1)
    assert "red" in said(page, "bot")
    send(page, "Make it blue.")
    media = answered(page, 2)
    assert "small blue circle" in said(page, "bot")
    assert sum(medium["tag"] == "img" for medium in media) >= 2


@pytest.mark.parametrize("modality", Modality)
def test_a_file_of_each_modality_can_be_shown(page: Page, modality: Modality, tmp_path: Path) -> None:
    conversation = converse(f"describe_{modality}", 3, 0)
    [subject] = conversation.media.values()
    file = tmp_path / f"mine.{SUFFIX[modality]}"
    file.write_bytes(encode(render(subject, 0)).data)
    send(page, "What is this?", file)
    media = answered(page, 1)
    assert [medium["tag"] for medium in media if medium["user"]] == [TAG[modality]]
    assert len(said(page, "bot")) > 10


DROP = """(box, [name, base64]) => { const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, {type: 'image/png'}));
  for (const kind of ['dragenter', 'dragover', 'drop'])
    box.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})); }"""
PASTE = """(box, [name, base64]) => { const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, {type: 'image/png'}));
  box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})); }"""


@pytest.mark.parametrize("script", [DROP, PASTE], ids=["dropped", "pasted"])
def test_a_picture_can_be_dropped_or_pasted(page: Page, script: str) -> None:
    conversation = converse("describe_image", 3, 0)
    picture = encode(render(conversation.media["0"], 0)).data
    page.locator("#box textarea").evaluate(script, ["mine.png", base64.b64encode(picture).decode()])
    expect(page.locator("#box .thumbnail-item")).to_have_count(1)
    send(page, "What is this?")
    assert [medium["tag"] for medium in answered(page, 1) if medium["user"]] == ["img"]
    assert len(said(page, "bot")) > 10


def test_what_the_microphone_hears_can_be_sent(page: Page) -> None:
    page.context.grant_permissions(["microphone"])
    page.locator("#box .microphone-button").click()
    page.locator("#box button.record-button").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop recording").click()
    # A player that goes while it still loads the recording ends that with an error in the page.
    expect(page.locator("#box .minimal-audio-player .timestamp")).not_to_have_text("0:00")
    page.get_by_role("button", name="Attach audio").click()
    expect(page.locator("#box .thumbnail-item")).to_have_count(1)
    send(page, "What do you hear?")
    [sound] = [medium for medium in answered(page, 1) if medium["user"]]
    assert sound["tag"] == "audio"
    assert sound["seconds"] > 0.5


def test_a_reload_keeps_the_conversation_and_clearing_ends_it(page: Page) -> None:
    page.get_by_role("button", name="Picture → sound").click()
    before = answered(page, 1)
    words = said(page, "user"), said(page, "bot")
    page.reload()
    # They come one after another.
    expect(page.locator("#chat .medium")).to_have_count(len(before), timeout=60_000)
    assert answered(page, 1) == before
    assert (said(page, "user"), said(page, "bot")) == words
    page.get_by_role("button", name="Clear", exact=True).first.click()
    expect(page.locator("#chat .medium")).to_have_count(0)
    deadline = time.monotonic() + 30
    while page.request.get(page.url.rstrip("/") + before[0]["source"]).status != 404:
        assert time.monotonic() < deadline, "a medium that was cleared is still served"
        page.wait_for_timeout(200)
    page.reload()
    page.wait_for_timeout(1500)
    expect(page.locator("#chat .medium")).to_have_count(0)


def test_a_reply_can_be_made_again_and_a_question_edited(page: Page) -> None:
    send(page, "Draw a small red circle at the left.")
    first = answered(page, 1)
    page.locator("#chat button[aria-label*='etry']").last.click()
    deadline = time.monotonic() + 60
    # Between the two, the page has no media.
    while (again := answered(page, 1)) in ([], first) and time.monotonic() < deadline:
        page.wait_for_timeout(200)
    assert [medium["tag"] for medium in again] == [medium["tag"] for medium in first]
    assert again[0]["source"] != first[0]["source"]

    page.locator("#chat button[aria-label*='dit']").first.click()
    page.locator("#chat .user textarea, #chat textarea").first.fill("Draw a big green square at the top.")
    page.locator("#chat button[aria-label*='ubmit'], #chat button[aria-label*='onfirm']").first.click()
    page.wait_for_function("() => document.querySelector('#chat').innerText.split('green').length > 2")
    answered(page, 1)
    assert "red" not in said(page, "user")


def test_a_conversation_can_be_downloaded(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Picture → sound").click()
    media = answered(page, 1)
    with page.expect_download() as download:
        page.locator("#download").click()
    download.value.save_as(tmp_path / "conversation.zip")
    with zipfile.ZipFile(tmp_path / "conversation.zip") as archive:
        names = archive.namelist()
        turns = json.loads(archive.read("conversation.json"))["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert sorted(names) == sorted(["conversation.json", *(medium["source"].lstrip("/") for medium in media)])


def test_a_file_that_is_no_medium_is_refused_and_nothing_is_sent(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(b"MZ this is a program")
    send(page, "Look!", file)
    expect(page.get_by_text(re.compile("picture.png: unreadable"))).to_be_visible()
    expect(page.locator("#chat .message.user, #chat .user.message")).to_have_count(0)
    assert page.locator("#box textarea").input_value() == "Look!"


def test_two_visitors_at_once_never_see_each_others_media(browser: Browser, chat: ChatServer, tmp_path: Path) -> None:
    rng, pages, contexts = np.random.default_rng(0), list[Page](), list[BrowserContext]()
    for number in range(2):
        page = visit(browser, chat)
        file = tmp_path / f"{number}.png"
        file.write_bytes(encode(Image(pixels=rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))).data)
        page.locator("#box input[type=file]").set_input_files(str(file))
        pages.append(page)
        contexts.append(page.context)
    uploads = [page.locator("#box img").first.get_attribute("src") or "" for page in pages]
    assert all("/gradio_api/file=" in upload for upload in uploads)
    for own, context in zip(uploads, contexts, strict=True):
        for upload in uploads:
            assert (context.request.get(upload).status == 200) == (upload == own)
    for page in pages:
        page.locator("#box textarea").fill("What is this?")
        page.locator("#box .submit-button").click()
    sources = [{medium["source"] for medium in answered(page, 1)} for page in pages]
    assert not sources[0] & sources[1]
    for place, context in enumerate(contexts):
        for source in sources[place]:
            assert context.request.get(chat.url + source).status == 200
        for source in sources[1 - place]:
            assert context.request.get(chat.url + source).status == 404
    # What was uploaded is gone once it is sent.
    for upload, context in zip(uploads, contexts, strict=True):
        assert context.request.get(upload).status == 404
        context.close()


def test_no_path_of_a_request_leads_to_another_file_or_to_what_others_did(page: Page, chat: ChatServer) -> None:
    for path in (
        "/media/..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file%3D/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        f"/gradio_api/file={Path(__file__)}",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/run-history/records",
        "/gradio_api/vibe-code",
        "/gradio_api/deep_link?session_hash=a",
        "/runs",
        "/monitoring",
    ):
        assert page.request.get(chat.url + path).status in (403, 404), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone(browser: Browser, chat: ChatServer, scheme: Any) -> None:
    page = visit(browser, chat, width=390, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Picture → sound").click()
    answered(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in CASES:
        assert page.get_by_role("button", name=name).bounding_box()["height"] >= 28  # type: ignore[index]
    text, behind = page.evaluate(
        """() => { const m = document.querySelector('#chat .bot.message, #chat .message.bot');
        let b = m; while (b && /rgba\\(0, 0, 0, 0\\)/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;
        return [getComputedStyle(m).color, getComputedStyle(b).backgroundColor]; }"""
    )
    assert contrast(text, behind) >= 4.5
    page.context.close()


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours as CSS tells them."""

    def luminance(colour: str) -> float:
        channels = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)
