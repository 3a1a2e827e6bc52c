//! Facts about the running kernel, probed once.
