//! Which directories an overlayfs mount is made of.
//!
//! The page cache knows nothing of overlayfs: pages belong to the inode of
//! the upper or lower layer that a merged file stands for.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The layers of an overlayfs mount, the upper one first, from the options
/// that mountinfo shows.
///
/// The paths are what was given to mount(2), as seen by whoever mounted it.
/// Relative ones (docker shortens long lists so) are left out: relative to
/// what is not recorded anywhere.
pub fn layers(options: &[OsString]) -> Vec<PathBuf> {
    let values = |name: &'static str| {
        options.iter().filter_map(move |option| {
            option
                .as_bytes()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
    };
    let upper = values("upperdir").flat_map(unescaped_parts).take(1);
    // Mounted the old way, all lower layers stand in one option, separated by
    // colons; a double colon begins the data-only layers. Mounted with
    // fsconfig(2) there is an option for each, which is taken as it is.
    let lower = values("lowerdir").flat_map(unescaped_parts);
    let added = values("lowerdir+")
        .chain(values("datadir+"))
        .map(|path| OsStr::from_bytes(path).into());
    upper
        .chain(lower)
        .chain(added)
        .filter(|layer: &PathBuf| layer.is_absolute())
        .collect()
}

/// Splits at colons; a backslash takes the byte after it literally.
fn unescaped_parts(text: &[u8]) -> Vec<PathBuf> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b':' => parts.push(Vec::new()),
            b'\\' => parts.last_mut().map_or((), |part: &mut Vec<u8>| {
                part.extend(bytes.next());
            }),
            _ => parts.last_mut().map_or((), |part| part.push(byte)),
        }
    }
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| OsString::from_vec(part).into())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Vec<PathBuf> {
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        layers(&options)
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn upper_comes_first() {
        assert_eq!(
            of(&["rw", "lowerdir=/l1:/l2", "upperdir=/u", "workdir=/w"]),
            paths(&["/u", "/l1", "/l2"])
        );
    }

    #[test]
    fn escaped_colons_and_backslashes_belong_to_the_path() {
        assert_eq!(
            of(&["lowerdir=/a\\:b:/c\\\\d", "upperdir=/u\\:v"]),
            paths(&["/u:v", "/a:b", "/c\\d"])
        );
    }

    #[test]
    fn double_colon_begins_data_layers() {
        assert_eq!(of(&["lowerdir=/l1::/data"]), paths(&["/l1", "/data"]));
    }

    #[test]
    fn added_layers_are_literal() {
        assert_eq!(
            of(&["lowerdir+=/l:1", "lowerdir+=/l2", "datadir+=/d"]),
            paths(&["/l:1", "/l2", "/d"])
        );
    }

    #[test]
    fn relative_layers_are_left_out() {
        assert_eq!(
            of(&["lowerdir=l/ABC:/l2", "upperdir=x/diff"]),
            paths(&["/l2"])
        );
    }
}
