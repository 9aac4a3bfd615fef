//! Calls of the system, by seccomp.
//!
//! Three filters, since one filter has one answer for what it names. What no part of the daemon ever does and what takes over a
//! machine is killed for ([`NEVER`]); what libraries try before older calls is absent, so that they fall back ([`absent`]); of
//! the rest, what the daemon uses is allowed ([`ALLOWED`], [`conditional`]) and everything else is refused with `EPERM`.
//!
//! The library of an accelerator's driver makes more of them ([`DRIVER`]); they are open only where that is needed.
//!
//! Invariant: no process is made and no program run; without a driver no memory becomes executable, be it a file's; sockets are
//! Unix, TCP and UDP, and that by which the kernel tells of routes.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::Unavailable;

/// Calls that the daemon makes, whatever their arguments.
const ALLOWED: &[c_long] = &[
    // Files: which of them is Landlock's affair.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_utimensat,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_umask,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    // Memory, but for what makes it executable.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_msync,
    libc::SYS_mincore,
    // Threads, but for making them.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_getpriority,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets, but for making them.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Who and where it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// The same, where the architecture has calls from before there were those above.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[];

/// Calls that the library of an accelerator's driver makes besides: it tells its devices things of its own, loads and makes code,
/// pins memory, and places its threads.
const DRIVER: &[c_long] = &[
    libc::SYS_ioctl,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_memfd_create,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
];

/// Calls for which the process is killed: whoever makes them is not the daemon any more.
const NEVER: &[c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes, and this one from outside.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // The kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // What a file's name means.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Who it is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
];

/// The same, where the architecture has more of them.
#[cfg(target_arch = "x86_64")]
const NEVER_OLD: &[c_long] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_OLD: &[c_long] = &[];

/// The first call whose number is the same on every architecture. Libraries were written when there were none of those that
/// follow, so they try them and fall back where there are none.
const NEW_FIRST: c_long = libc::SYS_pidfd_send_signal;
/// Well beyond the last there is.
const NEW_LAST: c_long = 600;

/// New namespaces, for which making a thread is no reason.
const NAMESPACES: libc::c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// What descriptors are told: not to block, to be closed, whether they are a terminal, and of fs-verity.
const TOLD: [libc::c_ulong; 8] = [
    libc::FIONBIO,
    libc::FIONREAD,
    libc::FIOCLEX,
    libc::TCGETS,
    libc::TIOCGWINSZ,
    // FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY
    0x4080_6685,
    0xc004_6686,
    // FICLONE: a copy of a file that shares its blocks.
    0x4004_9409,
];

/// Calls that are absent rather than refused.
fn absent() -> impl Iterator<Item = c_long> {
    let known = |call: &c_long| ALLOWED.contains(call) || NEVER.contains(call);
    // Its flags are in memory, where no filter sees them; libraries then use clone.
    std::iter::once(libc::SYS_clone3)
        .chain((NEW_FIRST..=NEW_LAST).filter(|&call| call != libc::SYS_clone3))
        .filter(move |call| !known(call))
}

/// The half of a number that the kernel looks at.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the other half is not looked at"
)]
fn word(number: libc::c_ulong) -> libc::c_int {
    (number as u32).cast_signed()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Of the 32 bits of an argument that count, those of `mask` are those of `value`.
fn bits(
    index: u8,
    mask: libc::c_int,
    value: libc::c_int,
) -> Result<SeccompCondition, BackendError> {
    let wide = |bits: libc::c_int| u64::from(bits.cast_unsigned());
    let masked = SeccompCmpOp::MaskedEq(wide(mask));
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, masked, wide(value))
}

/// All of them are those of `value`.
fn is(index: u8, value: libc::c_int) -> Result<SeccompCondition, BackendError> {
    bits(index, -1, value)
}

/// Calls that the daemon makes with some arguments only.
fn conditional(process: libc::pid_t) -> Result<Rules, BackendError> {
    let rule = SeccompRule::new;
    let mut rules = Rules::new();

    // All the code there is was loaded before.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(vec![bits(2, libc::PROT_EXEC, 0)?])?]);
    }

    // Threads of this process, and no process.
    let thread = libc::CLONE_THREAD | libc::CLONE_VM;
    rules.insert(
        libc::SYS_clone,
        vec![rule(vec![bits(0, NAMESPACES | thread, thread)?])?],
    );
    // What ends the process when it cannot go on.
    rules.insert(libc::SYS_tgkill, vec![rule(vec![is(0, process)?])?]);
    // A thread that ranks itself below the others.
    let priority_process = word(libc::PRIO_PROCESS.into());
    rules.insert(
        libc::SYS_setpriority,
        vec![rule(vec![is(0, priority_process)?, is(1, 0)?])?],
    );
    // Its own limits.
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![is(0, 0)?])?]);

    let stream_or_datagram = |index| -> Result<[Vec<SeccompCondition>; 2], BackendError> {
        Ok([
            vec![bits(index, 0xf, libc::SOCK_STREAM)?],
            vec![bits(index, 0xf, libc::SOCK_DGRAM)?],
        ])
    };
    let mut sockets = Vec::new();
    for kind in stream_or_datagram(1)? {
        for (family, protocol) in [
            (libc::AF_UNIX, 0),
            (libc::AF_INET, 0),
            (libc::AF_INET, libc::IPPROTO_TCP),
            (libc::AF_INET, libc::IPPROTO_UDP),
            (libc::AF_INET6, 0),
            (libc::AF_INET6, libc::IPPROTO_TCP),
            (libc::AF_INET6, libc::IPPROTO_UDP),
        ] {
            let mut conditions = kind.clone();
            conditions.push(is(0, family)?);
            conditions.push(is(2, protocol)?);
            sockets.push(rule(conditions)?);
        }
    }
    // What tells that routes have changed.
    sockets.push(rule(vec![
        bits(1, 0xf, libc::SOCK_DGRAM)?,
        is(0, libc::AF_NETLINK)?,
        is(2, libc::NETLINK_ROUTE)?,
    ])?);
    rules.insert(libc::SYS_socket, sockets);
    // What signals wake the runtime with.
    rules.insert(
        libc::SYS_socketpair,
        vec![rule(vec![is(0, libc::AF_UNIX)?])?],
    );

    let told = TOLD
        .iter()
        .map(|&request| rule(vec![is(1, word(request))?]));
    rules.insert(libc::SYS_ioctl, told.collect::<Result<_, _>>()?);

    let named = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_GET_DUMPABLE,
        // Names of anonymous memory, which glibc gives where the kernel takes them.
        libc::PR_SET_VMA,
    ];
    let named = named.iter().map(|&option| rule(vec![is(0, option)?]));
    rules.insert(libc::SYS_prctl, named.collect::<Result<_, _>>()?);
    Ok(rules)
}

fn whole(calls: impl Iterator<Item = c_long>) -> Rules {
    calls.map(|call| (call, Vec::new())).collect()
}

/// The filters, in the order of their installation: after the last none can be added.
fn filters(process: libc::pid_t, driver: bool) -> Result<[BpfProgram; 3], BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let program = |rules, otherwise, then| -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(rules, otherwise, then, architecture)?.try_into()
    };
    let number = |errno: libc::c_int| SeccompAction::Errno(errno.cast_unsigned());
    let never = NEVER.iter().chain(NEVER_OLD).copied();
    let mut allowed = whole(ALLOWED.iter().chain(ALLOWED_OLD).copied());
    allowed.extend(conditional(process)?);
    if driver {
        // In place of what of them was allowed with some arguments only.
        allowed.extend(whole(DRIVER.iter().copied()));
    }
    // Of two filters that answer with an error the later is heard, so the last must let these through to that error.
    allowed.extend(whole(absent()));
    Ok([
        program(
            whole(never),
            SeccompAction::Allow,
            SeccompAction::KillProcess,
        )?,
        program(whole(absent()), SeccompAction::Allow, number(libc::ENOSYS))?,
        program(allowed, number(libc::EPERM), SeccompAction::Allow)?,
    ])
}

/// Whether the kernel can do it.
///
/// # Errors
/// Why it cannot.
pub fn available() -> Result<(), Unavailable> {
    TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|error| Unavailable(format!("seccomp: {error}")))?;
    let actions = "/proc/sys/kernel/seccomp/actions_avail";
    let has = std::fs::read_to_string(actions).is_ok_and(|text| {
        text.split_whitespace()
            .any(|action| action == "kill_process")
    });
    if has {
        return Ok(());
    }
    Err(Unavailable(format!(
        "seccomp: the kernel has no filters that end a process ({actions})"
    )))
}

/// Confines the calling thread, and what it starts, to the calls that the daemon makes; with `driver` also to those of the library
/// of an accelerator's driver. Libraries that are needed later have to be loaded before ([`crate::names::load`]) where there is none.
///
/// # Errors
/// The kernel cannot do it, or does not let this process. Filters that were taken before the error stay; they are in nobody's
/// way.
pub fn restrict(driver: bool) -> Result<(), Unavailable> {
    let failed = |error: &dyn std::fmt::Display| Unavailable(format!("seccomp: {error}"));
    available()?;
    for filter in
        filters(std::process::id().cast_signed(), driver).map_err(|error| failed(&error))?
    {
        apply_filter(&filter).map_err(|error| failed(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::File;
    use std::io;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_call_has_two_answers() {
        let mut seen = BTreeSet::new();
        let conditional = conditional(1).expect("rules");
        let all = [ALLOWED, ALLOWED_OLD, NEVER, NEVER_OLD].concat();
        for call in all
            .into_iter()
            .chain(absent())
            .chain(conditional.into_keys())
        {
            assert!(seen.insert(call), "call {call} is there twice");
        }
        for driver in [false, true] {
            filters(1, driver).expect("programs that the kernel takes");
        }
        // What a driver may is neither killed for nor absent.
        for call in DRIVER {
            assert!(
                !NEVER.contains(call) && !ALLOWED.contains(call),
                "call {call}"
            );
            assert!(!absent().any(|other| other == *call), "call {call}");
        }
    }

    /// In a thread of its own, which alone is confined.
    fn confined<T: Send>(f: impl FnOnce() -> T + Send) -> T {
        confined_with(false, f)
    }

    fn confined_with<T: Send>(driver: bool, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                restrict(driver).expect("a kernel with seccomp");
                f()
            });
            inside.join().expect("no panic")
        })
    }

    #[test]
    fn what_the_daemon_does_goes_on() {
        confined(|| {
            std::thread::Builder::new()
                .name("another".to_owned())
                .spawn(|| std::thread::sleep(Duration::from_millis(1)))
                .expect("a thread")
                .join()
                .expect("it ends");
            let folder = tempfile::tempdir().expect("a folder");
            let (from, to) = (folder.path().join("a"), folder.path().join("b"));
            std::fs::write(&from, vec![1; 1 << 20]).expect("written");
            std::fs::copy(&from, &to).expect("copied");
            std::fs::rename(&from, &to).expect("renamed");
            File::open(&to).expect("open").sync_all().expect("synced");
            UnixStream::pair().expect("a pair");
            UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let listener =
                TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0"));
            listener
                .expect("a socket")
                .set_nonblocking(true)
                .expect("told");
            // Two of the largest, which are maps of their own.
            drop(vec![vec![1u8; 8 << 20]; 2]);
        });
    }

    #[test]
    fn what_it_does_not_do_is_refused() {
        confined(|| {
            // A process is made before a program is run.
            let error = std::process::Command::new("/bin/true").status();
            let error = error.expect_err("no program is run");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            // A name for a file that may be anywhere, which the daemon gives to none.
            let folder = tempfile::tempdir().expect("a folder");
            let error = std::os::unix::fs::symlink("nowhere", folder.path().join("link"));
            let error = error.expect_err("no link is made");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        });
    }

    #[test]
    fn a_driver_may_load_code_and_nothing_may_run_a_program() {
        use libc::{PROT_EXEC, PROT_READ};
        let program = std::env::current_exe().expect("a program");
        let program = File::open(program).expect("readable");
        confined_with(true, || {
            assert_eq!(map(PROT_READ | PROT_EXEC, Some(&program)), None);
            // A request of some device, which this file is not.
            use std::os::fd::AsRawFd as _;
            // SAFETY: the kernel knows no such request of a file, and reads nothing.
            let told = unsafe { libc::ioctl(program.as_raw_fd(), 0x4600, 0) };
            let error = io::Error::last_os_error().raw_os_error();
            assert_eq!((told, error), (-1, Some(libc::ENOTTY)));
            let error = std::process::Command::new("/bin/true").status();
            let error = error.expect_err("no program is run");
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        });
    }

    /// The error with which a page of memory is not mapped; of a file, if there is one.
    fn map(protection: libc::c_int, file: Option<&File>) -> Option<libc::c_int> {
        use std::os::fd::AsRawFd as _;
        let (flags, fd) = match file {
            Some(file) => (libc::MAP_PRIVATE, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: the kernel chooses where, and nobody uses the page.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) };
        (at == libc::MAP_FAILED).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    #[test]
    fn no_memory_becomes_executable() {
        use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
        let program = std::env::current_exe().expect("a program");
        let program = File::open(program).expect("readable");
        assert_eq!(map(PROT_READ | PROT_EXEC, Some(&program)), None);
        confined(|| {
            assert_eq!(map(PROT_READ | PROT_WRITE, None), None);
            for (protection, file) in [
                (PROT_READ | PROT_WRITE | PROT_EXEC, None),
                (PROT_READ | PROT_EXEC, None),
                (PROT_READ | PROT_EXEC, Some(&program)),
            ] {
                assert_eq!(map(protection, file), Some(libc::EPERM), "{protection}");
            }
            // SAFETY: the kernel chooses where, and nobody uses the page.
            let changed = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let at = libc::mmap(std::ptr::null_mut(), 4096, PROT_READ, flags, -1, 0);
                libc::mprotect(at, 4096, PROT_READ | PROT_EXEC)
            };
            assert_eq!(changed, -1);
        });
    }
}
