"""The base image of the repository's own cases: a static busybox with its applets as links, made as an OCI layout."""
import gzip
import hashlib
import json
import os
import subprocess

import cases

PASSWD = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n" \
    "web:x:1200:1300:web:/home/web:/bin/sh\n"
GROUP = "root:x:0:\ndaemon:x:1:\nstaff:x:50:web\nweb:x:1300:\naudio:x:29:web,daemon\nnogroup:x:65534:\n"
MADE = "2023-11-14T22:13:20Z"


def busybox_files(busybox):
    """Entries of the layer, and nothing that depends on this machine but the program itself."""
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    with open(busybox, "rb") as file:
        program = file.read()
    directory = lambda path, mode="0755", **more: {"path": path, "type": "dir", "mode": mode, **more}
    text = lambda path, words, mode="0644": {"path": path, "text": words, "mode": mode}
    links = [{"path": "bin/" + name, "type": "symlink", "target": "busybox"} for name in sorted(set(applets) - {"busybox"})]
    return [directory("bin"), {"path": "bin/busybox", "mode": "0755", "bytes": program}, *links, directory("dev"),
            directory("etc"), text("etc/group", GROUP), text("etc/passwd", PASSWD), directory("home"),
            directory("home/web", "0750", uid=1200, gid=1300), directory("proc"), directory("root", "0700"),
            directory("sys"), directory("tmp", "1777"), directory("usr"), directory("var"), directory("var/tmp", "1777")]


def make(busybox, out):
    """Writes the layout out/busybox."""
    import base64

    files = [{**{key: value for key, value in one.items() if key != "bytes"},
              **({"b64": base64.b64encode(one["bytes"]).decode()} if "bytes" in one else {})} for one in busybox_files(busybox)]
    layout = os.path.join(out, "busybox")
    blobs = os.path.join(layout, "blobs", "sha256")
    os.makedirs(blobs, exist_ok=True)

    def put(data, kind):
        name = hashlib.sha256(data).hexdigest()
        with open(os.path.join(blobs, name), "wb") as file:
            file.write(data)
        return {"mediaType": "application/vnd.oci.image.%s" % kind, "digest": "sha256:" + name, "size": len(data)}

    tar = cases.archive({"tar": files})
    config = {"created": MADE, "architecture": "amd64", "os": "linux",
              "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
              "history": [{"created": MADE, "created_by": "busybox"}]}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": put(json.dumps(config).encode(), "config.v1+json"),
                "layers": [put(gzip.compress(tar, mtime=0), "layer.v1.tar+gzip")]}
    index = {"schemaVersion": 2, "manifests": [put(json.dumps(manifest).encode(), "manifest.v1+json")]}
    for name, document in (("index.json", index), ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        with open(os.path.join(layout, name), "w", encoding="utf-8") as file:
            json.dump(document, file)
