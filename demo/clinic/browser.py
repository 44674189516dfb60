"""Chromium as the screenshots were taken with: without a screen or a GPU, and without a way out of this machine."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, Playwright

SCREEN = (1280, 800)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a GPU (swiftshader), and nothing that calls out or updates. Every name and address but 127.0.0.1 is
# unknown to the network stack, which holds for workers too; playwright's routing would switch the HTTP cache off.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--font-render-hinting=none",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
]
FORGOTTEN = "cookies,local_storage,indexeddb,cache_storage,service_workers"


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """Chromium on a profile on disk: with its code cache OHIF starts in a third of the time.

    Downloads are refused. `outside_requests` is given each address beyond 127.0.0.1 that a page asks for, web sockets
    too; none of them is reached.
    """

    def __init__(self, playwright: Playwright, profile: Path, outside_requests: list[str]):
        width, height = SCREEN
        self.outside_requests = outside_requests
        self.context: BrowserContext = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=find_chromium(),
            args=CHROMIUM_FLAGS,
            accept_downloads=False,
            viewport={"width": width, "height": height},
            locale="en-US",
            timezone_id="UTC",
            reduced_motion="reduce",
        )
        self.context.on("request", lambda request: self._note(request.url))
        self.context.on("page", lambda page: page.on("websocket", lambda socket: self._note(socket.url)))

    def open_page(self, origins: list[str]) -> Page:
        """Open a page that remembers nothing of the tasks before it, and close theirs."""
        for opened in self.context.pages[1:]:  # the first is the empty page that keeps the browser open
            opened.close()
        page = self.context.new_page()
        session = self.context.new_cdp_session(page)
        for origin in origins:
            session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": FORGOTTEN})
        page.set_default_timeout(15_000)
        return page

    def close(self) -> None:
        self.context.close()

    def _note(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme in ("http", "https", "ws", "wss", "ftp") and address.hostname != "127.0.0.1":
            self.outside_requests.append(url)
