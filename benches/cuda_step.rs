//! The CUDA engine on a card: ceilings of the card, where the time of a step goes, steps a second.
//!
//! `cargo bench --bench cuda_step`. Without a card it says why and does nothing. `SAE_BENCH_PARTS="ceilings steps"`
//! runs these alone (also: `profiles`, `selections`, which need the ceilings). `SAE_BENCH_OUT=FILE.json` keeps every
//! figure; `SAE_BENCH_EMULATION=1` runs all of it on the emulation at tiny sizes, to check the bench itself.
#![allow(missing_docs)]

#[path = "../tests/common/emulator.rs"]
mod emulator;
#[path = "cuda_step/kernels.rs"]
mod kernels;
#[path = "cuda_step/traffic.rs"]
mod traffic;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::cuda::{self, card};
use topk_sae::backend::{Backend, StepPlan};
use topk_sae::data::Embeddings;
use topk_sae::error::Result;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::{Noise, philox4x32, unit};
use topk_sae::schedule::temperature;
use topk_sae::spec::{Init, ModelSpec, Precision, Relaxation};

/// Sizes of a case.
#[derive(Clone, Copy)]
pub struct Size {
    pub n: usize,
    pub d: usize,
    pub m: usize,
    pub k: usize,
}

const LARGE: Size = Size { n: 4096, d: 1024, m: 16_384, k: 64 };
const SMALL: Size = Size { n: 512, d: 1024, m: 8192, k: 32 };
const TINY: Size = Size { n: 33, d: 40, m: 300, k: 6 };

pub const PRECISIONS: [Precision; 3] = [Precision::Bf16, Precision::Tf32, Precision::F32];
/// The hard phase, and the middle of two warm-ups: the default's and the one that is dense.
const PHASES: [(Relaxation, f64); 3] =
    [(Relaxation::None, 1.0), (Relaxation::Lapsum, 0.5), (Relaxation::Softmax, 0.5)];
const SAMPLES: usize = 10;
/// Parts of the bench; the ceilings of the card are always measured.
const PARTS: [&str; 4] = ["ceilings", "steps", "profiles", "selections"];

impl Size {
    pub fn text(&self) -> String {
        format!("N {} D {} M {} k {}", self.n, self.d, self.m, self.k)
    }
}

/// Where the bench runs, and what it has measured.
pub struct Bench {
    pub emulated: bool,
    record: Value,
}

impl Bench {
    /// A device for `precision`.
    pub fn open(&self, precision: Precision) -> Box<dyn Device> {
        if self.emulated {
            return Box::new(emulator::Emulator::new());
        }
        Box::new(must(card::open(0, cuda::math(precision))))
    }

    pub fn sizes(&self) -> Vec<Size> {
        if self.emulated { vec![TINY] } else { vec![LARGE, SMALL] }
    }

    /// Adds a figure to the list `part`, and writes all of them: a bench that is stopped leaves what it had.
    pub fn keep(&mut self, part: &str, figure: Value) {
        match &mut self.record[part] {
            Value::Array(list) => list.push(figure),
            empty => *empty = json!([figure]),
        }
        if let Some(path) = std::env::var_os("SAE_BENCH_OUT").map(PathBuf::from) {
            let text = format!("{:#}\n", self.record);
            must(std::fs::write(&path, text).map_err(topk_sae::error::Error::io(&path, "write")));
        }
    }
}

/// The value, or the end of the bench with the error.
pub fn must<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(1)
    })
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Uniform on [-1, 1), from a counter.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| 2.0 * unit(philox4x32([i as u32, seed, 7, 7], [1, 2])[0]) - 1.0).collect()
}

/// A model at its start and rows to train it on: four batches, around one common row.
pub struct Start {
    pub size: Size,
    pub tied: bool,
    /// What the warm-up is.
    pub relaxation: Relaxation,
    data: Arc<Embeddings>,
    pub state: TrainState,
}

impl Start {
    pub fn new(size: Size, tied: bool) -> Self {
        let Size { n, d, m, .. } = size;
        let common = values(d, 1);
        let mut rows = values(4 * n * d, 2);
        rows.iter_mut().enumerate().for_each(|(i, v)| *v += common[i % d]);
        let ids = (0..4 * n).map(|i| i.to_string()).collect();
        let data = Arc::new(must(Embeddings::from_rows(ids, d, rows)));
        let relaxation = Relaxation::Softmax;
        Self {
            size,
            tied,
            relaxation,
            data,
            state: TrainState::start(Params::init(d, m, tied, &Init::Linear, 1), false),
        }
    }

    pub fn weights(&self) -> &'static str {
        if self.tied { "tied" } else { "untied" }
    }

    pub fn engine(&self, device: Box<dyn Device>, precision: Precision) -> Engine {
        must(Engine::new("bench".into(), device, self.data.clone(), self.spec(), precision, &self.state))
    }

    pub fn spec(&self) -> ModelSpec {
        ModelSpec::plain(self.size.k).with(|spec| {
            spec.warmup.relaxation = self.relaxation;
        })
    }

    /// Queues step number `step` at `t` of the warm-up.
    pub fn queue(&self, engine: &mut Engine, step: u64, t: f64) {
        let n = self.size.n as u32;
        // Another quarter of the rows each time, in another order than they are stored.
        let rows: Vec<u32> = (0..n).map(|i| 4 * ((i * 7 + step as u32) % n) + (step % 4) as u32).collect();
        must(engine.step(&rows, &plan(step, t)));
    }
}

/// Step number `step` at `t` of the warm-up.
pub fn plan(step: u64, t: f64) -> StepPlan<'static> {
    let noise = Noise::Philox { seed: 0 };
    StepPlan { step, alpha: t, tau: temperature(t, 1.0, 0.05), lr: 1e-4, l1: 0.0, noise }
}

pub fn phase(relaxation: Relaxation, t: f64) -> String {
    if t >= 1.0 { "hard".into() } else { format!("warm-up {relaxation:?} t {t}") }
}

/// Steps queued one after another, timed by the clock on the wall from the first to the last one's end.
fn steps(bench: &mut Bench, c: &mut Criterion) {
    for size in bench.sizes() {
        for tied in [true, false] {
            let mut start = Start::new(size, tied);
            let mut group = c.benchmark_group(format!("step {} {}", size.text(), start.weights()));
            group.throughput(Throughput::Elements(size.n as u64)).sampling_mode(SamplingMode::Flat);
            for precision in PRECISIONS {
                for (relaxation, t) in PHASES {
                    start.relaxation = relaxation;
                    let phase = phase(relaxation, t);
                    let (mut engine, mut step, mut ms) = (None, 0, vec![]);
                    group.bench_function(BenchmarkId::new(precision.to_string(), &phase), |b| {
                        let engine =
                            engine.get_or_insert_with(|| start.engine(bench.open(precision), precision));
                        b.iter_custom(|iterations| {
                            let began = Instant::now();
                            for _ in 0..iterations {
                                start.queue(engine, step, t);
                                step += 1;
                            }
                            let stats = must(engine.collect());
                            let took = began.elapsed();
                            assert!(stats.iter().all(|s| s.loss.is_finite()), "a loss is not finite");
                            ms.push(took.as_secs_f64() * 1e3 / iterations as f64);
                            took
                        });
                    });
                    // Those of the warm-up came first.
                    let kept = ms.split_off(ms.len().saturating_sub(SAMPLES));
                    if kept.is_empty() {
                        continue;
                    }
                    let middle = median(kept.clone());
                    bench.keep(
                        "steps",
                        json!({
                            "size": size.text(), "weights": start.weights(), "precision": precision.to_string(),
                            "phase": phase, "ms": kept, "median_ms": middle,
                            "rows_per_second": size.n as f64 / middle * 1e3,
                        }),
                    );
                }
            }
            group.finish();
        }
    }
}

fn main() {
    let emulated = std::env::var("SAE_BENCH_EMULATION").is_ok_and(|v| v == "1");
    if !emulated && let Err(missing) = cuda::available() {
        println!("cuda_step: no GPU: {}; nothing was measured", missing.reason);
        return;
    }
    // Cargo's own way to see that benches start: `cargo test --benches`.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let mut bench = Bench { emulated, record: json!({}) };
    // One card stays open, so that the context of the others is there already.
    let first = bench.open(Precision::F32);
    let facts = must(first.facts());
    println!("{}, {} multiprocessors, {} MiB", facts.name, facts.multiprocessors, facts.total >> 20);
    bench.keep("device", json!({ "name": facts.name, "multiprocessors": facts.multiprocessors }));
    let parts = std::env::var("SAE_BENCH_PARTS").unwrap_or_else(|_| PARTS.join(" "));
    let wanted = |part: &str| parts.split_whitespace().any(|name| name == part);
    if let Some(unknown) = parts.split_whitespace().find(|name| !PARTS.contains(name)) {
        eprintln!("error: SAE_BENCH_PARTS: there is no part `{unknown}`; there are {}", PARTS.join(", "));
        std::process::exit(2);
    }
    let ceilings = kernels::ceilings(&mut bench);
    if wanted("steps") {
        let mut criterion = Criterion::default()
            .sample_size(SAMPLES)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_millis(300))
            .without_plots()
            .configure_from_args();
        steps(&mut bench, &mut criterion);
        criterion.final_summary();
    }
    if wanted("profiles") {
        kernels::profiles(&mut bench, &ceilings);
    }
    if wanted("selections") {
        kernels::selections(&mut bench, &ceilings);
    }
    drop(first);
}
