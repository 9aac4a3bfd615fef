//! How soon an answer begins to whom asks over either front end, beside llama-server.
//!
//! Three servers have the model loaded: andond asked over its socket, another andond asked through a mosquitto, and
//! llama-server. Each prompt goes to all of them, one after the other, and the order changes from prompt to prompt, so that a
//! slower moment of the machine is nobody's advantage. No server sees a prompt twice. Of the time to the first text count
//! prompts of at most [`SHORT`] new tokens by themselves; longer ones are held against the time that `andon-lab` needs to
//! read as many tokens, measured before and after. The same is done with questions behind one long beginning that is known
//! already, and with such a question right after a restart.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::broker::{Asker, Broker};
use super::daemon::{self, Daemon, Folder};
use super::definition::Definition;
use super::llama_server::{Room, Server};
use super::rival::Variant;
use super::service::{Address, Answer, Conversation};
use super::{Programs, percentile, sides};
use crate::shell;

/// Most new tokens of a short prompt.
const SHORT: usize = 128;

/// Tokens of an answer: its beginning is what counts.
const ANSWER_TOKENS: usize = 4;

/// Requests that warm everything up.
const WARM: usize = 4;

/// Questions behind the known beginning; those asked of one server alone, and restarts after which one is asked.
const TASK_ASKED: usize = 40;
const ALONE_ASKED: usize = 9;
const RESTARTS: usize = 9;

/// Tokens of context, which holds the longest prompt.
const CONTEXT: usize = 8192;

/// Lengths whose reading is timed.
const LENGTHS: [usize; 4] = [64, 256, 1024, 2048];

/// While what is measured once is.
const SETTLE: Duration = Duration::from_secs(3);

/// Between two questions, so that what one leaves to be done in the background is not done while the next is answered.
const PAUSE: Duration = Duration::from_millis(100);

/// The gateway's name, and the name of the task.
const GATEWAY: &str = "bench";
const TASK: &str = "line";

/// What all questions of the task begin with: about 500 tokens.
const HANDBOOK: &str = "You answer operators of packing line 7. Keep to this handbook and answer in one sentence.\n\
    1. The infeed belt runs at 0.4 to 0.8 metres per second. Above 0.9 the photo eyes at stations 2 and 3 miss cartons, and \
    the line controller raises E12. Reduce the speed, wipe the lenses, then reset.\n\
    2. Hydraulic pressure of the press is 140 to 160 bar. Below 130 the ram does not reach its end position and E42 is \
    raised. Check the oil level, the suction filter, then the pressure relief valve, in this order. Above 170 the line stops \
    at once, and only maintenance may reset it.\n\
    3. The temperature of the main drive is measured in the winding. At 95 degrees a warning W07 is given, at 110 the drive \
    is switched off with E07. Let it cool for twenty minutes, check the fan and the mats of the cabinet. Three such stops in \
    one shift are reported to maintenance.\n\
    4. Glue is kept at 165 degrees, plus or minus five. A cold nozzle gives E31. Never loosen a nozzle under pressure. After \
    a change of the drum the first ten cartons are opened and looked at.\n\
    5. Door switches are in a safety circuit. E90 to E99 are its faults, and no operator resets them. Call the shift leader, who \
    writes down time, door and reason in the book.\n\
    6. Compressed air is 6 bar. Below 5.5 the grippers lose cartons: E21. Look for leaks at the couplings of stations 4 to 6, \
    then at the dryer. A dryer whose dew point is above 5 degrees is reported.\n\
    7. The palletizer counts layers. If its count and the one of the line controller differ, E60 is raised; empty the pallet, \
    set both to zero, begin again. A pallet that is begun is never continued after a change of the product.\n\
    8. Before a line is left, the book is signed: what was changed, by whom, and what is still to be done. The next shift reads \
    it before the first carton, and asks whoever wrote it where a word is not clear.";

/// One after the other, in milliseconds, with the tokens that were new.
#[derive(Default)]
struct Times(Vec<Answer>);

/// Seconds that reading so many tokens takes, as `andon-lab` measures it.
struct Reading(Vec<(usize, f64)>);

/// Who is asked.
struct Asked<'a> {
    http: Address,
    asker: Asker,
    rivals: Vec<(&'a Variant, Server)>,
}

/// Starts everybody, asks, and returns the figures of each by name.
///
/// # Errors
/// When one does not start or does not answer.
pub(super) fn measure(
    programs: &Programs,
    definition: &Definition,
    model: &Path,
    variants: &[Variant],
) -> Result<BTreeMap<String, Value>> {
    let folder = Folder::make()?;
    let (one, two) = (folder.sub("http")?, folder.sub("mqtt")?);
    let broker = Broker::start(folder.path())?;
    daemon::configure(&one, definition, model, "idle", toml::Table::new())?;
    daemon::configure(&two, definition, model, "idle", mqtt(broker.port)?)?;
    let mut over_http = start(programs, &one)?;
    let mut over_mqtt = start(programs, &two)?;
    let room = Room {
        threads: definition.threads,
        parallel: 1,
        context: CONTEXT,
    };
    let mut rivals = Vec::new();
    for variant in variants {
        rivals.push((variant, Server::start(folder.path(), variant, model, room)?));
    }
    thread::sleep(SETTLE);
    let mut asked = Asked {
        http: Address::Socket(one.join("http.sock")),
        asker: Asker::connect(broker.port, GATEWAY, None)?,
        rivals,
    };
    for number in 0..WARM {
        let note = "Say what this is: ".repeat(1 + 20 * number);
        asked.ask(number, &vec![("user", format!("{note}{number}"))])?;
    }
    let before = Reading::measure(programs, definition, model)?;
    let wanted = match definition.requests {
        0 => programs.prompts.len(),
        count => count,
    };
    let mut all: Vec<Times> = (0..2 + asked.rivals.len())
        .map(|_| Times::default())
        .collect();
    for (number, prompt) in programs.prompts.iter().take(wanted).enumerate() {
        let answers = asked.ask(number, &vec![("user", prompt.clone())])?;
        all.iter_mut()
            .zip(answers)
            .for_each(|(times, answer)| times.0.push(answer));
    }
    let reading = before.and(&Reading::measure(programs, definition, model)?);
    let mut asker = Asker::connect(broker.port, GATEWAY, Some(TASK))?;
    let task = asked.task(&mut asker)?;
    let mut figures = BTreeMap::new();
    let mut ours = json!({ "prefill_tok_s": 512.0 / reading.milliseconds(512) * 1e3 });
    let again = |daemon: &mut Daemon, folder: &Path| -> Result<()> {
        *daemon = daemon::launch(&programs.folder, folder)?;
        daemon.wait_ready(folder).map(drop)
    };
    ours["http-restart-ratio"] = json!(restart(|number, restarted| {
        if restarted {
            over_http.terminate()?;
            again(&mut over_http, &one)?;
        }
        asked.http.stream(&conversation(number), ANSWER_TOKENS)
    })?);
    ours["mqtt-restart-ratio"] = json!(restart(|number, restarted| {
        if restarted {
            over_mqtt.terminate()?;
            asker.wait_gone()?;
            again(&mut over_mqtt, &two)?;
            asker.wait_ready()?;
        }
        asker.task(&json!({ "text": question(number) }))
    })?);
    // Whether a prompt is short is decided by what is new of it to us, for everybody.
    let new: Vec<usize> = all[0].0.iter().map(Answer::new_tokens).collect();
    let kinds = [("short", true), ("long", false)];
    for (front, times, task) in [("http", &all[0], &task[0]), ("mqtt", &all[1], &task[1])] {
        for (kind, short) in kinds {
            let some = times.of(&new, short);
            ours[kind] = json!(some.0.len());
            if some.0.is_empty() {
                continue;
            }
            for percent in [50, 95] {
                let value = percentile(&some.milliseconds(), percent);
                ours[format!("{front}-{kind}-p{percent}-ms")] = json!(value);
                if !short {
                    let ratios: Vec<f64> =
                        some.0.iter().map(|answer| reading.ratio(answer)).collect();
                    ours[format!("{front}-long-p{percent}-ratio")] =
                        json!(percentile(&ratios, percent));
                }
            }
        }
        for percent in [50, 95] {
            ours[format!("{front}-task-p{percent}-ms")] =
                json!(percentile(&task.milliseconds(), percent));
        }
        ours[format!("{front}-task-new")] = json!(task.new_tokens());
    }
    figures.insert(sides::ANDON.to_owned(), ours);
    for (index, (variant, _)) in asked.rivals.iter().enumerate() {
        let (times, task) = (&all[2 + index], &task[2 + index]);
        let mut theirs = json!({ "task-new": task.new_tokens() });
        let parts = kinds.map(|(kind, short)| (kind, times.of(&new, short).milliseconds()));
        for (kind, values) in parts.into_iter().chain([("task", task.milliseconds())]) {
            if !values.is_empty() {
                for percent in [50, 95] {
                    theirs[format!("{kind}-p{percent}-ms")] = json!(percentile(&values, percent));
                }
            }
        }
        figures.insert(variant.name(), theirs);
    }
    Ok(figures)
}

/// What a daemon is told of the broker and the task.
fn mqtt(port: u16) -> Result<toml::Table> {
    let task = toml::Table::from_iter([
        ("system".to_owned(), HANDBOOK.into()),
        ("instructions".to_owned(), "{{ text }}".into()),
        (
            "tokens-max".to_owned(),
            i64::try_from(ANSWER_TOKENS)?.into(),
        ),
        ("temperature".to_owned(), 0.0.into()),
    ]);
    let text = format!("[mqtt]\nenabled = true\nhost = \"127.0.0.1\"\nport = {port}\n");
    let mut config: toml::Table = text.parse()?;
    let tasks = toml::Table::from_iter([(TASK.to_owned(), task.into())]);
    config.insert("task".to_owned(), tasks.into());
    Ok(config)
}

fn start(programs: &Programs, folder: &Path) -> Result<Daemon> {
    let mut daemon = daemon::launch(&programs.folder, folder)?;
    daemon.wait_ready(folder)?;
    daemon::wait_for_pack(&folder.join("cache"))?;
    Ok(daemon)
}

/// The question of that number behind the handbook.
fn question(number: usize) -> String {
    format!(
        "Station {} reports E{} since {} minutes. What now?",
        1 + number % 6,
        10 + number * 7 % 80,
        3 + number
    )
}

fn conversation(number: usize) -> Conversation {
    vec![("system", HANDBOOK.to_owned()), ("user", question(number))]
}

/// How long the first question after a restart takes to its first text, by the questions to a daemon that has been running.
/// `ask` asks one question, right after a restart if it is told so; nobody else is asked anything meanwhile.
fn restart(mut ask: impl FnMut(usize, bool) -> Result<Answer>) -> Result<f64> {
    let mut numbers = 1000..;
    let mut times = |count: usize, restarted: bool| -> Result<f64> {
        let mut times = Vec::new();
        for number in numbers.by_ref().take(count) {
            thread::sleep(PAUSE);
            times.push(ask(number, restarted)?.first_ms);
        }
        Ok(super::median(&times))
    };
    // Before and after, since what was restarted may be at something still.
    let before = times(ALONE_ASKED, false)?;
    let restarted = times(RESTARTS, true)?;
    thread::sleep(SETTLE);
    let after = times(ALONE_ASKED, false)?;
    Ok(restarted / f64::midpoint(before, after))
}

/// Who is asked when, of so many: everybody begins once and in both directions, so that nobody always comes after the same
/// one.
fn order(number: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.rotate_left(number / 2 % count);
    if number % 2 == 1 {
        order.reverse();
    }
    order
}

impl Asked<'_> {
    /// Asks everybody the same, and returns their answers in the order socket, broker, rivals.
    fn ask(&mut self, number: usize, conversation: &Conversation) -> Result<Vec<Answer>> {
        self.each(number, |asked, who| match who {
            0 => asked.http.stream(conversation, ANSWER_TOKENS),
            1 => asked.asker.stream(conversation, ANSWER_TOKENS),
            rival => asked.rivals[rival - 2]
                .1
                .address()
                .stream(conversation, ANSWER_TOKENS),
        })
    }

    /// Asks everybody the questions behind the handbook, of which the first two make it known.
    fn task(&mut self, asker: &mut Asker) -> Result<Vec<Times>> {
        let mut all: Vec<Times> = (0..2 + self.rivals.len())
            .map(|_| Times::default())
            .collect();
        for number in 0..2 + TASK_ASKED {
            let conversation = conversation(number);
            let answers = self.each(number, |asked, who| match who {
                0 => asked.http.stream(&conversation, ANSWER_TOKENS),
                1 => asker.task(&json!({ "text": question(number) })),
                rival => asked.rivals[rival - 2]
                    .1
                    .address()
                    .stream(&conversation, ANSWER_TOKENS),
            })?;
            if number >= 2 {
                all.iter_mut()
                    .zip(answers)
                    .for_each(|(times, answer)| times.0.push(answer));
            }
        }
        Ok(all)
    }

    /// Does something with each, in another order every time.
    fn each(
        &mut self,
        number: usize,
        mut ask: impl FnMut(&mut Self, usize) -> Result<Answer>,
    ) -> Result<Vec<Answer>> {
        let count = 2 + self.rivals.len();
        let mut answers = vec![Answer::default(); count];
        for who in order(number, count) {
            thread::sleep(PAUSE);
            answers[who] = ask(self, who)?;
        }
        let lengths: Vec<usize> = answers.iter().map(|answer| answer.prompt).collect();
        // A template rendered in other words would be other work.
        ensure!(
            lengths
                .iter()
                .all(|length| length.abs_diff(lengths[0]) <= 1),
            "one prompt has {lengths:?} tokens"
        );
        Ok(answers)
    }
}

impl Times {
    fn milliseconds(&self) -> Vec<f64> {
        self.0.iter().map(|answer| answer.first_ms).collect()
    }

    /// Those whose prompts have few new tokens, or the others.
    fn of(&self, new: &[usize], short: bool) -> Times {
        let pairs = self.0.iter().zip(new);
        let some = pairs.filter(|(_, new)| (**new <= SHORT) == short);
        Times(some.map(|(answer, _)| *answer).collect())
    }

    /// The middle of what was new.
    fn new_tokens(&self) -> f64 {
        let new: Vec<f64> = self
            .0
            .iter()
            .map(|answer| answer.new_tokens() as f64)
            .collect();
        super::median(&new)
    }
}

impl Reading {
    fn measure(programs: &Programs, definition: &Definition, model: &Path) -> Result<Reading> {
        let mut points = Vec::new();
        for length in LENGTHS {
            let mut command = std::process::Command::new(programs.lab());
            command.arg("bench").arg(model).arg("--json");
            for (name, value) in [
                ("--threads", definition.threads),
                ("--prompt", length),
                ("--gen", 1),
                ("--runs", 2),
            ] {
                command.arg(name).arg(value.to_string());
            }
            let report: Value = serde_json::from_str(&shell::output(&mut command)?)?;
            let speed = report["prefill_tok_s"].as_f64();
            let speed = speed.context("andon-lab bench has no prefill_tok_s")?;
            points.push((length, length as f64 / speed * 1e3));
        }
        Ok(Reading(points))
    }

    /// The mean of two.
    fn and(&self, other: &Reading) -> Reading {
        let pairs = self.0.iter().zip(&other.0);
        Reading(
            pairs
                .map(|(one, two)| (one.0, f64::midpoint(one.1, two.1)))
                .collect(),
        )
    }

    /// Between two lengths by the line through them, beyond the last at its speed.
    fn milliseconds(&self, tokens: usize) -> f64 {
        let mut below = (0, 0.0);
        for &(length, time) in &self.0 {
            if tokens <= length {
                let share = (tokens - below.0) as f64 / (length - below.0) as f64;
                return below.1 + share * (time - below.1);
            }
            below = (length, time);
        }
        below.1 * tokens as f64 / below.0.max(1) as f64
    }

    fn ratio(&self, answer: &Answer) -> f64 {
        answer.first_ms / self.milliseconds(answer.new_tokens())
    }
}

#[cfg(test)]
mod tests {
    use super::{Reading, order};

    #[test]
    fn who_comes_after_whom_changes() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
        assert_eq!(order(2, 3), [1, 2, 0]);
        assert_eq!(order(7, 3), [2, 1, 0]);
        let first: Vec<usize> = (0..6).map(|number| order(number, 3)[0]).collect();
        for who in 0..3 {
            assert_eq!(first.iter().filter(|one| **one == who).count(), 2);
        }
    }

    #[test]
    fn times_between_two_lengths_lie_between_theirs() {
        let reading = Reading(vec![(100, 50.0), (200, 150.0)]);
        assert_eq!(reading.milliseconds(50), 25.0);
        assert_eq!(reading.milliseconds(100), 50.0);
        assert_eq!(reading.milliseconds(150), 100.0);
        assert_eq!(reading.milliseconds(400), 300.0);
    }
}
