"""The one registry of a bench: Distribution on loopback with its storage on tmpfs, and what it counted of a run.

Each run has a process and a storage of its own, copied from a prepared one: blobs as hard links, names as copies (a registry
rewrites names in place, and would otherwise rewrite them for every later run)."""
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time

HOST = "127.0.0.1:5000"
START_SECONDS = 30
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFESTS = ["application/vnd.oci.image.manifest.v1+json", INDEX, "application/vnd.docker.distribution.manifest.v2+json",
             "application/vnd.docker.distribution.manifest.list.v2+json"]
REQUEST = re.compile(rb'^\S+ \S+ \S+ \[[^\]]*\] "([A-Z]+) (\S+) [^"]*" (\d+) (\d+)', re.M)

CONFIG = """version: 0.1
log: {level: error, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: %s, maxthreads: 100}, cache: {blobdescriptor: inmemory}}
http: {addr: "%s", secret: bench}
"""


def copy_storage(source, target):
    """A storage that can be written to without a change of `source`."""
    def copy(a, b):
        os.link(a, b) if os.path.basename(a) == "data" else shutil.copyfile(a, b)
    shutil.copytree(source, target, copy_function=copy)


class Registry:
    """A running registry over `storage`; a context manager."""

    def __init__(self, program, storage, folder):
        self.program, self.storage = program, storage
        self.config, self.log = os.path.join(folder, "registry.yml"), os.path.join(folder, "registry.log")
        self.process = None

    def __enter__(self):
        os.makedirs(self.storage, exist_ok=True)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(CONFIG % (self.storage, HOST))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([self.program, "serve", self.config], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"})
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.ask("GET", "/v2/")[0] == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                with open(self.log, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError("the registry did not start; its log ends:\n" + file.read()[-2000:])
            time.sleep(0.01)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def pid(self):
        return self.process.pid

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of a request. A name that is relative or absolute is the registry's own."""
        connection = http.client.HTTPConnection(HOST, timeout=600)
        try:
            connection.request(method, path.replace("http://" + HOST, ""), body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def put_blob(self, repository, path, digest):
        """Pushes a file as a blob."""
        status, headers, body = self.ask("POST", "/v2/%s/blobs/uploads/" % repository)
        if status != 202:
            raise RuntimeError("the registry answered %d to an upload: %r" % (status, body[:200]))
        place = headers["Location"]
        with open(path, "rb") as file:
            status, _, body = self.ask("PUT", place + ("&" if "?" in place else "?") + "digest=" + digest, file,
                                       {"Content-Length": str(os.path.getsize(path)), "Content-Type": "application/octet-stream"})
        if status != 201:
            raise RuntimeError("the registry answered %d to a blob: %r" % (status, body[:200]))

    def put_image(self, repository, tag, folder):
        """Pushes what bases.py wrote: manifest.json, and blobs under their digests."""
        with open(os.path.join(folder, "manifest.json"), "rb") as file:
            manifest = file.read()
        content = json.loads(manifest)
        for blob in {each["digest"] for each in content["layers"] + [content["config"]]}:
            self.put_blob(repository, os.path.join(folder, blob.replace(":", "-")), blob)
        status, _, body = self.ask("PUT", "/v2/%s/manifests/%s" % (repository, tag), manifest, {"Content-Type": content["mediaType"]})
        if status != 201:
            raise RuntimeError("the registry answered %d to a manifest: %r" % (status, body[:200]))

    def manifest(self, repository, tag):
        """The manifest of an image, of the first platform where there are several; None where there is none."""
        status, _, body = self.ask("GET", "/v2/%s/manifests/%s" % (repository, tag), headers={"Accept": ", ".join(MANIFESTS)})
        if status != 200:
            return None
        content = json.loads(body)
        return self.manifest(repository, content["manifests"][0]["digest"]) if "manifests" in content else content

    def blob(self, repository, digest):
        """The bytes of a blob."""
        status, _, body = self.ask("GET", "/v2/%s/blobs/%s" % (repository, digest))
        if status != 200 or "sha256:" + hashlib.sha256(body).hexdigest() != digest:
            raise RuntimeError("the registry does not give %s of %s: %d" % (digest, repository, status))
        return body

    def counters(self):
        """Bytes that the process has written, and how long its log is."""
        with open("/proc/%d/io" % self.pid, encoding="ascii") as file:
            written = int(re.search(r"^wchar: (\d+)", file.read(), re.M).group(1))
        return written, os.path.getsize(self.log)

    def since(self, before):
        """Requests, bytes sent to the registry and bytes fetched since `before`.

        What the process wrote is what it stored, what it answered and its log, so what it was sent is the rest. Names and
        upload states that it stores are in it: some KiB a layer."""
        written, length = self.counters()
        with open(self.log, "rb") as file:
            file.seek(before[1])
            asked = REQUEST.findall(file.read(length - before[1]))
        answered = sum(int(size) for method, _, _, size in asked if method != b"HEAD")
        return {"requests": len(asked), "fetched": answered,
                "sent": max(0, written - before[0] - answered - (length - before[1]))}
