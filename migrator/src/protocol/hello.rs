//! The first thing that each side says: who it is.

use std::fmt;

use super::{PeerError, VERSION, printable};

/// Not text at its first byte, line ends that a terminal in between changes,
/// and an end-of-file sign that stops a listing (the idea is PNG's).
pub const MAGIC: [u8; 8] = *b"\x89MIG\r\n\x1a\n";

/// Magic, version, and length of the body: so much is the same in every
/// version.
pub const HEAD_BYTES: usize = MAGIC.len() + 4;

/// How many bytes the body may have.
pub const MAX_BODY: u16 = 1024;

/// What a side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `migrator move`
    Source,
    /// `migrator receive`
    Destination,
}

impl Role {
    /// What the other side has to be.
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// What a side can do, a bit each. A side knows bits that the other does not:
/// they mean nothing then.
pub mod ability {
    /// Page index lists, and prefetching what they name.
    pub const CACHE: u64 = 1;
    /// Live migration with a restore that ends stopped, and questions that name
    /// a host. Bit 1 was the one before, which no released version has.
    pub const LIVE: u64 = 4;
}

/// Who a side is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// What it is.
    pub role: Role,
    /// Its pages have two to the power of this bytes.
    pub page_shift: u8,
    /// What it can do: bits of [`ability`].
    pub abilities: u64,
    /// Name and version of the program, for people; printable.
    pub migrator: String,
}

impl Hello {
    /// This program on this host, with pages of `page_size` bytes.
    pub fn ours(role: Role, page_size: u32) -> Self {
        Self {
            role,
            page_shift: page_size.trailing_zeros() as u8,
            abilities: ability::CACHE | ability::LIVE,
            migrator: concat!("migrator ", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let name = self.migrator.as_bytes();
        let name = &name[..name.len().min(u8::MAX.into())];
        let mut body = vec![role_byte(self.role), self.page_shift];
        body.extend(self.abilities.to_le_bytes());
        body.push(name.len() as u8);
        body.extend(name);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u16).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// Reads what follows the head. Bytes behind what this version knows of
    /// are left to a later one.
    ///
    /// # Errors
    /// [`PeerError::Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, PeerError> {
        let fields = || {
            let (&[role, page_shift], rest) = body.split_first_chunk()?;
            let (&abilities, rest) = rest.split_first_chunk()?;
            let (&length, rest) = rest.split_first()?;
            Some(Self {
                role: match role {
                    1 => Role::Source,
                    2 => Role::Destination,
                    _ => return None,
                },
                page_shift: (page_shift < 64).then_some(page_shift)?,
                abilities: u64::from_le_bytes(abilities),
                migrator: printable(rest.get(..length.into())?),
            })
        };
        fields().ok_or(PeerError::Malformed("a hello that makes no sense"))
    }

    /// Finds out whether we, who said `ours`, can work with who said this.
    ///
    /// # Errors
    /// [`PeerError::Role`], [`PeerError::PageSize`] or [`PeerError::Unable`].
    pub fn check(self, ours: &Self) -> Result<Self, PeerError> {
        if self.role != ours.role.other() {
            return Err(PeerError::Role(self.role));
        }
        if self.page_shift != ours.page_shift {
            return Err(PeerError::PageSize {
                theirs: 1 << self.page_shift,
                ours: 1 << ours.page_shift,
            });
        }
        if self.abilities & ability::CACHE == 0 {
            return Err(PeerError::Unable(self));
        }
        Ok(self)
    }
}

/// Reads the head of a hello: how long its body is.
///
/// # Errors
/// [`PeerError::Version`], or [`PeerError::Malformed`] when it is too long. That it
/// begins with [`MAGIC`] is the caller's to see.
pub fn decode_head(head: &[u8; HEAD_BYTES]) -> Result<u16, PeerError> {
    let [.., v0, v1, l0, l1] = *head;
    let version = u16::from_le_bytes([v0, v1]);
    let length = u16::from_le_bytes([l0, l1]);
    if version != VERSION {
        return Err(PeerError::Version(version));
    }
    if length > MAX_BODY {
        return Err(PeerError::Malformed("a hello that is too long"));
    }
    Ok(length)
}

fn role_byte(role: Role) -> u8 {
    match role {
        Role::Source => 1,
        Role::Destination => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(bytes: &[u8]) -> (&[u8; HEAD_BYTES], &[u8]) {
        bytes.split_first_chunk().expect("a head")
    }

    fn any_hello() -> impl Strategy<Value = Hello> {
        let role = prop_oneof![Just(Role::Source), Just(Role::Destination)];
        (role, 0..64_u8, any::<u64>(), "[a-z0-9. ]{0,255}").prop_map(
            |(role, page_shift, abilities, migrator)| Hello {
                role,
                page_shift,
                abilities,
                migrator,
            },
        )
    }

    proptest! {
        #[test]
        fn a_hello_comes_back(hello in any_hello(), later in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut bytes = hello.encode();
            let (head, body) = split(&bytes);
            prop_assert!(head.starts_with(&MAGIC));
            prop_assert_eq!(usize::from(decode_head(head).expect("head")), body.len());
            bytes.extend(later);
            prop_assert_eq!(Hello::decode(split(&bytes).1).expect("body"), hello);
        }

        #[test]
        fn a_hello_cut_short_is_none(hello in any_hello(), part in 0.0..1.0) {
            let bytes = hello.encode();
            let body = split(&bytes).1;
            let cut = (body.len() as f64 * part) as usize;
            prop_assert!(matches!(Hello::decode(&body[..cut]), Err(PeerError::Malformed(_))));
        }

        #[test]
        fn garbage_is_an_error_at_most(head: [u8; HEAD_BYTES], body: Vec<u8>) {
            _ = decode_head(&head);
            if let Ok(hello) = Hello::decode(&body) {
                _ = hello.check(&Hello::ours(Role::Source, 4096));
            }
        }
    }

    #[test]
    fn a_hello_has_these_bytes() {
        let mut hello = Hello::ours(Role::Destination, 4096);
        hello.migrator = "migrator 0.1.0".into();
        let expected = b"\x89MIG\r\n\x1a\n\x01\0\x19\0\x02\x0c\x05\0\0\0\0\0\0\0\x0emigrator 0.1.0";
        assert_eq!(hello.encode(), expected);
    }

    #[test]
    fn who_does_not_fit_is_told_why() {
        let ours = Hello::ours(Role::Source, 4096);
        let good = Hello::ours(Role::Destination, 4096);
        assert_eq!(good.clone().check(&ours).expect("fits"), good);

        let fault = ours.clone().check(&ours).expect_err("the same role");
        assert!(fault.to_string().contains("is a source as well"), "{fault}");
        let large = Hello::ours(Role::Destination, 65536);
        let fault = large.check(&ours).expect_err("another page size");
        assert!(
            fault.to_string().contains("pages of 65536 bytes"),
            "{fault}"
        );
        let mut unable = good;
        unable.abilities = !ability::CACHE;
        assert!(matches!(unable.check(&ours), Err(PeerError::Unable(_))));

        let mut head = *split(&ours.encode()).0;
        head[8] = 7;
        let fault = decode_head(&head).expect_err("another version");
        assert!(
            fault.to_string().contains("version 7 of the protocol"),
            "{fault}"
        );
        head[8] = 1;
        head[11] = 0xff;
        assert!(matches!(decode_head(&head), Err(PeerError::Malformed(_))));
    }
}
