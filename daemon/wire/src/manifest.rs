//! What a model consists of: the manifest of a bundle, and of a model that a daemon keeps.
//!
//! A bundle is an uncompressed tar archive whose first member is `manifest.json`, this value as
//! JSON; the other members follow in the manifest's order and are exactly those it lists. After them
//! `manifest.sig` may stand, signatures over the manifest's bytes ([`crate::signature`]), which is why
//! those bytes are carried as they are and never written anew on the way.
//!
//! Invariant: a manifest that [`Manifest::check`] let through names plain files only: no path of it
//! leaves the folder it is unpacked in, none stands for two files, and each has its size and digest.
//! The value is for self-describing formats; it is not part of any frame.

use core::fmt;
use core::str::FromStr;

use heapless::{String, Vec};
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{
    LABEL_BYTES_MAX, MEMBER_PATH_BYTES_MAX, MEMBERS_MAX, MODEL_BYTES_MAX, NAME_BYTES_MAX,
    TENSOR_DIGESTS_BYTES_MAX, TEXT_MEMBER_BYTES_MAX,
};

/// The format that this crate describes.
pub const FORMAT: u16 = 2;
/// The oldest that it reads too: without digests of tensors and of fs-verity.
pub const FORMAT_MIN: u16 = 1;

/// Name of the manifest in a bundle and in a registered model's folder.
pub const MANIFEST_PATH: &str = "manifest.json";
/// Name of the signatures over the manifest, beside it.
pub const SIGNATURES_PATH: &str = "manifest.sig";
/// Path of the digests of tensors.
pub const TENSORS_PATH: &str = "tensors.sha256";
/// Path of the licence's text.
pub const LICENSE_PATH: &str = "LICENSE";
/// Path of the chat template that replaces the model's own.
pub const CHAT_TEMPLATE_PATH: &str = "chat_template.jinja";
/// Folder of the tasks, one file `<task>.toml` each.
pub const TASKS_FOLDER: &str = "tasks";

/// Most bytes in a repository's name.
const REPOSITORY_BYTES_MAX: usize = 2 * NAME_BYTES_MAX + 1;

/// What a model consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Number of the format, [`FORMAT_MIN`] to [`FORMAT`].
    pub format: u16,
    /// The name it is registered under unless another is given.
    pub name: String<NAME_BYTES_MAX>,
    /// `general.architecture` of the weights.
    pub architecture: String<LABEL_BYTES_MAX>,
    /// How the weights are stored, such as `Q4_K_M`.
    pub quantization: String<LABEL_BYTES_MAX>,
    /// Id of the licence, as SPDX or its publisher writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String<LABEL_BYTES_MAX>>,
    /// Where it was got from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Name of the pre-tokenizer, where the file's own is not to be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_tokenizer: Option<String<LABEL_BYTES_MAX>>,
    /// When the manifest was made, in seconds since 1970.
    pub created_s: u64,
    /// Its files, in the order of the bundle.
    pub members: Vec<Member, MEMBERS_MAX>,
}

/// Where a model was got from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// The repository, `owner/name`.
    pub repository: String<REPOSITORY_BYTES_MAX>,
    /// The revision, a commit where it is known.
    pub revision: String<LABEL_BYTES_MAX>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Member {
    /// Where it lies in the bundle and in the model's folder.
    pub path: String<MEMBER_PATH_BYTES_MAX>,
    /// What it is.
    pub role: Role,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
    /// What the kernel measures of it once fs-verity is on: with SHA-256, blocks of 4096 bytes and no salt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Digest>,
}

/// What a file of a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A GGUF file, or one of those a split model consists of.
    Weights,
    /// The licence's text.
    License,
    /// A chat template that replaces the model's own.
    ChatTemplate,
    /// A task, as a `[task.<name>]` section of the configuration.
    Task,
    /// Digests of the tensors ([`crate::tensors`]), so that one can be checked without the others.
    TensorDigests,
}

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a SHA-256 digest of 64 lower-case hexadecimal digits")]
pub struct NotADigest;

/// Why a manifest cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError<'a> {
    /// It is of another format.
    #[error("the manifest's format is {0}, this version reads {FORMAT_MIN} to {FORMAT}")]
    Format(u16),
    /// It is of an older format that has no such thing.
    #[error("{0:?} is, or has, what the manifest's format does not know")]
    Newer(&'a str),
    /// The name is none.
    #[error(
        "{0:?} is not a model's name: 1 to {NAME_BYTES_MAX} letters, digits, '.', '-' or '_', not beginning with '.' or '-'"
    )]
    Name(&'a str),
    /// There are no weights.
    #[error("no member has the role weights")]
    NoWeights,
    /// A path is not where a file of its role lies.
    #[error("{path:?} is not the path of a file with the role {}", role.as_str())]
    Path {
        /// The path.
        path: &'a str,
        /// What the file is said to be.
        role: Role,
    },
    /// Two members have one path.
    #[error("{0:?} stands in it twice")]
    Twice(&'a str),
    /// A size is out of bounds.
    #[error("{path:?} has {bytes} bytes, allowed are 1 to {bytes_max}")]
    Size {
        /// The path.
        path: &'a str,
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Several weights that are not the parts of one model.
    #[error("{0:?} is not the next part of one split model: name-00001-of-0000N.gguf and so on")]
    Parts(&'a str),
}

impl Role {
    /// The word for this role in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::License => "license",
            Self::ChatTemplate => "chat-template",
            Self::Task => "task",
            Self::TensorDigests => "tensor-digests",
        }
    }
}

impl Manifest {
    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), ManifestError<'_>> {
        if !(FORMAT_MIN..=FORMAT).contains(&self.format) {
            return Err(ManifestError::Format(self.format));
        }
        if !is_model_name(&self.name) {
            return Err(ManifestError::Name(&self.name));
        }
        for (index, member) in self.members.iter().enumerate() {
            member.check()?;
            if self.format == FORMAT_MIN && member.is_of_format_2() {
                return Err(ManifestError::Newer(&member.path));
            }
            let earlier = self.members.get(..index).unwrap_or_default();
            // File systems that ignore case would put both into one file.
            if earlier
                .iter()
                .any(|other| other.path.eq_ignore_ascii_case(&member.path))
            {
                return Err(ManifestError::Twice(&member.path));
            }
        }
        let count = self.weights().count();
        if count == 0 {
            return Err(ManifestError::NoWeights);
        }
        if count > 1 {
            let stem = self.weights().next().and_then(|first| {
                let (stem, _) = part_of(&first.path)?;
                Some(stem)
            });
            for (index, member) in self.weights().enumerate() {
                if part_of(&member.path)
                    .is_none_or(|part| Some(part.0) != stem || part.1 != (index + 1, count))
                {
                    return Err(ManifestError::Parts(&member.path));
                }
            }
        }
        Ok(())
    }

    /// The weights, in order.
    pub fn weights(&self) -> impl Iterator<Item = &Member> {
        self.of(Role::Weights)
    }

    /// The members of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.role == role)
    }

    /// The digests of its tensors, if it has them.
    #[must_use]
    pub fn tensor_digests(&self) -> Option<&Member> {
        self.of(Role::TensorDigests).next()
    }

    /// Bytes of all members together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.members
            .iter()
            .fold(0, |sum, member| sum.saturating_add(member.bytes))
    }
}

impl Member {
    fn check(&self) -> Result<(), ManifestError<'_>> {
        let path = self.path.as_str();
        let good = match self.role {
            Role::Weights => path.strip_suffix(".gguf").is_some_and(is_file_name),
            Role::License => path == LICENSE_PATH,
            Role::ChatTemplate => path == CHAT_TEMPLATE_PATH,
            Role::Task => path
                .strip_prefix(TASKS_FOLDER)
                .and_then(|rest| rest.strip_prefix('/'))
                .and_then(|rest| rest.strip_suffix(".toml"))
                .is_some_and(is_model_name),
            Role::TensorDigests => path == TENSORS_PATH,
        };
        if !good {
            return Err(ManifestError::Path {
                path,
                role: self.role,
            });
        }
        let bytes_max = match self.role {
            Role::Weights => MODEL_BYTES_MAX,
            Role::TensorDigests => TENSOR_DIGESTS_BYTES_MAX,
            _ => TEXT_MEMBER_BYTES_MAX,
        };
        if self.bytes == 0 || self.bytes > bytes_max {
            return Err(ManifestError::Size {
                path,
                bytes: self.bytes,
                bytes_max,
            });
        }
        Ok(())
    }

    fn is_of_format_2(&self) -> bool {
        self.role == Role::TensorDigests || self.verity.is_some()
    }

    /// For a task, its name.
    #[must_use]
    pub fn task_name(&self) -> Option<&str> {
        self.path
            .strip_prefix(TASKS_FOLDER)?
            .strip_prefix('/')?
            .strip_suffix(".toml")
    }
}

/// Whether a registered model may have this name: it becomes a folder's name.
#[must_use]
pub fn is_model_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX && is_file_name(name)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['.', '-'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// What precedes `-00001-of-00003.gguf` in a name, and the part's number and how many there are.
#[must_use]
pub fn part_of(path: &str) -> Option<(&str, (usize, usize))> {
    let number = |text: &str| -> Option<usize> {
        (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| text.parse().ok())?
    };
    let (rest, count) = path.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    Some((stem, (number(index)?, number(count)?)))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        hexadecimal(text).map(Self).ok_or(NotADigest)
    }
}

/// The bytes that so many pairs of hexadecimal digits stand for.
pub(crate) fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let pair = core::str::from_utf8(pair).ok()?;
        // `from_str_radix` would take a sign, and capitals: two texts of one meaning.
        if !pair
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 lower-case hexadecimal digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, FORMAT, Manifest, ManifestError, Member, Role, is_model_name, part_of};
    use heapless::{String, Vec};

    fn text<const N: usize>(text: &str) -> String<N> {
        String::try_from(text).unwrap()
    }

    fn member(path: &str, role: Role) -> Member {
        Member {
            path: text(path),
            role,
            bytes: 5,
            sha256: Digest([7; 32]),
            verity: None,
        }
    }

    fn manifest(members: &[Member]) -> Manifest {
        Manifest {
            format: FORMAT,
            name: text("smollm2"),
            architecture: text("llama"),
            quantization: text("Q4_1"),
            license: None,
            source: None,
            pre_tokenizer: None,
            created_s: 0,
            members: Vec::from_slice(members).unwrap(),
        }
    }

    #[test]
    fn whole_models_are_let_through() {
        let weights = member("model.gguf", Role::Weights);
        assert_eq!(manifest(core::slice::from_ref(&weights)).check(), Ok(()));
        let full = [
            member("m-00001-of-00002.gguf", Role::Weights),
            member("m-00002-of-00002.gguf", Role::Weights),
            member("LICENSE", Role::License),
            member("chat_template.jinja", Role::ChatTemplate),
            member("tasks/explain.toml", Role::Task),
            member("tensors.sha256", Role::TensorDigests),
        ];
        assert_eq!(manifest(&full).check(), Ok(()));
        assert!(manifest(&full).tensor_digests().is_some());
        assert_eq!(full[4].task_name(), Some("explain"));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for (path, role) in [
            ("../model.gguf", Role::Weights),
            ("/etc/model.gguf", Role::Weights),
            ("a/model.gguf", Role::Weights),
            (".gguf", Role::Weights),
            ("..gguf", Role::Weights),
            ("-model.gguf", Role::Weights),
            ("mo\u{e9}el.gguf", Role::Weights),
            ("model.gguf\n", Role::Weights),
            ("manifest.json", Role::License),
            ("license", Role::License),
            ("chat_template.jinja2", Role::ChatTemplate),
            ("tasks/../../x.toml", Role::Task),
            ("tasks/.toml", Role::Task),
            ("tasks/a/b.toml", Role::Task),
            ("task/a.toml", Role::Task),
        ] {
            let all = [member("model.gguf", Role::Weights), member(path, role)];
            assert!(
                matches!(
                    manifest(&all).check(),
                    Err(ManifestError::Path { .. } | ManifestError::Twice(_))
                ),
                "{path:?}"
            );
        }
    }

    #[test]
    fn what_does_not_make_one_model_is_refused() {
        assert_eq!(manifest(&[]).check(), Err(ManifestError::NoWeights));
        let twice = [
            member("model.gguf", Role::Weights),
            member("MODEL.gguf", Role::Weights),
        ];
        assert!(matches!(
            manifest(&twice).check(),
            Err(ManifestError::Twice(_))
        ));
        for second in [
            "m-00003-of-00002.gguf",
            "n-00002-of-00002.gguf",
            "m-00002-of-00003.gguf",
            "other.gguf",
        ] {
            let parts = [
                member("m-00001-of-00002.gguf", Role::Weights),
                member(second, Role::Weights),
            ];
            assert!(
                matches!(manifest(&parts).check(), Err(ManifestError::Parts(_))),
                "{second}"
            );
        }
        let mut empty = member("model.gguf", Role::Weights);
        empty.bytes = 0;
        assert!(matches!(
            manifest(&[empty]).check(),
            Err(ManifestError::Size { .. })
        ));
        let mut other = manifest(&[member("model.gguf", Role::Weights)]);
        for format in [0, FORMAT + 1] {
            other.format = format;
            assert_eq!(other.check(), Err(ManifestError::Format(format)));
        }
        other.format = FORMAT;
        other.name = text("..");
        assert!(matches!(other.check(), Err(ManifestError::Name(_))));
    }

    #[test]
    fn the_first_format_is_read_and_has_nothing_of_the_second() {
        let mut old = manifest(&[member("model.gguf", Role::Weights)]);
        old.format = 1;
        assert_eq!(old.check(), Ok(()));
        let mut newer = old.clone();
        newer.members[0].verity = Some(Digest([1; 32]));
        assert_eq!(newer.check(), Err(ManifestError::Newer("model.gguf")));
        newer.format = FORMAT;
        assert_eq!(newer.check(), Ok(()));
        newer = old;
        let digests = member("tensors.sha256", Role::TensorDigests);
        newer.members.push(digests).unwrap();
        assert_eq!(newer.check(), Err(ManifestError::Newer("tensors.sha256")));
    }

    #[test]
    fn names_are_one_component() {
        for good in ["a", "SmolLM2-135M-Instruct.Q4_1", "qwen2.5_0.5b"] {
            assert!(is_model_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\0", "é"] {
            assert!(!is_model_name(bad), "{bad}");
        }
    }

    #[test]
    fn parts_and_digests_are_read_exactly() {
        assert_eq!(part_of("m-00002-of-00003.gguf"), Some(("m", (2, 3))));
        assert_eq!(part_of("m-2-of-3.gguf"), None);
        assert_eq!(part_of("m-0000+-of-00003.gguf"), None);
        let hex = "00ff07".to_owned_hex();
        assert_eq!(hex.parse::<Digest>().map(|digest| digest.0[1]), Ok(0xff));
        assert!("+1".parse::<Digest>().is_err());
        let signed = text::<64>("+1ff07000000000000000000000000000000000000000000000000000000000f");
        assert!(signed.parse::<Digest>().is_err());
        assert!("00FF07".to_owned_hex().parse::<Digest>().is_err());
    }

    trait Padded {
        fn to_owned_hex(&self) -> String<64>;
    }

    impl Padded for str {
        fn to_owned_hex(&self) -> String<64> {
            let mut out = text::<64>(self);
            while out.len() < 64 {
                out.push('0').unwrap();
            }
            out
        }
    }
}
