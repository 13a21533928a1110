"""The example of a service: started as a process, asked by many at once, overloaded, stopped under load."""

import http.client
import importlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import dynarray as dyn

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PATIENCE = 250  # seconds, after which what has not come will not come

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be handled on Windows"),
]


class Answer(NamedTuple):
    """Status and body."""

    status: int
    body: bytes

    @property
    def said(self) -> Any:
        """What the body says as JSON."""
        return json.loads(self.body)


class Running:
    """A service that has been started."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.first = process.stdout.readline()
        serving = process.stdout.readline().split()
        assert serving[:2] == ["serving", "on"], (self.first, serving)
        self.port = int(serving[2].rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def denoise(self, image: np.ndarray, query: str = "") -> Answer:
        """An image that is to be denoised."""
        return self.ask("POST", f"/denoise{query}", packed(image))

    def health(self) -> dict[str, Any]:
        """The numbers of /health."""
        answer = self.ask("GET", "/health")
        assert answer.status == 200
        said: dict[str, Any] = answer.said
        return said

    def stop(self) -> dict[str, int]:
        """SIGTERM; it must end well. Returns what it counted."""
        self.process.terminate()
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err
        counts: dict[str, int] = json.loads(out)
        return counts


@contextmanager
def service(*options: str) -> Iterator[Running]:
    """A service on a free port."""
    command = [sys.executable, str(EXAMPLES / "service.py"), "--port", "0", *options]
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes)
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


def packed(image: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


def unpacked(answer: Answer) -> np.ndarray:
    """The image of an answer."""
    assert answer.status == 200, answer
    image: np.ndarray = np.load(io.BytesIO(answer.body))
    return image


def at_once(number: int, work: Callable[[int], Any]) -> list[Any]:
    """The results of ``work(index)`` from so many threads, None where one has not come back."""
    results: list[Any] = [None] * number
    barrier = threading.Barrier(number)

    def one(index: int) -> None:
        barrier.wait(PATIENCE)
        results[index] = work(index)

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return results


@pytest.fixture(scope="module")
def example() -> Any:
    """The module of the example."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("service")
    finally:
        sys.path.remove(str(EXAMPLES))


def photograph(index: int) -> np.ndarray:
    """Images of many shapes: small ones, odd ones, grey ones, one with NaN."""
    rng = np.random.default_rng(index)
    shapes = ((48, 40), (3, 31, 57), (1, 1), (2, 7, 5), (1, 64, 64), (4, 3, 90))
    image = rng.random(shapes[index % len(shapes)], np.float32)
    if index % 7 == 3:
        image.flat[rng.integers(image.size)] = np.nan
    return image


def queries(index: int) -> tuple[float, int]:
    """Strength and radius of a request."""
    return (0.1, 0.5, 3.0)[index % 3], index % 4


def test_requests_at_once_are_right_and_compile_nothing(example: Any) -> None:
    with service("--waiting", "64") as running:
        assert running.first.startswith("warm after ")

        def work(index: int) -> Answer:
            strength, radius = queries(index)
            return running.denoise(photograph(index), f"?strength={strength}&radius={radius}")

        answers = at_once(40, work)
        counts = running.health()
        for index, answer in enumerate(answers):
            with dyn.use_backend("reference"), np.errstate(all="ignore"):
                expected = example.denoise(photograph(index), *queries(index))
            np.testing.assert_allclose(unpacked(answer), expected, rtol=1e-4, atol=1e-5)
        assert (counts["compiled"], counts["filtered"], counts["status"]) == (0, 40, "ok")
        final = running.stop()
    assert final["compiled"] == 0 and final["accepted"] == final["answered"] == 40 + 1


def test_the_filter_is_what_it_says(example: Any) -> None:
    """Number by number, in a picture of a few pixels."""
    image = np.random.default_rng(1).random((2, 4, 5)).astype(np.float32)
    strength, radius = 0.4, 1
    expected = np.zeros(image.shape)
    for y, x in np.ndindex(4, 5):
        total = 0.0
        for v, u in np.ndindex(4, 5):
            if max(abs(v - y), abs(u - x)) <= radius:
                likeness = ((image[:, v, u].astype(float) - image[:, y, x]) ** 2).sum() / (2 * strength**2)
                weight = np.exp(-likeness - ((v - y) ** 2 + (u - x) ** 2) / (2 * radius**2))
                expected[:, y, x] += weight * image[:, v, u]
                total += weight
        expected[:, y, x] /= total
    np.testing.assert_allclose(example.denoise(image, strength, radius), expected, rtol=1e-5)


def test_bad_requests_get_the_reason_and_the_service_goes_on() -> None:
    image = np.zeros((5, 4), np.float32)
    good, header = packed(image), packed(image)[:-80]
    huge = header.replace(b"(5, 4), }      ", b"(50000, 40000)}")
    negative = header.replace(b"(5, 4), }  ", b"(-5, -4), }") + bytes(80)
    assert len(header) == len(huge) == len(negative) - 80 and huge != header != negative[:-80]
    cases = [
        (400, "a .npy file", b"", ""),
        (400, "a .npy file", b"P5 4 5 255 ", ""),
        (400, "a .npy file", good[:30], ""),
        (400, "a .npy file", good[:10] + b"(" * (len(good) - 10), ""),
        (400, "80 bytes of data are not an image of (50000, 40000)", huge + bytes(80), ""),
        (400, "(-5, -4)", negative, ""),
        (400, "79 bytes", good[:-1], ""),
        (400, "float32 in C order, got float64", packed(image.astype(float)), ""),
        (400, "float32 in C order, got object", packed_objects(), ""),
        (400, "(H, W) or (C, H, W)", packed(np.zeros((5,), np.float32)), ""),
        (400, "C <= 4", packed(np.zeros((5, 2, 2), np.float32)), ""),
        (400, "got (0, 4)", packed(image[:0]), ""),
        (400, "float32 in C order", packed(np.asfortranarray(image)), ""),
        (400, "strength must be in", good, "?strength=-1"),
        (400, "strength must be in", good, "?strength=nan"),
        (400, "radius in 0..4", good, "?radius=99"),
        (400, "must be numbers", good, "?radius=1.5"),
        (400, "unknown parameter 'sigma'; there are strength and radius", good, "?sigma=1"),
    ]
    with service() as running:
        for status, reason, body, query in cases:
            answer = running.ask("POST", f"/denoise{query}", body)
            assert answer.status == status and reason in answer.said["error"], (answer, reason)
        assert running.ask("POST", "/sharpen", good).status == 404
        assert running.ask("GET", "/").status == 404
        assert running.ask("POST", "/denoise", None, **{"Content-Length": "x"}).status == 411
        assert running.ask("POST", "/denoise", None, **{"Content-Length": str(2**40)}).status == 413
        np.testing.assert_array_equal(unpacked(running.denoise(image)), image)
        counts = running.stop()
    assert counts["filtered"] == 1 and counts["400"] == len(cases) and "500" not in counts


def packed_objects() -> bytes:
    """A .npy file that holds a pickle."""
    file = io.BytesIO()
    np.save(file, np.array([print, len], object), allow_pickle=True)
    return file.getvalue()


def test_overload_is_answered_with_503_and_passes() -> None:
    image = np.random.default_rng(0).random((3, 500, 500), np.float32)
    with service("--threads", "1", "--waiting", "1") as running:
        statuses = Counter(answer.status for answer in at_once(24, lambda _: running.denoise(image)))
        assert set(statuses) == {200, 503} and sum(statuses.values()) == 24
        while running.health()["working"]:
            time.sleep(0.05)
        assert running.denoise(image).status == 200
        counts = running.stop()
    assert (counts["filtered"], counts["503"]) == (statuses[200] + 1, statuses[503])
    assert counts["accepted"] == counts["answered"] and counts["compiled"] == 0


def test_stopped_under_load_it_answers_what_it_has_accepted(example: Any) -> None:
    image = np.random.default_rng(0).random((3, 200, 300), np.float32)
    expected = example.denoise(image, 0.1, 2)
    with service("--threads", "8", "--waiting", "8") as running:

        def work(index: int) -> Any:
            if index == 0:
                while not running.health()["filtered"]:  # some are answered, and others under way
                    time.sleep(0.01)
                return running.stop()
            answers = []
            while True:
                try:
                    answers.append(running.denoise(image))
                except ConnectionError:  # it has stopped: what it accepted before, it counts
                    return answers

        counts, *clients = at_once(20, work)
    assert counts is not None and None not in clients
    answers = Counter(answer.status for client in clients for answer in client)
    assert set(answers) <= {200, 503} and answers[200] >= 1
    assert (counts["filtered"], counts.get("503", 0)) == (answers[200], answers[503])
    assert counts["accepted"] == counts["answered"]
    for client in clients:
        for answer in client:
            if answer.status == 200:
                np.testing.assert_array_equal(unpacked(answer), expected)
