//! Containers of `steps` on the test hosts; `docs/containers.md` says why they
//! are started so.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::vm::{Hosts, SHARED};

/// A root file system with nothing but the program.
const ROOTFS: &str = "mkdir -p $1/proc $1/sys $1/dev $1/data $1/tmp && cp /vm/steps $1/steps";

/// Gives podman the same image on both hosts.
///
/// # Errors
/// When podman can't.
pub fn podman_image(hosts: &Hosts) -> Result<()> {
    hosts.source.run(&format!(
        "set -e; set -- /tmp/rootfs; {ROOTFS}; podman rmi -f localhost/steps 2>/dev/null || true
         tar -C /tmp/rootfs -c . | podman import - localhost/steps
         rm -f {SHARED}/steps-image.tar; podman save -o {SHARED}/steps-image.tar localhost/steps"
    ))?;
    hosts
        .destination
        .run(&format!("podman load -i {SHARED}/steps-image.tar"))
        .map(drop)
}

/// The command that starts one with podman.
pub fn podman_run(name: &str, directory: &str) -> String {
    format!(
        "podman run -d --name {name} --network host --security-opt seccomp=unconfined \
         -v {directory}:/data localhost/steps /steps run /data --interval 20"
    )
}

/// Makes a bundle on the shared storage for runc, with the files of the tree
/// at `/data`, and gives the command that starts it.
///
/// # Errors
/// When it can't be made.
pub fn runc_run(hosts: &Hosts, name: &str, directory: &str) -> Result<String> {
    let bundle = format!("{SHARED}/steps-bundle-{name}");
    let spec = hosts.source.run(&format!(
        "set -e; set -- {bundle}/rootfs; {ROOTFS}; cd {bundle}; rm -f config.json
         runc spec; cat config.json"
    ))?;
    let mut config: Value = serde_json::from_str(&spec).context("runc spec is no JSON")?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/steps", "run", "/data", "--interval", "20"]);
    config["root"]["readonly"] = json!(false);
    config["linux"]["cgroupsPath"] = json!(format!("/migrator-tests/{name}"));
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        // Of a network namespace of its own nothing would be left to restore.
        namespaces.retain(|it| {
            !["network", "uts", "cgroup"]
                .map(Value::from)
                .contains(&it["type"])
        });
    }
    if let Some(config) = config.as_object_mut() {
        config.remove("hostname");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.push(json!({
            "destination": "/data", "type": "bind", "source": directory,
            "options": ["rbind", "rw"],
        }));
    }
    let file = tempfile::NamedTempFile::new().context("failed to make a file")?;
    serde_json::to_writer(&file, &config).context("failed to write the configuration")?;
    hosts
        .source
        .put(file.path(), &format!("{bundle}/config.json"))?;
    Ok(format!(
        "cd /; runc run -d --bundle {bundle} {name} </dev/null >/dev/null 2>&1"
    ))
}
