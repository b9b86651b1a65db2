import base64
import hashlib
import json

import pytest
import serving

import mmgpt
from mmgpt.checkpoints.hub import fetch, push
from mmgpt.checkpoints.save_load import save_bundle
from mmgpt.config import UserError

SHA = "a" * 40


class Hub(serving.Handler):
    """As much of the Hugging Face hub's HTTP interface as one repository, org/name, takes."""

    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        server.asked.append((self.command, path, self.headers.get("Authorization")))
        if path == f"/api/models/org/name/tree/{SHA}":
            sizes = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in server.files.items()
            ]
            self.answer(200, json.dumps(sizes))
        elif path in ("/api/models/org/name/revision/main", "/api/models/org/name/revision/v1"):
            self.answer(200, json.dumps({"id": "org/name", "sha": SHA, "siblings": []}))
        elif path.startswith("/api/models/org/name/revision/"):
            self.answer(404, "{}", **{"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/org/gated/"):
            self.answer(403, "{}", **{"X-Error-Code": "GatedRepo"})
        elif path.startswith(f"/org/name/resolve/{SHA}/"):
            content = server.files[path.removeprefix(f"/org/name/resolve/{SHA}/")]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, content, **{"ETag": etag, "X-Repo-Commit": SHA})
        else:
            self.answer(404, "{}", **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self):
        server, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.asked.append((self.command, path, self.headers.get("Authorization")))
        if path == "/api/repos/create" and "read" in (self.headers.get("Authorization") or ""):
            self.answer(403, json.dumps({"error": "no rights"}))
        elif path == "/api/repos/create":
            server.made.update(json.loads(body))
            self.answer(200, json.dumps({"url": f"{server.address}/org/name"}))
        elif "/preupload/" in path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.answer(200, json.dumps({"files": files}))
        elif path == "/api/validate-yaml":
            self.answer(200, json.dumps({"errors": [], "warnings": []}))
        elif path == "/api/models/org/name/commit/main":
            server.commit += [json.loads(line) for line in body.splitlines()]
            self.answer(200, json.dumps({"commitUrl": f"{server.address}/org/name/commit/{SHA}", "commitOid": SHA}))
        else:
            self.answer(404, "{}")

    def answer(self, code, body, **headers):
        payload = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        for name, value in {"Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = serving.Server(Hub)
    server.asked, server.made, server.commit = [], {}, []
    server.files = {"config.json": b'{"a": 1}', "model.safetensors": b"weights", "original/big.pth": b"no"}
    server.files["pytorch_model.bin"] = b"pickle"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    resolve = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", resolve)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with server:
        yield server


def test_a_repository_is_fetched_once_without_pickles_and_folders_in_it(hub):
    folder = fetch("org/name")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_bytes() == b'{"a": 1}'
    assert {token for *_, token in hub.asked if token} == {"Bearer hf_write"}
    hub.asked.clear()
    assert fetch("org/name") == folder
    assert not [path for command, path, _ in hub.asked if command == "GET" and "/resolve/" in path]


def test_a_revision_is_pinned_and_pickles_come_when_allowed(hub):
    folder = fetch("org/name", "v1", pickles=True)
    assert folder.name == SHA
    assert (folder / "pytorch_model.bin").read_bytes() == b"pickle"
    assert ("GET", "/api/models/org/name/revision/v1", "Bearer hf_write") in hub.asked


def test_what_is_cached_opens_offline(hub, monkeypatch):
    folder = fetch("org/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert fetch("org/name") == folder
    assert len(hub.asked) == asked
    with pytest.raises(UserError, match=r"^org/other: no such folder, not in the cache, and the hub cannot be reached"):
        fetch("org/other")


def test_what_the_hub_does_not_give_is_told_in_one_line(hub, tmp_path):
    for source, revision, told in [
        ("org/other", None, r"no such folder, and no repository on the hub that may be read; set HF_TOKEN"),
        ("org/name", "v2", r"org/name@v2: the hub has no such revision; give a branch, tag or commit of org/name"),
        ("org/gated", None, r"org/gated: is gated; accept its terms on the hub and set HF_TOKEN"),
        ("name", None, r"name: no such folder; give one that holds a config.json, or organisation/name"),
        (tmp_path, "v1", r"is a folder, which has no revision 'v1'; leave the revision out"),
    ]:
        with pytest.raises(UserError, match=told) as refused:
            fetch(source, revision)
        assert "\n" not in str(refused.value)


def test_a_folder_is_pushed_whole_to_a_repository_made_for_it(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# A model\n")
    assert push(tmp_path, "org/name", private=True) == f"{hub.address}/org/name/commit/{SHA}"
    assert (hub.made["name"], hub.made["organization"]) == ("name", "org")
    assert hub.made.get("visibility", hub.made.get("private")) in ("private", True)
    assert {one["value"]["path"] for one in hub.commit if one["key"] == "file"} == {"config.json", "README.md"}


def test_a_push_that_cannot_be_is_told_in_one_line(hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds no config.json; give the folder of a model"):
        push(tmp_path, "org/name")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"a/b/c: no name for a repository .*; give organisation/name"):
        push(tmp_path, "a/b/c")
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    with pytest.raises(UserError, match=r"org/name: the hub does not take it .*; is HF_TOKEN one that may write"):
        push(tmp_path, "org/name")
    assert hub.commit == []


def test_a_pushed_model_is_loaded_by_its_name(hub, make_bundle, tmp_path):
    save_bundle(make_bundle(), tmp_path)
    push(tmp_path, "org/name")
    hub.files = {
        one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in hub.commit if one["key"] == "file"
    }
    model = mmgpt.load("org/name", revision="v1", device="cpu", verify=True)
    assert model.ask("How many?").tokens == mmgpt.load(tmp_path, device="cpu").ask("How many?").tokens


def test_a_slip_in_a_runs_path_does_not_ask_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"runs/quikstart: no such folder"):
        mmgpt.load("runs/quikstart")
    assert hub.asked == []
