//! What somebody would try who has taken over the daemon, as far as it takes calls of the system that nothing else here makes:
//! for the program that probes a sandbox.
//!
//! Each is made so that nothing comes of it where it is let through: its arguments are such that the kernel looks at them only
//! after it has decided who may. The caller makes each in a process of its own, since for some the process is ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

use libc::{c_int, c_long};

/// One attempt. `Ok` if it was let through.
pub type Attempt = fn() -> io::Result<()>;

/// All of them, by what is tried.
pub const ATTEMPTS: &[(&str, Attempt)] = &[
    ("make a process", fork),
    ("trace another process", trace),
    ("read another process's memory", read_memory),
    ("take another process's descriptor", || {
        refused(&[libc::SYS_pidfd_getfd, -1, 0, 0])
    }),
    ("signal another process", signal),
    ("map writable and executable memory", || {
        map(-1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)
    }),
    ("make written memory executable", make_executable),
    ("map an anonymous file as code", anonymous_code),
    ("load a module", || {
        refused(&[libc::SYS_init_module, 0, 0, 0])
    }),
    ("load a module's file", || {
        refused(&[libc::SYS_finit_module, -1, 0, 0])
    }),
    ("remove a module", || {
        refused(&[libc::SYS_delete_module, 0, 0])
    }),
    ("load another kernel", || {
        refused(&[libc::SYS_kexec_load, 0, 0, 0, -1])
    }),
    ("load code into the kernel (bpf)", || {
        refused(&[libc::SYS_bpf, -1, 0, 0])
    }),
    ("watch the processor's events", || {
        refused(&[libc::SYS_perf_event_open, 0, 0, -1, -1, 0])
    }),
    ("handle page faults", || {
        refused(&[libc::SYS_userfaultfd, -1])
    }),
    ("make a ring of calls (io_uring)", || {
        refused(&[libc::SYS_io_uring_setup, 0, 0])
    }),
    ("use the kernel's keys", || {
        refused(&[
            libc::SYS_keyctl,
            0,
            c_long::from(libc::KEY_SPEC_SESSION_KEYRING),
            0,
        ])
    }),
    ("add a key", || refused(&[libc::SYS_add_key, 0, 0, 0, 0, 0])),
    ("restart the machine", || {
        refused(&[libc::SYS_reboot, 0, 0, 0, 0])
    }),
    ("name the machine", || {
        refused(&[libc::SYS_sethostname, 0, -1])
    }),
    ("read the kernel's log", || {
        refused(&[libc::SYS_syslog, 3, 0, 0])
    }),
    ("swap to a file", || refused(&[libc::SYS_swapon, 0, 0])),
    ("mount", || refused(&[libc::SYS_mount, 0, 0, 0, 0, 0])),
    ("unmount", || refused(&[libc::SYS_umount2, 0, -1])),
    ("open a file system", || refused(&[libc::SYS_fsopen, 0, 0])),
    ("change the root", || {
        refused(&[libc::SYS_chroot, c"/".as_ptr() as c_long])
    }),
    ("exchange the root", || {
        refused(&[libc::SYS_pivot_root, 0, 0])
    }),
    ("open a file by its handle", || {
        refused(&[libc::SYS_open_by_handle_at, -1, 0, 0])
    }),
    ("get users of its own", || {
        refused(&[libc::SYS_unshare, libc::CLONE_NEWUSER.into()])
    }),
    ("get mounts of its own", || {
        refused(&[libc::SYS_unshare, libc::CLONE_NEWNS.into()])
    }),
    ("enter another's namespace", || {
        refused(&[libc::SYS_setns, -1, 0])
    }),
    ("become another user", || {
        refused(&[libc::SYS_setuid, 65_534])
    }),
    ("become another group", || {
        refused(&[libc::SYS_setgid, 65_534])
    }),
    ("join groups", || refused(&[libc::SYS_setgroups, 0, 0])),
    ("have readable memory be executable", || {
        refused(&[libc::SYS_personality, 0x0040_0000])
    }),
    ("open a raw socket", || {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("open a socket for echoes", || {
        socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)
    }),
    ("open a packet socket", || {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
    }),
    ("open a netlink socket", || {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)
    }),
    ("open a socket of the kernel's ciphers", || {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    }),
    ("open a socket to the host of a machine", || {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
    }),
    ("open a TCP socket of many paths", || {
        socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
];

/// Makes a call of whose arguments nothing can come.
fn refused(call: &[c_long]) -> io::Result<()> {
    let at = |index: usize| call.get(index).copied().unwrap_or(0);
    // SAFETY: every pointer among the arguments is null or to a constant string, every descriptor is none, every length is of
    // none: there is nothing of this process that the kernel would change beyond what the attempt says, and the process ends
    // after it.
    let answer = unsafe { libc::syscall(at(0), at(1), at(2), at(3), at(4), at(5)) };
    if answer != -1 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP) => Err(error),
        // The kernel went on to look at the arguments.
        _ => Ok(()),
    }
}

fn checked(answer: c_int) -> io::Result<()> {
    if answer == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn fork() -> io::Result<()> {
    // SAFETY: the new process ends at once, without any of what the end of a program runs.
    unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => {
                checked(child)?;
                checked(libc::waitpid(child, ptr::null_mut(), 0))
            }
        }
    }
}

fn parent() -> libc::pid_t {
    // SAFETY: it asks for a number.
    unsafe { libc::getppid() }
}

fn trace() -> io::Result<()> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: this does not stop the other, and ends with this process; no memory is handed over.
    let answer = unsafe { libc::ptrace(libc::PTRACE_SEIZE, parent(), nothing, nothing) };
    checked(answer.try_into().unwrap_or(0))
}

fn read_memory() -> io::Result<()> {
    let mut byte = 0u8;
    let here = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let there = libc::iovec {
        iov_base: ptr::null_mut(),
        iov_len: 1,
    };
    // SAFETY: there is room for one byte here; where it would come from is the other's affair.
    let answer =
        unsafe { libc::process_vm_readv(parent(), &raw const here, 1, &raw const there, 1, 0) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It may be read, and at that address is nothing.
        Some(libc::EFAULT) => Ok(()),
        _ if answer == -1 => Err(error),
        _ => Ok(()),
    }
}

fn signal() -> io::Result<()> {
    // SAFETY: signal 0 only asks whether it may be sent.
    checked(unsafe { libc::kill(parent(), 0) })
}

/// Maps a page of a file, or of none.
fn map(fd: c_int, protection: c_int) -> io::Result<()> {
    let flags = if fd == -1 {
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
    } else {
        libc::MAP_PRIVATE
    };
    // SAFETY: the kernel chooses where, and nobody uses the page.
    let at = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Maps the first page of a file as code.
///
/// # Errors
/// It was not let through.
pub fn map_as_code(file: &File) -> io::Result<()> {
    map(file.as_raw_fd(), libc::PROT_READ | libc::PROT_EXEC)
}

fn make_executable() -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses where; the page is written to and protected within its bounds, and used by nobody else.
    unsafe {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(ptr::null_mut(), 4096, writable, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        at.cast::<u8>().write_volatile(0xc3);
        checked(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC))
    }
}

fn anonymous_code() -> io::Result<()> {
    // SAFETY: the name is a constant string; the descriptor that is made belongs to nobody else.
    let file = unsafe {
        let fd = libc::memfd_create(c"probe".as_ptr(), 0);
        checked(fd)?;
        File::from(OwnedFd::from_raw_fd(fd))
    };
    file.set_len(4096)?;
    map_as_code(&file)
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<()> {
    // SAFETY: it takes numbers, and the descriptor is closed with the process.
    checked(unsafe { libc::socket(family, kind, protocol) })
}
