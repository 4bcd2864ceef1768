#!/usr/bin/env python3
"""Builds each Dockerfile of a folder with Kiln and with BuildKit and compares the images; or records BuildKit's answers.

    differential.py --kiln PROGRAM --buildkit DIR --runc PROGRAM [--tools DIR] [--only REGEX] [--bases DIR] [--record] DIR

DIR has Dockerfiles (Dockerfile*, *.Dockerfile: the context is DIR), folders with a Dockerfile, or cases with case.json. Prints
each difference as expected (BuildKit) against found (Kiln), and last "N passed, N failed, N skipped". `scripts/differential`
calls this in namespaces of its own: no network, and nothing that outlives it."""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import bases as own_bases
import build_cases
import buildkit
import cases
import compare
import images
from layouts import Registry


class Run:
    """What all builds of one call share."""

    def __init__(self, options, work):
        self.options, self.work, self.counter = options, work, 0
        layouts = os.path.join(work, "bases")
        os.makedirs(layouts)
        busybox = shutil.which("busybox") or "/bin/busybox"
        if options.tools:
            subprocess.run([sys.executable, "-B", os.path.join(options.tools, "make_bases.py"), "--busybox", busybox, "--out",
                            layouts], check=True, stdout=subprocess.DEVNULL)
        else:
            own_bases.make(busybox, layouts)
        if options.bases:
            shutil.copytree(options.bases, layouts, dirs_exist_ok=True)
        self.bases = {name: images.Image(os.path.join(layouts, name)) for name in sorted(os.listdir(layouts))}
        self.registry = Registry(layouts)
        self.registries = build_cases.registry_settings(work, self.registry)
        self.began = time.time()
        self.buildctl = os.path.join(options.buildkit, "buildctl")
        self.daemon = buildkit.Daemon(os.path.join(options.buildkit, "buildkitd"), options.runc, work, self.registry.host)
        self.daemon.wait(self.buildctl)

    def close(self):
        self.daemon.close()
        self.registry.close()

    def found(self):
        """name -> function that lays the build out in a directory and gives its case."""
        folder, builds = self.options.folder, {}
        nested = os.path.join(folder, "cases")
        if os.path.isdir(nested) and not os.path.isfile(os.path.join(nested, "Dockerfile")):
            folder = nested
        for name, (context, dockerfile) in cases.plain_builds(folder).items():
            if os.path.isfile(os.path.join(context, "case.json")) and context != folder:
                builds[name] = lambda out, at=context: self.laid_out(at, out)
            else:
                builds[name] = lambda out, c=context, d=dockerfile: cases.copy_plain(c, d, out)
        return {name: make for name, make in builds.items() if re.search(self.options.only, name)}

    @staticmethod
    def laid_out(folder, out):
        case = cases.load(folder)
        cases.materialize(case, out)
        return {**case, "_folder": folder}

    def serve(self, case):
        """A server of the case's fixtures, or None. It is the corpus' program."""
        if not case.get("fixtures"):
            return None
        import fixture_server
        return fixture_server.Server(case["fixtures"])

    def skip(self, case):
        """Why a case can't be built by both here, or None."""
        if case.get("fixtures") and not self.options.tools:
            return "needs the corpus' fixture_server.py beside its cases"
        options = case.get("options", {})
        if options.get("ssh"):
            return "the agent is the conformance runner's"
        if options.get("exporter") or "cgroup-parent" in options:
            return "sets what is not the same in both command lines"
        return None

    def reference(self, case, out, url, layout):
        """BuildKit's image, or its failure."""
        self.counter = buildkit.freshen(out, self.counter)
        failure = buildkit.build(self.buildctl, self.daemon, case, out, url, layout)
        return (None, failure) if failure else (images.Image(layout), None)

    def kiln(self, case, out, url):
        """Kiln's image, or its failure as line and message."""
        words = build_cases.arguments(case, out, url)
        code, events, stderr, layout = build_cases.run(self.options.kiln, words, out, self.registries)
        return (images.Image(layout), None) if code == 0 else (None, build_cases.failure(code, events, stderr))

    def compared(self, make, out):
        """Differences (None for a skip) and a remark."""
        case = make(out)
        why = self.skip(case)
        if why:
            return None, why
        server = self.serve(case)
        try:
            url = server.url if server else ""
            expected, refusal = self.reference(case, out, url, os.path.join(out, "reference"))
            found, failure = self.kiln(case, out, url)
            epoch = case.get("options", {}).get("build_args", {}).get("SOURCE_DATE_EPOCH", "")
            epoch = int(epoch) if epoch.isdigit() else None
            differences = compare.of_builders(expected, found, self.began, epoch) if expected and found else []
            # What BuildKit itself makes anew in every build (random bytes, times) is nothing to hold Kiln to.
            again = self.reference(case, out, url, os.path.join(out, "again"))[0] if differences else None
            if again:
                differences = compare.without_noise(differences, compare.of_builders(expected, again, self.began))
        finally:
            if server:
                server.close()
        if refusal and failure:
            both = "both refuse\n    BuildKit, line %s: %s\n    Kiln, line %s: %s" % (
                refusal.get("line"), refusal["message"], failure.get("line"), failure["message"])
            return ([failure["message"]] if failure["bug"] else []), both
        if refusal:
            return ["expected a failure on line %s: %s; found an image" % (refusal.get("line"), refusal["message"])], ""
        if failure:
            return ["expected an image, found a failure on line %s: %s" % (failure.get("line"), failure["message"])], ""
        return differences, ""

    def record(self, make, out):
        """Writes BuildKit's answer into case.json. Builds twice: content that is another one each time is not compared."""
        case = make(out)
        if "_folder" not in case:
            return None, "has no case.json"
        why = self.skip(case)
        if why:
            return None, why
        server = self.serve(case)
        try:
            url = server.url if server else ""
            runs = [self.reference(case, out, url, os.path.join(out, "reference-%d" % n)) for n in (1, 2)]
        finally:
            if server:
                server.close()
        (image, failure), (again, other) = runs
        if bool(failure) != bool(other):
            return ["one of two builds failed: %s" % (failure or other)["message"]], ""
        case.pop("base", None), case.pop("expect", None)
        if failure:
            case["expect"] = {"result": "failure", "error": failure}
        else:
            name = compare.which_base(image, self.bases)
            answer, second = (compare.result_of(one, self.bases.get(name)) for one in (image, again))
            if [one["path"] for one in answer["files"]] != [one["path"] for one in second["files"]]:
                return ["two builds made other paths; a case has to be the same each time"], ""
            for one, later in zip(answer["files"], second["files"]):
                if one.get("sha256") != later.get("sha256"):
                    one.pop("sha256"), one.pop("size")
                    one["unstable"] = True
            case["base"], case["expect"] = name, answer
        with open(os.path.join(case["_folder"], "case.json"), "w", encoding="utf-8") as file:
            file.write(cases.dump(case))
        return [], "recorded: %s" % ("failure, %s" % json.dumps(failure) if failure else "%d entries on %s, %d layers" %
                                     (len(answer["files"]), name, answer["layers"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--buildkit", required=True, help="directory of buildkitd and buildctl")
    parser.add_argument("--runc", required=True)
    parser.add_argument("--tools", help="the corpus' programs: its bases and fixtures are then used")
    parser.add_argument("--bases", help="further base images: a directory of OCI layouts, each docker.io/library/NAME:latest")
    parser.add_argument("--only", default="")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("folder")
    options = parser.parse_args()
    options.folder = os.path.abspath(options.folder)
    listed = {} if options.record else build_cases.on_purpose()
    os.umask(0o022)
    os.environ.update(build_cases.UNNOTICED)
    sys.dont_write_bytecode = True
    if options.tools:
        sys.path.append(os.path.abspath(options.tools))
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="kiln-differential-", dir="/var/tmp") as work:
        os.chmod(work, 0o711)
        run = Run(options, work)
        try:
            builds = run.found()
            if not builds:
                print("differential: %s has no Dockerfile*, no *.Dockerfile and no folder with a Dockerfile" % options.folder)
                counts["failed"] = 1
            for name, make in builds.items():
                out = tempfile.mkdtemp(prefix="case-", dir=work)
                os.chmod(out, 0o711)
                try:
                    differences, remark = (run.record if options.record else run.compared)(make, out)
                except (images.Broken, OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
                    differences, remark = ["could not be built and compared: %s: %s" % (type(error).__name__, error)], ""
                shutil.rmtree(out, ignore_errors=True)
                why = listed.get("%s/%s" % ("build" if options.tools else "own", name))
                if differences and why:
                    differences, remark = None, "differs on purpose: " + why
                outcome = "skipped" if differences is None else "failed" if differences else "passed"
                counts[outcome] += 1
                print("%s %s%s" % (outcome.upper() if differences else outcome, name, ": " + remark if remark else ""))
                for difference in differences or []:
                    print("    " + difference.replace("\n", "\n    "))
                sys.stdout.flush()
        finally:
            run.close()
    print("%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % counts)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
