"""A registry to read from: OCI layouts below a directory, each as library/NAME:latest. Loopback only, no credentials."""
import http.server
import json
import os
import re
import threading

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    """Serves the layouts of a directory; `host` is what a mirror setting names."""

    def __init__(self, layouts):
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, body):
                status, kind, data = registry.find(self.path.split("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if body:
                    self.wfile.write(data)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # a client that hung up

        self.layouts = layouts
        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = "127.0.0.1:%d" % self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def find(self, path):
        """Status, content type and bytes of a request."""
        if path.rstrip("/") == "/v2":
            return 200, "application/json", b"{}"
        missing = 404, "application/json", b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not known"}]}'
        asked = re.fullmatch(r"/v2/library/([a-z0-9]+)/(manifests|blobs)/([a-z0-9:]+)", path)
        if not asked:
            return missing
        name, kind, selector = asked.groups()
        layout = os.path.join(self.layouts, name)
        if kind == "manifests" and selector == "latest" and os.path.isdir(layout):
            with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
                selector = json.load(file)["manifests"][0]["digest"]
        blob = os.path.join(layout, "blobs", *selector.split(":"))
        if not selector.startswith("sha256:") or not os.path.isfile(blob):
            return missing
        with open(blob, "rb") as file:
            return 200, MANIFEST if kind == "manifests" else "application/octet-stream", file.read()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
