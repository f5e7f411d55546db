//! The memory that `--dry-run` prints is the memory that a run takes, and codes take what `--memory` leaves them: what Rust
//! allocates, counted by the allocator.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/runs.rs"]
mod runs;

use peak_alloc::PeakAlloc;
use runs::Place;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use topk_sae::analysis::Source;
use topk_sae::analysis::features::{FeaturesRequest, features};
use topk_sae::analysis::labels::choose::LabelOptions;
use topk_sae::analysis::overlap::{Active, OverlapRequest, overlap};
use topk_sae::backend::DeviceChoice;
use topk_sae::config::{NumberOr, Options, PrefixList, Preset};
use topk_sae::report::curves::write_plots;
use topk_sae::report::request::{ReportRequest, report};
use topk_sae::run::{self, Memory, Session};
use topk_sae::spec::{Activation, Inference, PreBias};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// One test at a time: the allocator counts for all.
static ALONE: Mutex<()> = Mutex::new(());

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

/// How the runs here are made.
fn quiet(stop: &AtomicBool) -> Session<'_> {
    Session {
        device: DeviceChoice::Cpu,
        quiet: true,
        stop,
        draw: Some(write_plots),
        observer: None,
        place: None,
    }
}

/// Bytes that a run is told to take.
fn told(options: &Options, session: &Session<'_>) -> f64 {
    let Memory { data, training } = Memory::new(&run::prepare(options, 1, session).unwrap());
    (data + training) as f64
}

/// Fails unless a run, and its end once more, take what is told: no more, and the run no less.
fn check(name: &str, options: &Options, place: &Place) {
    let stop = AtomicBool::new(false);
    let session = quiet(&stop);
    let told = told(options, &session);
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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

#[test]
fn the_memory_of_kinds_without_places_per_row_and_of_prefixes_is_told_too() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::with_data(600, 64);
    let rows = Some(NumberOr::Number(256));
    let base = || Options { batch_size: rows, lr: None, early_stop: Some(0), ..options(&place, 16_384) };
    let kind = |activation| Options { activation: Some(activation), anneal_steps: None, ..base() };
    let stop = AtomicBool::new(false);
    let session = quiet(&stop);
    for (name, options) in [
        ("batch-topk", kind(Activation::BatchTopk)),
        ("jumprelu", kind(Activation::JumpRelu)),
        ("relu", kind(Activation::Relu)),
        ("prefixes", Options { prefixes: Some(PrefixList::Auto), ..base() }),
        ("relu, prefixes", Options { prefixes: Some(PrefixList::Auto), ..kind(Activation::Relu) }),
    ] {
        let told = told(&options, &session);
        let (whole, _) = peak(|| run::start(&options, None, &place.path(name), false, &session).unwrap());
        let share = 100.0 * (whole / told - 1.0);
        println!("{name}: {told} bytes told, {share:+.1} %");
        // How many latents are active decides how much of it jumprelu and relu take: no more than is told, and most of it.
        let least = if name.contains("relu") { -45.0 } else { -10.0 };
        assert!(share > least && share < 10.0, "{name}: {told} bytes told, {share:+.1} % taken");
    }
}

/// A run on proteins, and a request for its latents with labels of residues or without.
fn request(place: &Place, labels: bool, memory: u64) -> FeaturesRequest {
    let options = LabelOptions { columns: None, min_rows: 5, max_values: 100, unknown: vec![] };
    FeaturesRequest {
        source: Source {
            model: place.path("run"),
            data: vec![place.path("residues.h5")],
            given: None,
            reading: Default::default(),
            device: DeviceChoice::Cpu,
            quiet: true,
        },
        split: None,
        pool: false,
        top: 5,
        neighbours: 2,
        labels: labels.then(|| (place.path("labels.tsv"), options)),
        memory: Some(memory),
        outputs: vec![],
    }
}

fn groups(request: FeaturesRequest, out: PathBuf) -> OverlapRequest {
    OverlapRequest {
        source: request.source,
        split: None,
        labels: request.labels.unwrap().0,
        column: None,
        unknown: vec![],
        groups: vec![],
        exclusive: false,
        active: Active { threshold: 0.0, min_activation: 0.0 },
        permutations: 3,
        seed: 1,
        memory: request.memory,
        outputs: vec![("--out", out)],
        overwrite: true,
    }
}

#[test]
fn codes_take_the_memory_that_they_are_given_and_no_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let stop = AtomicBool::new(false);
    let place = Place::with_data(300, 16);
    runs::sae_ok([
        "train",
        &place.name("data.h5"),
        "--out",
        &place.name("run"),
        "--latents=128",
        "-k=32",
        "--steps=40",
        "--anneal-steps=0",
    ]);
    // 80,000 rows with about 32 codes each; labels of 400 proteins.
    runs::write_residues(&place.path("residues.h5"), 400, 200, 16);
    let lines = (0..400).map(|i| format!("P{i:03}\t{}\n", ["a", "b"][i % 2])).collect::<String>();
    std::fs::write(place.path("labels.tsv"), format!("id\tkind\n{lines}")).unwrap();
    let alone = |labels, memory| peak(|| features(&request(&place, labels, memory), &stop).unwrap());
    let (without, found) = alone(false, u64::MAX);
    let codes: u64 = found.latents.iter().map(|latent| latent.active_rows).sum();
    // 12 bytes per code while they are gathered.
    let needed = 12.0 * codes as f64;
    let memory = (needed / 8.0) as u64;
    let page = |memory| {
        let request = ReportRequest {
            features: request(&place, true, memory),
            shown: 10,
            out: Some(place.path("page.html")),
            overwrite: true,
        };
        let (most, _) = peak(|| report(&request, &stop).unwrap());
        (most, std::fs::read(place.path("page.html")).unwrap())
    };
    let (whole, all) = alone(true, u64::MAX);
    let (spilled, some) = alone(true, memory);
    assert_eq!(format!("{all:?}"), format!("{some:?}"));
    let (whole_page, all) = page(u64::MAX);
    let (spilled_page, some) = page(memory);
    assert!(all == some, "the page differs");
    let more = [whole, spilled, whole_page, spilled_page].map(|most| (most - without) / needed);
    println!("{codes} codes: {without} bytes without them, {more:.3?} of {needed} more with them");
    // 8 bytes of the 12 for each code, and the memory for one run.
    assert!(more[0] > 8.0 / 12.0 && more[2] > 8.0 / 12.0, "the test is void: {more:?}");
    // An eighth, and what each thread has for the labels of a latent.
    assert!(more[1] < 0.15 && more[3] < 0.15, "{more:?}");

    // One entry of 12 bytes per protein and latent, at least a third of all that there can be.
    let compare = |memory| {
        let request = groups(request(&place, true, memory), place.path("groups.tsv"));
        peak(|| overlap(&request, &stop).unwrap())
    };
    let (whole, all) = compare(u64::MAX);
    let (spilled, some) = compare(100_000);
    assert_eq!(format!("{all:?}"), format!("{some:?}"));
    let needed = 12.0 * 400.0 * 128.0;
    println!("overlap: {whole} bytes, {spilled} with 100,000 of memory; {needed} for a code of each latent");
    assert!(whole - spilled > 0.6 * needed, "{whole} {spilled} {needed}");
}
