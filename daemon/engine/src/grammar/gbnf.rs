//! Grammars in GBNF, the notation of llama.cpp, written anew in the dialect of Lark that the parser reads.
//!
//! GBNF describes characters, and Lark a grammar over lexemes, of which the longest is taken. So a grammar without
//! recursion becomes one expression, in which there is nothing to choose; one with recursion becomes rules whose lexemes
//! are single characters.
//!
//! Invariant: the text that comes out is linear in what comes in, or bounded by [`EXPRESSION_BYTES_MAX`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::error::GrammarError;

/// Most rules of a grammar.
const RULES_MAX: usize = 1024;
/// Most for a bound of a repetition.
const REPEAT_MAX: u32 = 2000;
/// A grammar without recursion whose one expression would be longer becomes rules.
const EXPRESSION_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
enum Node {
    Rule(usize),
    /// The inner text of a class of an expression, negated or not.
    Class(bool, Vec<(char, char)>),
    Any,
    Text(String),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

/// Writes a grammar anew.
pub(super) fn to_lark(source: &str) -> Result<String, GrammarError> {
    let parser = Parser {
        source,
        at: 0,
        names: BTreeMap::new(),
        rules: Vec::new(),
    };
    let (rules, root) = parser.grammar()?;
    let mut lark = String::from("start: ");
    let mut expression = String::new();
    if !is_recursive(&rules, root, &mut vec![Mark::New; rules.len()])
        && write_expression(&rules, &rules[root], &mut expression)
    {
        let _ = writeln!(lark, "/{expression}/");
        return Ok(lark);
    }
    let _ = writeln!(lark, "r{root}");
    for (index, node) in rules.iter().enumerate() {
        let _ = write!(lark, "r{index}: ");
        write_rule(node, &mut lark);
        lark.push('\n');
    }
    Ok(lark)
}

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

fn is_recursive(rules: &[Node], rule: usize, marks: &mut Vec<Mark>) -> bool {
    match marks[rule] {
        Mark::Open => return true,
        Mark::Done => return false,
        Mark::New => {}
    }
    marks[rule] = Mark::Open;
    let mut waiting = vec![&rules[rule]];
    while let Some(node) = waiting.pop() {
        match node {
            Node::Rule(other) if is_recursive(rules, *other, marks) => return true,
            Node::Sequence(nodes) | Node::Either(nodes) => waiting.extend(nodes),
            Node::Repeat(node, ..) => waiting.push(node),
            _ => {}
        }
    }
    marks[rule] = Mark::Done;
    false
}

/// Writes a character as an expression has it.
pub(super) fn write_char(c: char, out: &mut String) {
    let _ = write!(out, "\\x{{{:x}}}", u32::from(c));
}

fn write_class(negated: bool, ranges: &[(char, char)], out: &mut String) {
    out.push_str(if negated { "[^" } else { "[" });
    for &(first, last) in ranges {
        write_char(first, out);
        out.push('-');
        write_char(last, out);
    }
    out.push(']');
}

fn write_repeat(least: u32, most: Option<u32>, out: &mut String) {
    match (least, most) {
        (0, None) => out.push('*'),
        (1, None) => out.push('+'),
        (0, Some(1)) => out.push('?'),
        (least, Some(most)) => {
            let _ = write!(out, "{{{least},{most}}}");
        }
        (least, None) => {
            let _ = write!(out, "{{{least},}}");
        }
    }
}

/// Writes a node as an expression; false if it gets too long.
fn write_expression(rules: &[Node], node: &Node, out: &mut String) -> bool {
    let inner = |open: &str, nodes: &[Node], between: &str, out: &mut String| {
        out.push_str(open);
        for (index, node) in nodes.iter().enumerate() {
            if index > 0 {
                out.push_str(between);
            }
            if !write_expression(rules, node, out) {
                return false;
            }
        }
        out.push(')');
        true
    };
    let whole = match node {
        Node::Rule(rule) => write_expression(rules, &rules[*rule], out),
        Node::Class(negated, ranges) => {
            write_class(*negated, ranges, out);
            true
        }
        Node::Any => {
            out.push_str("(?s:.)");
            true
        }
        Node::Text(text) => {
            text.chars().for_each(|c| write_char(c, out));
            true
        }
        Node::Sequence(nodes) => inner("(?:", nodes, "", out),
        Node::Either(nodes) => inner("(?:", nodes, "|", out),
        Node::Repeat(node, least, most) => {
            let whole = inner("(?:", core::slice::from_ref(node), "", out);
            write_repeat(*least, *most, out);
            whole
        }
    };
    whole && out.len() <= EXPRESSION_BYTES_MAX
}

/// Writes a node as the right side of a rule.
fn write_rule(node: &Node, out: &mut String) {
    match node {
        Node::Rule(rule) => {
            let _ = write!(out, "r{rule}");
        }
        Node::Class(negated, ranges) => {
            out.push('/');
            write_class(*negated, ranges, out);
            out.push('/');
        }
        Node::Any => out.push_str("/(?s:.)/"),
        Node::Text(text) if text.is_empty() => out.push_str("\"\""),
        Node::Text(text) => {
            for (index, c) in text.chars().enumerate() {
                out.push_str(if index > 0 { " /" } else { "/" });
                write_char(c, out);
                out.push('/');
            }
        }
        Node::Sequence(nodes) if nodes.is_empty() => out.push_str("\"\""),
        Node::Sequence(nodes) | Node::Either(nodes) => {
            let between = match node {
                Node::Either(_) => " | ",
                _ => " ",
            };
            out.push('(');
            for (index, node) in nodes.iter().enumerate() {
                if index > 0 {
                    out.push_str(between);
                }
                write_rule(node, out);
            }
            out.push(')');
        }
        Node::Repeat(node, least, most) => {
            out.push('(');
            write_rule(node, out);
            out.push(')');
            write_repeat(*least, *most, out);
        }
    }
}

struct Parser<'a> {
    source: &'a str,
    at: usize,
    names: BTreeMap<&'a str, usize>,
    rules: Vec<Option<Node>>,
}

impl<'a> Parser<'a> {
    /// All rules, and which of them is the root.
    fn grammar(mut self) -> Result<(Vec<Node>, usize), GrammarError> {
        self.space(true);
        while self.at < self.source.len() {
            let name = self.name()?;
            self.space(true);
            if !self.skip("::=") {
                return Err(self.error("`::=` is missing behind the name of a rule"));
            }
            self.space(true);
            let node = self.either(false)?;
            let index = self.rule(name)?;
            if self.rules[index].replace(node).is_some() {
                return Err(self.error(&format!("rule `{name}` is there twice")));
            }
            self.space(true);
        }
        let Some(&root) = self.names.get("root") else {
            return Err(self.error("there is no rule `root`"));
        };
        let names = core::mem::take(&mut self.names);
        for (name, index) in names {
            if self.rules[index].is_none() {
                return Err(self.error(&format!("rule `{name}` is not defined")));
            }
        }
        Ok((self.rules.into_iter().flatten().collect(), root))
    }

    fn error(&self, problem: &str) -> GrammarError {
        let before = self.source.get(..self.at).unwrap_or(self.source);
        let line = before.matches('\n').count() + 1;
        GrammarError::Invalid {
            what: "the grammar",
            problem: format!("line {line}: {problem}"),
        }
    }

    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        if there {
            self.at += text.len();
        }
        there
    }

    /// Skips white space and comments, ends of lines only if `lines`.
    fn space(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                '#' => {
                    let rest = self.rest();
                    self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
                }
                '\n' | '\r' if !lines => return,
                ' ' | '\t' | '\n' | '\r' => self.at += 1,
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Result<&'a str, GrammarError> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .unwrap_or(rest.len());
        if end == 0 {
            return Err(self.error("the name of a rule is missing"));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn rule(&mut self, name: &'a str) -> Result<usize, GrammarError> {
        if let Some(&index) = self.names.get(name) {
            return Ok(index);
        }
        let index = self.rules.len();
        if index >= RULES_MAX {
            return Err(GrammarError::TooLarge {
                what: "the grammar has rules:",
                count: index + 1,
                max: RULES_MAX,
            });
        }
        self.names.insert(name, index);
        self.rules.push(None);
        Ok(index)
    }

    /// Alternatives; within parentheses they go over ends of lines.
    fn either(&mut self, nested: bool) -> Result<Node, GrammarError> {
        let mut nodes = vec![self.sequence(nested)?];
        while self.skip("|") {
            self.space(true);
            nodes.push(self.sequence(nested)?);
        }
        Ok(match nodes.len() {
            1 => nodes.remove(0),
            _ => Node::Either(nodes),
        })
    }

    fn sequence(&mut self, nested: bool) -> Result<Node, GrammarError> {
        let mut nodes = Vec::new();
        loop {
            let node = match self.peek() {
                Some('"') => Node::Text(self.text()?),
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Node::Any
                }
                Some('(') => {
                    self.at += 1;
                    self.space(true);
                    let node = self.either(true)?;
                    if !self.skip(")") {
                        return Err(self.error("`)` is missing"));
                    }
                    node
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '_' => {
                    let name = self.name()?;
                    Node::Rule(self.rule(name)?)
                }
                Some('|' | ')' | '\n' | '\r') | None => break,
                Some(c) => return Err(self.error(&format!("`{c}` cannot stand here"))),
            };
            let node = self.repeated(node)?;
            nodes.push(node);
            self.space(nested);
        }
        if !nested && self.peek() == Some(')') {
            return Err(self.error("`)` has no `(`"));
        }
        // The next line may go on with an alternative.
        if !nested {
            let end = self.at;
            self.space(true);
            if self.peek() != Some('|') {
                self.at = end;
            }
        }
        Ok(Node::Sequence(nodes))
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, GrammarError> {
        loop {
            let (least, most) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    self.at += 1;
                    let least = self.number()?;
                    let most = if self.skip(",") {
                        match self.peek() {
                            Some('}') => None,
                            _ => Some(self.number()?),
                        }
                    } else {
                        Some(least)
                    };
                    if self.peek() != Some('}') || most.is_some_and(|most| most < least) {
                        return Err(self.error("the bounds of a repetition are wrong"));
                    }
                    (least, most)
                }
                _ => return Ok(node),
            };
            self.at += 1;
            node = Node::Repeat(Box::new(node), least, most);
        }
    }

    fn number(&mut self) -> Result<u32, GrammarError> {
        self.space(false);
        let rest = self.rest();
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let number = rest[..end].parse().ok().filter(|n| *n <= REPEAT_MAX);
        self.at += end;
        self.space(false);
        number
            .ok_or_else(|| self.error(&format!("a repetition has a number from 0 to {REPEAT_MAX}")))
    }

    fn text(&mut self) -> Result<String, GrammarError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                None | Some('\n' | '\r') => return Err(self.error("a text does not end")),
                Some(c) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Node, GrammarError> {
        self.at += 1;
        let negated = self.skip("^");
        let mut ranges = Vec::new();
        while !self.skip("]") {
            let first = self.class_char()?;
            let mut last = first;
            let rest = self.rest();
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.at += 1;
                last = self.class_char()?;
            }
            if last < first {
                return Err(self.error("a range of characters is the wrong way round"));
            }
            ranges.push((first, last));
        }
        if ranges.is_empty() {
            return match negated {
                true => Ok(Node::Any),
                false => Err(self.error("a class has no characters")),
            };
        }
        Ok(Node::Class(negated, ranges))
    }

    fn class_char(&mut self) -> Result<char, GrammarError> {
        match self.next() {
            Some('\\') => self.escape(),
            None | Some('\n' | '\r') => Err(self.error("a class does not end")),
            Some(c) => Ok(c),
        }
    }

    fn escape(&mut self) -> Result<char, GrammarError> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.error("an escape is not known")),
        };
        let code = self
            .rest()
            .get(..digits)
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|text| u32::from_str_radix(text, 16).ok())
            .and_then(char::from_u32);
        self.at += digits;
        code.ok_or_else(|| self.error("an escape is not the number of a character"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_without_recursion_is_one_expression() {
        let lark =
            to_lark("root ::= \"a\" digit{2,3} | [^x-z]? # done\ndigit ::= [0-9]").expect("valid");
        assert_eq!(
            lark,
            "start: /(?:(?:\\x{61}(?:(?:[\\x{30}-\\x{39}])){2,3})|(?:(?:[^\\x{78}-\\x{7a}])?))/\n"
        );
    }

    #[test]
    fn recursion_makes_rules_of_characters() {
        let lark = to_lark("root ::= \"(\" root \")\" |\n  \"ab\"\n").expect("valid");
        assert_eq!(
            lark,
            "start: r0\nr0: ((/\\x{28}/ r0 /\\x{29}/) | (/\\x{61}/ /\\x{62}/))\n"
        );
    }

    #[test]
    fn mistakes_say_where() {
        for (source, part) in [
            ("root ::= x", "rule `x` is not defined"),
            ("a ::= \"x\"", "no rule `root`"),
            ("root ::= \"x\nroot", "line 2: a text does not end"),
            ("root ::= [a", "a class does not end"),
            ("root ::= [b-a]", "wrong way round"),
            ("root ::= (\"a\"", "`)` is missing"),
            ("root ::= \"a\")", "`)` has no `(`"),
            ("root ::= \"a\"{3,2}", "bounds of a repetition"),
            ("root ::= \"a\"{9999}", "from 0 to 2000"),
            ("root = \"a\"", "`::=` is missing"),
            ("root ::= \"\\q\"", "escape"),
            ("root ::= \"a\"\nroot ::= \"b\"", "twice"),
        ] {
            let error = to_lark(source).expect_err(source).to_string();
            assert!(error.contains(part), "{source}: {error}");
        }
    }
}
