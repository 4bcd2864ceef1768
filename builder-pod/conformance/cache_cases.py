#!/usr/bin/env python3
"""The build cases of a conformance corpus with a cache: the image must not know of it.

    cache_cases.py --kiln PROGRAM --cases DIR --registry PROGRAM [--tools DIR] [--only REGEX] [--jobs N]

Each case that can be built is built with one SOURCE_DATE_EPOCH: twice without a cache, with an empty one, and again with what
that has left. Passed is one digest in all of them, and no command in the last one. A case whose two builds without cache differ
is no test of it and skipped. Fails with 1 when a case does. Ends with "cache: N passed, N failed, N skipped".
"""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import bases as own_bases
import build_cases
import cases
from layouts import Registry

EPOCH = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000"]


def serve(program, work):
    """A registry that takes what is pushed: its process and its host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = "127.0.0.1:%d" % free.getsockname()[1]
    config = os.path.join(work, "registry.yml")
    with open(config, "w", encoding="utf-8") as file:
        json.dump({"version": "0.1", "log": {"level": "error"}, "http": {"addr": host, "secret": "tests"},
                   "storage": {"filesystem": {"rootdirectory": os.path.join(work, "registry")}}}, file)
    server = subprocess.Popen([program, "serve", config], env={"OTEL_TRACES_EXPORTER": "none"},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(host.split(":")).close()
            return server, host
        except OSError:
            time.sleep(0.05)
    server.kill()
    raise SystemExit("cache_cases: the registry does not listen")


def build(settings, case, out, server, turn, more):
    """Digest of the image, whether a command ran, and what the build said where it failed."""
    place = os.path.join(out, turn)
    os.mkdir(place, 0o711)
    os.chmod(place, 0o711)
    words = build_cases.arguments(case, out, server.url if server else "")
    # `run` takes the context, and puts the image, below one directory.
    os.symlink(os.path.join(out, "context"), os.path.join(place, "context"))
    code, events, stderr, image = build_cases.run(settings["kiln"], [*words, *EPOCH, *more], place, settings["registries"])
    if code != 0:
        return None, False, build_cases.failure(code, events, stderr)["message"]
    with open(os.path.join(image, "index.json"), encoding="utf-8") as file:
        digest = json.load(file)["manifests"][0]["digest"]
    planned = ([event["steps"] for event in events if event["type"] == "planned"] or [[]])[-1]
    ran = [event["step"] for event in events if event["type"] == "stepDone" and not event["cached"]]
    commands = [number for number in ran if planned[number - 1]["instruction"].upper().startswith("RUN")]
    shutil.rmtree(place, ignore_errors=True)
    return digest, bool(commands), stderr


def one(job):
    """Name, what is wrong (None for a skip), why it is skipped."""
    name, settings = job
    case = cases.load(os.path.join(settings["cases"], name))
    out = tempfile.mkdtemp(prefix="case-", dir=settings["work"])
    os.chmod(out, 0o711)
    server = None
    try:
        os.umask(0o022)
        os.environ.update(build_cases.UNNOTICED)
        if case["expect"].get("result") != "success" or "cgroup-parent" in case.get("options", {}):
            return name, None, "it is not to be built"
        if "ssh" in case.get("options", {}) or "SOURCE_DATE_EPOCH" in case.get("options", {}).get("build_args", {}):
            return name, None, "it has an agent or an epoch of its own"
        if case.get("fixtures"):
            if settings["tools"] is None:
                return name, None, "fixtures are served by the corpus' own program"
            sys.path.append(settings["tools"])
            import fixture_server
            server = fixture_server.Server(case["fixtures"])
        cases.materialize(case, out)
        cache = ["--cache", "%s/cache/%s" % (settings["host"], re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))]
        first, _, said = build(settings, case, out, server, "first", [])
        again, _, _ = build(settings, case, out, server, "again", [])
        if first is None or first != again:
            return name, None, "two builds of it differ without a cache: %s" % (said.strip()[-200:] if first is None else "")
        wrong = []
        cold, _, said = build(settings, case, out, server, "cold", cache)
        if cold != first:
            wrong.append("without cache %s, with an empty one %s %s" % (first, cold, said.strip()[-300:]))
        warm, ran, said = build(settings, case, out, server, "warm", cache)
        if warm != first:
            wrong.append("without cache %s, from the cache %s %s" % (first, warm, said.strip()[-300:]))
        if ran:
            wrong.append("a command ran although all was in the cache")
        if "[Warning]" in said and "cache" in said:
            wrong.append(said.strip()[-300:])
        return name, wrong, ""
    except Exception as error:
        return name, ["the case could not be run: %s: %s" % (type(error).__name__, error)], ""
    finally:
        if server:
            server.close()
        shutil.rmtree(out, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--tools")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tools = options.tools and os.path.abspath(options.tools)
    folder = os.path.join(os.path.abspath(options.cases), "cases")
    names = sorted(name for name in os.listdir(folder) if re.search(options.only, name))
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="kiln-cache-", dir="/var/tmp") as work:
        os.chmod(work, 0o711)
        busybox = shutil.which("busybox") or "/bin/busybox"
        layouts = os.path.join(work, "bases")
        if tools:
            subprocess.run([sys.executable, "-B", os.path.join(tools, "make_bases.py"), "--busybox", busybox, "--out", layouts],
                           check=True, stdout=subprocess.DEVNULL)
        else:
            own_bases.make(busybox, layouts)
        source = Registry(layouts)
        target, host = serve(options.registry, work)
        registries = os.path.join(work, "registries.yaml")
        with open(registries, "w", encoding="utf-8") as file:
            json.dump({"mirrors": [{"registry": "docker.io", "mirrors": [source.host]}], "insecure": [source.host, host]}, file)
        settings = {"kiln": os.path.abspath(options.kiln), "cases": folder, "tools": tools, "work": work,
                    "registries": registries, "host": host}
        sys.dont_write_bytecode = True
        pool = concurrent.futures.ProcessPoolExecutor(options.jobs)
        try:
            for name, wrong, remark in pool.map(one, [(name, settings) for name in names]):
                counts["skipped" if wrong is None else "failed" if wrong else "passed"] += 1
                if wrong is None:
                    print("skipped cache/%s: %s" % (name, remark))
                elif wrong:
                    print("FAILED cache/%s\n    %s" % (name, "\n    ".join(wrong)))
                sys.stdout.flush()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            source.close()
            target.terminate()
            target.wait()
    print("cache: %(passed)d passed, %(failed)d failed, %(skipped)d skipped" % counts)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
