//! Lists of latents that fire on many rows, which are cut into runs: the engine beside the reference, and what such lists cost.

use crate::case::Case;
use crate::common::device::{self, emulator, nvrtc_only};
use crate::common::random_params;
use crate::engine::ours;
use cuda_on_cpu::ptx::Counts;
use cuda_on_cpu::sanitizer;
use std::collections::{BTreeMap, BTreeSet};
use topk_sae::backend::StepPlan;
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::launch::{self, CarriedOver, DeviceBatch, Unit, Update};
use topk_sae::backend::cuda::params::StepParams;
use topk_sae::backend::cuda::ranks::Shard;
use topk_sae::backend::cuda::tensors::Tensors;
use topk_sae::backend::cuda::work::{Sizes, WorkBuffers};
use topk_sae::model::TrainState;
use topk_sae::noise::{Noise, philox4x32};
use topk_sae::rows::Dtype;
use topk_sae::spec::{Activation, ModelSpec, Precision, Prefixes, Relaxation};

/// 300 rows on which some latents nearly always fire and some often; the others share what is left.
fn uneven(m: usize, k: usize) -> Case {
    let mut case = Case::new(300, 9, m, k);
    case.steps = 1;
    case.edit = |params, _| {
        for (j, up) in [(1, 9.0), (2, 1.0), (20, 7.0), (30, 0.5), (39, 8.0)] {
            params.b_lat[j] = up;
        }
    };
    case
}

#[test]
fn long_lists_agree_with_the_reference() {
    // Hundreds of rows: once is enough where each takes long.
    if sanitizer::inside() {
        return;
    }
    let prefixes = Prefixes::new(&[2, 21, 40]).unwrap();
    let mut cases = vec![];
    for tied in [true, false] {
        let mut case = uneven(40, 4);
        case.tied = tied;
        cases.push(case.clone());
        case.spec.forward.prefixes = prefixes;
        cases.push(case);
    }
    // Gradients are kept, and rows of the decoder at length 1.
    let mut case = uneven(40, 4);
    (case.spec.optimizer.clip_norm, case.spec.optimizer.unit_norm_decoder) = (Some(1e-2), true);
    cases.push(case);
    // Ten latents are dead, and each row has four of them; in the dense warm-up there are no other lists.
    for t in [1.0, 0.5] {
        let mut case = uneven(40, 4);
        (case.spec.objective.aux_k, case.dead_every, case.t) = (4, Some(4), t);
        cases.push(case);
    }
    let mut case = uneven(40, 4);
    (case.spec.warmup.relaxation, case.spec.warmup.pool, case.t) = (Relaxation::Lapsum, 16, 0.4);
    cases.push(case);
    let mut case = uneven(40, 4);
    (case.spec.forward.activation, case.spec.forward.inference) =
        (Activation::BatchTopk, Activation::BatchTopk.inference());
    (case.spec.forward.prefixes, case.spec.warmup.relaxation) = (prefixes, Relaxation::None);
    cases.push(case);
    for (i, case) in cases.into_iter().enumerate() {
        case.agree_with(ours(i as u64), |_| ());
    }
}

/// What the kernels that work on lists by latent move in a step, of rows with these latents.
fn moved(
    rows: &[Vec<u32>],
    m: usize,
    d: usize,
    precision: Precision,
    tied: bool,
) -> BTreeMap<&'static str, Counts> {
    let (n, k) = (rows.len(), rows.iter().map(Vec::len).max().unwrap_or(1));
    let spec = ModelSpec::plain(k);
    let s = Sizes::new(&spec, d, m, tied, precision, Dtype::F32).unwrap();
    let mut device = emulator(1);
    let counts = device.moved();
    let device: &mut dyn Device = &mut device;
    let mut work = WorkBuffers::new(device, &s, n).unwrap();
    let mut index = vec![0; n * k];
    for (row, latents) in rows.iter().enumerate() {
        index[row * k..row * k + latents.len()].copy_from_slice(latents);
    }
    let first: Vec<u32> = (0..n).map(|row| (row * k) as u32).collect();
    let count: Vec<u32> = rows.iter().map(|latents| latents.len() as u32).collect();
    work.main.index.write(device, &index).unwrap();
    work.main.first.write(device, &first).unwrap();
    work.main.count.write(device, &count).unwrap();
    let state = TrainState::start(random_params(d, m, tied, 3), false);
    let tensors = Tensors::load(device, &state, s.element).unwrap();
    let carried = CarriedOver::new(device, m, 1).unwrap();
    let plan =
        StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 1e-3, l1: 0.0, noise: Noise::Philox { seed: 0 } };
    let params = StepParams::new(&spec, &plan, n, (d, &Shard::whole(m)), 0);
    work.message.write(device, &[bytemuck::bytes_of(&params), &vec![0; 4 * n]].concat()).unwrap();
    let batch = DeviceBatch { n, step: work.message.address(), rows: 0, data: 0, slot: 0, given: 0 };
    let WorkBuffers { main, totals, cursor, unordered, .. } = &mut work;
    launch::index(device, &s, n, main, totals, cursor, unordered).unwrap();
    launch::list_runs(device, &s, &batch, &work.main, (&work.grad_recon, 1), &carried, &work).unwrap();
    let up = Update {
        latents: (0, m),
        main: Some(&work.main),
        aux: None,
        dense: None,
        kept: None,
        unit: Unit::Both,
        partial: true,
    };
    launch::latent_update(device, &s, &batch, &tensors.view, &carried, &work, &up).unwrap();
    std::mem::take(&mut *counts.lock().unwrap())
}

/// `n` rows of `k` latents each. `uneven` in 100 rows have latent 7, a fifth of that latent 11 and a tenth latent 2: about
/// what a model of embeddings of sentences has (100, 22 and 11 %).
fn rows(n: usize, m: usize, k: usize, uneven: u32) -> Vec<Vec<u32>> {
    let row = |row: usize| {
        let draw = |i: u32| philox4x32([row as u32, i, 5, 5], [1, 1])[0];
        let often = [(7, 1), (11, 5), (2, 10)].into_iter();
        let often = often.filter(|&(j, part)| draw(1000 + j) % (100 * part) < uneven).map(|(j, _)| j);
        let mut latents: BTreeSet<u32> = often.collect();
        let mut i = 0;
        while latents.len() < k {
            latents.insert(draw(i) % m as u32);
            i += 1;
        }
        latents.into_iter().collect()
    };
    (0..n).map(row).collect()
}

/// Prints a line a kernel of even and of uneven lists; returns instructions of all, and of the longest block of
/// `latent_update` over their mean.
fn told(name: &str, rows: &[Vec<u32>], m: usize, d: usize, precision: Precision, tied: bool) -> (u64, f64) {
    let weights = if tied { "tied" } else { "untied" };
    let mut all = 0;
    let mut longest = 0.0;
    for (kernel, c) in moved(rows, m, d, precision, tied) {
        all += c.instructions;
        let mean = c.instructions as f64 / c.blocks as f64;
        if kernel.starts_with("latent_update") {
            longest = c.longest as f64 / mean;
        }
        let Counts { instructions, sectors, blocks, longest, .. } = c;
        println!(
            "| {name}, {precision}, {weights} | `{kernel}` | {instructions} | {sectors} | {blocks} | {longest} | {mean:.0} |"
        );
    }
    (all, longest)
}

#[test]
fn a_latent_of_every_row_costs_hardly_more_than_an_even_one() {
    if nvrtc_only("what kernels move") {
        return;
    }
    println!("\n| lists | kernel | instructions of warps | sectors | blocks | longest block | mean block |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    let (n, m, d, k) = (1024, 8192, 64, 64);
    // Lists of three times the mean at equal distances: none is long, and there are as many blocks as latents between.
    let mut in_step = rows(n, m, k, 0);
    for (row, latents) in in_step.iter_mut().enumerate() {
        let often = (5 + 1024 * (row % 8)) as u32;
        if row % 40 < 8 && !latents.contains(&often) {
            latents[k - 1] = often;
            latents.sort_unstable();
        }
    }
    let mut results = vec![];
    for (precision, tied) in [(Precision::Bf16, true), (Precision::F32, false)] {
        let lists =
            [("even", &rows(n, m, k, 0)), ("uneven", &rows(n, m, k, 100)), ("long in step", &in_step)];
        let [(even, _), uneven @ ..] = lists.map(|(name, rows)| told(name, rows, m, d, precision, tied));
        results.extend(uneven.map(|(all, longest)| (all as f64 / even as f64, longest)));
    }
    for (ratio, longest) in results {
        println!("uneven / even {ratio:.3}, longest block of latent_update {longest:.2} of the mean");
        assert!(ratio < 1.15, "{ratio}");
        assert!(longest < 1.5, "{longest}");
    }
}

/// `SAE_LISTS` names a file of `sae encode`; N of its rows and D are in `SAE_LISTS_ROWS` and `SAE_LISTS_INPUTS`.
#[test]
fn counts_given_lists_if_asked() {
    let Some(path) = std::env::var_os("SAE_LISTS") else { return };
    assert!(device::of_nvrtc(), "with SAE_TEST_DEVICE=ptx");
    let number = |name: &str| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let (n, d) = (number("SAE_LISTS_ROWS"), number("SAE_LISTS_INPUTS"));
    let file = hdf5::File::open(path).unwrap();
    let indices = file.dataset("indices").unwrap().read_2d::<u32>().unwrap();
    let m = file.attr("width").unwrap().read_scalar::<u64>().unwrap() as usize;
    // Rows from all over the file.
    let step = indices.nrows() / n;
    let rows: Vec<Vec<u32>> = (0..n).map(|row| indices.row(row * step).to_vec()).collect();
    for (precision, tied) in [(Precision::Bf16, true), (Precision::Bf16, false)] {
        let (all, longest) = told("given", &rows, m, d, precision, tied);
        println!("{all} instructions; longest block {longest:.2} of the mean");
    }
}
