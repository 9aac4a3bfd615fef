//! What a system gets of us, where and with which permissions: `[package.metadata.deb]` of the crates that are packaged.
//!
//! `cargo deb` makes Debian packages of these tables, and `cargo xtask install` lays the same files into any root.
//! Invariant: there is no other list; a file that both would not install alike is an error when the table is read.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::shell;

/// What `cargo deb` takes for "wherever it was built".
const BUILT: &str = "target/release/";

/// A package of a system.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its name, which is not always its crate's.
    pub(crate) name: String,
    /// The crate that describes it.
    pub(crate) crate_name: String,
    /// What is in it.
    pub(crate) files: Vec<File>,
    /// What is the administrator's once it is there, by its place below the root.
    pub(crate) kept: Vec<PathBuf>,
}

/// A file of a package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Where it comes from.
    pub(crate) source: Source,
    /// Its place below the root.
    pub(crate) target: PathBuf,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// Where a file comes from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A program of this name, which is also its crate's.
    Program(String),
    /// A file of the checkout.
    Tree(PathBuf),
}

impl Package {
    /// Its programs, each named like its crate.
    pub(crate) fn programs(&self) -> Vec<&str> {
        let programs = self.files.iter().filter_map(|file| match &file.source {
            Source::Program(name) => Some(name.as_str()),
            Source::Tree(_) => None,
        });
        programs.collect()
    }
}

/// Every package of the workspace.
///
/// # Errors
/// A manifest that cannot be read, or an entry that could be read in two ways, by its manifest.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let root = shell::root();
    let workspace = manifest(&root.join("Cargo.toml"))?;
    let members = workspace["workspace"]["members"]
        .as_array()
        .context("Cargo.toml has no members")?;
    let mut packages = Vec::new();
    for member in members.iter().filter_map(Value::as_str) {
        let folder = root.join(member);
        let manifest = manifest(&folder.join("Cargo.toml"))?;
        let package =
            package(&manifest, &folder).with_context(|| format!("{member}/Cargo.toml"))?;
        packages.extend(package);
    }
    Ok(packages)
}

fn manifest(path: &Path) -> Result<Table> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse::<Table>()
        .with_context(|| format!("{} is no manifest", path.display()))
}

/// What the manifest of the crate in `folder` says of a package; `None` if it makes none.
fn package(manifest: &Table, folder: &Path) -> Result<Option<Package>> {
    let get = |keys: &[&str]| {
        let mut value = manifest.get("package")?;
        for key in keys {
            value = value.get(key)?;
        }
        Some(value)
    };
    let Some(deb) = get(&["metadata", "deb"]) else {
        return Ok(None);
    };
    let crate_name = get(&["name"]).and_then(Value::as_str).unwrap_or_default();
    let name = deb
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or(crate_name);
    let list = |key: &str| {
        deb.get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let files: Result<Vec<File>> = list("assets")
        .iter()
        .map(|asset| file(asset, folder))
        .collect();
    let kept = list("conf-files")
        .iter()
        .filter_map(Value::as_str)
        .map(|path| below_root(path.trim_start_matches('/')))
        .collect::<Result<Vec<PathBuf>>>()?;
    let files = files?;
    if files.is_empty() {
        bail!("the package {name} is empty");
    }
    for path in &kept {
        if !files.iter().any(|file| &file.target == path) {
            bail!("conf-files has {}, which no asset becomes", path.display());
        }
    }
    Ok(Some(Package {
        name: name.to_owned(),
        crate_name: crate_name.to_owned(),
        files,
        kept,
    }))
}

/// One line of a table: source, target, mode.
fn file(asset: &Value, folder: &Path) -> Result<File> {
    let words: Option<Vec<&str>> = asset
        .as_array()
        .map(|words| words.iter().filter_map(Value::as_str).collect());
    let Some([source, target, mode]) = words.as_deref() else {
        bail!("an asset is written as [\"source\", \"target\", \"mode\"], not {asset}");
    };
    if source.contains(['*', '?', '[']) {
        bail!("{source}: a pattern could take what nobody meant to install; name each file");
    }
    let mode = u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| mode & !0o777 == 0)
        .with_context(|| format!("{source}: the mode {mode:?} is not three octal digits"))?;
    let source_name = Path::new(source)
        .file_name()
        .with_context(|| format!("{source} is no file"))?;
    let target = if target.ends_with('/') {
        below_root(target)?.join(source_name)
    } else {
        below_root(target)?
    };
    let source = match source.strip_prefix(BUILT) {
        Some(program) if !program.contains('/') => Source::Program(program.to_owned()),
        Some(_) => bail!("{source}: only programs are taken from where they are built"),
        None => Source::Tree(folder.join(source)),
    };
    Ok(File {
        source,
        target,
        mode,
    })
}

/// A path that stays below whatever it is joined to.
fn below_root(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !plain || path.as_os_str().is_empty() {
        bail!(
            "{}: a target is written from the root, without / before it and without ..",
            path.display()
        );
    }
    Ok(path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Package>> {
        package(&text.parse().unwrap(), Path::new("/tree/daemon/x"))
    }

    fn complaint(assets: &str) -> String {
        let text = format!("[package]\nname = 'x'\n[package.metadata.deb]\nassets = [{assets}]\n");
        format!("{:#}", read(&text).unwrap_err())
    }

    #[test]
    fn a_table_is_read_as_cargo_deb_reads_it() {
        let text = "[package]\nname = 'x'\n[package.metadata.deb]\nname = 'y'\nconf-files = ['/etc/y/y.toml']\n\
            assets = [\n['target/release/x', 'usr/bin/', '755'],\n['../../s/y.toml', 'etc/y/y.toml', '640']]\n";
        let package = read(text).unwrap().unwrap();
        assert_eq!(
            (package.name.as_str(), package.crate_name.as_str()),
            ("y", "x")
        );
        assert_eq!(package.programs(), ["x"]);
        assert_eq!(package.kept, [Path::new("etc/y/y.toml")]);
        assert_eq!(package.files[0].target, Path::new("usr/bin/x"));
        assert_eq!(
            package.files[1],
            File {
                source: Source::Tree("/tree/daemon/x/../../s/y.toml".into()),
                target: "etc/y/y.toml".into(),
                mode: 0o640,
            }
        );
        assert!(read("[package]\nname = 'x'\n").unwrap().is_none());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (assets, word) in [
            ("", "empty"),
            ("['a', 'usr/bin/']", "written as"),
            ("{ source = 'a', dest = 'b' }", "written as"),
            ("['s/*', 'usr/share/', '644']", "pattern"),
            ("['s/a', 'usr/../etc/', '644']", "from the root"),
            ("['s/a', '/usr/', '644']", "from the root"),
            ("['s/a', 'usr/', '4755']", "octal"),
            ("['s/a', 'usr/', 'rw']", "octal"),
            ("['target/release/x/y', 'usr/', '644']", "only programs"),
        ] {
            let said = complaint(assets);
            assert!(said.contains(word), "{assets}: {said}");
        }
        let stray = "[package]\nname = 'x'\n[package.metadata.deb]\nconf-files = ['/etc/a']\n\
            assets = [['a', 'etc/b', '644']]\n";
        assert!(format!("{:#}", read(stray).unwrap_err()).contains("no asset becomes"));
    }

    #[test]
    fn every_file_that_is_installed_exists() {
        let packages = packages().unwrap();
        let names: Vec<&str> = packages
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        assert_eq!(names, ["andon", "andon-lab"]);
        for file in packages.iter().flat_map(|package| &package.files) {
            if let Source::Tree(path) = &file.source {
                assert!(path.is_file(), "{}", path.display());
            }
        }
    }
}
