"""kaniko: its executor, in a container that runc makes, with Docker's capabilities and a root of its own on the state's disk.

Nothing in the package registries has the executor as a program, so it is measured where KANIKO_EXECUTOR names it. It builds in its
own root, so everything it needs is copied there before, and the container is made inside the timed part."""
import hashlib
import json
import os
import shutil

from builders import Builder, output, shorter

CAPABILITIES = ["CAP_" + name for name in (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE",
    "SYS_CHROOT", "KILL", "AUDIT_WRITE")]
# Its README calls these the Preview profile; faster in some workloads, slower in others. Without tini, which it has not here.
PREVIEW = ["FF_KANIKO_%s=true" % name for name in (
    "CROSS_REPO_MOUNT", "EXPAND_HEREDOC", "HASH_DIR_FRAMING", "INFER_CROSS_STAGE_CACHE_KEY", "PRECOMPILE_DOCKERIGNORE",
    "REPRODUCIBLE_PRESERVE_BASE_LAYERS", "RESOLVE_CACHE_KEY", "ROLLING_CACHE_KEY", "RUN_HONOR_GROUP", "SHARED_BASE_CACHE",
    "SKIP_CACHED_STAGES", "SKIP_RELABEL_RECOMPRESS", "SKIP_WRITE_WHITEOUTS", "UNTAR_SKIP_ROOT", "CACHE_LOOKAHEAD")]
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}]


class Kaniko(Builder):
    """The executor in a container of runc's."""
    how = "as root in a container of runc's with Docker's capabilities, its root on STATE; RUN forks in that root"
    name, programs = "kaniko", frozenset({"executor", "runc"})

    def missing(self):
        if not self.tools.kaniko:
            return "KANIKO_EXECUTOR is not set, and no package registry has the executor"
        return None if os.access(self.tools.kaniko, os.X_OK) else "KANIKO_EXECUTOR is not a program"

    def version(self):
        said = [each for each in output(self.tools.kaniko, "version").splitlines() if "ersion" in each]
        with open(self.tools.kaniko, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        return "%s, executor with sha256 %s" % (" ".join(said[0].split()) if said else "kaniko of unknown version", digest)

    def start(self, state):
        super().start(state)
        root = self.path("bundle", "rootfs")
        for name in ("kaniko/.docker", "kaniko/ssl/certs", "etc", "workspace", "proc", "dev", "sys"):
            os.makedirs(os.path.join(root, name))
        shutil.copyfile(self.tools.kaniko, os.path.join(root, "kaniko/executor"))
        os.chmod(os.path.join(root, "kaniko/executor"), 0o755)
        for name, content in (("kaniko/.docker/config.json", "{}"), ("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\n"),
                              ("etc/group", "root:x:0:\n"), ("etc/nsswitch.conf", "hosts: files dns\n"), ("etc/hosts", "127.0.0.1 localhost\n"),
                              ("etc/resolv.conf", "")):
            with open(os.path.join(root, name), "w", encoding="ascii") as file:
                file.write(content)
        return []

    def commands(self, job):
        words = ["/kaniko/executor", "--context=dir:///workspace", "--dockerfile=/workspace/" + job.dockerfile, "--destination=" + job.image,
                 "--insecure", "--insecure-pull", "--skip-push-permission-check", "--snapshot-mode=redo", "--force"]
        if job.setting == "zstd":
            words.append("--compression=zstd")
        if job.cache:
            words += ["--cache=true", "--cache-repo=" + job.cache, "--cache-copy-layers=true"]
        self.write_bundle(words, job.context, PREVIEW if job.setting == "preview" else [])
        return [[self.tools.runc, "--root", self.path("run", "runc"), "run", "--bundle", self.path("bundle"), "kaniko"]]

    def shown(self, job):
        """What the container runs, for the report."""
        self.commands(job)
        with open(self.path("bundle", "config.json"), encoding="utf-8") as file:
            process = json.load(file)["process"]
        flags = [each for each in process["env"] if each.startswith("FF_")]
        return [" ".join([*flags, shorter(process["args"], {job.image: "IMAGE"})])]

    def write_bundle(self, words, context, flags):
        """The container: namespaces but for the network, which is this one's."""
        bound = {"destination": "/workspace", "type": "bind", "source": context, "options": ["rbind", "ro"]}
        config = {
            "ociVersion": "1.0.2", "hostname": "kaniko", "root": {"path": "rootfs", "readonly": False}, "mounts": MOUNTS + [bound],
            "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": words, "cwd": "/workspace",
                        "env": ["PATH=/usr/local/bin:/kaniko", "HOME=/root", "SSL_CERT_DIR=/kaniko/ssl/certs",
                                "DOCKER_CONFIG=/kaniko/.docker/", *flags],
                        "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")}},
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]}}
        with open(self.path("bundle", "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
