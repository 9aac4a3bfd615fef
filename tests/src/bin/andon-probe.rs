//! Tries what somebody would try who has taken over `andond`, and says of each attempt what became of it.
//!
//! It is started as the daemon is: as the program of a copy of its unit, or with `--config`, by which each attempt first gives up
//! what the daemon gives up with that configuration, by the daemon's own code. Each attempt is a process of its own, since for
//! some the process is ended. Exit status 0: all were refused; 1: some were let through; 2: the daemon's own folders cannot be
//! used, so that refusals prove nothing.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use andon_confine::attempts::{ATTEMPTS, map_as_code};
use andond::config::Config;
use andond::confine::{self, Layer};
use andond::socket::Passed;
use clap::Parser;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// An attempt was let through.
const THROUGH: u8 = 0;
/// It was refused; what the system said is on standard output.
const REFUSED: u8 = 3;
/// It could not be made.
const BROKEN: u8 = 4;

/// Tries what a daemon that was taken over might do.
#[derive(Debug, Parser)]
struct Arguments {
    /// Give up first what the daemon gives up with this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder of the daemon's own, where it may write.
    #[arg(long, value_name = "DIRECTORY")]
    own: PathBuf,
    /// A file of somebody else that is not to be read; may be named several times.
    #[arg(long, value_name = "FILE")]
    secret: Vec<PathBuf>,
    /// A folder of somebody else that is not to be written to; may be named several times.
    #[arg(long, value_name = "DIRECTORY")]
    outside: Vec<PathBuf>,
    /// Also try what only the unit refuses, not the daemon's own sandbox.
    #[arg(long)]
    unit: bool,
    /// Make this attempt only, in this process.
    #[arg(long, hide = true)]
    attempt: Option<usize>,
}

type Attempt = Box<dyn Fn() -> io::Result<()>>;

/// Folders that no service has to write to.
const OUTSIDE: &[&str] = &[
    "/",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/andon",
    "/opt",
    "/run",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/tmp",
    "/sys/fs/cgroup",
];
/// Files that no service has to read.
const SECRETS: &[&str] = &["/proc/1/environ", "/proc/1/maps", "/proc/kcore"];
/// The same, where only the unit refuses it.
const SECRETS_OF_UNIT: &[&str] = &["/etc/shadow", "/proc/1/cmdline", "/proc/1/status"];
/// Folders of other users.
const HOMES: &[&str] = &["/root", "/home"];
/// Devices.
const DEVICES: &[&str] = &[
    "/dev/mem",
    "/dev/kmsg",
    "/dev/port",
    "/dev/fuse",
    "/dev/kvm",
    "/dev/loop-control",
    "/dev/net/tun",
    "/dev/vda",
    "/dev/sda",
    "/dev/nvme0n1",
    "/dev/mapper/control",
    "/dev/input/event0",
    "/dev/tty0",
    "/dev/uinput",
    "/dev/rtc0",
];

/// Everything that is tried, by what it is.
fn attempts(arguments: &Arguments) -> Vec<(String, Attempt)> {
    let mut all: Vec<(String, Attempt)> = Vec::new();
    let mut add = |name: String, attempt: Attempt| all.push((name, attempt));
    let outside = OUTSIDE
        .iter()
        .map(PathBuf::from)
        .chain(arguments.outside.iter().cloned());
    for folder in outside {
        let name = format!("write to {}", folder.display());
        add(name, Box::new(move || write(&folder)));
    }
    let of_unit = if arguments.unit { SECRETS_OF_UNIT } else { &[] };
    let secrets = SECRETS.iter().chain(of_unit).map(PathBuf::from);
    for file in secrets.chain(arguments.secret.iter().cloned()) {
        let name = format!("read {}", file.display());
        add(name, Box::new(move || read(&file)));
    }
    for home in HOMES {
        add(
            format!("list {home}"),
            Box::new(move || fs::read_dir(home).map(drop)),
        );
    }
    for device in DEVICES {
        let attempt = move || File::open(device).map(drop);
        add(format!("open {device}"), Box::new(attempt));
    }
    if arguments.unit {
        add("see other processes".to_owned(), Box::new(see_others));
    }
    let own = arguments.own.clone();
    add("make a device".to_owned(), Box::new(move || device(&own)));
    let own = arguments.own.clone();
    add(
        "map a file of its own as code".to_owned(),
        Box::new(move || code(&own)),
    );
    let own = arguments.own.clone();
    add(
        "make a link out of its folder".to_owned(),
        Box::new(move || {
            let link = own.join("probe-link");
            std::os::unix::fs::symlink("/etc/passwd", &link)?;
            fs::remove_file(link)
        }),
    );
    add(
        "run a program".to_owned(),
        Box::new(|| {
            // Replaces this process; were it let through, it would end well.
            Err(std::os::unix::process::CommandExt::exec(
                Command::new("/proc/self/exe").arg("--help"),
            ))
        }),
    );
    if arguments.config.is_some() {
        // The unit alone lets the configuration say which ports there are.
        add(
            "connect to a port that is not named".to_owned(),
            Box::new(|| match TcpStream::connect((Ipv4Addr::LOCALHOST, 9)) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
                other => other.map(drop),
            }),
        );
        add(
            "listen on a port that is not named".to_owned(),
            Box::new(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
        );
    }
    for &(name, attempt) in ATTEMPTS {
        add(name.to_owned(), Box::new(attempt));
    }
    all
}

fn write(folder: &Path) -> io::Result<()> {
    let path = folder.join(format!("andon-probe-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all(b"probe")?;
    fs::remove_file(path)
}

fn read(file: &Path) -> io::Result<()> {
    let mut byte = [0];
    io::Read::read(&mut File::open(file)?, &mut byte).map(drop)
}

/// Whether there is a process of another user among those that are shown.
fn see_others() -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
        let owner = std::os::unix::fs::MetadataExt::uid(&entry.metadata()?);
        if number.is_some() && owner != nix::unistd::getuid().as_raw() {
            return Ok(());
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

fn device(own: &Path) -> io::Result<()> {
    let path = own.join("probe-device");
    mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5))?;
    fs::remove_file(path)
}

fn code(own: &Path) -> io::Result<()> {
    let path = own.join("probe-code");
    fs::write(&path, [0xc3; 4096])?;
    let outcome = File::open(&path).and_then(|file| map_as_code(&file));
    fs::remove_file(path)?;
    outcome
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.attempt {
        Some(index) => ExitCode::from(attempt(&arguments, index)),
        None => all(&arguments),
    }
}

/// Gives up what the daemon would, and makes one attempt; without one of that number, uses the daemon's own folder.
fn attempt(arguments: &Arguments, index: usize) -> u8 {
    if let Some(path) = &arguments.config {
        let confined = Config::read(path)
            .map_err(|problems| problems.to_string())
            .and_then(|config| {
                confine::install(&config, path, &Passed::default())
                    .map_err(|refusal| refusal.to_string())
            });
        match confined {
            Ok(confined) => {
                if let Layer::Missing(why) = confined.landlock {
                    println!("{why}");
                    return BROKEN;
                }
                if let Layer::Missing(why) = confined.seccomp {
                    println!("{why}");
                    return BROKEN;
                }
            }
            Err(error) => {
                println!("{error}");
                return BROKEN;
            }
        }
    }
    let outcome = match attempts(arguments).get(index) {
        Some((_, attempt)) => attempt(),
        None => write(&arguments.own),
    };
    match outcome {
        Ok(()) => THROUGH,
        Err(error) => {
            println!("{error}");
            REFUSED
        }
    }
}

/// What became of an attempt in a process of its own: none if it was let through, else the system's answer.
fn apart(index: usize) -> io::Result<Option<String>> {
    let output = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg("--attempt")
        .arg(index.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(code) if code == i32::from(THROUGH) => Ok(None),
        Some(code) if code == i32::from(REFUSED) => Ok(Some(said)),
        Some(code) => Err(io::Error::other(format!("status {code}: {said}"))),
        None => {
            let signal = output.status.signal().unwrap_or(0);
            // SIGSYS is how the kernel ends who makes a call that is not his.
            if signal == nix::sys::signal::Signal::SIGSYS as i32 {
                Ok(Some("the process was ended".to_owned()))
            } else {
                Err(io::Error::other(format!("signal {signal}: {said}")))
            }
        }
    }
}

fn all(arguments: &Arguments) -> ExitCode {
    let attempts = attempts(arguments);
    // Beyond the last is what has to be let through.
    match apart(attempts.len()) {
        Ok(None) => println!("own        write to {}", arguments.own.display()),
        other => {
            println!("BROKEN     write to {}: {other:?}", arguments.own.display());
            return ExitCode::from(2);
        }
    }
    let (mut through, mut broken) = (0, 0);
    for (index, (name, _)) in attempts.iter().enumerate() {
        match apart(index) {
            Ok(Some(answer)) => println!("refused    {name}: {answer}"),
            Ok(None) => {
                through += 1;
                println!("LET THROUGH {name}");
            }
            Err(error) => {
                broken += 1;
                println!("BROKEN     {name}: {error}");
            }
        }
    }
    println!(
        "{} attempts, {through} let through, {broken} could not be made",
        attempts.len()
    );
    match (through, broken) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}
