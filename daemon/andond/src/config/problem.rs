//! What is wrong with a configuration, gathered rather than thrown.

use std::collections::BTreeMap;
use std::fmt;

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, counted from 1, where it is known.
    pub line: Option<usize>,
    /// The key's path, such as `engine.threads`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// How to put it right.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}", self.what)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        Ok(())
    }
}

/// All mistakes found, and where keys stand in the file.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    list: Vec<Problem>,
    lines: BTreeMap<String, usize>,
}

impl Problems {
    /// Adds a mistake in the value of `key` (`section.key`); its line is filled in if the file has it.
    pub fn add(&mut self, key: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) {
        let key = key.into();
        let line = self.lines.get(&key).copied();
        self.list.push(Problem {
            line,
            key,
            what: what.into(),
            fix: fix.into(),
        });
    }

    /// Adds a mistake unless `good` holds.
    pub fn require(&mut self, good: bool, key: &str, what: &str, fix: &str) {
        if !good {
            self.add(key, what, fix);
        }
    }

    /// Adds a mistake unless `value` lies in `range`.
    pub fn within<T: PartialOrd + fmt::Display + Copy>(
        &mut self,
        key: &str,
        value: T,
        range: std::ops::RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let fix = format!("give a value from {} to {}", range.start(), range.end());
            self.add(key, format!("{value} is out of range"), fix);
        }
    }

    /// Adds a mistake unless `text` is an amount of money, or there is none.
    pub fn amount(&mut self, key: &str, text: Option<&str>) {
        self.require(
            text.is_none_or(|text| andon_policy::budget::micros(text).is_some()),
            key,
            "is not an amount",
            "write it as text, with six digits after the point at most: \"2.50\"",
        );
    }

    /// Adds a mistake if there are more sections `[[name]]` than there may be.
    pub fn sections(&mut self, name: &str, count: usize, max: usize) {
        if count > max {
            let what = format!("{count} sections of this kind are configured");
            self.add(name, what, format!("keep at most {max}"));
        }
    }

    /// Adds a mistake if a section `[[section]]`, `number` counting from 1, has the name of one before it.
    pub fn own_name(&mut self, section: &str, number: usize, is_taken: bool) {
        self.require(
            !is_taken,
            &format!("{section}[{number}].name"),
            "is another's name, too",
            "give each a name of its own",
        );
    }

    /// The mistakes, by line, those without one last.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// `value` if nothing is wrong, else the problems ordered by line.
    ///
    /// # Errors
    /// The problems, if there are any.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Problems> {
        if self.list.is_empty() {
            return Ok(value);
        }
        self.list
            .sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Err(self)
    }

    /// Takes over other mistakes, with their lines where this file has their keys, but for those that are known.
    pub fn extend(&mut self, others: Problems) {
        for problem in others.list {
            let line = problem
                .line
                .or_else(|| self.lines.get(&problem.key).copied());
            let problem = Problem { line, ..problem };
            if !self.list.contains(&problem) {
                self.list.push(problem);
            }
        }
    }

    /// Remembers where `key` stands.
    pub(super) fn place(&mut self, key: String, line: usize) {
        self.lines.insert(key, line);
    }

    /// Adds a mistake at a line known to the caller.
    pub(super) fn add_at(&mut self, line: Option<usize>, key: String, what: String, fix: String) {
        self.list.push(Problem {
            line,
            key,
            what,
            fix,
        });
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
