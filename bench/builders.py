"""Kiln, BuildKit and Buildah: how each is started and told to build and push, and which version it is.

Every builder runs as root with its state on the file system of the run, and steps use this namespace's network, which is loopback
alone. A setting is a name that workloads.py gives; the default one is ""."""
import dataclasses
import json
import os
import re
import resource
import signal
import subprocess
import time

from registry import HOST

START_SECONDS = 60


@dataclasses.dataclass
class Job:
    """One build: `cache` is a repository for the registry cache, which `fill` says to write for the first time."""
    context: str
    dockerfile: str
    image: str
    setting: str = ""
    cache: str = None
    fill: bool = False


class Builder:
    """What all have. `state` is a directory on the fresh file system of the run."""
    name, programs, has_daemon = "", frozenset(), False
    # What the command line does not show.
    how = ""

    def __init__(self, tools):
        self.tools, self.state = tools, None

    def missing(self):
        """Why this builder can't be measured, or None."""
        return None

    def cannot(self, workload, setting):
        """Why this builder can't be measured with this workload in this setting, or None."""
        return None

    def filled_with(self, setting):
        """The setting in which the registry cache for this one is filled: keys may depend on it."""
        return setting

    def start(self, state):
        """Prepares the state, and starts what the commands need; gives the processes that run beside them."""
        self.state = state
        for name in ("home", "tmp", "run"):
            os.makedirs(os.path.join(state, name))
        return []

    def stop(self):
        pass

    def environment(self):
        # Without the caller's proxies and SOURCE_DATE_EPOCH, which builders would hand on as build arguments.
        return {"PATH": os.environ["PATH"], "HOME": self.path("home"), "TMPDIR": self.path("tmp"), "LANG": "C.UTF-8",
                "XDG_RUNTIME_DIR": self.path("run")}

    def shown(self, job):
        """The commands as text, for the report: without the places of this run and this machine."""
        return [shorter(words, {self.state: "STATE", job.context: "CONTEXT", job.image: "IMAGE"}) for words in self.commands(job)]

    def path(self, *names):
        return os.path.join(self.state, *names)


def shorter(words, places):
    """A command line with the program's name alone, and with names in the place of paths."""
    line = " ".join([os.path.basename(words[0]), *words[1:]])
    for place, name in places.items():
        line = line.replace(place, name)
    return line


def output(*words):
    """What a command prints; empty where it fails."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


class Kiln(Builder):
    """`kiln build`: the courier and the builder in one process tree, no daemon."""
    how = "no daemon; each RUN in namespaces of its own"
    name, programs = "kiln", frozenset({"kiln", "kiln-builder", "kiln-courier"})

    def __init__(self, tools):
        super().__init__(tools)
        self.help = output(tools.kiln, "build", "--help")

    def missing(self):
        return None if self.help else "%s can't be run; scripts/dist builds it" % self.tools.kiln

    def cannot(self, workload, setting):
        if setting and "compression" not in self.help:
            return "no output in %s yet: not measured" % setting
        if workload.filled_by and not re.search(r"^\s+--cache[ =]", self.help, re.M):
            return "no cache yet: not measured"
        return None

    def version(self):
        return "%s, %s" % (output(self.tools.kiln, "--version"), self.tools.kiln_commit)

    def start(self, state):
        super().start(state)
        os.makedirs(self.path("work"))
        with open(self.path("registries.yaml"), "w", encoding="utf-8") as file:
            json.dump({"insecure": [HOST]}, file)
        return []

    def commands(self, job):
        kind = "type=registry" + (",compression=zstd" if job.setting == "zstd" else "")
        words = [self.tools.kiln, "build", "--file", os.path.join(job.context, job.dockerfile), "--tag", job.image, "--output", kind,
                 "--registry-config", self.path("registries.yaml"), "--work-dir", self.path("work")]
        if job.cache:
            words += ["--cache", job.cache]
        return [words + [job.context]]


class BuildKit(Builder):
    """buildkitd with runc, its daemon already up, and buildctl. As root: a lower bound for the rootless mode."""
    name, programs = "buildkit", frozenset({"buildkitd", "buildctl", "runc", "unpigz", "pigz"})
    has_daemon = True
    how = "buildkitd as root and already up; worker oci with runc, snapshotter overlayfs, networkMode host, gc off; unpigz in PATH"
    SETTINGS = {"": "", "import only": "", "level 1": ",compression-level=1,force-compression=false", "zstd": ",compression=zstd"}

    def filled_with(self, setting):
        return "" if setting == "import only" else setting

    def version(self):
        found = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", self.tools.buildkit_version)
        return "BuildKit %s from its Go module, %s" % (found.group(1) if found else "of unknown version",
                                                        output(self.tools.runc, "--version").splitlines()[0])

    def start(self, state):
        super().start(state)
        settings = self.path("buildkitd.toml")
        with open(settings, "w", encoding="utf-8") as file:
            # A string and a list are the same in TOML and JSON. Without `enabled` the worker is left out where runc is not in PATH.
            file.write('root = %s\n[worker.containerd]\nenabled = false\n[worker.oci]\nenabled = true\nbinary = %s\n'
                       'snapshotter = "overlayfs"\nnetworkMode = "host"\ngc = false\n[registry.%s]\nhttp = true\n' %
                       (json.dumps(self.path("buildkit")), json.dumps(self.tools.runc), json.dumps(HOST)))
        self.address = "unix://" + self.path("run", "buildkitd.sock")
        self.log = self.path("buildkitd.log")
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen([os.path.join(self.tools.buildkit, "buildkitd"), "--config", settings, "--addr", self.address],
                                           stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment())
        until = time.monotonic() + START_SECONDS
        while "linux/amd64" not in output(self.buildctl, "--addr", self.address, "--timeout", "2", "debug", "workers"):
            if self.daemon.poll() is not None or time.monotonic() > until:
                with open(self.log, encoding="utf-8", errors="replace") as file:
                    raise RuntimeError("buildkitd did not get ready; its log ends:\n" + file.read()[-2000:])
            time.sleep(0.01)
        return [self.daemon.pid]

    @property
    def buildctl(self):
        return os.path.join(self.tools.buildkit, "buildctl")

    def stop(self):
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(10)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()

    def commands(self, job):
        words = [self.buildctl, "--addr", self.address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
                 "--local", "context=" + job.context, "--local", "dockerfile=" + job.context, "--opt", "filename=" + job.dockerfile,
                 "--output", "type=image,name=%s,push=true,registry.insecure=true,oci-mediatypes=true%s" %
                 (job.image, self.SETTINGS[job.setting])]
        if job.cache and not job.fill:
            words += ["--import-cache", "type=registry,ref=%s:cache,registry.insecure=true" % job.cache]
        if job.cache and job.setting != "import only":
            words += ["--export-cache", "type=registry,ref=%s:cache,mode=max,image-manifest=true,oci-mediatypes=true,"
                      "registry.insecure=true" % job.cache]
        return [words]


class Buildah(Builder):
    """`buildah build` and `buildah push`, where there is one in a Debian of a newer suite in a mount namespace of its own."""
    name, programs = "buildah", frozenset({"buildah"})
    how = "as root; BUILDAH_ISOLATION=chroot"
    # The root of the namespace is that Debian under a layer in memory; state and contexts are where they are outside.
    ENTER = """set -e
mkdir -p "$2" && mount -t tmpfs tmpfs "$2" && mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
for place in "$3" "$4" /dev /sys /proc; do mkdir -p "./$place" && mount --rbind "$place" "./$place"; done
busybox=$(command -v busybox)
mkdir -p old && pivot_root . old && "/old$busybox" umount -l /old && echo ready && exec sleep infinity
"""

    def missing(self):
        return None if self.tools.buildah_root or self.tools.buildah else "buildah was not found in PATH; Debian has it"

    @property
    def program(self):
        return "/usr/bin/buildah" if self.tools.buildah_root else self.tools.buildah

    def version(self):
        root = self.tools.buildah_root
        if not root:
            return output(self.program, "--version") + ", of this machine's Debian"
        return "%s, of Debian %s" % (output("chroot", root, self.program, "--version").splitlines()[-1], os.path.basename(root).split("-")[1])

    def start(self, state):
        super().start(state)
        self.enter, self.holder = [], None
        if not self.tools.buildah_root:
            return []
        self.holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", self.ENTER, "enter", self.tools.buildah_root,
                                        os.path.join(self.tools.work, "buildah"), state, self.tools.store],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"ready\n":
            raise RuntimeError("could not enter the Debian that Buildah is in")
        self.enter = ["nsenter", "--mount=/proc/%d/ns/mnt" % self.holder.pid]
        return [self.holder.pid]

    def stop(self):
        if self.holder:
            self.holder.kill()
            self.holder.wait()

    def shown(self, job):
        enter, self.enter = self.enter, []
        lines = super().shown(job)
        self.enter = enter
        return lines

    def environment(self):
        return {**super().environment(), "BUILDAH_ISOLATION": "chroot", "XDG_DATA_HOME": self.path("home")}

    def commands(self, job):
        words = self.enter + [self.program, "--root", self.path("storage"), "--runroot", self.path("run", "storage"),
                              "--storage-driver", "overlay"]
        build = ["build", "--layers", "--format=oci", "--jobs=%d" % os.cpu_count(), "--network=host", "--tls-verify=false",
                 *self.limits(), "-f", os.path.join(job.context, job.dockerfile), "-t", job.image]
        if job.cache:
            build += ["--cache-to", job.cache] + ([] if job.fill else ["--cache-from", job.cache])
        push = ["push", "--tls-verify=false"] + (["--compression-format", "zstd"] if job.setting == "zstd" else [])
        return [words + build + [job.context], words + push + [job.image]]


    @staticmethod
    def limits():
        """It raises these for each RUN, and fails where it may not: they stay as they are."""
        kinds = {"nproc": resource.RLIMIT_NPROC, "nofile": resource.RLIMIT_NOFILE}
        hard = {name: resource.getrlimit(kind)[1] for name, kind in kinds.items()}
        return ["--ulimit=%s=%d:%d" % (name, most, most) for name, most in hard.items() if most != resource.RLIM_INFINITY]


ALL = {each.name: each for each in (Kiln, BuildKit, Buildah)}
