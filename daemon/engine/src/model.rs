//! A model file, mapped and understood: weights in place, tokenizer, chat template.

use crate::backend::Backend;
use crate::calls::ToolStyle;
use crate::files::Files;
use crate::gguf::{GgufError, SplitError};
use crate::grammar::{self, GrammarError};
use crate::kv::KvType;
use crate::models::{self, Architecture, Encoder, Pooling};
use crate::pack::{Key, Pack, PackError, Progress};
use crate::tokenizer::{
    ChatTemplate, TemplateChoice, TemplateError, TemplateOrigin, Tokenizer, TokenizerError,
};
use crate::weights::{Matrix, Weights, WeightsError};
use andon_os::Mapping;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// A loaded model. Its weights stay in the file's map; it is shared by reference.
#[derive(Debug)]
pub struct Model {
    files: Files,
    info: ModelInfo,
    graph: Graph,
    tokenizer: Arc<Tokenizer>,
    /// What constrained answers need of the vocabulary, made when the first is asked for.
    vocabulary: OnceLock<Result<Arc<grammar::Vocabulary>, GrammarError>>,
    chat_template: Option<ChatTemplate>,
    /// What that does with tools, found out when it is first asked for.
    tools: OnceLock<ToolStyle>,
    /// Those that columns are multiplied with, by their slots.
    matrices: Vec<Matrix>,
    pack: RwLock<Option<Arc<Pack>>>,
}

/// What a model does with tokens.
#[derive(Debug)]
enum Graph {
    /// Predicts the next one.
    Decoder(Box<dyn Architecture>),
    /// Makes vectors of them.
    Encoder(Box<dyn Encoder>, Pooling),
}

/// What whoever loads a model knows better than its file. The default takes everything from the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The pre-tokenizer, in place of the one that `tokenizer.ggml.pre` names.
    pub pre_tokenizer: Option<String>,
    /// The chat template, in place of the file's.
    pub chat_template: Option<TemplateChoice>,
    /// Whether it is to guess for another model only, so that it may know how to say some of its tokens only.
    pub draft: bool,
}

impl LoadOptions {
    /// These options with another pre-tokenizer; `None` takes the file's.
    #[must_use]
    pub fn with_pre_tokenizer(mut self, name: Option<String>) -> Self {
        self.pre_tokenizer = name;
        self
    }

    /// These options with another chat template; `None` takes the file's, or one that suits its vocabulary.
    #[must_use]
    pub fn with_chat_template(mut self, choice: Option<TemplateChoice>) -> Self {
        self.chat_template = choice;
        self
    }

    /// These options for a model that is to guess for another.
    #[must_use]
    pub fn for_draft(mut self) -> Self {
        self.draft = true;
        self
    }
}

/// What is to be known of a model from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `general.name`, else the file's name without its ending.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Positions that the model was made for.
    pub context_tokens_max: usize,
    /// Layers.
    pub layer_count: usize,
    /// Elements of the residual stream.
    pub embedding: usize,
    /// Tokens in the vocabulary.
    pub vocabulary_count: usize,
    /// Bytes of the file, or of all files that the model is split into.
    pub file_bytes: usize,
    /// Bytes of weights that decoding one token reads of these files; [`Model::bytes_per_token`] is of a pack, too.
    pub bytes_per_token: usize,
    /// Products of a weight and an activation that decoding one token takes; 0 for encoders.
    pub multiply_adds_per_token: usize,
    /// Those of them that a prompt needs for its last token only: the logits, and the last layer after its attention.
    pub output_multiply_adds: usize,
    /// Bytes of KV cache that one token takes in f16.
    pub kv_bytes_per_token: usize,
    /// How it makes one vector of an input; `None` for a model that generates text.
    pub pooling: Option<Pooling>,
    /// Where its chat template came from; `None` for models that make no text.
    pub chat_template: Option<TemplateOrigin>,
    /// What the file left open and had to be assumed, one sentence each.
    pub warnings: Vec<String>,
    /// Where it was loaded from.
    pub path: PathBuf,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be opened or mapped.
    #[error("cannot open `{}`: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not a sound GGUF file.
    #[error("`{}` is not a sound GGUF file: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: GgufError,
    },
    /// The file is a part of a model that is split into several, and does not fit the others.
    #[error("`{}` does not belong here: {source}", path.display())]
    Split {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SplitError,
    },
    /// The model's hyperparameters or tensors cannot be used.
    #[error("`{}` cannot be used: {source}", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: WeightsError,
    },
    /// The model's tokenizer cannot be used.
    #[error("the tokenizer of `{}` cannot be used: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// The vocabulary and the weights disagree.
    #[error("`{}` has {tokens} tokens but weights for {rows}", path.display())]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The file is a draft that cannot say all of its tokens.
    #[error(
        "`{}` is a draft with a trimmed vocabulary ({tokens} tokens of {of}): it guesses for another model and answers nothing itself",
        path.display()
    )]
    TrimmedDraft {
        /// The file.
        path: PathBuf,
        /// Tokens that it can guess.
        tokens: usize,
        /// Tokens of the vocabulary.
        of: usize,
    },
    /// The file became shorter while it was read, or its disk fails.
    #[error("`{}` became shorter while it was read, or cannot be read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The model's chat template cannot be used.
    #[error("the chat template of `{}` cannot be used: {source}", path.display())]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
}

/// Matrices at the end of a decoder that only tokens with logits go through: attention's output, gate, up, down, and the
/// vocabulary's.
const OUTPUT_MATRICES: usize = 5;

/// See [`Model::heap_bytes_max`]: what a file of a few bytes may take.
const HEAP_BYTES_BASE: usize = 64 << 20;
/// See [`Model::heap_bytes_max`]: what each byte may take.
const HEAP_BYTES_PER_BYTE: usize = 16;

impl Model {
    /// Maps and checks the GGUF file at `path`. If the model is split into several files, `path` is any of them.
    ///
    /// # Errors
    /// [`LoadError`], which names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Model, LoadError> {
        Self::load_with(path, &LoadOptions::default())
    }

    /// [`Model::load`], with what the file does not say or says wrongly.
    ///
    /// # Errors
    /// [`LoadError`], which names the file and what is wrong with it.
    pub fn load_with(path: &Path, options: &LoadOptions) -> Result<Model, LoadError> {
        Self::from_files(Files::open(path)?, options)
    }

    /// [`Model::load_with`] of files that are mapped already.
    ///
    /// # Errors
    /// [`LoadError`], which names the file and what is wrong with it.
    pub fn from_files(files: Files, options: &LoadOptions) -> Result<Model, LoadError> {
        let path = files.path();
        let owned = || path.to_owned();
        let gguf = files.gguf()?;
        let weights = |source| LoadError::Weights {
            path: owned(),
            source,
        };
        let mut graph = match models::load_encoder(&gguf).map_err(weights)? {
            Some((encoder, pooling)) => Graph::Encoder(encoder, pooling),
            None => Graph::Decoder(models::load(&gguf).map_err(weights)?),
        };
        let matrices = graph.number_matrices();
        let pre_tokenizer = options.pre_tokenizer.as_deref();
        let tokenizer = Tokenizer::from_gguf_with(&gguf, pre_tokenizer).map_err(|source| {
            LoadError::Tokenizer {
                path: owned(),
                source,
            }
        })?;
        let sizes = graph.sizes();
        // Some files pad the embedding to a round number of rows; the reverse would let a token have no weights.
        if tokenizer.vocabulary_count() > sizes.vocabulary {
            let (tokens, rows) = (tokenizer.vocabulary_count(), sizes.vocabulary);
            return Err(LoadError::Vocabulary {
                path: owned(),
                tokens,
                rows,
            });
        }
        if let Some(tokens) = graph.draft_tokens()
            && !options.draft
        {
            let (tokens, of) = (tokens.len(), sizes.vocabulary);
            return Err(LoadError::TrimmedDraft {
                path: owned(),
                tokens,
                of,
            });
        }
        let chat = match &graph {
            Graph::Decoder(_) => {
                let choice = options.chat_template.as_ref();
                let chosen = ChatTemplate::for_model(&gguf, &tokenizer, choice);
                Some(chosen.map_err(|source| LoadError::ChatTemplate {
                    path: owned(),
                    source,
                })?)
            }
            Graph::Encoder(..) => None,
        };
        let (chat_template, origin) = chat.unzip();
        let file_name = || {
            path.file_stem()
                .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
        };
        let elements = |matrix: &Matrix| matrix.row_count * matrix.row_elements;
        let products = matches!(graph, Graph::Decoder(_)).then_some(&*matrices);
        let info = ModelInfo {
            name: gguf
                .str("general.name")
                .map_or_else(|_| file_name(), str::to_owned),
            architecture: gguf
                .str("general.architecture")
                .map_err(|error| weights(error.into()))?
                .to_owned(),
            context_tokens_max: sizes.context,
            layer_count: sizes.layer_count,
            embedding: sizes.embedding,
            vocabulary_count: sizes.vocabulary,
            file_bytes: files.bytes(),
            bytes_per_token: matrices.iter().map(|matrix| matrix.range.len()).sum(),
            multiply_adds_per_token: products.map_or(0, |all| all.iter().map(elements).sum()),
            output_multiply_adds: products.map_or(0, |all| {
                all.iter().rev().take(OUTPUT_MATRICES).map(elements).sum()
            }),
            kv_bytes_per_token: sizes.kv_bytes_per_token,
            pooling: match &graph {
                Graph::Decoder(_) => None,
                Graph::Encoder(_, pooling) => Some(*pooling),
            },
            chat_template: origin,
            warnings: tokenizer.warnings().to_vec(),
            path: owned(),
        };
        if let Some(origin @ TemplateOrigin::Default(_)) = &info.chat_template {
            tracing::warn!("{} has no chat template: {origin} is used", path.display());
        }
        for warning in &info.warnings {
            tracing::warn!("{}: {warning}", path.display());
        }
        // What was read from a map that broke meanwhile is no model's.
        if let Some((_, path)) = files.damaged() {
            let path = path.to_owned();
            return Err(LoadError::Changed { path });
        }
        // Metadata and vocabulary were read for good; weights come in when they are used.
        files.maps().iter().for_each(Mapping::release);
        Ok(Model {
            files,
            info,
            graph,
            tokenizer: Arc::new(tokenizer),
            vocabulary: OnceLock::new(),
            chat_template,
            tools: OnceLock::new(),
            matrices,
            pack: RwLock::default(),
        })
    }

    /// The most heap that loading a file may take at once, for so many bytes of metadata, tensor directory and vectors
    /// (the weights with one dimension, which are copied out). Matrices stay in the file and take none.
    ///
    /// What has a bound of its own and may take many times its size (special tokens, the chat template) is in the part
    /// that every file may take; the rest grows with the file, the most of it vectors of two bits an element.
    #[must_use]
    pub const fn heap_bytes_max(bytes: usize) -> usize {
        HEAP_BYTES_BASE.saturating_add(bytes.saturating_mul(HEAP_BYTES_PER_BYTE))
    }

    /// What is to be known of the model.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Text to tokens and back.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// [`Model::tokenizer`], to keep.
    pub(crate) fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.tokenizer)
    }

    /// The vocabulary as constrained answers need it. The first call makes it, which takes a while for a large one.
    ///
    /// # Errors
    /// [`GrammarError`] if no answer can be constrained with this vocabulary.
    pub fn grammar_vocabulary(&self) -> Result<&Arc<grammar::Vocabulary>, GrammarError> {
        let vocabulary = self
            .vocabulary
            .get_or_init(|| grammar::Vocabulary::new(&self.tokenizer).map(Arc::new));
        vocabulary.as_ref().map_err(Clone::clone)
    }

    /// Roughly the memory that this vocabulary takes, be it made or not.
    #[must_use]
    pub fn grammar_vocabulary_bytes(&self) -> usize {
        match self.vocabulary.get() {
            Some(Ok(vocabulary)) => vocabulary.bytes(),
            Some(Err(_)) => 0,
            None => grammar::Vocabulary::bytes_of(&self.tokenizer),
        }
    }

    /// How conversations become prompts; `None` for models that make no text.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// What its chat template does with tools and calls; `None` for models that make no text.
    #[must_use]
    pub fn tool_style(&self) -> Option<&ToolStyle> {
        let template = self.chat_template.as_ref()?;
        let of = || ToolStyle::of(template, Some(&self.tokenizer));
        Some(self.tools.get_or_init(of))
    }

    /// Its decoder; `None` if it is an encoder.
    pub(crate) fn decoder(&self) -> Option<&dyn Architecture> {
        match &self.graph {
            Graph::Decoder(decoder) => Some(&**decoder),
            Graph::Encoder(..) => None,
        }
    }

    /// Its encoder, and how to pool what that makes; `None` if it is a decoder.
    pub(crate) fn encoder(&self) -> Option<(&dyn Encoder, Pooling)> {
        match &self.graph {
            Graph::Decoder(_) => None,
            Graph::Encoder(encoder, pooling) => Some((&**encoder, *pooling)),
        }
    }

    /// The tokens that it has logits for, ascending, if it is a draft that guesses some of its vocabulary only.
    #[must_use]
    pub fn draft_tokens(&self) -> Option<&[u32]> {
        self.graph.draft_tokens()
    }

    /// The file of the model that became shorter under its map or cannot be read any more, if one did. Then the
    /// model is of no use: [`crate::Executor::forward`] refuses it.
    #[must_use]
    pub fn damaged(&self) -> Option<&Path> {
        self.files.damaged().map(|(_, path)| path)
    }

    /// The maps of its files, in order.
    #[must_use]
    pub fn maps(&self) -> &[Mapping] {
        self.files.maps()
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Bytes of matrices that decoding one token reads, or encoding an input: those of the pack where it has them.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        let pack = self.pack();
        let bytes = self.matrices.iter().map(|matrix| {
            let packed = pack.as_ref().zip(matrix.slot);
            packed
                .and_then(|(pack, slot)| pack.matrix_bytes(slot))
                .unwrap_or(matrix.range.len())
        });
        bytes.sum()
    }

    /// The key of a pack of these files, which reads a few pages of them; where their digest is known, use that.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub fn pack_key(&self) -> Result<Key, PackError> {
        let gguf = self.files.gguf().map_err(|_| PackError::ModelChanged)?;
        Key::of_files(&self.files, &gguf)
    }

    /// Has everything that runs the model from now on use a pack of it. The pages of the matrices that it has are given
    /// back to the system, so there are not two of each in memory.
    ///
    /// # Errors
    /// If the pack is of another model.
    pub fn attach_pack(&self, mut pack: Pack) -> Result<(), PackError> {
        pack.fit(&self.matrices)?;
        self.put_pack(Some(Arc::new(pack)));
        for map in self.files.maps() {
            map.release();
        }
        Ok(())
    }

    /// The pack in use.
    #[must_use]
    pub fn pack(&self) -> Option<Arc<Pack>> {
        // Every critical section leaves the place whole.
        let place = self.pack.read().unwrap_or_else(PoisonError::into_inner);
        place.clone()
    }

    fn put_pack(&self, pack: Option<Arc<Pack>>) {
        *self.pack.write().unwrap_or_else(PoisonError::into_inner) = pack;
    }

    /// Looks whether a pack that was just computed with is still sound, and leaves it if it is not. True if what was
    /// computed is of no use and has to be computed again, now without it.
    pub(crate) fn leave_damaged(&self, pack: Option<&Arc<Pack>>) -> bool {
        let Some(pack) = pack else { return false };
        let broken = pack.is_broken();
        if let Some(failure) = pack.failure()
            && self.leave(pack)
        {
            tracing::warn!("{failure}; the weights are taken from the model's file");
        }
        broken
    }

    /// Leaves this pack, if it is the one in use.
    fn leave(&self, pack: &Arc<Pack>) -> bool {
        let mut place = self.pack.write().unwrap_or_else(PoisonError::into_inner);
        let is_used = place.as_ref().is_some_and(|used| Arc::ptr_eq(used, pack));
        if is_used {
            *place = None;
        }
        is_used
    }

    /// Compares the pack in use, if there is one, with what packing the model gives, as [`Pack::compare`] does. One that
    /// differs is left.
    ///
    /// # Errors
    /// What differs, or cannot be read; [`PackError::Stopped`], with which the pack stays in use.
    pub fn compare_pack(&self, progress: &mut Progress<'_>) -> Result<(), PackError> {
        let Some(pack) = self.pack() else {
            return Ok(());
        };
        let compared = pack.compare(self, progress);
        match compared {
            Err(PackError::Stopped) => {}
            Err(_) => drop(self.leave(&pack)),
            // What was read of it for that is in memory twice now.
            Ok(()) => self.files.maps().iter().for_each(Mapping::release),
        }
        compared
    }

    /// Reads from the disk what running the model reads, until `goes_on` answers with false: its first pass then does not wait
    /// for that.
    pub fn read_ahead(&self, goes_on: &dyn Fn() -> bool) {
        match self.pack() {
            Some(pack) => pack.read_ahead(goes_on),
            None => {
                for map in self.files.maps() {
                    map.read_ahead(goes_on);
                }
            }
        }
    }

    /// Why a backend cannot compute it, on whatever machine; `None` if it can.
    #[must_use]
    pub fn not_covered(&self, backend: Backend) -> Option<String> {
        let Graph::Decoder(decoder) = &self.graph else {
            return (backend != Backend::Cpu)
                .then(|| "embeddings are computed by the processor".to_owned());
        };
        match backend {
            Backend::Cpu => None,
            Backend::Cuda => crate::backend::not_covered(&**decoder),
            Backend::OpenVino | Backend::Ggml => backend.not_built(),
        }
    }

    /// Asks the system to read ahead what running the model reads.
    pub(crate) fn will_need(&self) {
        match self.pack() {
            Some(pack) => pack.will_need(),
            None => self.files.maps().iter().for_each(Mapping::will_need),
        }
    }

    /// Gives the memory of what was read of the model's files back to the system; it is read again when it is needed.
    pub fn release(&self) {
        self.files.maps().iter().for_each(Mapping::release);
    }

    pub(crate) fn matrices(&self) -> &[Matrix] {
        &self.matrices
    }

    pub(crate) fn weights<'a>(&'a self, pack: Option<&'a Pack>) -> Weights<'a> {
        Weights {
            maps: self.files.maps(),
            pack,
        }
    }
}

/// What decoders and encoders say of themselves alike.
struct GraphSizes {
    context: usize,
    layer_count: usize,
    embedding: usize,
    vocabulary: usize,
    kv_bytes_per_token: usize,
}

impl Graph {
    /// Gives matrices their slots.
    fn number_matrices(&mut self) -> Vec<Matrix> {
        let mut matrices = match self {
            Graph::Decoder(decoder) => decoder.matrices_mut(),
            Graph::Encoder(encoder, _) => encoder.matrices_mut(),
        };
        for (slot, matrix) in matrices.iter_mut().enumerate() {
            matrix.slot = Some(slot);
        }
        matrices.into_iter().map(|matrix| matrix.clone()).collect()
    }

    fn draft_tokens(&self) -> Option<&[u32]> {
        match self {
            Graph::Decoder(decoder) => decoder.draft_tokens(),
            Graph::Encoder(..) => None,
        }
    }

    fn sizes(&self) -> GraphSizes {
        match self {
            Graph::Decoder(decoder) => {
                let shape = decoder.shape();
                GraphSizes {
                    context: shape.context,
                    layer_count: shape.layer_count,
                    embedding: shape.embedding,
                    vocabulary: shape.vocabulary,
                    kv_bytes_per_token: shape.kv_geometry(KvType::F16).token_bytes(),
                }
            }
            Graph::Encoder(encoder, _) => {
                let shape = encoder.shape();
                GraphSizes {
                    context: shape.context,
                    layer_count: shape.layer_count,
                    embedding: shape.embedding,
                    vocabulary: shape.vocabulary,
                    kv_bytes_per_token: 0,
                }
            }
        }
    }
}
