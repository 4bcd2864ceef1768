"""The workloads: what is built on which base, and in which settings each builder is measured.

Contexts are made by contexts.py under the same names."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Workload:
    """`settings` names, per builder, settings that are measured beside the default one (builders.py knows them)."""
    name: str
    what: str
    bases: tuple
    context: str
    settings: dict = dataclasses.field(default_factory=dict)
    # Whether the default setting is measured, too.
    default: bool = True
    dockerfile: str = "Dockerfile"
    # With a registry cache that a build of this Dockerfile and context has filled; None: cold, no cache.
    filled_by: tuple = None
    timeout: int = 900


CACHED = {"buildkit": ["import only"]}
# In every workload that has the default setting.
EVERYWHERE = {"kaniko": ["preview"]}

ALL = [
    Workload("W1", "Debian: redis and gcc installed from packages in the context, cold, pushed", ("debian",), "W1"),
    Workload("W2", "W1 again in a fresh process, with only the registry cache: nothing changed", ("debian",), "W1", CACHED,
             filled_by=("W1", "Dockerfile")),
    Workload("W3", "ten steps, one line changed in the last COPY, fresh process, registry cache", ("debian",), "W3-changed", CACHED,
             filled_by=("W3", "Dockerfile")),
    Workload("W4", "50 x RUN echo on busybox, cold", ("busybox",), "W4"),
    Workload("W4d", "50 x RUN echo on Debian, cold", ("debian",), "W4", dockerfile="Dockerfile.debian"),
    Workload("W5", "a RUN that writes 1 GiB in 64 files, half noise and half text", ("busybox",), "W5",
             {"buildkit": ["level 1"]}),
    Workload("W5z", "W5 with layers in zstd", ("busybox",), "W5", {each: ["zstd"] for each in ("kiln", "buildkit", "buildah", "kaniko")},
             default=False),
    Workload("W6", "COPY of 100,000 small files, and a RUN that appends to 100 of them", ("busybox",), "W6",
             {"buildkit": ["level 1"]}),
    Workload("W7", "one file onto a base of 1 GiB, pushed to another repository", ("big",), "W7"),
    Workload("W7l", "the same with COPY --link", ("big",), "W7", dockerfile="Dockerfile.link"),
    Workload("W7c", "W7 with the registry cache of another image on that base", ("big",), "W7", CACHED,
             filled_by=("W7", "Dockerfile.other")),
    Workload("W8", "eight stages of some seconds of one core each, merged by COPY --from", ("busybox",), "W8"),
    Workload("W9", "a context of 2 GB in 50,000 files, of which 99 % are ignored", ("busybox",), "W9"),
    Workload("W10", "a Go program compiled from vendored modules, copied into scratch", ("golang",), "W10"),
]


def settings(workload, builder):
    """Names of the settings in which a builder is measured."""
    usual = ["", *EVERYWHERE.get(builder, [])] if workload.default else []
    return usual + workload.settings.get(builder, [])


NAMES = [each.name for each in ALL]
