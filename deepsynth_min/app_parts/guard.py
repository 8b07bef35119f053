"""Who may ask the page, for how much, and whose files and answers are whose.

In: each request, before Gradio sees it. Out: the same request, or a refusal in one line.

The one idea: Gradio knows a browser by a word its script makes up, and a file by its path. Here
both belong to the cookie that they came with: no other may name them. No route gives out a file.
"""

import json
import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import one_line

MOST_UPLOAD, MOST_JSON, MOST_KEPT = 32 << 20, 4 << 20, 10_000  # bytes; names that are remembered
OPEN = re.compile(
    r"/((login|config|theme\.css|favicon\.ico|manifest\.json)?|(assets|static)/.*|"
    r"gradio_api/(startup-events|app_id))"
)
OWN = re.compile(r"/gradio_api/(upload|upload_progress|queue/join|queue/data|cancel|heartbeat/\w+)")
SCHEMES = "http://", "https://"  # the latter of what stands before this page
ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# eval: Gradio's frontend makes functions of its templates, in which there is no data
ALWAYS["Content-Security-Policy"] = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware around Gradio."""

    def __init__(self, app: ASGIApp):
        self.app, self.cookies = app, dict[str, None]()
        self.owners: dict[str, set[str]] = {}  # of sessions and files: the cookies they came with

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end; Gradio has no WebSockets
            return await self.app(scope, receive, send)
        request, path, new = Request(scope, receive), scope["path"], {}
        cookie = request.cookies.get("session", "")
        if path == "/" and cookie not in self.cookies:
            cookie = secrets.token_urlsafe(32)
            self.cookies[cookie] = None
            new = {"Set-Cookie": f"session={cookie}; HttpOnly; SameSite=Lax; Path=/"}
        for kept in (self.cookies, self.owners):
            while len(kept) > MOST_KEPT:
                kept.pop(next(iter(kept)))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(ALWAYS | new)
            elif path.endswith("/upload") and message.get("body", b"").startswith(b"["):
                for file in json.loads(message["body"]):
                    self.owners.setdefault(file, set()).add(cookie)
            await send(message)

        try:
            body = await self.checked(request, cookie)
        except HTTPException as error:
            refused = JSONResponse({"detail": error.detail}, error.status_code)
            return await refused(scope, receive, answer)
        read = iter([{"type": "http.request", "body": body}] if body else [])

        async def again() -> Message:
            return next(read, None) or await receive()

        await self.app(scope, again, answer)

    async def checked(self, request: Request, cookie: str) -> bytes:
        """The request's JSON, if it is one. Raises HTTPException."""
        path, head, body, files = request.url.path, request.headers, b"", []
        if head.get("origin") not in (None, *(f"{s}{head.get('host')}" for s in SCHEMES)):
            raise HTTPException(403, f"origin {one_line(head['origin'], 80)}: not this page")
        if OPEN.fullmatch(path) and "deep_link" not in request.query_params:
            return body
        if not OWN.fullmatch(path):
            raise HTTPException(404, f"{one_line(path, 80)}: there is no such thing here")
        if cookie not in self.cookies:
            raise HTTPException(403, "no session of this page; load it again")
        name = request.query_params.get("session_hash") or path.rpartition("/heartbeat/")[2]
        if request.method == "POST":
            is_file, length = path.endswith("/upload"), head.get("content-length", "")
            if not length.isdecimal():
                raise HTTPException(411, "no Content-Length")
            most = MOST_UPLOAD if is_file else MOST_JSON
            if int(length) > most + (1 << 12) * is_file:  # around the file in its form
                raise HTTPException(413, f"{int(length):,} bytes, where {most:,} are taken at most")
            if is_file:
                return body
            try:
                inner = await request.body()
                given = json.loads(inner, object_hook=lambda d: files.append(d.get("path")) or d)
                name, body = given["session_hash"], json.dumps(given).encode()  # as read here
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                raise HTTPException(400, f"not an object ({one_line(error, 80)})") from None
        if any(cookie not in self.owners.get(str(file), ()) for file in files if file is not None):
            raise HTTPException(403, "this file is not of this session; choose it again")
        if cookie not in self.owners.setdefault(f"session {name}", {cookie}):
            raise HTTPException(403, "this session is another browser's")
        return body
