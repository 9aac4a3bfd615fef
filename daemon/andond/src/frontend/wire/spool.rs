//! The compact socket's part in looking after the requests that are kept. What clients asked is nobody else's business.

use std::sync::mpsc::channel;
use std::time::Duration;

use andon_wire::limits::{CHUNK_TEXT_BYTES_MAX, NAME_BYTES_MAX};
use andon_wire::{KeptRequest, RequestId, SpoolAction, shorten};

use super::models::{Event, Events, send};
use crate::fault::Fault;
use crate::frontend;
use crate::registry::RegistryError;
use crate::spool::book::Filter;
use crate::spool::record::Header;
use crate::spool::{Kept, Spool, Then};

/// Bytes of a text in a list, of which a client may choose many.
const SHOWN_BYTES_MAX: usize = 2 * NAME_BYTES_MAX;

/// What an operator wants, owned.
pub(super) enum Wanted {
    List(Filter),
    Show(u64),
    Retry(u64),
    Drop(Filter),
    Erase(Filter),
}

impl Wanted {
    pub(super) fn new(action: &SpoolAction<'_>) -> Wanted {
        let filter = |task: &Option<andon_wire::TaskName>, client: &Option<&str>| Filter {
            task: task.as_ref().map(|task| task.as_str().to_owned()),
            client: client.map(str::to_owned),
            number: None,
        };
        match action {
            SpoolAction::List { task, client } => Wanted::List(filter(task, client)),
            SpoolAction::Show(number) => Wanted::Show(*number),
            SpoolAction::Retry(number) => Wanted::Retry(*number),
            SpoolAction::Drop(number) => Wanted::Drop(Filter {
                number: Some(*number),
                ..Filter::default()
            }),
            SpoolAction::Erase { task, client } => Wanted::Erase(filter(task, client)),
        }
    }
}

/// A record, as an operator sees it.
pub(super) struct Facts {
    number: u64,
    header: Header,
    age: Duration,
    left: Option<Duration>,
}

impl Facts {
    fn new(spool: &Spool, number: u64, header: Header) -> Facts {
        let (age, _) = spool.ages(&header);
        Facts {
            left: spool.left(&header),
            age,
            number,
            header,
        }
    }

    pub(super) fn frame(&self, id: RequestId) -> KeptRequest<'_> {
        let header = &self.header;
        let shown = |text| shorten(text, SHOWN_BYTES_MAX);
        KeptRequest {
            id,
            number: self.number,
            origin: header.key.door.name(),
            client: shown(&header.key.client),
            request: shown(&header.key.id),
            task: header.task.as_deref().map_or("", shown),
            state: header.state.name(),
            attempt: header.attempt,
            age_ms: millis(self.age),
            left_ms: self.left.map(millis),
            request_bytes: header.request_bytes,
            answer_bytes: header.answer_bytes,
            fault: header.fault.as_deref().map_or("", shown),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Does what is wanted. Blocks.
pub(super) fn operate(spool: &Spool, wanted: Wanted, events: &Events) -> Result<(), RegistryError> {
    let count = match wanted {
        Wanted::List(filter) => {
            let listed = spool.list(&filter);
            let count = listed.len();
            for (number, header) in listed {
                let facts = Facts::new(spool, number, header);
                send(events, Event::Kept(Box::new(facts)));
            }
            count
        }
        Wanted::Show(number) => show(spool, number, events)?,
        Wanted::Retry(number) => {
            if !spool.retry(number) {
                return Err(unknown(number));
            }
            1
        }
        Wanted::Drop(filter) => {
            let dropped = spool.drop_all(&filter);
            if let (0, Some(number)) = (dropped, filter.number) {
                return Err(unknown(number));
            }
            crate::event!(
                DataErased,
                client = filter.client,
                task = filter.task,
                number = filter.number,
                erased = dropped,
                "requests were dropped from the spool"
            );
            dropped
        }
        Wanted::Erase(filter) => {
            let erased = spool.drop_all(&filter);
            waited(|then| spool.rewrite(then))?;
            crate::event!(
                DataErased,
                client = filter.client,
                task = filter.task,
                number = filter.number,
                erased,
                "requests were erased from the spool"
            );
            erased
        }
    };
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    send(events, Event::Done { count });
    Ok(())
}

fn show(spool: &Spool, number: u64, events: &Events) -> Result<usize, RegistryError> {
    let kept: Option<Kept> = waited(|then| spool.read(number, then))?;
    let kept = kept.ok_or_else(|| unknown(number))?;
    let facts = Facts::new(spool, number, kept.header.clone());
    send(events, Event::Kept(Box::new(facts)));
    let mut text = frontend::described(&kept).to_string();
    while !text.is_empty() {
        let rest = text.split_off(shorten(&text, CHUNK_TEXT_BYTES_MAX).len());
        send(events, Event::Text(text));
        text = rest;
    }
    Ok(1)
}

/// Waits for the spool's word.
fn waited<T: Send + 'static>(ask: impl FnOnce(Then<T>)) -> Result<T, RegistryError> {
    let (told, said) = channel::<Result<T, Fault>>();
    ask(Box::new(move |outcome| drop(told.send(outcome))));
    match said.recv() {
        Ok(outcome) => outcome.map_err(|fault| RegistryError::Busy(fault.message)),
        Err(_) => Err(RegistryError::Busy("the spool is closed".to_owned())),
    }
}

fn unknown(number: u64) -> RegistryError {
    RegistryError::Invalid(format!("no request {number} is kept"))
}
