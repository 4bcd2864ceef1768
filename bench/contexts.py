"""The build contexts, made once for each scale and kept: files with fixed content, below the folder of the scale.

Sizes and counts are multiplied by the scale (BENCH_SCALE), which is 1 for figures and less to try the bench."""
import os
import shutil
import tempfile

import data
from registry import HOST
from state import call

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program")
# Some three seconds of one core on a machine of 2026.
W8_LOOPS = 2500000
WORK = "n=0; while [ $n -lt %d ]; do n=$((n + 1)); done\n"
BASE = HOST + "/bases/%s:1"
# A maker that changes what it makes gets another number here.
VERSIONS = {"W9": 3}


class Context:
    """The folder of a context that is being made."""

    def __init__(self, folder, scale, needed):
        self.folder, self.scale, self.needed = folder, scale, needed

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def count(self, number):
        """A count or size at this scale."""
        return max(2, int(number * self.scale))


    def dockerfile(self, base, *lines, name="Dockerfile"):
        self.write(name, "\n".join(["FROM " + BASE % base, *lines]) + "\n")


def w1(context):
    """The packages that Debian's base has not, fetched with this machine's apt as the base's dpkg would ask for them."""
    lines = []
    for name, packages in (("redis", ["redis-server"]), ("gcc", ["gcc", "libc6-dev"])):
        folder = os.path.join(context.folder, "packages", name)
        os.makedirs(os.path.join(folder, "partial"))
        status = os.path.join(context.needed("debian"), "dpkg-status")
        call("apt-get", "-qq", "-y", "-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + folder, "-o", "Debug::NoLocking=1",
             "-o", "APT::Sandbox::User=root", "--no-install-recommends", "--download-only", "install", *packages)
        shutil.rmtree(os.path.join(folder, "partial"))
        lines += ["COPY packages/%s /packages/%s" % (name, name), "RUN DEBIAN_FRONTEND=noninteractive dpkg --install /packages/%s/*.deb" % name]
    context.dockerfile("debian", *lines, 'CMD ["redis-server"]')


def w3(context, changed=False):
    """Nine steps that nothing changes, and a COPY of 200 files of which one differs by a line."""
    slices = data.Slices("W3")
    for n in range(200):
        content = slices.between(500, 8000)
        context.write("source/module%d/file%d.txt" % (n % 10, n), content + (b"one more line\n" if changed and n == 17 else b""))
    context.write("assets/noise.bin", data.noise(context.count(12 << 20), "W3"))
    steps = ["RUN mkdir -p /srv/app && echo %d > /srv/app/step%d && head -c %d /dev/zero | tr '\\0' 'k' > /srv/app/fill%d" %
             (n, n, 100000 + n, n) for n in range(6)]
    context.dockerfile("debian", "WORKDIR /srv/app", "COPY assets /srv/assets", *steps,
                       "RUN cp /srv/assets/noise.bin /srv/app/copy.bin && truncate -s -1000 /srv/app/copy.bin", "COPY source /srv/source")


def w4(context):
    steps = ["RUN echo step %d" % n for n in range(context.count(50))]
    context.dockerfile("busybox", *steps)
    context.dockerfile("debian", *steps, name="Dockerfile.debian")


def w5(context):
    """Noise is made by the step; text is in the context, so that every builder compresses the same."""
    size = context.count(16 << 20)
    context.write("text.txt", data.text(size, "W5"))
    context.write("write.sh", """set -e
mkdir -p /data
for n in $(seq 32); do
  head -c %d /dev/urandom > /data/noise$n.bin
  { echo "file $n"; cat /tmp/w5/text.txt; } > /data/text$n.txt
done
""" % size)
    context.dockerfile("busybox", "COPY text.txt write.sh /tmp/w5/", "RUN sh /tmp/w5/write.sh")


def w6(context):
    slices, folders = data.Slices("W6"), context.count(1000)
    for folder in range(folders):
        for n in range(100):
            context.write("files/folder%d/file%d.txt" % (folder, n), slices.between(200, 4000))
    context.dockerfile("busybox", "COPY files /data",
                       "RUN for n in $(seq 100); do echo more >> /data/folder$((n * 7 %% %d))/file$((n %% 100)).txt; done" % folders)


def w7(context):
    context.write("app.conf", data.text(4000, "W7"))
    context.dockerfile("big", "COPY app.conf /srv/app.conf")
    context.dockerfile("big", "COPY app.conf /srv/other.conf", name="Dockerfile.other")
    context.dockerfile("big", "COPY --link app.conf /srv/app.conf", name="Dockerfile.link")


def w8(context):
    """A loop of busybox's shell; bench/main.py times one of them outside of any builder."""
    context.write("work.sh", WORK % context.count(W8_LOOPS))
    stages = ["FROM %s AS s%d\nCOPY work.sh /work.sh\nRUN sh /work.sh && echo %d > /result%d" % (BASE % "busybox", n, n, n) for n in range(8)]
    context.write("Dockerfile", "\n".join([*stages, "FROM " + BASE % "busybox", *("COPY --from=s%d /result%d /results/" % (n, n)
                                                                                 for n in range(8))]) + "\n")


def w9(context):
    """One file in a hundred is wanted; the others are in two ignored folders, in node_modules at some depth, or logs."""
    slices, noise = data.Slices("W9", 32 << 20), data.noise(4 << 20, "W9")
    for n in range(context.count(50000)):
        content = slices.between(10000, 70000) if n % 2 else noise[n * 64 % (3 << 20):][:40000]
        if n % 100 == 0:
            name = "source/module%d/file%d.txt" % (n % 7, n)
        elif n % 5 == 0:
            name = "source/module%d/node_modules/package%d/file%d.js" % (n % 7, n // 100, n)
        elif n % 5 == 1:
            name = "source/module%d/run%d.log" % (n % 7, n)
        else:
            name = "%s/%d/%d.bin" % ("target" if n % 2 else "data", n // 200, n)
        context.write(name, content)
    # The last pattern is for kaniko, which takes what lies below an ignored folder that is not at the top.
    context.write(".dockerignore", "target\ndata\n**/*.log\n**/node_modules\n**/node_modules/**\n")
    context.dockerfile("busybox", "COPY . /srv")


def w10(context):
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(os.path.join(PROGRAM, name), os.path.join(context.folder, name))
    call("go", "-C", context.folder, "mod", "vendor")
    context.write("Dockerfile", """FROM %s AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -mod=vendor -trimpath -o /out/crane github.com/google/go-containerregistry/cmd/crane
FROM scratch
COPY --from=build /out/crane /crane
ENTRYPOINT ["/crane"]
""" % (BASE % "golang"))


MAKERS = {"W1": w1, "W3": w3, "W3-changed": lambda context: w3(context, changed=True), "W4": w4, "W5": w5, "W6": w6, "W7": w7, "W8": w8,
          "W9": w9, "W10": w10}


def make(name, store, scale, needed):
    """The folder of a context; `needed` gives the folder of a base image."""
    folder = os.path.join(store, "contexts", "%g-%d" % (scale, VERSIONS.get(name, 2)), name)
    if not os.path.isdir(folder):
        print("bench: making the context %s" % name, flush=True)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        part = tempfile.mkdtemp(prefix=".part-", dir=os.path.dirname(folder))
        try:
            os.chmod(part, 0o755)
            MAKERS[name](Context(part, scale, needed))
            os.rename(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder
