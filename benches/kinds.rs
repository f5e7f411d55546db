//! A training step of each kind of sparsity on the CPU beside that of top k, in turns, so that what else the machine does
//! meets all of them: `cargo bench --bench kinds`. Prints medians, and the median of the ratios within a round.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;
use topk_sae::backend::cpu::fast::FastCpu;
use topk_sae::backend::cpu::linalg::{View, parallel_product};
use topk_sae::backend::{Look, StepPlan};
use topk_sae::data::Embeddings;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::{Noise, philox4x32, unit};
use topk_sae::spec::{Activation, Init, ModelSpec, Prefixes, Relaxation};

const N: usize = 512;
const D: usize = 1024;
const M: usize = 8192;
const K: usize = 32;
const ROUNDS: usize = 15;

fn values(count: usize, seed: u32) -> Vec<f32> {
    (0..count).map(|i| 2.0 * unit(philox4x32([i as u32, seed, 7, 7], [1, 2])[0]) - 1.0).collect()
}

/// What is timed: its name, and one step of it.
type Timed = (&'static str, Box<dyn FnMut()>);

fn step(data: &Arc<Embeddings>, spec: ModelSpec, threshold: f32) -> Box<dyn FnMut()> {
    let mut params = Params::init(D, M, false, &Init::UnitNorm, 1);
    params.threshold = spec.forward.has_threshold().then(|| vec![threshold; M]);
    let mut backend = FastCpu::new(data.clone(), spec, TrainState::start(params, false));
    let rows: Vec<u32> = (0..N as u32).collect();
    let mut number = 0;
    Box::new(move || {
        // A learning rate of 0 does all of the work, and leaves the codes as sparse as they are.
        let noise = Noise::Philox { seed: 0 };
        let plan = StepPlan { step: number, alpha: 1.0, tau: 1.0, lr: 0.0, l1: 1.0, noise };
        number += 1;
        assert!(black_box(backend.step_now(&rows, &plan)).is_ok());
    })
}

fn kind(activation: Activation, prefixes: Prefixes) -> ModelSpec {
    ModelSpec::plain(K).with(|spec| {
        spec.forward.activation = activation;
        spec.forward.inference = activation.inference();
        spec.forward.prefixes = prefixes;
        spec.objective.penalty = activation.penalty();
        spec.objective.bandwidth = 0.1;
        spec.warmup.relaxation = Relaxation::None;
    })
}

/// The five products of a step whose code is dense: scores, reconstruction, dh, dW_dec, dW_enc.
fn products() -> Box<dyn FnMut()> {
    let (x, w, h) = (values(N * D, 3), values(M * D, 4), values(N * M, 5));
    let (mut rows, mut codes, mut weights) = (vec![0.0; N * D], vec![0.0; N * M], vec![0.0; M * D]);
    Box::new(move || {
        let (x, w, h) = (View::new(&x, N, D, D), View::new(&w, M, D, D), View::new(&h, N, M, M));
        parallel_product(&mut codes, x, w.t(), (512, 256));
        parallel_product(&mut rows, h, w, (256, 256));
        parallel_product(&mut codes, x, w.t(), (512, 256));
        parallel_product(&mut weights, h.t(), x, (512, 256));
        parallel_product(&mut weights, h.t(), x, (512, 256));
        black_box((&rows, &codes, &weights));
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let ids = (0..N).map(|i| i.to_string()).collect();
    let Ok(data) = Embeddings::from_rows(ids, D, values(N * D, 9)) else { return };
    let data = Arc::new(data);
    let none = Prefixes::default();
    let of = |activation, prefixes, threshold| step(&data, kind(activation, prefixes), threshold);
    let mut all: Vec<Timed> = vec![
        ("topk", of(Activation::Topk, none, 0.0)),
        ("batch-topk", of(Activation::BatchTopk, none, 0.0)),
        ("topk, 5 prefixes", of(Activation::Topk, Prefixes::of(M), 0.0)),
        // Scores of these rows have a deviation of 1: 32 of 8192 are above 2.66.
        ("jumprelu, 32 active", of(Activation::JumpRelu, none, 2.66)),
        ("jumprelu, half active", of(Activation::JumpRelu, none, 0.0)),
        ("products of a dense code", products()),
    ];
    let mut seconds = vec![vec![]; all.len()];
    for round in 0..=ROUNDS {
        for ((_, step), seconds) in all.iter_mut().zip(&mut seconds) {
            let began = Instant::now();
            step();
            // The first round makes room and fills caches.
            if round > 0 {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
    }
    println!("N {N} D {D} M {M} k {K}, {ROUNDS} rounds in turns, {} threads", rayon::current_num_threads());
    let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
    for ((name, _), of) in all.iter().zip(&seconds) {
        let (ms, beside) = (1e3 * median(of.clone()), ratio(of, &seconds[0]));
        println!("{name:26} {ms:8.1} ms  {beside:5.2} of topk");
    }
    println!("jumprelu, half active, of its products: {:.2}", ratio(&seconds[4], &seconds[5]));
}
