//! The eBPF object that was built into this binary.

use object::{Object, ObjectSection, SectionKind};

use super::atomics;

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

/// The same object without atomic instructions, for kernels that have none.
///
/// # Errors
/// It is no object file.
pub(super) fn without_atomics(object: &[u8]) -> object::Result<Aligned> {
    let mut copy = Aligned::new(object);
    for section in object::File::parse(object)?.sections() {
        if let (SectionKind::Text, Some((start, size))) = (section.kind(), section.file_range()) {
            let range = start as usize..(start + size) as usize;
            atomics::remove(copy.bytes_mut().get_mut(range).unwrap_or_default());
        }
    }
    Ok(copy)
}

/// Bytes that begin at an address as an ELF reader wants it.
#[derive(Debug)]
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        const TO: usize = 16;
        let mut memory = vec![0; bytes.len() + TO];
        let start = memory.as_ptr().align_offset(TO).min(TO);
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        memory.truncate(start + bytes.len());
        Self { memory, start }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
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
