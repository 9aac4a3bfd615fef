//! What a whole run consists of, in the order of what matters most, as programs that are run one after the other.

use crate::children::{self, Task};
use crate::report::{self, Report};
use crate::{Arguments, CHECKS, Run, SPEEDS, any_seed, dense, models, rival, sanitize};
use andon_cuda::Device;
use andon_cuda_check::daemon::Daemon;
use andon_cuda_check::emulation;
use andon_cuda_check::figures::Figures;
use andon_cuda_check::synthetic::{COMPARED, Shape, TIMED};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// A section's name, and what runs it.
type Section = (&'static str, fn(&mut Whole) -> Result<()>);

const SECTIONS: [Section; 7] = [
    ("kernels", Whole::kernels),
    ("interfaces", Whole::interfaces),
    ("models", Whole::models),
    ("speed", Whole::speed),
    ("daemon", Whole::daemon),
    ("rival", Whole::rival),
    ("sanitize", Whole::sanitize),
];

/// The models that the daemon serves, and that another program is set against, by their shapes.
const SERVED: [&str; 2] = ["8b", "1b"];

/// What names the speeds of whole models.
const TOKENS: &str = "tokens";

/// A whole run.
struct Whole {
    arguments: Arguments,
    report: Report,
    seed: u64,
    until: Instant,
    /// This program.
    program: PathBuf,
    /// A folder of this run.
    folder: PathBuf,
    /// How programs find the driver, if it is emulated; the same where both warps of a hand-over wait.
    library_path: Option<OsString>,
    library_path_sync: Option<OsString>,
}

/// Runs what is asked for; `false` where nothing can be emulated.
///
/// # Errors
/// With all that failed, by name, or was not finished.
pub(crate) fn all(mut arguments: Arguments) -> Result<bool> {
    for name in &arguments.only {
        let section = SECTIONS.iter().any(|(known, _)| known == name);
        let check = CHECKS.iter().chain(SPEEDS).any(|(known, _)| known == name);
        ensure!(
            section || check || name == TOKENS,
            "there is no section or check {name}"
        );
    }
    let (mut library_path, mut library_path_sync) = (None, None);
    if arguments.emulated {
        arguments.small = true;
        arguments.tokens = arguments.tokens.min(4);
        let Some(folder) = emulation::driver()? else {
            return Ok(false);
        };
        library_path = Some(emulation::library_path(&folder));
        let folder = emulation::driver_with(&["ANDON_HAND_OVER_SYNC"])?;
        library_path_sync = folder.map(|folder| emulation::library_path(&folder));
    }
    let program = env::current_exe()?;
    let named = env::var_os("ANDON_LLAMA_BENCH").filter(|name| !name.is_empty());
    arguments.llama_bench = arguments.llama_bench.or(named.map(PathBuf::from));
    for (named, name) in [
        (&mut arguments.both_wait, "andon-cuda-check-both-wait"),
        (&mut arguments.interfaces, "andon-accelerated"),
        (&mut arguments.andond, "andond"),
        (&mut arguments.llama_bench, "llama-bench"),
    ] {
        let beside = program.with_file_name(name);
        // What happens to lie beside a program that was just built is no part of it.
        if named.is_none() && !arguments.emulated && beside.is_file() {
            *named = Some(beside);
        }
    }
    let at = arguments.folder.clone().unwrap_or_else(env::temp_dir);
    let folder = at.join(format!("andon-cuda-check-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let seed = arguments.seed.unwrap_or_else(any_seed);
    let mut whole = Whole {
        report: Report::new(arguments.results.as_deref(), seed)?,
        until: Instant::now() + Duration::from_secs(arguments.seconds),
        seed,
        arguments,
        program,
        folder,
        library_path,
        library_path_sync,
    };
    let done = whole.run();
    let _ = fs::remove_dir_all(&whole.folder);
    done?;
    let failed = whole.report.failed();
    if !whole.arguments.emulated {
        report::print_bars(&whole.report.figures);
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(true)
}

impl Whole {
    fn run(&mut self) -> Result<()> {
        self.report.begin("device");
        self.steps(vec![self.here("device")], 1, self.until)?;
        self.report.end();
        if !self.report.failed().is_empty() {
            return Ok(());
        }
        let only = self.arguments.only.clone();
        let named = |name: &str| only.iter().any(|only| only == name);
        for (name, section) in SECTIONS {
            let some = match name {
                "kernels" => CHECKS.iter().any(|(check, _)| named(check)),
                "speed" => named(TOKENS) || SPEEDS.iter().any(|(check, _)| named(check)),
                _ => false,
            };
            if only.is_empty() || named(name) || some {
                self.report.begin(name);
                section(self)?;
                self.report.end();
            }
        }
        Ok(())
    }

    /// Whether a check of this section is wanted.
    fn wants(&self, section: &str, check: &str) -> bool {
        let only = &self.arguments.only;
        only.is_empty() || only.iter().any(|only| only == section || only == check)
    }

    /// This program, for one check.
    fn here(&self, check: &str) -> Task {
        let arguments = &self.arguments;
        let mut command = Command::new(&self.program);
        command.args(["--here", check]);
        command.args(["--device", &arguments.device.to_string()]);
        command.args(["--seed", &self.seed.to_string()]);
        command.args(["--tokens", &arguments.tokens.to_string()]);
        command.arg("--figures").arg(self.figures_file());
        command.arg("--folder").arg(&self.folder);
        for (name, program) in [
            ("--andond", &arguments.andond),
            ("--llama-bench", &arguments.llama_bench),
        ] {
            if let Some(program) = program {
                command.arg(name).arg(program);
            }
        }
        if let Some(dense) = arguments.dense {
            command.args(["--dense", &dense.to_string()]);
        }
        if arguments.small {
            command.arg("--small");
        }
        self.find_driver(&mut command);
        Task::new(check, command)
    }

    fn find_driver(&self, command: &mut Command) {
        if let Some(path) = &self.library_path {
            command.env("LD_LIBRARY_PATH", path);
        }
    }

    fn figures_file(&self) -> PathBuf {
        self.folder.join("figures")
    }

    /// Runs steps of the section that is under way.
    fn steps(&mut self, tasks: Vec<Task>, jobs: usize, until: Instant) -> Result<()> {
        self.steps_that(tasks, jobs, until, |done| !done.is_good())
    }

    fn steps_that(
        &mut self,
        tasks: Vec<Task>,
        jobs: usize,
        until: Instant,
        fails: impl Fn(&children::Done) -> bool,
    ) -> Result<()> {
        let (folder, figures) = (self.folder.clone(), self.figures_file());
        let report = &mut self.report;
        children::run(tasks, (jobs, until), &folder, |done| {
            report.measured(&figures);
            if done.name == "device" && done.is_good() {
                report.device(done.said.trim());
            } else {
                report.step(&done, fails(&done));
            }
        })
    }

    fn kernels(&mut self) -> Result<()> {
        let wanted = CHECKS
            .iter()
            .filter(|(name, _)| self.wants("kernels", name));
        let mut tasks: Vec<Task> = wanted.map(|(name, _)| self.here(name)).collect();
        if let Some(path) = &self.library_path_sync
            && self.wants("kernels", "hand_over")
        {
            let mut task = self.here("hand_over");
            task.command.env("LD_LIBRARY_PATH", path);
            task.name = "hand_over, where both warps wait".to_owned();
            tasks.push(task);
        }
        // The processor's side is most of it.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let jobs = self.arguments.jobs.unwrap_or(processors.min(8));
        self.steps(tasks, jobs, self.until)
    }

    fn interfaces(&mut self) -> Result<()> {
        let Some(program) = self.arguments.interfaces.clone() else {
            self.report
                .skip("there is no andon-accelerated beside this program");
            return Ok(());
        };
        let mut command = Command::new(program);
        command.arg("--test-threads=4");
        if self.library_path.is_none() {
            command.env("ANDON_TEST_CARD", "1");
        }
        self.steps(vec![Task::new("interfaces", command)], 1, self.until)
    }

    fn models(&mut self) -> Result<()> {
        let mut tasks = Vec::new();
        for model in &self.arguments.model {
            tasks.push(self.on("compare", model));
        }
        for shape in COMPARED {
            tasks.push(self.here(&format!("compare-{}", shape.name)));
        }
        self.steps(tasks, 1, self.until)
    }

    /// A check of a file.
    fn on(&self, check: &str, model: &Path) -> Task {
        let mut task = self.here(check);
        task.command.arg("--model").arg(model);
        task.name = format!("{check} {}", model.display());
        task
    }

    fn speed(&mut self) -> Result<()> {
        if self.arguments.dense.is_none() && !self.arguments.emulated {
            self.arguments.dense = dense::measure();
            match self.arguments.dense {
                Some(dense) => println!("dense bf16: {dense:.0} TFLOP/s, by PyTorch"),
                None => println!("dense bf16 is not known: there is no PyTorch for this card"),
            }
        }
        let wanted = SPEEDS.iter().filter(|(name, _)| self.wants("speed", name));
        let mut tasks: Vec<Task> = wanted.map(|(name, _)| self.here(name)).collect();
        if self.wants("speed", TOKENS) {
            for model in &self.arguments.model {
                tasks.push(self.on("tokens", model));
            }
            for shape in TIMED.iter().rev() {
                tasks.push(self.here(&format!("tokens-{}", shape.name)));
            }
        }
        self.steps(tasks, 1, self.until)
    }

    fn daemon(&mut self) -> Result<()> {
        if self.arguments.andond.is_none() {
            self.report.skip("there is no andond beside this program");
            return Ok(());
        }
        let tasks = SERVED.map(|name| self.here(&format!("daemon-{name}")));
        self.steps(tasks.into(), 1, self.until)
    }

    fn rival(&mut self) -> Result<()> {
        if self.arguments.llama_bench.is_none() {
            self.report.skip("no llama-bench is named");
            return Ok(());
        }
        let tasks = SERVED.map(|name| self.here(&format!("rival-{name}")));
        self.steps(tasks.into(), 1, self.until)
    }

    fn sanitize(&mut self) -> Result<()> {
        if self.arguments.emulated {
            self.report
                .skip("compute-sanitizer is for cards; the emulation has guards of its own");
            return Ok(());
        }
        let Some(sanitizer) = sanitize::find() else {
            self.report.skip("there is no compute-sanitizer");
            return Ok(());
        };
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        let both_wait = self.arguments.both_wait.clone();
        let tasks = sanitize::tasks(&sanitizer, &names, both_wait.as_deref())?;
        let until = self.until.min(Instant::now() + sanitize::LIMIT);
        let jobs = tasks.len();
        self.steps_that(tasks, jobs, until, sanitize::fails)?;
        if both_wait.is_none() {
            println!(
                "races of the handing over are not settled: there is no build in which both warps wait"
            );
        }
        Ok(())
    }
}

/// Where synthetic models are written.
fn folder(arguments: &Arguments) -> PathBuf {
    arguments.folder.clone().unwrap_or_else(env::temp_dir)
}

/// The file of a synthetic model.
fn synthetic(arguments: &Arguments, name: &str) -> Result<PathBuf> {
    let shape = Shape::named(name).with_context(|| format!("there is no shape {name}"))?;
    let shape = if arguments.small {
        shape.small()
    } else {
        shape
    };
    Ok(shape.in_folder(&folder(arguments))?)
}

/// A check in this process that opens the device itself, or leaves it to another program; `None` for another check.
pub(crate) fn without_device(
    arguments: &Arguments,
    name: &str,
    figures: &Figures,
) -> Option<Result<String>> {
    if name == "device" {
        let limits = Device::open(arguments.device).and_then(|device| device.limits());
        return Some(
            limits
                .map(|limits| format!("{limits:?}"))
                .map_err(Into::into),
        );
    }
    if name == "compare" || name.starts_with("compare-") {
        return Some(
            of_file(arguments, name, "compare")
                .and_then(|(_, model)| models::compare(&model, arguments.tokens)),
        );
    }
    if name.starts_with("daemon-") {
        return Some(daemon(arguments, name, figures));
    }
    None
}

/// The name and the file of the model that a check is of.
fn of_file(arguments: &Arguments, check: &str, kind: &str) -> Result<(String, PathBuf)> {
    match check
        .strip_prefix(kind)
        .and_then(|rest| rest.strip_prefix('-'))
    {
        Some(name) => Ok((name.to_owned(), synthetic(arguments, name)?)),
        None => {
            let model = arguments.model.first().context("no model is named")?;
            let name = model.file_stem().unwrap_or_default();
            Ok((name.to_string_lossy().into_owned(), model.clone()))
        }
    }
}

fn daemon(arguments: &Arguments, check: &str, figures: &Figures) -> Result<String> {
    let (name, model) = of_file(arguments, check, "daemon")?;
    let folder = folder(arguments).join(check);
    let daemon = Daemon {
        andond: arguments.andond.as_deref().context("no andond is named")?,
        model: &model,
        name: &name,
        environment: &[],
        folder: &folder,
        sizes: if arguments.small { (12, 4) } else { (512, 128) },
        clients: if arguments.small { 2 } else { 8 },
        patience: Duration::from_secs(120),
    };
    daemon.measure(figures)
}

/// A check of a model whose passes are timed.
pub(crate) fn of_models(arguments: &Arguments, check: &str, run: &Run<'_>) -> Result<String> {
    if check == "tokens" || check.starts_with("tokens-") {
        let (name, model) = of_file(arguments, check, "tokens")?;
        return models::tokens(run, &name, &model);
    }
    if check.starts_with("rival-") {
        let (name, model) = of_file(arguments, check, "rival")?;
        let program = arguments.llama_bench.as_deref();
        let program = program.context("no llama-bench is named")?;
        return rival::check(run, program, &name, &model);
    }
    bail!("there is no check {check}");
}
