#!/usr/bin/env python3
"""The build cases of a conformance corpus, each with `kiln build` as a user would, compared with BuildKit's answers.

    build_cases.py --kiln PROGRAM --cases DIR [--category NAME] [--tools DIR] [--only REGEX] [--jobs N] [--notes]
                   [--keep DIR]

Prints each difference as expected against found, what was skipped and why, and last "N passed, N failed, N skipped".
--tools is where the corpus' own programs are, which make its bases and serve its fixtures; without it the base is our own.
Exit status 1: a case failed that `differs-on-purpose` does not list, or one passed that it lists."""
import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import bases as own_bases
import cases
import compare
import images
from layouts import Registry

HERE = os.path.dirname(os.path.abspath(__file__))
# Longest that one case may take: the slowest are two minutes of retries against a registry that is not there.
CASE_SECONDS = 300
# The corpus' repositories change a file within a second, with its size and time kept. Whether git notices is chance; what the
# expectations were recorded with is that it does not.
UNNOTICED = {"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "core.trustctime", "GIT_CONFIG_VALUE_0": "false",
             "GIT_CONFIG_KEY_1": "core.checkStat", "GIT_CONFIG_VALUE_1": "minimal"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def on_purpose():
    """Case -> why it differs: `build/NAME  why`, a line each."""
    listed = {}
    with open(os.path.join(HERE, "differs-on-purpose"), encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if line and not line.startswith("#"):
                name, why = line.split(None, 1)
                listed[name] = why
    return listed


def arguments(case, out, fixture):
    """The command line that docker's user would write for the options of a case."""
    options, words = case.get("options", {}), []
    fill = lambda text: text.replace("@FIXTURE@", fixture)
    if "dockerfile" in case:
        words += ["-f", os.path.join(out, "context", case["dockerfile"])]
    if fixture:
        words += ["--build-arg", "FIXTURE=" + fixture]
    for name, value in options.get("build_args", {}).items():
        words += ["--build-arg", "%s=%s" % (name, fill(value))]
    for name, value in options.get("labels", {}).items():
        words += ["--label", "%s=%s" % (name, value)]
    for name in options.get("secrets", {}):
        words += ["--secret", "id=%s,src=%s" % (name, os.path.join(out, "secrets", name))]
    for name, context in options.get("named_contexts", {}).items():
        where = os.path.join(out, "named", name) if context["type"] == "local" else fill(context["ref"])
        words += ["--build-context", "%s=%s" % (name, where)]
    for word in options.get("entitlements", []):
        words += ["--allow", word]
    for host in filter(None, options.get("add-hosts", "").split(",")):
        words += ["--add-host", host]
    if "hostname" in options:
        words += ["--build-arg", "BUILDKIT_SANDBOX_HOSTNAME=" + options["hostname"]]
    if options.get("ssh"):
        words += ["--ssh", "default"]
    for option in ("target", "platform", "network", "shm-size", "ulimit"):
        if option in options:
            words += ["--" + option, options[option]]
    return words


def run(kiln, words, out, registries):
    """Exit code, the journal's events, and the last words on stderr."""
    image = os.path.join(out, "image")
    environment = {"PATH": PATH, "HOME": os.path.join(out, "home"), "TMPDIR": out}
    os.makedirs(environment["HOME"])
    agent = None
    if "--ssh" in words:
        # An agent with one key, as `docker build --ssh default` has it.
        environment["SSH_AUTH_SOCK"] = os.path.join(out, "agent.sock")
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", environment["SSH_AUTH_SOCK"]],
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        key = os.path.join(out, "key")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        for _ in range(100):
            if os.path.exists(environment["SSH_AUTH_SOCK"]):
                break
            agent.poll()
            subprocess.run(["sleep", "0.05"], check=True)
        subprocess.run(["ssh-add", "-q", key], env=environment, check=True)
    command = [kiln, "build", "--progress", "rawjson", "--registry-config", registries, "--work-dir", out,
               "-o", "type=oci-layout,dest=" + image, *words, os.path.join(out, "context")]
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=CASE_SECONDS)
    finally:
        if agent:
            agent.terminate()
            agent.wait()
    events = []
    for line in done.stdout.splitlines():
        try:
            events.append(json.loads(line)["event"])
        except (ValueError, KeyError):
            pass
    return done.returncode, events, done.stderr.decode("utf-8", "replace"), image


def failure(code, events, stderr):
    """Line, message and reason of a failed build; `bug` where it did not end as a failed build does."""
    said = ([event["failure"] for event in events if event["type"] == "failed"] or [{}])[-1]
    words = stderr.strip()[-600:]
    bug = code not in (1, 2) or (code == 2 and not stderr.startswith("kiln:")) or said.get("reason") == "InternalError"
    message = said.get("message") or words
    return {"line": said.get("line"), "reason": said.get("reason"), "bug": bug,
            "message": "kiln build ended with exit code %d: %s" % (code, message) if bug else message}


def registry_settings(work, registry):
    """A file for --registry-config: Docker Hub's images are those of a registry of ours."""
    path = os.path.join(work, "registries.yaml")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"mirrors": [{"registry": "docker.io", "mirrors": [registry.host]}], "insecure": [registry.host]}, file)
    return path


def warnings(case, events):
    """What is not warned of as in the corpus (rules and lines, each once): missing, more, how many are the same."""
    expected = set()
    for warning in case["expect"].get("warnings", []):
        expected.add((warning["short"].split(":")[0], warning["line"]))
    found = {(warning["rule"], warning["line"])
             for event in events if event["type"] == "warnings" for warning in event["items"]}
    say = lambda words: ", ".join("%s on line %d" % word for word in sorted(words))
    notes = ["no warning %s" % say(expected - found)] if expected - found else []
    notes += ["also warns %s" % say(found - expected)] if found - expected else []
    return notes, len(expected & found), len(expected | found)


def one(job):
    """Runs one case in a process of its own: name, differences (None for a skip), remark, counts of warnings."""
    name, settings = job
    bases = {base: images.Image(os.path.join(settings["bases"], base)) for base in os.listdir(settings["bases"])}
    case = cases.load(os.path.join(settings["cases"], name))
    notes = []
    server, out = None, tempfile.mkdtemp(prefix="case-", dir=settings["work"])
    os.chmod(out, 0o711)
    try:
        os.umask(0o022)
        os.environ.update(UNNOTICED)
        if "cgroup-parent" in case.get("options", {}):
            return name, None, "a pod's cgroup is the kubelet's to choose", (0, 0)
        if "ssh" in case.get("options", {}) and not shutil.which("ssh-agent"):
            return name, None, "ssh-agent is not installed", (0, 0)
        if case.get("fixtures"):
            if settings["tools"] is None:
                return name, None, "fixtures are served by the corpus' own program", (0, 0)
            sys.path.append(settings["tools"])
            import fixture_server
            server = fixture_server.Server(case["fixtures"])
        cases.materialize(case, out)
        words = arguments(case, out, server.url if server else "")
        code, events, stderr, image = run(settings["kiln"], words, out, settings["registries"])
        if code == 0:
            differences, notes = compare.with_answer(case, images.Image(image), bases)
        else:
            failed = failure(code, events, stderr)
            differences = compare.with_failure(case, failed["line"], failed["message"])
            # What Kiln does not do is no failure that BuildKit's answer could agree with, unless that is a refusal, too.
            refused = "is not allowed" in case["expect"].get("error", {}).get("message", "")
            if failed["bug"]:
                differences = [failed["message"]]
            elif failed["reason"] == "NotSupported" and not differences and not refused:
                differences = ["refused by Kiln: %s" % failed["message"]]
        more, same, of = warnings(case, events)
        return name, differences, "\n".join([*notes, *more]), (same, of)
    except subprocess.TimeoutExpired:
        return name, ["no end within %d s" % CASE_SECONDS], "", (0, 0)
    except Exception as error:
        return name, ["the case could not be run: %s: %s" % (type(error).__name__, error)], "", (0, 0)
    finally:
        if server:
            server.close()
        if settings["keep"]:
            kept = os.path.join(settings["keep"], name)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(out, kept)
        else:
            shutil.rmtree(out, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--category", default="build", help="what the cases are called in differs-on-purpose and in the output")
    parser.add_argument("--tools")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--notes", action="store_true", help="also print where history, layers and warnings are not BuildKit's")
    parser.add_argument("--keep", help="keep what each case made below this directory")
    options = parser.parse_args()
    tools = options.tools and os.path.abspath(options.tools)
    folder = os.path.join(os.path.abspath(options.cases), "cases")
    names = sorted(name for name in os.listdir(folder) if re.search(options.only, name))
    os.umask(0o022)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    listed, counts = on_purpose(), {"passed": 0, "failed": 0, "skipped": 0}
    warned = (0, 0)
    if options.keep:
        os.makedirs(options.keep, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kiln-conformance-", dir="/var/tmp") as work:
        os.chmod(work, 0o711)
        busybox = shutil.which("busybox") or "/bin/busybox"
        layouts = os.path.join(work, "bases")
        if tools:
            subprocess.run([sys.executable, "-B", os.path.join(tools, "make_bases.py"), "--busybox", busybox, "--out", layouts],
                           check=True, stdout=subprocess.DEVNULL)
        else:
            own_bases.make(busybox, layouts)
        registry = Registry(layouts)
        registries = registry_settings(work, registry)
        settings = {"kiln": os.path.abspath(options.kiln), "cases": folder, "tools": tools, "work": work, "bases": layouts,
                    "registries": registries, "keep": options.keep and os.path.abspath(options.keep)}
        sys.dont_write_bytecode = True
        pool = concurrent.futures.ProcessPoolExecutor(options.jobs)
        try:
            for name, differences, remark, (same, of) in pool.map(one, [(name, settings) for name in names]):
                why = listed.get("%s/%s" % (options.category, name))
                warned = (warned[0] + same, warned[1] + of)
                if options.notes and differences is not None and remark:
                    print("note %s/%s: %s" % (options.category, name, remark))
                if differences is None:
                    counts["skipped"] += 1
                    print("skipped %s/%s: %s" % (options.category, name, remark))
                elif differences and why:
                    counts["skipped"] += 1
                    print("skipped %s/%s: differs on purpose: %s" % (options.category, name, why))
                elif not differences and not why:
                    counts["passed"] += 1
                else:
                    counts["failed"] += 1
                    print("FAILED %s/%s" % (options.category, name))
                    for difference in differences or ["is listed in differs-on-purpose and does not differ"]:
                        print("    " + difference.replace("\n", "\n    "))
                sys.stdout.flush()
        finally:
            # Also when told to stop: what runs ends first, so that nothing of it is left.
            pool.shutdown(wait=True, cancel_futures=True)
            registry.close()
    # For information, as they are in the corpus.
    if options.category == "build":
        print("Warnings as in the corpus: %d of %d" % warned)
    print(options.category + ": %(passed)d passed, %(failed)d failed, %(skipped)d skipped" % counts)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    sys.exit(main())
