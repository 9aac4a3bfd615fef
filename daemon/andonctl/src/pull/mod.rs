//! The command `pull`: gets a model from the hub, or from a mirror of one.
//!
//! What this leaves out: the daemon. A pulled model is a file here; `andonctl model add` hands it over.

mod download;
mod hub;
mod mirror;
mod reference;
mod select;
mod source;

use std::env;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use andon_wire::limits::TEXT_MEMBER_BYTES_MAX;

use self::download::{Download, Fetched, patiently};
use self::select::{Entry, Model};
use self::source::{Listing, Source};
use crate::arguments::models::PullOptions;
use crate::bundle;
use crate::failure::Failure;
use crate::output::Output;
use crate::parcel::{Extras, Parcel};
use crate::report::size;

pub(crate) use self::download::sync_folder;
pub(crate) use self::hub::ENDPOINT_DEFAULT;
pub(crate) use self::reference::{Reference, revision};

/// Names of a licence's text in a repository.
const LICENSE_NAMES: [&str; 5] = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "license.txt",
];

/// Largest file that a token is read from.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The command `pull`.
pub(crate) fn run(options: &PullOptions, output: &mut Output) -> Result<(), Failure> {
    let source = Source::new(&options.endpoint, || token(options.token_file.as_deref()))?;
    let repository = &options.model.repository;
    let listing = patiently(options.retries, || {
        source.list(repository, &options.revision)
    })?;
    if options.list {
        return output.text(&list(&select::models(&listing.files)));
    }
    let model = select::choose(&listing.files, &options.model.choice)
        .map_err(|why| Failure::Hub(format!("{repository}: {why}")))?;
    let download = Download {
        source: &source,
        repository,
        // The commit, so that a change of the branch meanwhile does not mix two models.
        revision: &listing.revision,
        retries: options.retries,
    };
    if options.bundle {
        return bundled(&download, options, &listing, &model, output);
    }
    for (file, path) in model.files.iter().zip(places(options, &model)?) {
        let fetched = download.fetch(file, &path)?;
        said(&fetched, output)?;
    }
    Ok(())
}

/// Downloads into a folder beside the bundle, which stays until the bundle is whole.
fn bundled(
    download: &Download<'_>,
    options: &PullOptions,
    listing: &Listing,
    model: &Model,
    output: &mut Output,
) -> Result<(), Failure> {
    let first = model.files.first().map_or("", |file| file.path.as_str());
    let name = crate::parcel::name_of(Path::new(first));
    let (folder, out) = match &options.out {
        Some(out) if out.is_dir() => (out.clone(), None),
        Some(out) => {
            let folder = out.parent().map(PathBuf::from).unwrap_or_default();
            (folder, Some(out.clone()))
        }
        None => (PathBuf::new(), None),
    };
    let out = out.unwrap_or_else(|| folder.join(format!("{name}.andon")));
    if out.exists() {
        return Err(Failure::Usage(format!(
            "{} exists; remove it, or name another place with --out",
            out.display()
        )));
    }
    let work = folder.join(format!("{name}.pull"));
    fs::create_dir_all(&work).map_err(|error| Failure::file("make", &work, error))?;
    let mut weights = Vec::new();
    for file in &model.files {
        let path = work.join(file_name(file));
        weights.push(download.fetch(file, &path)?.path);
    }
    let license_file = listing
        .files
        .iter()
        .filter(|file| {
            file.bytes
                .is_none_or(|bytes| bytes <= TEXT_MEMBER_BYTES_MAX)
        })
        .find(|file| LICENSE_NAMES.contains(&file.path.as_str()));
    let license_file = match license_file {
        Some(file) => Some(download.fetch(file, &work.join("LICENSE"))?.path),
        None => None,
    };
    let extras = Extras {
        license: listing.license.clone(),
        license_file,
        source: Some((download.repository.to_owned(), listing.revision.clone())),
        ..Extras::default()
    };
    let parcel = Parcel::new(&weights, extras)?;
    bundle::pack(&parcel, &out)?;
    fs::remove_dir_all(&work).map_err(|error| Failure::file("remove", &work, error))?;
    output.text(&format!("{}\n", out.display()))
}

fn said(fetched: &Fetched, output: &mut Output) -> Result<(), Failure> {
    eprintln!(
        "andonctl: {}, sha256 {}{}",
        size(fetched.bytes),
        fetched.sha256,
        if fetched.present {
            ", was here already"
        } else {
            ""
        }
    );
    output.text(&format!("{}\n", fetched.path.display()))
}

/// Where the files go. A path that ends with a slash is a folder, made if need be.
fn places(options: &PullOptions, model: &Model) -> Result<Vec<PathBuf>, Failure> {
    if let Some(out) = &options.out
        && out.as_os_str().as_encoded_bytes().ends_with(b"/")
    {
        fs::create_dir_all(out).map_err(|error| Failure::file("make", out, error))?;
    }
    match &options.out {
        Some(out) if !out.is_dir() => {
            if model.files.len() > 1 {
                return Err(Failure::Usage(format!(
                    "the model has {} files: --out has to be a folder that exists",
                    model.files.len()
                )));
            }
            Ok(vec![out.clone()])
        }
        out => {
            let folder = out.clone().unwrap_or_default();
            Ok(model
                .files
                .iter()
                .map(|file| folder.join(file_name(file)))
                .collect())
        }
    }
}

fn file_name(file: &Entry) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}

fn list(models: &[Model]) -> String {
    if models.is_empty() {
        return "the repository has no GGUF files\n".to_owned();
    }
    let mut text = String::new();
    for model in models {
        let bytes = model.bytes().map_or_else(|| "?".to_owned(), size);
        let word = match model.quantization.as_str() {
            "" => "-",
            word => word,
        };
        let path = model.files.first().map_or("", |file| file.path.as_str());
        let parts = match model.parts {
            1 => String::new(),
            parts => format!(" ({parts} parts)"),
        };
        text.push_str(&format!("{word:<12} {bytes:>10}  {path}{parts}\n"));
    }
    text
}

/// The user's token: from the environment or a file, never from the command line, where others see it.
fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    if let Some(path) = file {
        return read_token(path)?.map_or_else(
            || Err(Failure::Usage(format!("{} is empty", path.display()))),
            |token| Ok(Some(token)),
        );
    }
    if let Some(token) = env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(Some(token));
    }
    let usual = env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let home = env::var_os("HF_HOME").map(PathBuf::from).or_else(|| {
            let home = PathBuf::from(env::var_os("HOME")?);
            Some(home.join(".cache/huggingface"))
        })?;
        Some(home.join("token"))
    });
    match usual {
        Some(path) if path.is_file() => read_token(&path),
        _ => Ok(None),
    }
}

fn read_token(path: &Path) -> Result<Option<String>, Failure> {
    let failed = |error| Failure::file("read", path, error);
    let mut text = String::new();
    fs::File::open(path)
        .map_err(failed)?
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let token = text.trim();
    if token.bytes().any(|byte| !byte.is_ascii_graphic()) {
        let error = std::io::Error::new(ErrorKind::InvalidData, "it is not a token");
        return Err(Failure::file("read", path, error));
    }
    Ok(Some(token.to_owned()).filter(|token| !token.is_empty()))
}
