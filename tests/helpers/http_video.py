"""HTTP server on this machine that sends an MJPEG stream, as a network camera does, or a file."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

_BOUNDARY = "frame"


@contextlib.contextmanager
def mjpeg_server(images: list[np.ndarray], endless: bool = False, port: int = 0) -> Iterator[str]:
    """Serve images, uint8 (h, w, 3) BGR, as one stream per request; yields its URL.

    Args:
        images: the frames, in this order.
        endless: repeat them until the client goes, or the block ends.
        port: of the server; 0: a free one.
    """
    parts = []
    for image in images:
        data = cv2.imencode(".jpg", image)[1].tobytes()
        head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        parts.append(head.encode() + data + b"\r\n")

    ended = threading.Event()

    def send(request: BaseHTTPRequestHandler) -> None:
        _head(request, f"multipart/x-mixed-replace;boundary={_BOUNDARY}")
        while True:
            for part in parts:
                request.wfile.write(part)
            if not endless or ended.is_set():
                break

    with _server(send, port) as address:
        try:
            yield f"{address}/camera"
        finally:
            ended.set()


@contextlib.contextmanager
def file_server(path: Path) -> Iterator[str]:
    """Serve one file; yields its URL."""
    data = path.read_bytes()

    def send(request: BaseHTTPRequestHandler) -> None:
        _head(request, "application/octet-stream", len(data))
        request.wfile.write(data)

    with _server(send) as address:
        yield f"{address}/{path.name}"


def _head(request: BaseHTTPRequestHandler, kind: str, length: int | None = None) -> None:
    request.send_response(200)
    request.send_header("Content-Type", kind)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.end_headers()


@contextlib.contextmanager
def _server(send, port: int = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has gone
                send(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
