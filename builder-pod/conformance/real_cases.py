#!/usr/bin/env python3
"""Build cases out of Dockerfiles of real projects: those of the corpus' `parser/real-*` that need no network and no files that
only their project has. The corpus' busybox stands in for their base images, through named contexts.

    real_cases.py CORPUS OUT     writes OUT/cases/NAME/{Dockerfile,case.json}, for build_cases.py --category real

What comes out is written here by hand, from the Dockerfile: the corpus has BuildKit's parse of these, not its build."""
import hashlib
import json
import os
import shutil
import sys

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What the stand-in's config leaves in an image that says nothing else.
STANDARD = {"Env": [PATH], "Cmd": ["sh"]}


def file(path, text, mode="0644"):
    return {"path": path, "type": "file", "mode": mode, "uid": 0, "gid": 0, "size": len(text),
            "sha256": hashlib.sha256(text.encode()).hexdigest()}


def directories(*paths):
    return [{"path": path, "type": "dir", "mode": "0755", "uid": 0, "gid": 0} for path in paths]


def link(path, target):
    return {"path": path, "type": "symlink", "uid": 0, "gid": 0, "linkname": target}


def case(config, files=(), images=(), context=(), base="busybox", contexts=None):
    """One case; `images` are the references that the stand-in is given for."""
    named = {name: {"type": "image", "ref": "docker-image://busybox"} for name in images}
    named.update(contexts or {})
    return {"context": list(context), "options": {"named_contexts": named}, "base": base,
            "expect": {"result": "success", "os": "linux", "architecture": "amd64", "config": config,
                       "files": list(files), "deleted": []}}


def argocd():
    parts = ["server", "repo-server", "application-controller", "dex", "notifications", "applicationset-controller"]
    program, text = "usr/local/bin/argocd", "#!/bin/sh\n"
    links = [link("%s-%s" % (program, part), "/" + program) for part in parts]
    return case({**STANDARD, "User": "999"},
                [*directories("usr/local", "usr/local/bin"), file(program, text, "0755"), *links],
                ["argocd-base"], [{"path": "argocd", "text": text, "mode": "0755"}])


def traefik(version):
    image = [{"path": "etc/ssl/certs/ca-certificates.crt", "text": "certificates\n"},
             {"path": "usr/share/zoneinfo/Europe/Berlin", "text": "TZif\n"},
             {"path": "usr/local/bin/traefik", "text": "ELF\n", "mode": "0755"}]
    word = "org.opencontainers.image."
    labels = {"vendor": "Traefik Labs", "url": "https://traefik.io", "source": "https://github.com/traefik/traefik",
              "title": "Traefik", "description": "A modern reverse-proxy", "version": version,
              "documentation": "https://docs.traefik.io"}
    return case({"Env": [PATH], "WorkingDir": "/", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/tmp": {}},
                 "Entrypoint": ["/traefik"], "Labels": {word + name: text for name, text in labels.items()}},
                [*directories("etc", "etc/ssl", "etc/ssl/certs", "usr", "usr/share", "usr/share/Europe"),
                 file("etc/ssl/certs/ca-certificates.crt", "certificates\n"),
                 file("usr/share/Europe/Berlin", "TZif\n"), file("traefik", "ELF\n", "0755")],
                base="scratch", contexts={"traefik:%s-alpine" % version: {"type": "local", "files": image}})


CASES = {
    "real-argo-cd-.dev": argocd(),
    "real-buildx-hack-demo-env-examples-compose": case(STANDARD, images=["alpine:3.8"]),
    # It copies itself.
    "real-buildx-hack-demo-env-examples-compose.webapp": case(
        STANDARD, [{**file("Dockerfile", ""), "unstable": True}], ["alpine:3.8"]),
    "real-caddy-docker-2.11-builder.base": case(STANDARD, images=["golang:1.26-alpine3.23"]),
    "real-traefik-library-image-v3.0-scratch": traefik("v3.0.4"),
    "real-traefik-library-image-v3.5-scratch": traefik("v3.5.6"),
    # Its osxcross is another platform's and not reached.
    "real-xx-src-sdk-extras": case({"Env": [PATH], "WorkingDir": "/"}, directories("xx-sdk", "xx-sdk/xx-sdk"), ["alpine"],
                                   base="scratch"),
}


def main():
    corpus, out = sys.argv[1:3]
    for name, data in CASES.items():
        source = os.path.join(corpus, "parser", name, "Dockerfile")
        if not os.path.isfile(source):
            print("note real/%s: not in this corpus" % name)
            continue
        folder = os.path.join(out, "cases", name)
        os.makedirs(folder)
        shutil.copyfile(source, os.path.join(folder, "Dockerfile"))
        with open(os.path.join(folder, "case.json"), "w", encoding="utf-8") as target:
            json.dump({"name": name, **data}, target)


if __name__ == "__main__":
    main()
