#!/usr/bin/env python3
"""Runs the bench: each workload with each builder, alternating, in several rounds. `scripts/bench` calls it twice: to prepare, with
the network, and to measure, in namespaces of its own, where it is the first process and loopback is all the network."""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import bases
import builders
import check
import contexts
import docs
import kaniko
import measure
import plot
import report
import workloads
from builders import Job
from registry import HOST, Registry, copy_storage
from state import State, call


BUILDERS = {**builders.ALL, "kaniko": kaniko.Kaniko}


class Bench:
    """One call. `memory` is on tmpfs, `disk` a directory on the machine's disk for the image files of states."""

    def __init__(self, options):
        self.options = options
        self.memory = os.path.join(options.work, "memory")
        self.state = os.path.join(options.work, "state")
        self.results, self.layers, self.trees = [], check.Layers(), {}

    def mounts(self):
        os.makedirs(self.memory, exist_ok=True)
        call("mount", "-t", "tmpfs", "-o", "size=90%,mode=0755", "tmpfs", self.memory)

    def seeded(self, workload):
        """A registry storage with the bases of a workload."""
        seed = os.path.join(self.memory, "seed-" + workload.name)
        if not os.path.exists(seed):
            with Registry(self.options.registry, seed, self.memory) as registry:
                for name in workload.bases:
                    registry.put_image("bases/" + name, "1", base(name, self.options))
        return seed

    def context(self, name):
        return context(name, self.options)

    def measured(self, workload, builder, setting, seed, number, fill=False):
        """One run: its figures, or None and why it failed."""
        storage = os.path.join(self.memory, "storage")
        name = "-".join([workload.name, builder.name, setting.replace(" ", "-") or "default", "fill" if fill else str(number)])
        log = os.path.join(self.options.out, "logs", name + ".log")
        image, cache = HOST + "/built/%s:1" % workload.name.lower(), HOST + "/cache" if workload.filled_by else None
        context, dockerfile = workload.filled_by if fill else (workload.context, workload.dockerfile)
        job = Job(self.context(context), dockerfile, image, setting, cache, fill)
        if fill:
            storage = seed
        else:
            copy_storage(seed, storage)
        try:
            with Registry(self.options.registry, storage, self.memory) as registry, State(self.state, self.options.disk) as place:
                began = time.monotonic()
                daemons = builder.start(place)
                start = time.monotonic() - began if builder.has_daemon else 0.0
                try:
                    commands = builder.shown(job)
                    os.sync()
                    figures = measure.run(builder.commands(job), builder.environment(), place, log, builder.programs, registry,
                                          daemons, workload.timeout)
                finally:
                    builder.stop()
                    measure.end_all({registry.pid})
                figures.update({"workload": workload.name, "builder": builder.name, "setting": setting, "round": number,
                                "daemon_start": start, **report.image_of(registry, image, workload)})
                figures["command"] = commands
                if number == 0 and not fill and self.options.check:
                    self.compare(workload, storage, registry.manifest(*image.partition("/")[2].split(":")), figures)
                return figures
        finally:
            if not fill:
                shutil.rmtree(storage, ignore_errors=True)

    def fail(self, workload, builder, setting, number, error):
        figures = {"workload": workload.name, "builder": builder.name, "setting": setting, "round": number, "failed": str(error)}
        self.results.append(figures)
        print(report.line(figures), flush=True)

    def compare(self, workload, storage, manifest, figures):
        """Holds an image against the first one of its workload."""
        tree, name = self.layers.tree(storage, manifest), report.label(figures["builder"], figures["setting"])
        first, expected = self.trees.setdefault(workload.name, (name, tree))
        found = check.differences(expected, tree)
        figures.update({"entries": len(tree), "differs_from": first if found else "", "differences": found})

    def workload(self, workload, contenders, rounds):
        """All rounds of a workload; the order is another one in each."""
        print("\n%s  %s" % (workload.name, workload.what), flush=True)
        seeds, left, broken = {}, [], set()
        common = self.seeded(workload)
        for builder, setting in contenders:
            why = builder.cannot(workload, setting)
            if why:
                print("  %-22s %s" % (report.label(builder.name, setting), why), flush=True)
                self.results.append({"workload": workload.name, "builder": builder.name, "setting": setting, "not_measured": why})
                continue
            cache = builder.name, builder.filled_with(setting)
            if workload.filled_by and cache not in seeds:
                seeds[cache] = os.path.join(self.memory, "seed-%s-%s-%s" % (workload.name, *cache))
                copy_storage(common, seeds[cache])
                try:
                    self.measured(workload, builder, cache[1], seeds[cache], 0, fill=True)
                except measure.Failed as error:
                    self.fail(workload, builder, setting, -1, error)
                    broken.add(cache)
            if cache not in broken:
                left.append((builder, setting))
        warm(self.context(workload.context))
        if workload.name == "W8" and left:
            floor = floor_of(self.context("W8"))
            self.results.append({"workload": "W8", "builder": "floor", "setting": "", "not_measured": "%.2f s: its commands alone" % floor})
            print("  the commands alone, one for each core at a time: %.2f s" % floor, flush=True)
        for number in range(rounds):
            turn = number % max(1, len(left))
            for builder, setting in left[turn:] + left[:turn]:
                try:
                    seed = seeds.get((builder.name, builder.filled_with(setting)), common)
                    figures = self.measured(workload, builder, setting, seed, number)
                    self.results.append(figures)
                    print(report.line(figures), flush=True)
                except measure.Failed as error:
                    self.fail(workload, builder, setting, number, error)
        self.layers, self.trees = check.Layers(), {}
        for seed in [common, *seeds.values()]:
            shutil.rmtree(seed, ignore_errors=True)


def base(name, options):
    return bases.make(name, options.store, options.cluster, options.scale)


def context(name, options):
    return contexts.make(name, options.store, options.scale, lambda each: base(each, options))


def warm(folder):
    """Reads a context, so that it is in the page cache for the first builder as for the last."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                while file.read(1 << 20):
                    pass


def floor_of(folder):
    """Seconds that the eight commands of W8 take without any builder, one for each core at a time."""
    began = time.monotonic()
    waiting, running = 8, []
    while waiting or running:
        while waiting and len(running) < os.cpu_count():
            running.append(subprocess.Popen(["busybox", "sh", os.path.join(folder, "work.sh")]))
            waiting -= 1
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        running = [each for each in running if each.poll() is None]
    return time.monotonic() - began


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["prepare", "measure"])
    for name in ("store", "cluster", "kiln", "kiln-commit", "buildkit", "buildkit-version", "runc", "buildah", "buildah-root", "kaniko", "registry", "out", "work", "disk"):
        parser.add_argument("--" + name, default="")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--builders", default="")
    parser.add_argument("--check", action="store_true", help="compare the images of the first round")
    parser.add_argument("--write-docs", default="", help="a folder docs/ to write performance.md into")
    parser.add_argument("workloads", nargs="*")
    options = parser.parse_intermixed_args()
    unknown = [name for name in options.workloads if name not in workloads.NAMES]
    if unknown:
        sys.exit("bench: unknown workload %s; known are %s" % (", ".join(unknown), ", ".join(workloads.NAMES)))
    chosen = [name for name in re.split(r"[ ,]+", options.builders) if name] or list(BUILDERS)
    unknown = [name for name in chosen if name not in BUILDERS]
    if unknown:
        sys.exit("bench: unknown builder %s; known are %s" % (", ".join(unknown), ", ".join(BUILDERS)))
    options.builders = chosen
    return options


def prepare(options, chosen):
    """What needs the network, or time: bases and contexts."""
    for workload in chosen:
        for name in workload.bases:
            base(name, options)
        for name in dict.fromkeys([workload.context, *(workload.filled_by or ())[:1]]):
            context(name, options)


def main():
    options = arguments()
    os.umask(0o022)
    chosen = [each for each in workloads.ALL if not options.workloads or each.name in options.workloads]
    if options.phase == "prepare":
        prepare(options, chosen)
        return
    if os.getpid() != 1:
        sys.exit("bench: measuring needs a pid namespace of its own; use scripts/bench")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    os.makedirs(os.path.join(options.out, "logs"), exist_ok=True)
    bench, there, absent = Bench(options), [], {}
    bench.mounts()
    for name in options.builders:
        builder = BUILDERS[name](options)
        why = builder.missing()
        if why:
            absent[name] = why
            print("bench: %s is not measured: %s" % (name, why), flush=True)
        else:
            there.append(builder)
            print("bench: %s is %s" % (name, builder.version()), flush=True)
    for workload in chosen:
        contenders = [(builder, setting) for builder in there for setting in workloads.settings(workload, builder.name)]
        bench.workload(workload, contenders, options.rounds)
        content = report.write(bench.results, there, absent, options)
        plot.write(content, options.out)
    if options.write_docs:
        docs.write(content, options.write_docs)
    print(report.tables(bench.results))
    sys.exit(1 if any("failed" in each for each in bench.results) else 0)


if __name__ == "__main__":
    main()
