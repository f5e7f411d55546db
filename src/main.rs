//! The `sae` command.

fn main() -> std::process::ExitCode {
    topk_sae::cli::main(std::env::args_os()).into()
}
