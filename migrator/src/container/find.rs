//! Finds the processes of a container, to observe them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{ask, check_name, never, runc};
use crate::target::Target;

const PROC: &str = "/proc";

/// Who runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// podman.
    Podman,
    /// runc by itself.
    Runc,
    /// docker.
    Docker,
}

/// Returns the processes of a container: its cgroup, which loses none, or where it has
/// no cgroup of its own, its first process and the descendants of that.
///
/// # Errors
/// The runtime does not know the container, or it does not run.
pub fn find(runtime: Runtime, name: &str) -> anyhow::Result<Target> {
    check_name(name)?;
    let (id, pid) = match runtime {
        Runtime::Podman => inspect("podman", name)?,
        Runtime::Docker => inspect("docker", name)?,
        Runtime::Runc => (name.to_owned(), runc::subject(name, &never)?.1),
    };
    let proc_root = Path::new(PROC);
    let cgroups = fs::read_to_string(proc_root.join(format!("{pid}/cgroup")))
        .with_context(|| format!("failed to find process {pid} of container {name}"))?;
    let cgroup = cgroup_of(&cgroups, &id).map(Target::Cgroup);
    // It is that of the container only if the process is in it as we see it, too.
    let has_process = |target: &Target| {
        let members = target.processes(proc_root);
        members.is_ok_and(|members| members.contains(&pid))
    };
    Ok(cgroup.filter(has_process).unwrap_or(Target::Process(pid)))
}

/// Returns the id of a container, and its first process, as podman and docker know them.
fn inspect(program: &str, name: &str) -> anyhow::Result<(String, i32)> {
    let format = "{{.Id}} {{.State.Pid}} {{.State.Status}}";
    let arguments = ["container", "inspect", "--format", format, name];
    let said = ask(program, &arguments, &never)?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [id, pid, status] = words[..] else {
        bail!("malformed output of `{program} container inspect`: {said:?}");
    };
    if status != "running" {
        bail!("{program}'s container {name} is {status}, not running");
    }
    let pid = pid.parse().ok().filter(|pid| *pid > 0);
    let pid = pid.with_context(|| format!("{program} prints no process id, but {said:?}"))?;
    Ok((id.to_owned(), pid))
}

/// Returns the cgroup of the container with this id, from the `/proc/PID/cgroup` of one
/// of its processes, that of version 2 if there are several. The process may be in one
/// below, which the container has made.
fn cgroup_of(cgroups: &str, id: &str) -> Option<PathBuf> {
    let paths = cgroups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let (unified, others): (Vec<_>, Vec<_>) =
        paths.partition(|(controllers, _)| controllers.is_empty());
    let mut paths = unified.into_iter().chain(others);
    paths.find_map(|(_, path)| {
        let path = Path::new(path);
        // /docker/ID, /system.slice/docker-ID.scope, /machine.slice/libpod-ID.scope, /ID
        let mut own = path.ancestors().filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.unwrap_or_default().trim_end_matches(".scope");
            let before = name.strip_suffix(id);
            before.is_some_and(|it| it.is_empty() || it.ends_with('-'))
        });
        own.next().map(Path::to_path_buf)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c4c01";

    #[test]
    fn the_cgroup_of_a_container_has_its_id() {
        let found = |cgroups: &str, id| {
            let found = cgroup_of(&cgroups.replace("ID", ID), id);
            found.map(|path| path.display().to_string().replace(ID, "ID"))
        };
        for (cgroups, wanted) in [
            (
                "0::/machine.slice/libpod-ID.scope\n",
                "/machine.slice/libpod-ID.scope",
            ),
            (
                "0::/machine.slice/libpod-ID.scope/container/init.scope\n",
                "/machine.slice/libpod-ID.scope",
            ),
            (
                "0::/system.slice/docker-ID.scope\n",
                "/system.slice/docker-ID.scope",
            ),
            (
                "5:memory:/docker/ID\n1:name=systemd:/docker/ID\n",
                "/docker/ID",
            ),
            ("5:memory:/a/ID\n0::/b/ID/below\n", "/b/ID"),
            ("1:name=systemd:/a:b/ID\n", "/a:b/ID"),
        ] {
            assert_eq!(found(cgroups, ID).as_deref(), Some(wanted), "{cgroups}");
        }
        assert_eq!(found("0::/web\n", "web").as_deref(), Some("/web"));
        assert_eq!(
            found("0::/web/a/web/b\n", "web").as_deref(),
            Some("/web/a/web")
        );
        for cgroups in [
            "0::/\n",
            "0::/user.slice/session-1.scope\n",
            "",
            "0:/ID",
            "0::/my web",
        ] {
            assert_eq!(found(cgroups, "web"), None, "{cgroups}");
        }
        // That of another container.
        assert_eq!(found("0::/ID\n", &ID.replace('4', "5")), None);
    }
}
