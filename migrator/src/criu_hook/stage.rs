//! What CRIU tells its action script.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A call by CRIU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What CRIU is about to do, or has done.
    pub stage: Stage,
    /// The directory of the images, such as `/proc/7/fd/1023`.
    pub images: PathBuf,
    /// The root of the tree as this pid namespace counts. Before a restore
    /// there is none.
    pub init: Option<i32>,
}

/// The stages at which there is something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The tasks are frozen, the images are complete.
    PostDump,
    /// There are no tasks yet.
    PreRestore,
    /// The root task and its mount namespace exist.
    PostSetupNamespaces,
    /// The tasks are complete, and stopped.
    PreResume,
    /// Any other.
    Other,
}

/// What is wrong with the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCall {
    /// CRIU did not start this.
    #[error(
        "CRTOOLS_SCRIPT_ACTION is not set: CRIU runs this as its action script, and \
         `migrator criu-hook --install` tells CRIU to"
    )]
    NotCriu,
    /// A variable that is needed at this stage.
    #[error("{0} is not set, so that there is nothing to be done")]
    Missing(&'static str),
    /// A variable that makes no sense.
    #[error("{0} is {1:?}, which makes no sense")]
    Nonsense(&'static str, OsString),
}

impl Call {
    /// From the environment.
    ///
    /// # Errors
    /// What is missing, or makes no sense.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, BadCall> {
        const IMAGES: &str = "CRTOOLS_IMAGE_DIR";
        const INIT: &str = "CRTOOLS_INIT_PID";
        let action = variable("CRTOOLS_SCRIPT_ACTION").ok_or(BadCall::NotCriu)?;
        let stage = match action.to_str() {
            Some("post-dump") => Stage::PostDump,
            Some("pre-restore") => Stage::PreRestore,
            Some("post-setup-namespaces") => Stage::PostSetupNamespaces,
            Some("pre-resume") => Stage::PreResume,
            _ => Stage::Other,
        };
        let images: PathBuf = match variable(IMAGES) {
            Some(images) => images.into(),
            None if stage == Stage::Other => PathBuf::new(),
            None => return Err(BadCall::Missing(IMAGES)),
        };
        let init = match variable(INIT) {
            None => None,
            Some(text) => match text.to_str().and_then(|text| text.parse().ok()) {
                Some(init) if init > 0 => Some(init),
                _ => return Err(BadCall::Nonsense(INIT, text)),
            },
        };
        let needs_init = !matches!(stage, Stage::PreRestore | Stage::Other);
        if needs_init && init.is_none() {
            return Err(BadCall::Missing(INIT));
        }
        Ok(Self {
            stage,
            images,
            init,
        })
    }
}

/// Whether the dumped tree had a mount namespace of its own, by the images:
/// CRIU writes the mounts of each into `mountpoints-ID.img`.
pub fn has_own_mounts(images: &Path) -> bool {
    names(images).any(|name| name.starts_with(b"mountpoints-"))
}

/// How many threads there are in the images: each has its `core-ID.img`.
pub fn threads(images: &Path) -> u64 {
    names(images)
        .filter(|name| name.starts_with(b"core-"))
        .count() as u64
}

fn names(images: &Path) -> impl Iterator<Item = Vec<u8>> {
    use std::os::unix::ffi::OsStringExt;
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Call, BadCall> {
        Call::read(|name| {
            let found = variables.iter().find(|(key, _)| *key == name)?;
            Some(found.1.into())
        })
    }

    #[test]
    fn what_criu_says_is_understood() {
        let call = read(&[
            ("CRTOOLS_SCRIPT_ACTION", "post-dump"),
            ("CRTOOLS_IMAGE_DIR", "/proc/7/fd/1023"),
            ("CRTOOLS_INIT_PID", "42"),
        ]);
        let expected = Call {
            stage: Stage::PostDump,
            images: "/proc/7/fd/1023".into(),
            init: Some(42),
        };
        assert_eq!(call, Ok(expected));
        let call = read(&[
            ("CRTOOLS_SCRIPT_ACTION", "pre-restore"),
            ("CRTOOLS_IMAGE_DIR", "/proc/7/fd/1023"),
        ]);
        assert_eq!(call.map(|call| call.init), Ok(None));
    }

    #[test]
    fn stages_without_work_need_nothing() {
        let call = read(&[("CRTOOLS_SCRIPT_ACTION", "network-lock")]);
        assert_eq!(call.map(|call| call.stage), Ok(Stage::Other));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(read(&[]), Err(BadCall::NotCriu));
        let dump = ("CRTOOLS_SCRIPT_ACTION", "post-dump");
        let images = ("CRTOOLS_IMAGE_DIR", "/x");
        assert_eq!(read(&[dump]), Err(BadCall::Missing("CRTOOLS_IMAGE_DIR")));
        assert_eq!(
            read(&[dump, images]),
            Err(BadCall::Missing("CRTOOLS_INIT_PID"))
        );
        for pid in ["", "0", "-1", "x", "99999999999"] {
            let call = read(&[dump, images, ("CRTOOLS_INIT_PID", pid)]);
            assert_eq!(call, Err(BadCall::Nonsense("CRTOOLS_INIT_PID", pid.into())));
        }
    }

    #[test]
    fn the_images_tell_of_namespaces_and_threads() {
        let images = tempfile::tempdir().expect("a directory");
        for name in ["core-1.img", "core-5.img", "pstree.img"] {
            std::fs::write(images.path().join(name), []).expect("a file");
        }
        assert_eq!(threads(images.path()), 2);
        assert!(!has_own_mounts(images.path()));
        std::fs::write(images.path().join("mountpoints-12.img"), []).expect("a file");
        assert!(has_own_mounts(images.path()));
        assert_eq!(threads(Path::new("/nowhere")), 0);
    }
}
