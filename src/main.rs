//! The `sae` command: parse, run, print one error, leave with the documented status.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use topk_sae::cli::Cli;
use topk_sae::console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second signal, while the first waits for a checkpoint or for data, ends the process at once.
        let armed = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)));
        if let Err(e) = armed {
            console::warn(format_args!("signal {signal} will stop sae without a checkpoint: {e}"));
        }
    }
    // Where files may not grow (`ulimit -f`) the write is to fail, which is told in one line, and not the process.
    // The handler does nothing; that there is one is enough.
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        console::warn(format_args!("a limit on the size of files will end sae without a message: {e}"));
    }
    match cli.run(&stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::tell(format_args!("error: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}
