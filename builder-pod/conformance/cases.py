"""Build cases as files: a folder with Dockerfile and case.json, written out as the context that a builder gets."""
import base64
import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile

# What files get that name no time: far enough back to be told from the time of a build.
LONG_AGO = 1485449953
TAR_KINDS = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
             "fifo": tarfile.FIFOTYPE, "char": tarfile.CHRTYPE}


def load(folder):
    """The case of a folder; its Dockerfile is `_dockerfile`."""
    with open(os.path.join(folder, "case.json"), encoding="utf-8") as file:
        case = json.load(file)
    with open(os.path.join(folder, "Dockerfile"), "rb") as file:
        case["_dockerfile"] = file.read()
    return case


def content(spec):
    if "b64" in spec:
        return base64.b64decode(spec["b64"])
    if "zeros" in spec:
        return bytes(int(spec["zeros"]))
    return spec.get("text", "").encode()


def mode_of(spec):
    return int(spec.get("mode", "0755" if spec.get("type") == "dir" else "0644"), 8)


def archive(spec):
    """The bytes of {"tar": [entries], "compress": none, gzip, bzip2, xz or zstd}."""
    buffer = io.BytesIO()
    layout = tarfile.USTAR_FORMAT if spec.get("format") == "ustar" else tarfile.PAX_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as tar:
        for one in spec["tar"]:
            member = tarfile.TarInfo(one["path"])
            member.type, member.mode = TAR_KINDS[one.get("type", "file")], mode_of(one)
            member.uid, member.gid = one.get("uid", 0), one.get("gid", 0)
            member.mtime, member.linkname = one.get("mtime", LONG_AGO), one.get("target", "")
            member.devmajor, member.devminor = one.get("major", 0), one.get("minor", 0)
            for key, value in one.get("xattrs", {}).items():
                member.pax_headers["SCHILY.xattr." + key] = base64.b64decode(value).decode("utf-8", "surrogateescape")
            data = content(one) if member.type == tarfile.REGTYPE else b""
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    raw = buffer.getvalue()
    zstd = lambda data: subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return {"none": bytes, "gzip": lambda data: gzip.compress(data, mtime=0), "bzip2": bz2.compress, "xz": lzma.compress,
            "zstd": zstd}[spec.get("compress", "none")](raw)


def write_tree(entries, root):
    """Makes the files of a list below a directory. Needs root for other owners."""
    os.makedirs(root, exist_ok=True)
    times = []
    for spec in entries:
        path, kind = os.path.join(root, spec["path"].lstrip("/")), spec.get("type", "file")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "symlink":
            os.symlink(spec["target"], path)
            continue
        if kind == "hardlink":
            os.link(os.path.join(root, spec["target"].lstrip("/")), path)
            continue
        if kind == "dir":
            os.makedirs(path, exist_ok=True)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            with open(path, "wb") as file:
                file.write(archive(spec["archive"]) if "archive" in spec else content(spec))
        os.chown(path, spec.get("uid", 0), spec.get("gid", 0))
        os.chmod(path, mode_of(spec))
        for key, value in spec.get("xattrs", {}).items():
            os.setxattr(path, key, base64.b64decode(value))
        times.append((path, spec.get("mtime", LONG_AGO)))
    # Last, as each file that is made changes its directory's time; no file has the time of now, not even an implied parent.
    given = dict(times)
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            time = given.get(path, LONG_AGO)
            os.utime(path, (time, time), follow_symlinks=False)


def materialize(case, out):
    """out/context with the Dockerfile in it, out/named/NAME, out/secrets/ID."""
    context, options = os.path.join(out, "context"), case.get("options", {})
    write_tree(case.get("context", []), context)
    dockerfile = os.path.join(context, case.get("dockerfile", "Dockerfile"))
    os.makedirs(os.path.dirname(dockerfile), exist_ok=True)
    with open(dockerfile, "wb") as file:
        file.write(case["_dockerfile"])
    os.chmod(dockerfile, 0o644)
    os.utime(dockerfile, (LONG_AGO, LONG_AGO))
    for name, spec in options.get("named_contexts", {}).items():
        if spec["type"] == "local":
            write_tree(spec["files"], os.path.join(out, "named", name))
    for name, spec in options.get("secrets", {}).items():
        os.makedirs(os.path.join(out, "secrets"), exist_ok=True)
        with open(os.path.join(out, "secrets", name), "wb") as file:
            file.write(content(spec))


def plain_builds(folder):
    """The builds of a folder that is no corpus: name -> (context, path of the Dockerfile)."""
    found = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and os.path.isfile(os.path.join(path, "Dockerfile")):
            found[name] = (path, os.path.join(path, "Dockerfile"))
        elif os.path.isfile(path) and re.search(r"^Dockerfile|\.Dockerfile$", name) and not name.endswith(".dockerignore"):
            found[name] = (folder, path)
    return found


def copy_plain(context, dockerfile, out):
    """Makes out/context of a plain build, and gives the case that it is."""
    target = os.path.join(out, "context")
    shutil.copytree(context, target, symlinks=True)
    return {"options": {}, "dockerfile": os.path.relpath(dockerfile, context)}


def dump(case):
    """case.json with a line for each entry of a list, so that a change shows as the lines it concerns."""
    line = lambda value: json.dumps(value, ensure_ascii=False)

    def block(value, indent):
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return "[\n" + ",\n".join(" " * (indent + 1) + line(one) for one in value) + "\n" + " " * indent + "]"
        return line(value)

    parts = []
    for key, value in case.items():
        if key == "expect":
            inner = ",\n".join("  %s: %s" % (line(name), block(one, 2)) for name, one in value.items())
            parts.append(' "expect": {\n%s\n }' % inner)
        elif not key.startswith("_"):
            parts.append(" %s: %s" % (line(key), block(value, 1)))
    return "{\n" + ",\n".join(parts) + "\n}\n"
