//! One question on its way: which upstream has it, for how long, who has it next, and what is handed over of the answer.
//!
//! Invariant: it ends with one [`Piece::Done`] or one fault, by its deadline. Nothing is handed over of an answer that has to have
//! a shape or calls until it is known to be in order, and what was handed over is never followed by another's answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use andon_policy::balance;
use andon_policy::budget::Spend;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout, timeout_at};

use super::answer::{Answered, FaultKind, Piece, Spent, UpstreamFault};
use super::client::{self, Refusal};
use super::member::{Member, Turn};
use super::question::Question;
use super::reply::{Complete, Found, Reader};
use super::{Inner, Permit, body, check, cost};
use crate::request::Calling;

/// The first pause before the same upstream is asked again; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the end of the stream, or what the answer took, is waited for once the answer itself has ended.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a prompt for each token, where the upstream does not say how many it has; most have more.
const PROMPT_BYTES_PER_TOKEN: usize = 2;

type Pieces = mpsc::Sender<Result<Piece, UpstreamFault>>;

/// Nobody waits for the answer any more.
struct Gone;

/// Why an attempt ended without an answer.
enum End {
    Gone,
    Refused(Refusal),
}

impl From<Gone> for End {
    fn from(_: Gone) -> End {
        End::Gone
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

/// What was handed over so far.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    first: bool,
    text: bool,
}

/// Asks until there is an answer, there is no hope of one, or nobody waits for it.
pub(super) async fn question(
    inner: Arc<Inner>,
    permit: Permit,
    question: Question,
    deadline: Option<Instant>,
    pieces: Pieces,
) {
    let mut asking = Asking {
        inner,
        permit,
        question: Arc::new(question),
        deadline,
        told: Told::default(),
        attempts: 0,
        cost: Spend::default(),
    };
    let gone = pieces.clone();
    let outcome = tokio::select! {
        () = gone.closed() => return,
        outcome = asking.run(&pieces) => outcome,
    };
    let last = match outcome {
        Ok(answered) => Ok(Piece::Done(answered)),
        Err(mut fault) => {
            fault.sent_text = asking.told.text;
            fault.cost = asking.cost;
            Err(fault)
        }
    };
    // Nobody has to be there to hear it.
    drop(pieces.send(last).await);
}

struct Asking {
    inner: Arc<Inner>,
    permit: Permit,
    question: Arc<Question>,
    deadline: Option<Instant>,
    told: Told,
    attempts: u32,
    /// What the attempts came to that have failed.
    cost: Spend,
}

impl Asking {
    async fn run(&mut self, pieces: &Pieces) -> Result<Answered, UpstreamFault> {
        let members = self.inner.members();
        let mut avoided: Vec<bool> = members
            .iter()
            .map(|member| self.question.avoid.contains(&member.name))
            .collect();
        let mut last: Option<UpstreamFault> = None;
        loop {
            let now_ms = self.inner.now_ms();
            let candidates: Vec<_> = (members.iter().zip(&avoided))
                .map(|(member, avoided)| member.candidate(now_ms, *avoided))
                .collect();
            let chosen = balance::choose(&candidates, self.inner.noise());
            let Some((index, member)) = chosen.and_then(|at| Some((at, members.get(at)?))) else {
                return Err(last.unwrap_or_else(|| self.nobody(&members, &avoided)));
            };
            let mut asked = 0;
            let mut taken = None;
            let refusal = loop {
                let Some(mut turn) = taken.take().or_else(|| Turn::take(member, &self.inner))
                else {
                    // It has opened, or is on trial with another question by now.
                    break None;
                };
                asked += 1;
                self.attempts += 1;
                let refusal = match self.attempt(member, &mut turn, pieces).await {
                    Ok(answered) => return Ok(answered),
                    Err(End::Gone) => {
                        let fault = UpstreamFault::new(FaultKind::Unavailable, "nobody waits");
                        return Err(fault);
                    }
                    Err(End::Refused(refusal)) => refusal,
                };
                let is_at_end = refusal.kind == FaultKind::Deadline
                    || self.told.text
                    || (self.question.spends_once && self.cost != Spend::default());
                let again = !is_at_end && refusal.is_unbegun && asked <= member.config.retries_max;
                // Its own word on when to come again holds for all at once.
                let kept = if again && refusal.kind != FaultKind::Busy {
                    turn.noted(&refusal);
                    Some(turn)
                } else {
                    turn.failed(&refusal);
                    None
                };
                if !again || !self.pause(asked, &refusal).await {
                    break Some((refusal, is_at_end));
                }
                taken = kept;
                last = Some(fault_of(member, refusal));
            };
            if let Some(avoided) = avoided.get_mut(index) {
                *avoided = true;
            }
            if let Some((refusal, is_at_end)) = refusal {
                let fault = fault_of(member, refusal);
                if is_at_end {
                    return Err(fault);
                }
                last = Some(fault);
            }
        }
    }

    /// Why nobody can be asked.
    fn nobody(&self, members: &[Arc<Member>], avoided: &[bool]) -> UpstreamFault {
        let now_ms = self.inner.now_ms();
        let left = || {
            members
                .iter()
                .zip(avoided)
                .filter(|(_, avoided)| !**avoided)
                .map(|(one, _)| one)
        };
        let limited = left()
            .filter_map(|member| member.limited_until_ms(now_ms))
            .min();
        let is_full = left().any(|member| member.lets(now_ms) && member.is_full());
        if limited.is_some() || is_full {
            let after = limited.map(|until| Duration::from_millis(until.saturating_sub(now_ms)));
            return UpstreamFault {
                retry_after: after,
                ..UpstreamFault::new(
                    FaultKind::Busy,
                    "every upstream has as much to do as it takes",
                )
            };
        }
        let what = if members.is_empty() {
            "no upstream is configured"
        } else {
            "no upstream can be had now"
        };
        UpstreamFault::new(FaultKind::Unavailable, what)
    }

    /// Waits before the same upstream is asked again; false if there is no time for that, or it wants longer.
    async fn pause(&self, asked: u32, refusal: &Refusal) -> bool {
        let doubled = PAUSE
            .saturating_mul(1 << asked.saturating_sub(1).min(8))
            .min(PAUSE_MAX);
        // Between a half and the whole of it, so that those who failed together do not come together.
        let share = f64::from(self.inner.noise()) / f64::from(u32::MAX);
        let pause = doubled.mul_f64(0.5 + share / 2.0);
        let pause = pause.max(refusal.retry_after.unwrap_or_default());
        let is_late = |deadline: Instant| Instant::now() + pause >= deadline;
        if pause > PAUSE_MAX || self.deadline.is_some_and(is_late) {
            return false;
        }
        sleep(pause).await;
        true
    }

    async fn attempt(
        &mut self,
        member: &Arc<Member>,
        turn: &mut Turn,
        pieces: &Pieces,
    ) -> Result<Answered, End> {
        let config = &member.config;
        let began = Instant::now();
        let total = began + Duration::from_millis(config.total_timeout_ms);
        let until = self.deadline.map_or(total, |deadline| deadline.min(total));
        turn.listens(Some(began));
        let mut attempt = Attempt {
            member,
            turn,
            began,
            first: None,
            spent: None,
        };
        let inner = Arc::clone(&self.inner);
        let outcome = timeout_at(until.into(), attempt.run(self, pieces)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(End::Refused(if until < total {
                Refusal::new(FaultKind::Deadline, "the deadline passes")
            } else {
                let what = format!(
                    "the answer takes longer than {} ms",
                    config.total_timeout_ms
                );
                Refusal::new(FaultKind::Slow, what)
            }))
        });
        if let Err(End::Refused(refusal)) = &outcome {
            let (spent, began) = (attempt.spent.as_ref(), attempt.first.is_some());
            let (price, added) = (member.price, member.added());
            let question = &self.question;
            let came_to = cost::of_failed(price, question, added, refusal, spent, began);
            self.cost = self.cost.plus(came_to);
            inner.telemetry.upstream_refused(&member.name, refusal.kind);
        }
        outcome
    }
}

fn fault_of(member: &Member, refusal: Refusal) -> UpstreamFault {
    UpstreamFault {
        upstream: Some(Arc::clone(&member.name)),
        retry_after: refusal.retry_after,
        ..UpstreamFault::new(refusal.kind, refusal.what)
    }
}

struct Attempt<'a> {
    member: &'a Arc<Member>,
    turn: &'a mut Turn,
    began: Instant,
    first: Option<Instant>,
    /// What the answer took, once it is complete, be it of no use.
    spent: Option<Spent>,
}

impl Attempt<'_> {
    async fn run(&mut self, asking: &mut Asking, pieces: &Pieces) -> Result<Answered, End> {
        let config = &self.member.config;
        let question = &asking.question;
        let patience = Duration::from_millis(config.first_token_timeout_ms);
        let body = body::of(question, &config.model, config.tokens_field);
        let (client, key) = self.member.client().await?;
        let late = || {
            let what = format!("no token within {} ms", config.first_token_timeout_ms);
            Refusal::new(FaultKind::Slow, what)
        };
        let asked = timeout(patience, client.ask(&asking.permit, body, key.as_ref())).await;
        let (form, incoming) = asked.map_err(|_| late())??;
        let reader = Reader::new(form, question.tokens_max);
        let is_held = question.shape.is_some() || question.tool_choice.calling == Calling::Must;
        let mut reading = Reading {
            incoming,
            reader,
            is_held,
            held: String::new(),
            ended: None,
        };
        let complete = self.read(&mut reading, asking, pieces).await?;
        let spent = spent(&complete, &asking.question);
        self.member.adds(cost::added(&spent, &asking.question));
        self.spent = Some(spent);
        let text = std::mem::take(&mut reading.held);
        let question = Arc::clone(&asking.question);
        let (complete, text) = check::answer(question, complete, text).await?;
        if !text.is_empty() {
            self.tell(Piece::Text(text), asking, pieces).await?;
        }
        if !complete.calls.is_empty() {
            self.tell(Piece::ToolCalls(complete.calls.clone()), asking, pieces)
                .await?;
        }
        let rest = self.first.map(|first| first.elapsed()).unwrap_or_default();
        self.turn.succeeded(spent.completion_tokens, rest);
        let whole = self.began.elapsed();
        asking
            .inner
            .telemetry
            .upstream_answered(&self.member.name, &spent, whole);
        Ok(Answered {
            finish: complete.finish,
            spent,
            model: Arc::clone(&self.member.model),
            upstream: Arc::clone(&self.member.name),
            attempts: asking.attempts,
            cost: asking.cost.plus(cost::of(self.member.price, &spent)),
        })
    }

    /// Reads the reply to its end.
    async fn read(
        &mut self,
        reading: &mut Reading,
        asking: &mut Asking,
        pieces: &Pieces,
    ) -> Result<Complete, End> {
        let config = &self.member.config;
        let mut heard = self.began;
        loop {
            let (millis, what) = match self.first {
                None => (config.first_token_timeout_ms, "no token"),
                Some(_) => (config.token_timeout_ms, "no further token"),
            };
            let patience = Duration::from_millis(millis);
            let until = match reading.ended {
                Some(ended) => ended + patience.min(END_PATIENCE),
                None => heard + patience,
            };
            self.turn.listens(Some(heard));
            let frame = timeout_at(until.into(), reading.incoming.frame()).await;
            self.turn.listens(None);
            let bytes = match frame {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => bytes,
                    Err(_) => continue,
                },
                Ok(None) => break,
                // What was still to come is not part of the answer.
                Err(_) | Ok(Some(Err(_))) if reading.ended.is_some() => break,
                Err(_) => {
                    let what = format!("{what} within {millis} ms");
                    return Err(Refusal::new(FaultKind::Slow, what).into());
                }
                Ok(Some(Err(error))) => return Err(client::http(&error).into()),
            };
            let found = reading.reader.push(&bytes).map_err(refusal)?;
            let is_word = !found.is_empty();
            self.hand_over(found, reading, asking, pieces).await?;
            // Whoever reads the answer may take his time, which is not the server's.
            let now = Instant::now();
            if is_word {
                heard = now;
            }
            if reading.reader.has_ended() {
                let ended = *reading.ended.get_or_insert(now);
                if reading.reader.is_over() || now >= ended + END_PATIENCE {
                    break;
                }
            }
        }
        let reader = std::mem::replace(
            &mut reading.reader,
            Reader::new(super::reply::Form::Whole, None),
        );
        let (found, complete) = reader.finish().map_err(refusal)?;
        self.hand_over(found, reading, asking, pieces).await?;
        Ok(complete)
    }

    async fn hand_over(
        &mut self,
        found: Vec<Found>,
        reading: &mut Reading,
        asking: &mut Asking,
        pieces: &Pieces,
    ) -> Result<(), Gone> {
        for one in found {
            if self.first.is_none() {
                let now = Instant::now();
                self.first = Some(now);
                let after = now.duration_since(self.began);
                self.turn.began(after);
                asking
                    .inner
                    .telemetry
                    .upstream_began(&self.member.name, after);
                if !asking.told.first {
                    let upstream = Arc::clone(&self.member.name);
                    self.tell(Piece::First { upstream }, asking, pieces).await?;
                }
            }
            match one {
                Found::Text(text) if reading.is_held => reading.held.push_str(&text),
                Found::Text(text) => self.tell(Piece::Text(text), asking, pieces).await?,
                Found::Token => {}
            }
        }
        Ok(())
    }

    async fn tell(&self, piece: Piece, asking: &mut Asking, pieces: &Pieces) -> Result<(), Gone> {
        asking.told.text |= matches!(piece, Piece::Text(_) | Piece::ToolCalls(_));
        asking.told.first = true;
        pieces.send(Ok(piece)).await.map_err(|_| Gone)
    }
}

/// A reply that is being read.
struct Reading {
    incoming: Incoming,
    reader: Reader,
    /// Whether nothing of it is handed over before it is known to be in order.
    is_held: bool,
    held: String,
    /// Since when the answer itself is complete, be it that the stream is not.
    ended: Option<Instant>,
}

fn refusal(fault: super::reply::ReadFault) -> Refusal {
    Refusal::new(fault.kind, fault.what)
}

/// What an answer took, by the upstream's word as far as that can be, else by what can be seen.
fn spent(complete: &Complete, question: &Question) -> Spent {
    let seen = complete.tokens_seen;
    // Nothing is nobody's word: no question is without tokens, and no answer of which some were seen.
    let (prompt, completion) = complete.usage.unzip();
    let prompt = prompt.filter(|&tokens| tokens > 0);
    let completion = completion.filter(|&tokens| tokens > 0 || seen == 0);
    let said = Spent {
        prompt_tokens: prompt.unwrap_or_else(|| prompt_tokens(question)),
        completion_tokens: completion.unwrap_or(seen),
        is_exact: prompt.is_some() && completion.is_some(),
    };
    cost::bounded(said, question, seen)
}

/// Tokens of a question of which the upstream does not say how many there were; most have fewer.
fn prompt_tokens(question: &Question) -> u32 {
    let tools = question.tools.iter().map(|tool| tool.to_string().len());
    let bytes = question
        .messages
        .iter()
        .map(crate::request::Message::bytes)
        .chain(tools);
    let tokens = bytes
        .fold(0, usize::saturating_add)
        .div_ceil(PROMPT_BYTES_PER_TOKEN);
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
