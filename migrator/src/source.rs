//! Where accesses come from; which source was chosen, and why.

pub mod object;
