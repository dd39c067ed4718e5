"""The page's files: that they are whole, refer to nothing outside, and can be read by everybody. In a browser:
tools/check_page.py."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from ffnskip_cpp.serving.page import HEADERS, page_files

FILES = page_files()
TEXTS = {path: file.body.decode() for path, file in FILES.items()}
HTML = TEXTS["/"]
SCRIPTS = {path: text for path, text in TEXTS.items() if path.endswith(".js")}
CODE = "\n".join(SCRIPTS.values())
VOID = {"img", "input", "link", "meta"}
NAMES_OTHERS = {"for", "aria-controls", "aria-describedby", "aria-labelledby"}


class Elements(HTMLParser):
    """All elements: (tag, attributes, the tags around it), and whether tags close in the order in which they opened."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"{self.getpos()}: an attribute twice"
        self.found.append((tag, {name: value or "" for name, value in attributes}, tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"{self.getpos()}: </{tag}> closes another"


ELEMENTS = Elements(HTML).found
IDS = [attributes["id"] for _, attributes, _ in ELEMENTS if "id" in attributes]
CLASSES = {name for _, attributes, _ in ELEMENTS for name in attributes.get("class", "").split()}


def test_ids_are_unique_and_whatever_names_one_names_one_that_exists():
    assert len(IDS) == len(set(IDS))
    named = [
        name for _, attributes, _ in ELEMENTS for key in NAMES_OTHERS for name in attributes.get(key, "").split()
    ] + re.findall(r'(?:element|template)\("([^"]+)"\)', CODE)
    assert len(named) > 50
    assert set(named) <= set(IDS)


def test_classes_that_scripts_look_for_exist():
    looked_for = set(re.findall(r'querySelector(?:All)?\("\.([\w-]+)', CODE))
    assert looked_for
    assert looked_for <= CLASSES


def test_every_control_has_a_label():
    labels = {attributes["for"] for tag, attributes, _ in ELEMENTS if tag == "label"}
    controls = [attributes for tag, attributes, _ in ELEMENTS if tag in ("input", "select", "textarea")]
    assert len(controls) >= 6
    assert {attributes["id"] for attributes in controls} <= labels
    for tag, attributes, _ in ELEMENTS:
        assert tag != "img" or "alt" in attributes
        assert tag != "canvas" or attributes["aria-label"]


def test_buttons_say_what_they_are_of():
    assert all(attributes.get("type") in ("button", "submit") for tag, attributes, _ in ELEMENTS if tag == "button")


def test_nothing_is_within_the_html_that_the_policy_forbids():
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert not [tag for tag, attributes, _ in ELEMENTS if tag == "style" or "style" in attributes]
    assert not [tag for tag, attributes, _ in ELEMENTS if tag == "script" and "src" not in attributes]
    assert not [name for _, attributes, _ in ELEMENTS for name in attributes if name.startswith("on")]


def test_files_refer_to_each_other_and_to_nothing_else():
    addresses = [attributes[key] for _, attributes, _ in ELEMENTS for key in ("src", "href") if key in attributes]
    addresses += re.findall(r'^import .* from "\./(.+)";$', CODE, re.M)
    addresses += re.findall(r"url\(['\"]?([^'\")]+)", TEXTS["/style.css"])
    assert len(addresses) > 10
    assert {f"/{address}" for address in addresses if not address.startswith("#")} == set(FILES) - {"/"}
    assert {address[1:] for address in addresses if address.startswith("#")} <= set(IDS)
    for path, text in TEXTS.items():
        assert re.findall(r"\w+://[^\"'\s]+", text.replace("http://www.w3.org/2000/svg", "")) == [], path


def test_what_is_imported_is_exported():
    export = re.compile(r"^export [\w* ]*?(\w+)(?: =|\(| \{| extends)", re.M)
    exported = {path: set(export.findall(text)) for path, text in SCRIPTS.items()}
    for path, text in SCRIPTS.items():
        for names, source in re.findall(r'^import \{ (.+) \} from "\.(/.+)";$', text, re.M):
            names = set(names.split(", "))
            assert names <= exported[source], path
            body = re.sub(r"^import .*$", "", text, flags=re.M)
            assert {name for name in names if re.search(rf"\b{name}\b", body)} == names, f"{path}: imported for nothing"


def test_text_never_becomes_markup():
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|parseFromString|document\.write|eval\(|Function\("
    assert re.findall(ways, CODE) == []


def test_nothing_but_the_page_is_served():
    assert {"/", "/app.js", "/style.css", "/icon.svg"} < set(FILES)
    assert not [path for path in FILES if path.endswith((".py", ".pyc", ".html")) or path.count("/") > 1]


def test_media_types_are_those_of_the_files():
    found = {path.rpartition(".")[2]: file.media_type.partition(";")[0] for path, file in FILES.items() if path != "/"}
    assert found == {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert FILES["/"].media_type == "text/html; charset=utf-8"


# ---- colours, by the formulas of WCAG 2 ----


def _colours(dark):
    style = TEXTS["/style.css"]
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 2
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[0]))
    return {**found, **dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[1]))} if dark else found


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def _contrast(one, other):
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_on_every_colour_that_it_is_on(dark):
    colours = _colours(dark)
    on = {
        "ink": ["page", "sheet", "asked", *(f"level-{level}" for level in range(1, 7))],
        "muted": ["page", "sheet"],
        "accent": ["page", "sheet"],
        "on-accent": ["accent"],
        "alarm": ["alarm-sheet"],
        "sheet": ["ink"],
    }
    for text, grounds in on.items():
        for ground in grounds:
            assert _contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_of_the_map_are_told_apart_by_lightness_alone(dark):
    colours = _colours(dark)
    for name in ("ffn", "attention", "difference"):
        assert _contrast(colours[name], colours["run"]) >= 1.5, name
    levels = [_luminance(colours[f"level-{level}"]) for level in range(1, 7)]
    assert levels == sorted(levels, reverse=not dark)
