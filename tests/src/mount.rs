//! Mounts that end with the test.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Something mounted, until the guard is dropped.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Runs mount(8) with these arguments and, at their end, the place, which
    /// is made if it is not there.
    ///
    /// # Panics
    /// When it fails.
    pub fn new<S: AsRef<OsStr>>(args: &[S], path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("a mount point");
        run(Command::new("mount").args(args).arg(path));
        Self { path: path.into() }
    }

    /// Makes a file system in an image of so many bytes, and mounts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn disk(kind: &str, image: &Path, bytes: u64, path: &Path) -> Self {
        let file = File::create(image).expect("an image");
        file.set_len(bytes).expect("a sparse file");
        let mut mkfs = Command::new(format!("mkfs.{kind}"));
        if kind == "xfs" {
            // Of a newer one the oldest kernels of the matrix know nothing.
            mkfs.args(["-m", "bigtime=0,inobtcount=0", "-i", "nrext64=0"]);
        }
        run(mkfs.arg("-q").arg(image));
        Self::new(
            &[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str()],
            path,
        )
    }

    /// The place.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, because a test that failed may hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}
