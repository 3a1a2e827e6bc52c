//! `cargo xtask`: builds, tests and benchmarks migrator.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("no task yet")
}
