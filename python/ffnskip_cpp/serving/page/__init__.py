"""The page: a conversation in which every token shows what it skipped. Plain files, read once, which refer to nothing
but the server that they came from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

__all__ = ["HEADERS", "PageFile", "page_files"]

# Scripts, styles and connections of this server alone, nothing within the HTML itself, and no frame around it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is sent."""

    media_type: str
    body: bytes


def page_files() -> dict[str, PageFile]:
    """The whole page, by path on the server: "/" and what it refers to. Needs no API key, and asks for it."""
    found = {}
    for file in resources.files(__name__).iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _MEDIA_TYPES:
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = PageFile(_MEDIA_TYPES[suffix], file.read_bytes())
    return found
