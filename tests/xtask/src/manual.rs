//! The manual pages of programs that describe themselves: one page a program, made of what clap writes for each command.
//!
//! Invariant: a page in `systemd/man` is, byte for byte, what its program says of itself; [`check`] holds them against
//! each other, and [`write()`] makes them anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::stages::Outcome;

/// A program with a page of its own.
struct Program {
    /// Its name, which is its package's too.
    name: &'static str,
    /// Pages to go on with.
    see_also: &'static [(&'static str, &'static str)],
}

const PROGRAMS: [Program; 2] = [
    Program {
        name: "andonctl",
        see_also: &[("andond", "8"), ("andond.toml", "5")],
    },
    Program {
        name: "andon-lab",
        see_also: &[("andonctl", "1"), ("andond", "8")],
    },
];

/// Writes every page into `systemd/man`.
///
/// # Errors
/// When a program does not build, or writes no pages.
pub(crate) fn write() -> Result<()> {
    for (path, page) in pages()? {
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
        println!("  {}", path.display());
    }
    Ok(())
}

/// Compares the pages in the tree with what the programs say.
///
/// # Errors
/// When one differs, by its first line that does.
pub(crate) fn check() -> Result<Outcome> {
    let mut names = Vec::new();
    for (path, page) in pages()? {
        let kept = fs::read_to_string(&path).unwrap_or_default();
        if let Some((number, kept, said)) = difference(&kept, &page) {
            bail!(
                "{} line {number} is {kept:?}, the program says {said:?}: run `cargo xtask manual`",
                path.display()
            );
        }
        names.extend(
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned()),
        );
    }
    Ok(Outcome::Passed(names.join(", ")))
}

/// The first line in which two texts differ, with its number from 1; an absent line is empty.
fn difference<'a>(kept: &'a str, said: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let lines = kept.lines().count().max(said.lines().count());
    let at = |text: &'a str, index| text.lines().nth(index).unwrap_or_default();
    (0..lines)
        .map(|index| (index + 1, at(kept, index), at(said, index)))
        .find(|(_, kept, said)| kept != said)
}

/// Each page with its place in the tree.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    // As the tests build them: built by themselves, they have other features and are compiled anew.
    shell::run(&mut shell::cargo(&[
        "build",
        "--quiet",
        "--workspace",
        "--bins",
    ]))?;
    PROGRAMS
        .iter()
        .map(|program| {
            let place = shell::root().join(format!("systemd/man/{}.1", program.name));
            Ok((place, page(program)?))
        })
        .collect()
}

/// The program's page, from those that it writes for each of its commands.
fn page(program: &Program) -> Result<String> {
    let folder = shell::target_directory().join("man").join(program.name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let built = shell::target_directory().join("debug").join(program.name);
    shell::run(Command::new(built).arg("man").arg(&folder))?;
    let mut parts = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        parts.push((stem.unwrap_or_default(), read(&path)?));
    }
    // A command before those below it: `model`, `model-add`, `models`.
    parts.sort();
    let mut pages = parts.into_iter();
    let (first, whole) = pages.next().context("the program wrote no page")?;
    if first != program.name {
        bail!("{} has no page of its own", program.name);
    }
    let commands: Vec<String> = pages.map(|(_, page)| page).collect();
    Ok(merge(program, &whole, &commands))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// One page of a program's own and those of its commands.
fn merge(program: &Program, whole: &str, commands: &[String]) -> String {
    let common = entries(section(whole, "OPTIONS"));
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".\\\" Written by `cargo xtask manual`.\n.ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n\
         .TH {} 1 \"\" \"andon {version}\" \"andon\"\n",
        program.name.to_uppercase()
    );
    for name in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
        page.push_str(&format!(".SH {name}\n{}", section(whole, name)));
    }
    page.push_str(".SH COMMANDS\n");
    for command in commands {
        let synopsis = section(command, "SYNOPSIS");
        let name = synopsis
            .strip_prefix("\\fB")
            .and_then(|rest| rest.split_once("\\fR"))
            .map_or("", |(name, _)| name);
        page.push_str(&format!(".SS {name}\n{}", without_common(&synopsis)));
        page.push_str(&format!(".PP\n{}", section(command, "DESCRIPTION")));
        for (heading, body) in sections(command) {
            if ["NAME", "SYNOPSIS", "DESCRIPTION", "SUBCOMMANDS"].contains(&heading) {
                continue;
            }
            let own = entries(body).into_iter().filter(|entry| {
                !common.contains(entry) && !entry.contains("\\fB\\-h\\fR, \\fB\\-\\-help\\fR")
            });
            let own: String = own.map(|entry| format!(".TP\n{entry}")).collect();
            if heading != "OPTIONS" && !own.is_empty() {
                page.push_str(&format!(".PP\n{}:\n", sentence(heading)));
            }
            page.push_str(&own);
        }
    }
    let extra = section(whole, "EXTRA");
    if let Some(status) = extra.strip_prefix("Exit status:\n") {
        page.push_str(&format!(".SH EXIT STATUS\n.nf\n{status}.fi\n"));
    }
    let see: Vec<String> = program
        .see_also
        .iter()
        .map(|(name, section)| format!(".BR {name} ({section})"))
        .collect();
    page.push_str(&format!(".SH SEE ALSO\n{}\n", see.join(",\n")));
    page
}

/// The sections of a page, each with its heading.
fn sections(page: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for part in page.split("\n.SH ").skip(1) {
        let (heading, body) = part.split_once('\n').unwrap_or((part, ""));
        found.push((heading.trim_matches('"'), body));
    }
    found
}

/// The body of one section with the end of its last line; empty where there is none.
fn section(page: &str, heading: &str) -> String {
    let found = sections(page)
        .into_iter()
        .find(|(name, _)| *name == heading);
    found.map_or_else(String::new, |(_, body)| format!("{}\n", body.trim_end()))
}

/// The entries of a list, each without the request that begins it.
fn entries(body: impl AsRef<str>) -> Vec<String> {
    let text = format!("\n{}", body.as_ref().trim_end());
    let parts = text.split("\n.TP\n").skip(1);
    parts.map(|entry| format!("{entry}\n")).collect()
}

/// A synopsis without the options that every command has.
fn without_common(synopsis: &str) -> String {
    const COMMON: [&str; 2] = [
        "[\\fB\\-\\-socket\\fR] ",
        "[\\fB\\-h\\fR|\\fB\\-\\-help\\fR]",
    ];
    let short = COMMON
        .iter()
        .fold(synopsis.to_owned(), |text, option| text.replace(option, ""));
    format!("{}\n", short.trim_end())
}

/// A heading in the middle of a page, not shouted.
fn sentence(heading: &str) -> String {
    let mut letters = heading.chars();
    let first: String = letters.next().into_iter().collect();
    first + &letters.as_str().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = ".TH a 1\n.SH NAME\na \\- does\n.SH SYNOPSIS\n\\fBa\\fR\n.SH DESCRIPTION\nDoes\n\
        .SH OPTIONS\n.TP\n\\fB\\-\\-socket\\fR\nThe socket\n.TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint help\n\
        .SH EXTRA\nExit status:\n  0  done\n";
    const COMMAND: &str = ".TH a-b 1\n.SH NAME\na\\-b \\- bees\n.SH SYNOPSIS\n\\fBa b\\fR [\\fB\\-\\-socket\\fR] \
        [\\fB\\-h\\fR|\\fB\\-\\-help\\fR]\n.SH DESCRIPTION\nBees\n.SH OPTIONS\n.TP\n\\fB\\-\\-socket\\fR\nThe socket\n\
        .TP\n\\fB\\-\\-hive\\fR\nWhere\n.TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint help (long)\n\
        .SH SAMPLING\n.TP\n\\fB\\-\\-seed\\fR\nSeed\n";

    #[test]
    fn a_command_keeps_what_is_its_own() {
        let program = Program {
            name: "a",
            see_also: &[("c", "8")],
        };
        let page = merge(&program, WHOLE, &[COMMAND.to_owned()]);
        let commands = page.split(".SH COMMANDS\n").nth(1).unwrap();
        let expected = ".SS a b\n\\fBa b\\fR\n.PP\nBees\n.TP\n\\fB\\-\\-hive\\fR\nWhere\n.PP\nSampling:\n\
            .TP\n\\fB\\-\\-seed\\fR\nSeed\n.SH EXIT STATUS\n.nf\n  0  done\n.fi\n.SH SEE ALSO\n.BR c (8)\n";
        assert_eq!(commands, expected);
        assert_eq!(page.matches("The socket").count(), 1);
    }

    #[test]
    fn a_difference_is_named_by_its_line() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n"), Some((2, "b", "c")));
        assert_eq!(difference("a\n", "a\nb\n"), Some((2, "", "b")));
    }
}
