//! What `cargo xtask build` hands out.

use std::fs;
use std::process::Command;

use migrator_tests::binary;

/// Runs a program and gives what it writes.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?} failed: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_binary_runs_and_needs_no_shared_library() {
    let version = output(Command::new(binary()).arg("--version"));
    assert!(version.starts_with("migrator "), "{version}");
    // A program that needs shared libraries names their loader in INTERP.
    let headers = output(
        Command::new("readelf")
            .arg("--program-headers")
            .arg(binary()),
    );
    assert!(headers.contains("LOAD"), "{headers}");
    assert!(!headers.contains("INTERP"), "{headers}");
}

#[test]
fn the_manifest_describes_every_file() {
    let manifest = fs::read(binary().with_file_name("manifest.json")).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["schema"], "migrator.dist/1");
    let files = manifest["artifacts"].as_array().expect("a list of files");
    let names: Vec<_> = files.iter().map(|file| file["name"].as_str()).collect();
    for name in ["migrator", "migrator.bpf.o"] {
        assert!(names.contains(&Some(name)), "{name} is not in {names:?}");
    }
    for file in files {
        let path = binary().with_file_name(file["name"].as_str().expect("a name"));
        let digest = output(Command::new("sha256sum").arg(&path));
        assert_eq!(digest.split(' ').next(), file["sha256"].as_str());
        let bytes = fs::metadata(&path).expect("the file").len();
        assert_eq!(file["bytes"].as_u64(), Some(bytes));
    }
}
