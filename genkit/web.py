"""A page in which a bundle is played with: its files, what goes with them, and a server for this machine. No torch.

The page is a folder of static files, ``web/`` in the bundle, that reads the manifest and the graphs from the folder
above it. It needs nothing but the bundle, and is sealed by the manifest like every other file, so ``verify`` vouches
for it. A bundle without a page can be played with as well: the preview serves the two as if they lay together.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from genkit.bundle import MANIFEST, Bundle, seal, stage
from genkit.errors import GenkitError, InvalidOption, RuntimeMissing, VerificationFailed
from genkit.npm import npm_package

FOLDER = "web"
"""Of the page, in the bundle."""

_PAGE = Path(__file__).parent / "page"
_PACKAGE = "onnxruntime-web"
_RUNTIME = {
    "ort.wasm.min.mjs": "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""What the page needs of the package, and its names there: not every host knows that ``.mjs`` is JavaScript."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".md": "text/markdown; charset=utf-8",
}


def find_runtime(folder: Path | None = None) -> Path:
    """The folder with the files of onnxruntime-web.

    Args:
        folder: of the npm package, or its ``dist``; None: as of ``npm_package``.

    Raises:
        InvalidOption: for a folder that is not that.
        RuntimeMissing: where there is none.
    """
    if folder is not None:
        for place in (folder / "dist", folder):
            if all((place / name).is_file() for name in _RUNTIME):
                return place
        missing = next(name for name in _RUNTIME if not (folder / name).is_file())
        raise InvalidOption(f"{folder} has no {missing}; name the folder of the package {_PACKAGE} with --web-runtime")
    try:
        package = npm_package(_PACKAGE)
    except RuntimeMissing as error:
        raise RuntimeMissing(f"{error}\nOr name the folder of the package with --web-runtime") from None
    return find_runtime(package)


def page_files(runtime: Path) -> dict[str, Path]:
    """What the page consists of: its files by their places in a bundle.

    Args:
        runtime: as ``find_runtime`` gives it.
    """
    own = {f"{FOLDER}/{path.name}": path for path in _PAGE.iterdir() if path.suffix in _TYPES}
    return own | {f"{FOLDER}/ort/{new}": runtime / name for name, new in _RUNTIME.items()}


def add_page(path: Path, runtime: Path) -> None:
    """Puts the page into the bundle at ``path``, in the place of one that is there, in one step.

    Raises:
        VerificationFailed: where the bundle's files are not those of its manifest, which would be sealed anew.
    """
    bundle = Bundle.open(path)
    changed = [check for check in bundle.check_files() if not check.ok]
    if changed:
        raise VerificationFailed(f"{path} is not what was exported: {changed[0]}; export it again")
    files = {name: bundle.file(name) for name in bundle.manifest.files if not name.startswith(f"{FOLDER}/")}
    with stage(path) as staging:
        for name, source in (files | page_files(runtime)).items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        seal(staging, bundle.manifest)


class Preview(ThreadingHTTPServer):
    """Serves a bundle and its page on this machine alone, and nothing else: a list of files, not a folder.

    Args:
        path: of the bundle.
        port: 0: one that is free.
        runtime: as of ``find_runtime``; for a bundle without a page, and instead of the page of one that has it.

    Raises:
        GenkitError: where there is no bundle or no runtime, or the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, path: Path, port: int, runtime: Path | None = None) -> None:
        bundle = Bundle.open(path)
        names = [MANIFEST, *bundle.manifest.files]
        self.files: Mapping[str, Path] = {name: bundle.file(name) for name in names}
        if runtime is not None or f"{FOLDER}/index.html" not in self.files:
            self.files = {**self.files, **page_files(find_runtime(runtime))}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise GenkitError(
                f"--port {port}: {error.strerror}; choose another one, or 0 for one that is free"
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/{FOLDER}/"


class _Handler(BaseHTTPRequestHandler):
    server: Preview
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path).removeprefix("/")
        if name in ("", FOLDER):
            self._head(HTTPStatus.FOUND, {"Location": f"/{FOLDER}/", "Content-Length": "0"})
            return
        name += "index.html" if name.endswith("/") else ""
        file = self.server.files.get(name)
        if file is None or not file.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind = _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
        with file.open("rb") as stream:
            self._head(HTTPStatus.OK, {"Content-Type": kind, "Content-Length": str(file.stat().st_size)})
            if body:
                shutil.copyfileobj(stream, self.wfile)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002  (the name is the base class's)
        """A person looks at the page, and not at the requests."""
