//! Whose signatures count, and what is to be said of those of a model.

use andon_wire::SignatureState;
use andon_wire::signature::{self, CONTEXT, KeyId, Signatures};
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::RegistryError;
use crate::config::models::{ModelsConfig, SignaturePolicy, public_key};

/// The keys that the configuration trusts, and how much that matters.
#[derive(Debug, Clone)]
pub struct Trust {
    policy: SignaturePolicy,
    keys: Vec<(KeyId, VerifyingKey)>,
}

/// What was found of a model's signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// In one word.
    pub state: SignatureState,
    /// The key that this is about.
    pub key: Option<KeyId>,
    /// What is wrong with a list that is none.
    why: Option<String>,
}

impl Judgement {
    fn of(state: SignatureState, key: Option<KeyId>) -> Judgement {
        Judgement {
            state,
            key,
            why: None,
        }
    }
}

impl std::fmt::Display for Judgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.state, &self.key) {
            (SignatureState::Good, Some(key)) => write!(f, "it is signed by {key}"),
            (SignatureState::Unknown, Some(key)) => {
                write!(
                    f,
                    "it is signed by {key}, which [models] trusted-keys does not have"
                )
            }
            (SignatureState::Bad, Some(key)) => write!(
                f,
                "its signature is bad: {key}, which is trusted, did not sign this manifest"
            ),
            (SignatureState::Bad, None) => write!(
                f,
                "its signature is bad: {}",
                self.why.as_deref().unwrap_or("it is none")
            ),
            (SignatureState::Unchecked, _) => f.write_str("its signature is not looked at"),
            _ => f.write_str("it is not signed"),
        }
    }
}

/// The id of a key, by which signatures name it.
fn id(key: &VerifyingKey) -> KeyId {
    let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
    let mut id = KeyId([0; 8]);
    id.0.copy_from_slice(&digest[..8]);
    id
}

impl Trust {
    /// What the configuration says.
    pub fn of(config: &ModelsConfig) -> Trust {
        let keys = config.trusted_keys.iter().filter_map(|key| public_key(key));
        Trust {
            policy: config.signature,
            keys: keys.map(|key| (id(&key), key)).collect(),
        }
    }

    /// What is done about models that are not signed.
    pub fn policy(&self) -> SignaturePolicy {
        self.policy
    }

    /// What is to be said of these signatures over this manifest. One good one of a trusted key is enough, whatever the
    /// others are.
    pub fn judge(&self, manifest: &str, signatures: Option<&str>) -> Judgement {
        let Some(text) = signatures else {
            return Judgement::of(SignatureState::Unsigned, None);
        };
        if self.policy == SignaturePolicy::Off {
            return Judgement::of(SignatureState::Unchecked, None);
        }
        let signatures: Signatures = match text.parse() {
            Ok(signatures) => signatures,
            Err(error) => {
                return Judgement {
                    why: Some(error.to_string()),
                    ..Judgement::of(SignatureState::Bad, None)
                };
            }
        };
        let message = [CONTEXT, manifest.as_bytes()].concat();
        let (mut bad, mut unknown) = (None, None);
        for signature in &signatures.0 {
            match self.fits(&message, signature) {
                Some(true) => return Judgement::of(SignatureState::Good, Some(signature.key)),
                Some(false) => bad = bad.or(Some(signature.key)),
                None => unknown = unknown.or(Some(signature.key)),
            }
        }
        match bad {
            Some(_) => Judgement::of(SignatureState::Bad, bad),
            None => Judgement::of(SignatureState::Unknown, unknown),
        }
    }

    /// Whether a signature is its key's; `None` if that is not trusted.
    fn fits(&self, message: &[u8], signature: &signature::Signature) -> Option<bool> {
        let (_, key) = self.keys.iter().find(|(id, _)| *id == signature.key)?;
        let bytes = Signature::from_bytes(&signature.bytes);
        Some(key.verify_strict(message, &bytes).is_ok())
    }

    /// The signatures that a model has, with new ones: one of each key, and none that is good is lost. `None` if they would be
    /// too many.
    pub(super) fn joined(
        &self,
        manifest: &str,
        kept: Option<&str>,
        new: &Signatures,
    ) -> Option<Signatures> {
        let message = [CONTEXT, manifest.as_bytes()].concat();
        // What cannot be read are none.
        let kept = kept.and_then(|text| text.parse().ok());
        let Some(Signatures(mut all)) = kept else {
            return Some(new.clone());
        };
        for signature in &new.0 {
            let Some(there) = all.iter_mut().find(|one| one.key == signature.key) else {
                all.push(*signature).ok()?;
                continue;
            };
            let is_worse = self.fits(&message, signature) != Some(true);
            if !(is_worse && self.fits(&message, there) == Some(true)) {
                *there = *signature;
            }
        }
        Some(Signatures(all))
    }

    /// Whether a model of which this was found may be added; `done` is what then is done with it, for the journal.
    ///
    /// # Errors
    /// [`RegistryError::Rejected`] where signatures are required and there is no good one, and for one that is bad wherever
    /// somebody looks: whoever adds a model is there to be told.
    pub(super) fn admit(
        &self,
        name: &str,
        found: &Judgement,
        done: &str,
    ) -> Result<(), RegistryError> {
        match (self.policy, found.state) {
            (SignaturePolicy::Off, _) | (_, SignatureState::Good) => Ok(()),
            (SignaturePolicy::Require, _) | (_, SignatureState::Bad) => Err(
                RegistryError::Rejected(format!("the model {name} is refused: {found}")),
            ),
            (SignaturePolicy::Warn, _) => {
                if !self.keys.is_empty() {
                    crate::event!(SignatureMissing, name, "the model is {done}, and {found}");
                }
                Ok(())
            }
        }
    }

    /// Whether a model of which this was found may be served; says so where it may and should not.
    ///
    /// # Errors
    /// [`RegistryError::Rejected`] where signatures are required and there is no good one.
    pub(super) fn serve(&self, name: &str, found: &Judgement) -> Result<(), RegistryError> {
        match (self.policy, found.state) {
            (SignaturePolicy::Off, _) => Ok(()),
            (_, SignatureState::Good) => {
                tracing::info!(name, "{found}");
                Ok(())
            }
            (SignaturePolicy::Warn, SignatureState::Bad) => {
                crate::event!(SignatureBad, name, "the model is served, and {found}");
                Ok(())
            }
            (SignaturePolicy::Warn, _) => {
                if !self.keys.is_empty() {
                    crate::event!(SignatureMissing, name, "the model is served, and {found}");
                }
                Ok(())
            }
            (SignaturePolicy::Require, _) => Err(RegistryError::Rejected(format!(
                "the model {name} is refused ([models] signature is \"require\"): {found}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Trust, id};
    use crate::config::models::{ModelsConfig, SignaturePolicy};
    use andon_wire::SignatureState;
    use andon_wire::limits::SIGNATURES_MAX;
    use andon_wire::signature::{CONTEXT, PUBLIC_KEY_PREFIX, Signature, Signatures};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer as _, SigningKey};

    const MANIFEST: &str = "{\"format\": 2}";

    fn key(number: u8) -> SigningKey {
        SigningKey::from_bytes(&[number; 32])
    }

    fn trust(policy: SignaturePolicy, numbers: &[u8]) -> Trust {
        let line = |number: &u8| {
            let public = key(*number).verifying_key().to_bytes();
            STANDARD.encode([&PUBLIC_KEY_PREFIX[..], &public].concat())
        };
        Trust::of(&ModelsConfig {
            signature: policy,
            trusted_keys: numbers.iter().map(line).collect(),
            ..ModelsConfig::default()
        })
    }

    /// A signature by a key, of this text and under this context.
    fn signature(number: u8, context: &[u8], text: &str) -> Signature {
        let key = key(number);
        Signature {
            key: id(&key.verifying_key()),
            bytes: key.sign(&[context, text.as_bytes()].concat()).to_bytes(),
        }
    }

    fn list(signatures: &[Signature]) -> String {
        Signatures(signatures.iter().copied().collect()).to_string()
    }

    #[test]
    fn one_good_signature_of_a_trusted_key_is_wanted() {
        let trust = trust(SignaturePolicy::Require, &[1, 2]);
        let judge = |signatures: &[Signature]| trust.judge(MANIFEST, Some(&list(signatures)));
        let good = signature(2, CONTEXT, MANIFEST);
        let stranger = signature(3, CONTEXT, MANIFEST);
        let other = signature(1, CONTEXT, "{\"format\": 1}");
        let elsewhere = signature(1, b"another purpose\n", MANIFEST);
        let borrowed = Signature {
            key: good.key,
            ..stranger
        };
        for (signatures, state) in [
            (&[good][..], SignatureState::Good),
            (&[stranger, other, good], SignatureState::Good),
            (&[stranger], SignatureState::Unknown),
            (&[other], SignatureState::Bad),
            (&[elsewhere], SignatureState::Bad),
            (&[stranger, borrowed], SignatureState::Bad),
        ] {
            let found = judge(signatures);
            assert_eq!(found.state, state, "{signatures:?}");
            let may = state == SignatureState::Good;
            assert_eq!(trust.admit("m", &found, "added").is_ok(), may);
            assert_eq!(trust.serve("m", &found).is_ok(), may);
        }
        assert_eq!(judge(&[good]).key, Some(good.key));
        assert_eq!(trust.judge(MANIFEST, None).state, SignatureState::Unsigned);
        // Every bit counts.
        for bit in 0..512 {
            let mut damaged = good;
            damaged.bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(judge(&[damaged]).state, SignatureState::Bad, "bit {bit}");
        }
        let whole = list(&[good]);
        for length in 0..whole.len() - 1 {
            let found = trust.judge(MANIFEST, Some(&whole[..length]));
            assert_eq!(found.state, SignatureState::Bad, "{length} bytes");
        }
    }

    #[test]
    fn signatures_that_come_later_cost_no_good_one() {
        let good = signature(1, CONTEXT, MANIFEST);
        let forged = Signature {
            bytes: [7; 64],
            ..good
        };
        let stranger = signature(3, CONTEXT, MANIFEST);
        let all = |signatures: &[Signature]| Signatures(signatures.iter().copied().collect());
        for policy in [
            SignaturePolicy::Off,
            SignaturePolicy::Warn,
            SignaturePolicy::Require,
        ] {
            let trust = trust(policy, &[1]);
            for (kept, new, joined) in [
                (&[good][..], &[stranger][..], &[good, stranger][..]),
                (&[good, stranger], &[forged], &[good, stranger]),
                (&[forged], &[stranger, good], &[good, stranger]),
                (&[], &[good], &[good]),
            ] {
                let kept = (!kept.is_empty()).then(|| list(kept));
                let found = trust.joined(MANIFEST, kept.as_deref(), &all(new));
                assert_eq!(found, Some(all(joined)), "{policy:?}");
            }
            let found = trust.joined(MANIFEST, Some("none"), &all(&[stranger]));
            assert_eq!(found, Some(all(&[stranger])));
            let others: Vec<Signature> = (10..18)
                .map(|number| signature(number, CONTEXT, MANIFEST))
                .collect();
            let full = &others[..SIGNATURES_MAX.min(others.len())];
            assert_eq!(full.len(), SIGNATURES_MAX);
            assert_eq!(
                trust.joined(MANIFEST, Some(&list(full)), &all(&[good])),
                None
            );
        }
    }

    #[test]
    fn policies_differ_in_what_they_refuse() {
        let found = |trust: &Trust, signatures: Option<&str>| -> Judgement {
            trust.judge(MANIFEST, signatures)
        };
        let bad = list(&[signature(1, CONTEXT, "another")]);
        let stranger = list(&[signature(3, CONTEXT, MANIFEST)]);
        for (policy, signatures, admit, serve) in [
            (SignaturePolicy::Warn, None, true, true),
            (SignaturePolicy::Warn, Some(&stranger), true, true),
            (SignaturePolicy::Warn, Some(&bad), false, true),
            (SignaturePolicy::Off, None, true, true),
            (SignaturePolicy::Off, Some(&bad), true, true),
            (SignaturePolicy::Require, None, false, false),
            (SignaturePolicy::Require, Some(&stranger), false, false),
            (SignaturePolicy::Require, Some(&bad), false, false),
        ] {
            let trust = trust(policy, &[1]);
            let found = found(&trust, signatures.map(String::as_str));
            assert_eq!(
                trust.admit("m", &found, "added").is_ok(),
                admit,
                "{policy:?} {found}"
            );
            assert_eq!(
                trust.serve("m", &found).is_ok(),
                serve,
                "{policy:?} {found}"
            );
        }
    }
}
