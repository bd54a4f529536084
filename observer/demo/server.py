"""Serves the page from this machine to itself: no other site may read it, write to it, or be loaded by it."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from observer.errors import ObserverError

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

STYLE = Path(__file__).with_name("page.css")
FRAME_STYLE = """<style>
.gradio-container .app { max-width: 1400px; margin: 0 auto; }
@media (max-width: 800px) { .gradio-container .app { padding: 16px 12px !important; } }
</style>"""
"""Of what is around the page: gradio confines `page.css` to what is within."""
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # gradio compiles its templates in the browser
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "frame-src 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
        "base-uri 'self'",
    ]
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def check_gradio() -> None:
    """Raises ObserverError where gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ObserverError("the page is made with gradio, which is not installed: pip install -e '.[demo]'")


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises ObserverError for an address that is not ours, or is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ObserverError(f"{host}:{port}: {reason}; give another --port (0 takes a free one) or --host") from error


def serve(page: gr.Blocks, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(app_of(page, host), log_level="warning", timeout_graceful_shutdown=1)
    print(f"the page is at {url_of(host, port)} (Ctrl-C ends it)", flush=True)
    if not is_loopback(host):
        print("anyone who can reach this machine can use it, and read the memory", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        print()


def app_of(page: gr.Blocks, host: str) -> ASGIApp:
    """The page as a web application. Its fonts are those of the system: gradio's own come from elsewhere."""
    from fastapi import FastAPI
    from gradio.routes import mount_gradio_app
    from gradio.themes import Base, Font

    font = [Font("system-ui"), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("monospace")]
    app = mount_gradio_app(
        FastAPI(openapi_url=None),
        page.queue(default_concurrency_limit=1, max_size=20, api_open=False),
        path="/",
        theme=Base(primary_hue="teal", neutral_hue="slate", font=font, font_mono=mono),
        css=STYLE.read_text(encoding="utf-8"),
        head=FRAME_STYLE,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
        max_file_size=1,
    )
    return Guard(app, is_local=is_loopback(host))


class Guard:
    """Refuses what comes from another site's page, and tells the browser to load nothing from other hosts.

    With `is_local` it also refuses names that are not this machine's: a site can give its own name our address.
    """

    def __init__(self, app: ASGIApp, is_local: bool) -> None:
        self.app = app
        self.is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if fault := self.fault_of(headers.get("host", ""), headers.get("origin")):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse(fault, status_code=403)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        await self.app(scope, receive, send_guarded)

    def fault_of(self, host: str, origin: str | None) -> str:
        """Why a request is refused, or nothing."""
        try:
            name, asker = urlsplit(f"//{host}").hostname or "", urlsplit(origin or f"//{host}").netloc
        except ValueError:
            return "not an address"
        if self.is_local and not is_loopback(name):
            return "this page is served to this machine alone"
        return "" if asker == host else "another site's page may not use this one"


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, out of reach for others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
