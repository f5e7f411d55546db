//! The `sae` command: parse, run, print one error, leave with the documented status.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use topk_sae::cli::Cli;
use topk_sae::error::Result;
use topk_sae::{console, interrupt};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => finish(run(cli)),
        Err(error) => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            match error.exit_code() {
                // Help or version, on standard output.
                0 => finish(console::written(printed)),
                // It is lost where standard error cannot be written; the status is not.
                status => ExitCode::from(status as u8),
            }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let stop = interrupt::watch().unwrap_or_else(|e| {
        console::warn(format_args!("signals will end sae at once, without a checkpoint: {e}"));
        &NEVER
    });
    // Where files may not grow (`ulimit -f`) the write is to fail, which gives an error of one line, and not the process.
    // The handler does nothing; that there is one is enough.
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        console::warn(format_args!("a limit on the size of files will end sae without a message: {e}"));
    }
    cli.run(stop)
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::tell(format_args!("error: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}
