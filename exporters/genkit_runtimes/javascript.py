"""onnxruntime for JavaScript: on the CPU of Node, and in WebAssembly and on WebGPU, as pages have it.

Each runtime is one process, Node or a browser without a window, that runs ``javascript.mjs`` and gets its requests from
a server on this machine. It goes when the runtime does. It ends with its input, so also where nobody lived to end it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import shutil
import struct
import subprocess
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import genkit
from genkit_runtimes.libraries import data_files

_DRIVER = Path(__file__).with_name("javascript.mjs")
_PAGE = f'<!doctype html><meta charset="utf-8"><script type="module" src="{_DRIVER.name}"></script>'
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}
_BROWSERS = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
_BROWSE = """
if [ "${#TMPDIR}" -gt 60 ]; then TMPDIR=/tmp; fi
profile=$(mktemp -d) || exit
"$0" --user-data-dir="$profile" "$@" 3<&0 4>&1 </dev/null >/dev/null
status=$?
rm -rf "$profile"
exit $status
"""
"""A browser with a profile of its own. It takes the shell's input for that of a debugger, and quits at its end.

It has a socket among the temporary files, whose path is limited to 107 bytes.
"""
_OFFLINE = "--disable-background-networking", "--disable-component-update", "--disable-sync"
_SETTINGS = {
    "session": {"load_model_format": "ONNX", "set_denormal_as_zero": "0", "intra_op": {"allow_spinning": "0"}},
    "optimization": {"enable_gelu_approximation": "0"},
    "mlas": {"enable_gemm_fastmath_arm64_bfloat16": "0"},
}
"""As for onnxruntime in Python: most are the default on most machines, said so that none can pose as float32."""
_PRECISION = "no bfloat16 products, no approximate GELU, denormals as they are"
_LACKING = re.compile(
    "Could not find an implementation for .*|Provider type for .* is not set"
    r"|\S+ is not a registered function/op.*|ONNX Runtime only \*guarantees\* support.*"
)
"""What onnxruntime says of an operator that it lacks, at all or for a type, and of an opset."""
_START, _SILENCE, _GRACE = 120.0, 60.0, 10.0
"""The seconds after which a program will never start; after which a connection is used again; to end in."""


def node() -> JavascriptRuntime:
    """onnxruntime-node: the native library, by the CPU."""
    package = genkit.npm_package("onnxruntime-node")
    return _opened("node", package, _in_node(package / "dist" / "index.js"), "cpu")


def node_wasm() -> JavascriptRuntime:
    """onnxruntime-web in Node: the WebAssembly of pages, without a browser."""
    package = genkit.npm_package("onnxruntime-web")
    return _opened("node-wasm", package, _in_node(package / "dist" / "ort.node.min.mjs"), "wasm")


def browser_wasm() -> JavascriptRuntime:
    """onnxruntime-web in a page, in WebAssembly."""
    package = genkit.npm_package("onnxruntime-web")
    return _opened("browser-wasm", package, _in_browser(package / "dist" / "ort.wasm.bundle.min.mjs"), "wasm")


def browser_webgpu() -> JavascriptRuntime:
    """onnxruntime-web in a page, on WebGPU: by a GPU, or else by SwiftShader, which the browser has in its place."""
    package = genkit.npm_package("onnxruntime-web")
    library = package / "dist" / "ort.webgpu.bundle.min.mjs"
    flags = "--enable-unsafe-webgpu", "--enable-features=Vulkan"  # else there are few GPUs on Linux, and no SwiftShader
    return _opened("browser-webgpu", package, _in_browser(library, *flags), "webgpu")


@dataclass(frozen=True)
class JavascriptRuntime:
    """A process that holds graphs in onnxruntime."""

    name: str
    version: str
    precision: str
    _driver: _Driver

    def load(self, path: Path) -> Callable[[genkit.Arrays], dict[str, NDArray[Any]]]:
        """Opens one graph. The function it returns maps named inputs to named outputs, in the graph's order."""
        driver, graph = self._driver, onnx.load(path, load_external_data=False).graph
        weights = [(name, driver.place(path.with_name(name))) for name in data_files(graph)]
        session = driver.ask({"task": "load", "graph": driver.place(path), "weights": weights})[0]["session"]
        return lambda inputs: driver.ask({"task": "run", "session": session}, inputs)[1]


def _in_node(library: Path) -> _Driver:
    program = shutil.which("node")
    if program is None:
        raise genkit.RuntimeMissing("node is not installed: apt-get install nodejs, or see https://nodejs.org")
    server = _Server()
    command = [program, str(_DRIVER), server.url]
    return _Driver(command, server, library.as_uri(), lambda file: str(file.absolute()))


def _in_browser(library: Path, *flags: str) -> _Driver:
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        raise genkit.RuntimeMissing("chromium is not installed: apt-get install chromium, or Google's Chrome")
    if os.name != "posix":
        raise genkit.RuntimeMissing("browsers are driven through a POSIX shell, which this system lacks")
    server = _Server()
    server.files |= {file.name: file for file in library.parent.iterdir()}  # it fetches its WebAssembly
    options = ["--headless", "--remote-debugging-pipe", "--no-first-run", *_OFFLINE, *flags]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # root cannot have one
    command = ["sh", "-c", _BROWSE, program, *options, server.url]
    return _Driver(command, server, f"./{library.name}", server.offer)


def _opened(name: str, package: Path, driver: _Driver, provider: str) -> JavascriptRuntime:
    version = json.loads((package / "package.json").read_text())["version"]
    request = {"task": "open", "library": driver.library, "provider": provider, "extra": _SETTINGS}
    try:
        opened, _ = driver.ask(request, seconds=_START)
    except RuntimeError as error:
        raise genkit.RuntimeMissing(f"{package.name} {version} cannot be used for {name}: {error}") from error
    by = f"; computed by {opened['adapter']}" if "adapter" in opened else ""
    return JavascriptRuntime(name, version, _PRECISION + by, driver)


class _Driver:
    """A process that runs ``javascript.mjs``.

    Args:
        command: that starts it.
        server: that it was told.
        library: onnxruntime, by a name under which the process can import it.
        place: gives the name under which it can read a file.
    """

    def __init__(self, command: list[str], server: _Server, library: str, place: Callable[[Path], str]) -> None:
        self._server, self._turn = server, threading.Lock()
        self.library, self.place = library, place
        quietly = {"ORT_DISABLE_TELEMETRY": "1", **os.environ}  # else it reports graphs to its makers
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, env=quietly)
        self._end = weakref.finalize(self, _end, process, server)
        threading.Thread(target=_watch, args=(process, server), daemon=True).start()

    def ask(
        self, request: Mapping[str, Any], arrays: genkit.Arrays | None = None, seconds: float | None = None
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What is answered, and the arrays in it.

        Raises:
            Unsupported: where onnxruntime lacks an operator.
            RuntimeError: for anything else that goes wrong there.
        """
        with self._turn:
            self._server.requests.put(_packed(request, arrays or {}))
            try:
                message = self._server.answers.get(timeout=seconds)
            except queue.Empty:
                self._end()
                raise RuntimeError(f"it has not started within {seconds:g} s") from None
            except BaseException:  # whoever asked is leaving, and the next one would get this answer
                self._end()
                raise
            if message is None:
                self._server.answers.put(None)  # it stays dead
                status = self._end()
                raise RuntimeError("its process died" + (f", with status {status}" if status else ""))
        header, found = _unpacked(message)
        if "problem" in header:
            problem = " ".join(header["problem"].split()).rpartition("ERROR_MESSAGE: ")[2]
            if lacking := _LACKING.search(problem):
                raise genkit.Unsupported(lacking[0])
            raise RuntimeError(problem)
        return header, found


def _watch(process: subprocess.Popen[bytes], server: _Server) -> None:
    process.wait()
    server.answers.put(None)


def _end(process: subprocess.Popen[bytes], server: _Server) -> int:
    """Lets the process go, and gives its status."""
    assert process.stdin
    process.stdin.close()
    try:
        status = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    server.shutdown()
    server.server_close()
    return status


def _packed(header: Mapping[str, Any], arrays: genkit.Arrays) -> bytes:
    described = [
        {"name": name, "dtype": array.dtype.name, "shape": array.shape, "size": array.nbytes}
        for name, array in arrays.items()
    ]
    text = json.dumps({**header, "arrays": described}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(array.tobytes() for array in arrays.values())])


def _unpacked(message: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    (length,) = struct.unpack_from("<I", message)
    start = 4 + length
    header = json.loads(message[4:start])
    arrays = {}
    for each in header.get("arrays", []):
        content = np.frombuffer(message, each["dtype"], prod(each["shape"]), start)
        arrays[each["name"]] = content.reshape(each["shape"])
        start += each["size"]
    return header, arrays


class _Server(ThreadingHTTPServer):
    """Gives requests and files to whoever knows its address, which is a secret."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path = f"/{secrets.token_urlsafe()}/"
        self.url = f"http://127.0.0.1:{self.server_port}{self.path}"
        self.files = {_DRIVER.name: _DRIVER}
        self.requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()

    def offer(self, file: Path) -> str:
        """The name under which a file is given from now on."""
        name = str(len(self.files))
        self.files[name] = file
        return name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: where somebody hangs up, ``answers`` tells."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which would hold back what follows a header
    server: _Server

    def do_POST(self) -> None:
        """Takes an answer, unless it is empty, and gives the next request, unless there is none for long."""
        answer = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != self.server.path:
            return self._give(404)
        if answer:
            self.server.answers.put(answer)
        try:
            return self._give(200, self.server.requests.get(timeout=_SILENCE))
        except queue.Empty:
            return self._give(204)

    def do_GET(self) -> None:
        """Gives a file, or the page, or notices the end of it."""
        name = self.path.removeprefix(self.server.path)
        if name == "":
            self._give(200, _PAGE.encode(), "text/html")
        elif name == "alive":
            self._await_the_end()
        elif name in self.server.files:
            file = self.server.files[name]
            self._give(200, file.read_bytes(), _TYPES.get(file.suffix, "application/octet-stream"))
        else:
            self._give(404)

    def _await_the_end(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.rfile.read(1)
        self.server.answers.put(None)

    def _give(self, status: int, content: bytes = b"", kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
        """Says nothing."""
