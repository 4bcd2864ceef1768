//! kiln build on a plain machine, with the engine that the builder pod runs
