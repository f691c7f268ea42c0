"""An imitation of Kaggle: its folders, a Python without some packages, no network, a server for the real client."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path

from rsna.kaggle.bundle import PACKAGES

SKIPPED = {"INSTALLER", "REQUESTED", "direct_url.json"}

# runs a notebook and writes it back with its output; client and kernel need a loopback interface for TCP
EXECUTE = """
import fcntl, os, socket, struct, sys
import nbformat
from nbclient import NotebookClient

if os.environ["ALONE"]:
    assert [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
    fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
path = sys.argv[1]
book = nbformat.read(path, as_version=4)
nbformat.validate(book)
try:
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
finally:
    nbformat.write(book, path)
"""


def own_files(name):
    """The files of an installed package, relative to site-packages, without scripts and byte code."""
    found = distribution(name)
    paths = [path for path in found.files if ".." not in path.parts and path.suffix != ".pyc"]
    return found, [path for path in paths if path.name not in SKIPPED]


def make_wheels(folder):
    """Make wheels of the bundle from installed packages, since the tests have no internet."""
    folder.mkdir()
    for name in PACKAGES:
        found, paths = own_files(name)
        tag = next(line.split()[1] for line in found.read_text("WHEEL").splitlines() if line.startswith("Tag:"))
        wheel = folder / f"{name.replace('-', '_')}-{found.version}-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in paths:
                archive.write(path.locate(), str(path))
    return folder


def make_image(folder):
    """Make a Python with this one's packages, except for those that Kaggle's image may lack; returns its path."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "python")
    hidden = {path.parts[0] for name in PACKAGES for path in own_files(name)[1]}
    (folder / "packages").mkdir()
    for site in (Path(path) for path in sys.path if path.endswith("-packages")):
        for entry in site.iterdir():
            link = folder / "packages" / entry.name
            if entry.name not in hidden and entry.suffix != ".pth" and not link.exists():
                link.symlink_to(entry)
    (site,) = (folder / "python" / "lib").glob("python3.*/site-packages")
    (site / "image.pth").write_text(f"{folder / 'packages'}\n")
    return folder / "python" / "bin" / "python"


def can_isolate():
    """Whether this system allows users network and mount namespaces."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


def run_notebook(notebook, world, python):
    """Run a notebook in Kaggle's folders below `world`, with read-only input and without a network if possible.

    The notebook's file then holds what it showed. Returns the finished process.
    """
    command = [str(python), "-c", EXECUTE, str(notebook)]
    if alone := can_isolate():
        mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
        unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", mount, str(world / "input")]
        command = unshare + command
    # short names, because the kernel's connection file is in this folder
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            **dict.fromkeys(("HOME", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"), home),
            "KAGGLE_FOLDER": str(world),
            "OMP_NUM_THREADS": "1",
            "ALONE": "1" if alone else "",
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def shown(notebook):
    """The text that the cells of a finished notebook printed, and the number of images they show."""
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    text = "".join("".join(output.get("text", "")) for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


class KaggleServer:
    """Answers the real client like Kaggle, for uploads, kernels and submissions.

    The client reaches it as a proxy of http://localhost, see `environment`. on_run is called with the notebook's text
    when a kernel is asked for its status, and returns the bytes of its submission.csv.
    """

    def __init__(self, on_run=None):
        self.on_run = on_run or (lambda text: b"patientId,PredictionString\n")
        self.calls, self.blobs, self.datasets, self.kernel, self.submitted = [], {}, {}, None, None
        self.output, self.refuse = b"", {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def body(self):
                if self.headers.get("Transfer-Encoding") == "chunked":
                    parts = []
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def answer(self, content, status=200, kind="application/json"):
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self):
                method, request = self.path.rsplit("/", 1)[1], json.loads(self.body() or b"{}")
                owner.calls.append((method, request, self.headers.get("Authorization", "")))
                if method in owner.refuse:
                    self.answer(*owner.refuse[method])
                    return
                try:
                    answer = getattr(owner, method)(request)
                except (AttributeError, LookupError, AssertionError) as error:
                    # without an answer the client would retry for minutes
                    answer = ({"code": 400, "message": repr(error)}, 400)
                self.answer(*answer)

            def do_PUT(self):
                owner.blobs[self.path.rsplit("/", 1)[1]]["content"] = self.body()
                self.answer(*owner.refuse.get("PUT", ({},)))

            def do_GET(self):
                self.answer(owner.output, 200, "text/csv")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home):
        """The environment that makes the client connect here, with a token that must never be printed."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{self.http.server_port}",
            "no_proxy": "",
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home),
            "KAGGLE_USERNAME": "someone",
            "KAGGLE_KEY": "secret-of-someone",
        }

    def uploaded(self, tokens):
        return {self.blobs[token]["name"]: self.blobs[token]["content"] for token in tokens}

    def mount(self, address, folder):
        """A dataset as Kaggle shows it to a kernel: archives unpacked into folders of their names."""
        folder.mkdir(parents=True)
        for name, content in self.datasets[address].items():
            (folder / name).write_bytes(content)
            if name.endswith(".zip"):
                shutil.unpack_archive(folder / name, folder / name.removesuffix(".zip"))
                (folder / name).unlink()

    def new_blob(self, name):
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = {"name": name, "content": b""}
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def StartBlobUpload(self, request):  # noqa: N802
        return (self.new_blob(request["name"]),)

    def GetDatasetStatus(self, request):  # noqa: N802
        address = f"{request['ownerSlug']}/{request['datasetSlug']}"
        return ({"status": "READY"},) if address in self.datasets else ({"code": 404, "message": "none"}, 404)

    def CreateDataset(self, request):  # noqa: N802
        files = self.uploaded(file["token"] for file in request.get("files", []))
        self.datasets[f"{request['ownerSlug']}/{request['slug']}"] = files
        return ({"status": "ok", "url": "https://kaggle.com/datasets/x", "ref": "x"},)

    def CreateDatasetVersion(self, request):  # noqa: N802
        files = self.uploaded(file["token"] for file in request["body"].get("files", []))
        self.datasets[f"{request['ownerSlug']}/{request['datasetSlug']}"] = files
        return ({"status": "ok", "url": "https://kaggle.com/datasets/x", "ref": "x"},)

    def SaveKernel(self, request):  # noqa: N802
        self.kernel = request
        return ({"ref": "/code/x", "url": "https://kaggle.com/code/x", "versionNumber": 1},)

    def GetKernelSessionStatus(self, request):  # noqa: N802
        self.output = self.on_run(self.kernel["text"])
        return ({"status": "COMPLETE"},)

    def ListKernelSessionOutput(self, request):  # noqa: N802
        return (
            {"files": [{"url": "http://localhost/output/submission.csv", "fileName": "submission.csv"}], "log": ""},
        )

    def StartSubmissionUpload(self, request):  # noqa: N802
        return (self.new_blob(request["fileName"]),)

    def CreateSubmission(self, request):  # noqa: N802
        self.submitted = (request, self.blobs[request["blobFileTokens"]]["content"])
        return ({"message": "Successfully submitted", "ref": 1},)

    def GetSubmissionLimits(self, request):  # noqa: N802
        return ({"numAllowedNow": 4},)
