//! Which template a model gets: the configuration's, else its file's, else one known by name.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::super::Tokenizer;
use super::{ChatTemplate, NamedTemplate, SOURCE_BYTES_MAX, TemplateError};
use crate::gguf::{Gguf, MetaError};

/// A template to use whatever the model's file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// One that is known by name.
    Named(NamedTemplate),
    /// One in a file of its own.
    File(PathBuf),
    /// This one, as it came with the model.
    Source(String),
}

impl TemplateChoice {
    /// A choice as configurations write it: a name, or the path of a file, which has a `/` or ends in `.jinja`.
    ///
    /// # Errors
    /// [`TemplateError::UnknownName`], with the names that there are.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if let Some(named) = NamedTemplate::from_name(text) {
            return Ok(Self::Named(named));
        }
        let path = Path::new(text);
        if text.contains('/') || path.extension().is_some_and(|end| end == "jinja") {
            return Ok(Self::File(path.to_owned()));
        }
        let known = NamedTemplate::ALL.map(NamedTemplate::name).join(", ");
        Err(TemplateError::UnknownName {
            name: text.to_owned(),
            known,
        })
    }
}

/// Where a model's template came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateOrigin {
    /// The model's file has it.
    Model,
    /// The file has none; this one suits its vocabulary.
    Default(NamedTemplate),
    /// Whoever loaded the model asked for it.
    Configured(TemplateChoice),
}

impl fmt::Display for TemplateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model => write!(f, "the model's file"),
            Self::Default(named) => write!(f, "default `{}`", named.name()),
            Self::Configured(TemplateChoice::Named(named)) => {
                write!(f, "configured `{}`", named.name())
            }
            Self::Configured(TemplateChoice::Source(_)) => write!(f, "the model's bundle"),
            Self::Configured(TemplateChoice::File(path)) => {
                write!(f, "configured file `{}`", path.display())
            }
        }
    }
}

impl ChatTemplate {
    /// The template for a model: what was chosen, else the file's, else the named one that suits its vocabulary.
    ///
    /// # Errors
    /// [`TemplateError`] if there is one that cannot be used.
    pub fn for_model(
        gguf: &Gguf<'_>,
        tokenizer: &Tokenizer,
        choice: Option<&TemplateChoice>,
    ) -> Result<(Self, TemplateOrigin), TemplateError> {
        if let Some(choice) = choice {
            let template = match choice {
                TemplateChoice::Named(named) => Self::named(*named, tokenizer)?,
                TemplateChoice::Source(source) => {
                    let (bos, eos) = ends(tokenizer);
                    Self::from_source(source, &bos, &eos)?
                }
                TemplateChoice::File(path) => {
                    let (bos, eos) = ends(tokenizer);
                    Self::from_source(&read(path)?, &bos, &eos)?
                }
            };
            return Ok((template, TemplateOrigin::Configured(choice.clone())));
        }
        if let Some(template) = Self::from_gguf(gguf, tokenizer)? {
            return Ok((template, TemplateOrigin::Model));
        }
        let named = NamedTemplate::of_vocabulary(tokenizer);
        let template = Self::named(named, tokenizer)?;
        Ok((template, TemplateOrigin::Default(named)))
    }

    /// The template of a file, `None` if it has none. Of several, the one without a name or the one named `default` is
    /// for conversations, and `tool_use` for those with tools; one alone is for both.
    ///
    /// # Errors
    /// [`TemplateError`] if there is one that cannot be used.
    pub fn from_gguf(
        gguf: &Gguf<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, TemplateError> {
        let source = |key: &str| match gguf.str(key) {
            Ok(source) => Ok(Some(source)),
            Err(MetaError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let plain = match source("tokenizer.chat_template")? {
            Some(source) => Some(source),
            None => source("tokenizer.chat_template.default")?,
        };
        let tools = source("tokenizer.chat_template.tool_use")?;
        let (bos, eos) = ends(tokenizer);
        let Some(first) = plain.or(tools) else {
            return Ok(None);
        };
        let template = Self::from_source(first, &bos, &eos)?;
        match tools {
            Some(tools) if plain.is_some() => template.with_tool_use(tools).map(Some),
            _ => Ok(Some(template)),
        }
    }

    /// A template known by name, for this vocabulary.
    ///
    /// # Errors
    /// None in practice; the type is that of [`ChatTemplate::from_source`].
    pub fn named(named: NamedTemplate, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let (bos, eos) = ends(tokenizer);
        // Unlike a model's own template, these do not know whether the model wants one.
        let begins = tokenizer
            .encode_prompt("", super::super::Special::Plain)
            .first()
            .is_some_and(|&id| Some(id) == tokenizer.bos());
        Self::from_source(&named.source(), if begins { &bos } else { "" }, &eos)
    }
}

/// The texts of the tokens that begin and end a text.
fn ends(tokenizer: &Tokenizer) -> (String, String) {
    let text = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
    (text(tokenizer.bos()), text(tokenizer.eos()))
}

fn read(path: &Path) -> Result<String, TemplateError> {
    let failed = |reason: String| TemplateError::File {
        path: path.to_owned(),
        reason,
    };
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut bytes = Vec::new();
    // One more than is read, so that a longer file shows.
    file.take(SOURCE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| failed("it is not UTF-8".to_owned()))
}
