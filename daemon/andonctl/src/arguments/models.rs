//! The part of the command line that is about models as files.

use std::path::PathBuf;
use std::str::FromStr;

use andon_wire::manifest::is_model_name;
use clap::{Args, Subcommand};

use crate::key::Public;
use crate::pull::{ENDPOINT_DEFAULT, Reference, revision};

/// The name of a model that a daemon keeps.
#[derive(Clone, Debug)]
pub(crate) struct StoredName(pub(crate) String);

impl FromStr for StoredName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_model_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "use 1 to 64 letters, digits, '.', '-' or '_', not beginning with '.' or '-'"
                    .to_owned(),
            )
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct PullOptions {
    /// The model: OWNER/NAME, OWNER/NAME:Q4_K_M or OWNER/NAME/FILE.gguf.
    ///
    /// Without a word for how the weights are stored, Q4_K_M is taken, or what comes next to it. All parts
    /// of a split model are taken together.
    #[arg(value_name = "MODEL")]
    pub(crate) model: Reference,

    /// A branch, a tag or a commit.
    #[arg(long, value_name = "REVISION", default_value = "main", value_parser = revision)]
    pub(crate) revision: String,

    /// The hub or a mirror of it, or a folder with a copy of one: OWNER/NAME/FILE, or a hub program's cache.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = ENDPOINT_DEFAULT)]
    pub(crate) endpoint: String,

    /// Read the token for private and gated models from this file instead of HF_TOKEN, HF_TOKEN_PATH or
    /// the hub's own place.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Where to put it: a folder (with a slash at its end it is made), or the name of the file.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,

    /// Make a bundle of it: model, manifest and licence in one file.
    #[arg(long, conflicts_with = "list")]
    pub(crate) bundle: bool,

    /// Show the models that there are, and pull none.
    #[arg(long)]
    pub(crate) list: bool,

    /// How often to try again without any progress before giving up.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) retries: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Pack a model and what goes with it into one file.
    Create(Box<BundleCreate>),
    /// Show what a bundle has.
    Show(BundleRead),
    /// Compare everything in a bundle with its manifest.
    Verify(BundleVerify),
    /// Sign a bundle, or a folder that one was unpacked into, in its place.
    ///
    /// Everything in it is compared with its manifest first. Signatures of other keys stay.
    Sign(BundleSign),
}

#[derive(Args, Debug)]
pub(crate) struct BundleVerify {
    #[command(flatten)]
    pub(crate) read: BundleRead,

    /// A public key, one of which has to have signed it; may be given several times.
    #[arg(long, value_name = "KEY")]
    pub(crate) trust: Vec<Public>,
}

#[derive(Args, Debug)]
pub(crate) struct BundleSign {
    /// The bundle, or the folder.
    #[arg(value_name = "FILE")]
    pub(crate) bundle: PathBuf,

    /// The private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key, write it to a file that only its owner can read, and print its public half.
    New(KeyFile),
    /// Print the public half of a key.
    Show(KeyFile),
}

#[derive(Args, Debug)]
pub(crate) struct KeyFile {
    /// The file with the private key: PEM, as `openssl genpkey -algorithm ed25519` writes it.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct BundleCreate {
    /// A GGUF file (of a split model, any part), or a folder with one, LICENSE, chat_template.jinja and
    /// tasks/*.toml.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,

    /// Where to put the bundle: a folder, or the name of the file.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,

    /// The name to register it under, instead of the file's.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<StoredName>,

    /// Id of the licence, such as apache-2.0.
    #[arg(long, value_name = "ID")]
    pub(crate) license: Option<String>,

    /// The licence's text.
    #[arg(long, value_name = "FILE")]
    pub(crate) license_file: Option<PathBuf>,

    /// A chat template that replaces the model's own.
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// The pre-tokenizer to use where the file names one that is unknown or wrong.
    #[arg(long, value_name = "NAME")]
    pub(crate) pre_tokenizer: Option<String>,

    /// A task, NAME.toml with the keys of a [task.NAME] section; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub(crate) task: Vec<PathBuf>,

    /// The repository that the model was got from.
    #[arg(long, value_name = "OWNER/NAME")]
    pub(crate) source: Option<String>,

    /// The revision of that repository.
    #[arg(long, value_name = "REVISION", requires = "source")]
    pub(crate) revision: Option<String>,

    /// Sign it with this private key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct BundleRead {
    /// The bundle.
    #[arg(value_name = "FILE")]
    pub(crate) bundle: PathBuf,

    /// Print the manifest as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Hand a model over to the daemon, which checks, tries and registers it.
    ///
    /// To serve it, ask for it by its name, have it take the place of another by `model swap`, or write its name into `[model]`
    /// of andond.toml and restart andond.
    Add(ModelAdd),
    /// List the models that the daemon keeps.
    Ls(ModelLs),
    /// Show one.
    Show(ModelNamed),
    /// Remove one that is not being served.
    Rm(ModelNamed),
    /// Compare one with its digests.
    Verify(ModelNamed),
    /// Pack the weights of one, so that it runs faster from the next start of andond on.
    ///
    /// Models are packed when they are added; this is for one whose pack was removed, or could not be made.
    Pack(ModelNamed),
    /// Remove the packed weights of one; it is then served from its own file.
    ///
    /// The model that andond serves is packed again after its next start, unless the configuration has `pack = "never"`.
    Unpack(ModelNamed),
    /// Load one beside those that are loaded; it then stays until it is unloaded.
    ///
    /// Models are loaded for whoever asks for them; this has one be there before that, and stay.
    Load(ModelNamed),
    /// Have one answer what it has taken, and then unload it.
    Unload(ModelNamed),
    /// Have one answer in place of the model of `[model]`, or of another name.
    ///
    /// It is loaded and tried while the other answers, and takes its place only if it does well. No request is lost. It stays
    /// so over restarts, and the other is remembered.
    Swap(ModelSwap),
    /// Have the model answer again that did before a swap.
    Rollback(ModelRollback),
}

#[derive(Args, Debug)]
pub(crate) struct ModelSwap {
    /// Its name, as `model ls` shows it.
    #[arg(value_name = "NAME")]
    pub(crate) name: StoredName,

    /// The name that it is to answer to, instead of that of `[model]`.
    #[arg(long = "for", value_name = "NAME")]
    pub(crate) place: Option<StoredName>,

    /// Unload the other one first, where memory does not suffice for both; requests wait meanwhile.
    #[arg(long)]
    pub(crate) unload_first: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ModelRollback {
    /// The name that was answered by another model, instead of that of `[model]`.
    #[arg(long = "for", value_name = "NAME")]
    pub(crate) place: Option<StoredName>,
}

#[derive(Args, Debug)]
pub(crate) struct ModelAdd {
    /// A GGUF file (of a split model, any part), a bundle, or a folder as `bundle create` takes it.
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,

    /// The name to register it under, instead of its own.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<StoredName>,
}

#[derive(Args, Debug)]
pub(crate) struct ModelLs {
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ModelNamed {
    /// The model's name.
    #[arg(value_name = "NAME")]
    pub(crate) name: StoredName,
}
