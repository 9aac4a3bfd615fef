//! Bundles: a model and all that goes with it in one file, to be carried where no network is.
//!
//! A bundle is an uncompressed tar archive: `manifest.json` first, then its members in its order, then
//! `manifest.sig` if it is signed, and nothing else. Weights do not compress, and an archive that any system can unpack
//! is easier to trust. Signatures come last so that a large bundle is signed without being written anew.
//!
//! Invariant: a bundle is opened without believing anything in it. Members are read where the headers
//! say that the manifest's files lie; no path of the archive ever becomes a path of this machine, and an
//! entry that is not the next of the manifest, or not a plain file, makes it no bundle.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use andon_wire::limits::{MANIFEST_BYTES_MAX, SIGNATURES_BYTES_MAX};
use andon_wire::manifest::{MANIFEST_PATH, Manifest, SIGNATURES_PATH};
use andon_wire::signature::SignaturesError;
use tar::{Archive, Builder, EntryType, Header};

use crate::arguments::models::{BundleCommand, BundleCreate, BundleRead, BundleSign, BundleVerify};
use crate::digest::Hasher;
use crate::failure::Failure;
use crate::key::Private;
use crate::output::Output;
use crate::parcel::{Extras, Parcel, Place, damaged, read_manifest};
use crate::progress::Progress;
use crate::pull::sync_folder;
use crate::report::{json, size};

/// Permission bits that members are given.
const MODE: u32 = 0o644;
/// Bytes of a tar archive's blocks.
const BLOCK_BYTES: u64 = 512;
/// Ending of a bundle's name.
const ENDING: &str = "andon";

/// The command `bundle`.
pub(crate) fn run(command: BundleCommand, output: &mut Output) -> Result<(), Failure> {
    match command {
        BundleCommand::Create(options) => create(*options, output),
        BundleCommand::Show(options) => show(&options, output),
        BundleCommand::Verify(options) => verify(&options, output),
        BundleCommand::Sign(options) => sign(&options, output),
    }
}

fn create(options: BundleCreate, output: &mut Output) -> Result<(), Failure> {
    let extras = Extras {
        name: options.name.map(|name| name.0),
        license: options.license,
        license_file: options.license_file,
        chat_template: options.chat_template,
        pre_tokenizer: options.pre_tokenizer,
        tasks: options.task,
        source: options.source.map(|source| {
            let revision = options.revision.unwrap_or_else(|| "unknown".to_owned());
            (source, revision)
        }),
    };
    // A key that cannot be used shows before gigabytes are read.
    let key = options.key.as_deref().map(Private::read).transpose()?;
    let mut parcel = Parcel::open(&options.model, extras)?;
    if let Some(key) = &key {
        parcel.sign(key)?;
    }
    let path = place(options.out.as_deref(), &parcel.manifest);
    pack(&parcel, &path)?;
    output.text(&format!("{}\n", path.display()))
}

/// Where a bundle goes: the file that was named, or into the folder under the model's name.
pub(crate) fn place(out: Option<&Path>, manifest: &Manifest) -> PathBuf {
    let name = format!("{}.{ENDING}", manifest.name);
    match out {
        Some(out) if out.is_dir() => out.join(name),
        Some(out) => out.to_owned(),
        None => PathBuf::from(name),
    }
}

/// Writes a bundle: complete or not at all.
pub(crate) fn pack(parcel: &Parcel, path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::Usage(format!(
            "{} exists; remove it, or name another place with --out",
            path.display()
        )));
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let outcome = write(parcel, &part)
        .and_then(|()| fs::rename(&part, path).map_err(|error| Failure::file("name", path, error)));
    if outcome.is_err() {
        // The failure is what the user is told; what is left of the file is only in the way.
        drop(fs::remove_file(&part));
    }
    outcome?;
    sync_folder(path)
}

fn write(parcel: &Parcel, path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::file("write", path, error);
    let manifest = &parcel.manifest;
    let file = File::create(path).map_err(failed)?;
    let mut builder = Builder::new(file);
    let mut header = header(MANIFEST_PATH, parcel.text.len() as u64, manifest).map_err(failed)?;
    builder
        .append(&header, parcel.text.as_bytes())
        .map_err(failed)?;
    let progress = Progress::bytes(&manifest.name, Some(manifest.bytes()));
    for (member, place) in manifest.members.iter().zip(&parcel.places) {
        header = self::header(&member.path, member.bytes, manifest).map_err(failed)?;
        let mut reader = Watched {
            reader: place.open()?,
            hasher: Hasher::new(),
            progress: &progress,
            bytes: 0,
        };
        builder.append(&header, &mut reader).map_err(failed)?;
        if reader.bytes != member.bytes || reader.hasher.finish() != member.sha256 {
            return Err(damaged(&place.path, "it changed while it was being packed"));
        }
    }
    if let Some(signatures) = &parcel.signatures {
        let text = signatures.to_string();
        header = self::header(SIGNATURES_PATH, text.len() as u64, manifest).map_err(failed)?;
        builder.append(&header, text.as_bytes()).map_err(failed)?;
    }
    let mut file = builder.into_inner().map_err(failed)?;
    file.flush().and_then(|()| file.sync_all()).map_err(failed)
}

fn header(path: &str, bytes: u64, manifest: &Manifest) -> std::io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_size(bytes);
    header.set_mode(MODE);
    header.set_mtime(manifest.created_s);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// Hashes what passes through.
struct Watched<'a, R> {
    reader: R,
    hasher: Hasher,
    progress: &'a Progress,
    bytes: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        self.progress.forward(count as u64);
        Ok(count)
    }
}

/// Opens a bundle: reads its manifest and finds its members, but not their bytes.
pub(crate) fn open(path: &Path) -> Result<Parcel, Failure> {
    let failed = |error| Failure::file("read", path, error);
    const NEITHER: &str = "it is neither a GGUF file nor a bundle";
    let none = |why: &str| damaged(path, &format!("{NEITHER}: {why}"));
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut archive = Archive::new(file);
    // Raw: extended headers, which may claim any size, are entries like others, and refused like others.
    let mut entries = archive
        .entries_with_seek()
        .map_err(|error| none(&error.to_string()))?
        .raw(true);
    let mut begun = false;
    let mut next = || -> Result<Option<(String, Place, String)>, Failure> {
        let Some(entry) = entries.next() else {
            return Ok(None);
        };
        let mut entry = entry.map_err(|error| {
            if begun {
                damaged(path, &format!("a header in it is damaged: {error}"))
            } else {
                // Anything may be given here by mistake, and what is wrong with its "header" says nothing then.
                damaged(path, NEITHER)
            }
        })?;
        begun = true;
        let header = entry.header();
        if !matches!(header.entry_type(), EntryType::Regular) || header.as_ustar().is_none() {
            return Err(none("an entry is not a plain file"));
        }
        let name = entry.path_bytes();
        let name = std::str::from_utf8(&name)
            .map_err(|_| none("a name is not UTF-8"))?
            .to_owned();
        let place = Place {
            path: path.to_owned(),
            offset: entry.raw_file_position(),
            bytes: entry.size(),
            made: None,
        };
        if place
            .offset
            .checked_add(place.bytes)
            .is_none_or(|end| end > length)
        {
            return Err(damaged(path, &format!("it ends within {name:?}")));
        }
        let mut text = String::new();
        let most = match name.as_str() {
            MANIFEST_PATH => MANIFEST_BYTES_MAX,
            SIGNATURES_PATH => SIGNATURES_BYTES_MAX,
            _ => 0,
        };
        if most > 0 {
            entry
                .by_ref()
                .take(most as u64 + 1)
                .read_to_string(&mut text)
                .map_err(|error| none(&format!("its {name}: {error}")))?;
        }
        Ok(Some((name, place, text)))
    };
    let Some((name, _, text)) = next()? else {
        return Err(none("it is empty"));
    };
    if name != MANIFEST_PATH {
        return Err(none(&format!("its first entry is not {MANIFEST_PATH}")));
    }
    let manifest = read_manifest(&text).map_err(|why| damaged(path, &why))?;
    let mut places = Vec::new();
    for member in &manifest.members {
        let Some((name, place, _)) = next()? else {
            return Err(damaged(path, &format!("{} is missing", member.path)));
        };
        if name != member.path.as_str() || place.bytes != member.bytes {
            return Err(damaged(
                path,
                &format!(
                    "{name:?} of {} bytes lies where the manifest has {} of {} bytes",
                    place.bytes, member.path, member.bytes
                ),
            ));
        }
        places.push(place);
    }
    let mut signatures = None;
    while let Some((name, _, text)) = next()? {
        if name != SIGNATURES_PATH || signatures.is_some() {
            return Err(damaged(path, &format!("{name:?} is not in the manifest")));
        }
        let found = text.parse().map_err(|error: SignaturesError| {
            damaged(path, &format!("{SIGNATURES_PATH} in it: {error}"))
        })?;
        signatures = Some(found);
    }
    Ok(Parcel {
        manifest,
        text,
        signatures,
        places,
        is_own: false,
    })
}

/// Signs a bundle, or a folder that one was unpacked into, in its place.
fn sign(options: &BundleSign, output: &mut Output) -> Result<(), Failure> {
    let key = Private::read(&options.key)?;
    let path = &options.bundle;
    let is_folder = path.is_dir();
    if is_folder && !path.join(MANIFEST_PATH).exists() {
        return Err(damaged(
            path,
            "it has no manifest: `andonctl bundle create` makes one",
        ));
    }
    let mut parcel = if is_folder {
        Parcel::open(path, Extras::default())?
    } else {
        open(path)?
    };
    parcel.sign(&key)?;
    let text = parcel
        .signatures
        .as_ref()
        .map_or_else(String::new, ToString::to_string);
    if is_folder {
        put_beside(path, &text)?;
    } else {
        put_signatures(&parcel, path, &text)
            .map_err(|error| Failure::file("write", path, error))?;
    }
    output.text(&format!(
        "{}: signed by {}\n",
        parcel.manifest.name,
        key.public().id()
    ))
}

/// Writes the signatures into a folder: those that were there, or these, and never half of them.
fn put_beside(folder: &Path, text: &str) -> Result<(), Failure> {
    let path = folder.join(SIGNATURES_PATH);
    let part = folder.join(format!(".{SIGNATURES_PATH}"));
    File::create(&part)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&part, &path))
        .map_err(|error| Failure::file("write", &path, error))?;
    sync_folder(&path)
}

/// Writes the signatures behind the last member, where the end of the archive or earlier signatures are. Their header comes
/// last: until it is there, the bundle is one without signatures.
fn put_signatures(parcel: &Parcel, path: &Path, text: &str) -> std::io::Result<()> {
    let end = parcel
        .places
        .last()
        .map_or(0, |place| place.offset.saturating_add(place.bytes))
        .next_multiple_of(BLOCK_BYTES);
    let header = header(SIGNATURES_PATH, text.len() as u64, &parcel.manifest)?;
    let mut data = text.as_bytes().to_vec();
    // Whole blocks, and the two empty ones that end an archive.
    data.resize(data.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    data.resize(data.len() + 2 * BLOCK_BYTES as usize, 0);
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[0; BLOCK_BYTES as usize], end)?;
    file.sync_all()?;
    file.write_all_at(&data, end + BLOCK_BYTES)?;
    file.set_len(end + BLOCK_BYTES + data.len() as u64)?;
    file.sync_all()?;
    file.write_all_at(header.as_bytes(), end)?;
    file.sync_all()
}

fn show(options: &BundleRead, output: &mut Output) -> Result<(), Failure> {
    let parcel = open(&options.bundle)?;
    if options.json {
        return json(output, &*parcel.manifest);
    }
    let mut text = describe(&parcel.manifest);
    for signature in parcel.signatures.iter().flat_map(|all| &all.0) {
        text.push_str(&format!(
            "  says that {} signed it (`bundle verify --trust` looks whether that is so)\n",
            signature.key
        ));
    }
    output.text(&text)
}

fn verify(options: &BundleVerify, output: &mut Output) -> Result<(), Failure> {
    let path = &options.read.bundle;
    let parcel = open(path)?;
    let signed = options.trust.iter().find(|key| {
        let mut signatures = parcel.signatures.iter().flat_map(|all| &all.0);
        signatures.any(|signature| key.signed(&parcel.text, signature))
    });
    if signed.is_none() && !options.trust.is_empty() {
        return Err(damaged(path, "none of these keys signed it"));
    }
    parcel.verify()?;
    if options.read.json {
        return json(output, &*parcel.manifest);
    }
    output.text(&format!(
        "{}: {} files, {}, all as the manifest says{}\n",
        parcel.manifest.name,
        parcel.manifest.members.len(),
        size(parcel.manifest.bytes()),
        signed.map_or_else(String::new, |key| format!(", signed by {}", key.id())),
    ))
}

/// A manifest as people read it.
pub(crate) fn describe(manifest: &Manifest) -> String {
    let mut text = format!(
        "{}: {} {}, {}, license {}\n",
        manifest.name,
        manifest.architecture,
        manifest.quantization,
        size(manifest.bytes()),
        manifest.license.as_deref().unwrap_or("not stated"),
    );
    if let Some(source) = &manifest.source {
        text.push_str(&format!(
            "  from {} at {}\n",
            source.repository, source.revision
        ));
    }
    if let Some(name) = &manifest.pre_tokenizer {
        text.push_str(&format!("  pre-tokenizer {name}\n"));
    }
    for member in &manifest.members {
        text.push_str(&format!(
            "  {:<13} {:>10}  {}  {}\n",
            member.role.as_str(),
            size(member.bytes),
            member.sha256,
            member.path
        ));
    }
    text
}
