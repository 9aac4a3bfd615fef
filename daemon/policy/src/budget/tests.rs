//! What budgets let through, and what they keep.

use alloc::borrow::ToOwned as _;
use alloc::vec;

use super::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

/// The tenth of January 1970, at noon: the machine runs, and its clock is right.
fn now() -> Moment {
    after(0)
}

fn after(ms: u64) -> Moment {
    Moment {
        wall_ms: 9 * DAY + 12 * HOUR + ms,
        ran_ms: 77 + ms,
        starts: 1,
    }
}

const ANYONE: Who<'static> = Who {
    client: "plc-7",
    task: None,
};

fn spend(tokens: u64, micros: u64) -> Spend {
    Spend { tokens, micros }
}

fn rule(day: Option<u64>, month: Option<u64>) -> Rule {
    let tokens = |tokens| Cap {
        tokens,
        micros: None,
    };
    Rule {
        name: "all".to_owned(),
        day: tokens(day),
        month: tokens(month),
        ..Rule::default()
    }
}

fn stopped(verdict: &Verdict) -> Option<(Span, What, u64)> {
    match verdict {
        Verdict::Stop(stop) => Some((stop.span, stop.what, stop.again_in_ms)),
        _ => None,
    }
}

#[test]
fn what_is_spent_is_gone_until_the_day_or_the_month_is_over() {
    let mut budgets = Budgets::new(vec![rule(Some(100), Some(150))], now());
    let mut use_up = |at: Moment, tokens: u64| -> bool {
        let Ok(held) = budgets.reserve(at, ANYONE, spend(tokens, 0)) else {
            return false;
        };
        budgets.settle(at, &held, spend(tokens, 0));
        true
    };
    assert!(use_up(now(), 100));
    assert!(!use_up(now(), 1) && !use_up(after(12 * HOUR - 1), 1));
    assert!(use_up(after(12 * HOUR), 50));
    assert!(!use_up(after(13 * HOUR), 1) && !use_up(after(21 * DAY), 1));
    // The 10th at noon and 21 days and a half: February.
    assert!(use_up(after(21 * DAY + 12 * HOUR), 100));
    assert_eq!(
        stopped(&budgets.verdict(after(22 * DAY), ANYONE, spend(1, 0))),
        Some((Span::Day, What::Tokens, 12 * HOUR))
    );
}

#[test]
fn a_request_that_is_larger_than_what_is_left_goes_alone() {
    let mut budgets = Budgets::new(vec![rule(Some(100), None)], now());
    let first = budgets.reserve(now(), ANYONE, spend(60, 0)).expect("fits");
    budgets
        .reserve(now(), ANYONE, spend(41, 0))
        .expect_err("does not fit beside it");
    let beside = budgets.reserve(now(), ANYONE, spend(40, 0)).expect("fits");
    budgets.settle(now(), &first, spend(30, 0));
    budgets.settle(now(), &beside, spend(0, 0));
    // 70 are left, and nothing is under way.
    let alone = budgets.reserve(now(), ANYONE, spend(500, 0)).expect("left");
    budgets
        .reserve(now(), ANYONE, spend(1, 0))
        .expect_err("all is reserved");
    // It came to less.
    budgets.settle(now(), &alone, spend(69, 0));
    assert_eq!(
        budgets.verdict(now(), ANYONE, spend(1, 0)),
        Verdict::Allow,
        "one is left"
    );
    // It is not settled twice.
    budgets.settle(now(), &alone, spend(69, 0));
    assert_eq!(budgets.spent(now())[0].2, spend(99, 0));
}

#[test]
fn money_counts_by_itself_and_every_budget_that_fits_has_to_have_some() {
    let line = Rule {
        name: "line".to_owned(),
        clients: vec!["plc-*".to_owned()],
        tasks: vec!["explain".to_owned()],
        day: Cap {
            tokens: None,
            micros: Some(5),
        },
        ..Rule::default()
    };
    let mut budgets = Budgets::new(vec![rule(Some(1000), None), line], now());
    let of_line = Who {
        client: "plc-7",
        task: Some("explain"),
    };
    let held = budgets
        .reserve(now(), of_line, spend(10, 5))
        .expect("there is some");
    budgets.settle(now(), &held, spend(10, 5));
    let verdict = budgets.verdict(now(), of_line, spend(10, 1));
    assert_eq!(
        stopped(&verdict),
        Some((Span::Day, What::Money, 12 * HOUR)),
        "{verdict:?}"
    );
    for other in [
        ANYONE,
        Who {
            client: "hmi",
            ..of_line
        },
    ] {
        assert_eq!(
            budgets.verdict(now(), other, spend(10, 1)),
            Verdict::Allow,
            "{other:?}"
        );
    }
}

#[test]
fn each_client_has_its_own_and_there_are_not_too_many() {
    let each = Rule {
        each_client: true,
        ..rule(None, Some(10))
    };
    let mut budgets = Budgets::new(vec![each], now());
    let mut use_up = |client: &str| {
        let who = Who { client, task: None };
        let held = budgets.reserve(now(), who, spend(10, 0))?;
        budgets.settle(now(), &held, spend(10, 0));
        Ok::<(), Stop>(())
    };
    for number in 0..CLIENTS_MAX {
        use_up(&alloc::format!("client-{number}")).expect("its own");
    }
    let stop = use_up("client-7").expect_err("used up");
    assert_eq!(stop.what, What::Tokens);
    let stop = use_up("one-more").expect_err("too many");
    assert_eq!(stop.what, What::Clients);
    let who = Who {
        client: "one-more",
        task: None,
    };
    assert_eq!(
        budgets.verdict(after(40 * DAY), who, spend(10, 0)),
        Verdict::Allow,
        "another month"
    );
}

#[test]
fn the_bar_rises_as_a_budget_is_used_up() {
    let sloping = Rule {
        slope: Slope {
            from_percent: 50,
            raise: 0.4,
        },
        ..rule(Some(100), None)
    };
    let mut budgets = Budgets::new(vec![sloping], now());
    let mut raise = |tokens: u64| {
        let held = budgets
            .reserve(now(), ANYONE, spend(tokens, 0))
            .expect("fits");
        let verdict = budgets.verdict(now(), ANYONE, spend(0, 0));
        budgets.settle(now(), &held, spend(tokens, 0));
        verdict
    };
    assert_eq!(raise(50), Verdict::Allow);
    let Verdict::Slope(by) = raise(25) else {
        panic!("no slope");
    };
    assert!((by - 0.2).abs() < 1e-6, "{by}");
    let Verdict::Slope(by) = raise(25) else {
        panic!("no slope");
    };
    assert!((by - 0.4).abs() < 1e-6, "{by}");
}

#[test]
fn what_was_reserved_is_spent_after_a_crash() {
    let mut budgets = Budgets::new(vec![rule(Some(100), None)], now());
    let _lost = budgets.reserve(now(), ANYONE, spend(70, 0)).expect("fits");
    let mut restored = Budgets::restored(vec![rule(Some(100), None)], budgets.kept());
    let held = restored.reserve(now(), ANYONE, spend(30, 0)).expect("fits");
    restored.settle(now(), &held, spend(30, 0));
    restored
        .reserve(now(), ANYONE, spend(1, 0))
        .expect_err("used up");
    // Other rules make nothing unspent.
    restored.set_rules(vec![rule(Some(110), None)]);
    assert_eq!(restored.spent(now())[0].2, spend(100, 0));
}

#[test]
fn a_clock_that_is_set_gives_nothing_back_of_this_start() {
    let mut budgets = Budgets::new(vec![rule(Some(100), Some(1000))], now());
    let held = budgets.reserve(now(), ANYONE, spend(100, 0)).expect("fits");
    budgets.settle(now(), &held, spend(100, 0));
    let mut moment = after(HOUR);
    for days in [1, 400, 0, 2, 1000] {
        moment.wall_ms = (9 + days) * DAY + 12 * HOUR;
        moment.ran_ms += 1000;
        budgets
            .reserve(moment, ANYONE, spend(1, 0))
            .expect_err("spent since the machine was started");
    }
    // A machine that was off is another day's.
    moment.starts = 2;
    moment.wall_ms += 3 * DAY;
    assert_eq!(
        budgets.verdict(moment, ANYONE, spend(100, 0)),
        Verdict::Allow
    );
}

#[test]
fn money_is_read_to_the_millionth_and_prices_round_up() {
    for (text, expected) in [
        ("0", Some(0)),
        ("2.5", Some(2_500_000)),
        ("0.000001", Some(1)),
        ("18446744073709.551615", Some(u64::MAX)),
        ("18446744073709.551616", None),
        ("0.0000001", None),
        ("1.", None),
        (".5", None),
        ("-1", None),
        ("1e3", None),
        ("1,5", None),
        ("", None),
    ] {
        assert_eq!(micros(text), expected, "{text:?}");
    }
    let price = Price {
        prompt_micros_per_million: 150_000,
        answer_micros_per_million: 600_000,
    };
    assert_eq!(price.spend(1_000_000, 1_000_000), spend(2_000_000, 750_000));
    assert_eq!(price.spend(1, 0), spend(1, 1));
    assert_eq!(price.spend(u64::MAX, u64::MAX).tokens, u64::MAX);
}
