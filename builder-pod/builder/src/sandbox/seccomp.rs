//! Docker's default seccomp filter for steps.
//!
//! seccompiler makes the allow-list's program; in front of it stands a short prelude of our own for what it can't say:
//! other architectures, `clone3` (its flags are in memory, out of a filter's sight: `ENOSYS` makes the C library use
//! `clone`) and numbers above those that the profile knows. The filter is installed without no_new_privs, so that
//! setuid programs work in a step as they do in docker; that takes `CAP_SYS_ADMIN` in the step's user namespace.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::fault::{At as _, Fault, Stage};
use super::seccomp_list::{COMMON, HIGHEST, NATIVE};

/// The flags of clone that make a namespace.
const NEW_NAMESPACE: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned() as u64;

/// Personalities that docker allows: Linux, 32-bit Linux, each also with the old uname, and the question for it.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Offsets in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
#[cfg(target_arch = "x86_64")]
const IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;

#[cfg(target_arch = "x86_64")]
const ARCH: (u32, TargetArch) = (0xc000_003e, TargetArch::x86_64);
#[cfg(target_arch = "aarch64")]
const ARCH: (u32, TargetArch) = (0xc000_00b7, TargetArch::aarch64);

fn one(code: u16, value: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k: value }
}

/// `if (accumulator IS value) return answer`.
fn answer_if(code: u16, value: u32, answer: u32) -> [sock_filter; 2] {
    [sock_filter { code, jt: 0, jf: 1, k: value }, one(RETURN, answer)]
}

/// Rules for 32-bit x86 programs on a 64-bit kernel.
#[cfg(target_arch = "x86_64")]
fn other_architectures() -> Vec<sock_filter> {
    const I386: u32 = 0x4000_0003;
    const CLONE: u32 = 120;
    const PERSONALITY: u32 = 136;
    const CLONE3: u32 = 435;
    const FIRST_ARGUMENT_AT: u32 = 16;
    let mut program = vec![sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: I386 }, one(RETURN, UNKNOWN)];
    program.push(one(LOAD, NUMBER_AT));
    program.extend(answer_if(IF_EQUAL, CLONE3, UNKNOWN));
    program.extend(answer_if(IF_ABOVE, HIGHEST as u32, UNKNOWN));
    for denied in super::seccomp_list::DENIED_X86 {
        program.extend(answer_if(IF_EQUAL, *denied, REFUSED));
    }
    // clone: 4 instructions, skipped for other calls.
    program.push(sock_filter { code: IF_EQUAL, jt: 0, jf: 4, k: CLONE });
    program.push(one(LOAD, FIRST_ARGUMENT_AT));
    program.extend(answer_if(IF_SET, NEW_NAMESPACE as u32, REFUSED));
    program.push(one(RETURN, ALLOW));
    // personality likewise.
    program.push(sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: PERSONALITY });
    program.push(one(RETURN, ALLOW));
    program.push(one(LOAD, FIRST_ARGUMENT_AT));
    for allowed in PERSONALITIES {
        program.extend(answer_if(IF_EQUAL, allowed as u32, ALLOW));
    }
    program.push(one(RETURN, REFUSED));
    program
}

#[cfg(target_arch = "aarch64")]
fn other_architectures() -> Vec<sock_filter> {
    vec![one(RETURN, UNKNOWN)]
}

fn rules(more: &[libc::c_long]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let when = |operator, value| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(NATIVE).chain(more).map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![when(SeccompCmpOp::MaskedEq(NEW_NAMESPACE), 0)?]);
    rules.insert(libc::SYS_socket, vec![when(SeccompCmpOp::Ne, libc::AF_VSOCK.cast_unsigned().into())?]);
    let personalities = PERSONALITIES.iter().map(|value| when(SeccompCmpOp::Eq, *value));
    rules.insert(libc::SYS_personality, personalities.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// The whole program. `more` are calls that are allowed besides; steps get none.
///
/// # Errors
/// [`Stage::Seccomp`], when the lists contradict themselves.
pub fn program(more: &[libc::c_long]) -> Result<BpfProgram, Fault> {
    let list: BpfProgram = rules(more)
        .and_then(|rules| {
            SeccompFilter::new(
                rules,
                SeccompAction::Errno(libc::EPERM.cast_unsigned()),
                SeccompAction::Allow,
                ARCH.1,
            )
        })
        .and_then(TryInto::try_into)
        .map_err(|error| {
            Fault::new(Stage::Seccomp, format!("cannot make the step's seccomp filter: {error}"))
        })?;
    let others = other_architectures();
    let mut program = vec![
        one(LOAD, ARCH_AT),
        sock_filter { code: IF_EQUAL, jt: 0, jf: 1, k: ARCH.0 },
        one(JUMP, others.len() as u32),
    ];
    program.extend(others);
    program.push(one(LOAD, NUMBER_AT));
    program.extend(answer_if(IF_ABOVE, HIGHEST as u32, UNKNOWN));
    program.extend(answer_if(IF_EQUAL, libc::SYS_clone3 as u32, UNKNOWN));
    program.extend(list);
    Ok(program)
}

/// Installs the filter in this process, for good.
///
/// # Errors
/// [`Stage::Seccomp`].
pub fn install(program: &BpfProgram) -> Result<(), Fault> {
    let length = u16::try_from(program.len())
        .map_err(|_| Fault::new(Stage::Seccomp, "the step's seccomp filter is too long"))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // Without this flag old kernels slow the step down by speculation barriers, which docker does not do either.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: `program` points to `length` instructions that live through the call, which only reads them;
    // seccompiler's sock_filter has the layout of the kernel's.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        .at(Stage::Seccomp, || "cannot install the step's seccomp filter".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would, for the few instructions that are in it.
    fn judge(program: &[sock_filter], arch: u32, number: u32, argument: u64) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_ne_bytes());
        data[4..8].copy_from_slice(&arch.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut at, mut held) = (0usize, 0u32);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            let code = u32::from(step.code);
            match code & 7 {
                libc::BPF_LD => {
                    let from = step.k as usize;
                    held = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                }
                libc::BPF_RET => return step.k,
                libc::BPF_ALU => held &= step.k,
                libc::BPF_JMP => {
                    at += match code & 0xf0 {
                        libc::BPF_JA => step.k as usize,
                        libc::BPF_JEQ => jump(held == step.k),
                        libc::BPF_JGT => jump(held > step.k),
                        libc::BPF_JGE => jump(held >= step.k),
                        libc::BPF_JSET => jump(held & step.k != 0),
                        other => panic!("jump {other:#x}"),
                    }
                }
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_filter_answers_as_docker_does() {
        let program = program(&[]).unwrap();
        assert!(program.len() < 4096, "the kernel takes no longer program");
        let native = |number: libc::c_long, argument| judge(&program, ARCH.0, number as u32, argument);
        for (number, argument, answer) in [
            (libc::SYS_read, 0, ALLOW),
            (libc::SYS_capset, 0, ALLOW),
            (libc::SYS_mount, 0, REFUSED),
            (libc::SYS_unshare, 0, REFUSED),
            (libc::SYS_setns, 0, REFUSED),
            (libc::SYS_keyctl, 0, REFUSED),
            (libc::SYS_bpf, 0, REFUSED),
            (libc::SYS_io_uring_setup, 0, REFUSED),
            (libc::SYS_clone, libc::SIGCHLD.cast_unsigned().into(), ALLOW),
            (libc::SYS_clone, libc::CLONE_NEWUSER.cast_unsigned().into(), REFUSED),
            (libc::SYS_clone, libc::CLONE_NEWNET.cast_unsigned().into(), REFUSED),
            (libc::SYS_clone3, 0, UNKNOWN),
            (libc::SYS_socket, 1, ALLOW),
            (libc::SYS_socket, 40, REFUSED),
            (libc::SYS_personality, 8, ALLOW),
            (libc::SYS_personality, 0x004_0000, REFUSED),
            (467, 0, UNKNOWN),
            (0x4000_0001, 0, UNKNOWN),
        ] {
            assert_eq!(native(number, argument), answer, "call {number} with {argument:#x}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn programs_for_32_bits_run_with_the_same_limits() {
        let program = program(&[]).unwrap();
        for (number, argument, answer) in [
            (4, 0, ALLOW),
            (21, 0, REFUSED),
            (310, 0, REFUSED),
            (435, 0, UNKNOWN),
            (120, 17, ALLOW),
            (120, 0x1000_0000, REFUSED),
            (136, 8, ALLOW),
            (136, 0x0040_0000, REFUSED),
            (500, 0, UNKNOWN),
        ] {
            assert_eq!(judge(&program, 0x4000_0003, number, argument), answer, "call {number}");
        }
        assert_eq!(judge(&program, 0xdead_beef, 1, 0), UNKNOWN);
    }

    #[test]
    fn the_lists_hold_nothing_twice_and_nothing_above_the_highest() {
        let mut all: Vec<_> = COMMON.iter().chain(NATIVE).copied().collect();
        all.sort_unstable();
        assert_eq!(all.last(), Some(&HIGHEST));
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
