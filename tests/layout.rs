//! What the repository promises about itself, checked on its manifests and sources.
//!
//! Each rule is a function from a [`Tree`] to the violations it finds. The real checkout must have
//! none, and a made-up tree beside each rule must have one: a rule that cannot fail checks nothing.

#![forbid(unsafe_code)]

#[path = "layout/modules.rs"]
mod modules;

use andon_tests::source::{Tree, code_only, repository_root};
use toml::{Table, Value};

/// Our crates and what each may depend on, folder by folder; an entry ending in `/` is a whole shelf.
/// This is the drawing "Who may know whom": lines run downwards, never back.
const DRAWING: &[(&str, &[&str])] = &[
    ("daemon/andonctl", &["daemon/wire"]),
    (
        "daemon/andond",
        &[
            "daemon/engine",
            "daemon/policy",
            "daemon/wire",
            "ffi/confine",
            "ffi/os",
        ],
    ),
    (
        "daemon/lab",
        &["daemon/engine", "daemon/policy", "kernels", "ffi/os"],
    ),
    ("daemon/engine", &["kernels", "ffi/"]),
    ("daemon/policy", &["daemon/wire"]),
    ("daemon/wire", &[]),
    ("ffi/confine", &[]),
    ("ffi/cuda", &[]),
    ("ffi/os", &[]),
    ("kernels", &[]),
    ("tests", &["daemon/", "ffi/", "kernels", "tests/cuda"]),
    ("tests/cuda", &["daemon/engine", "ffi/cuda", "kernels"]),
    ("tests/fuzz", &["daemon/", "ffi/"]),
    ("tests/sim", &["daemon/policy", "daemon/wire"]),
    ("tests/xtask", &[]),
];

/// Sockets and an async runtime belong to the daemon alone; the tests stand in for its clients.
const ASYNC_CRATES: &[&str] = &["tokio", "axum", "hyper", "rumqttc", "async-std", "smol"];
const ASYNC_FOLDERS: &[&str] = &["daemon/andond", "tests", "tests/fuzz", "tests/xtask"];

/// The crates that a client without an operating system builds.
const NO_STD_FOLDERS: &[&str] = &["daemon/policy", "daemon/wire", "kernels"];

/// Where the word may stand: instruction sets, casts of blocks, dispatch, disjoint tiles, foreign code.
const UNSAFE_ADDRESSES: &[&str] = &[
    "kernels/src/arch/",
    "kernels/src/block/",
    "kernels/src/table.rs",
    "kernels/src/pieces.rs",
    "kernels/src/tile.rs",
    "ffi/",
];

/// Where operations state their contracts: the type of a pointer to an unsafe function does nothing by itself.
const SIGNATURES: &str = "kernels/src/op/";

/// The folders of the project, and the files that some tool insists on finding beside them.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "daemon",
    "deny.toml",
    "ffi",
    "kernels",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "systemd",
    "tests",
    "yocto",
];

/// A source file longer than this is more than one concept.
const SOURCE_LINES_MAX: usize = 1000;

/// A tracked file longer than this belongs in a package or a cache.
const FILE_BYTES_MAX: u64 = 1_000_000;

/// The weights that programs carry, and their bound: the one kind of weights that is here.
const WEIGHTS: &str = "daemon/policy/weights/router.weights";
const WEIGHTS_BYTES_MAX: u64 = 3_000_000;

/// Where a line is and what is wrong with it.
type Violations = Vec<String>;

#[test]
fn the_checkout_keeps_every_rule() {
    let tree = Tree::read(&repository_root()).expect("the checkout can be read");
    assert!(tree.has("Cargo.toml"), "not the root of the workspace");
    let violations: Violations = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    assert!(
        violations.is_empty(),
        "{} violations:\n{}",
        violations.len(),
        violations.join("\n")
    );
}

const RULES: &[fn(&Tree) -> Violations] = &[
    edges,
    async_only_in_the_daemon,
    manifests_inherit,
    unsafe_at_its_addresses,
    forbid_unsafe_in_crate_roots,
    no_std_crates,
    modules::orphans,
    top_level,
    leftovers,
    machine_paths,
    tabs,
    lengths,
    links,
    manual,
    shipped,
];

// ---------------------------------------------------------------------------------- manifests

/// A crate of ours: its folder, its package name and its manifest.
struct Package<'a> {
    folder: &'a str,
    name: String,
    manifest: Table,
}

/// Every crate of the workspace, and what could not be read as one.
fn packages(tree: &Tree) -> (Vec<Package<'_>>, Violations) {
    let mut packages = Vec::new();
    let mut broken = Violations::new();
    for (path, file) in tree.files() {
        let Some(folder) = path.strip_suffix("/Cargo.toml") else {
            continue;
        };
        match file.text.parse::<Table>() {
            Ok(manifest) => {
                let name = manifest
                    .get("package")
                    .and_then(|p| p.get("name"))
                    .and_then(Value::as_str);
                packages.push(Package {
                    folder,
                    name: name.unwrap_or(folder).to_owned(),
                    manifest,
                });
            }
            Err(error) => broken.push(format!("{path}: {error}")),
        }
    }
    (packages, broken)
}

/// Package names that `manifest` depends on, whatever the kind of dependency or the target.
fn dependencies(manifest: &Table, workspace: &Table) -> Vec<String> {
    const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
    let mut tables: Vec<&Table> = KINDS
        .iter()
        .filter_map(|kind| manifest.get(*kind)?.as_table())
        .collect();
    for target in manifest
        .get("target")
        .and_then(Value::as_table)
        .into_iter()
        .flat_map(Table::values)
    {
        tables.extend(KINDS.iter().filter_map(|kind| target.get(kind)?.as_table()));
    }
    let mut names = Vec::new();
    for (key, value) in tables.into_iter().flatten() {
        let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
        let declared = if inherited {
            workspace.get(key).unwrap_or(value)
        } else {
            value
        };
        let renamed = declared.get("package").and_then(Value::as_str);
        names.push(renamed.unwrap_or(key).to_owned());
    }
    names
}

fn workspace_dependencies(tree: &Tree) -> Table {
    let root = tree
        .text("Cargo.toml")
        .and_then(|text| text.parse::<Table>().ok())
        .unwrap_or_default();
    let table = root
        .get("workspace")
        .and_then(|w| w.get("dependencies"))
        .and_then(Value::as_table);
    table.cloned().unwrap_or_default()
}

fn edges(tree: &Tree) -> Violations {
    let workspace = workspace_dependencies(tree);
    let (packages, mut violations) = packages(tree);
    for package in &packages {
        let folder = package.folder;
        let Some((_, allowed)) = DRAWING.iter().find(|(name, _)| *name == folder) else {
            violations.push(format!(
                "{folder}/Cargo.toml: a crate that the drawing does not have"
            ));
            continue;
        };
        for name in dependencies(&package.manifest, &workspace) {
            let Some(to) = packages.iter().find(|other| other.name == name) else {
                continue;
            };
            let known = allowed.iter().any(|entry| {
                *entry == to.folder || (entry.ends_with('/') && to.folder.starts_with(entry))
            });
            if !known {
                violations.push(format!("{folder}/Cargo.toml: may not know {name}"));
            }
        }
    }
    violations
}

fn async_only_in_the_daemon(tree: &Tree) -> Violations {
    let workspace = workspace_dependencies(tree);
    let (packages, _) = packages(tree);
    let outside = packages
        .iter()
        .filter(|package| !ASYNC_FOLDERS.contains(&package.folder));
    outside
        .flat_map(|package| {
            dependencies(&package.manifest, &workspace)
                .into_iter()
                .filter(|name| ASYNC_CRATES.contains(&name.as_str()))
                .map(|name| format!("{}/Cargo.toml: {name} belongs to andond", package.folder))
        })
        .collect()
}

/// Edition, licence and lints are said once, in the workspace.
fn manifests_inherit(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for package in packages(tree).0 {
        let inherits = |value: Option<&Value>| {
            value
                .and_then(|v| v.get("workspace"))
                .and_then(Value::as_bool)
                == Some(true)
        };
        for key in ["version", "edition", "rust-version", "license"] {
            if !inherits(package.manifest.get("package").and_then(|p| p.get(key))) {
                violations.push(format!(
                    "{}/Cargo.toml: {key} is not the workspace's",
                    package.folder
                ));
            }
        }
        if !inherits(package.manifest.get("lints")) {
            violations.push(format!(
                "{}/Cargo.toml: the workspace's lints are not in force",
                package.folder
            ));
        }
    }
    violations
}

#[test]
fn edges_finds_what_the_drawing_does_not_have() {
    const ROOT: &str = "[workspace.dependencies]\n\
        andon-wire = { path = 'daemon/wire' }\n\
        quiet = { package = 'andon-wire', path = 'daemon/wire' }\n";
    const WIRE: &str = "[package]\nname = 'andon-wire'\n";
    let with = |engine: &str| {
        let engine = format!("[package]\nname = 'andon-engine'\n{engine}");
        edges(&Tree::of([
            ("Cargo.toml", ROOT),
            ("daemon/wire/Cargo.toml", WIRE),
            ("daemon/engine/Cargo.toml", &engine),
        ]))
    };
    assert_eq!(with("[dependencies]\nserde = '1'\n"), Violations::new());
    for forbidden in [
        "[dependencies]\nandon-wire = { workspace = true }\n",
        "[dependencies]\nandon-wire.path = '../wire'\n",
        "[dependencies]\nquiet.workspace = true\n",
        "[dependencies]\nother = { package = 'andon-wire', path = '../wire' }\n",
        "[dev-dependencies]\nandon-wire = { workspace = true }\n",
        "[build-dependencies]\nandon-wire = { workspace = true }\n",
        "[target.'cfg(unix)'.dependencies]\nandon-wire = { workspace = true }\n",
    ] {
        assert_eq!(
            with(forbidden),
            ["daemon/engine/Cargo.toml: may not know andon-wire"],
            "{forbidden}"
        );
    }
    let stray = Tree::of([(
        "daemon/extra/Cargo.toml",
        "[package]\nname = 'andon-extra'\n",
    )]);
    assert_eq!(edges(&stray).len(), 1);
    let broken = Tree::of([("daemon/wire/Cargo.toml", "[package\n")]);
    assert_eq!(edges(&broken).len(), 1);
}

#[test]
fn async_only_in_the_daemon_finds_tokio_elsewhere() {
    const TOKIO: &str = "[package]\nname = 'x'\n[dependencies]\ntokio = '1'\n";
    assert_eq!(
        async_only_in_the_daemon(&Tree::of([("daemon/andond/Cargo.toml", TOKIO)])).len(),
        0
    );
    assert_eq!(
        async_only_in_the_daemon(&Tree::of([("daemon/engine/Cargo.toml", TOKIO)])).len(),
        1
    );
}

#[test]
fn manifests_inherit_finds_a_crate_of_its_own_mind() {
    const GOOD: &str = "[package]\nname = 'x'\nversion.workspace = true\nedition.workspace = true\n\
        rust-version.workspace = true\nlicense.workspace = true\n[lints]\nworkspace = true\n";
    assert_eq!(
        manifests_inherit(&Tree::of([("kernels/Cargo.toml", GOOD)])),
        Violations::new()
    );
    let edition = GOOD.replace("edition.workspace = true", "edition = '2021'");
    assert_eq!(
        manifests_inherit(&Tree::of([("kernels/Cargo.toml", &edition)])).len(),
        1
    );
    let lints = GOOD.replace("[lints]\nworkspace = true\n", "");
    assert_eq!(
        manifests_inherit(&Tree::of([("kernels/Cargo.toml", &lints)])).len(),
        1
    );
}

// ------------------------------------------------------------------------------------ sources

/// Whether `code` has `word` standing alone, not as part of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

fn unsafe_at_its_addresses(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for (path, file) in tree.with_extension("rs") {
        if UNSAFE_ADDRESSES
            .iter()
            .any(|address| path.starts_with(address))
        {
            continue;
        }
        let signatures = path.starts_with(SIGNATURES);
        for (index, line) in code_only(&file.text).lines().enumerate() {
            let line = if signatures {
                line.replace("unsafe fn(", "")
            } else {
                line.to_owned()
            };
            if has_word(&line, "unsafe") {
                violations.push(format!(
                    "{path}:{}: unsafe outside its addresses",
                    index + 1
                ));
            }
        }
    }
    violations
}

/// The folder of the crate that `path` is the root of a library, a program or a test of.
fn crate_root_folder(path: &str) -> Option<&str> {
    let (folder, file) = path.split_once("/src/").or_else(|| path.rsplit_once('/'))?;
    let root = matches!(file, "lib.rs" | "main.rs")
        || file
            .strip_prefix("bin/")
            .is_some_and(|bin| !bin.contains('/') || bin.ends_with("/main.rs"));
    let test_root = matches!(
        path,
        "tests/layout.rs"
            | "tests/identity.rs"
            | "tests/prefix.rs"
            | "tests/hostile.rs"
            | "tests/mutation.rs"
            | "tests/fuzz/plain.rs"
            | "tests/it/main.rs"
    );
    (root && path.contains("/src/") || test_root).then_some(folder)
}

fn forbid_unsafe_in_crate_roots(tree: &Tree) -> Violations {
    let owing = |path: &str| path.starts_with("daemon/") || path.starts_with("tests/");
    tree.with_extension("rs")
        .filter(|(path, _)| owing(path) && crate_root_folder(path).is_some())
        .filter(|(_, file)| !code_only(&file.text).contains("#![forbid(unsafe_code)]"))
        .map(|(path, _)| format!("{path}: #![forbid(unsafe_code)] is missing"))
        .collect()
}

fn no_std_crates(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for folder in NO_STD_FOLDERS {
        let root = format!("{folder}/src/lib.rs");
        let Some(text) = tree.text(&root) else {
            continue;
        };
        let code = code_only(text);
        if !code.lines().any(|line| line.trim() == "#![no_std]") {
            violations.push(format!("{root}: #![no_std] is missing"));
        }
        let inside = format!("{folder}/src/");
        for (path, file) in tree
            .with_extension("rs")
            .filter(|(path, _)| path.starts_with(&inside))
        {
            let code = code_only(&file.text);
            let lines: Vec<&str> = code.lines().map(str::trim).collect();
            for (index, line) in lines.iter().enumerate() {
                let for_tests = index > 0 && lines[index - 1] == "#[cfg(test)]";
                if line.contains("extern crate std") && !for_tests {
                    violations.push(format!("{path}:{}: std in a no_std crate", index + 1));
                }
            }
        }
    }
    violations
}

#[test]
fn unsafe_at_its_addresses_finds_it_elsewhere() {
    let at = |path, text| unsafe_at_its_addresses(&Tree::of([(path, text)])).len();
    assert_eq!(
        at("kernels/src/arch/x86_64/avx2/dot.rs", "unsafe { f() }"),
        0
    );
    assert_eq!(at("ffi/os/src/lib.rs", "unsafe fn f() {}"), 0);
    assert_eq!(at("kernels/src/tile.rs", "unsafe fn f() {}"), 0);
    assert_eq!(
        at(
            "daemon/engine/src/lib.rs",
            "#![forbid(unsafe_code)] // unsafe\nconst A: &str = \"unsafe\";"
        ),
        0
    );
    assert_eq!(
        at("daemon/engine/src/lib.rs", "fn f() { unsafe { g() } }"),
        1
    );
    assert_eq!(
        at(
            "kernels/src/op/dot.rs",
            "unsafe fn f() {}\nunsafe impl X for Y {}"
        ),
        2
    );
    assert_eq!(at("kernels/src/tile_other.rs", "unsafe{}"), 1);
    assert_eq!(
        at(
            "kernels/src/op/dot.rs",
            "type Dot = unsafe fn(&[f32]) -> f32;"
        ),
        0
    );
    assert_eq!(
        at(
            "daemon/engine/src/lib.rs",
            "type Dot = unsafe fn(&[f32]) -> f32;"
        ),
        1
    );
}

#[test]
fn forbid_unsafe_in_crate_roots_finds_its_absence() {
    let at = |path, text| forbid_unsafe_in_crate_roots(&Tree::of([(path, text)])).len();
    for path in [
        "daemon/engine/src/lib.rs",
        "daemon/andond/src/main.rs",
        "daemon/lab/src/bin/x.rs",
        "tests/src/lib.rs",
        "tests/src/bin/x/main.rs",
        "tests/xtask/src/main.rs",
        "tests/layout.rs",
        "tests/it/main.rs",
    ] {
        assert_eq!(at(path, "#![forbid(unsafe_code)]\n"), 0, "{path}");
        assert_eq!(at(path, "#![no_std]\n"), 1, "{path}");
        assert_eq!(at(path, "// #![forbid(unsafe_code)]\n"), 1, "{path}");
    }
    for path in [
        "kernels/src/lib.rs",
        "ffi/os/src/lib.rs",
        "daemon/engine/src/gguf/mod.rs",
        "tests/it/http.rs",
    ] {
        assert_eq!(at(path, ""), 0, "{path}");
    }
}

#[test]
fn no_std_crates_finds_std() {
    let at = |text| no_std_crates(&Tree::of([("kernels/src/lib.rs", text)])).len();
    assert_eq!(
        at("//! x\n#![no_std]\n#[cfg(test)]\nextern crate std;\n"),
        0
    );
    assert_eq!(at("#![no_std]\nextern crate std;\n"), 1);
    assert_eq!(at("#![cfg_attr(not(test), no_std)]\n"), 1);
    assert_eq!(at("// #![no_std]\n"), 1);
}

// ---------------------------------------------------------------------------------- all files

fn top_level(tree: &Tree) -> Violations {
    let mut entries: Vec<&str> = tree
        .files()
        .map(|(path, _)| path.split('/').next().unwrap_or(path))
        .collect();
    entries.dedup();
    entries
        .into_iter()
        .filter(|entry| !TOP_LEVEL.contains(entry))
        .map(|entry| format!("{entry}: the top level is fixed"))
        .collect()
}

fn leftovers(tree: &Tree) -> Violations {
    const MACROS: [&str; 3] = ["dbg", "todo", "unimplemented"];
    // In two parts, so that this file does not find itself.
    const MARKS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];
    let mut violations = Violations::new();
    for (path, file) in tree.with_extension("rs") {
        for (index, line) in code_only(&file.text).lines().enumerate() {
            let left = MACROS
                .iter()
                .find(|name| has_word(line, name) && line.contains(&format!("{name}!")));
            if let Some(name) = left {
                violations.push(format!("{path}:{}: {name}! left behind", index + 1));
            }
            if line.trim() == "#[ignore]" {
                violations.push(format!(
                    "{path}:{}: an ignored test without its reason",
                    index + 1
                ));
            }
        }
    }
    for (path, file) in tree.files() {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(mark) = MARKS.iter().find(|mark| has_word(line, mark)) {
                violations.push(format!("{path}:{}: {mark} left behind", index + 1));
            }
        }
    }
    violations
}

/// Nothing in the repository may hold on one machine only.
fn machine_paths(tree: &Tree) -> Violations {
    const PATHS: [&str; 5] = [
        concat!("/wo", "rk/"),
        concat!("/fa", "rm/"),
        concat!("/ro", "ot/"),
        concat!("/opt/", "w"),
        concat!("/ho", "me/"),
    ];
    let mut violations = Violations::new();
    for (path, file) in tree.files().filter(|(path, _)| *path != "Cargo.lock") {
        for (index, line) in file.text.lines().enumerate() {
            let found = PATHS.iter().find(|machine| {
                line.match_indices(**machine).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| {
                        c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '}')
                    })
                })
            });
            if let Some(machine) = found {
                violations.push(format!(
                    "{path}:{}: {machine} is a path of one machine",
                    index + 1
                ));
            }
        }
    }
    violations
}

fn tabs(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for extension in ["rs", "toml", "md", "py"] {
        for (path, file) in tree.with_extension(extension) {
            let found = file.text.lines().position(|line| line.contains('\t'));
            violations.extend(found.map(|index| format!("{path}:{}: a tab", index + 1)));
        }
    }
    violations
}

fn lengths(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for (path, file) in tree.with_extension("rs") {
        let lines = file.text.lines().count();
        if lines > SOURCE_LINES_MAX {
            violations.push(format!("{path}: {lines} lines are more than one concept"));
        }
    }
    let bytes_max = |path: &str| {
        if path == WEIGHTS {
            WEIGHTS_BYTES_MAX
        } else {
            FILE_BYTES_MAX
        }
    };
    let large = tree
        .files()
        .filter(|(path, file)| file.bytes > bytes_max(path));
    violations
        .extend(large.map(|(path, file)| format!("{path}: {} bytes are not source", file.bytes)));
    violations
}

/// Relative links between documents lead somewhere.
fn links(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for (path, file) in tree.with_extension("md") {
        for (index, line) in file.text.lines().enumerate() {
            for (at, _) in line.match_indices("](") {
                let rest = &line[at + 2..];
                let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
                if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                if !tree.has(&resolve(path, target)) {
                    violations.push(format!("{path}:{}: no {target}", index + 1));
                }
            }
        }
    }
    violations
}

/// `target` as seen from the document at `path`.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// The manual page knows every section of the annotated configuration.
fn manual(tree: &Tree) -> Violations {
    const PAGE: &str = "systemd/man/andond.toml.5";
    let (Some(config), page) = (tree.text("systemd/andond.toml"), tree.text(PAGE)) else {
        return Violations::new();
    };
    let sections = config
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    sections
        .filter(|section| {
            !page
                .unwrap_or_default()
                .lines()
                .any(|line| line == format!(".B [{section}]"))
        })
        .map(|section| format!("{PAGE}: no word of [{section}]"))
        .collect()
}

/// What lies in `systemd/` reaches a system: some package has it.
fn shipped(tree: &Tree) -> Violations {
    let mut sources = Vec::new();
    for package in packages(tree).0 {
        let deb = package
            .manifest
            .get("package")
            .and_then(|p| p.get("metadata")?.get("deb"));
        let assets = deb.and_then(|deb| deb.get("assets")?.as_array());
        let first = assets
            .into_iter()
            .flatten()
            .filter_map(|asset| asset.get(0)?.as_str());
        let scripts = deb.and_then(|deb| deb.get("maintainer-scripts")?.as_str());
        let manifest = format!("{}/Cargo.toml", package.folder);
        sources.extend(
            first
                .chain(scripts)
                .map(|source| resolve(&manifest, source)),
        );
    }
    let is_shipped = |path: &str| {
        sources
            .iter()
            .any(|source| path == source || path.starts_with(&format!("{source}/")))
    };
    tree.files()
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("systemd/") && !path.ends_with("/README.md"))
        .filter(|path| !is_shipped(path))
        .map(|path| format!("{path}: no assets of [package.metadata.deb] in daemon/andond/Cargo.toml or another have it"))
        .collect()
}

#[test]
fn shipped_misses_what_no_package_has() {
    const MANIFEST: &str = "[package]\nname = 'd'\n[package.metadata.deb]\nmaintainer-scripts = '../../systemd/debian/'\n\
        assets = [['../../systemd/d.service', 'usr/lib/systemd/system/', '644']]\n";
    let at = |path| {
        let files = [
            ("daemon/d/Cargo.toml", MANIFEST),
            ("systemd/README.md", ""),
            (path, ""),
        ];
        shipped(&Tree::of(files)).len()
    };
    assert_eq!(at("systemd/d.service"), 0);
    assert_eq!(at("systemd/debian/postinst"), 0);
    assert_eq!(at("systemd/d.socket"), 1);
    assert_eq!(at("systemd/d.service.d/gpu.conf"), 1);
}

#[test]
fn manual_misses_a_section() {
    const PAGE: (&str, &str) = ("systemd/man/andond.toml.5", ".TP\n.B [http]\nSockets.\n");
    let at = |config| manual(&Tree::of([("systemd/andond.toml", config), PAGE])).len();
    assert_eq!(at("[http]\n#socket = 1\n#[task.x]\n"), 0);
    assert_eq!(at("[http]\n[wire]\n"), 1);
    assert_eq!(
        manual(&Tree::of([("systemd/andond.toml", "[http]\n")])).len(),
        1
    );
}

#[test]
fn top_level_finds_a_new_entry() {
    assert_eq!(
        top_level(&Tree::of([
            ("README.md", ""),
            ("tests/a/b", ""),
            (".ci/run", "")
        ]))
        .len(),
        0
    );
    assert_eq!(
        top_level(&Tree::of([("docs/guide.md", "")])),
        ["docs: the top level is fixed"]
    );
}

#[test]
fn leftovers_are_found() {
    let at = |path, text: &str| leftovers(&Tree::of([(path, text)])).len();
    assert_eq!(
        at(
            "a/b.rs",
            "// dbg!(x) is not code\nlet s = \"todo!()\"; my_todo!();\n#[ignore = \"needs a GPU\"]\n"
        ),
        0
    );
    assert_eq!(at("a/b.rs", "dbg!(x);\n"), 1);
    assert_eq!(
        at(
            "a/b.rs",
            "fn f() { todo!() }\nfn g() { unimplemented!() }\n"
        ),
        2
    );
    assert_eq!(at("a/b.rs", "#[test]\n#[ignore]\nfn f() {}\n"), 1);
    assert_eq!(
        at("a/b.sh", &format!("# {}: later\n", ["FIX", "ME"].concat())),
        1
    );
    assert_eq!(
        at("a/b.rs", &format!("// {} later\n", ["X", "XX"].concat())),
        1
    );
}

#[test]
fn machine_paths_are_found() {
    let at = |text: &str| machine_paths(&Tree::of([("a/b.md", text)])).len();
    assert_eq!(
        at("/run/andon/andon.sock, tests/ro\not/, target/work/x, ${HOME}/ho"),
        0
    );
    for path in [
        "wo|rk/main",
        "ro|ot/.cargo",
        "opt/|w/venv",
        "ho|me/somebody",
        "fa|rm/x",
    ] {
        assert_eq!(at(&format!("see /{}", path.replace('|', ""))), 1, "{path}");
    }
}

#[test]
fn tabs_are_found() {
    assert_eq!(
        tabs(&Tree::of([
            ("a.rs", "fn f() {\n    1\n}\n"),
            ("Makefile", "a:\n\tb\n")
        ]))
        .len(),
        0
    );
    assert_eq!(
        tabs(&Tree::of([("a.rs", "fn f() {\n\t1\n}\n")])),
        ["a.rs:2: a tab"]
    );
}

#[test]
fn lengths_are_found() {
    let at = |lines: usize| lengths(&Tree::of([("a.rs", &"\n".repeat(lines))])).len();
    assert_eq!(at(SOURCE_LINES_MAX), 0);
    assert_eq!(at(SOURCE_LINES_MAX + 1), 1);
    let large = "x".repeat(FILE_BYTES_MAX as usize + 1);
    assert_eq!(lengths(&Tree::of([("a.bin", &large)])).len(), 1);
    assert_eq!(lengths(&Tree::of([(WEIGHTS, &large)])).len(), 0);
    let larger = "x".repeat(WEIGHTS_BYTES_MAX as usize + 1);
    assert_eq!(lengths(&Tree::of([(WEIGHTS, &larger)])).len(), 1);
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let at = |text| {
        links(&Tree::of([
            ("tests/README.md", text),
            ("tests/it/main.rs", ""),
            ("README.md", ""),
        ]))
        .len()
    };
    assert_eq!(
        at("[a](it/main.rs) [b](it) [c](../README.md#x) [d](https://example.org) [e](#here)"),
        0
    );
    assert_eq!(at("[a](it/other.rs)"), 1);
    assert_eq!(at("[a](../../README.md/x) and [b](README)"), 2);
}
