//! A tree of processes that counts its steps, so that a move which loses a
//! step or does one twice is seen. The program is `src/bin/steps.rs`.
//!
//! Its ledger is a file of fixed size, for CRIU wants that: a header, a block
//! for the errors of each process, and a slot for each step. A slot has a
//! column for the kernel that the tree began on and one for every other. So
//! two trees that run at the same time never write over each other, whatever
//! the caches of their hosts hold.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes that are written at once; what O_DIRECT wants on any file system.
pub const BLOCK: usize = 512;

/// The block of a process's errors: parent, child, grandchild.
const ERRORS: std::ops::Range<usize> = 1..4;

/// Where the slots begin, in blocks.
const SLOTS: u64 = 8;

/// The columns of a slot.
pub const COLUMNS: usize = 2;

const RECORD_MAGIC: &[u8; 8] = b"step  1\n";

/// A block in memory as the kernel wants it for O_DIRECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK]);

impl Block {
    /// Nothing.
    pub const EMPTY: Self = Self([0; BLOCK]);

    /// A text, cut where the block ends.
    pub fn text(text: &str) -> Self {
        let mut block = Self::EMPTY;
        let bytes = &text.as_bytes()[..text.len().min(BLOCK)];
        block.0[..bytes.len()].copy_from_slice(bytes);
        block
    }
}

/// Where the ledger has the errors of a process: 0 the parent, 1 the child, 2
/// the grandchild. In bytes.
pub fn errors_at(role: usize) -> u64 {
    ((ERRORS.start + role) * BLOCK) as u64
}

/// Where it has a step, counted from 1. In bytes.
pub fn slot_at(step: u64, column: usize) -> u64 {
    (SLOTS + (step - 1) * COLUMNS as u64 + column as u64) * BLOCK as u64
}

/// The bytes of a ledger for so many steps.
pub fn ledger_size(steps: u64) -> u64 {
    slot_at(steps + 1, 0)
}

/// What is written down of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 1.
    pub step: u64,
    /// The name of the host that it was done on.
    pub host: String,
    /// Parent, child and grandchild, as they see themselves.
    pub pids: [u32; 3],
}

impl Record {
    /// As a block: magic, step, pids, checksum of these and the name, its
    /// length, the name. Integers are little-endian.
    pub fn encode(&self) -> Block {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend(RECORD_MAGIC);
        bytes.extend(self.step.to_le_bytes());
        bytes.extend(self.pids.iter().flat_map(|pid| pid.to_le_bytes()));
        let name = &self.host.as_bytes()[..self.host.len().min(255)];
        bytes.push(name.len() as u8);
        bytes.extend(name);
        bytes.extend(checksum(&bytes).to_le_bytes());
        let mut block = Block::EMPTY;
        block.0[..bytes.len()].copy_from_slice(&bytes);
        block
    }

    /// What a block holds: nothing where it is empty, nor where it is damaged,
    /// which is an error.
    ///
    /// # Errors
    /// When the block is neither empty nor a record.
    pub fn decode(block: &[u8; BLOCK]) -> Result<Option<Self>, String> {
        if block == &[0; BLOCK] {
            return Ok(None);
        }
        let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| block[at + byte]));
        let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        let end = 29 + usize::from(block[28]);
        if &block[..8] != RECORD_MAGIC || long(end) != checksum(&block[..end]) {
            return Err("is damaged".into());
        }
        Ok(Some(Self {
            step: long(8),
            pids: [number(16), number(20), number(24)],
            host: String::from_utf8_lossy(&block[29..end]).into_owned(),
        }))
    }
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Steps that were done on one host, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// The host.
    pub host: String,
    /// The first step on it.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// What a ledger tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The last step; 0 when there is none.
    pub last: u64,
    /// Steps before it that were not done.
    pub missing: Vec<u64>,
    /// Steps that were done more than once.
    pub doubled: Vec<u64>,
    /// What the processes, or the reader of the ledger, found wrong.
    pub errors: Vec<String>,
    /// Where the steps were done, in their order.
    pub stays: Vec<Stay>,
}

impl Verdict {
    /// Reads a ledger to its end.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(ledger: &Path) -> io::Result<Self> {
        let mut file = io::BufReader::with_capacity(1 << 20, File::open(ledger)?);
        let mut verdict = Self::default();
        let mut next = || -> io::Result<Option<[u8; BLOCK]>> {
            let mut block = [0; BLOCK];
            match file.read_exact(&mut block) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                read => read.map(|()| Some(block)),
            }
        };
        for number in 0..SLOTS as usize {
            let block = next()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if ERRORS.contains(&number) && block[0] != 0 {
                let text = String::from_utf8_lossy(&block);
                verdict.errors.push(text.trim_end_matches('\0').to_owned());
            }
        }
        for step in 1.. {
            let mut done = Vec::new();
            for _ in 0..COLUMNS {
                match next()?.map(|block| Record::decode(&block)) {
                    None => return Ok(verdict),
                    Some(Ok(None)) => {}
                    Some(Ok(Some(record))) if record.step == step => done.push(record.host),
                    Some(Ok(Some(record))) => verdict
                        .errors
                        .push(format!("the slot of step {step} has step {}", record.step)),
                    Some(Err(error)) => verdict
                        .errors
                        .push(format!("the slot of step {step} {error}")),
                }
            }
            verdict.take(step, done);
        }
        Ok(verdict)
    }

    /// Takes note of the hosts that did a step; steps come in order.
    fn take(&mut self, step: u64, hosts: Vec<String>) {
        if hosts.len() > 1 {
            self.doubled.push(step);
        }
        let Some(host) = hosts.into_iter().next() else {
            return;
        };
        self.missing.extend(self.last + 1..step);
        self.last = step;
        match self.stays.last_mut() {
            Some(stay) if stay.host == host => stay.to = step,
            _ => self.stays.push(Stay {
                host,
                from: step,
                to: step,
            }),
        }
    }

    /// Whether every step up to the last was done once, and nothing is wrong.
    pub fn exactly_once(&self) -> bool {
        self.missing.is_empty() && self.doubled.is_empty() && self.errors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, host: &str) -> Record {
        Record {
            step,
            host: host.into(),
            pids: [1, 2, 70_000],
        }
    }

    /// A ledger with these records, each in a column.
    fn verdict(records: &[(u64, usize, &str)], errors: &[&str]) -> Verdict {
        let mut bytes = vec![0; ledger_size(20) as usize];
        let mut put = |at: u64, block: Block| {
            bytes[at as usize..][..BLOCK].copy_from_slice(&block.0);
        };
        for (step, column, host) in records {
            put(slot_at(*step, *column), record(*step, host).encode());
        }
        for (role, error) in errors.iter().enumerate() {
            put(errors_at(role), Block::text(error));
        }
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        std::fs::write(&path, bytes).expect("it is written");
        Verdict::read(&path).expect("it is read")
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let one = record(u64::MAX, "source");
        assert_eq!(Record::decode(&one.encode().0), Ok(Some(one.clone())));
        assert_eq!(Record::decode(&Block::EMPTY.0), Ok(None));
        let mut damaged = one.encode().0;
        damaged[30] ^= 1;
        assert!(Record::decode(&damaged).is_err());
    }

    #[test]
    fn a_move_shows_as_two_stays() {
        let found = verdict(&[(1, 0, "a"), (2, 0, "a"), (3, 1, "b")], &[]);
        assert!(found.exactly_once());
        assert_eq!(found.last, 3);
        let stays: Vec<_> = found.stays.iter().map(|it| (it.from, it.to)).collect();
        assert_eq!(stays, [(1, 2), (3, 3)]);
    }

    #[test]
    fn what_is_lost_doubled_or_wrong_is_told() {
        let found = verdict(&[(1, 0, "a"), (4, 1, "b")], &[]);
        assert_eq!(found.missing, [2, 3]);
        let found = verdict(&[(1, 0, "a"), (2, 0, "a"), (2, 1, "b")], &[]);
        assert_eq!(found.doubled, [2]);
        let found = verdict(&[(1, 0, "a")], &["", "the lock is gone"]);
        assert_eq!(found.errors, ["the lock is gone"]);
        assert!(!found.exactly_once());
    }
}
