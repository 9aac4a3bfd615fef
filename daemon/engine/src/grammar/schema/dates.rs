//! Dates that there are: the compiler's own formats have a 29th of February in every year.

/// `YYYY-MM-DD`. Every fourth year has the day, of full centuries every fourth.
macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
            "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}

/// The expression for what a format allows, where that is less than the compiler takes it for.
pub(super) fn pattern(format: &str) -> Option<&'static str> {
    match format {
        "date" => Some(concat!("^", date!(), "$")),
        "date-time" => Some(concat!(
            "^",
            date!(),
            "[tT](?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\\.[0-9]{1,9})?",
            "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])$"
        )),
        _ => None,
    }
}
