//! Member offsets of kernel structs, from the running kernel's BTF.
//!
//! Rust eBPF objects carry no CO-RE relocations, so the offsets are looked up
//! here and handed to the programs as read-only data. The format is described
//! in the kernel's Documentation/bpf/btf.rst.

use std::collections::HashMap;
use std::path::Path;

/// Why a type or a member can't be told.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file can't be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not BTF as we know it.
    #[error("the kernel's BTF is malformed: {0}")]
    Malformed(&'static str),
    /// The kernel has no such struct or enumerator.
    #[error("this kernel has no {0}")]
    NoType(String),
    /// The struct has no such member.
    #[error("this kernel's struct {0} has no member {1}")]
    NoMember(String, String),
}

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// What a function takes and gives, as far as programs make a difference: each
/// is `NAME *` for a pointer to a struct, `*` for another pointer, `integer`,
/// `void`, or `other`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prototype {
    /// Its parameters, in order.
    pub parameters: Vec<String>,
    /// What it returns.
    pub returns: String,
}

/// A type, as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct Type {
    kind: u32,
    /// Number of members, enumerators or parameters.
    count: usize,
    /// Whether member offsets carry a bit-field size in their upper byte.
    bit_fields: bool,
    /// Position of what follows the common part, in `bytes`.
    details: usize,
}

/// The types of a kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    types: Vec<Type>,
    /// Structs, unions, typedefs and functions by name; the first of each.
    named: HashMap<(u32, Vec<u8>), usize>,
    /// Enumerators by name.
    enumerators: HashMap<Vec<u8>, u32>,
}

impl Btf {
    /// Reads `/sys/kernel/btf/vmlinux`, or another such file.
    ///
    /// # Errors
    /// [`BtfError::Read`] and [`BtfError::Malformed`].
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::parse(bytes)
    }

    /// Parses little-endian BTF.
    ///
    /// # Errors
    /// [`BtfError::Malformed`] says what is wrong.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        if u16_at(&bytes, 0)? != MAGIC {
            return Err(BtfError::Malformed("it has another magic number"));
        }
        let header = u32_at(&bytes, 4)? as usize;
        let section = |at| -> Result<usize, BtfError> {
            header
                .checked_add(u32_at(&bytes, at)? as usize)
                .ok_or(BtfError::Malformed("a section begins outside"))
        };
        let (mut at, strings) = (section(8)?, section(16)?);
        let end = at
            .checked_add(u32_at(&bytes, 12)? as usize)
            .filter(|end| *end <= bytes.len())
            .ok_or(BtfError::Malformed("the types end outside"))?;

        let mut btf = Self {
            strings,
            // Type 0 is void.
            types: vec![Type {
                kind: 0,
                count: 0,
                bit_fields: false,
                details: 0,
            }],
            named: HashMap::new(),
            enumerators: HashMap::new(),
            bytes,
        };
        while at < end {
            let (name, info) = (u32_at(&btf.bytes, at)?, u32_at(&btf.bytes, at + 4)?);
            let entry = Type {
                kind: info >> 24 & 0x1f,
                count: (info & 0xffff) as usize,
                bit_fields: info >> 31 == 1,
                details: at + 12,
            };
            let (id, kind) = (btf.types.len(), entry.kind);
            if let KIND_STRUCT | KIND_UNION | KIND_TYPEDEF | KIND_FUNC = kind {
                let name = btf.string(name)?.to_vec();
                btf.named.entry((kind, name)).or_insert(id);
            }
            at = entry.details
                + match kind {
                    // INT, VAR, DECL_TAG
                    KIND_INT | 14 | 17 => 4,
                    // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
                    KIND_PTR | 7..=KIND_FUNC | 16 | KIND_TYPE_TAG => 0,
                    // ARRAY
                    3 => 12,
                    // STRUCT, UNION, DATASEC, ENUM64
                    KIND_STRUCT | KIND_UNION | 15 | KIND_ENUM64 => 12 * entry.count,
                    // ENUM
                    KIND_ENUM => {
                        for at in (0..entry.count).map(|n| entry.details + 8 * n) {
                            let name = btf.string(u32_at(&btf.bytes, at)?)?.to_vec();
                            let value = u32_at(&btf.bytes, at + 4)?;
                            btf.enumerators.entry(name).or_insert(value);
                        }
                        8 * entry.count
                    }
                    // FUNC_PROTO
                    KIND_FUNC_PROTO => 8 * entry.count,
                    _ => return Err(BtfError::Malformed("it has a kind of type unknown to us")),
                };
            btf.types.push(entry);
        }
        Ok(btf)
    }

    /// Byte offset of a member, also inside anonymous structs and unions.
    ///
    /// # Errors
    /// [`BtfError::NoType`] and [`BtfError::NoMember`] name what is missing.
    pub fn offset(&self, container: &str, member: &str) -> Result<u32, BtfError> {
        let id = self
            .named
            .get(&(KIND_STRUCT, container.into()))
            .ok_or_else(|| BtfError::NoType(format!("struct {container}")))?;
        self.offset_in(*id, member.as_bytes(), 0)?
            .ok_or_else(|| BtfError::NoMember(container.into(), member.into()))
    }

    /// Value of an enumerator.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        self.enumerators.get(name.as_bytes()).copied()
    }

    /// What a tracepoint hands to programs that attach to it through its type.
    pub fn tracepoint(&self, name: &str) -> Option<Prototype> {
        let name = format!("btf_trace_{name}").into();
        let typedef = *self.named.get(&(KIND_TYPEDEF, name))?;
        // The typedef is of a pointer to a function, whose first parameter is
        // the tracepoint's private data.
        let mut prototype = self.prototype(self.target(self.target(typedef)?)?)?;
        (!prototype.parameters.is_empty()).then(|| prototype.parameters.remove(0))?;
        Some(prototype)
    }

    /// What a function takes and gives, if programs can attach to it.
    pub fn function(&self, name: &str) -> Option<Prototype> {
        let function = *self.named.get(&(KIND_FUNC, name.into()))?;
        self.prototype(self.target(function)?)
    }

    fn prototype(&self, id: usize) -> Option<Prototype> {
        let entry = self.types.get(id)?;
        if entry.kind != KIND_FUNC_PROTO {
            return None;
        }
        let parameter = |n| {
            let id = u32_at(&self.bytes, entry.details + 8 * n + 4).ok()?;
            Some(self.describe(id as usize))
        };
        Some(Prototype {
            parameters: (0..entry.count).map(parameter).collect::<Option<_>>()?,
            returns: self.describe(self.target(id)?),
        })
    }

    /// A type, in the words of [`Prototype`].
    fn describe(&self, id: usize) -> String {
        let id = self.skip_modifiers(id);
        let text = match self.types.get(id).map(|entry| entry.kind) {
            Some(0) => "void",
            Some(KIND_INT | KIND_ENUM | KIND_ENUM64) => "integer",
            Some(KIND_PTR) => {
                let to = self.target(id).map(|id| self.skip_modifiers(id));
                let to = to.and_then(|id| self.types.get(id)).map(|to| {
                    let is_struct = to.kind == KIND_STRUCT;
                    let name = u32_at(&self.bytes, to.details.saturating_sub(12)).ok();
                    name.filter(|_| is_struct)
                        .and_then(|name| self.string(name).ok())
                });
                return match to.flatten() {
                    Some(name) => format!("{} *", String::from_utf8_lossy(name)),
                    None => "*".into(),
                };
            }
            _ => "other",
        };
        text.into()
    }

    /// What a pointer, typedef, qualifier or function refers to, or what a
    /// prototype returns.
    fn target(&self, id: usize) -> Option<usize> {
        let entry = self.types.get(id).filter(|entry| entry.kind != 0)?;
        let id = u32_at(&self.bytes, entry.details - 4).ok()?;
        Some(id as usize)
    }

    /// The type behind typedefs and qualifiers.
    fn skip_modifiers(&self, mut id: usize) -> usize {
        // More than any real type has: the types refer to themselves.
        for _ in 0..16 {
            match self.types.get(id).map(|entry| entry.kind) {
                Some(KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG) => {
                    id = self.target(id).unwrap_or(0)
                }
                _ => break,
            }
        }
        id
    }

    fn offset_in(&self, id: usize, member: &[u8], depth: u32) -> Result<Option<u32>, BtfError> {
        let Some(container) = self.types.get(id) else {
            return Err(BtfError::Malformed("a member has no type"));
        };
        // Deeper than any real struct: the types refer to themselves.
        if !matches!(container.kind, KIND_STRUCT | KIND_UNION) || depth > 16 {
            return Ok(None);
        }
        for at in (0..container.count).map(|n| container.details + 12 * n) {
            let name = self.string(u32_at(&self.bytes, at)?)?;
            let mut bits = u32_at(&self.bytes, at + 8)?;
            if container.bit_fields {
                bits &= 0x00ff_ffff;
            }
            if name == member {
                return Ok(Some(bits / 8));
            }
            if name.is_empty() {
                let id = self.skip_modifiers(u32_at(&self.bytes, at + 4)? as usize);
                if let Some(inner) = self.offset_in(id, member, depth + 1)? {
                    return Ok(Some(bits / 8 + inner));
                }
            }
        }
        Ok(None)
    }

    fn string(&self, offset: u32) -> Result<&[u8], BtfError> {
        self.strings
            .checked_add(offset as usize)
            .and_then(|at| self.bytes.get(at..))
            .and_then(|rest| rest.split(|byte| *byte == 0).next())
            .ok_or(BtfError::Malformed("a name stands outside"))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, BtfError> {
    let two = bytes.get(at..).and_then(|rest| rest.first_chunk());
    two.copied()
        .map(u16::from_le_bytes)
        .ok_or(BtfError::Malformed("it is cut short"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk());
    four.copied()
        .map(u32::from_le_bytes)
        .ok_or(BtfError::Malformed("it is cut short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct outer { int first; const struct { int a; int b; }; }`, a typedef
    /// `btf_trace_event` of `void (*)(void *, int, const struct outer *)`,
    /// `enum { PG_head = 6 }`, and `int read(void *, int, const struct outer *)`.
    fn example() -> Vec<u8> {
        let strings = b"\0outer\0first\0a\0b\0btf_trace_event\0PG_head\0read\0";
        let name = |text: &str| {
            let text = [&[0], text.as_bytes(), &[0]].concat();
            let at = strings
                .windows(text.len())
                .position(|window| window == text);
            at.map_or(0, |at| at as u32 + 1)
        };
        let words: Vec<u32> = vec![
            // 1: int
            0,
            1 << 24,
            4,
            32,
            // 2: anonymous struct
            0,
            4 << 24 | 2,
            8,
            name("a"),
            1,
            0,
            name("b"),
            1,
            32,
            // 3: outer
            name("outer"),
            4 << 24 | 2,
            16,
            name("first"),
            1,
            0,
            0,
            8,
            64,
            // 4: function of a private pointer and two arguments
            0,
            13 << 24 | 3,
            0,
            0,
            11,
            0,
            1,
            0,
            10,
            // 5: pointer to 4
            0,
            2 << 24,
            4,
            // 6: typedef of 5
            name("btf_trace_event"),
            8 << 24,
            5,
            // 7: enum
            0,
            6 << 24 | 1,
            4,
            name("PG_head"),
            6,
            // 8: const of 2
            0,
            10 << 24,
            2,
            // 9: const of 3
            0,
            10 << 24,
            3,
            // 10: pointer to 9
            0,
            2 << 24,
            9,
            // 11: pointer to nothing
            0,
            2 << 24,
            0,
            // 12: function like 4 that returns an int
            0,
            13 << 24 | 3,
            1,
            0,
            11,
            0,
            1,
            0,
            10,
            // 13: its name
            name("read"),
            12 << 24 | 1,
            12,
        ];
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_of_anonymous_structs_are_found() {
        let btf = Btf::parse(example()).expect("well-formed");
        assert_eq!(btf.offset("outer", "first").ok(), Some(0));
        assert_eq!(btf.offset("outer", "b").ok(), Some(12));
    }

    #[test]
    fn what_is_missing_is_named() {
        let btf = Btf::parse(example()).expect("well-formed");
        let text = |result: Result<u32, BtfError>| result.map_err(|error| error.to_string());
        assert_eq!(
            text(btf.offset("outer", "c")),
            Err("this kernel's struct outer has no member c".into())
        );
        assert_eq!(
            text(btf.offset("inner", "c")),
            Err("this kernel has no struct inner".into())
        );
    }

    #[test]
    fn hooks_and_enumerators_are_found() {
        let btf = Btf::parse(example()).expect("well-formed");
        let prototype = |parameters: &[&str], returns: &str| Prototype {
            parameters: parameters.iter().map(|&it| it.into()).collect(),
            returns: returns.into(),
        };
        let event = prototype(&["integer", "outer *"], "void");
        assert_eq!(btf.tracepoint("event"), Some(event));
        let read = prototype(&["*", "integer", "outer *"], "integer");
        assert_eq!(btf.function("read"), Some(read));
        assert_eq!(btf.tracepoint("other"), None);
        assert_eq!(btf.function("outer"), None);
        assert_eq!(btf.enumerator("PG_head"), Some(6));
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_survived() {
        let bytes = example();
        for length in 0..bytes.len() {
            let _ = Btf::parse(bytes[..length].to_vec());
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            if let Ok(btf) = Btf::parse(bytes) {
                let _ = (btf.offset("outer", "b"), btf.tracepoint("event"));
                let _ = btf.function("read");
            }
        }
    }

    #[test]
    fn a_struct_that_holds_itself_ends() {
        let mut bytes = example();
        // The anonymous member of `outer` becomes `outer`.
        let at = 24 + 4 * (4 + 9 + 7);
        assert_eq!(bytes[at], 8);
        bytes[at] = 9;
        let btf = Btf::parse(bytes).expect("well-formed");
        assert!(btf.offset("outer", "b").is_err());
    }
}
