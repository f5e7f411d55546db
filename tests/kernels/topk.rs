//! Selection against a full sort, on rows that are meant to break it.

use crate::common::device::device;
use cuda_on_cpu::sanitizer;
use topk_sae::backend::cpu::reference;
use topk_sae::backend::cuda::buffer::Buffer;
use topk_sae::backend::cuda::device::{Device, Element};
use topk_sae::backend::cuda::launch::{self, CarriedOver, DeviceBatch};
use topk_sae::backend::cuda::params::StepParams;
use topk_sae::backend::cuda::ranks::Shard;
use topk_sae::backend::cuda::work::{Sizes, WorkBuffers};
use topk_sae::backend::{Phase, StepPlan};
use topk_sae::noise::{Noise, philox4x32, unit};
use topk_sae::rows::Dtype;
use topk_sae::spec::{Activation, ModelSpec};

/// Rows of scores, each another shape of trouble.
pub fn rows(m: usize) -> Vec<Vec<f32>> {
    let random = |seed: u32, j: usize| 2.0 * unit(philox4x32([j as u32, seed, 1, 2], [3, 4])[0]) - 1.0;
    let make = |f: &dyn Fn(usize) -> f32| (0..m).map(f).collect::<Vec<f32>>();
    vec![
        make(&|j| random(1, j)),
        make(&|_| 0.5),
        make(&|j| (j + 1) as f32),
        make(&|j| (m - j) as f32),
        make(&|_| -1.0),
        make(&|j| if j == m / 2 { 3.0 } else { -0.0 }),
        make(&|j| (j % 10) as f32),
        make(&|j| if j + 100 > m { 2.0 } else { 1.0 }),
        make(&|j| (1.0 + random(2, j).abs() * 1e-6).max(1.0)),
        make(&|j| if j < 2048 && j % 300 > 0 { -1.0 } else { random(5, j) }),
        make(&|j| if j < 4096 && j % 99 > 0 { -1.0 } else { random(6, j).abs() }),
        make(&|j| random(3, j) * 1e-40),
        make(&|j| f32::MAX * random(4, j)),
        make(&|j| 1.0 + ((j * 7919) % 13) as f32 * f32::EPSILON),
    ]
}

pub struct Selected {
    pub rows: Vec<Vec<(u32, f32)>>,
    pub bad: Vec<u32>,
}

/// Runs the kernel on `scores`, with `b_lat` added.
pub fn select(
    device: &mut dyn Device,
    element: Element,
    activation: Activation,
    scores: &[Vec<f32>],
    b_lat: &[f32],
    k: usize,
) -> Selected {
    let (n, m) = (scores.len(), b_lat.len());
    let spec = ModelSpec::plain(k).with(|spec| spec.forward.activation = activation);
    let precision = match element {
        Element::F32 => topk_sae::spec::Precision::F32,
        Element::Bf16 => topk_sae::spec::Precision::Bf16,
    };
    let sizes = Sizes::new(&spec, 2, m, true, precision, Dtype::F32).unwrap();
    let mut work = WorkBuffers::new(device, &sizes, n).unwrap();
    let mut shared = CarriedOver::new(device, m, 1).unwrap();
    let mut bias = Buffer::<f32>::zeros(device, m, "biases").unwrap();
    bias.write(device, b_lat).unwrap();
    // Places beyond M hold what would win, if it were looked at.
    let mut stored = vec![f32::MAX; n * sizes.score_pitch];
    for (to, from) in stored.chunks_exact_mut(sizes.score_pitch).zip(scores) {
        to[..m].copy_from_slice(from);
    }
    work.scores.write(device, &stored).unwrap();
    let plan = StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 0.0, l1: 0.0, noise: Noise::Philox { seed: 0 } };
    let params = StepParams::new(&spec, &plan, n, (2, &Shard::whole(m)), 0);
    device.write(work.message.memory(), 0, bytemuck::bytes_of(&params)).unwrap();
    let step = work.message.address();
    let batch = DeviceBatch { n, step, rows: 0, data: 0, slot: 0, given: 0 };
    launch::topk(device, &sizes, &batch, bias.address(), &mut shared, true, Phase::Hard, None, &mut work)
        .unwrap();
    let count = work.main.count.read(device, n).unwrap();
    let index = work.main.index.read(device, n * k).unwrap();
    let value = work.main.value.read(device, n * k).unwrap();
    let first = work.main.first.read(device, n).unwrap();
    let row = |r: usize| {
        (first[r] as usize..(first[r] + count[r]) as usize).map(|at| (index[at], value[at])).collect()
    };
    Selected { rows: (0..n).map(row).collect(), bad: work.bad.read(device, n).unwrap() }
}

/// What a full sort gives: positive ones among the k largest, by index.
fn sorted(scores: &[f32], k: usize) -> Vec<(u32, f32)> {
    let wide: Vec<f64> = scores.iter().map(|&v| f64::from(v)).collect();
    let mut all: Vec<(u32, f32)> = reference::top_k(&wide, k)
        .into_iter()
        .filter(|&j| scores[j] > 0.0)
        .map(|j| (j as u32, scores[j]))
        .collect();
    all.sort_unstable_by_key(|e| e.0);
    all
}

/// Fails where the kernel and the sort differ.
pub fn check(device: &mut dyn Device, element: Element, m: usize, k: usize) {
    let mut scores = rows(m);
    if element == Element::Bf16 {
        let round = |v: &mut f32| *v = half::bf16::from_f32(*v).to_f32();
        scores.iter_mut().flatten().for_each(round);
    }
    let scores: Vec<Vec<f32>> = scores
        .into_iter()
        .map(|row| row.into_iter().map(|v| if v.is_finite() { v } else { 1.0 }).collect())
        .collect();
    agrees(device, element, &scores, k);
}

fn agrees(device: &mut dyn Device, element: Element, scores: &[Vec<f32>], k: usize) {
    let m = scores[0].len();
    let got = select(device, element, Activation::Topk, scores, &vec![0.0; m], k);
    assert_eq!(got.bad, vec![0; scores.len()]);
    for (r, (got, row)) in got.rows.iter().zip(scores).enumerate() {
        assert_eq!(*got, sorted(row, k), "{element:?} M {m} k {k} row {r}");
    }
}

/// Rows of close scores, all of which reach the bound, so that the largest are selected before the last are looked at: one of
/// these is lost where any thread takes the least of those selected to be larger than it is.
pub fn check_selected_twice(device: &mut dyn Device) {
    let (n, m, k) = (256, 4096, 2);
    let steps = |row: u32, j: usize| philox4x32([j as u32, row, 7, 8], [9, 10])[0] % 30_000;
    let score = |row: u32, j: usize| 1.0 + steps(row, j) as f32 * f32::EPSILON;
    let scores: Vec<Vec<f32>> = (0..n).map(|row| (0..m).map(|j| score(row, j)).collect()).collect();
    agrees(device, Element::F32, &scores, k);
}

#[test]
fn a_score_just_above_those_selected_is_taken() {
    check_selected_twice(device(0).as_mut());
}

#[test]
fn selection_equals_a_full_sort_at_awkward_sizes() {
    // The sanitizers are slow: they see each element's kernel in other tests too.
    let elements: &[Element] =
        if sanitizer::inside() { &[Element::F32] } else { &[Element::F32, Element::Bf16] };
    for &element in elements {
        for m in [1, 2, 7, 31, 32, 33, 64, 127, 128, 129, 1000, 2047, 2048, 2049, 4101] {
            let mut ks = vec![1, 2, 31, 32, 33, 64, 255, 512, 1023, 1024, m];
            ks.retain(|&k| k <= m.min(1024));
            ks.sort_unstable();
            ks.dedup();
            for k in ks {
                check(device((m + k) as u64).as_mut(), element, m, k);
            }
        }
    }
}

#[test]
fn selection_equals_a_full_sort_on_long_rows() {
    for (m, k) in [(32_773, 1), (32_773, 64), (32_773, 1024), (131_072, 33), (131_072, 512)] {
        check(device(0).as_mut(), Element::F32, m, k);
    }
    check(device(0).as_mut(), Element::Bf16, 40_001, 65);
}

#[test]
fn scores_that_are_not_finite_are_told_row_by_row() {
    let m = 3000;
    let mut scores = vec![vec![0.25f32; m]; 5];
    for (row, bad) in [(1, f32::NAN), (2, f32::INFINITY), (4, f32::NEG_INFINITY)] {
        scores[row][2999 - row] = bad;
    }
    for element in [Element::F32, Element::Bf16] {
        let got = select(device(0).as_mut(), element, Activation::Topk, &scores, &vec![0.0; m], 8);
        assert_eq!(got.bad, [0, 1, 1, 0, 1]);
    }
}

#[test]
fn the_bias_is_added_before_anything_is_compared() {
    let m = 200;
    let scores = vec![vec![-1.0f32; m]; 3];
    let bias: Vec<f32> = (0..m).map(|j| if j % 50 == 7 { 1.5 } else { 0.5 }).collect();
    let got = select(device(0).as_mut(), Element::F32, Activation::Topk, &scores, &bias, 3);
    for row in got.rows {
        assert_eq!(row, [(7, 0.5), (57, 0.5), (107, 0.5)]);
    }
}

#[test]
fn codes_with_signs_agree() {
    for (i, case) in crate::case::signed().into_iter().enumerate() {
        case.agree_with(crate::engine::ours(i as u64), |_| ());
    }
}
