//! The command line (see README.md): arguments in, words and exit codes out. Everything else is done by `ops`.

pub mod args;
mod command;
mod context;
pub mod env;
mod error;
mod interrupt;
mod names;
mod output;
mod progress;

use crate::pure::base::Kind;
use args::Cli;
use clap::Parser;
use context::Context;
use error::Failure;
use output::Output;
use std::process::ExitCode;

/// Runs the program.
pub fn main() -> ExitCode {
    interrupt::harden();
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    // Wanted before the arguments are understood, because not understanding them is an error, too.
    let json = arguments
        .iter()
        .take_while(|argument| *argument != "--")
        .any(|argument| argument == "--json");
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(refuse(&error, json)),
    };
    let output = Output::new(&cli.globals);
    output::explain_panics(json);
    let run = std::panic::AssertUnwindSafe(|| run(cli, output.clone()));
    let code = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => 0,
        Ok(Err(failure)) => output.failure(&failure),
        // The panic has been reported by the hook.
        Err(_) => Kind::Internal.exit_code(),
    };
    ExitCode::from(code)
}

fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let context = Context::new(cli.globals, output)?;
    let done = command::run(&context, cli.command);
    // What was printed so far is printed in any case.
    let flushed = context.output.flush();
    done.and(flushed).map_err(|failure| context.interrupt.explain(failure))
}

/// Prints help or what is wrong with the arguments, and returns the exit code.
fn refuse(error: &clap::Error, json: bool) -> u8 {
    use clap::error::ErrorKind;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody is left to tell when this fails.
        let _ = error.print();
        return 0;
    }
    if json {
        let text = error.render().to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or("wrong use");
        let failure = Failure::usage(first.strip_prefix("error: ").unwrap_or(first))
            .with_hint("see `larder --help` and `larder help COMMAND`");
        output::print_failure(&failure, true);
    } else {
        let _ = error.print();
    }
    Kind::Usage.exit_code()
}
