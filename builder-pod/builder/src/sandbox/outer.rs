//! For plain machines: an outer user namespace with subordinate ids (see `enter_rootless_if_needed`).
