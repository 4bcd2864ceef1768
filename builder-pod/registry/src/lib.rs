//! Pull, push, mount, retry and authentication against OCI registries
