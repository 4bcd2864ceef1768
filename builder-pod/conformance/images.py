"""Reads an image from an OCI layout directory: manifest, config, the entries of each layer, and the file system they make."""
import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

KINDS = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink",
         tarfile.LNKTYPE: "hardlink", tarfile.FIFOTYPE: "fifo", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block"}
OPAQUE = ".wh..wh..opq"
WHITEOUT = ".wh."
# An index may name an index; more than this deep it is a loop or nonsense.
INDEX_DEPTH = 4


class Broken(Exception):
    """The layout is not a well-formed image."""


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def plain(blob):
    """The tar of a layer blob, whatever it is compressed with."""
    if blob[:2] == b"\x1f\x8b":
        return gzip.decompress(blob)
    if blob[:4] == b"\x28\xb5\x2f\xfd":
        return subprocess.run(["zstd", "-dcq"], input=blob, stdout=subprocess.PIPE, check=True).stdout
    return blob


def clean(name):
    """A tar member's path without leading or trailing slashes; "" is the root."""
    path = os.path.normpath("/" + name).lstrip("/")
    return path


def row(archive, member):
    """What a tar member says, but for its time."""
    kind = KINDS.get(member.type)
    if kind is None:
        raise Broken("%s has the tar type %r, which no image layer has" % (member.name, member.type))
    entry = {"path": clean(member.name), "type": kind}
    if kind == "hardlink":
        entry["linkname"] = clean(member.linkname)
        return entry
    if kind == "symlink":
        # The mode of a symlink means nothing.
        entry["linkname"] = member.linkname
    else:
        entry["mode"] = "%04o" % (member.mode & 0o7777)
    entry["uid"], entry["gid"] = member.uid, member.gid
    if kind == "file":
        data = archive.extractfile(member).read()
        entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    elif kind in ("char", "block"):
        entry["major"], entry["minor"] = member.devmajor, member.devminor
    attributes = {key[len("SCHILY.xattr."):]: base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()
                  for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    if attributes:
        entry["xattrs"] = attributes
    return entry


class Image:
    """An image with every digest, size and diff ID checked."""

    def __init__(self, layout, architecture="amd64"):
        self.layout = layout
        with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
            found = json.load(file)
        for _ in range(INDEX_DEPTH):
            if "manifests" not in found:
                break
            # Attestations stand beside images as manifests of an unknown platform.
            images = [one for one in found["manifests"] if (one.get("platform") or {}).get("os") != "unknown"]
            fitting = [one for one in images if (one.get("platform") or {}).get("architecture", architecture) == architecture]
            if not images:
                raise Broken("the index of %s names no image" % layout)
            found = json.loads(self.blob((fitting or images)[0]))
        if "config" not in found:
            raise Broken("%s has no image manifest within %d indexes" % (layout, INDEX_DEPTH))
        self.manifest = found
        self.config = json.loads(self.blob(found["config"]))
        self.diff_ids = (self.config.get("rootfs") or {}).get("diff_ids") or []
        self.history = self.config.get("history") or []
        descriptors = found.get("layers") or []
        if len(descriptors) != len(self.diff_ids):
            raise Broken("%d layers, but %d diff IDs" % (len(descriptors), len(self.diff_ids)))
        filled = sum(1 for one in self.history if not one.get("empty_layer"))
        if self.history and filled != len(descriptors):
            raise Broken("the history speaks of %d layers, there are %d" % (filled, len(descriptors)))
        self.layers = [self.layer(*pair) for pair in zip(descriptors, self.diff_ids)]

    def blob(self, descriptor):
        """The content of a descriptor, its size and digest checked."""
        path = os.path.join(self.layout, "blobs", *descriptor["digest"].split(":"))
        with open(path, "rb") as file:
            data = file.read()
        if len(data) != descriptor["size"] or digest(data) != descriptor["digest"]:
            raise Broken("blob %s: %d bytes with digest %s, its descriptor says %d bytes" %
                         (descriptor["digest"], len(data), digest(data), descriptor["size"]))
        return data

    def layer(self, descriptor, diff_id):
        """The entries of a layer in their order: (entry, time in whole seconds)."""
        tar = plain(self.blob(descriptor))
        if digest(tar) != diff_id:
            raise Broken("layer %s: diff ID %s, the config says %s" % (descriptor["digest"], digest(tar), diff_id))
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            rows = [(row(archive, member), int(member.mtime)) for member in archive]
        paths = [entry["path"] for entry, _ in rows]
        if len(paths) != len(set(paths)):
            twice = sorted({path for path in paths if paths.count(path) > 1})
            raise Broken("layer %s names these paths twice: %s" % (descriptor["digest"], ", ".join(twice)))
        return rows

    def files(self, layers=None):
        """Path -> entry of the merged file system, by the rules of the image-spec's layer.md. The names of a file with
        several are in `hardlinks` of each."""
        tree = {}
        for rows in self.layers[:layers]:
            apply(tree, [entry for entry, _ in rows])
        names = {}
        for path, entry in tree.items():
            names.setdefault(id(entry), []).append(path)
        result = {}
        for path, entry in sorted(tree.items()):
            group = sorted(names[id(entry)])
            more = {"hardlinks": group} if len(group) > 1 else {}
            result[path] = {**{key: value for key, value in entry.items() if key != "path"}, **more}
        return result


def drop(tree, path, itself=True):
    """Takes away what is below a path, and the path."""
    below = path + "/" if path else ""
    for name in [name for name in tree if (itself and name == path) or (name != path and name.startswith(below))]:
        del tree[name]


def apply(tree, rows):
    """One layer onto a tree; entries of one inode are one object."""
    # A whiteout hides what lies in lower layers only, wherever in the layer it stands.
    for entry in rows:
        folder, name = os.path.split(entry["path"])
        if name == OPAQUE:
            drop(tree, folder, itself=False)
        elif name.startswith(WHITEOUT):
            drop(tree, os.path.join(folder, name[len(WHITEOUT):]))
    for entry in rows:
        path, kind = entry["path"], entry["type"]
        if not path or os.path.basename(path).startswith(WHITEOUT):
            continue
        parent = os.path.dirname(path)
        while parent and parent not in tree:
            tree[parent] = {"path": parent, "type": "dir", "mode": "0755", "uid": 0, "gid": 0}
            parent = os.path.dirname(parent)
        if kind == "hardlink":
            if entry["linkname"] not in tree:
                raise Broken("%s is a hard link to %s, which is not there" % (path, entry["linkname"]))
            target = tree[entry["linkname"]]
            drop(tree, path)
            tree[path] = target
            continue
        if not (kind == "dir" and tree.get(path, {}).get("type") == "dir"):
            drop(tree, path)
        tree[path] = entry
