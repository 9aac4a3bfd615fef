//! MQTT topics: which there are, how they are written, and what an incoming one means.
//!
//! Every topic of a gateway begins with its base, `andon/<gateway>` unless configured otherwise:
//!
//! | topic | meaning |
//! |---|---|
//! | `<base>/request/<client>[/<task>]` | a request |
//! | `$share/<group>/andon/fleet/<group>/request/#` | requests shared by a group of gateways (a filter) |
//! | `<base>/response/<client>/<id>` | answers |
//! | `<base>/cancel/<client>` | cancels a request |
//! | `<base>/status` | how the gateway is, retained |
//! | `<base>/event/<kind>` | what happened to requests |
//!
//! Invariant: a topic written here holds no wildcard outside the places where a filter has one,
//! and fits [`TOPIC_BYTES_MAX`]; a topic that parses has exactly the levels above.

use core::fmt::Write;

use heapless::String;

use crate::limits::{NAME_BYTES_MAX, TOPIC_BASE_BYTES_MAX, TOPIC_BYTES_MAX};
use crate::name::{ClientName, GatewayName, NameError, RequestId, TaskName, check_level};

/// A topic or filter.
pub type Topic = String<TOPIC_BYTES_MAX>;

// Every write below fits: the longest topic is a response's, the longest filter a fleet's.
const _: () = {
    let response = "/response//".len() + TOPIC_BASE_BYTES_MAX + 2 * NAME_BYTES_MAX;
    let fleet = "$share//andon/fleet//request/#".len() + 2 * NAME_BYTES_MAX;
    assert!(response <= TOPIC_BYTES_MAX && fleet <= TOPIC_BYTES_MAX);
};

const FLEET: &str = "andon/fleet/";

/// Why a topic is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The topic is longer than any of ours.
    #[error("the topic has {bytes} bytes where at most {bytes_max} are allowed")]
    TooLong {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        bytes_max: usize,
    },
    /// The topic has another beginning, or another second part, than ours.
    #[error("the topic is none of this gateway's")]
    Foreign,
    /// The topic has too many or too few levels for what it begins with.
    #[error("the topic has the wrong number of levels")]
    Levels,
    /// The level of the client's name is no name.
    #[error("the client's name in the topic is unusable: {0}")]
    Client(NameError),
    /// The level of the task's name is no name.
    #[error("the task's name in the topic is unusable: {0}")]
    Task(NameError),
    /// A level of a base, a group or a response topic cannot be used.
    #[error("level {level} of the topic is unusable: {error}")]
    Level {
        /// Which level, from 0.
        level: usize,
        /// What is wrong with it.
        error: NameError,
    },
    /// A topic to publish to begins with `$`, which brokers keep for themselves.
    #[error("a topic that begins with '$' belongs to the broker")]
    Reserved,
}

/// What the daemon publishes on `<base>/event/<kind>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A request was turned away.
    Refused,
    /// A request's deadline passed.
    Expired,
    /// A request was passed upstream.
    Escalated,
    /// Requests are being slowed down.
    Throttled,
    /// The model was changed.
    ModelSwapped,
}

impl Event {
    /// The last level of the event's topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Escalated => "escalated",
            Self::Throttled => "throttled",
            Self::ModelSwapped => "model-swapped",
        }
    }
}

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The gateway's own topics.
    Gateway,
    /// The shared topics of a fleet.
    Fleet,
}

/// What a topic that a message came on says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A request.
    Request {
        /// Who asks.
        client: ClientName,
        /// The task, if the topic names one.
        task: Option<TaskName>,
        /// Where it came in.
        door: Door,
    },
    /// A wish to cancel.
    Cancel {
        /// Whose request.
        client: ClientName,
    },
}

/// Writes and reads the topics of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    base: String<TOPIC_BASE_BYTES_MAX>,
}

impl Topics {
    /// The default base of a gateway, `andon/<gateway>`.
    #[must_use]
    pub fn of(gateway: &GatewayName) -> Self {
        let mut base = String::new();
        write(&mut base, format_args!("andon/{gateway}"));
        Self { base }
    }

    /// Takes a configured base.
    ///
    /// # Errors
    /// [`TopicError`] when it is too long, begins with `$`, or has a level that is empty or holds
    /// a wildcard or control character.
    pub fn with_base(base: &str) -> Result<Self, TopicError> {
        check_topic(base, TOPIC_BASE_BYTES_MAX)?;
        let too_long = TopicError::TooLong {
            bytes: base.len(),
            bytes_max: TOPIC_BASE_BYTES_MAX,
        };
        Ok(Self {
            base: String::try_from(base).map_err(|_| too_long)?,
        })
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Filter for requests.
    #[must_use]
    pub fn request_filter(&self) -> Topic {
        topic(format_args!("{}/request/#", self.base))
    }

    /// Filter for cancels.
    #[must_use]
    pub fn cancel_filter(&self) -> Topic {
        topic(format_args!("{}/cancel/+", self.base))
    }

    /// Topic on which `client` asks, for `task` if one is given.
    #[must_use]
    pub fn request(&self, client: &ClientName, task: Option<&TaskName>) -> Topic {
        match task {
            Some(task) => topic(format_args!("{}/request/{client}/{task}", self.base)),
            None => topic(format_args!("{}/request/{client}", self.base)),
        }
    }

    /// Topic of the answers to a request.
    #[must_use]
    pub fn response(&self, client: &ClientName, id: &RequestId) -> Topic {
        topic(format_args!("{}/response/{client}/{id}", self.base))
    }

    /// Filter that matches every response topic of `client`.
    #[must_use]
    pub fn response_filter(&self, client: &ClientName) -> Topic {
        topic(format_args!("{}/response/{client}/#", self.base))
    }

    /// Topic on which `client` cancels.
    #[must_use]
    pub fn cancel(&self, client: &ClientName) -> Topic {
        topic(format_args!("{}/cancel/{client}", self.base))
    }

    /// Topic of the gateway's status.
    #[must_use]
    pub fn status(&self) -> Topic {
        topic(format_args!("{}/status", self.base))
    }

    /// Topic of an event.
    #[must_use]
    pub fn event(&self, event: Event) -> Topic {
        topic(format_args!("{}/event/{}", self.base, event.as_str()))
    }

    /// What a topic says about the message that came on it. Fleet topics are understood whatever
    /// their group, because the broker delivers only those subscribed to.
    ///
    /// # Errors
    /// [`TopicError`] that says why the topic is none of these.
    pub fn parse(&self, text: &str) -> Result<Incoming, TopicError> {
        if text.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong {
                bytes: text.len(),
                bytes_max: TOPIC_BYTES_MAX,
            });
        }
        let own = text
            .strip_prefix(self.base.as_str())
            .and_then(|rest| rest.strip_prefix('/'));
        if let Some((kind, rest)) = own.and_then(|rest| rest.split_once('/')) {
            match kind {
                "request" => return request(rest, Door::Gateway),
                "cancel" => {
                    if rest.contains('/') {
                        return Err(TopicError::Levels);
                    }
                    let client = ClientName::new(rest).map_err(TopicError::Client)?;
                    return Ok(Incoming::Cancel { client });
                }
                _ => {}
            }
        }
        let group_and_rest = text
            .strip_prefix(FLEET)
            .and_then(|rest| rest.split_once('/'));
        match group_and_rest.and_then(|(_, rest)| rest.strip_prefix("request/")) {
            Some(rest) => request(rest, Door::Fleet),
            None => Err(TopicError::Foreign),
        }
    }
}

/// Filter of the requests that the gateways of `group` share.
#[must_use]
pub fn fleet_filter(group: &GatewayName) -> Topic {
    topic(format_args!("$share/{group}/{FLEET}{group}/request/#"))
}

/// Checks a topic that somebody wants an answer published to: bounded, no wildcard, no control
/// character, no empty level, not one of the broker's own.
///
/// # Errors
/// [`TopicError`] that says what is wrong.
pub fn check_response(text: &str) -> Result<(), TopicError> {
    check_topic(text, TOPIC_BYTES_MAX)
}

/// Whether `filter` matches `topic` by the rules of MQTT: `+` stands for one level, `#` at the end
/// for any number of them and the level before, and neither, at the beginning, for a topic that
/// begins with `$`. A filter with a wildcard in a wrong place matches nothing.
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut filters = filter.split('/');
    let mut topics = topic.split('/');
    loop {
        match (filters.next(), topics.next()) {
            (Some("#"), _) => return filters.next().is_none(),
            (Some("+"), Some(_)) => {}
            (Some(level), Some(found)) if level == found && !level.contains(['+', '#']) => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

fn request(rest: &str, door: Door) -> Result<Incoming, TopicError> {
    let (client, task) = match rest.split_once('/') {
        Some((_, task)) if task.contains('/') => return Err(TopicError::Levels),
        Some((client, task)) => (client, Some(TaskName::new(task).map_err(TopicError::Task)?)),
        None => (rest, None),
    };
    let client = ClientName::new(client).map_err(TopicError::Client)?;
    Ok(Incoming::Request { client, task, door })
}

fn check_topic(text: &str, bytes_max: usize) -> Result<(), TopicError> {
    if text.len() > bytes_max {
        return Err(TopicError::TooLong {
            bytes: text.len(),
            bytes_max,
        });
    }
    if text.starts_with('$') {
        return Err(TopicError::Reserved);
    }
    for (level, name) in text.split('/').enumerate() {
        check_level(name, bytes_max).map_err(|error| TopicError::Level { level, error })?;
    }
    Ok(())
}

fn topic(arguments: core::fmt::Arguments<'_>) -> Topic {
    let mut text = Topic::new();
    write(&mut text, arguments);
    text
}

/// Writes into a string whose size was shown at the top of this file to be enough.
fn write<const N: usize>(text: &mut String<N>, arguments: core::fmt::Arguments<'_>) {
    let written = text.write_fmt(arguments);
    debug_assert!(
        written.is_ok(),
        "the bounds of names and bases make every topic fit"
    );
}

#[cfg(test)]
mod tests {
    use super::{Door, Event, Incoming, TopicError, Topics, check_response, fleet_filter, matches};
    use crate::limits::{NAME_BYTES_MAX, TOPIC_BASE_BYTES_MAX, TOPIC_BYTES_MAX};
    use crate::name::{ClientName, GatewayName, NameError, RequestId, TaskName};

    fn topics() -> Topics {
        Topics::of(&GatewayName::new("gw1").unwrap())
    }

    #[test]
    fn topics_are_written_as_documented() {
        let topics = topics();
        let client = ClientName::new("plc1").unwrap();
        let id = RequestId::new("42").unwrap();
        let task = TaskName::new("explain").unwrap();
        assert_eq!(topics.request_filter(), "andon/gw1/request/#");
        assert_eq!(topics.request(&client, None), "andon/gw1/request/plc1");
        assert_eq!(
            topics.request(&client, Some(&task)),
            "andon/gw1/request/plc1/explain"
        );
        assert_eq!(topics.response(&client, &id), "andon/gw1/response/plc1/42");
        assert_eq!(topics.response_filter(&client), "andon/gw1/response/plc1/#");
        assert_eq!(topics.cancel_filter(), "andon/gw1/cancel/+");
        assert_eq!(topics.cancel(&client), "andon/gw1/cancel/plc1");
        assert_eq!(topics.status(), "andon/gw1/status");
        assert_eq!(
            topics.event(Event::ModelSwapped),
            "andon/gw1/event/model-swapped"
        );
        let group = GatewayName::new("hall-3").unwrap();
        assert_eq!(
            fleet_filter(&group),
            "$share/hall-3/andon/fleet/hall-3/request/#"
        );
    }

    #[test]
    fn what_is_written_parses() {
        let topics = Topics::with_base("site/hall/andon").unwrap();
        let client = ClientName::new("plc 1").unwrap();
        let task = TaskName::new("explain").unwrap();
        for task in [None, Some(task)] {
            assert_eq!(
                topics.parse(&topics.request(&client, task.as_ref())),
                Ok(Incoming::Request {
                    client: client.clone(),
                    task,
                    door: Door::Gateway
                })
            );
        }
        assert_eq!(
            topics.parse(&topics.cancel(&client)),
            Ok(Incoming::Cancel {
                client: client.clone()
            })
        );
        assert_eq!(
            topics.parse("andon/fleet/hall-3/request/plc 1"),
            Ok(Incoming::Request {
                client,
                task: None,
                door: Door::Fleet
            })
        );
    }

    #[test]
    fn other_topics_are_told_apart() {
        let topics = topics();
        for (text, error) in [
            ("", TopicError::Foreign),
            ("andon/gw1", TopicError::Foreign),
            ("andon/gw1/request", TopicError::Foreign),
            ("andon/gw10/request/a", TopicError::Foreign),
            ("andon/gw1/status", TopicError::Foreign),
            ("andon/gw1/response/a/1", TopicError::Foreign),
            ("andon/fleet/request/a", TopicError::Foreign),
            ("andon/gw1/request/", TopicError::Client(NameError::Empty)),
            ("andon/gw1/request//t", TopicError::Client(NameError::Empty)),
            ("andon/gw1/request/a/", TopicError::Task(NameError::Empty)),
            ("andon/gw1/request/a/t/u", TopicError::Levels),
            ("andon/gw1/cancel/a/b", TopicError::Levels),
            (
                "andon/gw1/cancel/a+",
                TopicError::Client(NameError::Character {
                    character: '+',
                    offset: 1,
                }),
            ),
        ] {
            assert_eq!(topics.parse(text), Err(error), "{text}");
        }
        let long = [b'a'; TOPIC_BYTES_MAX + 1];
        let text = core::str::from_utf8(&long).unwrap();
        assert!(matches!(
            topics.parse(text),
            Err(TopicError::TooLong { .. })
        ));
    }

    #[test]
    fn the_longest_names_fit() {
        let base = [b'b'; TOPIC_BASE_BYTES_MAX];
        let name = [b'n'; NAME_BYTES_MAX];
        let name = core::str::from_utf8(&name).unwrap();
        let topics = Topics::with_base(core::str::from_utf8(&base).unwrap()).unwrap();
        let client = ClientName::new(name).unwrap();
        let id = RequestId::new(name).unwrap();
        let length = TOPIC_BASE_BYTES_MAX + "/response/".len() + 2 * NAME_BYTES_MAX + 1;
        assert_eq!(topics.response(&client, &id).len(), length);
        let gateway = GatewayName::new(name).unwrap();
        assert!(Topics::of(&gateway).base().ends_with(name));
        assert!(fleet_filter(&gateway).ends_with("/request/#"));
    }

    #[test]
    fn bases_and_response_topics_are_checked() {
        for bad in [
            "", "/a", "a/", "a//b", "a/+", "a/#", "$SYS/a", "a/\0", "a\n",
        ] {
            assert!(Topics::with_base(bad).is_err(), "{bad:?}");
            assert!(check_response(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_response("$share/g/t"), Err(TopicError::Reserved));
        assert_eq!(check_response("reply/plc1/42"), Ok(()));
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+/c", "a/b/c", true),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/a", false),
            ("$SYS/#", "$SYS/a", true),
            ("a/#/c", "a/b/c", false),
            ("a/b+", "a/b+", false),
            ("+", "a", true),
            ("+", "", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
