//! Runs → pread batches in a budget.
