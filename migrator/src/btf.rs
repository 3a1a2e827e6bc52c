//! Member offsets of kernel structs, from the running kernel's BTF.
