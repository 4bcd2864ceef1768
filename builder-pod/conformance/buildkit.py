"""BuildKit as the reference: starts a buildkitd of its own in a directory, and builds with buildctl."""
import json
import os
import re
import signal
import subprocess
import time

# A daemon that is not up by then will not be; on a busy machine it takes some seconds.
START_SECONDS = 60
BUILD_SECONDS = 300
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Daemon:
    """A running buildkitd. The caller's namespaces are to be its own: its steps share the network."""

    def __init__(self, buildkitd, runc, root, mirror):
        self.address = "unix://" + os.path.join(root, "buildkitd.sock")
        self.log = os.path.join(root, "buildkitd.log")
        settings = os.path.join(root, "buildkitd.toml")
        with open(settings, "w", encoding="utf-8") as file:
            # A list, a string and a boolean are the same in TOML and JSON.
            file.write("""root = %s
insecure-entitlements = ["network.host", "security.insecure"]
[worker.containerd]
enabled = false
[worker.oci]
enabled = true
binary = %s
networkMode = "host"
gc = false
[registry."docker.io"]
mirrors = [%s]
[registry.%s]
http = true
""" % (json.dumps(os.path.join(root, "state")), json.dumps(runc), json.dumps(mirror), json.dumps(mirror)))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([buildkitd, "--config", settings, "--addr", self.address],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, buildctl):
        """Until the worker answers."""
        until = time.monotonic() + START_SECONDS
        while True:
            asked = subprocess.run([buildctl, "--addr", self.address, "--timeout", "2", "debug", "workers"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if asked.returncode == 0 and b"linux/amd64" in asked.stdout:
                return
            if self.process.poll() is not None or time.monotonic() > until:
                with open(self.log, encoding="utf-8", errors="replace") as file:
                    end = file.read()[-2000:]
                raise RuntimeError("buildkitd did not get ready within %d s (exit code %s); its log ends:\n%s" %
                                   (START_SECONDS, self.process.poll(), end))

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def freshen(root, counter):
    """Gives every file a time that no other case has, by its nanoseconds: the daemon keeps contexts of one client, and takes
    a file of equal size and time for the same. Whole seconds stay, and they are what an image has."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in sorted(files + folders):
            path, second = os.path.join(folder, name), 10 ** 9
            counter += 1
            stamp = int(os.lstat(path).st_mtime) * second + counter % second
            os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    return counter


def built_in(context, dockerfile, out):
    """A directory with the Dockerfile as the built-in frontend takes it: `# syntax=` would have the daemon fetch a frontend, and
    there is no network. It becomes another comment of as many lines."""
    with open(os.path.join(context, dockerfile), "rb") as file:
        text = file.read()
    other = re.sub(rb"(?im)\A((?:\s*#[^\n]*\n)*?\s*#\s*)syntax(\s*=)", rb"\1frontend\2", text)
    if other == text:
        return context
    target = os.path.join(out, dockerfile)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(other)
    ignore = os.path.join(context, dockerfile + ".dockerignore")
    if os.path.exists(ignore):
        with open(ignore, "rb") as source, open(target + ".dockerignore", "wb") as file:
            file.write(source.read())
    return out


def command(buildctl, daemon, case, out, fixture, layout):
    """The command line for the options of a case."""
    options, context = case.get("options", {}), os.path.join(out, "context")
    dockerfile = case.get("dockerfile", "Dockerfile")
    words = [buildctl, "--addr", daemon.address, "build", "--progress", "rawjson", "--no-cache", "--frontend", "dockerfile.v0",
             "--local", "context=" + context, "--local", "dockerfile=" + built_in(context, dockerfile, os.path.join(out, "frontend")),
             "--output", "type=oci,tar=false,dest=" + layout]
    opts = {"filename": dockerfile, "platform": options.get("platform", "linux/amd64")}
    if "target" in options:
        opts["target"] = options["target"]
    fill = lambda text: text.replace("@FIXTURE@", fixture)
    arguments = {**({"FIXTURE": fixture} if fixture else {}), **options.get("build_args", {})}
    opts.update({"build-arg:" + name: fill(value) for name, value in arguments.items()})
    opts.update({"label:" + name: value for name, value in options.get("labels", {}).items()})
    names = {"network": "force-network-mode"}
    opts.update({names.get(name, name): options[name]
                 for name in ("network", "hostname", "add-hosts", "shm-size", "ulimit") if name in options})
    for name, spec in options.get("named_contexts", {}).items():
        if spec["type"] == "local":
            key = "named-" + re.sub(r"[^a-z0-9]", "", name.lower())
            words += ["--local", "%s=%s" % (key, os.path.join(out, "named", name))]
            opts["context:" + name] = "local:" + key
        else:
            opts["context:" + name] = fill(spec["ref"])
    for name in options.get("secrets", {}):
        words += ["--secret", "id=%s,src=%s" % (name, os.path.join(out, "secrets", name))]
    if options.get("ssh"):
        words += ["--ssh", "default"]
    for word in options.get("entitlements", []):
        words += ["--allow", word]
    return words + [word for name, value in opts.items() for word in ("--opt", "%s=%s" % (name, value))]


def failure_of(text, fixture):
    """Line and message of a failed build, from what buildctl printed."""
    text = COLOURS.sub("", text)
    error = {}
    marked = [int(found) for found in re.findall(r"^\s*(\d+) \| >>>", text, re.M)]
    named = re.search(r"^\S*Dockerfile\S*:(\d+)$", text, re.M) or re.search(r"parse error on line (\d+)", text)
    if marked:
        error = {"line": min(marked), "end_line": max(marked)}
    elif named:
        error = {"line": int(named.group(1))}
    said = re.search(r"^error: (?:failed to solve: )?(.*)$", text, re.M)
    message = said.group(1) if said else (text.strip().splitlines() or ["no message"])[-1]
    # What is another one in every run.
    message = re.sub(r"/\S*?/(?:cachemounts|snapshots|runc-overlayfs)/\S*", "DAEMON", message)
    message = re.sub(r"\b[a-z0-9]{20,}::[a-z0-9]{20,}", "REF", message)
    return {**error, "message": message.replace(fixture, "FIXTURE") if fixture else message}


def build(buildctl, daemon, case, out, fixture, layout):
    """Builds a case that is laid out in `out`: None and the image in `layout`, or the failure."""
    # Without the caller's proxies and SOURCE_DATE_EPOCH, which buildctl would hand on as build arguments.
    environment = {"PATH": os.environ["PATH"], "HOME": out}
    done = subprocess.run(command(buildctl, daemon, case, out, fixture, layout), env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_SECONDS)
    if done.returncode == 0:
        return None
    failure = failure_of(done.stdout.decode("utf-8", "replace"), fixture)
    if daemon.process.poll() is not None:
        raise RuntimeError("buildkitd ended with exit code %s while it built; its log is %s" % (daemon.process.poll(), daemon.log))
    return failure
