"""That the server's page does in a real browser what it promises; and pictures of it.

    pip install selenium && apt-get install chromium chromium-driver
    python tools/check_page.py                                    # with a made-up server, tools/page_server.py
    python tools/check_page.py --url http://127.0.0.1:8080/       # what can be checked with any: `ffnskip serve MODEL`
    python tools/check_page.py --pictures DIR                     # light, dark and narrow, to be looked at

Prints a line for each check; ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from browser import Page, chromium, same
from page_server import MARKUP, TEXT, WARM_UP, PageServer, serving, text_of, tokens_of

# ---- with any server ----

STORY = "Write a short story about a lighthouse."


def _choices_of_the_api(url: str) -> list[dict[str, Any]]:
    """What the page asks for, asked for without it."""
    request = {
        "model": json.load(urllib.request.urlopen(f"{url}v1/skip"))["model"],
        "messages": [{"role": "user", "content": STORY}],
        "temperature": 0, "max_tokens": 48, "seed": 0, "stream": True, "skip": {"trace": True},
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}v1/chat/completions", json.dumps(request).encode(), headers)
    lines = urllib.request.urlopen(asked).read().decode().splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return [choice for chunk in chunks for choice in chunk["choices"]]


def text_is_that_of_the_api(driver: Chrome, url: str) -> None:
    _choices_of_the_api(url)  # so that both of the following find the same in the memory, and round the same
    with Page(driver, url).connected() as page:
        page.one("#max-tokens").clear()
        page.one("#max-tokens").send_keys("48")
        page.ask(STORY)
        choices = _choices_of_the_api(url)
        same(page.answer(), "".join(choice["delta"].get("content") or "" for choice in choices))
        traced = [choice["skip"] for choice in choices if "layers" in choice.get("skip", {})]
        page.one(".map summary").click()
        page.wait(lambda: page.all(".map tbody tr"))
        rows = [[cell.text for cell in row.find_elements(By.XPATH, "*")] for row in page.all(".map tbody tr")]
        same(len(rows), len(traced))
        for row, skip in zip(rows, traced):
            same(_layers(row[2]), skip["layers"])
            same(_layers(row[3]), skip["attention"])
        same(page.complaints(), [])


def _layers(cell: str) -> list[int]:
    """ "3, 5–7" is 3, 5, 6, 7."""
    if not cell[0].isdigit():
        return []
    ends = [part.split("–") for part in cell.split(", ")]
    return [layer for end in ends for layer in range(int(end[0]), int(end[-1]) + 1)]


def two_answers_come_side_by_side(driver: Chrome, url: str) -> None:
    with Page(driver, url).connected() as page:
        page.one("#compare").click()
        Select(page.one("#policy")).select_by_visible_text("ffn_skip")
        page.ask("Write a short story about a lighthouse.")
        same([name.text for name in page.all(".answer .name")], ["Dense", "Skipping"])
        left, right = (answer.rect for answer in page.all(".answer"))
        assert left["x"] + left["width"] <= right["x"], "they are not beside each other"
        one, other = page.tokens(0), page.tokens(1)
        parts = [i for i, texts in enumerate(zip(one, other)) if texts[0] != texts[1]][:1]
        if parts or one == other:
            same([page.tokens(i, ".difference") for i in (0, 1)], [[t[i] for i in parts] for t in (one, other)])
        assert "times the speed" in page.one(".verdict").text
        same([cell.text for cell in page.all("#statistics tr:first-child th")], ["Dense", "Skipping"])


def everything_has_a_name(driver: Chrome, url: str) -> None:
    with Page(driver, url).connected() as page:
        page.ask("Hello")
        page.one(".map summary").click()
        tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = {"button", "textbox", "slider", "checkbox", "combobox", "spinbutton", "table", "region", "link", "img"}
        named = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
        assert len(named) > 10
        same([node["role"]["value"] for node in named if not node.get("name", {}).get("value")], [])


# ---- with the made-up one ----


def tokens_are_coloured(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        page.ask("A story, please")
        tokens = tokens_of(text_of(server.requests[-1]))
        same(page.answer(), "".join(tokens))
        same(len(page.all(".turn .token")), len(tokens))
        same(len(page.all(".turn .token.full")), WARM_UP)
        coloured = page.all(".turn .token:not(.full):not(.level-0)")
        assert len(coloured) > len(tokens) / 2
        ActionChains(page.driver).move_to_element(coloured[3]).perform()
        page.wait(lambda: page.one("#tip").is_displayed())
        assert "of 30 FFN blocks left out: layers" in page.one("#tip").text
        assert "current" in coloured[3].get_attribute("class")


def the_difference_is_marked(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        page.one("#compare").click()
        page.ask("A story, please")
        dense, skipping = (tokens_of(text_of(request)) for request in server.requests[-2:])
        same(page.answer("0"), TEXT)
        page.one(".map summary").click()
        page.wait(lambda: len(page.all(".map tbody tr")) == len(skipping))
        parts = next(i for i, (one, other) in enumerate(zip(dense, skipping)) if one != other)
        assert f"part at token {parts + 1}: “{dense[parts].strip()}”" in page.one(".verdict").text
        same([token.text for token in page.all(".difference")], [dense[parts].strip(), skipping[parts].strip()])
        page.ask("Go on")
        same([message["role"] for message in server.requests[-1]["messages"]], ["user", "assistant", "user"])
        same(server.requests[-1]["messages"][1]["content"], "".join(skipping))


def settings_reach_the_server(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        Select(page.one("#policy")).select_by_visible_text("ffn_skip")
        same(
            page.one("#setting-warm_up_index").get_attribute("value"), str(WARM_UP)
        )  # the server's own, not the default
        page.one("#setting-skip_ratio").send_keys(Keys.ARROW_RIGHT * 3)
        same(page.one("output[for=setting-skip_ratio]").text, "28 %")
        page.ask("A story, please")
        sent = server.requests[-1]["skip"]
        wanted = {
            "policy": "ffn_skip",
            "skip_ratio": 0.28,
            "sim_threshold": 0.95,
            "warm_up_index": WARM_UP,
            "trace": True,
        }
        same(sent, wanted)
        page.one("#setting-warm_up_index").clear()
        page.type("Not with this" + Keys.ENTER)
        same(len(page.all(".turn")), 1)


def the_keyboard_is_enough(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        keys = ActionChains(page.driver)
        focused = "document.activeElement.id"
        visited = []
        for _ in range(12):
            keys.send_keys(Keys.TAB).perform()
            visited.append(page.run(f"{focused} || document.activeElement.className"))
        order = [visited.index(place) for place in ("jump", "new-chat", "chat", "example", "prompt", "send", "policy")]
        same(order, sorted(order))
        page.type("one" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "two")
        same(page.one("#prompt").get_attribute("value"), "one\ntwo")
        page.type(Keys.ENTER)
        page.done()
        same(server.requests[-1]["messages"][0]["content"], "one\ntwo")
        same(page.run(focused), "prompt")
        page.run("document.querySelector('.map canvas').focus()")
        keys.send_keys(Keys.END + Keys.ARROW_LEFT).perform()
        n = len(page.all(".turn .token"))
        same(page.one(".map canvas").get_attribute("aria-valuenow"), str(n - 1))
        assert page.one(".map canvas").get_attribute("aria-valuetext").startswith(f"{n - 1} “")
        same(page.all(".turn .token").index(page.one(".token.current")), n - 2)


def escape_stops(driver: Chrome, server: PageServer) -> None:
    with slow(server), Page(driver, server.url).connected() as page:
        page.begin("A story, please")
        page.wait(lambda: len(page.all(".turn .token")) > 5)
        left = server.n_left
        ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
        page.done()
        same(page.one(".answer .end").text, "Stopped.")
        page.wait(lambda: server.n_left > left)
        assert TEXT.startswith(page.answer()) and page.answer()


@contextlib.contextmanager
def slow(server: PageServer) -> Iterator[None]:
    before, server.seconds = server.seconds, 0.1
    try:
        yield
    finally:
        server.seconds = before


def a_full_queue_is_told(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        page.ask("Are you busy?")
        same(page.one("#problem-text").text, "as many requests wait as may. Try again in 2 s.")
        same(page.one(".answer .end").text, "No answer.")
        page.one("#retry").click()
        page.wait(lambda: page.all(".turn .token"))
        page.done()
        same([len(page.all(".turn")), page.one("#problem").is_displayed()], [1, False])


def a_cut_answer_stays(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        page.ask("This will be cut")
        same(page.answer(), "".join(tokens_of(TEXT)[:9]))
        same(page.one(".answer .end").text, "Cut off.")
        assert page.one("#problem").is_displayed()


def a_server_that_is_gone_is_told(driver: Chrome, _: PageServer) -> None:
    with serving() as other:
        page = Page(driver, other.url).connected()
    with page:
        other.server_close()
        page.ask("Are you there?")
        same(page.one("#problem-text").text, "The server does not answer. Is it still running?")


def a_key_is_asked_for(driver: Chrome, _: PageServer) -> None:
    with serving(api_key="sesame") as other, Page(driver, other.url) as page:
        page.wait(lambda: page.one("#key").is_displayed())
        page.one("#key").send_keys("wrong" + Keys.ENTER)
        page.wait(lambda: page.one("#key").get_attribute("value") == "")
        page.wait(lambda: page.one("#key").is_displayed())
        page.one("#key").send_keys("sesame" + Keys.ENTER)
        page.connected().ask("A story, please")
        same(page.answer(), text_of(other.requests[-1]))
        same(page.run("[localStorage.length, sessionStorage.length, document.cookie]"), [0, 1, ""])


def text_is_never_markup(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url).connected() as page:
        page.ask("Some markup")
        same(page.answer(), MARKUP)
        same([page.driver.title, len(page.all(".turn img, .turn b, .turn script"))], ["ffnskip", 0])
        same(page.complaints(), [])


def it_fits_360_pixels(driver: Chrome, server: PageServer) -> None:
    with Page(driver, server.url, 360, 740).connected() as page:
        page.one("#panel-button").click()
        page.one("#compare").click()
        page.one("#seed").clear()
        ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
        page.type("A story, please" + Keys.ENTER)
        assert page.one("#seed").is_displayed(), "what is wrong is out of sight"
        page.one("#seed").send_keys("0" + Keys.ESCAPE)
        page.one("#prompt").clear()
        page.ask("A story, please")
        same(page.run("document.documentElement.scrollWidth"), 360)
        same(
            page.run("document.querySelector('#chat').scrollWidth"),
            page.run("document.querySelector('#chat').clientWidth"),
        )
        dense, skipping = (answer.rect for answer in page.all(".answer"))
        assert dense["y"] + dense["height"] <= skipping["y"], "they are not below each other"


def media_are_heeded(driver: Chrome, server: PageServer) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    moves = "getComputedStyle(document.querySelector('.answer .text'), '::after').animationName"
    with slow(server), Page(driver, server.url).connected() as page:
        light = page.run(background)
        page.begin("A story, please")
        same(page.run(moves), "wait")
    with slow(server), Page(driver, server.url, color_scheme="dark", reduced_motion="reduce").connected() as page:
        assert page.run(background) != light
        page.begin("A story, please")
        same(page.run(moves), "none")


ANY = [text_is_that_of_the_api, two_answers_come_side_by_side, everything_has_a_name]
MADE_UP = [
    tokens_are_coloured, the_difference_is_marked, settings_reach_the_server, the_keyboard_is_enough, escape_stops,
    a_full_queue_is_told, a_cut_answer_stays, a_server_that_is_gone_is_told, a_key_is_asked_for, text_is_never_markup,
    it_fits_360_pixels, media_are_heeded,
]  # fmt: skip


def take_pictures(driver: Chrome, url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height), media in (
        ("light", (1280, 900), {}),
        ("dark", (1280, 900), {"color_scheme": "dark"}),
        ("narrow", (360, 740), {}),
    ):
        with Page(driver, url, width, height, **media).connected() as page:
            page.picture(folder / f"{name}-empty.png")
            page.ask("Write a short story about a lighthouse.")
            page.picture(folder / f"{name}-answer.png")
            page.run("document.querySelector('#new-chat').click()")
            page.run("document.querySelector('#compare').click()")
            page.ask("Write a short story about a lighthouse.")
            token = page.all(".answer:last-child .token")[30]
            ActionChains(page.driver).scroll_to_element(token).move_to_element(token).perform()
            page.picture(folder / f"{name}-compared.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="server to check with, instead of the made-up one")
    parser.add_argument("--pictures", type=Path, help="folder for pictures, which are taken in place of the checks")
    args = parser.parse_args()
    with serving() as server, chromium() as driver:
        url = args.url or server.url
        if args.pictures:
            take_pictures(driver, url, args.pictures)
            return 0
        checks = [(check, url) for check in ANY] + [(check, server) for check in ([] if args.url else MADE_UP)]
        failed = [check.__name__ for check, subject in checks if not _passes(check, driver, subject)]
    return 1 if failed else 0


def _passes(check: Callable[[Chrome, Any], None], driver: Chrome, subject: Any) -> bool:
    began = time.monotonic()
    try:
        check(driver, subject)
    except Exception:  # of any kind: the next check is made all the same
        traceback.print_exc()
        print(f"FAILED  {check.__name__}", flush=True)
        return False
    print(f"ok      {check.__name__}  {time.monotonic() - began:.1f} s", flush=True)
    return True


if __name__ == "__main__":
    raise SystemExit(main())
