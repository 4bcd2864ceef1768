"""Measures a run: wall and processor time, resident memory, what others on the machine took.

This process is the first one of its pid namespace, so every orphan of a builder becomes its child, and the times of all that
ended are in its own account of children. A daemon goes on living: its times are read before and after."""
import os
import resource
import signal
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
# Short runs are sampled more closely; in long ones that would itself take processor time.
FAST, FAST_FOR, SLOW = 0.04, 2.0, 0.1
ORPHAN_SECONDS = 10


class Failed(Exception):
    """A builder's command ended with an exit code other than 0, or not in time."""


def processes():
    """Numbers of all processes but this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def stat(pid):
    """Fields of /proc/PID/stat after the name: 1 is the parent, 11 to 14 are times, 21 is the resident size in pages."""
    with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def cpu(pid):
    """Processor seconds of a live process and of its children that have ended."""
    return sum(int(each) for each in stat(pid)[11:15]) / TICK


def system_share(pid):
    """Of those, seconds in the kernel."""
    fields = stat(pid)
    return (int(fields[12]) + int(fields[14])) / TICK


def machine_cpu():
    """Processor seconds of everything on this machine, without interrupts."""
    with open("/proc/stat", encoding="ascii") as file:
        return sum(int(each) for each in file.readline().split()[1:4]) / TICK


class Sampler(threading.Thread):
    """Follows the resident memory of all processes in this namespace but those in `leave_out`."""

    def __init__(self, programs, leave_out):
        super().__init__(daemon=True)
        self.programs, self.leave_out, self.over = programs, set(leave_out) | {os.getpid()}, threading.Event()
        self.builder = self.private = self.all = self.samples = 0

    def run(self):
        began = time.monotonic()
        while True:
            self.sample()
            if self.over.wait(FAST if time.monotonic() - began < FAST_FOR else SLOW):
                return

    def sample(self):
        builder = private = everything = 0
        for pid in processes():
            if pid in self.leave_out:
                continue
            try:
                size = int(stat(pid)[21]) * PAGE
                everything += size
                if size and self.is_builder(pid):
                    builder += size
                    private += anonymous(pid)
            except (OSError, IndexError, ValueError):
                continue  # it has ended
        self.builder, self.private = max(self.builder, builder), max(self.private, private)
        self.all, self.samples = max(self.all, everything), self.samples + 1

    def is_builder(self, pid):
        """Whether a process runs one of the builder's programs, and not a command of the Dockerfile."""
        program = os.readlink("/proc/%d/exe" % pid)
        # runc and Buildah run copies of themselves that have no name in the file system.
        return os.path.basename(program.removesuffix(" (deleted)")) in self.programs or program.startswith("/memfd:")

    def finish(self):
        self.over.set()
        self.join()


def reap(keep):
    """Waits for orphans of a builder, so that their times are counted, and ends those that don't end by themselves."""
    until = time.monotonic() + ORPHAN_SECONDS
    while True:
        left = [pid for pid in processes() if pid not in keep and parent(pid) == os.getpid()]
        if not left:
            return
        for pid in left:
            try:
                if time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ChildProcessError, ProcessLookupError):
                pass
        time.sleep(0.005)


def parent(pid):
    """The parent's number, 0 where the process has ended."""
    try:
        return int(stat(pid)[1])
    except (OSError, IndexError):
        return 0


def anonymous(pid):
    """Resident bytes that belong to no file."""
    with open("/proc/%d/status" % pid, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0


def children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, used.ru_stime


def own():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(commands, environment, folder, log, programs, registry, daemons, timeout):
    """Runs a builder's commands one after the other and says what they took, as a dictionary of figures."""
    keep = {registry.pid, *daemons}
    sampler = Sampler(programs, {registry.pid})
    before = registry.counters()
    registry_cpu, machine, self_cpu = cpu(registry.pid), machine_cpu(), own()
    ended, in_kernel = children()
    alive, alive_kernel = sum(map(cpu, daemons)), sum(map(system_share, daemons))
    sampler.start()
    began = time.monotonic()
    try:
        with open(log, "wb") as out:
            for words in commands:
                out.write(("$ %s\n" % " ".join(words)).encode())
                out.flush()
                process = subprocess.Popen(words, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                           start_new_session=True)
                try:
                    code = process.wait(max(1, timeout - (time.monotonic() - began)))
                except BaseException as error:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    if isinstance(error, subprocess.TimeoutExpired):
                        raise Failed("did not end within %d s; its log is %s" % (timeout, log)) from error
                    raise
                if code:
                    raise Failed("exit code %d, %s; its log is %s" % (code, last_line(log), log))
        wall = time.monotonic() - began
    finally:
        sampler.finish()
        reap(keep)
    taken = time.monotonic() - began
    after, after_kernel = children()
    seconds = after - ended + sum(map(cpu, daemons)) - alive
    kernel = after_kernel - in_kernel + sum(map(system_share, daemons)) - alive_kernel
    registry_cpu = cpu(registry.pid) - registry_cpu
    others = machine_cpu() - machine - seconds - registry_cpu - (own() - self_cpu)
    return {"wall": wall, "cpu": seconds, "cpu_kernel": kernel, "registry_cpu": registry_cpu, "others_cpu": others,
            "others_cores": max(0.0, others) / taken, "peak_builder": sampler.builder, "peak_private": sampler.private,
            "peak_all": sampler.all, "samples": sampler.samples, **registry.since(before)}


def last_line(path):
    """The last line of a log that says something."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return ([line.strip() for line in file.read().splitlines() if line.strip()] or ["no output"])[-1][:300]


def end_all(keep):
    """Ends whatever a builder left running. All processes in this namespace are the bench's own."""
    if os.getpid() != 1:
        raise RuntimeError("not in a pid namespace of its own")
    for pid in processes():
        if pid not in keep:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    reap(keep)
