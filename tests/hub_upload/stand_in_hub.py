"""
A Hub over loopback that holds everything in memory, speaks what huggingface_hub speaks, and fails when it is told to.

Its repositories have commits, each a whole tree; branches and tags point at commits. The ids of Spaces
begin with "spaces/". The token "write" may do everything, "read" may not change anything, any other is unknown. Both
are of "someone".
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".png")
SPACE_SDKS = {"gradio", "docker", "static"}
SPACE_COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
PIPELINE_TAGS = {"text-generation", "image-text-to-text", "text-to-image", "any-to-any"}


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, branch: str, title: str, tree: dict[str, bytes], parent: str | None = None) -> Commit:
        parent = parent or self.branches.get(branch)
        oid = hashlib.sha1(f"{len(self.commits)} {parent} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, tree)
        self.branches[branch] = oid
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


class StandInHub:
    """
    Attributes:
        repositories: by id.
        stored: the large files that arrived, by sha256.
        requests: what was asked for, as "METHOD path".
        fail_at: the number (from 0) of the request to be refused, and the status it gets.
        lose_at: the number of the request that is carried out, but whose answer is lost.
        fail_on: a pattern of requests that are refused, and the status they get.
        delay: seconds before each answer.
        quota: bytes of large files that there is room for.
        before: what is called with each request, such as "POST /api/...", before it is answered.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_at: tuple[int, int] | None = None
        self.lose_at: int | None = None
        self.fail_on: tuple[str, int] | None = None
        self.delay = 0.0
        self.quota = float("inf")
        self.before = lambda request: None
        self.url = ""

    @contextmanager
    def running(self):
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def create(self, repo_id: str, private: bool = False) -> Repository:
        self.repositories[repo_id] = Repository(private)
        self.repositories[repo_id].commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self.repositories[repo_id]

    def refuses(self, request: str) -> int | None:
        """The status with which a request is refused, if it is."""
        self.before(request)
        self.requests.append(request)
        if self.fail_at is not None and len(self.requests) - 1 == self.fail_at[0]:
            return self.fail_at[1]
        if self.fail_on is not None and re.search(self.fail_on[0], request):
            return self.fail_on[1]
        return None


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, body=None, code: str | None = None, headers: dict | None = None):
        self.status, self.body, self.headers = status, body, dict(headers or {})
        if code is not None:
            self.headers["X-Error-Code"] = code
        if isinstance(body, str):
            self.body, self.headers["X-Error-Message"] = {"error": body}, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece, or the client waits for the second
    hub: StandInHub

    def log_message(self, *args):
        pass

    def _serve(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read()  # even of a refused request, or the next one on this connection would start in it
        path = unquote(url.path)
        time.sleep(self.hub.delay)
        try:
            status = self.hub.refuses(f"{self.command} {path}")
            if status is not None:
                raise _Answer(status, "told to fail")
            self._route(path)
            raise _Answer(404, f"the stand-in knows no {self.command} {path}")
        except _Answer as answer:
            lost = len(self.hub.requests) - 1 == self.hub.lose_at
            self._send(_Answer(501, "the answer was lost") if lost else answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: _Answer):
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self, path: str):
        path = re.sub("^/api/spaces/", "/api/models/spaces/", path)
        for command, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in command:
                answer(self, **{name: value for name, value in match.groupdict().items() if value is not None})

    # Who asks, and for what

    def _needs_write(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("write", "read"):
            raise _Answer(401, "Invalid credentials in Authorization header")
        if token == "read":
            raise _Answer(403, "You don't have the rights to write here with this token")

    def _repository(self, repo: str) -> Repository:
        repository = self.hub.repositories.get(repo)
        if repository is None or repository.private and "Authorization" not in self.headers:
            raise _Answer(404, "Repository not found", code="RepoNotFound")
        return repository

    def _commit(self, repo: str, revision: str) -> Commit:
        commit = self._repository(repo).find(revision)
        if commit is None:
            raise _Answer(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return commit

    # Answers

    def _whoami(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("write", "read"):
            raise _Answer(401, "Invalid credentials in Authorization header")
        me = {
            "type": "user",
            "name": "someone",
            "orgs": [{"name": "friends"}],
            "auth": {"accessToken": {"role": token}},
        }
        raise _Answer(200, me)

    def _validate_yaml(self):
        asked = json.loads(self.body)
        errors = {"model": metadata_errors, "space": space_errors}[asked["repoType"]](asked["content"])
        raise _Answer(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def _create(self):
        self._needs_write()
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if asked.get("type") == "space":
            if asked.get("sdk") not in SPACE_SDKS:
                raise _Answer(400, "a Space needs an SDK")
            repo = f"spaces/{repo}"
        if repo in self.hub.repositories:
            raise _Answer(409, {"error": "exists", "url": f"{self.hub.url}/{repo}"})
        self.hub.create(repo, asked.get("visibility") == "private" or asked.get("private") is True)
        raise _Answer(200, {"url": f"{self.hub.url}/{repo}"})

    def _info(self, repo: str, revision: str = "main"):
        commit = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in commit.tree]
        private = self._repository(repo).private
        raise _Answer(
            200,
            {
                "id": repo.removeprefix("spaces/"),
                "sha": commit.oid,
                "private": private,
                "siblings": siblings,
                "tags": [],
            },
        )

    def _refs(self, repo: str):
        def refs(kind: str, targets: dict[str, str]) -> list[dict]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in targets.items()]

        repository = self._repository(repo)
        raise _Answer(
            200,
            {"branches": refs("heads", repository.branches), "tags": refs("tags", repository.tags), "converts": []},
        )

    def _tree(self, repo: str, revision: str, folder: str = ""):
        tree = self._commit(repo, revision).tree
        inside = {path: data for path, data in tree.items() if path.startswith(folder.strip("/"))}
        if folder.strip("/") and not inside:
            raise _Answer(404, "not found", code="EntryNotFound")
        raise _Answer(200, [_entry(path, data) for path, data in sorted(inside.items())])

    def _paths_info(self, repo: str, revision: str):
        tree, asked = self._commit(repo, revision).tree, json.loads(self.body)["paths"]
        raise _Answer(200, [_entry(path, tree[path]) for path in asked if path in tree])

    def _branch(self, repo: str, name: str):
        self._needs_write()
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        self._repository(repo).branches[name] = self._commit(repo, start).oid
        raise _Answer(200, {})

    def _tag(self, repo: str, revision: str):
        self._needs_write()
        tags, name = self._repository(repo).tags, json.loads(self.body)["tag"]
        if name in tags:
            raise _Answer(409, "Tag reference exists already")
        tags[name] = self._commit(repo, revision).oid
        raise _Answer(200, {})

    def _preupload(self, repo: str, revision: str):
        self._needs_write()
        asked, tree = json.loads(self.body), self._commit(repo, revision).tree
        ignored = asked.get("gitIgnore", tree.get(".gitignore", b"").decode()).split()
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": file["path"] in ignored,
                "oid": _oid(file["path"], tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in asked["files"]
        ]
        raise _Answer(200, {"files": files})

    def _lfs_batch(self, repo: str):
        self._needs_write()
        self._repository(repo)
        objects, room = [], self.hub.quota - sum(len(data) for data in self.hub.stored.values())
        for file in json.loads(self.body)["objects"]:
            answer = {"oid": file["oid"], "size": file["size"]}
            if file["oid"] not in self.hub.stored:
                room -= file["size"]
                if room < 0:
                    raise _Answer(403, "Private repository storage limit reached, please upgrade your plan")
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{file['oid']}"}}
            objects.append(answer)
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(400, "what arrived is not what was announced")
        self.hub.stored[oid] = self.body
        raise _Answer(200, {})

    def _new_commit(self, repo: str, revision: str):
        self._needs_write()
        repository, head = self._repository(repo), self._commit(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, tree = lines[0]["value"], dict(head.tree)
        parent = header.get("parentCommit")
        create_pr = "create_pr" in self.query
        if parent is not None and parent != head.oid and not create_pr:
            raise _Answer(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                tree[value["path"]] = self.hub.stored[value["oid"]]
            elif kind == "deletedFile":
                del tree[value["path"]]
        branch, answer = revision, {}
        if create_pr:
            repository.pull_requests += 1
            branch = f"refs/pr/{repository.pull_requests}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{repository.pull_requests}"
        commit = repository.commit(branch, header["summary"], tree, head.oid)
        raise _Answer(
            200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit.oid}", "commitOid": commit.oid, **answer}
        )

    def _file(self, repo: str, revision: str, path: str):
        commit = self._commit(repo, revision)
        if path not in commit.tree:
            raise _Answer(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
        data = commit.tree[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{_oid(path, data)}"', "Accept-Ranges": "bytes"}
        raise _Answer(200, data, headers=headers)


def _oid(path: str, data: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": _oid(path, data), "size": len(data), "pointerSize": 130}
    else:
        entry["oid"] = _oid(path, data)
    return entry


def metadata_errors(card: str) -> list[str]:
    """What the Hub has against the metadata of a card, as far as it is known without the Hub."""
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", card, re.DOTALL)
    try:
        metadata = yaml.safe_load(match.group(1)) if match else None
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["no metadata"]
    hub_id, listed = r"([\w.-]+/)?[\w.-]+", {}
    for name in ("base_model", "datasets", "language", "tags"):
        value = metadata.get(name) or []
        listed[name] = [value] if isinstance(value, str) else value
    errors = [f'"{name}" must be text' for name in listed if not all(isinstance(item, str) for item in listed[name])]
    if errors:
        return errors
    errors += [
        f'"{n}": {i} is no id' for n in ("base_model", "datasets") for i in listed[n] if not re.fullmatch(hub_id, i)
    ]
    errors += [f'"language": {code}' for code in listed["language"] if not re.fullmatch(r"[a-z]{2,3}|code", code)]
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", metadata.get("license") or "unknown"):
        errors.append(f'"license": {metadata["license"]}')
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        errors.append('"license_name" is required with the license other')
    if metadata.get("pipeline_tag", "any-to-any") not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag": {metadata["pipeline_tag"]}')
    return errors


def space_errors(card: str) -> list[str]:
    """What the Hub has against the metadata of a Space, as far as it is known without the Hub."""
    metadata = yaml.safe_load(card.split("---")[1])
    errors = [f'"{name}" is required' for name in ("title", "sdk", "sdk_version", "app_file") if name not in metadata]
    if metadata.get("sdk") not in SPACE_SDKS:
        errors.append(f'"sdk": {metadata.get("sdk")}')
    if not re.fullmatch(r"\d+\.\d+\.\d+", str(metadata.get("sdk_version"))):
        errors.append(f'"sdk_version": {metadata.get("sdk_version")}')
    errors += [f'"{n}": {metadata[n]}' for n in ("colorFrom", "colorTo") if metadata.get(n, "red") not in SPACE_COLORS]
    if len(metadata.get("short_description", "")) > 60:
        errors.append('"short_description" has more than 60 characters')
    return errors


_REPO, _REVISION = r"(?P<repo>(?:spaces/)?[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = [
    (["GET"], "/api/whoami-v2", _Handler._whoami),
    (["POST"], "/api/validate-yaml", _Handler._validate_yaml),
    (["POST"], "/api/repos/create", _Handler._create),
    (["GET"], f"/api/models/{_REPO}", _Handler._info),
    (["GET"], f"/api/models/{_REPO}/revision/{_REVISION}", _Handler._info),
    (["GET"], f"/api/models/{_REPO}/refs", _Handler._refs),
    (["GET"], f"/api/models/{_REPO}/tree/{_REVISION}(?P<folder>/.*)?", _Handler._tree),
    (["POST"], f"/api/models/{_REPO}/paths-info/{_REVISION}", _Handler._paths_info),
    (["POST"], f"/api/models/{_REPO}/branch/(?P<name>.+)", _Handler._branch),
    (["POST"], f"/api/models/{_REPO}/tag/{_REVISION}", _Handler._tag),
    (["POST"], f"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    (["POST"], f"/api/models/{_REPO}/commit/{_REVISION}", _Handler._new_commit),
    (["POST"], f"/{_REPO}.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (["PUT"], "/storage/(?P<oid>[0-9a-f]+)", _Handler._store),
    (["GET", "HEAD"], f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler._file),
]
