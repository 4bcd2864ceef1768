#!/usr/bin/env python3
"""Where the time goes between an ImageBuild and its first step, and on to Ready: builds a Dockerfile of two steps again and again, one
at a time, and prints when what was seen. `scripts/startup` runs it in the test cluster, with Kiln installed.

Each moment is when a watch of this program showed it, or what a journal's line says; both are clocks of this machine."""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time

DOCKERFILE = "FROM busybox\nRUN true\n"
BEGIN, END = "<!-- written by scripts/startup --write-docs: begin -->", "<!-- written by scripts/startup --write-docs: end -->"
PATIENCE = 120
# In the order in which they come; each is shown as seconds since the object was sent, and since the one before it.
MOMENTS = ["object is stored", "pod is there", "pod has a node", "courier runs", "builder is there", "Dockerfile is planned", "first RUN begins",
           "image is pushed and tagged", "Ready"]


def kubectl(*words, **more):
    return subprocess.run(["kubectl", *words], check=True, stdout=subprocess.PIPE, text=True, **more).stdout


class Watch(threading.Thread):
    """What `kubectl get --watch` shows, each with the time at which it came."""

    def __init__(self, namespace, kind):
        super().__init__(daemon=True)
        self.seen, self.changed = [], threading.Condition()
        self.process = subprocess.Popen(["kubectl", "--namespace", namespace, "get", kind, "--watch", "--output", "json",
                                         "--output-watch-events"], stdout=subprocess.PIPE, text=True)
        self.start()

    def run(self):
        for line in self.process.stdout:
            with self.changed:
                self.seen.append((time.time(), json.loads(line)["object"]))
                self.changed.notify_all()

    def first(self, wanted):
        """When an object first was as wanted, and that object."""
        end, at = time.time() + PATIENCE, 0
        with self.changed:
            while True:
                for when, thing in self.seen[at:]:
                    if wanted(thing):
                        return when, thing
                at = len(self.seen)
                left = end - time.time()
                if left <= 0:
                    sys.exit("startup: what was waited for did not come within %d s; see `kubectl get imagebuilds,pods -A`" % PATIENCE)
                self.changed.wait(left)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def condition(build, kind):
    return next((each for each in build.get("status", {}).get("conditions", []) if each["type"] == kind), {})


def moment(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def journal(namespace, pod):
    """The courier's events: when each first came, by name; of the steps, by name and number."""
    times = {}
    for line in kubectl("--namespace", namespace, "logs", pod, "--container", "courier").splitlines():
        try:
            line = json.loads(line)
            event = line["event"]
        except (ValueError, KeyError, TypeError):
            continue
        name = event["type"] + (" %d" % event["step"] if "step" in event else "")
        times.setdefault(name, moment(line["at"]))
    return times


def one(namespace, name, registry, pods, builds):
    """Builds once; the seconds from the object to each moment."""
    build = {"apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild", "metadata": {"name": name, "namespace": namespace},
             "spec": {"source": {"inline": {"files": [{"path": "Dockerfile", "content": DOCKERFILE}]}},
                      "output": {"image": "%s/%s/%s:latest" % (registry, namespace, name)}}}
    body = json.dumps(build)
    sent = time.time()
    # Without a client's discovery and validation: the request alone.
    kubectl("create", "--raw", "/apis/kiln.build/v1alpha1/namespaces/%s/imagebuilds" % namespace, "--filename", "-", input=body)
    mine = lambda thing: thing["metadata"].get("ownerReferences", [{}])[0].get("name") == name
    is_it = lambda thing: thing["metadata"]["name"] == name
    stored, _ = builds.first(is_it)
    there, pod = pods.first(mine)
    node, _ = pods.first(lambda thing: mine(thing) and thing["spec"].get("nodeName"))
    ready, build = builds.first(lambda thing: is_it(thing) and condition(thing, "Ready").get("status") in ("True", "False")
                                and thing["status"].get("completionTime"))
    if condition(build, "Ready")["status"] != "True":
        sys.exit("startup: %s failed: %s" % (name, condition(build, "Ready").get("message")))
    said = journal(namespace, pod["metadata"]["name"])
    try:
        at = [stored, there, node, said["courierStarted"], said["builderStarted"], said["planned"], said["stepStarted 2"], said["succeeded"], ready]
    except KeyError as missing:
        sys.exit("startup: the journal of %s has no %s, but %s" % (name, missing, ", ".join(said)))
    return [each - sent for each in at]


def table(rows):
    lines = ["| moment | since the object was sent: median (least to most) | since the moment before |", "|---|---|---|"]
    before = [0.0] * len(rows)
    for index, name in enumerate(MOMENTS):
        column = [row[index] for row in rows]
        steps = [now - then for now, then in zip(column, before)]
        lines.append("| %s | %.2f s (%.2f to %.2f) | %.2f s |" % (name, statistics.median(column), min(column), max(column),
                                                                statistics.median(steps)))
        before = column
    return lines


def write(lines, path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        sys.exit("startup: %s has not the two marks between which the table stands" % path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + tail)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--builds", type=int, default=10)
    options.add_argument("--namespace", default="kiln-startup")
    options.add_argument("--write-docs", metavar="PERFORMANCE.MD")
    options = options.parse_args()
    registry = os.environ.get("KILN_E2E_REGISTRY") or sys.exit("startup: KILN_E2E_REGISTRY is not set; scripts/startup sets it")
    kubectl("create", "namespace", options.namespace)
    pods, builds = Watch(options.namespace, "pods"), Watch(options.namespace, "imagebuilds")
    try:
        # The first one finds caches cold: of the kubelet, of the registry.
        rows = [one(options.namespace, "b%d" % number, registry, pods, builds) for number in range(options.builds + 1)][1:]
    finally:
        pods.stop()
        builds.stop()
        kubectl("delete", "namespace", options.namespace, "--wait=false")
    lines = ["Measured %s, %d cores, Linux %s, %d builds after one that is not counted." % (
        datetime.date.today(), os.cpu_count(), platform.release(), options.builds), "", *table(rows)]
    print("\n".join(lines))
    if options.write_docs:
        write(lines, options.write_docs)


if __name__ == "__main__":
    main()
