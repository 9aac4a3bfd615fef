//! `cargo xtask install`: the files of our packages, laid into a root.
//!
//! It is what an image's recipe and a system without dpkg use; users, folders and units are then made by systemd from the
//! files that lie there. Invariant: a file appears whole or not at all, with the permissions of the table whatever the
//! umask, and what is the administrator's is never overwritten.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::assets::{self, File, Package, Source};
use crate::shell;

/// What is installed, and where to.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The root to install into: an image's folder, or / for this machine.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Where the programs are [default: built here, optimized].
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Which package; may be given several times.
    #[arg(long = "package", value_name = "NAME", default_value = "andon")]
    packages: Vec<String>,
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    /// It was put there, or is there as it should be.
    Installed,
    /// The administrator's own is there, and stays.
    Kept,
}

/// Installs the packages, and says what is left to do.
///
/// # Errors
/// A package that there is not, a program that is not built, a root that cannot be written to.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let known = assets::packages()?;
    let mut wanted = Vec::new();
    for name in &options.packages {
        let package = known.iter().find(|package| &package.name == name);
        wanted.push(package.with_context(|| {
            let names: Vec<&str> = known.iter().map(|package| package.name.as_str()).collect();
            format!("there is no package {name}; known are {}", names.join(", "))
        })?);
    }
    let programs = match &options.programs {
        Some(folder) => folder.clone(),
        None => build(&wanted)?,
    };
    fs::create_dir_all(&options.root)
        .with_context(|| format!("cannot make {}", options.root.display()))?;
    for package in wanted {
        install(package, &options.root, &programs)?;
    }
    let root = match options.root.as_path() {
        root if root == Path::new("/") => String::new(),
        root => format!(" --root={}", root.display()),
    };
    println!(
        "next: systemd-sysusers{root} andon.conf; systemd-tmpfiles{root} --create andon.conf; \
         journalctl{root} --update-catalog; systemctl{root} preset andond.socket andond.service"
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs of the packages as they are shipped; returns where they are.
pub(crate) fn build(packages: &[&Package]) -> Result<PathBuf> {
    let mut cargo = shell::cargo(&["build", "--release", "--locked"]);
    for program in packages.iter().flat_map(|package| package.programs()) {
        cargo.args(["--package", program]);
    }
    shell::run(&mut cargo)?;
    Ok(shell::target_directory().join("release"))
}

/// Lays the files of `package` into `root`.
///
/// # Errors
/// The first file that cannot be read or written.
pub(crate) fn install(package: &Package, root: &Path, programs: &Path) -> Result<()> {
    for file in &package.files {
        let done = place(file, package.kept.contains(&file.target), root, programs)
            .with_context(|| format!("{} of {}", file.target.display(), package.name))?;
        let note = match done {
            Done::Installed => "",
            Done::Kept => "  (kept as it is here)",
        };
        println!("  {:03o} /{}{note}", file.mode, file.target.display());
    }
    Ok(())
}

fn place(file: &File, kept: bool, root: &Path, programs: &Path) -> Result<Done> {
    let source = match &file.source {
        Source::Program(name) => programs.join(name),
        Source::Tree(path) => path.clone(),
    };
    let target = root.join(&file.target);
    let folder = target.parent().context("a target has a folder")?;
    make_folder(folder)?;
    // A link would lead out of a root that is not this machine's.
    let there = fs::symlink_metadata(&target);
    match &there {
        Ok(there) if kept && there.is_file() => return Ok(Done::Kept),
        Ok(there) if there.is_dir() => bail!("{} is a folder", target.display()),
        _ => {}
    }
    let new = folder.join(format!(
        ".{}.new",
        target.file_name().unwrap_or_default().to_string_lossy()
    ));
    let bytes = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let written = write_whole(&new, &bytes, file.mode).and_then(|()| fs::rename(&new, &target));
    if written.is_err() {
        // The first error is the one to tell.
        drop(fs::remove_file(&new));
    }
    written.with_context(|| format!("cannot write {}", target.display()))?;
    Ok(Done::Installed)
}

/// Makes a folder and those above it, readable by everybody whatever the umask.
fn make_folder(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|path| !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        fs::create_dir(path)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = fs::File::create_new(path)?;
    io::copy(&mut &*bytes, &mut &file)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test alone, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path =
                std::env::temp_dir().join(format!("andon-install-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_shipped_is_installed_again_and_the_administrators_stays() {
        let folder = Folder::new("again");
        let (root, programs) = (folder.0.join("root"), folder.0.join("programs"));
        fs::create_dir_all(&programs).unwrap();
        let packages = assets::packages().unwrap();
        let andon = packages
            .iter()
            .find(|package| package.name == "andon")
            .unwrap();
        for program in andon.programs() {
            fs::write(programs.join(program), program).unwrap();
        }
        install(andon, &root, &programs).unwrap();
        for file in &andon.files {
            assert_eq!(
                mode(&root.join(&file.target)),
                file.mode,
                "{}",
                file.target.display()
            );
        }
        assert_eq!(mode(&root.join("usr/lib")), 0o755);
        assert_eq!(fs::read(root.join("usr/bin/andond")).unwrap(), b"andond");

        // An upgrade.
        let config = root.join("etc/andon/andond.toml");
        fs::write(&config, "# mine\n").unwrap();
        fs::write(programs.join("andond"), "newer").unwrap();
        install(andon, &root, &programs).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
        assert_eq!(fs::read(root.join("usr/bin/andond")).unwrap(), b"newer");
        let left: Vec<_> = fs::read_dir(root.join("usr/bin")).unwrap().collect();
        assert_eq!(left.len(), andon.programs().len(), "{left:?}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named_and_nothing_is_half_there() {
        let folder = Folder::new("absent");
        let root = folder.0.join("root");
        let packages = assets::packages().unwrap();
        let error = install(&packages[0], &root, &folder.0).unwrap_err();
        assert!(format!("{error:#}").contains("andond"), "{error:#}");
        assert_eq!(fs::read_dir(root.join("usr/bin")).unwrap().count(), 0);
    }
}
