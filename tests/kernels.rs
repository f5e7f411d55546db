//! The CUDA kernels and the engine that launches them, run on the CPU by the emulation (`tests/emulator/`), and the same
//! tests on a card where there is one.
#![allow(clippy::unwrap_used)]

#[path = "kernels/candidates.rs"]
mod candidates;
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
#[path = "kernels/offsets.rs"]
mod offsets;
#[path = "kernels/precision.rs"]
mod precision;
#[path = "kernels/topk.rs"]
mod topk;

use common::device;
use common::emulator::sanitizer;

#[test]
fn the_same_holds_on_a_gpu() {
    if sanitizer::inside() {
        return;
    }
    device::same_on_a_card("the_same_holds_on_a_gpu", &["controls::", SANITIZED]);
}

const SANITIZED: &str = "all_of_this_holds_with_the_sanitizers";

#[test]
fn all_of_this_holds_with_the_sanitizers() {
    if !device::emulation_only("kernels with the sanitizers") {
        sanitizer::run_all_but(SANITIZED);
    }
}
