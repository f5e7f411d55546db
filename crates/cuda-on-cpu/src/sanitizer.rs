//! Runs tests of this binary again in a process with AddressSanitizer and UndefinedBehaviorSanitizer, which stops at
//! the first access outside a block of memory. The Rust code is not instrumented; kernels are.

use super::build::compiler;
use std::process::{Command, Output};

/// Set in the process that has the sanitizers.
const INSIDE: &str = "SAE_EMULATOR_SANITIZED";

/// Runs this test binary with `args` and the sanitizers.
pub fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let libraries = ["libasan.so", "libubsan.so"].map(|name| {
        let out = compiler().arg(format!("-print-file-name={name}")).output().unwrap();
        let path = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        assert!(path.starts_with('/'), "{name} is missing: install the C++ compiler's sanitizers");
        path
    });
    Command::new(std::env::current_exe().unwrap())
        .args(args)
        .envs(env.iter().copied())
        .env(INSIDE, "1")
        .env("LD_PRELOAD", libraries.join(":"))
        // Rust has signal stacks of its own; leaks of the test harness are not ours.
        .env(
            "ASAN_OPTIONS",
            "detect_leaks=0:use_sigaltstack=0:detect_stack_use_after_return=0:abort_on_error=0",
        )
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .output()
        .unwrap()
}

/// Runs this binary's tests with the sanitizers, but those whose names contain `skip`.
pub fn run_all_but(skip: &str) {
    if inside() {
        return;
    }
    let out = run(&["--skip", skip], &[]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{:?} with the sanitizers:\n{text}", out.status);
    assert!(!text.contains("running 0 tests"), "no tests ran with the sanitizers:\n{text}");
}

/// Whether this process has the sanitizers.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}
