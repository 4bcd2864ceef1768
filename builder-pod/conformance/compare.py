"""The one comparer: an image with a case's recorded answer, or with the image that another builder made of the same."""
import json
import os
import re

CONFIG = ["User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck",
          "OnBuild", "Shell"]
# Of the whole config, what two right builders may say otherwise, and why. Everything else has to be equal.
MAY_DIFFER = {
    "created": "the time of the build",
    "history": "compared by itself: created_by, comment's absence and empty_layer of each entry",
    "rootfs": "digests cover the times of files; the entries of the layers are compared instead",
    "moby.buildkit.buildinfo.v1": "BuildKit's own record of its sources",
    "moby.buildkit.cache.v0": "BuildKit's own inline cache",
}


def config_of(image):
    """The fields of an image's config that a case names; what is empty is absent."""
    inner = image.config.get("config") or {}
    fields = {key: inner[key] for key in CONFIG if inner.get(key) not in (None, "", [], {})}
    if image.config.get("author"):
        fields["Author"] = image.config["author"]
    return fields


def history_of(image, after=0):
    return [{key: entry[key] for key in ("created_by", "empty_layer") if entry.get(key)} for entry in image.history[after:]]


def say(value):
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def since(base, files):
    """Entries that are new or other than the base's, and the paths of the base that are gone."""
    return {path: entry for path, entry in files.items() if base.get(path) != entry}, sorted(set(base) - set(files))


def result_of(image, base):
    """What a case's `expect` says of a success: config, files and deleted against the base, layers, history."""
    files, deleted = since(base.files() if base else {}, image.files())
    layers, history = (len(base.layers), len(base.history)) if base else (0, 0)
    result = {"result": "success", "os": image.config["os"], "architecture": image.config["architecture"]}
    if image.config.get("variant"):
        result["variant"] = image.config["variant"]
    return {**result, "config": config_of(image), "files": [{"path": path, **entry} for path, entry in files.items()],
            "deleted": deleted, "layers": len(image.layers) - layers, "history": history_of(image, history)}


def which_base(image, bases):
    """The name of the base that an image stands on, "scratch" where it is none of them."""
    fits = [(len(base.diff_ids), name) for name, base in bases.items()
            if image.diff_ids[:len(base.diff_ids)] == base.diff_ids and base.diff_ids]
    return max(fits)[1] if fits else "scratch"


def entries(expected, found, where, ignored=()):
    """Differences of two maps of path -> entry; a missing key of an entry is a difference, too."""
    out = []
    for path in sorted(set(expected) | set(found)):
        if any(pattern.search(path) for pattern in ignored):
            continue
        want, have = expected.get(path), found.get(path)
        if want is None or have is None:
            out.append("%s/%s: expected %s, found %s" % (where, path, say(want), say(have)))
            continue
        skip = {"path", "unstable"} | ({"size", "sha256"} if want.get("unstable") else set())
        for key in sorted((set(want) | set(have)) - skip):
            if want.get(key) != have.get(key):
                out.append("%s/%s: %s: expected %s, found %s" % (where, path, key, say(want.get(key)), say(have.get(key))))
    return out


def fields(expected, found, where):
    return ["%s %s: expected %s, found %s" % (where, key, say(expected.get(key)), say(found.get(key)))
            for key in sorted(set(expected) | set(found)) if expected.get(key) != found.get(key)]


def same_time(one, other):
    """Whether two RFC 3339 times in UTC are one, to the second."""
    whole = lambda text: re.sub(r"(\.\d+)?(Z|\+00:00)$", "Z", text or "")
    return whole(one) == whole(other)


def with_answer(case, image, bases):
    """Differences from a case's recorded answer, and remarks on what is for information only."""
    expected = case["expect"]
    if expected["result"] != "success":
        error = expected.get("error", {})
        return ["expected a failure on line %s (%s), found an image" % (error.get("line"), error.get("message"))], []
    name = case.get("base", "scratch")
    if name != "scratch" and name not in bases:
        return ["the case stands on the base %s, of which there is no image" % name], []
    found = result_of(image, bases.get(name))
    ignored = [re.compile(pattern) for pattern in case.get("ignore_paths", [])]
    by_path = lambda rows: {one["path"]: one for one in rows}
    out = entries(by_path(expected.get("files", [])), by_path(found["files"]), "file ", ignored)
    for path in sorted(set(expected.get("deleted", [])) ^ set(found["deleted"])):
        if not any(pattern.search(path) for pattern in ignored):
            words = ("deleted", "there") if path in expected.get("deleted", []) else ("there", "deleted")
            out.append("base path %s: expected %s, found %s" % (path, *words))
    want, have, notes = dict(expected.get("config", {})), dict(found["config"]), []
    if want.get("Env") != have.get("Env") and sorted(want.get("Env", [])) == sorted(have.get("Env", [])):
        notes.append("Env has another order than BuildKit's")
        want.pop("Env"), have.pop("Env")
    out += fields(want, have, "config")
    out += ["%s: expected %s, found %s" % (key, expected[key], found.get(key))
            for key in ("os", "architecture", "variant") if expected.get(key) is not None and found.get(key) != expected[key]]
    if "created" in expected and not same_time(image.config.get("created"), expected["created"]):
        out.append("created: expected %s, found %s" % (expected["created"], image.config.get("created")))
    strict = out if case.get("strict") else notes
    strict += ["%s: expected %s, found %s" % (key, say(expected[key]), say(found[key]))
               for key in ("history", "layers") if key in expected and expected[key] != found[key]]
    return out, notes


def with_failure(case, line, message):
    """Differences of a failed build from a case's recorded answer. Texts are each builder's own; the line has to be right."""
    expected = case["expect"]
    if expected["result"] != "failure":
        return ["expected an image, found a failure on line %s: %s" % (line, message)]
    error = expected.get("error", {})
    first = error.get("line")
    if first is None or (line is not None and first <= line <= error.get("end_line", first)):
        return []
    lines = "%s to %s" % (first, error["end_line"]) if error.get("end_line", first) != first else str(first)
    return ["expected a failure on line %s (%s), found one on line %s: %s" % (lines, error.get("message"), line, message)]


def of_builders(expected, found, began, epoch=None):
    """Differences of two images of one Dockerfile. `began` is the Unix time at which the reference was started: what it
    dates earlier was given to it (by the context, an archive or SOURCE_DATE_EPOCH), so it has to be kept. A file's time
    is that of the kernel's last tick, so it may lie a little before its making. `epoch` is SOURCE_DATE_EPOCH: BuildKit sets files back to it only when its exporter is
    told to, Kiln always."""
    want = {key: value for key, value in expected.config.items() if key not in MAY_DIFFER and key != "config"}
    have = {key: value for key, value in found.config.items() if key not in MAY_DIFFER and key != "config"}
    out = fields(want, have, "image")
    out += fields(expected.config.get("config") or {}, found.config.get("config") or {}, "config")
    want, have = history_of(expected), history_of(found)
    out += ["history %d: expected %s, found %s" % (index, say(one), say(other))
            for index, (one, other) in enumerate(pad(want, have)) if one != other]
    if len(expected.layers) != len(found.layers):
        out.append("layers: expected %d, found %d; the merged files are compared instead" %
                   (len(expected.layers), len(found.layers)))
        return out + entries(expected.files(), found.files(), "file ")
    for index, (one, other) in enumerate(zip(expected.layers, found.layers)):
        where = "layer %d " % index
        out += entries(linked(one), linked(other), where)
        other = {entry["path"]: time for entry, time in other}
        for entry, given in one:
            time = given if epoch is None else min(given, epoch)
            path = entry["path"]
            if given < int(began) - 1 and path in other and other[path] != time and not os.path.basename(path).startswith(".wh."):
                out.append("%s/%s: mtime: expected %d, found %d" % (where, path, time, other[path]))
    return out


def without_noise(differences, noise):
    """The differences in what the reference answers twice alike. `noise` is how two of its own builds differ."""
    about = lambda text: text.split(": expected ")[0]
    chance = {about(text) for text in noise}
    # Another content may have another size by chance.
    chance |= {text.removesuffix(": sha256") + ": size" for text in chance if text.endswith(": sha256")}
    return [text for text in differences if about(text) not in chance]


def pad(one, other):
    """Pairs of two lists, None where the shorter one has ended."""
    return [(one[i] if i < len(one) else None, other[i] if i < len(other) else None) for i in range(max(len(one), len(other)))]


def linked(rows):
    """Path -> entry of one layer. Which name of a file is the file and which are links to it is the order of the archive, so
    each gets what the file has and the names of all."""
    by_path = {entry["path"]: entry for entry, _ in rows}
    groups = {}
    for entry, _ in rows:
        if entry["type"] == "hardlink":
            groups.setdefault(entry["linkname"], [entry["linkname"]]).append(entry["path"])
    result = dict(by_path)
    for first, names in groups.items():
        file = {key: value for key, value in by_path.get(first, {"type": "in a lower layer"}).items() if key != "path"}
        for name in names:
            if name in by_path:
                result[name] = {"path": name, **file, "hardlinks": sorted(names)}
    # A whiteout is its name; what else its entry says has no meaning.
    return {path: {"path": path, "type": "whiteout"} if os.path.basename(path).startswith(".wh.") else entry
            for path, entry in result.items()}
