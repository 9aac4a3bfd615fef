//! A model as it lies here: a manifest, and for each of its members the bytes of some file.
//!
//! It is made of a GGUF file, of all parts of a split one, of a folder, or of a bundle; whatever sends,
//! packs or verifies models sees only this.
//!
//! Invariant: the manifest of a parcel passed its check, and every member has the size that it says.
//! Digests are those of the manifest; whoever reads the bytes compares.

use std::fs::{self, File};
use std::io::{Cursor, ErrorKind, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use andon_wire::limits::{
    MANIFEST_BYTES_MAX, MEMBERS_MAX, SIGNATURES_BYTES_MAX, SIGNATURES_MAX,
    TENSOR_DIGESTS_BYTES_MAX, TENSOR_NAME_BYTES_MAX,
};
use andon_wire::manifest::{
    CHAT_TEMPLATE_PATH, Digest, FORMAT, FORMAT_MIN, LICENSE_PATH, MANIFEST_PATH, Manifest, Member,
    Role, SIGNATURES_PATH, TASKS_FOLDER, TENSORS_PATH, is_model_name, part_of,
};
use andon_wire::signature::{Signatures, SignaturesError};
use andon_wire::tensors;
use serde::Deserialize;

use crate::bundle;
use crate::digest::Hasher;
use crate::failure::Failure;
use crate::gguf::{self, Head};
use crate::key::Private;
use crate::progress::Progress;

/// Most tasks and other files beside the weights that a folder may have.
const EXTRAS_MAX: usize = MEMBERS_MAX;

/// A model to be sent or packed.
pub(crate) struct Parcel {
    pub(crate) manifest: Box<Manifest>,
    /// The manifest's bytes, as they are kept.
    pub(crate) text: String,
    /// Signatures over these bytes, as they came; at least well formed.
    pub(crate) signatures: Option<Signatures>,
    /// Where each member's bytes are, in the manifest's order.
    pub(crate) places: Vec<Place>,
    /// Whether its digests were made here, of these bytes, rather than by whom it is from.
    pub(crate) is_own: bool,
}

/// A piece of a file of weights: where it begins, what it is called, and its digest.
type Piece = (u64, String, Digest);

/// Bytes of a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// What was made here and lies in no file.
    pub(crate) made: Option<Arc<str>>,
}

impl Place {
    /// A reader of exactly these bytes.
    pub(crate) fn open(&self) -> Result<Box<dyn Read>, Failure> {
        if let Some(made) = &self.made {
            return Ok(Box::new(Cursor::new(made.as_bytes().to_vec())));
        }
        let failed = |error| Failure::file("read", &self.path, error);
        let mut file = File::open(&self.path).map_err(failed)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(failed)?;
        Ok(Box::new(file.take(self.bytes)))
    }

    /// All of a file.
    fn whole(path: PathBuf, bytes: u64) -> Self {
        Self {
            path,
            offset: 0,
            bytes,
            made: None,
        }
    }
}

/// What a parcel is made with beside its weights.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    pub(crate) name: Option<String>,
    pub(crate) license: Option<String>,
    pub(crate) license_file: Option<PathBuf>,
    pub(crate) chat_template: Option<PathBuf>,
    pub(crate) pre_tokenizer: Option<String>,
    pub(crate) tasks: Vec<PathBuf>,
    /// Repository and revision.
    pub(crate) source: Option<(String, String)>,
}

/// Whether the file begins as a GGUF file does.
fn is_gguf(path: &Path) -> Result<bool, Failure> {
    // Before it is opened: a pipe would wait for somebody to write into it.
    size(path)?;
    let mut magic = [0; 4];
    let read = File::open(path)
        .and_then(|mut file| file.read(&mut magic))
        .map_err(|error| Failure::file("read", path, error))?;
    Ok(read == magic.len() && magic == *b"GGUF")
}

impl Parcel {
    /// The model at `path`: a GGUF file, a bundle, or a folder. `extras` are for what has no manifest yet.
    pub(crate) fn open(path: &Path, extras: Extras) -> Result<Self, Failure> {
        if path.is_dir() {
            let manifest = path.join(MANIFEST_PATH);
            if manifest.exists() {
                return Self::unpacked(path, &manifest);
            }
            return Self::folder(path, extras);
        }
        if is_gguf(path)? {
            let weights = parts(path)?;
            return Self::new(&weights, extras);
        }
        bundle::open(path)
    }

    /// A folder that a bundle was unpacked into.
    fn unpacked(folder: &Path, manifest: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::file("read", manifest, error);
        let mut text = String::new();
        File::open(manifest)
            .map_err(failed)?
            .take(MANIFEST_BYTES_MAX as u64 + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let manifest = read_manifest(&text).map_err(|why| damaged(manifest, &why))?;
        let mut places = Vec::new();
        for member in &manifest.members {
            let path = folder.join(member.path.as_str());
            let bytes = size(&path)?;
            if bytes != member.bytes {
                let why = format!(
                    "it has {bytes} bytes where the manifest says {}",
                    member.bytes
                );
                return Err(damaged(&path, &why));
            }
            places.push(Place::whole(path, bytes));
        }
        let path = folder.join(SIGNATURES_PATH);
        let signatures = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::file("read", &path, error)),
            Ok(file) => {
                let mut text = String::new();
                file.take(SIGNATURES_BYTES_MAX as u64 + 1)
                    .read_to_string(&mut text)
                    .map_err(|error| Failure::file("read", &path, error))?;
                Some(
                    text.parse()
                        .map_err(|error: SignaturesError| damaged(&path, &error.to_string()))?,
                )
            }
        };
        Ok(Self {
            manifest,
            text,
            signatures,
            places,
            is_own: false,
        })
    }

    /// A folder with one model and, by their names, what goes with it.
    fn folder(folder: &Path, mut extras: Extras) -> Result<Self, Failure> {
        let mut weights = Vec::new();
        for path in files(folder)? {
            let parted = path
                .file_name()
                .and_then(|name| part_of(name.to_str()?))
                .map(|(_, part)| part);
            // All parts of a model are found by its first.
            if path.extension().is_some_and(|ending| ending == "gguf")
                && parted.is_none_or(|(number, _)| number == 1)
            {
                weights.push(path);
            }
        }
        let weights = match weights.as_slice() {
            [first] => parts(first)?,
            [] => return Err(damaged(folder, "it has no GGUF file")),
            _ => {
                return Err(Failure::Usage(format!(
                    "{} has several models; name the file",
                    folder.display()
                )));
            }
        };
        let beside = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        extras.license_file = extras.license_file.or_else(|| beside(LICENSE_PATH));
        extras.chat_template = extras.chat_template.or_else(|| beside(CHAT_TEMPLATE_PATH));
        let tasks = folder.join(TASKS_FOLDER);
        if tasks.is_dir() {
            extras.tasks.extend(
                files(&tasks)?
                    .into_iter()
                    .filter(|path| path.extension().is_some_and(|ending| ending == "toml")),
            );
        }
        Self::new(&weights, extras)
    }

    /// A parcel of these weights; reads all files to make their digests.
    pub(crate) fn new(weights: &[PathBuf], extras: Extras) -> Result<Self, Failure> {
        let first = weights.first().map_or(Path::new(""), PathBuf::as_path);
        let head = gguf::head(first)?;
        let name = match &extras.name {
            Some(name) => name.clone(),
            None => name_of(first),
        };
        let mut files: Vec<(PathBuf, String, Role)> = Vec::new();
        for path in weights {
            files.push((
                path.clone(),
                weights_name(path, weights.len())?,
                Role::Weights,
            ));
        }
        if let Some(path) = extras.license_file {
            files.push((path, LICENSE_PATH.to_owned(), Role::License));
        }
        if let Some(path) = extras.chat_template {
            files.push((path, CHAT_TEMPLATE_PATH.to_owned(), Role::ChatTemplate));
        }
        for path in extras.tasks {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let inside = format!("{TASKS_FOLDER}/{name}");
            files.push((path, inside, Role::Task));
        }
        let total = files.iter().try_fold(0u64, |sum, (path, ..)| {
            Ok::<u64, Failure>(sum.saturating_add(size(path)?))
        })?;
        let progress = Progress::bytes(&format!("{name} (digest)"), Some(total));
        let mut manifest = Box::new(manifest_of(&name, &head, extras.license, first)?);
        manifest.pre_tokenizer = match extras.pre_tokenizer {
            Some(name) => Some(bounded("the pre-tokenizer", &name)?),
            None => None,
        };
        if let Some((repository, revision)) = extras.source {
            manifest.source = Some(andon_wire::manifest::Source {
                repository: bounded("the repository", &repository)?,
                revision: bounded("the revision", &revision)?,
            });
        }
        let mut places = Vec::new();
        let mut push = |member: Member, place: Place| {
            places.push(place);
            let pushed = manifest.members.push(member);
            pushed.map_err(|_| Failure::Usage(format!("a model has at most {MEMBERS_MAX} files")))
        };
        let mut digests = Digests::new();
        for (path, inside, role) in files {
            let bytes = size(&path)?;
            let (sha256, verity) = match role {
                Role::Weights => {
                    // What is no sound file the daemon refuses, and says why.
                    let tensors = gguf::tensors(&path, bytes).unwrap_or_default();
                    let failed = |error| Failure::file("read", &path, error);
                    let mut file = File::open(&path).map_err(failed)?;
                    let found =
                        crate::digest::of_weights(&mut file, tensors, &progress).map_err(failed)?;
                    digests.add(&found.pieces);
                    (found.whole, Some(found.verity))
                }
                _ => (crate::digest::of_file(&path, &progress)?, None),
            };
            let member = Member {
                path: bounded("the path", &inside)?,
                role,
                bytes,
                sha256,
                verity,
            };
            push(member, Place::whole(path, bytes))?;
        }
        if let Some((member, place)) = digests.finish()? {
            push(member, place)?;
        }
        manifest
            .check()
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let mut text = serde_json::to_string_pretty(&*manifest)
            .map_err(|error| Failure::Usage(error.to_string()))?;
        text.push('\n');
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "the manifest has {} bytes, at most {MANIFEST_BYTES_MAX} are allowed",
                text.len()
            )));
        }
        Ok(Self {
            manifest,
            text,
            signatures: None,
            places,
            is_own: true,
        })
    }

    /// Signs it, beside whoever signed it before. Whoever signs says that the files are those of the manifest, so what
    /// others say of them is compared first.
    ///
    /// # Errors
    /// What differs, and what [`Parcel::verify`] says.
    pub(crate) fn sign(&mut self, key: &Private) -> Result<(), Failure> {
        if !self.is_own {
            self.verify()?;
        }
        let signature = key.sign(&self.text);
        let signatures = self
            .signatures
            .get_or_insert_with(|| Signatures(heapless::Vec::new()));
        signatures.0.retain(|other| other.key != signature.key);
        signatures.0.push(signature).map_err(|_| {
            Failure::Usage(format!(
                "it has {SIGNATURES_MAX} signatures, the most there may be"
            ))
        })
    }

    /// Compares every member with all that the manifest says of it: the digest of the whole, what fs-verity measures, and
    /// the digests of tensors. A daemon goes by any of the three.
    ///
    /// # Errors
    /// What differs, or cannot be read.
    pub(crate) fn verify(&self) -> Result<(), Failure> {
        let progress = Progress::bytes(&self.manifest.name, Some(self.manifest.bytes()));
        let mut lists = self.pieces()?.into_iter();
        for (member, place) in self.manifest.members.iter().zip(&self.places) {
            let failed = |error| Failure::file("read", &place.path, error);
            let differs = |what: &str, found: &Digest, said: &Digest| {
                let path = &member.path;
                let why = format!("{path} {what} {found} where the manifest says {said}");
                damaged(&place.path, &why)
            };
            let mut reader = place.open()?;
            let failure = if member.role == Role::Weights {
                let pieces = lists.next().unwrap_or_default();
                let borders = pieces.iter().map(|piece| (piece.0, piece.1.clone()));
                let borders = borders.skip(1).collect();
                let found =
                    crate::digest::of_weights(&mut reader, borders, &progress).map_err(failed)?;
                let whole = (found.whole != member.sha256)
                    .then(|| differs("has the digest", &found.whole, &member.sha256));
                let verity = member.verity.filter(|said| *said != found.verity);
                let verity = verity.map(|said| differs("measures", &found.verity, &said));
                let mut pieces = pieces.iter().zip(&found.pieces);
                let piece = pieces.find(|((_, _, said), (_, _, found))| said != found);
                let piece = piece.map(|((_, name, said), (_, _, found))| {
                    let what = format!("has in {name}, by {TENSORS_PATH}, the digest");
                    differs(&what, found, said)
                });
                whole.or(verity).or(piece)
            } else {
                let found = crate::digest::of_reader(&mut reader, &progress).map_err(failed)?;
                (found != member.sha256).then(|| differs("has the digest", &found, &member.sha256))
            };
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// The pieces that its digests of tensors say each file of weights has: where they begin, and what they are.
    fn pieces(&self) -> Result<Vec<Vec<Piece>>, Failure> {
        let mut members = self.manifest.members.iter().zip(&self.places);
        let Some((member, place)) = members.find(|(member, _)| member.role == Role::TensorDigests)
        else {
            return Ok(Vec::new());
        };
        let mut text = String::new();
        place
            .open()?
            .take(TENSOR_DIGESTS_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(|error| Failure::file("read", &place.path, error))?;
        let mut lists: Vec<Vec<_>> = Vec::new();
        tensors::read(&text, &self.manifest, &mut |piece| {
            lists.resize_with(lists.len().max(piece.file + 1), Vec::new);
            if let Some(list) = lists.last_mut() {
                list.push((piece.offset, piece.name.to_owned(), piece.sha256));
            }
        })
        .map_err(|error| damaged(&place.path, &format!("{}: {error}", member.path)))?;
        Ok(lists)
    }
}

/// The digests of all tensors, as they are being written.
struct Digests {
    text: String,
    files: usize,
    tensors: bool,
}

impl Digests {
    fn new() -> Self {
        Self {
            text: format!("{}\n", tensors::FIRST_LINE),
            files: 0,
            tensors: false,
        }
    }

    fn add(&mut self, pieces: &[(u64, String, Digest)]) {
        self.tensors |= pieces.len() > 1;
        for (bytes, name, digest) in pieces {
            let mut name: String = name
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            let end = name.floor_char_boundary(TENSOR_NAME_BYTES_MAX);
            name.truncate(end);
            if name.is_empty() {
                name.push('?');
            }
            self.text
                .push_str(&format!("{digest} {} {bytes} {name}\n", self.files));
        }
        self.files += 1;
    }

    /// The member that they are; none where they would say no more than the manifest.
    fn finish(self) -> Result<Option<(Member, Place)>, Failure> {
        let bytes = self.text.len() as u64;
        if !self.tensors || bytes > TENSOR_DIGESTS_BYTES_MAX {
            return Ok(None);
        }
        let mut hasher = Hasher::new();
        hasher.update(self.text.as_bytes());
        let member = Member {
            path: bounded("the path", TENSORS_PATH)?,
            role: Role::TensorDigests,
            bytes,
            sha256: hasher.finish(),
            verity: None,
        };
        let place = Place {
            made: Some(self.text.into()),
            ..Place::whole(TENSORS_PATH.into(), bytes)
        };
        Ok(Some((member, place)))
    }
}

fn manifest_of(
    name: &str,
    head: &Head,
    license: Option<String>,
    first: &Path,
) -> Result<Manifest, Failure> {
    let license = license.or_else(|| head.license.clone());
    Ok(Manifest {
        format: FORMAT,
        name: bounded("the name", name)?,
        architecture: bounded("the architecture", &head.architecture)?,
        quantization: bounded("the quantization", head.quantization.unwrap_or("unknown"))?,
        license: match license {
            // What a file says of its licence may be a whole text; then it is not an id.
            Some(license) => heapless::String::try_from(license.as_str()).ok(),
            None => None,
        },
        source: None,
        pre_tokenizer: None,
        created_s: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|error| damaged(first, &error.to_string()))?
            .as_secs(),
        members: heapless::Vec::new(),
    })
}

/// Reads a manifest. A newer format is named as such, whatever else it holds.
pub(crate) fn read_manifest(text: &str) -> Result<Box<Manifest>, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u16,
    }
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(format!(
            "the manifest has more than {MANIFEST_BYTES_MAX} bytes"
        ));
    }
    let found: Format =
        serde_json::from_str(text).map_err(|error| format!("the manifest: {error}"))?;
    if !(FORMAT_MIN..=FORMAT).contains(&found.format) {
        return Err(format!(
            "its format is {}, this program reads {FORMAT_MIN} to {FORMAT}",
            found.format
        ));
    }
    let manifest: Box<Manifest> =
        serde_json::from_str(text).map_err(|error| format!("the manifest: {error}"))?;
    manifest.check().map_err(|error| error.to_string())?;
    Ok(manifest)
}

pub(crate) fn damaged(path: &Path, why: &str) -> Failure {
    Failure::Damaged(format!("{}: {why}", path.display()))
}

fn bounded<const N: usize>(what: &str, text: &str) -> Result<heapless::String<N>, Failure> {
    heapless::String::try_from(text)
        .map_err(|_| Failure::Usage(format!("{what} {text:?} has more than {N} bytes")))
}

fn size(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path).map_err(|error| Failure::file("read", path, error))?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(damaged(path, "it is not a file"))
    }
}

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| Failure::file("read", folder, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)?.take(EXTRAS_MAX + 1) {
        paths.push(entry.map_err(failed)?.path());
    }
    if paths.len() > EXTRAS_MAX {
        return Err(damaged(
            folder,
            &format!("it has more than {EXTRAS_MAX} entries"),
        ));
    }
    paths.sort();
    Ok(paths)
}

/// The file, or if it is a part all parts of its model.
fn parts(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((stem, (_, count))) = part_of(&name) else {
        return Ok(vec![path.to_owned()]);
    };
    if count == 0 || count > MEMBERS_MAX {
        return Err(damaged(path, &format!("a model of {count} parts")));
    }
    (1..=count)
        .map(|number| {
            let part = path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
            if part.is_file() {
                Ok(part)
            } else {
                Err(damaged(&part, "this part of the model is missing"))
            }
        })
        .collect()
}

/// The name of a file of weights in its bundle: its own, if that can be one.
fn weights_name(path: &Path, count: usize) -> Result<String, Failure> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    if name.len() <= andon_wire::limits::MEMBER_PATH_BYTES_MAX
        && stem.len() < name.len()
        && stem.split('.').all(|part| !part.is_empty())
        && stem
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        && !stem.starts_with(['-', '.'])
    {
        return Ok(name.into_owned());
    }
    if count == 1 {
        return Ok("model.gguf".to_owned());
    }
    Err(Failure::Usage(format!(
        "{}: a part's name has letters, digits, '.', '-' and '_' only",
        path.display()
    )))
}

/// A model's name, from its file's.
pub(crate) fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = match part_of(&name) {
        Some((stem, _)) => stem.to_owned(),
        None => Path::new(&*name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let mut clean: String = stem
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c
            } else {
                '-'
            }
        })
        .skip_while(|c| matches!(c, '.' | '-'))
        .take(andon_wire::limits::NAME_BYTES_MAX)
        .collect();
    if !is_model_name(&clean) {
        clean = "model".to_owned();
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::name_of;
    use std::path::Path;

    #[test]
    fn names_come_from_files() {
        for (path, name) in [
            (
                "/m/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1",
            ),
            ("m-00001-of-00003.gguf", "m"),
            ("..gguf", "model"),
            ("ein modell ä.gguf", "ein-modell--"),
            ("", "model"),
        ] {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
        }
    }
}
