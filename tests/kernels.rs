//! The CUDA kernels and the engine that launches them, run on the CPU by the emulation (`tests/emulator/`).
#![allow(clippy::unwrap_used)]

#[path = "backends/case.rs"]
mod case;
mod common;
#[path = "kernels/controls.rs"]
mod controls;
#[path = "kernels/engine.rs"]
mod engine;
#[path = "kernels/index.rs"]
mod index;
#[path = "kernels/learning.rs"]
mod learning;
#[path = "kernels/precision.rs"]
mod precision;
#[path = "kernels/topk.rs"]
mod topk;

use common::emulator::sanitizer;

#[test]
fn all_of_this_holds_with_the_sanitizers() {
    sanitizer::run_all_but("all_of_this_holds_with_the_sanitizers");
}
