//! Programs at their hooks. A link is what makes the kernel run a program there;
//! without it the program stays loaded and costs nothing.

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{Program, ProgramError};

use super::Refusal;
use super::ebpf::failure;
use super::hooks::{Hook, Kind, Way};

/// Loads and attaches all programs of a way, or none.
///
/// # Errors
/// What the kernel does not have, permit or like.
pub(super) fn attach(ebpf: &mut Ebpf, way: &Way, types: &aya::Btf) -> Result<Vec<FdLink>, Refusal> {
    let attached = each(ebpf, way, |program, hook| {
        load(program, hook, types)?;
        link(program)
    });
    if attached.is_err() {
        for hook in way.hooks {
            // Those that did not get that far have nothing to unload.
            let _ = ebpf.program_mut(hook.program).map(unload);
        }
    }
    attached
}

/// Attaches programs that are loaded, and whose links are gone.
///
/// # Errors
/// As for [`attach`].
pub(super) fn attach_again(ebpf: &mut Ebpf, way: &Way) -> Result<Vec<FdLink>, Refusal> {
    each(ebpf, way, |program, hook| match link(program) {
        // Before Linux 5.13 (commit f3a95075549e) a program can be attached to a
        // function only once. The same is loaded anew, then.
        Err(error) if hook.kind != Kind::Tracepoint => {
            let Ok(types) = aya::Btf::from_sys_fs() else {
                return Err(error);
            };
            // It may be that the last attempt did not get further than this.
            let _ = unload(program);
            load(program, hook, &types)?;
            link(program)
        }
        linked => linked,
    })
}

fn each(
    ebpf: &mut Ebpf,
    way: &Way,
    mut attach: impl FnMut(&mut Program, &Hook) -> Result<FdLink, ProgramError>,
) -> Result<Vec<FdLink>, Refusal> {
    let links = way.hooks.iter().map(|hook| {
        let doing = format!("attach to {hook}");
        let program = ebpf
            .program_mut(hook.program)
            .ok_or_else(|| Refusal::Failed(format!("failed to {doing}: no such program")))?;
        attach(program, hook).map_err(|error| failure(&doing, &error))
    });
    links.collect()
}

fn load(program: &mut Program, hook: &Hook, types: &aya::Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.load(hook.name, types),
        Program::FEntry(program) => program.load(hook.name, types),
        Program::FExit(program) => program.load(hook.name, types),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn link(program: &mut Program) -> Result<FdLink, ProgramError> {
    match program {
        Program::BtfTracePoint(program) => {
            let id = program.attach()?;
            program.take_link(id).map(FdLink::from)
        }
        Program::FEntry(program) => {
            let id = program.attach()?;
            program.take_link(id).map(FdLink::from)
        }
        Program::FExit(program) => {
            let id = program.attach()?;
            program.take_link(id).map(FdLink::from)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn unload(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.unload(),
        Program::FEntry(program) => program.unload(),
        Program::FExit(program) => program.unload(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}
