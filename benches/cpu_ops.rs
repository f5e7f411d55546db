//! One group an operation of the CPU backend, on random and on adversarial input, beside a plain baseline
//! measured in the same run: `cargo bench --bench cpu_ops`. Dense products report floating-point operations as
//! elements, Adam reports bytes, the rest scores, entries or rows.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use topk_sae::backend::cpu::fast::FastCpu;
use topk_sae::backend::cpu::linalg::{View, parallel_product, product};
use topk_sae::backend::cpu::sparse::{ByLatent, CodeChunk, ROWS, Rows, gather_rows};
use topk_sae::backend::cpu::{select, simd};
use topk_sae::backend::{Look, StepPlan};
use topk_sae::data::Embeddings;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::{GUMBEL_EPS, Noise, philox4x32, uniform, unit};
use topk_sae::schedule::temperature;
use topk_sae::spec::{Init, ModelSpec};

/// Uniform on [-1, 1), from a counter.
fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| 2.0 * unit(philox4x32([i as u32, seed, 7, 7], [1, 2])[0]) - 1.0).collect()
}

/// Selection of the k largest of a row, beside a full sort.
fn top_k(c: &mut Criterion) {
    let mut group = c.benchmark_group("top_k");
    for (m, k) in [(2048, 30), (8192, 32), (32_768, 64)] {
        let random = values(m, 1);
        let inputs = [
            ("random", random.clone()),
            // Every score reaches the bound.
            ("all equal", vec![0.5; m]),
            // The largest lie together in the last chunks, which then hold more than k candidates.
            ("ascending", (0..m).map(|j| (j + 1) as f32 / m as f32).collect()),
            ("all negative", random.iter().map(|v| -v.abs() - 0.1).collect()),
        ];
        group.throughput(Throughput::Elements(m as u64));
        for (name, scores) in &inputs {
            let (mut scratch, mut out) = (select::Scratch::default(), vec![]);
            group.bench_function(BenchmarkId::new(*name, format!("M {m} k {k}")), |b| {
                b.iter(|| select::top_k(black_box(scores), k, &mut scratch, &mut out));
            });
        }
        let mut order: Vec<u32> = vec![];
        group.bench_function(BenchmarkId::new("baseline: full sort, random", format!("M {m} k {k}")), |b| {
            b.iter(|| {
                order.clear();
                order.extend(0..m as u32);
                let score = |j: u32| random[j as usize];
                order.sort_unstable_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
                order.truncate(k);
                black_box(order.len())
            });
        });
    }
    group.finish();
}

/// Noise, perturbed scores and exponentials of a row, beside the standard library's logarithm and exponential.
fn softmax(c: &mut Criterion) {
    let mut group = c.benchmark_group("softmax");
    for m in [2048usize, 8192, 32_768] {
        let z = values(m, 2);
        let (mut t, mut e) = (vec![0.0; m], vec![0.0; m]);
        group.throughput(Throughput::Elements(m as u64));
        for tau in [1.0f32, 0.05] {
            group.bench_function(
                BenchmarkId::new("noise and exponentials", format!("M {m} tau {tau}")),
                |b| {
                    b.iter(|| {
                        e.copy_from_slice(&z);
                        let row = simd::perturb(3, 1, 0, &e, &mut t);
                        black_box(simd::exponentials(row.max, 1.0 / tau, &t, &mut e))
                    });
                },
            );
        }
        let given: Vec<f32> = (0..m as u32).map(|j| uniform(3, 1, 0, j)).collect();
        group.bench_function(BenchmarkId::new("noise given", format!("M {m}")), |b| {
            b.iter(|| black_box(simd::perturb_given(&given, &z, &mut t).sum));
        });
        group.bench_function(BenchmarkId::new("baseline: std ln and exp", format!("M {m}")), |b| {
            b.iter(|| {
                let mut max = f32::NEG_INFINITY;
                for (j, (t, z)) in t.iter_mut().zip(&z).enumerate() {
                    let u = uniform(3, 1, 0, j as u32) + GUMBEL_EPS as f32;
                    *t = z.max(0.0) - (GUMBEL_EPS as f32 - u.ln()).ln();
                    max = max.max(*t);
                }
                let mut total = 0.0;
                for (e, t) in e.iter_mut().zip(&t) {
                    *e = (t - max).exp();
                    total += *e;
                }
                black_box(total)
            });
        });
    }
    group.finish();
}

/// Adam on a run of values (28 bytes each: four read, three written), beside a copy of as many bytes.
fn adam(c: &mut Criterion) {
    let mut group = c.benchmark_group("adam");
    let step = simd::AdamStep {
        beta1: 0.9,
        beta2: 0.999,
        one_minus_beta1: 0.1,
        one_minus_beta2: 0.001,
        rate: 1e-3,
        fix2: 1.0,
        eps: 1e-8,
        keep: 1.0,
        clip: 1.0,
    };
    // A block of latents that stays in cache, and a tensor that does not.
    for n in [32_768usize, 8 << 20] {
        let g = values(n, 3);
        let (mut w, mut m, mut v) = (values(n, 4), vec![0.0; n], vec![0.1; n]);
        group.throughput(Throughput::Bytes(28 * n as u64));
        group.bench_function(BenchmarkId::new("adam", n), |b| {
            b.iter(|| simd::adam(step, &mut w, &mut m, &mut v, black_box(&g)));
        });
        // Read once, written once: 8 bytes a value.
        let (from, mut to) = (vec![1.0f32; n * 7 / 2], vec![0.0f32; n * 7 / 2]);
        group.bench_function(BenchmarkId::new("baseline: copy", n), |b| {
            b.iter(|| to.copy_from_slice(black_box(&from)));
        });
    }
    group.finish();
}

/// The encoder's product, on all threads and on one; elements are floating-point operations.
fn encoder(c: &mut Criterion) {
    let mut group = c.benchmark_group("encoder");
    for (n, d, m) in [(512, 1024, 2048), (512, 320, 8192), (33, 1024, 2048)] {
        let (x, w) = (values(n * d, 5), values(m * d, 6));
        let mut out = vec![0.0; n * m];
        let (x, w) = (View::new(&x, n, d, d), View::new(&w, m, d, d).t());
        let shape = format!("N {n} D {d} M {m}");
        group.throughput(Throughput::Elements((2 * n * d * m) as u64));
        group.bench_function(BenchmarkId::new("blocks side by side", &shape), |b| {
            b.iter(|| parallel_product(&mut out, x, w, (512, 256)));
        });
        group.bench_function(BenchmarkId::new("baseline: one product, one thread", &shape), |b| {
            b.iter(|| product(&mut out, m, x, w, false));
        });
    }
    group.finish();
}

/// A chunk of sparse rows; `latent` picks the latent of entry number `i`.
fn sparse_rows(k: usize, latent: impl Fn(usize) -> u32) -> CodeChunk {
    let mut chunk = CodeChunk::default();
    for n in 0..ROWS {
        for i in 0..k {
            chunk.push(latent(n * k + i), 0.5, 0.0, 1.0);
        }
        chunk.end_row();
    }
    chunk
}

/// Decoding of sparse codes and the gradient of the decoder, beside the dense product with the same code.
fn sparse(c: &mut Criterion) {
    let mut group = c.benchmark_group("sparse");
    for (d, m, k) in [(1024, 8192, 32), (1024, 8192, 512)] {
        let w = values(m * d, 7);
        let mut out = vec![0.0; d];
        let spread = sparse_rows(k, |i| (i * 7919 % m) as u32);
        let shape = format!("D {d} M {m} k {k}");
        group.throughput(Throughput::Elements((ROWS * k * d) as u64));
        group.bench_function(BenchmarkId::new("decode, latents far apart", &shape), |b| {
            b.iter(|| (0..ROWS).for_each(|i| spread.decode(spread.row(i), &w, &mut out)));
        });
        let same = sparse_rows(k, |i| (i % k) as u32);
        group.bench_function(BenchmarkId::new("decode, the same latents in every row", &shape), |b| {
            b.iter(|| (0..ROWS).for_each(|i| same.decode(same.row(i), &w, &mut out)));
        });
        let grads = values(ROWS * d, 8);
        for (name, chunk) in [("spread", &spread), ("same", &same)] {
            let mut entries = ByLatent::default();
            let grads = Rows { values: &grads, stride: d };
            group.bench_function(BenchmarkId::new(format!("gather, {name}"), &shape), |b| {
                b.iter(|| {
                    entries.build(std::slice::from_ref(chunk), m);
                    for j in 0..m {
                        let range = entries.latent(j);
                        if !range.is_empty() {
                            gather_rows(&entries.value[range.clone()], &entries.row[range], grads, &mut out);
                        }
                    }
                });
            });
        }
        let code = vec![0.5; ROWS * m];
        let mut recon = vec![0.0; ROWS * d];
        group.bench_function(BenchmarkId::new("baseline: dense decoder, one thread", &shape), |b| {
            b.iter(|| product(&mut recon, d, View::new(&code, ROWS, m, m), View::new(&w, m, d, d), false));
        });
    }
    group.finish();
}

/// A whole training step in each of the ways a code is held.
fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    let (n, d, m, k) = (256, 512, 2048, 32);
    let spec = ModelSpec::plain(k);
    let ids = (0..n).map(|i| i.to_string()).collect();
    let Ok(data) = Embeddings::from_rows(ids, d, values(n * d, 9)) else { return };
    let data = Arc::new(data);
    let rows: Vec<u32> = (0..n as u32).collect();
    group.throughput(Throughput::Elements(n as u64));
    for (t, tied) in [(1.0, false), (0.9, false), (0.1, false), (1.0, true), (0.9, true), (0.1, true)] {
        let params = Params::init(d, m, tied, &Init::Linear, 1);
        let mut backend = FastCpu::new(data.clone(), spec.clone(), TrainState::start(params, false));
        let tau = temperature(t, 1.0, 0.05);
        let mut number = 0;
        let mut one = || {
            let plan =
                StepPlan { step: number, alpha: t, tau, lr: 1e-4, l1: 0.0, noise: Noise::Philox { seed: 0 } };
            number += 1;
            black_box(backend.step_now(&rows, &plan).map(|stats| stats.loss)).is_ok()
        };
        one();
        let weights = if tied { "tied" } else { "untied" };
        let name = format!("N {n} D {d} M {m} k {k} t {t} {weights}");
        let phase = if t >= 1.0 { "hard" } else { "warm-up" };
        group.bench_function(BenchmarkId::new(phase, name), |b| b.iter(&mut one));
        if let Some(mode) = backend.last_mode() {
            println!("    held as {mode:?}");
        }
    }
    group.finish();
}

/// What each option of the `topk` preset adds to a hard step, on weights that do not stay in cache.
fn options(c: &mut Criterion) {
    let mut group = c.benchmark_group("options");
    let (n, d, m, k) = (512, 512, 4096, 32);
    let ids = (0..n).map(|i| i.to_string()).collect();
    let Ok(data) = Embeddings::from_rows(ids, d, values(n * d, 9)) else { return };
    let data = Arc::new(data);
    let rows: Vec<u32> = (0..n as u32).collect();
    group.throughput(Throughput::Elements(n as u64));
    let average = |spec: &mut ModelSpec| spec.optimizer.ema = Some(0.999);
    let unit_norm = |spec: &mut ModelSpec| spec.optimizer.unit_norm_decoder = true;
    let clip = |spec: &mut ModelSpec| spec.optimizer.clip_norm = Some(1.0);
    let all = |spec: &mut ModelSpec| {
        average(spec);
        unit_norm(spec);
        clip(spec);
    };
    type Case<'a> = (&'static str, usize, &'a dyn Fn(&mut ModelSpec));
    let cases: [Case; 7] = [
        ("baseline: none", 0, &|_| ()),
        ("average", 0, &average),
        ("unit norm", 0, &unit_norm),
        ("clipping", 0, &clip),
        ("average, unit norm, clipping", 0, &all),
        ("these, AuxK 64 of 2048 dead", 64, &all),
        ("these, AuxK 256 of 2048 dead", 256, &all),
    ];
    for (name, aux_k, edit) in cases {
        let mut spec = ModelSpec::plain(k);
        edit(&mut spec);
        (spec.objective.aux_k, spec.objective.dead_after) = (aux_k, 1 << 30);
        let params = Params::init(d, m, false, &Init::UnitNorm, 1);
        let mut state = TrainState::start(params, spec.optimizer.ema.is_some());
        state.idle_rows.iter_mut().step_by(2).for_each(|idle| *idle = 1 << 30);
        // Dead latents whose score is positive in half of the rows and that do not fire.
        state.params.w_enc.chunks_exact_mut(d).step_by(2).flatten().for_each(|w| *w *= 0.1);
        let mut backend = FastCpu::new(data.clone(), spec, state);
        let mut number = 0;
        let mut one = || {
            let noise = Noise::Philox { seed: 0 };
            // So low that the latents stay as they are.
            let plan = StepPlan { step: number, alpha: 1.0, tau: 1.0, lr: 1e-9, l1: 0.0, noise };
            number += 1;
            black_box(backend.step_now(&rows, &plan).map(|stats| stats.loss)).is_ok()
        };
        one();
        group
            .bench_function(BenchmarkId::new(name, format!("N {n} D {d} M {m} k {k}")), |b| b.iter(&mut one));
    }
    group.finish();
}

/// Short runs: the whole file takes about a minute.
fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(700))
        .without_plots()
}

criterion_group! { name = ops; config = short(); targets = top_k, softmax, adam, encoder, sparse, step, options }
criterion_main!(ops);
