//! Runs the batches of a plan.
