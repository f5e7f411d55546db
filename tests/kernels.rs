//! The CUDA kernels and the engine that launches them, run on the CPU by the emulation (`crates/cuda-on-cpu`), and the
//! same tests on the PTX that NVRTC makes and on a card, where there are such.
#![allow(clippy::unwrap_used)]

#[path = "kernels/candidates.rs"]
mod candidates;
#[path = "backends/case.rs"]
mod case;
mod common;
#[path = "kernels/compiled.rs"]
mod compiled;
#[path = "common/compiler.rs"]
mod compiler;
#[path = "kernels/controls.rs"]
mod controls;
#[path = "kernels/engine.rs"]
mod engine;
#[path = "kernels/estimate.rs"]
mod estimate;
#[path = "kernels/index.rs"]
mod index;
#[path = "kernels/kinds.rs"]
mod kinds;
#[path = "kernels/learning.rs"]
mod learning;
#[path = "kernels/lists.rs"]
mod lists;
#[path = "kernels/noise.rs"]
mod noise;
#[path = "kernels/offsets.rs"]
mod offsets;
#[path = "kernels/precision.rs"]
mod precision;
#[path = "kernels/ranks.rs"]
mod ranks;
#[path = "common/ranks.rs"]
mod thread_ranks;
#[path = "kernels/topk.rs"]
mod topk;
#[path = "kernels/traffic.rs"]
mod traffic;

use common::device;
use cuda_on_cpu::sanitizer;

/// Tests that run the others again, elsewhere.
const ELSEWHERE: &str = "the_same_holds_";

/// Whether this process is one that such a test has started, or is not for them.
fn started() -> bool {
    sanitizer::inside() || device::emulation_only("the same elsewhere")
}

#[test]
fn the_same_holds_on_a_gpu() {
    if !started() {
        device::same_on_a_card(&[ELSEWHERE, "controls::"]);
    }
}

#[test]
fn the_same_holds_with_the_sanitizers() {
    if !started() {
        sanitizer::run_all_but(ELSEWHERE);
    }
}

#[test]
fn the_same_holds_of_what_nvrtc_makes() {
    // Two hundred steps take some ten minutes so; CONTRIBUTING.md says how to run them.
    if !started() && compiler::nvrtc() {
        device::again("ptx", &[ELSEWHERE, "controls::", "offsets::", "two_hundred_steps"]);
    }
}
