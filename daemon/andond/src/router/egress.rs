//! The one place that lets a request leave the gateway.
//!
//! Invariant: a [`Permit`] is made here and nowhere else, of a request that may travel; whatever sends bytes to an upstream takes
//! one, so that a way around this file does not compile.

use crate::request::{Egress, Request};

/// That one request may be sent to an upstream.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    /// The permit of a request whose task has this egress; `None` if it stays here.
    #[must_use]
    pub fn of(request: &Request, by_task: Option<Egress>) -> Option<Permit> {
        (request.travels(by_task) == Egress::Any).then_some(Permit(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Input, Origin};

    #[test]
    fn only_what_may_travel_gets_one() {
        let mut request = Request::new("1", "c", Origin::Mqtt, Input::Messages(Vec::new()));
        for (said, by_task, travels) in [
            (None, None, false),
            (None, Some(Egress::Local), false),
            (None, Some(Egress::Any), true),
            (Some(Egress::Local), Some(Egress::Any), false),
            (Some(Egress::Any), None, true),
            (Some(Egress::Any), Some(Egress::Any), true),
            (Some(Egress::Any), Some(Egress::Local), false),
            (Some(Egress::Local), Some(Egress::Local), false),
        ] {
            request.egress = said;
            assert_eq!(Permit::of(&request, by_task).is_some(), travels);
        }
        request.egress = Some(Egress::Any);
        let mut rights = (*request.rights).clone();
        rights.egress = Egress::Local;
        request.rights = std::sync::Arc::new(rights);
        assert!(Permit::of(&request, Some(Egress::Any)).is_none());
    }
}
