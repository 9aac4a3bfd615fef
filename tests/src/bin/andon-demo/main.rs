//! The show of `cargo xtask demo`: a broker, `andond`, and three clients that ask.
//!
//! Everything it starts lives in a private folder and ends with it, also on Ctrl-C and on failure.

#![forbid(unsafe_code)]

mod ask;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use andon_tests::broker_embedded::EmbeddedBroker as Broker;
use andon_tests::daemon::{Daemon, READY_TIMEOUT};
use anyhow::{Context, Result, bail};
use clap::Parser;

/// How long the daemon may take to finish what is in flight.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Exit status after Ctrl-C, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// Starts a broker and andond, and asks over every interface.
#[derive(Parser)]
struct Arguments {
    /// The folder with andond and andonctl.
    #[arg(long)]
    programs: PathBuf,
    /// The model that answers.
    #[arg(long)]
    model: PathBuf,
    /// Leave everything running until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// The daemon, where whoever ends the show finds it.
type Stage = Arc<Mutex<Option<Daemon>>>;

fn on(stage: &Stage) -> MutexGuard<'_, Option<Daemon>> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let stage = Stage::default();
    let outcome = watch(&arguments, &stage);
    // Dropping the daemon kills it and removes its folder, whatever happened before.
    drop(on(&stage).take());
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the show beside the signals that end it; false if one did.
fn watch(arguments: &Arguments, stage: &Stage) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let show = {
        let (programs, model) = (arguments.programs.clone(), arguments.model.clone());
        let (keep, stage) = (arguments.keep, Arc::clone(stage));
        runtime.spawn_blocking(move || show(&programs, &model, keep, &stage))
    };
    let outcome = runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            shown = show => shown.context("the show panicked")?.map(|()| true),
            interrupted = tokio::signal::ctrl_c() => { interrupted?; Ok(false) }
            _ = terminate.recv() => Ok(false),
        }
    });
    // The show may be in the middle of a wait; it ends with the process.
    runtime.shutdown_background();
    outcome
}

fn show(programs: &Path, model: &Path, keep: bool, stage: &Stage) -> Result<()> {
    println!("== start");
    let broker = Broker::start()?;
    println!(
        "  broker   127.0.0.1:{} for MQTT 5, 127.0.0.1:{} for MQTT 3.1.1",
        broker.port(),
        broker.port_v311()
    );
    let daemon = Daemon::builder()
        .programs(programs)
        .model(model)
        .config(&configuration(&broker))
        .spawn()?;
    let (http, folder) = (daemon.http(), daemon.folder().to_path_buf());
    let (http_socket, wire_socket) = (daemon.http_socket(), daemon.wire_socket());
    *on(stage) = Some(daemon);
    let ready = wait_ready(stage)?;
    println!(
        "  andond   ready after {} ms, in {}",
        ready.as_millis(),
        folder.display()
    );

    let outcome = ask::http(&http)
        .and_then(|()| ask::mqtt_v5(broker.port()))
        .and_then(|()| ask::mqtt_v311(broker.port_v311()))
        .and_then(|()| status(programs, &wire_socket));
    if let Err(error) = outcome {
        let log = on(stage).as_ref().map(Daemon::log).unwrap_or_default();
        bail!("{error:#}\n--- log of andond\n{log}---");
    }
    if keep {
        print_hints(programs, &http_socket, &wire_socket, &broker);
        loop {
            if !on(stage).as_mut().is_some_and(Daemon::is_running) {
                bail!("andond has ended");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    println!("\n== stop");
    let mut daemon = on(stage).take().context("andond is gone")?;
    daemon.terminate()?;
    let status = daemon.wait(STOP_TIMEOUT)?;
    println!("  andond   ended with {status}");
    Ok(())
}

/// Waits in short turns, so that Ctrl-C finds the daemon in its place.
fn wait_ready(stage: &Stage) -> Result<Duration> {
    let turn = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while waited < READY_TIMEOUT {
        let mut daemon = on(stage);
        let daemon = daemon.as_mut().context("andond is gone")?;
        if daemon.is_ready()? {
            return daemon.ready_after().context("andond is ready at no time");
        }
        std::thread::sleep(turn);
        waited += turn;
    }
    bail!("andond is not ready")
}

fn configuration(broker: &Broker) -> String {
    format!(
        r#"
[gateway]
name = "{gateway}"

[task.{task}]
system = "You help the workers of a factory. Answer in two short sentences."
instructions = """Machine {{{{ machine }}}} reports fault {{{{ code }}}}: {{{{ text }}}}
What is the likely cause, and what should the worker check first?"""
tokens-max = 80
temperature = 0.0
"#,
        gateway = ask::GATEWAY,
        task = ask::TASK,
    ) + &broker.config()
}

fn status(programs: &Path, wire_socket: &Path) -> Result<()> {
    println!("\n== andonctl status");
    let mut andonctl = Command::new(programs.join("andonctl"));
    let output = andonctl
        .arg("--socket")
        .arg(wire_socket)
        .arg("status")
        .output()
        .context("cannot run andonctl")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("  {line}");
    }
    if !output.status.success() {
        bail!(
            "andonctl status: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn print_hints(programs: &Path, http_socket: &Path, wire_socket: &Path, broker: &Broker) {
    let andonctl = format!(
        "{} --socket {}",
        programs.join("andonctl").display(),
        wire_socket.display()
    );
    println!("\n== running until Ctrl-C; try in another terminal");
    println!("  {andonctl} ask 'Why would a conveyor belt stop?'");
    println!("  {andonctl} chat");
    println!(
        "  curl --unix-socket {} http://localhost/v1/chat/completions -H 'Content-Type: application/json' \\\n    \
         -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"What is a PLC?\"}}],\"stream\":true}}'",
        http_socket.display()
    );
    println!(
        "  mosquitto_rr -V 5 -p {} -q 1 -W 30 -t {base}/request/me/{task} -e {base}/response/me/1 \\\n    \
         -m '{{\"input\":{{\"machine\":\"press 4\",\"code\":\"E42\",\"text\":\"hydraulic pressure low\"}}}}'",
        broker.port(),
        base = ask::base(),
        task = ask::TASK,
    );
}
