//! What users of llama-server expect beside OpenAI's endpoints: `/tokenize`, `/detokenize`, `/apply-template`.
//!
//! The work grows with the text, so it is done on a thread that may block; places for it bound how much at once.

use std::sync::Arc;

use andon_engine::tokenizer::Tokenizer;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::sync::SemaphorePermit;

use super::error::ApiError;
use super::fields::{Fields, token_ids};
use super::parse::{message, template_variables, tools};
use super::serve::Client;
use super::{HttpRequest, Service, json_response, json_text};
use crate::fault::{Fault, FaultCode};
use crate::request::{Input, Origin, Request};
use crate::worker;

/// Does work that grows with the text where it holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Fault::new(FaultCode::Internal, "the work broke off").into()),
    }
}

pub(super) async fn tokenize(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let (mut fields, _held) = fields(&service, request).await?;
    let _place = service.works.acquire().await;
    let content = fields
        .string("content")?
        .ok_or_else(|| ApiError::invalid("content", "content is missing"))?;
    let add_special = fields.bool("add_special")?.unwrap_or(false);
    let parse_special = fields.bool("parse_special")?.unwrap_or(true);
    let with_pieces = fields.bool("with_pieces")?.unwrap_or(false);
    finish(&service, &client, fields)?;
    let model = service.context.workers.model(None)?;
    let text = blocking(move || {
        let ids = worker::tokenize(&model, &content, add_special, parse_special);
        // Written as it is made: there may be a token for every byte of the body, and a `Value` is large.
        let written = if with_pieces {
            let tokens = Pieces {
                tokenizer: model.tokenizer(),
                ids: &ids,
            };
            serde_json::to_string(&Tokens { tokens })
        } else {
            serde_json::to_string(&Tokens { tokens: &ids })
        };
        written.map_err(|_| Fault::new(FaultCode::Internal, "the tokens cannot be written"))
    })
    .await?;
    Ok(json_text(text))
}

#[derive(Serialize)]
struct Tokens<T> {
    tokens: T,
}

/// Tokens with their texts.
struct Pieces<'a> {
    tokenizer: &'a Tokenizer,
    ids: &'a [u32],
}

#[derive(Serialize)]
struct Piece<'a> {
    id: u32,
    piece: PieceText<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum PieceText<'a> {
    Text(&'a str),
    /// Not whole characters: the bytes themselves.
    Bytes(&'a [u8]),
}

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ids.iter().map(|&id| {
            let bytes = self.tokenizer.token_bytes(id);
            let piece = std::str::from_utf8(bytes).map_or(PieceText::Bytes(bytes), PieceText::Text);
            Piece { id, piece }
        }))
    }
}

pub(super) async fn detokenize(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let (mut fields, _held) = fields(&service, request).await?;
    let _place = service.works.acquire().await;
    let tokens = match fields.take("tokens") {
        Some(Value::Array(tokens)) => token_ids("tokens", &tokens)?,
        Some(_) => {
            return Err(ApiError::invalid(
                "tokens",
                "tokens must be an array of token ids",
            ));
        }
        None => return Err(ApiError::invalid("tokens", "tokens is missing")),
    };
    finish(&service, &client, fields)?;
    let model = service.context.workers.model(None)?;
    let content = blocking(move || worker::detokenize(&model, &tokens)).await?;
    Ok(json_response(&json!({ "content": content })))
}

pub(super) async fn apply_template(
    State(service): State<Arc<Service>>,
    Extension(client): Extension<Client>,
    request: HttpRequest,
) -> Result<Response<Body>, ApiError> {
    let (mut fields, _held) = fields(&service, request).await?;
    let _place = service.works.acquire().await;
    let messages = message::take(&mut fields)?;
    let tools = tools::described(&mut fields)?;
    let variables = template_variables(&mut fields)?;
    finish(&service, &client, fields)?;
    // The bounds of a conversation are those of a request with it.
    let mut whole = Request::new("0", "0", Origin::Http, Input::Messages(messages));
    whole.tools = tools;
    whole.check(&service.context.config().limits)?;
    let Input::Messages(messages) = whole.input else {
        return Err(ApiError::invalid("messages", "messages is missing"));
    };
    let model = service.context.workers.model(None)?;
    let tools = whole.tools;
    let prompt =
        blocking(move || worker::apply_template(&model, messages, &tools, &variables)).await?;
    Ok(json_response(&json!({ "prompt": prompt })))
}

async fn fields(
    service: &Service,
    request: HttpRequest,
) -> Result<(Fields, Option<SemaphorePermit<'_>>), ApiError> {
    // Its body comes when there is a model for it.
    service.context.once_loaded(None).await;
    let malformed = |error: &ApiError| service.malformed(error);
    let (body, place) = service.read(request).await.inspect_err(malformed)?;
    Ok((Fields::parse(&body).inspect_err(malformed)?, place))
}

/// Refuses fields that nobody took, a model that is not served, and one that the client may not ask.
fn finish(service: &Service, client: &Client, mut fields: Fields) -> Result<(), ApiError> {
    let model = fields.string("model")?;
    service.check_model(model.as_deref())?;
    fields.finish("")?;
    let workers = &service.context.workers;
    Ok(workers.permit_text(&client.caller)?)
}
