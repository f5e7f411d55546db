//! What the kernels move, as NVRTC makes them, beside what their work needs. `tools/kernel-tables.sh` puts the table that a
//! test prints into `kernels/TRAFFIC.md`.

use super::topk::{rows, select};
use crate::case::Case;
use crate::common::device::{emulator, nvrtc_only};
use cuda_on_cpu::ptx::Counts;
use std::collections::BTreeMap;
use topk_sae::backend::Backend;
use topk_sae::backend::cuda::device::Element;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::noise::{philox4x32, unit};
use topk_sae::rows::Dtype;
use topk_sae::spec::{Activation, Precision, Prefixes, Relaxation};

const N: usize = 64;
const D: usize = 512;
const M: usize = 4096;
const K: usize = 32;

/// An activation, and the number of prefixes.
pub type Kind = (Activation, usize);

/// What the kernels of one step of N rows, D values, M latents and k move.
pub fn step(
    [n, d, m, k]: [usize; 4],
    t: f64,
    precision: Precision,
    tied: bool,
    kind: Kind,
) -> BTreeMap<&'static str, Counts> {
    let mut case = Case::new(n, d, m, k);
    (case.tied, case.dtype, case.t) = (tied, Dtype::F16, t);
    case.spec.forward.activation = kind.0;
    case.spec.forward.inference = kind.0.inference();
    case.spec.objective.penalty = kind.0.penalty();
    if kind.0 != Activation::Topk {
        case.spec.warmup.relaxation = Relaxation::None;
    }
    if kind.1 > 0 {
        case.spec.forward.prefixes = Prefixes::of(m);
    }
    let (data, state) = case.start();
    let device = emulator(1);
    let moved = device.moved();
    let mut engine =
        Engine::new("device".into(), Box::new(device), data, case.spec.clone(), precision, &state).unwrap();
    moved.lock().unwrap().clear();
    engine.step(&case.rows(), &case.plan(0, &[])).unwrap();
    std::mem::take(&mut moved.lock().unwrap())
}

/// Bytes that a kernel's work needs where every value is read or written once from the nearest place that may hold
/// it, caches among them; `s` is the size of an operand.
fn needs(kernel: &str, s: usize, tied: bool, soft: bool, (activation, prefixes): Kind) -> Option<usize> {
    let (batch, scores, entries) = (N * D, N * M, N * K);
    let dense_code = matches!(activation, Activation::JumpRelu | Activation::Relu);
    let (soft, parts) = (soft || dense_code, prefixes.max(1));
    let matrices = if tied { 1 } else { 2 };
    let copy = if s == 2 { 2 } else { 0 };
    Some(match kernel.trim_end_matches("_bf16").trim_end_matches("_f32") {
        // Rows three times, b_pre and the operand.
        "gather_norm" => batch * (3 * 2 + 4 + s),
        // Scores and b_lat, and the entries.
        "topk_stream" => scores * (s + 4) + 8 * entries,
        // The eight scores of a thread and their biases lie in sectors of their own; those of the largest are read again.
        "topk_softmax" => scores * (s + 4) + (8 + 8 * 2 * 32) * entries,
        // Scores and b_lat, and of each run the largest.
        "batch_maxima" => scores * (s + 4) + scores / 32 * 4,
        // Scores, b_lat, thresholds, and flags where latents fire, as many do here.
        "above_count" => scores * (s + 12),
        "above_tile" => scores * (s + 8 + s),
        // dh is read; dz, the code and the thresholds' parts are written.
        "above_gradients" => scores * (s + 8 + 3 * s + 4),
        // Rows of W_dec once, since they are few enough; the row, b_pre, dy', and the dense part.
        "decode" if soft => entries * D * s + batch * (2 + 4 + s + 4),
        "decode" => entries * D * s + batch * (2 + 4 + s),
        // Rows of W_dec for dh once more. Without entries it is small beside the dense products.
        "decode_parts" if soft => return None,
        // Entries of a segment are multiplied four at a time, the last again where they do not come out even: one and a half
        // of them on average.
        "decode_parts" => {
            let again = if parts > 1 { 3 * N * parts / 2 } else { 0 };
            (2 * entries + again) * D * s + batch * parts * (2 + 4 + s)
        }
        "soft_weights" => scores * (s + 4 + s),
        // dh is read, and dz and the code are written.
        "soft_gradients" => scores * (s + 4 + 3 * s),
        name if name.starts_with("latent_update") => {
            let dense = if soft { matrices * M * D * 4 } else { 2 * entries * D * s };
            // Of a threshold, its moments and its gradient a sector each.
            let thresholds = if activation == Activation::JumpRelu { 7 * 32 * M } else { 0 };
            matrices * M * D * (24 + copy) + dense + thresholds
        }
        _ => return None,
    })
}

#[test]
fn kernels_move_what_their_work_needs_and_hardly_more() {
    if nvrtc_only("what kernels move") {
        return;
    }
    // On a line of its own, whatever the harness has printed.
    println!(
        "\n| step | kernel | needed, KB | moved, KB | moved/needed | instructions of warps | bank passes/fewest |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for (t, precision, tied, kind) in [
        (1.0, Precision::Bf16, true, (Activation::Topk, 0)),
        (1.0, Precision::F32, false, (Activation::Topk, 0)),
        (0.5, Precision::Bf16, true, (Activation::Topk, 0)),
        (0.5, Precision::F32, false, (Activation::Topk, 0)),
        (1.0, Precision::Bf16, true, (Activation::BatchTopk, 0)),
        (1.0, Precision::F32, false, (Activation::BatchTopk, 5)),
        (1.0, Precision::Bf16, true, (Activation::JumpRelu, 5)),
        (1.0, Precision::F32, false, (Activation::JumpRelu, 0)),
    ] {
        let mut seen = 0;
        for (kernel, c) in step([N, D, M, K], t, precision, tied, kind) {
            let size = if precision == Precision::Bf16 { 2 } else { 4 };
            let Some(needed) = needs(kernel, size, tied, t < 1.0, kind) else { continue };
            let moved = 32 * c.sectors as usize;
            let (ratio, conflicts) =
                (moved as f64 / needed as f64, c.passes as f64 / c.fewest_passes.max(1) as f64);
            let phase = match kind {
                (Activation::Topk, _) => if t < 1.0 { "softmax" } else { "hard" }.to_owned(),
                (activation, 0) => activation.to_string(),
                (activation, prefixes) => format!("{activation}, {prefixes} prefixes"),
            };
            let weights = if tied { "tied" } else { "untied" };
            let Counts { instructions, .. } = c;
            println!(
                "| {phase}, {precision}, {weights} | `{kernel}` | {} | {} | {ratio:.2} | {instructions} | {conflicts:.2} |",
                needed / 1000,
                moved / 1000
            );
            // What is beyond 1 are facts of the step, read again after stores: by all lanes at once, and from cache.
            assert!(ratio < 1.45, "{kernel}: {moved} bytes where {needed} are needed");
            assert!(conflicts < 1.3, "{kernel}: {conflicts} passes over shared memory for one");
            seen += 1;
        }
        let kernels = match kind.0 {
            Activation::JumpRelu => 5,
            _ if t < 1.0 => 6,
            _ => 4,
        };
        assert_eq!(seen, kernels);
    }
}

/// Rows whose scores lie as those of a linear map do; the sum of four uniform numbers is near enough.
fn likely_rows(m: usize) -> Vec<Vec<f32>> {
    let part = |i: u32, j: usize, row: u32| unit(philox4x32([j as u32, row, i, 7], [1, 2])[0]) - 0.5;
    (0..4).map(|row| (0..m).map(|j| (0..4).map(|i| part(i, j, row)).sum()).collect()).collect()
}

/// The number of rows, and what their selection moves.
pub fn selected(element: Element, m: usize, k: usize) -> (u64, Counts) {
    let name = match element {
        Element::Bf16 => "topk_stream_bf16",
        Element::F32 => "topk_stream_f32",
    };
    let mut device = emulator(m as u64);
    let moved = device.moved();
    let scores = likely_rows(m);
    select(&mut device, element, Activation::Topk, &scores, &vec![0.0; m], k);
    let c = moved.lock().unwrap()[name];
    (scores.len() as u64, c)
}

/// Scores and biases once, and once more those of the slots with the largest; beside them the list, an entry at a time, and
/// what is read once a row.
#[test]
fn selection_reads_hardly_more_than_its_scores() {
    if nvrtc_only("what kernels move") {
        return;
    }
    println!("\n| selection of a row | instructions of warps | per score of a warp | moved/read once |");
    println!("| --- | ---: | ---: | ---: |");
    for (element, m, k) in [
        (Element::Bf16, 2048, 32),
        (Element::Bf16, 4096, 32),
        (Element::Bf16, 16_384, 64),
        (Element::Bf16, 16_384, 256),
        (Element::Bf16, 131_072, 128),
        (Element::F32, 4096, 512),
        (Element::F32, 131_072, 128),
    ] {
        let size = element.size();
        let (rows, c) = selected(element, m, k);
        let once = m * (size + 4);
        let (instructions, bytes) = (c.instructions / rows, 32 * c.sectors / rows);
        println!(
            "| {element:?}, M {m}, k {k} | {instructions} | {:.1} | {:.2} |",
            32.0 * instructions as f64 / m as f64,
            bytes as f64 / once as f64
        );
        // Two packs of scores and of biases of each of its chunks, for a few slots more than k.
        let slot = m.div_ceil(2048).div_ceil(4) * 4 * 32;
        let allowed = once + once / 20 + 2 * 32 * k + 4096 + (k + k / 4) * slot;
        assert!(bytes < allowed as u64, "{element:?} M {m} k {k}: {bytes} bytes, {allowed} allowed");
    }
}

/// Rows in which nearly all scores are among the largest at some time.
#[test]
fn awkward_rows_cost_a_bounded_amount_more() {
    if nvrtc_only("what kernels move") {
        return;
    }
    for (m, k) in [(2048, 32), (4096, 512), (40_961, 64)] {
        let mut device = emulator(m as u64);
        let moved = device.moved();
        let scores = rows(m);
        select(&mut device, Element::F32, Activation::Topk, &scores, &vec![0.0; m], k);
        let c = moved.lock().unwrap()["topk_stream_f32"];
        let once = (scores.len() * m * 8) as u64;
        assert!(32 * c.sectors < 3 * once, "M {m} k {k}: {} bytes, {once} read once", 32 * c.sectors);
    }
}
