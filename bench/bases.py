"""The base images: busybox and Debian from this machine's packages, one of 1 GiB, and one with the installed Go.

An image is a folder with manifest.json and blobs under their digests. They are made once and kept; the packages in Debian's age,
so that one is made anew each week."""
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time

import data
from state import call

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUITE = "bookworm"
# A maker that changes what it makes gets another number here.
VERSION = 2
BIG_LAYERS, BIG_SMALL, BIG_LARGE, BIG_LARGE_SIZE = 5, 20400, 40, 24 << 20


class Layer:
    """A file that is written as a layer into the folder of an image: `write` takes the bytes of the tar."""

    def __init__(self, folder):
        self.folder, self.plain, self.path = folder, hashlib.sha256(), os.path.join(folder, "layer.part")
        self.file = open(self.path, "wb")
        self.gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self.file, mtime=0)

    def write(self, piece):
        self.plain.update(piece)
        return self.gzip.write(piece)

    def finish(self):
        """Descriptor and diff ID."""
        self.gzip.close()
        self.file.close()
        return keep(self.folder, self.path, LAYER), "sha256:" + self.plain.hexdigest()


def keep(folder, path, kind):
    """Names a file after its digest and gives its descriptor."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    size = os.path.getsize(path)
    os.rename(path, os.path.join(folder, "sha256-" + digest.hexdigest()))
    return {"mediaType": kind, "digest": "sha256:" + digest.hexdigest(), "size": size}


def write_image(folder, layers, config):
    """Writes config and manifest of an image whose layers are in the folder."""
    path = os.path.join(folder, "config.part")
    with open(path, "w", encoding="utf-8") as file:
        # Buildah takes no image whose history has not all layers.
        json.dump({"architecture": "amd64", "os": "linux", "config": config, "history": [{"created_by": "bench"} for _ in layers],
                   "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in layers]}}, file)
    described = keep(folder, path, "application/vnd.oci.image.config.v1+json")
    with open(os.path.join(folder, "manifest.json"), "w", encoding="utf-8") as file:
        json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described,
                   "layers": [layer for layer, _ in layers]}, file)


def tar_layer(folder, path):
    """A layer from a tar that is there."""
    layer = Layer(folder)
    with open(path, "rb") as file:
        shutil.copyfileobj(file, layer, 1 << 20)
    return layer.finish()


def folder_layer(folder, root, prefix=""):
    """A layer from a directory, everything owned by root."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tar") as file:
        call("tar", "--numeric-owner", "--owner=0", "--group=0", "--mtime=@0", "--sort=name", "--transform=s,^\\./,%s," % prefix,
             "-C", root, "-cf", file.name, ".")
        return tar_layer(folder, file.name)


def carried(folder, other):
    """The layers of another image, with their diff IDs, as links in this folder."""
    with open(os.path.join(other, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    with open(os.path.join(other, manifest["config"]["digest"].replace(":", "-")), encoding="utf-8") as file:
        diffs = json.load(file)["rootfs"]["diff_ids"]
    for layer in manifest["layers"]:
        name = layer["digest"].replace(":", "-")
        os.link(os.path.join(other, name), os.path.join(folder, name))
    return list(zip(manifest["layers"], diffs))


def busybox(folder, cluster, **_):
    with tempfile.TemporaryDirectory() as root:
        call(os.path.join(cluster, "lib", "busybox-root.sh"), root)
        os.chmod(root, 0o755)
        write_image(folder, [folder_layer(folder, root)], {"Env": [PATH], "Cmd": ["sh"]})


def debian(folder, cluster, **_):
    with tempfile.TemporaryDirectory(dir=folder) as work:
        path = os.path.join(work, "debian.tar")
        call(os.path.join(cluster, "lib", "bases-debian"), SUITE, path)
        # What apt is asked with for the packages that this base has not (contexts.py).
        with tarfile.open(path) as tar, open(os.path.join(folder, "dpkg-status"), "wb") as file:
            file.write(tar.extractfile("./var/lib/dpkg/status").read())
        write_image(folder, [tar_layer(folder, path)], {"Env": [PATH], "Cmd": ["bash"]})


def big(folder, scale, needed, **_):
    """1 GiB in five layers on busybox: many small files of text, and large ones, three quarters noise."""
    layers, slices, count = carried(folder, needed("busybox")), data.Slices("big"), 0
    for n in range(BIG_LAYERS):
        layer = Layer(folder)
        with tarfile.open(fileobj=layer, mode="w|", format=tarfile.GNU_FORMAT, copybufsize=1 << 20) as tar:
            for number in range(max(1, int(BIG_SMALL * scale / BIG_LAYERS))):
                add(tar, "opt/big/layer%d/folder%d/file%d" % (n, number % 80, number), slices.between(200, 8000))
            for _ in range(BIG_LARGE // BIG_LAYERS):
                size = max(4096, int(BIG_LARGE_SIZE * scale))
                content = data.noise(size, "big-%d" % count) if count % 4 else data.text(size, "big-%d" % count)
                add(tar, "opt/big/layer%d/large%d.bin" % (n, count), content)
                count += 1
        layers.append(layer.finish())
    write_image(folder, layers, {"Env": [PATH], "Cmd": ["sh"]})


def add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), 0o644, 1700000000
    tar.addfile(entry, io.BytesIO(content))


def golang(folder, needed, **_):
    """Debian with the Go of this machine."""
    root = subprocess.run(["go", "env", "GOROOT"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    layers = carried(folder, needed("debian")) + [folder_layer(folder, root, "usr/local/go/")]
    write_image(folder, layers, {"Env": [PATH + ":/usr/local/go/bin", "GOTOOLCHAIN=local"], "Cmd": ["bash"]})


MAKERS = {"busybox": busybox, "debian": debian, "big": big, "golang": golang}


def make(name, store, cluster, scale):
    """The folder of a base image, made where it is not there yet."""
    key = {"big": "big-%g" % scale, "busybox": name}.get(name, name + time.strftime("-%G-%V"))
    folder = os.path.join(store, "bases", "%s-v%d" % (key, VERSION))
    if not os.path.exists(os.path.join(folder, "manifest.json")):
        print("bench: making the base image %s" % name, flush=True)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        part = tempfile.mkdtemp(prefix=".part-", dir=os.path.dirname(folder))
        try:
            MAKERS[name](part, cluster=cluster, scale=scale, needed=lambda other: make(other, store, cluster, scale))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder
