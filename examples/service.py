"""A service that denoises images over HTTP: what it takes to keep a dynamic filter in a process of its own.

An image comes in, and the same image comes out, smoothed but for its edges: each pixel becomes the mean of
its neighbours, weighted by how near they are and how much they look like it (a bilateral filter). The weights
are another filter at each pixel, which `dynarray.local_filter2d` applies.

    POST /denoise?strength=0.1&radius=2     body: an image as a .npy file, float32, (H, W) or (C, H, W)
    GET  /health                            numbers of requests, waiting ones, and compilations, as JSON

What a service needs beside its filter is here in a few lines each:

- Kernels compile when they are first called, which takes seconds. `dyn.warm_up` does that before the first
  request is taken, and the numbers of /health show that no request had to wait for a compilation.
- Eight threads filter, and so many requests may wait. Whoever comes then is told to come back, with 503: a
  queue without a bound would let everybody wait longer and longer.
- A request that makes no sense is answered with 400 and the reason, before anything is computed or allocated.
- SIGTERM stops it: what was accepted is answered, whoever comes meanwhile gets 503, and it exits with 0.

Standard library, NumPy and dynarray. HTTP is that of `http.server`: behind a proxy, not on the open Internet.

    python examples/service.py --port 8000
    curl --data-binary @noisy.npy "http://127.0.0.1:8000/denoise?strength=0.2" --output clean.npy
"""

import argparse
import io
import json
import logging
import math
import queue
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

import dynarray as dyn

MOST_BYTES = 64 * 2**20  # of a request
MOST_CHANNELS, MOST_RADIUS = 4, 4
PATIENCE = 20  # seconds for a client to send or to take the next bytes


# ---------------------------------------------------------------------------------------------------------
# The filter


def weights_of(x: np.ndarray, radius: int, strength: float) -> np.ndarray:
    """The bilateral filter of each pixel of x (1, C, H, W): (1, 1, k, k, H, W), zero outside the image."""
    _, _, height, width = x.shape
    reach, size = np.arange(-radius, radius + 1), 2 * radius + 1
    weight = np.zeros((1, 1, size, size, height, width), x.dtype)
    for a, dy in enumerate(reach):
        for b, dx in enumerate(reach):
            rows, columns = (slice(max(0, -d), max(0, n - max(0, d))) for d, n in ((dy, height), (dx, width)))
            there = np.s_[:, :, rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
            difference = np.square(x[there] - x[:, :, rows, columns]).sum(axis=1) / (2 * strength**2)
            distance = (dy**2 + dx**2) / (2 * max(radius, 1) ** 2)
            weight[0, 0, a, b, rows, columns] = np.exp(-difference[0] - distance)
    return weight / weight.sum(axis=(2, 3), keepdims=True)


def denoise(image: np.ndarray, strength: float, radius: int) -> np.ndarray:
    """The image, (C, H, W) or (H, W), smoothed where neighbours differ by less than about `strength`."""
    x = image.reshape(1, -1, *image.shape[-2:])
    return dyn.local_filter2d(x, weights_of(x, radius, np.float32(strength))).reshape(image.shape)


# ---------------------------------------------------------------------------------------------------------
# Requests


class RefusedError(Exception):
    """A request that is answered with an error: status and reason."""


def read_image(body: bytes) -> np.ndarray:
    """The array of a .npy file; its header is believed only as far as the bytes that came with it go."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read[version](file)
    except Exception as error:  # headers are parsed as Python, which fails in many ways
        raise RefusedError(400, f"the body must be a .npy file: {error}") from None
    if dtype != np.float32 or by_columns:
        raise RefusedError(400, f"the image must be float32 in C order, got {dtype}")
    if len(shape) not in (2, 3) or min(shape) < 1 or (len(shape) == 3 and shape[0] > MOST_CHANNELS):
        raise RefusedError(400, f"the image must be (H, W) or (C, H, W), C <= {MOST_CHANNELS}, got {shape}")
    if len(body) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise RefusedError(400, f"{len(body) - file.tell()} bytes of data are not an image of {shape}")
    return np.frombuffer(body, dtype, offset=file.tell()).reshape(shape)


def read_parameters(query: str) -> tuple[float, int]:
    """Strength and radius."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = set(given) - {"strength", "radius"}
    if unknown:
        raise RefusedError(400, f"unknown parameter {min(unknown)!r}; there are strength and radius")
    try:
        strength, radius = float(given.get("strength", 0.1)), int(given.get("radius", 2))
    except ValueError as error:
        raise RefusedError(400, f"strength and radius must be numbers: {error}") from None
    if not 1e-3 <= strength <= 1e3 or not 0 <= radius <= MOST_RADIUS:
        raise RefusedError(400, f"strength must be in 0.001..1000 and radius in 0..{MOST_RADIUS}")
    return strength, radius


class Service(ThreadingHTTPServer):
    """A thread for each connection, which reads and writes, and a few that filter."""

    daemon_threads = False  # server_close waits for them
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], threads: int, waiting: int) -> None:
        super().__init__(address, Handler)
        self.pool = ThreadPoolExecutor(threads)
        self.places = threading.BoundedSemaphore(threads + waiting)
        # Beyond that, connections wait in the queue of the system.
        self.connections = threading.BoundedSemaphore(4 * (threads + waiting) + 16)
        self.counts: Counter[str] = Counter(accepted=0, answered=0, working=0, filtered=0, compiled=0)
        self.counting = threading.Lock()
        self.stopping = False

    def count(self, what: str, by: int = 1) -> None:
        """Add to one of the numbers of /health."""
        with self.counting:
            self.counts[what] += by

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection."""
        self.connections.acquire()
        self.count("accepted")
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """All of a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def filtered(self, image: np.ndarray, strength: float, radius: int) -> np.ndarray:
        """The image, after waiting for a thread that has time for it."""
        if self.stopping or not self.places.acquire(blocking=False):
            raise RefusedError(503, "stopping" if self.stopping else "too many requests, come back later")
        self.count("working")
        try:
            result = self.pool.submit(denoise, image, strength, radius).result()
            self.count("filtered")
            return result
        finally:
            self.count("working", -1)
            self.places.release()

    def stop(self) -> None:
        """Answer what was accepted, and whoever has connected, then end."""
        self.stopping = True
        self.shutdown()
        self.socket.settimeout(0)
        self.timeout = 0
        # Those that the system has accepted for us; not whoever comes meanwhile, or it might never end.
        for _ in range(self.request_queue_size):
            before = self.counts["accepted"]
            self.handle_request()
            if self.counts["accepted"] == before:
                break
        self.server_close()
        self.pool.shutdown()


class Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: Service
    timeout = PATIENCE

    def do_GET(self) -> None:
        """/health"""
        if self.path != "/health":
            return self._answer(404, {"error": f"there is no {self.path}"})
        with self.server.counting:
            counts = dict(self.server.counts)
        self._answer(200, {"status": "stopping" if self.server.stopping else "ok", **counts})

    def do_POST(self) -> None:
        """/denoise"""
        try:
            path, query = urlsplit(self.path)[2:4]
            if path != "/denoise":
                raise RefusedError(404, f"there is no {path}")
            body = self._body()
            result = self.server.filtered(read_image(body), *read_parameters(query))
        except RefusedError as error:
            status, reason = error.args
            self._answer(status, {"error": reason})
        except Exception as error:  # ours, not the client's; the service goes on
            logging.exception("a request failed")
            self._answer(500, {"error": type(error).__name__})
        else:
            file = io.BytesIO()
            np.lib.format.write_array(file, result, allow_pickle=False)
            self._answer(200, file.getvalue())

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(411, "the request must have a Content-Length")
        if int(length) > MOST_BYTES:
            raise RefusedError(413, f"at most {MOST_BYTES} bytes, got {length}")
        body = self.rfile.read(int(length))
        if len(body) != int(length):
            raise RefusedError(400, f"the body ended after {len(body)} of {length} bytes")
        return body

    def _answer(self, status: int, content: bytes | dict[str, Any]) -> None:
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = content if isinstance(content, bytes) else json.dumps(content).encode() + b"\n"
        self.server.count(str(status))  # first, so that who has the answer finds it counted
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)
        self.server.count("answered")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are counted, not listed."""


class CompilationCounter(logging.Handler):
    """Counts the lines in which dynarray says that it has compiled something."""

    def __init__(self, service: Service) -> None:
        super().__init__(logging.INFO)
        self.service = service

    def emit(self, record: logging.LogRecord) -> None:
        """Count one line."""
        self.service.count("compiled", record.levelno == logging.INFO)


def main() -> None:
    """Warm up, serve, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    parser.add_argument("--threads", type=int, default=8, help="images that are filtered at a time")
    parser.add_argument("--waiting", type=int, default=16, help="images that may wait for a thread")
    options = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # nobody waits for an answer yet
    done = dyn.warm_up(["local_filter2d"], backward=False)
    print(f"warm after {done.seconds:.1f} s, {len(done.compiled)} compilations", flush=True)
    dyn.set_num_threads(1)  # requests keep the cores busy, one thread each

    service = Service((options.host, options.port), options.threads, options.waiting)
    logging.getLogger("dynarray").addHandler(CompilationCounter(service))
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()  # the handler of a signal may fill it at any moment
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.put(number))
    threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.1}).start()
    print("serving on http://{}:{}".format(*service.server_address[:2]), flush=True)
    # The system may hand a signal to any thread, for example to one that starts another one. Python lets its
    # handler run here, and only when this thread has something to do: so it looks up now and then.
    while stop.empty():
        time.sleep(0.1)
    service.stop()
    print(json.dumps(service.counts))


if __name__ == "__main__":
    main()
