//! The command `route`: where requests are answered.

use std::path::Path;
use std::time::Duration;

use andon_wire::{Ask, ClientFrame, Egress, Input, Role, RouteExplained, ServerFrame};

use crate::arguments::{ExplainOptions, RouteCommand};
use crate::ask::{fresh_id, messages};
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::{Output, printable};
use crate::report::json;

/// A decision is made in a moment; a daemon that is busy starting may take longer to hear of it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The command `route`.
pub(crate) fn run(
    socket: &Path,
    command: &RouteCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        RouteCommand::Explain(options) => explain(socket, options, output),
    }
}

fn explain(socket: &Path, options: &ExplainOptions, output: &mut Output) -> Result<(), Failure> {
    let input = match &options.task {
        Some(name) => Input::Task {
            name: name.clone(),
            input_json: &options.text,
        },
        None => messages([(Role::User, options.text.as_str())].into_iter())?,
    };
    let id = fresh_id(0)?;
    let mut ask = Ask::new(id.clone(), input);
    ask.deadline_ms = options.deadline_ms;
    // What is asked is where it would go if it may.
    let anywhere = options.task.is_none().then_some(Egress::Any);
    ask.egress = options.egress.map(Into::into).or(anywhere);
    ask.check()?;
    let mut connection = Connection::open(socket)?;
    connection.wait_at_most(Some(PATIENCE))?;
    connection.send(&ClientFrame::ExplainRoute(ask))?;
    match connection.receive()? {
        ServerFrame::RouteExplained(explained) if explained.id == id => {
            if options.json {
                json(output, &explained)
            } else {
                output.text(&text(&explained))
            }
        }
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question about a route")),
    }
}

fn text(explained: &RouteExplained<'_>) -> String {
    let mut text = format!(
        "{} ({})\n",
        printable(explained.decision),
        printable(explained.reason)
    );
    text.push_str(&format!("policy     {}\n", printable(explained.policy)));
    let link = if explained.up { "up" } else { "down" };
    text.push_str(&format!("upstream   {link}\n"));
    if explained.shadow {
        text.push_str("shadow     decisions are only noted; it would be answered here\n");
    }
    if let (Some(will_do), Some(as_good)) = (explained.will_do, explained.as_good) {
        text.push_str(&format!(
            "local      {will_do:.2} that its answer will do, as answers of {} did\n\
             as good    {as_good:.2} as upstream's; below {:.2} it goes up\n",
            printable(explained.judged_as),
            explained.threshold
        ));
    }
    for part in &explained.parts {
        text.push_str(&format!("{:+10.2}  {}\n", part.moved, printable(part.what)));
    }
    text
}
