//! What is remembered of each client: how much it has open, how much it was served, how often it asked.
//!
//! Invariant: no more than [`CLIENTS_MAX`] clients that have nothing open are remembered. One that
//! is forgotten begins anew, with full buckets; the one that asked longest ago is.

use alloc::collections::BTreeMap;

use andon_wire::Priority;

use crate::admission::{Reason, Throttled};
use crate::rate::{Bucket, Rate};

/// Clients with nothing open that are remembered.
pub const CLIENTS_MAX: usize = 4_096;

/// Names a client, by a number that nobody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// How often one client may ask, and for how much. `None` is any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests that are no alarms.
    pub requests: Option<Rate>,
    /// Alarms: who has asked for much else may still raise one.
    pub alarms: Option<Rate>,
    /// Tokens of prompts, as far as they are computed, and answers.
    pub tokens: Option<Rate>,
}

impl Rates {
    /// These, and those of `others` where they say nothing.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            requests: self.requests.or(others.requests),
            alarms: self.alarms.or(others.alarms),
            tokens: self.tokens.or(others.tokens),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Account {
    /// As they were said when it last asked.
    rates: Rates,
    open: u32,
    served: u64,
    used_ms: u64,
    requests: Option<Counted>,
    alarms: Option<Counted>,
    tokens: Option<Counted>,
}

/// What is left of something that was counted at least once.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// The rate that held last: who has none for a while, by another rule, still owes what it owed.
    rate: Rate,
    bucket: Bucket,
}

impl Counted {
    const fn full(rate: Rate, now_ms: u64) -> Self {
        Self {
            rate,
            bucket: Bucket::full(rate, now_ms),
        }
    }

    fn is_full(&mut self, now_ms: u64) -> bool {
        self.bucket.is_full(self.rate, now_ms)
    }
}

impl Account {
    fn new(rates: Rates, now_ms: u64) -> Self {
        let full = |rate: Option<Rate>| rate.map(|rate| Counted::full(rate, now_ms));
        Self {
            rates,
            open: 0,
            served: 0,
            used_ms: now_ms,
            requests: full(rates.requests),
            alarms: full(rates.alarms),
            tokens: full(rates.tokens),
        }
    }

    /// Goes by these rates from now on. What was taken before still has to be paid off, where it was counted, also if there
    /// was no rate for a while.
    fn go_by(&mut self, rates: Rates, now_ms: u64) {
        self.rates = rates;
        for (counted, rate) in [
            (&mut self.requests, rates.requests),
            (&mut self.alarms, rates.alarms),
            (&mut self.tokens, rates.tokens),
        ] {
            if let Some(rate) = rate {
                counted
                    .get_or_insert_with(|| Counted::full(rate, now_ms))
                    .rate = rate;
            }
        }
    }

    /// What counts requests of a class, if there is a rate for them now.
    fn of(&mut self, priority: Priority) -> (Option<(Rate, &mut Bucket)>, Reason) {
        let (rate, counted, reason) = match priority {
            Priority::Alarm => (self.rates.alarms, &mut self.alarms, Reason::AlarmRate),
            Priority::Interactive | Priority::Batch => {
                (self.rates.requests, &mut self.requests, Reason::RequestRate)
            }
        };
        (limited(rate, counted), reason)
    }

    /// What counts tokens, if there is a rate for them now.
    fn of_tokens(&mut self) -> Option<(Rate, &mut Bucket)> {
        limited(self.rates.tokens, &mut self.tokens)
    }
}

fn limited(rate: Option<Rate>, counted: &mut Option<Counted>) -> Option<(Rate, &mut Bucket)> {
    Some((rate?, &mut counted.as_mut()?.bucket))
}

/// All clients.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Those of a client that brings none of its own.
    rates: Rates,
    accounts: BTreeMap<ClientId, Account>,
    idle: usize,
    /// What a client has been served at least once it asks: who was away has saved nothing up.
    floor: u64,
}

impl Clients {
    /// No clients.
    #[must_use]
    pub const fn new(rates: Rates) -> Self {
        Self {
            rates,
            accounts: BTreeMap::new(),
            idle: 0,
            floor: 0,
        }
    }

    /// Has other rates hold for clients that bring none of their own, each from when it next asks.
    pub const fn set_rates(&mut self, rates: Rates) {
        self.rates = rates;
    }

    /// Whether a client asks too often, or for too much, by its own rates where it has some.
    pub fn throttled(
        &mut self,
        client: ClientId,
        own: Rates,
        priority: Priority,
        now_ms: u64,
    ) -> Option<Throttled> {
        let rates = own.or(self.rates);
        let account = self.accounts.get_mut(&client)?;
        account.go_by(rates, now_ms);
        let wait = |(rate, bucket): (Rate, &mut Bucket)| bucket.wait_ms(rate, 1, now_ms);
        let (limited, reason) = account.of(priority);
        let wait_ms = limited.map_or(0, wait);
        if wait_ms > 0 {
            return Some(Throttled { reason, wait_ms });
        }
        // An alarm is short, and nobody else's business.
        if priority == Priority::Alarm {
            return None;
        }
        let wait_ms = account.of_tokens().map_or(0, wait);
        (wait_ms > 0).then_some(Throttled {
            reason: Reason::TokenRate,
            wait_ms,
        })
    }

    /// Requests of a client that have not ended.
    #[must_use]
    pub fn open(&self, client: ClientId) -> u32 {
        self.accounts.get(&client).map_or(0, |account| account.open)
    }

    /// How much a client has been served, as requests are ordered by it.
    #[must_use]
    pub fn served(&self, client: ClientId) -> u64 {
        self.accounts
            .get(&client)
            .map_or(self.floor, |account| account.served)
    }

    /// Takes in that a client's request was admitted, with the client's own rates where it has some.
    pub fn opened(&mut self, client: ClientId, own: Rates, priority: Priority, now_ms: u64) {
        let rates = own.or(self.rates);
        let known = self.accounts.contains_key(&client);
        let account = self
            .accounts
            .entry(client)
            .or_insert_with(|| Account::new(rates, now_ms));
        account.go_by(rates, now_ms);
        if account.open == 0 {
            account.served = account.served.max(self.floor);
            if known {
                self.idle = self.idle.saturating_sub(1);
            }
        }
        account.open += 1;
        account.used_ms = now_ms;
        if let (Some((rate, bucket)), _) = account.of(priority) {
            bucket.take(rate, 1, now_ms);
        }
    }

    /// Takes in that a client's request begins to be computed.
    pub fn started(&mut self, client: ClientId) {
        self.floor = self.floor.max(self.served(client));
    }

    /// Takes in that so many tokens were computed for a client, which cost as much as so many of an answer.
    pub fn computed(&mut self, client: ClientId, tokens: u32, cost: u64, now_ms: u64) {
        if let Some(account) = self.accounts.get_mut(&client) {
            account.served = account.served.saturating_add(cost);
            if let Some((rate, bucket)) = account.of_tokens() {
                bucket.take(rate, tokens, now_ms);
            }
        }
    }

    /// Takes in that a client's request has ended.
    pub fn closed(&mut self, client: ClientId, now_ms: u64) {
        let Some(account) = self.accounts.get_mut(&client) else {
            return;
        };
        account.open = account.open.saturating_sub(1);
        account.used_ms = now_ms;
        if account.open > 0 {
            return;
        }
        self.idle += 1;
        if self.idle > CLIENTS_MAX {
            self.forget(now_ms);
        }
    }

    /// Forgets the clients of which there is nothing to remember, and if there are none, one.
    fn forget(&mut self, now_ms: u64) {
        let floor = self.floor;
        let full = |counted: &mut Option<Counted>| {
            let counted = counted.as_mut();
            counted.is_none_or(|counted| counted.is_full(now_ms))
        };
        let mut oldest = None;
        self.accounts.retain(|client, account| {
            let keep = account.open > 0
                || account.served > floor
                || !full(&mut account.requests)
                || !full(&mut account.alarms)
                || !full(&mut account.tokens);
            if keep && account.open == 0 {
                let this = (account.used_ms, *client);
                oldest = Some(oldest.map_or(this, |oldest| this.min(oldest)));
            }
            keep
        });
        self.count_idle();
        if self.idle > CLIENTS_MAX
            && let Some((_, client)) = oldest
        {
            self.accounts.remove(&client);
            self.idle -= 1;
        }
    }

    fn count_idle(&mut self) {
        let idle = self.accounts.values().filter(|account| account.open == 0);
        self.idle = idle.count();
    }

    /// Clients that are remembered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.accounts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{CLIENTS_MAX, ClientId, Clients, Rates};
    use crate::admission::{Reason, Throttled};
    use crate::rate::Rate;
    use andon_wire::Priority;

    const ONE: ClientId = ClientId(1);
    const TWO: ClientId = ClientId(2);
    /// No rates of its own.
    const NONE: Rates = Rates {
        requests: None,
        alarms: None,
        tokens: None,
    };
    const RATES: Rates = Rates {
        requests: Some(Rate::per_minute(2)),
        alarms: Some(Rate::per_minute(1)),
        tokens: Some(Rate::per_minute(600)),
    };

    #[test]
    fn each_client_has_its_own_rates_and_alarms_theirs() {
        let mut clients = Clients::new(RATES);
        for _ in 0..2 {
            assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 0), None);
            clients.opened(ONE, NONE, Priority::Batch, 0);
        }
        assert_eq!(
            clients.throttled(ONE, NONE, Priority::Interactive, 0),
            Some(Throttled {
                reason: Reason::RequestRate,
                wait_ms: 30_000
            })
        );
        assert_eq!(clients.throttled(TWO, NONE, Priority::Interactive, 0), None);
        assert_eq!(clients.throttled(ONE, NONE, Priority::Alarm, 0), None);
        clients.opened(ONE, NONE, Priority::Alarm, 0);
        let alarm = clients.throttled(ONE, NONE, Priority::Alarm, 0);
        assert_eq!(alarm.map(|alarm| alarm.reason), Some(Reason::AlarmRate));
        assert_eq!(clients.open(ONE), 3);
    }

    #[test]
    fn rates_of_its_own_go_before_those_of_all() {
        let mut clients = Clients::new(RATES);
        let own = Rates {
            requests: Some(Rate::per_minute(3)),
            ..NONE
        };
        let reason = |throttled: Option<Throttled>| throttled.map(|throttled| throttled.reason);
        for _ in 0..3 {
            assert_eq!(clients.throttled(ONE, own, Priority::Batch, 0), None);
            clients.opened(ONE, own, Priority::Batch, 0);
        }
        let fourth = clients.throttled(ONE, own, Priority::Batch, 0);
        assert_eq!(reason(fourth), Some(Reason::RequestRate));
        // What it says nothing of is as for all.
        clients.opened(ONE, own, Priority::Alarm, 0);
        let alarm = clients.throttled(ONE, own, Priority::Alarm, 0);
        assert_eq!(reason(alarm), Some(Reason::AlarmRate));
        clients.computed(ONE, 700, 700, 0);
        let later = clients.throttled(ONE, own, Priority::Batch, 60_000);
        assert_eq!(reason(later), None);
    }

    #[test]
    fn rates_may_change_between_two_requests() {
        let mut clients = Clients::new(NONE);
        clients.opened(ONE, NONE, Priority::Batch, 0);
        let own = Rates {
            requests: Some(Rate::per_minute(1)),
            ..NONE
        };
        // It was not counted before.
        assert_eq!(clients.throttled(ONE, own, Priority::Batch, 1), None);
        clients.opened(ONE, own, Priority::Batch, 1);
        assert!(clients.throttled(ONE, own, Priority::Batch, 2).is_some());
        assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 2), None);
    }

    #[test]
    fn who_has_no_rates_for_a_while_still_owes_what_it_owed() {
        let mut clients = Clients::new(NONE);
        let own = Rates {
            requests: Some(Rate::per_minute(1)),
            tokens: Some(Rate::per_minute(600)),
            ..NONE
        };
        clients.opened(ONE, own, Priority::Batch, 0);
        clients.computed(ONE, 1_200, 1_200, 0);
        // By another rule it may ask for anything, and what it does so does not count.
        assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 1), None);
        clients.opened(ONE, NONE, Priority::Batch, 1);
        let throttled = |clients: &mut Clients, now_ms| {
            let throttled = clients.throttled(ONE, own, Priority::Batch, now_ms);
            throttled.map(|throttled| (throttled.reason, throttled.wait_ms))
        };
        let by_requests = Some((Reason::RequestRate, 59_998));
        assert_eq!(throttled(&mut clients, 2), by_requests);
        // The time without a rate counts.
        assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 3), None);
        let by_tokens = Some((Reason::TokenRate, 100));
        assert_eq!(throttled(&mut clients, 60_000), by_tokens);
        assert_eq!(throttled(&mut clients, 60_100), None);
    }

    #[test]
    fn who_was_given_many_tokens_pays_them_off() {
        let mut clients = Clients::new(RATES);
        clients.opened(ONE, NONE, Priority::Batch, 0);
        clients.computed(ONE, 700, 700, 0);
        let throttled = clients.throttled(ONE, NONE, Priority::Batch, 0);
        assert_eq!(
            throttled,
            Some(Throttled {
                reason: Reason::TokenRate,
                wait_ms: 10_100
            })
        );
        assert_eq!(clients.throttled(ONE, NONE, Priority::Alarm, 0), None);
        assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 10_100), None);
    }

    #[test]
    fn other_rates_hold_at_once_and_take_nothing_from_who_is_known() {
        let mut clients = Clients::new(Rates::default());
        clients.opened(ONE, NONE, Priority::Batch, 0);
        clients.set_rates(RATES);
        // As often as a client that is new, and not once more.
        for _ in 0..2 {
            assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 10), None);
            clients.opened(ONE, NONE, Priority::Batch, 10);
        }
        assert!(clients.throttled(ONE, NONE, Priority::Batch, 10).is_some());
        clients.computed(ONE, 700, 700, 10);
        let more = Rates {
            requests: Some(Rate::per_minute(60)),
            ..RATES
        };
        clients.set_rates(more);
        // What was had is not given back; it only comes sooner.
        let throttled = clients.throttled(ONE, NONE, Priority::Batch, 10);
        assert_eq!(throttled.map(|throttled| throttled.wait_ms), Some(1_000));
        let throttled = clients.throttled(ONE, NONE, Priority::Batch, 1_010);
        assert_eq!(
            throttled.map(|throttled| throttled.reason),
            Some(Reason::TokenRate)
        );
        clients.set_rates(Rates::default());
        assert_eq!(clients.throttled(ONE, NONE, Priority::Batch, 1_010), None);
    }

    #[test]
    fn who_was_away_has_saved_nothing_up() {
        let mut clients = Clients::new(Rates::default());
        clients.opened(ONE, NONE, Priority::Batch, 0);
        clients.computed(ONE, 1_000, 1_000, 0);
        clients.started(ONE);
        clients.opened(TWO, NONE, Priority::Batch, 1);
        assert_eq!(clients.served(TWO), 1_000);
    }

    #[test]
    fn no_more_clients_are_remembered_than_stated() {
        let mut clients = Clients::new(RATES);
        let count = CLIENTS_MAX as u64 + 100;
        for client in 0..count {
            clients.opened(ClientId(client), NONE, Priority::Batch, client);
            clients.closed(ClientId(client), client);
            assert!(clients.count() <= CLIENTS_MAX);
        }
        // The first ones were forgotten, the last are known.
        let throttled = |clients: &mut Clients, client| {
            clients.opened(ClientId(client), NONE, Priority::Batch, count);
            let throttled = clients.throttled(ClientId(client), NONE, Priority::Batch, count);
            throttled.is_some()
        };
        assert!(!throttled(&mut clients, 0));
        assert!(throttled(&mut clients, count - 1));
    }
}
