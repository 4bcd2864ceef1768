"""From runs to medians, tables and JSON.

A run in which others took more than a fifth of a core is disturbed; it is left out where quieter ones of the same kind exist."""
import json
import os
import platform
import statistics
import time

import workloads

MIB = 1 << 20
OTHERS_CORES, OTHERS_SECONDS = 0.2, 0.1     # the second: times of processors are counted in hundredths
# The last two are of the comparison of images, which only the first round makes.
LEFT_OUT = ("command", "workload", "builder", "setting", "round", "entries", "differences")


def label(builder, setting):
    return "%s (%s)" % (builder, setting) if setting else builder


def disturbed(run):
    return run["others_cores"] > OTHERS_CORES and run["others_cpu"] > OTHERS_SECONDS


def image_of(registry, image, workload):
    """Size and layers of what was pushed, and of the layers that no base of the workload has."""
    repository, tag = image.partition("/")[2].split(":")
    manifest = registry.manifest(repository, tag)
    if manifest is None:
        raise RuntimeError("%s is not in the registry after the build" % image)
    known = {layer["digest"] for name in workload.bases for layer in registry.manifest("bases/" + name, "1")["layers"]}
    return {"layers": len(manifest["layers"]), "image_bytes": sum(layer["size"] for layer in manifest["layers"]),
            "new_bytes": sum(layer["size"] for layer in manifest["layers"] if layer["digest"] not in known)}


def line(run):
    """One run, as it is printed when it ends."""
    name = "  round %d  %-22s " % (run["round"] + 1, label(run["builder"], run["setting"]))
    if "failed" in run:
        return name + "FAILED: " + run["failed"]
    return name + "%8.2f s  CPU %7.2f s  peak %6.1f MiB  sent %7.1f MiB  fetched %7.1f MiB%s" % (
        run["wall"], run["cpu"], run["peak_builder"] / MIB, run["sent"] / MIB, run["fetched"] / MIB,
        "  disturbed: others took %.2f of a core" % run["others_cores"] if disturbed(run) else "") + "".join(
            "\n    differs from the image of %s: %s" % (run["differs_from"], each) for each in run.get("differences", []))


def rows(results):
    """Per workload, in order: one row for each builder and setting, medians of its runs, and the ratio to the best peer."""
    table = {}
    for run in results:
        table.setdefault(run["workload"], {}).setdefault((run["builder"], run["setting"]), []).append(run)
    answer = {}
    for name in [each for each in workloads.NAMES if each in table]:
        answer[name] = [row(builder, setting, runs) for (builder, setting), runs in table[name].items()]
        peers = [each["wall"] for each in answer[name] if each["builder"] != "kiln" and "wall" in each]
        frugal = [each["cpu"] for each in answer[name] if each["builder"] != "kiln" and "cpu" in each]
        for each in answer[name]:
            if "wall" in each and peers:
                each["ratio"] = min(peers) / each["wall"]
                each["cpu_ratio"] = min(frugal) / each["cpu"] if each["cpu"] else None
    return answer


def row(builder, setting, runs):
    answer = {"builder": builder, "setting": setting}
    why = [run.get("not_measured") or "failed: " + run["failed"].splitlines()[0] for run in runs if "wall" not in run]
    good = [run for run in runs if "wall" in run]
    quiet = [run for run in good if not disturbed(run)]
    used = quiet or good
    if not used:
        return {**answer, "why": why[0]}
    numbers = [key for key, value in used[0].items() if key not in LEFT_OUT and isinstance(value, (int, float))]
    answer.update({key: statistics.median(run[key] for run in used) for key in numbers})
    answer.update({"wall_min": min(run["wall"] for run in used), "wall_max": max(run["wall"] for run in used), "runs": len(used),
                   "left_out": len(good) - len(used), "failed": len(why), "disturbed": not quiet, "command": used[0]["command"]})
    return answer


HEADER = ("", "wall s (min-max, runs)", "x", "CPU s", "x", "peak MiB", "private", "with RUN", "sent MiB", "fetched", "new layers", "requests")


def cells(each):
    """A row as text; `x` is the best peer's divided by this one's: above 1 is better than every peer."""
    name = label(each["builder"], each["setting"])
    if "wall" not in each:
        return (name, each["why"]) + ("",) * (len(HEADER) - 2)
    runs = "%d" % each["runs"] + (", disturbed" if each["disturbed"] else "") + (", %d left out" % each["left_out"] if each["left_out"] else "")
    ratio = lambda key: "%.2f" % each[key] if each.get(key) else ""
    size = lambda key: "%.1f" % (each[key] / MIB)
    return (name, "%.2f (%.2f-%.2f, %s)" % (each["wall"], each["wall_min"], each["wall_max"], runs), ratio("ratio"), "%.2f" % each["cpu"],
            ratio("cpu_ratio"), size("peak_builder"), size("peak_private"), size("peak_all"), size("sent"), size("fetched"),
            size("new_bytes"), "%d" % each["requests"])


def tables(results):
    """All workloads as text for a terminal."""
    starts = [run["daemon_start"] for run in results if run.get("daemon_start")]
    text = ["", "buildkitd took %.2f s to start, which is not in its times." % statistics.median(starts)] if starts else [""]
    text += ["x: the best peer's divided by this one's; above 1 is better than every peer in any setting."]
    what = {each.name: each.what for each in workloads.ALL}
    for name, found in rows(results).items():
        lines = [HEADER] + [cells(each) for each in found]
        plain = [cell for cell in lines if len(cell) == len(HEADER) and cell[2:] != ("",) * (len(HEADER) - 2)]
        widths = [max(len(cell[n]) for cell in (lines if n == 0 else plain)) for n in range(len(HEADER))]
        text += ["", "%s  %s" % (name, what[name])]
        for cell in lines:
            text.append("  " + "  ".join(value.ljust(width) if n < 2 else value.rjust(width)
                                         for n, (value, width) in enumerate(zip(cell, widths))).rstrip())
    return "\n".join(text)


def machine():
    """What the figures hold for."""
    model, memory = "", 0
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for each in file:
            if each.startswith("model name"):
                model = each.partition(":")[2].strip()
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) * 1024
    return {"processor": model, "cores": os.cpu_count(), "memory": memory, "kernel": platform.release()}


def write(results, there, absent, options):
    """target/bench/bench.json: everything."""
    content = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(), "scale": options.scale,
               "rounds": options.rounds, "builders": {builder.name: builder.version() for builder in there},
               "how": {builder.name: builder.how for builder in there}, "absent": absent,
               "medians": rows(results), "runs": results}
    path = os.path.join(options.out, "bench.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.rename(path + ".part", path)
    return content
