"""A Hugging Face Hub on 127.0.0.1, in memory: it answers what `huggingface_hub` really sends, as the Hub does.

Large files go to and come from a second origin (`localhost`, against `127.0.0.1` for the API), as the Hub's do.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKENS = {"hf_writer": ("alice", "write"), "hf_reader": ("alice", "read"), "hf_stranger": ("bob", "write")}
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "other")
ORGANISATIONS = {"org": {"alice"}}


@dataclass
class Repo:
    """`branches` maps a name to a commit id; `commits` maps a commit id to the whole tree, path -> bytes."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()  # the client remembers what it saw of a commit
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Fault:
    """For `times` requests matching "METHOD /path": answer `status`, or cut the body (`truncate`), or call `do`."""

    pattern: str
    status: int = 0
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)
    page: bool = False  # answer as a gateway does, not in JSON
    truncate: str = ""  # "cut": fewer bytes than announced; "short": fewer bytes, announced as such
    do: object = None


class HubServer(ThreadingHTTPServer):
    """Tests read and set `repos`, `faults` and `requests` (the "METHOD /path" of every request)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.reset()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.cdn_authorised: list[str] = []  # requests that carried a token to the large-file origin

    def add_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(private=private)
        repo.commit("main", dict(files), "as published")
        return repo

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, data: bytes | None = None) -> bool:
    return path.endswith((".safetensors", ".bin", ".png", ".pt"))


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *args):
        pass

    # One request: faults first, then the route; a refusal carries the Hub's own error headers.
    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.path_only, self.query = unquote(url.path), parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path_only}"
        with self.server.lock:
            self.server.requests.append(line)
            fault = next((f for f in self.server.faults if f.times > 0 and re.search(f.pattern, line)), None)
            if fault:
                fault.times -= 1
        self.truncate = fault.truncate if fault else ""
        if fault and fault.do:
            fault.do()
        try:
            if fault and fault.status:
                return self.send(fault.status, b"<html>" if fault.page else {"error": "injected"}, fault.headers)
            with self.server.lock:
                answer = self.route()
            self.send(*answer)
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send(refused.status, {"error": refused.message}, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def send(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if self.truncate and self.command == "GET":
            short = body[: len(body) // 2]
            body, length = short, len(short) if self.truncate == "short" else len(body)
            self.close_connection = True
        else:
            length = len(body)
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self) -> tuple:
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {self.path_only}"):
                return getattr(self, name)(**match.groupdict())
        raise Refused(404, f"no such endpoint: {self.command} {self.path_only}")

    # Who asks, and for what.
    def user(self) -> tuple[str, str] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        if header.removeprefix("Bearer ") not in TOKENS:
            raise Refused(401, "Invalid credentials in Authorization header")
        return TOKENS[header.removeprefix("Bearer ")]

    def may(self, repo_id: str, action: str) -> bool:
        name, role = self.user() or (None, None)
        namespace = repo_id.removeprefix("spaces/").split("/")[0]
        return (name == namespace or name in ORGANISATIONS.get(namespace, ())) and (
            action == "read" or role == "write"
        )

    def repo(self, repo_id: str, action: str = "read") -> Repo:
        repo, user = self.server.repos.get(repo_id), self.user()
        if repo is None or (repo.private and not self.may(repo_id, "read")):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if action == "write" and user is None:
            raise Refused(401, "Invalid username or password.")
        if action == "write" and not self.may(repo_id, "write"):
            raise Refused(403, "you don't have write access to this repository")
        return repo

    def at(self, repo: Repo, revision: str | None) -> str:
        revision = revision or "main"
        if revision in repo.branches:
            return repo.branches[revision]
        if revision in repo.commits:
            return revision
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # The API.
    def create(self):
        ask, user = json.loads(self.body), self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        kind = "spaces/" if ask.get("type") == "space" else ""
        if kind and not ask.get("sdk"):
            raise Refused(400, "a Space needs an sdk")
        repo_id = f"{kind}{ask.get('organization') or user[0]}/{ask['name']}"
        answer = {"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id, "id": "0"}
        if not self.may(repo_id, "write"):
            raise Refused(403, f"You don't have the rights to create a model under the namespace {repo_id}")
        if repo_id in self.server.repos:
            return 409, answer | {"error": "You already created this model repo"}
        self.server.repos[repo_id] = Repo(private=ask.get("visibility") == "private")
        self.server.repos[repo_id].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return 200, answer

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        license = re.search(r"^license: (.*)$", content.split("\n---")[0], re.MULTILINE)
        if license and license[1] not in LICENSES:
            return 400, {"errors": [{"message": f'"license" must be one of [{", ".join(LICENSES)}]'}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def info(self, repo_id, revision=None):
        repo = self.repo(repo_id)
        sha = self.at(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        name = repo_id.removeprefix("spaces/")
        return 200, {"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}

    def tree(self, repo_id, revision):
        repo = self.repo(repo_id)
        return 200, self.entries(repo.commits[self.at(repo, revision)])

    def paths_info(self, repo_id, revision):
        repo, asked = self.repo(repo_id), parse_qs(self.body.decode())["paths"]
        tree = repo.commits[self.at(repo, revision)]
        return 200, self.entries({path: tree[path] for path in asked if path in tree})

    def entries(self, tree: dict[str, bytes]) -> list[dict]:
        entries = []
        for path, data in tree.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            if is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries

    def preupload(self, repo_id, revision):
        repo = self.repo(repo_id, "write")
        tree, files = repo.commits[self.at(repo, revision)], []
        for ask in json.loads(self.body)["files"]:
            large, there = is_large(ask["path"]), tree.get(ask["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_oid(there)
            mode = "lfs" if large else "regular"
            files.append({"path": ask["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def lfs_batch(self, repo_id):
        self.repo(repo_id, "write")
        cdn, objects = f"http://localhost:{self.server.server_port}/large", []
        for ask in json.loads(self.body)["objects"]:
            answer = {"oid": ask["oid"], "size": ask["size"]}
            if ask["oid"] not in self.server.blobs:
                verify = f"{self.server.endpoint}/{repo_id}.git/info/lfs/verify"
                answer["actions"] = {"upload": {"href": f"{cdn}/{ask['oid']}"}, "verify": {"href": verify}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}

    def lfs_verify(self, repo_id):
        ask = json.loads(self.body)
        if len(self.server.blobs.get(ask["oid"], b"")) != ask["size"]:
            raise Refused(422, "the uploaded object is not of the announced size")
        return 200, {}

    def put_large(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "sha256 mismatch")
        self.server.blobs[oid] = self.body
        return 200, b""

    def get_large(self, oid):
        if "Authorization" in self.headers:
            self.server.cdn_authorised.append(self.path)
        return self.content(self.server.blobs[oid], {"ETag": f'"{oid}"'})

    def branch(self, repo_id, branch):
        repo = self.repo(repo_id, "write")
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return 200, {}

    def commit(self, repo_id, revision):
        repo = self.repo(repo_id, "write")
        head = self.at(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            else:
                raise Refused(400, f"unknown operation {line['key']}")
        pull_request = "create_pr" in self.query
        oid = repo.commit("refs/pr/1" if pull_request else revision, files, header["summary"])
        url = f"{self.server.endpoint}/{repo_id}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        return 200, answer | ({"pullRequestUrl": f"{url}/discussions/1"} if pull_request else {})

    def resolve(self, repo_id, revision, path):
        repo = self.repo(repo_id)
        sha = self.at(repo, revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data, headers = repo.commits[sha][path], {"X-Repo-Commit": sha}
        if not is_large(path):
            return self.content(data, headers | {"ETag": f'"{git_oid(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        self.server.blobs[oid] = data
        cdn = f"http://localhost:{self.server.server_port}/large/{oid}"
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(data)), "Location": cdn}
        return 302, b"", headers | linked

    def content(self, data: bytes, headers: dict[str, str]):
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return 206, data[start:], headers | {"Content-Range": span}
        return 200, data, headers


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
SPACE = r"(?P<repo_id>spaces/[^/]+/[^/]+)"  # under a key of its own: a Space may have a model's name
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api/(?:models|datasets)/{REPO}", "info"),
    (rf"GET /api/(?:models|datasets)/{REPO}/revision/(?P<revision>.+)", "info"),
    (rf"GET /api/(?:models|datasets)/{REPO}/tree/(?P<revision>[^/]+)(?:/.*)?", "tree"),
    (rf"POST /api/(?:models|datasets)/{REPO}/paths-info/(?P<revision>.+)", "paths_info"),
    (rf"POST /api/models/{REPO}/preupload/(?P<revision>.+)", "preupload"),
    (rf"GET /api/{SPACE}", "info"),
    (rf"GET /api/{SPACE}/revision/(?P<revision>.+)", "info"),
    (rf"GET /api/{SPACE}/tree/(?P<revision>[^/]+)(?:/.*)?", "tree"),
    (rf"POST /api/{SPACE}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST /api/{SPACE}/commit/(?P<revision>.+)", "commit"),
    (rf"(?:GET|HEAD) /{SPACE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    (rf"POST /api/models/{REPO}/branch/(?P<branch>.+)", "branch"),
    (rf"POST /api/models/{REPO}/commit/(?P<revision>.+)", "commit"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (rf"POST /{REPO}\.git/info/lfs/verify", "lfs_verify"),
    (r"PUT /large/(?P<oid>\w+)", "put_large"),
    (r"(?:GET|HEAD) /large/(?P<oid>\w+)", "get_large"),
    (rf"(?:GET|HEAD) (?:/datasets)?/{REPO}/resolve/(?P<revision>[^/]+|refs/pr/\d+)/(?P<path>.+)", "resolve"),
]
