//! `--map FROM=TO`: where a file of the source host is found on this one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Files below `from` on the source are found below `to` here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Absolute path on the source host, without `.` and `..`.
    pub from: PathBuf,
    /// Absolute path on this host, without `.` and `..`.
    pub to: PathBuf,
}

impl Mapping {
    /// Parses `FROM=TO`.
    ///
    /// The first `=` divides them, so FROM cannot contain one. A slash at the
    /// end or a doubled one means nothing.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (from, to) = text
            .split_once('=')
            .ok_or_else(|| format!("{text} has no =: a mapping looks like /data=/mnt/data"))?;
        let side = |name: &str, path: &str| match normal(Path::new(path)) {
            _ if path.is_empty() => Err(format!(
                "{name} of {text} is empty: a mapping looks like /data=/mnt/data"
            )),
            Ok(path) => Ok(path),
            Err(error) => Err(format!("{name} of {text} {error}")),
        };
        Ok(Self {
            from: side("FROM", from)?,
            to: side("TO", to)?,
        })
    }
}

/// Why a path cannot be meant as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with a slash.
    #[error("is not absolute")]
    Relative,
    /// It has a `..` in it, which could lead anywhere.
    #[error("has a .. in it")]
    Parent,
    /// It holds a zero byte, which no file name has.
    #[error("has a zero byte in it")]
    Zero,
}

/// Where the file that the source knows as `path` is found on this host.
///
/// Of the mappings whose FROM is `path` or one of the directories above it
/// (`/data` is not above `/database`), the one with the longest FROM counts,
/// and of equal ones the last. Without any, the path stays as it is.
///
/// # Errors
/// The path is none that an honest list holds. What `..` or a relative path
/// would lead to is not guessed.
pub fn map(maps: &[Mapping], path: &Path) -> Result<PathBuf, BadPath> {
    let path = normal(path)?;
    let below = maps
        .iter()
        .filter_map(|mapping| Some((mapping, path.strip_prefix(&mapping.from).ok()?)))
        .max_by_key(|(mapping, _)| mapping.from.components().count());
    Ok(match below {
        None => path,
        // Joining an empty path would add a slash, which turns a file's name
        // into a directory's.
        Some((mapping, rest)) if rest == Path::new("") => mapping.to.clone(),
        Some((mapping, rest)) => mapping.to.join(rest),
    })
}

/// The path without `.`, doubled slashes, and slash at the end.
fn normal(path: &Path) -> Result<PathBuf, BadPath> {
    if !path.is_absolute() {
        return Err(BadPath::Relative);
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(BadPath::Zero);
    }
    // Components leave out `.` in the middle and doubled slashes.
    path.components()
        .map(|component| match component {
            Component::ParentDir => Err(BadPath::Parent),
            other => Ok::<&OsStr, _>(other.as_os_str()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(texts: &[&str]) -> Vec<Mapping> {
        texts
            .iter()
            .map(|text| Mapping::parse(text).expect("a good mapping"))
            .collect()
    }

    fn mapped(texts: &[&str], path: &str) -> String {
        let path = map(&maps(texts), Path::new(path)).expect("a good path");
        path.to_str().expect("UTF-8").to_owned()
    }

    #[test]
    fn a_path_without_mapping_stays() {
        assert_eq!(mapped(&[], "/data/a"), "/data/a");
        assert_eq!(mapped(&["/srv=/mnt"], "/data/a"), "/data/a");
    }

    #[test]
    fn from_ends_at_a_component() {
        assert_eq!(mapped(&["/data=/mnt"], "/data/a"), "/mnt/a");
        assert_eq!(mapped(&["/data=/mnt"], "/database/a"), "/database/a");
        assert_eq!(mapped(&["/data/=/mnt/"], "/data"), "/mnt");
        assert_eq!(mapped(&["/=/mnt"], "/data/a"), "/mnt/data/a");
        assert_eq!(mapped(&["/data=/"], "/data/a"), "/a");
    }

    #[test]
    fn the_longest_from_wins_and_of_equal_ones_the_last() {
        let texts = ["/data/db=/fast", "/data=/slow", "/=/root", "/data=/later"];
        assert_eq!(mapped(&texts, "/data/db/x"), "/fast/x");
        assert_eq!(mapped(&texts, "/data/other"), "/later/other");
        assert_eq!(mapped(&texts, "/etc"), "/root/etc");
    }

    #[test]
    fn a_mapped_path_is_not_mapped_again() {
        assert_eq!(mapped(&["/a=/b", "/b=/c"], "/a/x"), "/b/x");
    }

    #[test]
    fn slashes_and_dots_mean_nothing() {
        assert_eq!(mapped(&["//data/./x//=/mnt//"], "/data//x/./y"), "/mnt/y");
    }

    #[test]
    fn a_path_of_no_honest_list_is_refused() {
        let refused = |path: &str| map(&maps(&["/=/mnt"]), Path::new(path));
        assert_eq!(refused("../../etc/shadow"), Err(BadPath::Relative));
        assert_eq!(refused(""), Err(BadPath::Relative));
        assert_eq!(refused("/data/../etc/shadow"), Err(BadPath::Parent));
        assert_eq!(refused("/.."), Err(BadPath::Parent));
        assert_eq!(refused("/a\0b"), Err(BadPath::Zero));
    }

    #[test]
    fn parse_says_what_is_wrong() {
        for (text, part) in [
            ("/data", "has no ="),
            ("=/mnt", "FROM of =/mnt is empty"),
            ("/data=", "TO of /data= is empty"),
            ("data=/mnt", "FROM of data=/mnt is not absolute"),
            ("/data=mnt", "TO of /data=mnt is not absolute"),
            ("/data=/mnt/../x", "TO of /data=/mnt/../x has a .. in it"),
        ] {
            let error = Mapping::parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let equal = Mapping::parse("/a=/b=c").expect("the first = divides");
        assert_eq!(equal.to, Path::new("/b=c"));
    }
}
