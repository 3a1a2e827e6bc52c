//! The eBPF object that was built into this binary.

/// All eBPF programs and maps as one ELF object, aligned for an ELF reader to
/// use in place; `None` in a binary that plain `cargo build` made, without
/// the eBPF toolchain. `cargo xtask build` embeds it (see `build.rs`).
pub fn object() -> Option<&'static [u8]> {
    #[cfg(ebpf_object)]
    return Some(aya::include_bytes_aligned!(concat!(
        env!("OUT_DIR"),
        "/migrator.bpf.o"
    )));
    #[cfg(not(ebpf_object))]
    None
}

#[cfg(test)]
mod tests {
    use super::object;

    #[test]
    fn an_embedded_object_is_an_aligned_elf_file_for_bpf() {
        assert_eq!(object().is_some(), cfg!(ebpf_object));
        if let Some(object) = object() {
            assert_eq!(object[..4], *b"\x7fELF");
            // e_machine is EM_BPF (elf(5), linux/elf-em.h).
            assert_eq!(object[18..20], 247_u16.to_le_bytes());
            assert_eq!(object.as_ptr().align_offset(8), 0);
        }
    }
}
