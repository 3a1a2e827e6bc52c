//! Embeds the eBPF object that `cargo xtask build` has made, when it says
//! where that is; plain `cargo build` embeds nothing and needs no eBPF
//! toolchain.

use std::path::PathBuf;
use std::{env, fs, process};

/// The path of the object to embed.
const OBJECT: &str = "MIGRATOR_EBPF_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    let Some(object) = env::var_os(OBJECT).map(PathBuf::from) else {
        return;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let Some(out_dir) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        fail("cargo gave no OUT_DIR");
    };
    let embedded = out_dir.join("migrator.bpf.o");
    if let Err(error) = fs::copy(&object, &embedded) {
        fail(&format!(
            "failed to copy {} (named by {OBJECT}) to {}: {error}",
            object.display(),
            embedded.display(),
        ));
    }
    println!("cargo::rustc-cfg=ebpf_object");
}

/// Ends the build with a sentence instead of a panic's backtrace.
fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    process::exit(1)
}
