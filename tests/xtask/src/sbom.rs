//! `cargo xtask sbom`: what is inside our programs, as a CycloneDX 1.5 document.
//!
//! The set and its edges are those of `cargo tree` for the programs of one package and one target, so that a crate that only
//! tests or other systems need is not in it. What runs while we build and is not in the programs (procedural macros, and
//! what only they need) has the scope `excluded`. Invariant: the same checkout gives the same bytes, and every crate from
//! outside has a package URL, a licence and the digest that Cargo.lock holds it to; a document that has not is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::assets::{self, Package};
use crate::shell;

/// What is listed.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The package whose programs are listed.
    #[arg(long, value_name = "NAME", default_value = "andon")]
    package: String,
    /// The system that they are built for [default: this one].
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Where to write it [default: standard output].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A crate by name and version.
type Id = (String, String);

/// What `cargo tree` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tree {
    /// What each crate depends on.
    edges: BTreeMap<Id, BTreeSet<Id>>,
    /// Which run while we build.
    macros: BTreeSet<Id>,
    /// Where the tree begins.
    roots: Vec<Id>,
}

/// Writes the document.
///
/// # Errors
/// A package that there is not, a dependency that has no licence or digest.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let packages = assets::packages()?;
    let package = packages
        .iter()
        .find(|package| package.name == options.package)
        .with_context(|| format!("there is no package {}", options.package))?;
    let document = document(package, options.target.as_deref())?;
    let text = format!("{document:#}\n");
    match &options.output {
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => print!("{text}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn document(package: &Package, target: Option<&str>) -> Result<Value> {
    let target = match target {
        Some(target) => target.to_owned(),
        None => host()?,
    };
    let tree = tree(package, &target)?;
    let metadata: Value = serde_json::from_str(&shell::output(&mut shell::cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &target,
    ]))?)?;
    let lock = fs::read_to_string(shell::root().join("Cargo.lock"))?;
    let digests = digests(&lock)?;
    let mut known = BTreeMap::new();
    for described in metadata["packages"].as_array().into_iter().flatten() {
        known.insert(id(described)?, described);
    }
    let inside = tree.inside();
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for (crate_id, edges) in &tree.edges {
        let described = known
            .get(crate_id)
            .with_context(|| format!("cargo metadata does not know {}", crate_id.0))?;
        let is_program = tree.roots.contains(crate_id);
        components.push(component(
            crate_id,
            described,
            &digests,
            is_program,
            inside.contains(crate_id),
        ));
        let edges: Vec<String> = edges
            .iter()
            .map(|edge| reference(edge, known.get(edge).copied()))
            .collect();
        dependencies.push(json!({
            "ref": reference(crate_id, Some(described)),
            "dependsOn": edges,
        }));
    }
    let version = env!("CARGO_PKG_VERSION");
    // A package may have the name of a program in it.
    let whole = format!("package:{}@{version}", package.name);
    let roots: Vec<String> = tree
        .roots
        .iter()
        .map(|root| reference(root, known.get(root).copied()))
        .collect();
    dependencies.push(json!({"ref": whole, "dependsOn": roots}));
    let mut about = json!({
        "tools": {"components": [{"type": "application", "name": "cargo xtask sbom", "version": version}]},
        "component": {
            "type": "application",
            "bom-ref": whole,
            "name": package.name,
            "version": version,
            "licenses": [{"expression": "Apache-2.0 OR MIT"}],
        },
        "properties": [{"name": "andon:target", "value": target}],
    });
    if let Some(time) = time() {
        about["timestamp"] = json!(time);
    }
    let mut document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": about,
        "components": components,
        "dependencies": dependencies,
    });
    document["serialNumber"] = json!(serial(&document.to_string()));
    let complaints = complaints(&document);
    if !complaints.is_empty() {
        bail!("the list is not whole:\n{}", complaints.join("\n"));
    }
    Ok(document)
}

/// This machine's target.
fn host() -> Result<String> {
    let said = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say its host")?.to_owned())
}

fn id(described: &Value) -> Result<Id> {
    let text = |key: &str| described[key].as_str().map(str::to_owned);
    text("name")
        .zip(text("version"))
        .context("cargo metadata has a package without a name")
}

/// The normal dependencies of the package's programs.
fn tree(package: &Package, target: &str) -> Result<Tree> {
    let mut command = shell::cargo(&["tree", "--locked", "--edges", "normal", "--prefix", "depth"]);
    command.args(["--format", " {p}", "--target", target]);
    for program in package.programs() {
        command.args(["--package", program]);
    }
    read_tree(&shell::output(&mut command)?)
}

/// Reads lines of depth, name, version and remarks. What is below a crate stands where it comes first.
fn read_tree(text: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut above: Vec<Id> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let parts = (words.next(), words.next(), words.next());
        let (Some(depth), Some(name), Some(version)) = parts else {
            bail!("cargo tree says {line:?}");
        };
        let depth: usize = depth
            .parse()
            .with_context(|| format!("cargo tree says {line:?}"))?;
        let version = version.trim_start_matches('v');
        let id = (name.to_owned(), version.to_owned());
        if words.any(|word| word == "(proc-macro)") {
            tree.macros.insert(id.clone());
        }
        tree.edges.entry(id.clone()).or_default();
        above.truncate(depth);
        match above.last() {
            Some(parent) => {
                let edges = tree.edges.entry(parent.clone()).or_default();
                edges.insert(id.clone());
            }
            None => tree.roots.push(id.clone()),
        }
        above.push(id);
    }
    Ok(tree)
}

impl Tree {
    /// What is in the programs, rather than needed to build them.
    fn inside(&self) -> BTreeSet<Id> {
        let mut found: BTreeSet<Id> = BTreeSet::new();
        let mut next = self.roots.clone();
        while let Some(id) = next.pop() {
            if self.macros.contains(&id) || !found.insert(id.clone()) {
                continue;
            }
            next.extend(self.edges.get(&id).into_iter().flatten().cloned());
        }
        found
    }
}

/// The digests that the lock holds crates from outside to.
fn digests(lock: &str) -> Result<BTreeMap<Id, String>> {
    let lock: toml::Table = lock.parse().context("Cargo.lock")?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let mut digests = BTreeMap::new();
    for package in packages.into_iter().flatten() {
        let text = |key: &str| package.get(key)?.as_str().map(str::to_owned);
        if let (Some(name), Some(version), Some(digest)) =
            (text("name"), text("version"), text("checksum"))
        {
            digests.insert((name, version), digest);
        }
    }
    Ok(digests)
}

/// Whether a crate comes from outside: ours have no registry, and no name there that anybody may take for them.
fn is_foreign(described: &Value) -> bool {
    !described["source"].is_null()
}

/// How other parts of the document call a crate.
fn reference(id: &Id, described: Option<&Value>) -> String {
    if described.is_some_and(is_foreign) {
        url(id)
    } else {
        format!("{}@{}", id.0, id.1)
    }
}

/// A package URL.
fn url((name, version): &Id) -> String {
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

fn component(
    id: &Id,
    described: &Value,
    digests: &BTreeMap<Id, String>,
    is_program: bool,
    is_inside: bool,
) -> Value {
    let mut component = json!({
        "type": if is_program { "application" } else { "library" },
        "bom-ref": reference(id, Some(described)),
        "name": id.0,
        "version": id.1,
        "scope": if is_inside { "required" } else { "excluded" },
    });
    if let Some(text) = described["description"].as_str() {
        component["description"] = json!(text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    if let Some(licence) = described["license"].as_str() {
        // Crates of before SPDX expressions separate a choice with a slash.
        let expression = licence.replace(" / ", "/").replace('/', " OR ");
        component["licenses"] = json!([{"expression": expression}]);
    } else if let Some(file) = described["license_file"].as_str() {
        component["licenses"] = json!([{"license": {"name": format!("see {file} of the crate")}}]);
    }
    if is_foreign(described) {
        component["purl"] = json!(url(id));
        if let Some(digest) = digests.get(id) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": digest}]);
        }
    }
    if let Some(address) = described["repository"].as_str() {
        component["externalReferences"] = json!([{"type": "vcs", "url": address}]);
    }
    component
}

/// When this was made: what the builder says, else when the checkout's commit was made.
fn time() -> Option<String> {
    let mut command = Command::new("git");
    command.current_dir(shell::root());
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => {
            command = Command::new("date");
            command.args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"]);
        }
        Err(_) => {
            command.args(["log", "-1", "--format=%cI"]);
        }
    }
    let said = shell::output(&mut command).ok()?;
    Some(said.trim().to_owned()).filter(|time| !time.is_empty())
}

/// A number that follows from the contents: a UUID of version 8 (RFC 9562), for numbers made in a way of one's own.
fn serial(contents: &str) -> String {
    let digest = Sha256::digest(contents.as_bytes());
    let mut bytes: Vec<u8> = digest.iter().copied().take(16).collect();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "urn:uuid:{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// What keeps the document from being whole.
fn complaints(document: &Value) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut references: BTreeSet<&str> = document["metadata"]["component"]["bom-ref"]
        .as_str()
        .into_iter()
        .collect();
    for component in document["components"].as_array().into_iter().flatten() {
        let reference = component["bom-ref"].as_str().unwrap_or_default();
        if reference.is_empty() || !references.insert(reference) {
            complaints.push(format!("{reference:?} is not the only one of its name"));
        }
        if component["licenses"].as_array().is_none_or(Vec::is_empty) {
            complaints.push(format!("{reference} has no licence"));
        }
        let digest = component["hashes"][0]["content"]
            .as_str()
            .unwrap_or_default();
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        if component["purl"].is_string() && !is_digest {
            complaints.push(format!("{reference} has no digest"));
        }
    }
    for edges in document["dependencies"].as_array().into_iter().flatten() {
        let ends = edges["dependsOn"].as_array().into_iter().flatten();
        for end in std::iter::once(&edges["ref"]).chain(ends) {
            let end = end.as_str().unwrap_or_default();
            if !references.contains(end) {
                complaints.push(format!("{end:?} is depended on, and not there"));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_list_is_whole_and_has_what_is_linked_alone() {
        let packages = assets::packages().unwrap();
        let andon = packages
            .iter()
            .find(|package| package.name == "andon")
            .unwrap();
        let document = document(andon, None).unwrap();
        assert_eq!(
            (&document["bomFormat"], &document["specVersion"]),
            (&json!("CycloneDX"), &json!("1.5"))
        );
        assert!(complaints(&document).is_empty());
        let components = document["components"].as_array().unwrap();
        let scope = |name: &str| {
            let found = components
                .iter()
                .find(|component| component["name"] == name)?;
            found["scope"].as_str()
        };
        for name in [
            "andond",
            "andonctl",
            "andon-engine",
            "tokio",
            "rustls",
            "serde",
        ] {
            assert_eq!(scope(name), Some("required"), "{name}");
        }
        assert_eq!(scope("serde_derive"), Some("excluded"));
        // Of tests, of andon-lab, and of other systems.
        for name in [
            "tempfile",
            "proptest",
            "candle-core",
            "windows-sys",
            "rumqttd",
        ] {
            assert_eq!(scope(name), None, "{name}");
        }
        let serde = components
            .iter()
            .find(|component| component["name"] == "serde")
            .unwrap();
        let version = serde["version"].as_str().unwrap();
        assert_eq!(serde["purl"], format!("pkg:cargo/serde@{version}"));
        assert_eq!(serde["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let ours = components
            .iter()
            .find(|component| component["name"] == "andon-engine")
            .unwrap();
        assert!(ours["purl"].is_null() && ours["hashes"].is_null());
        let programs = document["dependencies"].as_array().unwrap().iter();
        let whole = programs
            .into_iter()
            .find(|edges| edges["ref"] == document["metadata"]["component"]["bom-ref"])
            .unwrap();
        assert_eq!(
            whole["dependsOn"].as_array().unwrap().len(),
            andon.programs().len()
        );
        assert_eq!(document, super::document(andon, None).unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let document = json!({
            "metadata": {"component": {"bom-ref": "w"}},
            "components": [
                {"bom-ref": "a", "licenses": [{"expression": "MIT"}], "purl": "pkg:cargo/a@1", "hashes": [{"content": "00"}]},
                {"bom-ref": "b", "licenses": []},
                {"bom-ref": "a", "licenses": [{"expression": "MIT"}]},
            ],
            "dependencies": [{"ref": "w", "dependsOn": ["a", "c"]}],
        });
        let complaints = complaints(&document).join("\n");
        for words in [
            "a has no digest",
            "b has no licence",
            "\"a\" is not the only",
            "\"c\" is depended on",
        ] {
            assert!(complaints.contains(words), "{words}: {complaints}");
        }
    }

    #[test]
    fn a_tree_is_read_with_what_runs_while_we_build_apart() {
        let text = "0 p v1.0.0 (/x)\n1 a v2.0.0\n2 b v3.0.0+x\n1 m v1.0.0 (proc-macro)\n2 syn v2.0.0\n1 b v3.0.0+x (*)\n\n0 q v1.0.0 (/x)\n1 m v1.0.0 (proc-macro) (*)\n";
        let tree = read_tree(text).unwrap();
        let id = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(tree.roots, [id("p", "1.0.0"), id("q", "1.0.0")]);
        let below: Vec<&str> = tree.edges[&id("p", "1.0.0")]
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(below, ["a", "b", "m"]);
        let inside: Vec<String> = tree.inside().into_iter().map(|(name, _)| name).collect();
        assert_eq!(inside, ["a", "b", "p", "q"]);
        assert_eq!(tree.edges.len(), 6);
        assert_eq!(url(&id("b", "3.0.0+x")), "pkg:cargo/b@3.0.0%2Bx");
        assert!(read_tree("x\n").is_err());
    }
}
