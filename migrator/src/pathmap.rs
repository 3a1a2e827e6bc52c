//! `--map FROM=TO`: where a file of the source host is found on this one.

use std::path::PathBuf;

/// Files below `from` on the source are found below `to` here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Absolute path on the source host.
    pub from: PathBuf,
    /// Absolute path on this host.
    pub to: PathBuf,
}

impl Mapping {
    /// Parses `FROM=TO`.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text
            .split_once('=')
            .ok_or_else(|| format!("{text} has no =: a mapping looks like /data=/mnt/data"))?;
        Ok(Self {
            from: from.into(),
            to: to.into(),
        })
    }
}
