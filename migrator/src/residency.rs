//! Which pages of a file are in the page cache.
