//! Every source file is part of a program: one that no module names is compiled by nobody, and rots.

use andon_tests::source::{Tree, code_only};
use toml::{Table, Value};

use super::{Violations, resolve};

/// What cargo compiles by its place: the roots of crates, programs, and in crates that leave it to cargo, tests and examples.
fn is_root_by_place(path: &str) -> bool {
    const SHELVES: [&str; 4] = ["bin", "tests", "benches", "examples"];
    let mut parts = path.rsplit('/');
    let name = parts.next().unwrap_or_default();
    let (folder, above) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    name == "build.rs"
        || SHELVES.contains(&folder)
        || (folder == "src" && ["lib.rs", "main.rs"].contains(&name))
        || (name == "main.rs" && SHELVES.contains(&above))
}

/// The roots that manifests name.
fn roots_by_name(tree: &Tree) -> Vec<String> {
    let mut roots = Vec::new();
    let manifests = tree
        .files()
        .filter(|(path, _)| path.ends_with("Cargo.toml"));
    for (path, file) in manifests {
        let Ok(manifest) = file.text.parse::<Table>() else {
            continue;
        };
        let targets = ["lib", "bin", "test", "bench", "example"].map(|kind| manifest.get(kind));
        for target in targets.into_iter().flatten() {
            let targets = match target {
                Value::Array(targets) => targets.iter().collect(),
                target => vec![target],
            };
            let paths = targets
                .into_iter()
                .filter_map(|target| target.get("path")?.as_str());
            roots.extend(paths.map(|target| resolve(path, target)));
        }
    }
    roots
}

/// The files that `#[path]` names.
fn named_by_path(path: &str, text: &str) -> Vec<String> {
    let attributes = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("#[path = \"")?.split('"').next());
    attributes.map(|target| resolve(path, target)).collect()
}

/// Whether code declares a module of this name in a file of its own.
fn declares(code: &str, name: &str) -> bool {
    let declaration = format!("mod {name};");
    code.lines().any(|line| {
        let line = line.trim();
        line.strip_suffix(&declaration)
            .is_some_and(|before| before.is_empty() || before.ends_with(' '))
    })
}

/// Files that no module and no manifest names.
pub(super) fn orphans(tree: &Tree) -> Violations {
    let mut named = roots_by_name(tree);
    for (path, file) in tree.with_extension("rs") {
        named.extend(named_by_path(path, &file.text));
    }
    let is_declared = |path: &str| {
        let Some((folder, name)) = path.rsplit_once('/') else {
            return false;
        };
        let (folder, module) = match name {
            // Of a folder that is a module itself.
            "mod.rs" => match folder.rsplit_once('/') {
                Some(parts) => parts,
                None => return false,
            },
            name => (folder, name.trim_end_matches(".rs")),
        };
        let beside = format!("{folder}.rs");
        // The module that the folder is of, or the root of the crate that is in it, which may have any name.
        tree.with_extension("rs")
            .filter(|(other, _)| {
                *other == beside
                    || other
                        .rsplit_once('/')
                        .is_some_and(|(other_folder, other_name)| {
                            other_folder == folder
                                && (["mod.rs", "lib.rs", "main.rs"].contains(&other_name)
                                    || is_root_by_place(other)
                                    || named.iter().any(|root| root == other))
                        })
            })
            .any(|(other, file)| other != path && declares(&code_only(&file.text), module))
    };
    let files = tree.with_extension("rs").map(|(path, _)| path);
    files
        .filter(|path| !is_root_by_place(path) && !named.iter().any(|name| name == path))
        .filter(|path| !is_declared(path))
        .map(|path| format!("{path}: no module names it, so nobody compiles it"))
        .collect()
}

#[test]
fn orphans_are_found() {
    let manifest = "[[test]]\nname = \"it\"\npath = \"it/start.rs\"\n";
    let tree = Tree::of([
        ("a/Cargo.toml", manifest),
        (
            "a/src/lib.rs",
            "pub mod one;\n// mod three;\n#[path = \"far/away.rs\"]\nmod away;\n",
        ),
        ("a/src/one.rs", "mod two;\nmod inner;\n"),
        ("a/src/one/two.rs", ""),
        ("a/src/one/inner/mod.rs", "mod deep;\n"),
        ("a/src/one/inner/deep.rs", ""),
        ("a/src/far/away.rs", ""),
        ("a/src/bin/program.rs", ""),
        ("a/it/start.rs", "mod part;\n"),
        ("a/it/part.rs", ""),
        ("a/tests/whole.rs", ""),
        ("a/tests/parts/main.rs", "mod part;\n"),
        ("a/tests/parts/part.rs", ""),
        ("a/src/three.rs", ""),
        ("a/src/one/four.rs", ""),
        ("a/it/other/mod.rs", ""),
    ]);
    assert_eq!(orphans(&tree).len(), 3, "{:?}", orphans(&tree));
}
