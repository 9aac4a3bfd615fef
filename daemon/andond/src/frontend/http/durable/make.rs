//! How a request of the spool gets its reply: computed on its own, whoever stays to read, and kept.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse as _;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;

use super::live::{Ended, Live};
use super::{Begun, KeptAsk, KeptReply, Source, fetch, reply};
use crate::access::Caller;
use crate::fault::{Fault, FaultCode};
use crate::frontend::http::Service;
use crate::frontend::http::answer::{self, Ending};
use crate::frontend::http::error::ApiError;
use crate::frontend::http::serve::Client;
use crate::spool::Order;
use crate::spool::book::Filter;
use crate::spool::record::Door;
use crate::worker::WorkerState;

/// Between two tries to have a request of the spool computed, for which there was no place; and most between two for which
/// there was no model.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Between two tries to read a request while the disk fails.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// What a request that just came asks, and the word on whether it is kept.
pub(super) type Fresh = (KeptAsk, oneshot::Receiver<Result<(), Fault>>);

/// Has a request of the spool computed, on its own.
pub(super) fn compute(service: &Arc<Service>, number: u64, fresh: Option<Fresh>) {
    let live = Arc::new(Live::default());
    // Whoever comes with the same key in the meantime reads along.
    service.durable.lock().insert(number, Arc::clone(&live));
    let ended = Ended {
        service: Arc::downgrade(service),
        number,
        live: Arc::clone(&live),
    };
    let service = Arc::clone(service);
    let making = Arc::clone(&live);
    let task = tokio::spawn(async move {
        let _ended = ended;
        computed(service, number, making, fresh).await;
    });
    live.say(|said| said.computing = Some(task.abort_handle()));
}

async fn computed(service: Arc<Service>, number: u64, live: Arc<Live>, fresh: Option<Fresh>) {
    let spool = &service.context.spool;
    let mut ask = None;
    match fresh {
        Some((fresh, safe)) => {
            let outcome = safe.await.unwrap_or_else(|_| Err(answer::broken_off()));
            let kept = outcome.is_ok();
            live.say(|said| said.safe = Some(outcome));
            if !kept {
                return service.context.telemetry.spool_unkept();
            }
            ask = Some(fresh);
        }
        None => live.say(|said| said.safe = Some(Ok(()))),
    }
    let Some(header) = spool.get(number) else {
        return;
    };
    let again = header.attempt > 1;
    let mut waited = Duration::ZERO;
    let outcome = loop {
        if let Some(fault) = header.too_many_crashes() {
            break Err(fault.into());
        }
        // Its model may be away for long, and then nobody else looks at that.
        if spool.left(&header) == Some(Duration::ZERO) {
            let why = "the deadline passed while the request waited";
            break Err(Fault::new(FaultCode::DeadlineExceeded, why).into());
        }
        // Held as long as the request is in memory, which it is not while it waits for its turn.
        let (mut place, mut turn) = (None, None);
        let KeptAsk {
            place: path,
            id,
            body,
            groups,
        } = match ask.take() {
            Some(ask) => ask,
            None => {
                if header.crashes > 0 {
                    turn = Some(service.durable.suspects.lock().await);
                }
                loop {
                    place = service.durable.window(header.priority).acquire().await.ok();
                    if spool.may_run(number) {
                        break;
                    }
                    // Whoever may run does not wait for who may not.
                    drop(place.take());
                    tokio::time::sleep(PAUSE).await;
                }
                // On the disk before what is read comes: a request that ends the daemon at once is counted all the same.
                spool.running(number);
                match fetch_ask(&service, number).await {
                    Ok(Some(ask)) => ask,
                    Ok(None) => return,
                    Err(fault) => break Err(fault.into()),
                }
            }
        };
        // By the rules that hold now.
        let client = Client::from(Caller::of_kept(&header.key.client, groups));
        let source = Source::Spool {
            body: body.into(),
            id,
            seed: header.seed,
            deadline: spool.deadline(&header),
            begun: Begun {
                spool: spool.clone(),
                number,
            },
        };
        match reply(&service, path, &client, source).await {
            // Nobody waits who could try again, or somebody was told that it is kept.
            Err(error)
                if error.may_pass()
                    && !service.context.stopping.is_cancelled()
                    && (again || !live.refuse()) =>
            {
                if error.status == StatusCode::TOO_MANY_REQUESTS {
                    spool.leave(number);
                } else {
                    spool.rest(number);
                }
                drop((place, turn));
                let mut pause = pause(&error);
                if error.status != StatusCode::TOO_MANY_REQUESTS {
                    // Each try is noted on the disk, and the model may be away for days.
                    pause = waited.saturating_mul(2).clamp(pause, PAUSE_MAX);
                    waited = pause;
                }
                let left = spool.left(&header).unwrap_or(pause);
                let mut states = service.context.workers.states();
                states.mark_unchanged();
                tokio::select! {
                    () = tokio::time::sleep(pause.min(left)) => {}
                    Ok(()) = states.changed() => waited = Duration::ZERO,
                }
            }
            outcome => break outcome,
        }
    };
    if let Err(error) = &outcome {
        if error.may_pass() && !service.context.stopping.is_cancelled() {
            // It never began: the client may come with the same key.
            spool.forget(number);
            return leave(&live, outcome).await;
        }
        // The next start answers it.
        if error.may_pass() || error.status == StatusCode::SERVICE_UNAVAILABLE {
            return leave(&live, outcome).await;
        }
    }
    let code = outcome.as_ref().err().and_then(|error| error.code);
    let response = outcome.unwrap_or_else(ApiError::into_response);
    let ending = response.extensions().get::<Ending>().cloned();
    let kept = gather(response, &live).await;
    let code = match ending.map_or(Ok(()), |ending| ending.get()) {
        Ok(()) => code,
        // The next start answers it; what was read so far says that it broke off.
        Err(FaultCode::Unavailable) => return say_rest(&live, &kept),
        Err(_) if service.context.stopping.is_cancelled() => return say_rest(&live, &kept),
        // What was read so far says that it broke off; whoever asks again reads another attempt.
        Err(FaultCode::ModelUnavailable) => {
            say_rest(&live, &kept);
            tokio::time::sleep(PAUSE).await;
            spool.leave(number);
            spool.anew(number);
            return compute(&service, number, None);
        }
        Err(code) => ApiError::from(Fault::new(code, "")).code,
    };
    let (told, safe) = oneshot::channel();
    let then = Box::new(move |outcome: Result<(), Fault>| drop(told.send(outcome)));
    let bytes = postcard::to_stdvec(&kept)
        .map(Bytes::from)
        .unwrap_or_default();
    if spool.answer(number, bytes, code, then)
        && let Ok(Err(fault)) = safe.await
    {
        crate::event!(AnswerUnsafe, number, %fault, "a reply is sent that is not safe on the disk");
    }
    // Readers hold what is said; nobody else needs it any more.
    say_rest(&live, &kept);
}

/// For how long a request waits that may be answered later.
fn pause(error: &ApiError) -> Duration {
    let pause = match error.status {
        StatusCode::TOO_MANY_REQUESTS => PAUSE,
        _ => error.retry_after_s.map_or(PAUSE_MAX, Duration::from_secs),
    };
    pause.min(PAUSE_MAX)
}

/// Says what of a reply was held back.
fn say_rest(live: &Live, kept: &KeptReply) {
    live.say(|said| {
        said.whole = true;
        let rest = said.pieces.iter().map(Bytes::len).sum::<usize>();
        let rest = kept.body.get(rest..).unwrap_or_default().to_vec();
        said.pieces.push(rest.into());
    });
}

/// Tells whoever reads why there is no reply now, without its being the reply.
async fn leave(live: &Live, outcome: Result<Response<Body>, ApiError>) {
    let response = outcome.unwrap_or_else(ApiError::into_response);
    let kept = gather(response, live).await;
    say_rest(live, &kept);
}

/// Passes a reply on as it is made, but for its last piece, and returns all of it.
async fn gather(response: Response<Body>, live: &Live) -> KeptReply {
    let (head, mut body) = response.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).cloned();
    let content_type = content_type.unwrap_or_else(|| HeaderValue::from_static("application/json"));
    live.say(|said| said.head = Some((head.status, content_type.clone())));
    let mut whole = Vec::new();
    let mut held: Option<Bytes> = None;
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(piece) = frame.into_data() {
            whole.extend_from_slice(&piece);
            if let Some(before) = held.replace(piece) {
                live.say(|said| said.pieces.push(before));
            }
        }
    }
    KeptReply {
        status: head.status.as_u16(),
        content_type: content_type.to_str().unwrap_or_default().to_owned(),
        body: whole,
    }
}

/// Fetches what a record asks that is to be answered, however long the disk fails; `None` if it is not there.
async fn fetch_ask(service: &Arc<Service>, number: u64) -> Result<Option<KeptAsk>, Fault> {
    let unreadable = |why: &str| {
        crate::event!(
            RecordUnreadable,
            number,
            why,
            "a request of the spool cannot be answered"
        );
        Fault::new(
            FaultCode::Internal,
            format!("what was kept cannot be read: {why}"),
        )
    };
    loop {
        match fetch(service, number).await {
            Ok(None) => return Ok(None),
            Ok(Some(kept)) => {
                let ask = KeptAsk::read(&kept.request).map(Some);
                return ask.ok_or_else(|| unreadable("it is no request over HTTP"));
            }
            Err(fault) if fault.code == FaultCode::Unavailable => {
                tracing::debug!(number, %fault, "a request of the spool cannot be read now");
                tokio::time::sleep(READ_PAUSE).await;
            }
            Err(fault) => return Err(unreadable(&fault.message)),
        }
    }
}

/// Goes on with what an earlier process left, and does what operators want, until the daemon stops.
pub(in crate::frontend::http) async fn look_after(service: Arc<Service>) {
    let context = &service.context;
    let mut orders = context.spool.orders(Door::Http);
    let mut states = context.workers.states();
    // From then on each waits for its own model.
    let serving = states.wait_for(|state| *state != WorkerState::Loading);
    tokio::select! {
        _ = serving => {}
        () = context.stopping.cancelled() => return,
    }
    compute_unanswered(&service, false);
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
                // What a worker without a model has left.
                if *states.borrow_and_update() == WorkerState::Ready {
                    compute_unanswered(&service, true);
                }
                continue;
            }
            () = context.stopping.cancelled() => return,
        };
        match order {
            None => return,
            Some(Order::Dropped(number, _)) => service.durable.end(number),
            Some(Order::Again(number)) => {
                let Some(header) = context.spool.get(number) else {
                    continue;
                };
                let over = header.fault.is_some() || !header.state.is_answered();
                if over && service.durable.get(number).is_none() {
                    let left = context
                        .spool
                        .left(&header)
                        .filter(|_| header.fault.is_none());
                    let spool = &context.spool;
                    if (spool.again(number, header.attempt, left, Box::new(drop))).is_some() {
                        compute(&service, number, None);
                    }
                }
            }
        }
    }
}

/// Has everything computed that has no answer and is not being made: as another attempt if this process may have said
/// something of one before.
fn compute_unanswered(service: &Arc<Service>, again: bool) {
    let spool = &service.context.spool;
    let mut left = spool.list(&Filter::default());
    // The most urgent first, of these in the order of arrival.
    left.sort_by_key(|(_, header)| Reverse(header.priority));
    for (number, header) in left {
        let waits = header.key.door == Door::Http
            && !header.state.is_answered()
            && service.durable.get(number).is_none();
        if !waits {
            continue;
        }
        if again {
            spool.anew(number);
        }
        compute(service, number, None);
    }
}
