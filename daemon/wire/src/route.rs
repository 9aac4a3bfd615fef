//! Where a request would be answered, and why.

use heapless::Vec;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::name::RequestId;

/// What a part of a question does to the estimate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutePart<'a> {
    /// The part: a word or figure of the question; at most 64 bytes.
    pub what: &'a str,
    /// By how much it moves the log-odds that the local answer will do.
    pub moved: f32,
}

/// Where a request would be answered now; nothing was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteExplained<'a> {
    /// Id of the request.
    pub id: RequestId,
    /// `local`, `cascade`, `cloud`, `wait`, `local-fallback` or `refuse`.
    pub decision: &'a str,
    /// Why: `policy`, `egress`, `kind`, `no-upstream`, `easy`, `hard`, `link`, `busy`, `budget` or `deadline`.
    pub reason: &'a str,
    /// Who is to answer: `local`, `auto` or `cloud`.
    pub policy: &'a str,
    /// Whether upstream can be had.
    pub up: bool,
    /// Whether decisions are only noted.
    pub shadow: bool,
    /// Probability that the local answer will do, where that was estimated.
    pub will_do: Option<f32>,
    /// Probability that it is as good as upstream's: that it will do, or that neither will.
    pub as_good: Option<f32>,
    /// The model whose answers that is of, as the weights name it, or `any`.
    pub judged_as: &'a str,
    /// Below which `as_good` the request would go up.
    pub threshold: f32,
    /// What moved the estimate most.
    #[serde(borrow)]
    pub parts: Vec<RoutePart<'a>, { limits::ROUTE_PARTS_MAX }>,
}
