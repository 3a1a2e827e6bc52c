//! Accesses → ranked pages.
