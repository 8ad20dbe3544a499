//! `completions`, `man`: what is made from the definition of the command line.

use crate::cli::args::Cli;
use crate::cli::context::Context;
use crate::cli::error::Failure;
use clap::CommandFactory;

pub fn completions(context: &Context, shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "larder", &mut script);
    context
        .output
        .with_raw(|out| out.write_all(&script))
        .map_err(|error| Failure::output(&error))
}

pub fn man(context: &Context, words: &[String]) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let mut name = "larder".to_owned();
    for word in words {
        command = command
            .find_subcommand(word)
            .filter(|found| !found.is_hide_set())
            .cloned()
            .ok_or_else(|| Failure::usage(format!("there is no command {word:?} in {name}")))?;
        name = format!("{name}-{word}");
    }
    let page = clap_mangen::Man::new(command);
    let mut text = Vec::new();
    page.render(&mut text).map_err(|error| Failure::output(&error))?;
    context
        .output
        .with_raw(|out| out.write_all(&text))
        .map_err(|error| Failure::output(&error))
}
