//! Whom to observe.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::file::mountinfo::MountTable;

/// Whose accesses count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A process and its descendants, also those forked later.
    Process(i32),
    /// The processes of a cgroup directory and of those below it.
    Cgroup(PathBuf),
    /// Every process but ourselves.
    All,
}

/// Why there is nobody to observe.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It has ended, or never was.
    #[error("there is no process {0}")]
    NoSuchProcess(i32),
    /// Neither as given nor below a mounted cgroup hierarchy.
    #[error(
        "there is no cgroup {}: give its directory, or its path as in /proc/PID/cgroup",
        .0.display()
    )]
    NoSuchCgroup(PathBuf),
    /// It is there, but can't be read.
    #[error("failed to read {}", path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Target {
    /// The ids of the target's processes, ascending, without ourselves.
    /// `proc_root` is `/proc`.
    ///
    /// Processes that end meanwhile are not listed. A child whose parent has
    /// ended belongs to init or to a subreaper, and is therefore no
    /// descendant any more; a cgroup does not lose it.
    ///
    /// # Errors
    /// The process or the cgroup does not exist (any more).
    pub fn processes(&self, proc_root: &Path) -> Result<Vec<i32>, TargetError> {
        let mut found = match self {
            Self::Process(pid) => descendants(proc_root, *pid)?,
            Self::Cgroup(path) => cgroup_members(&cgroup_directory(proc_root, path)?)?,
            Self::All => all(proc_root)?,
        };
        if let Some(own) = own_pid(proc_root) {
            found.remove(&own);
        }
        Ok(found.into_iter().collect())
    }

    /// Whether there still is something to observe: the process has not ended
    /// (a zombie has), the cgroup's directory exists. An empty cgroup is
    /// alive: its next process may be about to start.
    pub fn is_alive(&self, proc_root: &Path) -> bool {
        match self {
            Self::Process(pid) => runs(proc_root, *pid),
            Self::Cgroup(path) => cgroup_directory(proc_root, path).is_ok(),
            Self::All => true,
        }
    }
}

/// Our own id as this proc file system counts.
fn own_pid(proc_root: &Path) -> Option<i32> {
    fs::read_link(proc_root.join("self"))
        .ok()?
        .to_str()?
        .parse()
        .ok()
}

/// Every process.
fn all(proc_root: &Path) -> Result<BTreeSet<i32>, TargetError> {
    let entries = fs::read_dir(proc_root).map_err(|source| unreadable(proc_root, source))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// A process, its children, their children, and so on.
fn descendants(proc_root: &Path, pid: i32) -> Result<BTreeSet<i32>, TargetError> {
    // The id of a thread will do as well: its directory is there, unlisted.
    let root = fs::read_to_string(proc_root.join(pid.to_string()).join("status"))
        .ok()
        .and_then(|status| {
            let id = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
            id.trim().parse().ok()
        })
        .ok_or(TargetError::NoSuchProcess(pid))?;
    // CONFIG_PROC_CHILDREN gives the children of a process; without it, the
    // parent of every process has to be looked at.
    let listed = proc_root.join(format!("{root}/task/{root}/children"));
    let parents = if listed.exists() {
        Vec::new()
    } else {
        all(proc_root)?
            .into_iter()
            .filter_map(|pid| Some((pid, stat(&proc_root.join(pid.to_string()))?.parent)))
            .collect()
    };
    let mut found = BTreeSet::from([root]);
    let mut ahead = vec![root];
    while let Some(parent) = ahead.pop() {
        let task = proc_root.join(format!("{parent}/task"));
        let listed = listed_children(&task).map_err(|source| unreadable(&task, source))?;
        let children = parents
            .iter()
            .filter(|(_, its_parent)| *its_parent == parent)
            .map(|(pid, _)| *pid)
            .chain(listed);
        ahead.extend(children.filter(|child| found.insert(*child)));
    }
    Ok(found)
}

/// Returns the children that the threads of a process have forked, where the
/// kernel lists them. `task` is its `/proc/PID/task`. Half a list would leave
/// processes behind, so that only what has ended is no error.
fn listed_children(task: &Path) -> io::Result<Vec<i32>> {
    let has_ended = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
    };
    let threads = match fs::read_dir(task) {
        Err(error) if has_ended(&error) => return Ok(Vec::new()),
        threads => threads?,
    };
    let mut children = Vec::new();
    for thread in threads {
        let thread = match thread {
            Err(error) if has_ended(&error) => continue,
            thread => thread?,
        };
        let list = match fs::read_to_string(thread.path().join("children")) {
            Err(error) if has_ended(&error) => continue,
            list => list?,
        };
        children.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    Ok(children)
}

/// Whether a thread of the process has not ended: while others run, the first
/// one may be a zombie.
fn runs(proc_root: &Path, pid: i32) -> bool {
    let threads = fs::read_dir(proc_root.join(pid.to_string()).join("task"));
    threads.is_ok_and(|threads| {
        threads
            .flatten()
            .filter_map(|thread| stat(&thread.path()))
            .any(|stat| !matches!(stat.state, 'Z' | 'X' | 'x'))
    })
}

struct Stat {
    state: char,
    parent: i32,
}

fn stat(process: &Path) -> Option<Stat> {
    let text = stat_fields(process)?;
    let mut fields = text.split_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
    })
}

/// The fields of `stat` of a process or thread, from the third on: the second,
/// as in `7 (name) S 1 ...`, may hold anything, blanks and parentheses included.
pub(crate) fn stat_fields(process: &Path) -> Option<String> {
    let mut text = fs::read(process.join("stat")).ok()?;
    let name_end = text.iter().rposition(|&byte| byte == b')')?;
    String::from_utf8(text.split_off(name_end + 1)).ok()
}

/// Where the cgroup is: as given, or below a mounted hierarchy, cgroup2 first.
pub(crate) fn cgroup_directory(proc_root: &Path, path: &Path) -> Result<PathBuf, TargetError> {
    let is_cgroup = |directory: &Path| directory.join("cgroup.procs").exists();
    if is_cgroup(path) {
        return Ok(path.to_owned());
    }
    let own = proc_root.join("self");
    let mounts =
        MountTable::read(&own).map_err(|source| unreadable(&own.join("mountinfo"), source))?;
    let below = path.strip_prefix("/").unwrap_or(path);
    ["cgroup2", "cgroup"]
        .iter()
        .flat_map(|kind| mounts.iter().filter(move |mount| mount.fs_type == *kind))
        .map(|mount| mount.mount_point.join(below))
        .find(|directory| is_cgroup(directory))
        .ok_or_else(|| TargetError::NoSuchCgroup(path.to_owned()))
}

/// The members of a cgroup and of all below it.
fn cgroup_members(directory: &Path) -> Result<BTreeSet<i32>, TargetError> {
    let mut members = BTreeSet::new();
    let mut ahead = vec![directory.to_owned()];
    while let Some(cgroup) = ahead.pop() {
        let list = cgroup.join("cgroup.procs");
        match fs::read_to_string(&list) {
            // 0 stands for a process outside of our pid namespace.
            Ok(text) => members.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            ),
            // One below that is removed meanwhile has no members; neither has
            // a threaded one (EOPNOTSUPP): the domain above lists them.
            Err(_) if cgroup != directory => continue,
            Err(source) => return Err(unreadable(&list, source)),
        }
        let below = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        ahead.extend(
            below
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    Ok(members)
}

fn unreadable(path: &Path, source: io::Error) -> TargetError {
    TargetError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A proc file system of processes (id, parent, state), without `children`.
    fn proc_of(processes: &[(i32, i32, char)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, parent, state) in processes {
            let dir = root.path().join(pid.to_string());
            let thread = dir.join("task").join(pid.to_string());
            fs::create_dir_all(&thread).unwrap();
            let stat = format!("{pid} (a) b) {state} {parent} 0 0\n");
            fs::write(dir.join("stat"), &stat).unwrap();
            fs::write(thread.join("stat"), &stat).unwrap();
            fs::write(dir.join("status"), format!("Name:\ta\nTgid:\t{pid}\n")).unwrap();
        }
        std::os::unix::fs::symlink("4", root.path().join("self")).unwrap();
        root
    }

    #[test]
    fn descendants_are_found_by_their_parents() {
        let root = proc_of(&[
            (1, 0, 'S'),
            (2, 1, 'S'),
            (3, 2, 'S'),
            (4, 3, 'R'),
            (5, 3, 'S'),
            (6, 1, 'S'),
        ]);
        let processes = Target::Process(2).processes(root.path()).unwrap();
        assert_eq!(processes, [2, 3, 5], "4 is ourselves");
        let all = Target::All.processes(root.path()).unwrap();
        assert_eq!(all, [1, 2, 3, 5, 6]);
    }

    #[test]
    fn descendants_are_found_by_the_kernel_s_lists() {
        let root = proc_of(&[(1, 0, 'S'), (2, 1, 'S'), (3, 1, 'S'), (9, 0, 'S')]);
        for pid in [1, 2, 3] {
            let children = root.path().join(format!("{pid}/task/{pid}/children"));
            fs::write(children, if pid == 1 { "2 9 " } else { "" }).unwrap();
        }
        // What stat says of the parents (3 is a child of 1) is not asked.
        let processes = Target::Process(1).processes(root.path()).unwrap();
        assert_eq!(processes, [1, 2, 9]);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        let root = proc_of(&[(1, 0, 'S')]);
        assert!(matches!(
            Target::Process(7).processes(root.path()),
            Err(TargetError::NoSuchProcess(7))
        ));
        assert!(!Target::Process(7).is_alive(root.path()));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let root = proc_of(&[(1, 0, 'S'), (2, 1, 'Z')]);
        assert!(Target::Process(1).is_alive(root.path()));
        assert!(!Target::Process(2).is_alive(root.path()));
        // Its first thread has ended, another one runs.
        let thread = root.path().join("2/task/8");
        fs::create_dir(&thread).unwrap();
        fs::write(thread.join("stat"), "8 (a) R 1\n").unwrap();
        assert!(Target::Process(2).is_alive(root.path()));
    }

    #[test]
    fn cgroups_are_found_as_given_and_below_the_mounts() {
        let root = proc_of(&[(4, 0, 'S')]);
        let v1 = root.path().join("v1");
        let v2 = root.path().join("v2");
        for (cgroup, members) in [
            (v1.join("c"), "8\n"),
            (v1.join("only"), "9\n"),
            (v2.join("c"), "12\n0\n4\n"),
            (v2.join("c/below/deep"), "10\n"),
            (v2.join("c/below"), "11\n"),
        ] {
            fs::create_dir_all(&cgroup).unwrap();
            fs::write(cgroup.join("cgroup.procs"), members).unwrap();
        }
        let mounts = format!(
            "1 0 0:1 / {} rw - cgroup cgroup rw\n2 0 0:2 / {} rw - cgroup2 cgroup2 rw\n",
            v1.display(),
            v2.display()
        );
        fs::create_dir(root.path().join("me")).unwrap();
        fs::write(root.path().join("me/mountinfo"), mounts).unwrap();
        fs::remove_file(root.path().join("self")).unwrap();
        std::os::unix::fs::symlink("me", root.path().join("self")).unwrap();

        let members = |path: &Path| Target::Cgroup(path.to_owned()).processes(root.path());
        assert_eq!(members(&v2.join("c")).unwrap(), [4, 10, 11, 12]);
        assert_eq!(members(Path::new("/c")).unwrap(), [4, 10, 11, 12]);
        assert_eq!(members(Path::new("c/below")).unwrap(), [10, 11]);
        assert_eq!(members(Path::new("/only")).unwrap(), [9]);
        assert!(matches!(
            members(Path::new("/none")),
            Err(TargetError::NoSuchCgroup(_))
        ));
        assert!(Target::Cgroup("/c".into()).is_alive(root.path()));
        assert!(!Target::Cgroup("/none".into()).is_alive(root.path()));
    }
}
