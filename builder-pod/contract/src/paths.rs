//! Where things are mounted inside the builder pod. Operator, courier, source and builder must agree on these.

/// Directory of the request ConfigMap (read-only, courier and build).
pub const REQUEST_DIR: &str = "/kiln/request";
/// Key of the request in its ConfigMap, and its file name below [`REQUEST_DIR`].
pub const REQUEST_KEY: &str = "request.json";
/// The request as a file.
pub const REQUEST: &str = "/kiln/request/request.json";
/// Directory of the courier's socket: an emptyDir of its own, in courier and build only.
pub const SOCKET_DIR: &str = "/kiln/socket";
/// The courier's Unix socket.
pub const SOCKET: &str = "/kiln/socket/courier.sock";
/// Directory of the downwardAPI volume (courier only).
pub const CONTROL_DIR: &str = "/kiln/control";
/// File below [`CONTROL_DIR`] that carries the annotation [`crate::control::PERMIT_ANNOTATION`].
pub const PERMIT_FILE: &str = "permit";
/// File below [`CONTROL_DIR`] that carries the annotation [`crate::control::STOP_ANNOTATION`].
pub const STOP_FILE: &str = "stop";
/// Parent of the registry credentials (courier only): `<AUTH_DIR>/<n>/config.json`, one per Secret.
pub const AUTH_DIR: &str = "/kiln/auth";
/// File name of a `kubernetes.io/dockerconfigjson` Secret below its directory in [`AUTH_DIR`].
pub const AUTH_FILE: &str = "config.json";
/// Directory of the secrets that steps mount (courier only): `<SECRETS_DIR>/<id>` holds one.
pub const SECRETS_DIR: &str = "/kiln/secrets";
/// Directory of the private keys that steps sign with (courier only): `<SSH_DIR>/<id>` is the agent of that name.
pub const SSH_DIR: &str = "/kiln/ssh";
/// The courier's own small state (restart marker, journal position): an emptyDir, courier only.
pub const STATE_DIR: &str = "/kiln/state";
/// The builder's workspace: an emptyDir on a real file system, build only.
pub const WORK_DIR: &str = "/kiln/work";
/// Where cache mounts outlast the build: the claim that the object names, build only; absent where it names none.
pub const CACHE_MOUNTS_DIR: &str = "/kiln/cache-mounts";
/// The volume with a fetched source: an emptyDir, writable in `source`, read-only in `build`.
pub const CONTEXT_DIR: &str = "/kiln/context";
/// The fetched files.
pub const CONTEXT_TREE: &str = "/kiln/context/tree";
/// A number: how many seconds the fetch took, which count for the build's timeout.
pub const FETCH_SECONDS: &str = "/kiln/context/seconds";
/// What a fetch needs and the build does not (downloads, git's objects): an emptyDir, `source` only.
pub const FETCH_DIR: &str = "/kiln/fetch";
/// Directory of the socket between courier and `git`: an emptyDir of its own, in these two only.
pub const GIT_DIR: &str = "/kiln/git";
/// The socket at which the container `git` listens.
pub const GIT_SOCKET: &str = "/kiln/git/git.sock";
/// Where the container `git` works: an emptyDir, in it only.
pub const GIT_WORK_DIR: &str = "/kiln/git-work";
/// The Secret with the source's credentials, a file per key (`source` only).
pub const SOURCE_AUTH_DIR: &str = "/kiln/source-auth";
/// Where the kubelet reads the termination message from.
pub const TERMINATION_LOG: &str = "/dev/termination-log";
/// Name of the courier container.
pub const COURIER_CONTAINER: &str = "courier";
/// Name of the container that fetches the source.
pub const SOURCE_CONTAINER: &str = "source";
/// Name of the container that checks git repositories out for ADD.
pub const GIT_CONTAINER: &str = "git";
/// Name of the build container.
pub const BUILD_CONTAINER: &str = "build";
