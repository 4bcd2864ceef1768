"""docs/performance.md: its tables, versions and commands are written by the bench, between two marks; the rest is left as it is."""
import json
import os
import statistics
import sys

import plot
import report
import workloads

BEGIN, END = "<!-- written by scripts/bench --write-docs: begin -->", "<!-- written by scripts/bench --write-docs: end -->"
HEAD = """# Performance

Kiln beside BuildKit, Buildah and kaniko: same Dockerfiles, machine and registry, in one run.

    make bench                        # all workloads, three rounds
    scripts/bench W4 W5               # some
    scripts/bench --write-docs        # all, and the tables below anew

How it is measured: one registry on loopback with its storage in memory, a fresh process of it and a fresh copy of the base images
for each run; a new ext4 with a journal on a loop device for each run; builders alternate, and each round begins with another one;
loopback is all the network; contexts are in the page cache. Time is that of build and push: of `kiln build` from its start, of
`buildctl` with its daemon up, of `buildah build` and `buildah push`. Processor time is that of all processes of the builder, its
daemon and the RUN commands. Memory is sampled and summed over the builder's processes; *private* leaves out pages of files, *with
RUN* has the commands of the Dockerfile, too. A run in which others took more than a fifth of a core is left out where a quieter one
of the same kind exists. Not measured here: the start of a pod.

"""


def markdown(content):
    """What stands between the marks."""
    machine, what = content["machine"], {each.name: each.what for each in workloads.ALL}
    lines = ["Measured %s on %s, %d cores, %.0f GiB, Linux %s; %d rounds%s." % (
        content["date"][:10], machine["processor"] or "a processor without a name", machine["cores"], machine["memory"] / (1 << 30),
        machine["kernel"], content["rounds"], "" if content["scale"] == 1 else "; **scale %g, no figures**" % content["scale"]), ""]
    lines += ["* %s; %s" % (version, content["how"][name]) for name, version in content["builders"].items()]
    starts = [each["daemon_start"] for rows in content["medians"].values() for each in rows if each.get("daemon_start")]
    if starts:
        lines.append("* start of buildkitd, not in its times: %.2f s" % statistics.median(starts))
    lines += ["* %s: not measured, %s" % item for item in content["absent"].items()]
    lines += ["", "![Time of build and push](performance/wall.svg)", "", "`x` is the best peer's figure, in any of its settings, divided by "
              "this one's: above 1 is better than every peer.", ""]
    for name, rows in content["medians"].items():
        lines += ["### %s: %s" % (name, what[name]), "", "| " + " | ".join(report.HEADER) + " |", "|---" * len(report.HEADER) + "|"]
        lines += ["| " + " | ".join(report.cells(each)) + " |" for each in rows]
        lines.append("")
    lines += ["![Processor time](performance/cpu.svg)", "", "![Memory](performance/memory.svg)", "", "### Commands", "",
              "STATE is the fresh file system, CONTEXT the workload's, IMAGE its name in the registry.", ""]
    groups = {}
    for name, rows in content["medians"].items():
        for each in rows:
            if "command" in each:
                groups.setdefault((report.label(each["builder"], each["setting"]), tuple(each["command"])), []).append(name)
    for (builder, commands), names in sorted(groups.items()):
        lines += ["%s in %s:" % (builder, ", ".join(names)), "", *("    " + words for words in commands), ""]
    return "\n".join(lines).rstrip() + "\n"


def write(content, folder):
    """Writes performance.md and its plots below `folder`."""
    path = os.path.join(folder, "performance.md")
    before, after = HEAD, ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if BEGIN in text and END in text:
            before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    with open(path, "w", encoding="utf-8") as file:
        file.write(before + BEGIN + "\n\n" + markdown(content) + "\n" + END + (after or "\n"))
    plot.write(content, os.path.join(folder, "performance"))


if __name__ == "__main__":
    # docs.py BENCH.JSON FOLDER: the page anew from figures that are there.
    with open(sys.argv[1], encoding="utf-8") as source:
        write(json.load(source), sys.argv[2])
