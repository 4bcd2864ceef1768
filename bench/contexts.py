"""The build contexts, made once for each scale and kept: files with fixed content, below the folder of the scale.

Sizes and counts are multiplied by the scale (BENCH_SCALE), which is 1 for figures and less to try the bench."""
import os
import shutil
import tempfile

import data
from registry import HOST

BASE = HOST + "/bases/%s:1"
# A maker that changes what it makes gets another number here.
VERSION = 1


class Context:
    """The folder of a context that is being made."""

    def __init__(self, folder, scale, **more):
        self.folder, self.scale = folder, scale
        self.__dict__.update(more)

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def count(self, number):
        """A count or size at this scale."""
        return max(2, int(number * self.scale))


def w4(context):
    for name, base in (("Dockerfile", "busybox"), ("Dockerfile.debian", "debian")):
        steps = ["RUN echo step %d" % n for n in range(context.count(50))]
        context.write(name, "\n".join(["FROM " + BASE % base] + steps) + "\n")


MAKERS = {"W4": w4}


def make(name, store, scale, **more):
    """The folder of a context."""
    folder = os.path.join(store, "contexts", "%g-%d" % (scale, VERSION), name)
    if not os.path.isdir(folder):
        print("bench: making the context %s" % name, flush=True)
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        part = tempfile.mkdtemp(prefix=".part-", dir=os.path.dirname(folder))
        try:
            os.chmod(part, 0o755)
            MAKERS[name](Context(part, scale, **more))
            os.rename(part, folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder
