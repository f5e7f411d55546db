//! The memory that `--dry-run` prints is the memory that a run takes: what Rust allocates, counted by the allocator.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/runs.rs"]
mod runs;

use peak_alloc::PeakAlloc;
use runs::Place;
use std::sync::atomic::AtomicBool;
use topk_sae::backend::DeviceChoice;
use topk_sae::config::{NumberOr, Options, Preset};
use topk_sae::report::curves::write_plots;
use topk_sae::run::{self, Memory, Session};
use topk_sae::spec::{Inference, PreBias};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// A run of M latents that stops early and takes an earlier checkpoint up.
fn options(place: &Place, m: usize) -> Options {
    Options {
        data: Some(vec![place.path("data.h5")]),
        latents: Some(m),
        k: Some(8),
        steps: Some(12),
        batch_size: Some(NumberOr::Number(64)),
        anneal_steps: Some(2),
        eval_every: Some(2),
        early_stop: Some(1),
        // The second evaluation is worse than the first, with gradients in the data's own unit.
        lr: Some(NumberOr::Number(3.0)),
        loss_scale: Some(1.0),
        adam_eps: Some(1e-8),
        ..Options::default()
    }
}

/// Bytes at the peak of `run`, beyond those that were there before.
fn peak<R>(run: impl FnOnce() -> R) -> (f64, R) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let result = run();
    ((ALLOCATED.peak_usage() - before) as f64, result)
}

/// Fails unless a run, and its end once more, take what is told: no more, and the run no less.
fn check(name: &str, options: &Options, place: &Place) {
    let stop = AtomicBool::new(false);
    let session = Session {
        device: DeviceChoice::Cpu,
        quiet: true,
        stop: &stop,
        draw: Some(write_plots),
        observer: None,
    };
    let Memory { data, training } = Memory::new(&run::prepare(options, &session).unwrap());
    let told = (data + training) as f64;
    let out = place.path(name);
    let (whole, summary) = peak(|| run::start(options, None, &out, false, &session).unwrap());
    // The test is void unless the best checkpoint was taken up.
    assert!(summary.best_step.is_some_and(|best| best == summary.steps), "{name}: {summary:?}");
    let metrics = runs::metrics(&out);
    assert!(metrics.last().unwrap()[0] != summary.steps.to_string(), "{name}: the last step was the best");
    std::fs::remove_file(out.join("summary.json")).unwrap();
    let (resumed, again) = peak(|| run::resume(&out, None, &session).unwrap());
    assert_eq!((again.val, again.steps), (summary.val, summary.steps));
    let [whole, resumed] = [whole / told, resumed / told].map(|share| 100.0 * (share - 1.0));
    println!("{name}: {told} bytes told, {whole:+.1} %, resumed {resumed:+.1} %");
    // What a run takes at most depends a little on what it learns.
    assert!(whole.abs() < 10.0, "{name}: {told} bytes told, {whole:+.1} % taken");
    assert!(resumed < 10.0, "{name}: {told} bytes told, {resumed:+.1} % taken by --resume");
}

#[test]
fn the_memory_that_is_told_beforehand_is_the_memory_that_a_run_takes() {
    let place = Place::with_data(600, 64);
    let base = || options(&place, 16_384);
    let with = |preset| Options { preset: Some(preset), ..base() };
    let rows = |n| Some(NumberOr::Number(n));
    let relu = Some(Inference::Relu);
    for (name, options) in [
        ("default", base()),
        ("small batch", Options { batch_size: rows(16), ..base() }),
        ("large batch", Options { batch_size: rows(400), ..base() }),
        ("no average", Options { ema: Some(0.0), ..base() }),
        ("tied", Options { tied: Some(true), ..base() }),
        ("clip", Options { clip_norm: Some(1.0), ..base() }),
        ("aux", Options { aux_k: Some(64), dead_after: Some(64), ..base() }),
        ("all", Options { tied: Some(true), clip_norm: Some(1.0), aux_k: Some(64), ..base() }),
        ("wide", Options { k: Some(64), batch_size: rows(256), lr: Some(NumberOr::Number(30.0)), ..base() }),
        ("median", Options { pre_bias: Some(PreBias::Median), ..base() }),
        ("relu", Options { inference: relu, ..base() }),
        ("topk", with(Preset::Topk)),
        ("relaxed", with(Preset::RelaxedTopk)),
        ("sparse", with(Preset::SparseL1)),
    ] {
        check(name, &options, &place);
    }
    // More rows than weights: the start of the latents takes the most.
    let place = Place::with_data(8400, 512);
    check("start", &Options { tied: Some(true), k: Some(2), ..options(&place, 256) }, &place);
    // A small model: the plots take the most.
    let place = Place::with_data(600, 64);
    check("plots", &options(&place, 64), &place);
}
