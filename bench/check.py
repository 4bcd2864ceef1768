"""Whether the builders made the same image: the merged tree of all layers, by path, type, size, mode, owner and link.

A builder that does less would be faster. Content is not compared (noise is another one in each build), times are not either."""
import os
import subprocess
import tarfile

SHOWN = 3
# Written by programs of the build with times in them, or by the builder for the time of a step.
LOOSE = ("var/log/", "var/cache/", "var/lib/dpkg/", "etc/ld.so.cache", "tmp/")
PLACES = ("", "dev", "proc", "sys", "etc/hosts", "etc/resolv.conf", "etc/hostname")


class Layers:
    """Entries of layers, read from the registry's storage, each digest once."""

    def __init__(self):
        self.known = {}

    def entries(self, storage, digest):
        """(path, what it is) of each entry of a layer."""
        if digest not in self.known:
            path = os.path.join(storage, "docker/registry/v2/blobs/sha256", digest[7:9], digest[7:], "data")
            with open(path, "rb") as file:
                magic = file.read(4)
            program = "zstd" if magic == b"\x28\xb5\x2f\xfd" else "pigz" if magic[:2] == b"\x1f\x8b" else "cat"
            reader = subprocess.Popen([program, *(["-dc"] if program != "cat" else []), path], stdout=subprocess.PIPE)
            with tarfile.open(fileobj=reader.stdout, mode="r|") as tar:
                self.known[digest] = [(os.path.normpath(each.name).lstrip("/"), described(each)) for each in tar]
            # A compressed stream may go on after the end of the tar.
            while reader.stdout.read(1 << 20):
                pass
            reader.wait()
        return self.known[digest]

    def tree(self, storage, manifest):
        """path -> what it is, of all layers one above the other."""
        tree = {}
        for layer in manifest["layers"]:
            found = self.entries(storage, layer["digest"])
            for path, _ in found:
                folder, name = os.path.split(path)
                if name == ".wh..wh..opq":
                    remove(tree, folder + "/")
                elif name.startswith(".wh."):
                    gone = os.path.join(folder, name[4:])
                    tree.pop(gone, None)
                    remove(tree, gone + "/")
            for path, what in found:
                if not os.path.basename(path).startswith(".wh."):
                    # Something else than a directory takes the place of all that was below.
                    if what[0] != "directory" and tree.get(path, ("",))[0] == "directory":
                        remove(tree, path + "/")
                    tree[path] = what
        return {"" if path == "." else path: what for path, what in tree.items()}


def remove(tree, prefix):
    for path in [each for each in tree if each.startswith(prefix)]:
        del tree[path]


def described(entry):
    """Type, mode, owner, and size or target."""
    kind = "directory" if entry.isdir() else "file" if entry.isreg() or entry.islnk() else "link" if entry.issym() else "other"
    more = entry.linkname if kind == "link" else entry.size if entry.isreg() else None
    return kind, None if kind == "link" else entry.mode & 0o7777, entry.uid, entry.gid, more


def differences(one, other):
    """Lines that say what differs, and how many more there are."""
    def same(path):
        a, b = one.get(path), other.get(path)
        if a is None or b is None:
            return path in PLACES or path.startswith(("tmp/", "var/cache/"))
        # Of two names of a file one has the size; which one is the builder's choice.
        sizes_count = None not in (a[4], b[4]) and not path.startswith(LOOSE)
        return path in PLACES or (a[:4] == b[:4] and (a[4] == b[4] or not sizes_count))
    found = sorted(path for path in one.keys() | other.keys() if not same(path))
    lines = ["%s: %s, and here %s" % (path, one.get(path, "absent"), other.get(path, "absent")) for path in found[:SHOWN]]
    return lines + (["and %d more" % (len(found) - SHOWN)] if len(found) > SHOWN else [])
