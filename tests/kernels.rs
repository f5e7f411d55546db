//! The CUDA kernels, run on the CPU by the emulation (`tests/emulator/`).
#![allow(clippy::unwrap_used)]

mod common;

use common::emulator::{Emulator, sanitizer};
use topk_sae::backend::cuda::sources::SOURCES;

#[test]
fn every_kernel_file_compiles_for_the_emulation() {
    let files = SOURCES.iter().filter(|s| s.0.ends_with(".cu")).count();
    assert!(Emulator::new().kernels().count() >= files);
}

#[test]
fn all_of_this_holds_with_the_sanitizers() {
    sanitizer::run_all_but("all_of_this_holds_with_the_sanitizers");
}
