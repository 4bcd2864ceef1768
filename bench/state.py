"""A fresh file system for each run: ext4 with a journal on a loop device.

On an ext4 without a journal inodes of deleted files are not reused for a minute or more, and every new file searches past them;
the bench would measure that. The image file has no name once it is mounted, so nothing is left whatever happens."""
import os
import subprocess
import time

SIZE = 24 << 30


class State:
    """An empty ext4 that is mounted at `place`; a context manager."""

    def __init__(self, place, disk):
        self.place, self.image = place, os.path.join(disk, "state.img")

    def __enter__(self):
        os.makedirs(self.place, exist_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(SIZE)
        try:
            # Tables of inodes are written now and not by a kernel thread during the run.
            call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.image)
            call("mount", "-o", "loop,noinit_itable", self.image, self.place)
        finally:
            os.unlink(self.image)
        return self.place

    def __exit__(self, *_):
        for _ in range(50):
            if subprocess.run(["umount", "-R", self.place], stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.1)
        # Something still holds it: out of sight now, gone with its last user, at the latest with this mount namespace.
        call("umount", "-R", "-l", self.place)


def call(*words):
    """Runs a command; its output is in the error where it fails."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError("%s failed with exit code %d: %s" % (" ".join(words), done.returncode,
                                                                done.stdout.decode("utf-8", "replace").strip()[-2000:]))
