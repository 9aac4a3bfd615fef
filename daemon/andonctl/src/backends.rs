//! The command `backends`: what could compute models, and what does.

use std::fmt::Write as _;
use std::path::Path;

use andon_wire::{BackendStatus, Backends, ClientFrame, ServerFrame};

use crate::arguments::BackendsOptions;
use crate::connection::{Connection, unexpected};
use crate::failure::Failure;
use crate::output::Output;
use crate::report::json;

/// The command `backends`.
pub(crate) fn run(
    socket: &Path,
    options: &BackendsOptions,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut connection = Connection::open(socket)?;
    connection.send(&ClientFrame::Backends)?;
    match connection.receive()? {
        ServerFrame::Backends(all) if options.json => json(output, &all),
        ServerFrame::Backends(all) => output.text(&list(&all)),
        ServerFrame::Error(fault) => Err(Failure::from(&fault)),
        _ => Err(unexpected("question for the backends")),
    }
}

fn list(Backends { backends }: &Backends<'_>) -> String {
    let mut text = String::new();
    for backend in backends {
        let BackendStatus {
            name,
            built,
            available,
            chosen,
            device,
            reason,
        } = backend;
        let state = match (built, available, chosen) {
            (_, _, true) => "chosen",
            (_, true, false) => "available",
            (true, false, false) => "not available",
            (false, false, false) => "not built",
        };
        let mut about = (*device).to_owned();
        if !reason.is_empty() {
            if !about.is_empty() {
                about.push_str("; not chosen: ");
            }
            about.push_str(reason);
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<9} {state:<13}  {about}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::list;
    use andon_wire::{BackendStatus, Backends};

    #[test]
    fn each_backend_is_a_line_with_its_reason() {
        let status = |name, [built, available, chosen]: [bool; 3], device, reason| BackendStatus {
            name,
            built,
            available,
            chosen,
            device,
            reason,
        };
        let all = [
            status("cpu", [true, true, true], "avx2", ""),
            status(
                "cuda",
                [true, true, false],
                "a card",
                "tensor t has no kernels",
            ),
            status("openvino", [true, false, false], "", "no driver"),
            status("ggml", [false, false, false], "", "no code"),
        ];
        let backends = Backends {
            backends: all.into_iter().collect(),
        };
        assert_eq!(
            list(&backends),
            "cpu       chosen         avx2\n\
             cuda      available      a card; not chosen: tensor t has no kernels\n\
             openvino  not available  no driver\n\
             ggml      not built      no code\n"
        );
    }
}
