//! Latents shared out over ranks, which are threads with an emulated device each, beside the reference and beside one device.

use crate::case::{self, Case};
use crate::common::device::device_for;
use crate::common::emulator::Emulator;
use crate::common::{device, embeddings, values};
use crate::engine::{crowded, ours};
use crate::kinds;
use crate::thread_ranks::{ThreadRank, Together};
use cuda_on_cpu::sanitizer;
use std::sync::{Arc, Mutex};
use topk_sae::backend::cuda;
use topk_sae::backend::cuda::cost::{Cluster, F32, Sent, Shape};
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::cuda::nccl::Nccl;
use topk_sae::backend::cuda::ranks::{GROUP, Ranks, Shard};
use topk_sae::backend::{Backend, Look, StepPlan};
use topk_sae::data::Embeddings;
use topk_sae::error::Result;
use topk_sae::model::{TrainState, Weights};
use topk_sae::noise::Noise;
use topk_sae::peers::{Launcher, Peers, Place, Timing};
use topk_sae::rows::{Dtype, RowSource};
use topk_sae::spec::{Activation, ModelSpec, Penalty, Precision, Prefixes, Relaxation};

/// So many ranks as one backend in float32, with `edit` on each.
fn spoiled(
    count: usize,
    seed: u64,
    edit: impl Fn(&mut ThreadRank),
) -> impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> Together {
    move |data, spec, state| {
        let devices = (0..count).map(|rank| device::device(seed + rank as u64)).collect();
        Together::new(devices, &data, &spec, Precision::F32, &state, edit).unwrap()
    }
}

fn together(count: usize, seed: u64) -> impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> Together {
    spoiled(count, seed, |_| {})
}

/// As many of 2, 3 and 8 ranks as these latents are enough for, in turn.
fn ranks_for(m: usize, turn: usize) -> Option<usize> {
    let most = m.div_ceil(GROUP);
    let counts: Vec<usize> = [2, 3, 8].into_iter().filter(|&count| count <= most).collect();
    counts.get(turn % counts.len().max(1)).copied()
}

fn agree(cases: impl IntoIterator<Item = Case>) {
    let mut compared = 0;
    for case in cases {
        // The sanitizers are slow, and have seen the kernels of one device elsewhere.
        let Some(count) = ranks_for(case.m, compared).filter(|_| !sanitizer::inside() || compared < 2) else {
            continue;
        };
        println!("{count} ranks: {}", case.name());
        case.agree_with(together(count, compared as u64), |_| ());
        compared += 1;
    }
    assert!(compared >= 2, "{compared}");
}

/// Cases of a top k by row: sizes, phases and options take turns.
fn plain() -> Vec<Case> {
    let mut cases = vec![];
    for t in [1.0, 0.0, 0.7] {
        for (m, k) in [(257, 5), (300, 32), (1000, 33), (1025, 7)] {
            for tied in [false, true] {
                let i = cases.len();
                let mut case = Case::new([1, 15, 17, 33][i % 4], [2, 31, 33, 100][i / 3 % 4], m, k);
                (case.t, case.tied, case.philox) = (t, tied, i % 3 > 0);
                case.spec.forward.normalize = i % 5 > 0;
                match i % 7 {
                    0 => case.l1 = 0.4,
                    1 => (case.spec.objective.aux_k, case.dead_every) = (3, Some(4)),
                    2 => case.spec.optimizer.unit_norm_decoder = true,
                    3 => case.spec.optimizer.clip_norm = Some(1e-3),
                    4 => (case.spec.objective.aux_k, case.dead_every) = (200, Some(3)),
                    5 => case.spec.optimizer.ema = Some(0.99),
                    _ => {
                        case.spec.optimizer.train_pre_bias = false;
                        (case.spec.objective.loss_scale, case.spec.optimizer.weight_decay) = (20.0, 0.5);
                    }
                }
                cases.push(case);
            }
        }
    }
    cases
}

#[test]
fn ranks_agree_with_the_reference_in_every_phase_and_with_options() {
    agree(plain());
}

#[test]
fn ranks_agree_on_signed_codes_and_over_candidates() {
    agree(case::signed());
    agree(case::over_candidates(&[1.0, 0.5]));
}

/// What has no places per row: each activation, its penalties, prefixes of which some end inside a rank's latents.
fn unplaced() -> Vec<Case> {
    let mut cases: Vec<Case> =
        kinds::UNPLACED.into_iter().flat_map(|kind| case::unplaced(kind).into_iter().skip(12)).collect();
    for prefixes in [&[1, 128, 129, 400][..], &[130, 400]] {
        for activation in [Activation::Topk, Activation::BatchTopk, Activation::Relu, Activation::JumpRelu] {
            let mut case = Case::new(17, 31, 400, 6);
            case.spec.forward.prefixes = Prefixes::new(prefixes).unwrap();
            (case.spec.forward.activation, case.spec.forward.inference) =
                (activation, activation.inference());
            case.spec.warmup.relaxation = Relaxation::None;
            case.spec.objective.penalty = match activation {
                Activation::Relu => Penalty::L1,
                Activation::JumpRelu => Penalty::L0Target,
                _ => Penalty::MeanCode,
            };
            (case.l1, case.spec.optimizer.clip_norm) = (0.1, Some(1e-2));
            // Where segments begin, in all rows.
            case.edit = |params, _| [1, 128, 129, 130].iter().for_each(|&j| params.b_lat[j] += 3.0);
            cases.push(case);
        }
    }
    let mut annealed = Case::new(17, 33, 257, 5);
    annealed.spec.forward.activation = Activation::BatchTopk;
    annealed.spec.forward.inference = Activation::BatchTopk.inference();
    (annealed.t, annealed.spec.warmup.relaxation, annealed.spec.warmup.pool) = (0.5, Relaxation::AnnealK, 40);
    cases.push(annealed);
    cases
}

#[test]
fn ranks_agree_where_rows_have_no_places_and_with_prefixes() {
    agree(unplaced());
}

/// Exact ties in twins of latents that different ranks have: the lowest latents of a row, or of a batch, are taken.
fn ties_between_ranks(activation: Activation) -> Case {
    let mut case = Case { m: 280, ..case::with_ties() };
    (case.spec.forward.activation, case.spec.forward.inference) = (activation, activation.inference());
    if activation == Activation::BatchTopk {
        case.spec.warmup.relaxation = Relaxation::None;
    }
    case
}

#[test]
fn ties_between_ranks_go_to_the_lowest_row_and_latent() {
    for activation in [Activation::Topk, Activation::BatchTopk] {
        for count in [2, 3] {
            ties_between_ranks(activation).agree_with(together(count, 0), |_| ());
        }
    }
    let mut few = Case::new(9, 7, 400, 60);
    few.edit = |params, _| params.b_lat.iter_mut().for_each(|b| *b -= 1.0);
    few.agree_with(together(3, 1), |_| ());
    let crowd = Case { m: 300, ..crowded(false) };
    crowd.agree_with(together(2, 1), |_| ());
}

/// Cases in which defects planted into what ranks do show.
pub fn telling() -> Vec<Case> {
    let mut cases = vec![];
    for (t, relaxation) in [(0.5, Relaxation::Lapsum), (0.7, Relaxation::Softmax), (0.5, Relaxation::AnnealK)]
    {
        let mut case = Case::new(17, 31, 300, 5);
        (case.t, case.spec.warmup.relaxation, case.spec.warmup.pool) = (t, relaxation, 24);
        (case.spec.objective.aux_k, case.dead_every, case.l1) = (3, Some(4), 0.4);
        cases.push(case);
    }
    cases.extend([Activation::Topk, Activation::BatchTopk].map(ties_between_ranks));
    let mut ties = ties_between_ranks(Activation::Topk);
    (ties.t, ties.philox) = (0.5, true);
    cases.push(ties.clone());
    // Forty twins each: the cut falls among those of the second largest score.
    (ties.t, ties.spec.forward.k) = (1.0, 50);
    cases.push(ties);
    cases.extend(case::signed().into_iter().skip(6).take(1));
    cases.push(case::signed_with_prefixes());
    for activation in [Activation::Topk, Activation::JumpRelu, Activation::BatchTopk] {
        let prefixed = |case: &Case| {
            case.spec.forward.activation == activation && !case.spec.forward.prefixes.is_empty()
        };
        cases.extend(unplaced().into_iter().rfind(prefixed));
    }
    cases
}

/// Fails where ranks on these devices differ from the reference in steps or, of a top k by row, in an evaluation.
pub fn agrees(case: &Case, devices: Vec<Box<dyn Device>>) {
    let make = |data: Arc<Embeddings>, spec: ModelSpec, state: TrainState| {
        Together::new(devices, &data, &spec, Precision::F32, &state, |_| {}).unwrap()
    };
    if case.spec.forward.prefixes.is_empty() || case.spec.forward.activation != Activation::Topk {
        return case.clone().agree_with(make, |_| ());
    }
    let mut case = case.clone();
    (case.n, case.spec.optimizer.ema) = (40, Some(0.9));
    kinds::evaluation_agrees(&case, false, make);
}

#[test]
fn evaluations_and_calibration_of_ranks_agree_with_the_reference() {
    for (i, case) in kinds::evaluated().into_iter().enumerate() {
        if !sanitizer::inside() || i % 4 == 2 {
            let n = if sanitizer::inside() { 40 } else { 300 };
            let mut case = Case { m: 390, n, ..case };
            if !case.spec.forward.prefixes.is_empty() {
                case.spec.forward.prefixes = Prefixes::new(&[1, 40, 41, 390]).unwrap();
            }
            kinds::evaluation_agrees(&case, false, together(2 + i % 2, i as u64));
        }
    }
}

/// 512 rows of 24 values: three of 60 directions each, and some noise.
fn clusters() -> Arc<Embeddings> {
    let (d, directions) = (24, values(60 * 24, 40));
    let of_row = |n: usize| {
        let noise = values(d, 1000 + n as u32);
        let chosen = values(3, 5000 + n as u32);
        let mut row: Vec<f32> = noise.iter().map(|v| 0.05 * v).collect();
        for (i, choice) in chosen.into_iter().enumerate() {
            let which = (30.0 * (choice + 1.0)) as usize % 60;
            row.iter_mut().zip(&directions[which * d..]).for_each(|(x, w)| *x += (1.0 + i as f32 * 0.3) * w);
        }
        row
    };
    embeddings(d, (0..512).flat_map(of_row).collect())
}

/// What a run of 200 steps leaves: losses and the state.
fn trained(backend: &mut dyn Look, n_rows: usize, soft: u64) -> (Vec<f64>, TrainState) {
    let losses = crate::learning::losses(backend, n_rows, soft, 12);
    (losses, backend.state().unwrap().into_owned())
}

#[test]
fn two_hundred_steps_of_ranks_follow_those_of_one_device() {
    if sanitizer::inside() || device::of_nvrtc() {
        return; // Nothing new to them, and slow there.
    }
    let data = clusters();
    let mut done = vec![];
    for (kind, count, m) in [
        (Relaxation::None, 2, 257),
        (Relaxation::None, 8, 1000),
        (Relaxation::Softmax, 2, 300),
        (Relaxation::Lapsum, 3, 300),
    ] {
        let spec = ModelSpec::plain(8).with(|spec| {
            (spec.warmup.relaxation, spec.warmup.pool) = (kind, 24);
            (spec.objective.aux_k, spec.objective.dead_after) = (16, 2000);
            spec.optimizer.clip_norm = Some(1.0);
        });
        let start = topk_sae::model::Params::init(data.d_in(), m, false, &topk_sae::spec::Init::Linear, 1);
        let state = TrainState::start(start, false);
        let soft = if kind == Relaxation::None { 0 } else { 66 };
        let run = |backend: &mut dyn Look| trained(backend, data.n_rows(), soft);
        let one = run(&mut ours(0)(data.clone(), spec.clone(), state.clone()));
        let all = run(&mut together(count, 0)(data.clone(), spec.clone(), state.clone()));
        if count == 3 {
            let again = run(&mut together(count, 7)(data.clone(), spec.clone(), state.clone()));
            let bits = |losses: &[f64]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<u64>>();
            assert!(bits(&all.0) == bits(&again.0) && all.1 == again.1, "{kind:?}: not the same bits twice");
        }
        let off = all.0.iter().zip(&one.0).map(|(got, want)| (got / want - 1.0).abs());
        let worst = off.fold(0.0, f64::max);
        let fired = all.1.idle_rows.iter().zip(&one.1.idle_rows).filter(|(got, want)| got != want).count();
        println!("{kind:?}, {count} ranks, M {m}: loss within {worst:.1e}, {fired} idle counts differ");
        assert!(one.0[199] < 0.7 * one.0[0], "nothing was learned");
        done.push((kind, worst, fired));
    }
    for (kind, worst, fired) in done {
        assert!(worst < 1e-5 && fired == 0, "{kind:?}: {worst:.1e}, {fired} idle counts");
    }
}

/// Rows of which three are a block, as if they lay in files; keeps which rows were asked for.
struct InBlocks {
    rows: Arc<Embeddings>,
    asked: Mutex<Vec<u32>>,
}

impl InBlocks {
    fn new(rows: &Arc<Embeddings>) -> Arc<Self> {
        Arc::new(Self { rows: rows.clone(), asked: Mutex::default() })
    }
}

impl RowSource for InBlocks {
    fn n_rows(&self) -> usize {
        self.rows.n_rows()
    }

    fn d_in(&self) -> usize {
        self.rows.d_in()
    }

    fn dtype(&self) -> Dtype {
        self.rows.dtype()
    }

    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()> {
        self.rows.read(rows, out)
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.asked.lock().unwrap().push(row);
        self.rows.read_stored(row, out)
    }

    fn window(&self) -> Option<usize> {
        Some(6)
    }

    fn block_of(&self, row: u32) -> u32 {
        row / 3
    }
}

#[test]
fn rows_that_ranks_bring_each_other_give_the_bits_of_rows_that_each_has() {
    for (i, dtype) in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64].into_iter().enumerate() {
        // Rows of whole words, or not; a few rows more than a block of buffers.
        let mut case = Case::new(19, [33, 32][i % 2], 400, 5);
        (case.dtype, case.spec.optimizer.ema) = (dtype, Some(0.9));
        let (data, state) = case.start();
        let little = || (0..3).map(|rank| device_for(Precision::F32, rank, Some(1))).collect();
        let train = |mut ranks: Together| {
            for step in 0..3u64 {
                let rows: Vec<u32> =
                    (0..[7, 9, 6][step as usize]).map(|i| (5 * i + step as u32) % 19).collect();
                ranks.step(&rows, &case.plan(step, &[])).unwrap();
            }
            let mut fired = vec![0; 400];
            let sums = ranks.evaluate(&case.rows(), Weights::Averaged, &mut fired).unwrap();
            (ranks.state().unwrap().into_owned(), sums, fired)
        };
        let whole = Together::new(little(), &data, &case.spec, Precision::F32, &state, |_| {}).unwrap();
        let blocks = InBlocks::new(&data);
        let parts = Together::new(little(), &blocks, &case.spec, Precision::F32, &state, |_| {}).unwrap();
        assert_eq!(train(parts), train(whole), "{dtype}");
        // 22 rows of steps and 19 of the evaluation: each was asked for once, by one of three ranks.
        assert_eq!(blocks.asked.lock().unwrap().len(), 41, "{dtype}");
        // A rank that does not take what others bring: after two sums of the start, the first of the first step.
        let forgets = |rank: &mut ThreadRank| rank.forgets = (rank.rank() == 1).then_some(2);
        let spoiled = Together::new(little(), &blocks, &case.spec, Precision::F32, &state, forgets).unwrap();
        let trained = std::panic::AssertUnwindSafe(|| train(spoiled));
        assert!(std::panic::catch_unwind(trained).is_err(), "{dtype}: not found");
    }
}

/// Losses of steps, and the weights after them.
fn steps(backend: &mut dyn Look, case: &Case, count: u64) -> (Vec<f64>, TrainState) {
    (0..count).for_each(|step| backend.step(&case.rows(), &case.plan(step, &[])).unwrap());
    let losses = backend.collect().unwrap().iter().map(|stats| stats.loss).collect();
    (losses, backend.state().unwrap().into_owned())
}

#[test]
fn a_rank_that_is_alone_and_exchanges_with_itself_gives_what_no_ranks_do() {
    let mut cases = telling();
    cases.push(Case::new(17, 31, 300, 5));
    for mut case in cases {
        case.spec.optimizer.clip_norm = Some(1e-2);
        let (data, state) = case.start();
        let plain = steps(&mut ours(0)(data.clone(), case.spec.clone(), state.clone()), &case, 3);
        let alone = steps(&mut together(1, 0)(data, case.spec.clone(), state), &case, 3);
        for (got, want) in alone.0.iter().zip(&plain.0) {
            // Sums of a code are added up in another order.
            assert!((got / want - 1.0).abs() < 1e-6, "{}: {got} {want}", case.name());
        }
    }
}

/// The same on a card, through NCCL itself; says how long steps take either way.
#[test]
fn one_rank_through_nccl_gives_what_no_ranks_do() {
    if !device::on_card() {
        return eprintln!("NOT HERE: one rank through NCCL, which `tests/ranks.rs` has on a stand-in");
    }
    let (d, m, n) = (1024, 16_384, 4096);
    let mut case = Case::new(n, d, m, 64);
    case.spec.forward.normalize = true;
    let (data, state) = case.start();
    let mut plain = ours(0)(data.clone(), case.spec.clone(), state.clone());
    let folder = tempfile::tempdir().unwrap();
    let (launcher, master) = (Launcher::Torchrun, None);
    let place = Place { rank: 0, count: 1, local_rank: 0, local_count: 1, launcher, master };
    let address = folder.path().join("ranks.json");
    let peers = Peers::join(place, &address, "", Timing::default(), Box::new(|_| None)).unwrap();
    let mut device = device::device(1);
    let nccl = match Nccl::join(Arc::new(peers), device.as_mut()) {
        Ok(nccl) => Box::new(nccl),
        Err(error) => return eprintln!("NOT HERE: {error}"),
    };
    let (name, spec, precision) = ("a rank".into(), case.spec.clone(), Precision::F32);
    let mut rank = Engine::of_rank(name, device, data, spec, precision, &state, m, nccl).unwrap();
    let (want, got) = (steps(&mut plain, &case, 5), steps(&mut rank, &case, 5));
    println!("one rank through NCCL: the same bits: {}", want == got);
    assert!(got.0.iter().zip(&want.0).all(|(got, want)| (got / want - 1.0).abs() < 1e-6), "{got:?} {want:?}");
    let seconds = |backend: &mut dyn Look| {
        let began = std::time::Instant::now();
        steps(backend, &case, 100);
        began.elapsed().as_secs_f64()
    };
    let times = [(); 3].map(|()| seconds(&mut rank) / seconds(&mut plain));
    println!(
        "one rank through NCCL: time of 100 steps and of reading the state, as parts of the plain: {times:?}"
    );
}

#[test]
fn ranks_of_which_one_has_no_room_for_the_rows_all_bring_them() {
    let case = Case::new(19, 8, 400, 5);
    let (data, state) = case.start();
    let blocks = InBlocks::new(&data);
    let devices = [None, Some(1), None].map(|free| device_for(Precision::F32, 0, free)).into();
    let mut all = Together::new(devices, &blocks, &case.spec, Precision::F32, &state, |_| {}).unwrap();
    all.step(&case.rows(), &case.plan(0, &[])).unwrap();
    assert!(all.collect().unwrap()[0].loss.is_finite());
    assert_eq!(blocks.asked.lock().unwrap().len(), 19);
}

#[test]
fn ranks_send_in_a_step_what_the_model_on_paper_says() {
    let (n, d, m, k) = (17, 31, 700, 5);
    for (count, aux_k, clip, in_files) in [(2, 0, false, false), (3, 9, true, true), (5, 9, false, false)] {
        let mut case = Case::new(n, d, m, k);
        case.dead_every = Some(3);
        let (data, state) = case.start();
        let spec = ModelSpec::plain(k).with(|spec| {
            (spec.objective.aux_k, spec.optimizer.clip_norm) = (aux_k, clip.then_some(1.0));
        });
        let brought = Arc::<Mutex<(u64, u64)>>::default();
        let watch = |rank: &mut ThreadRank| {
            if rank.rank() == 0 {
                rank.brought = brought.clone();
            }
        };
        let mut backend = if in_files {
            let devices = (0..count as u64).map(|rank| device_for(Precision::F32, rank, Some(1))).collect();
            Together::new(devices, &InBlocks::new(&data), &spec, Precision::F32, &state, watch).unwrap()
        } else {
            spoiled(count, 0, watch)(data, spec, state)
        };
        // What it took to start is no part of a step.
        *brought.lock().unwrap() = (0, 0);
        let rows: Vec<u32> = (0..n as u32).collect();
        let plan =
            StepPlan { step: 0, alpha: 1.0, tau: 1.0, lr: 1e-3, l1: 0.0, noise: Noise::Philox { seed: 1 } };
        backend.step(&rows, &plan).unwrap();
        backend.collect().unwrap();
        let (summed, gathered) = *brought.lock().unwrap();
        let (tied, average, bytes, flops) = (case.tied, false, 4, F32);
        let row_bytes = if in_files { 4 * d } else { 0 };
        let (d_in, n_latents, rows) = (d, m, n);
        let shape = Shape { d_in, n_latents, rows, k, aux_k, tied, average, clip, bytes, flops, row_bytes };
        let cluster = Cluster { ranks: count, per_node: 8 };
        let sent = Sent::of(&shape, &cluster);
        let got =
            [cluster.all_reduced(summed as f64), cluster.all_gathered((count as u64 * gathered) as f64)];
        let want = [sent.reconstructions + sent.sums + sent.rows, sent.candidates];
        println!("{count} ranks, aux-k {aux_k}, clipping {clip}: {got:?} bytes sent, {want:?} on paper");
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1.0), "{got:?} {want:?}");
    }
}

#[test]
fn a_rank_takes_the_memory_that_is_told_beforehand() {
    if device::emulation_only("memory of an emulated device") {
        return;
    }
    for (count, tied, precision, relaxation) in [
        (2, false, Precision::F32, Relaxation::Softmax),
        (3, true, Precision::Bf16, Relaxation::Lapsum),
        (5, false, Precision::F32, Relaxation::None),
    ] {
        let mut case = Case::new(300, 64, 3000, 16);
        (case.t, case.tied, case.spec.warmup.relaxation) = (0.5, tied, relaxation);
        (case.spec.objective.aux_k, case.spec.optimizer.ema, case.spec.optimizer.clip_norm) =
            (8, Some(0.9), Some(1.0));
        let (data, state) = case.start();
        let emulators: Vec<Emulator> = (0..count).map(|_| Emulator::new()).collect();
        let live: Vec<_> = emulators.iter().map(|emulator| emulator.live()).collect();
        let devices = emulators.into_iter().map(|emulator| Box::new(emulator) as Box<dyn Device>).collect();
        let mut all = Together::new(devices, &data, &case.spec, precision, &state, |_| {}).unwrap();
        all.step(&case.rows(), &case.plan(0, &[])).unwrap();
        all.evaluate(&case.rows(), Weights::Averaged, &mut vec![0; 3000]).unwrap();
        // Beside the rows themselves.
        let taken = live.iter().map(|live| live.lock().unwrap().values().sum::<usize>() - 300 * 64 * 4);
        let taken = taken.max().unwrap() as f64;
        let told = cuda::memory_of(&case.spec, 64, (3000, count), tied, 300, precision) as f64;
        assert!((taken / told - 1.0).abs() < 0.01, "{count} ranks: {taken} bytes were taken, {told} told");
    }
}

#[test]
fn a_sum_over_ranks_that_is_left_out_is_found() {
    if sanitizer::inside() || device::emulation_only("planted defects") {
        return;
    }
    let mut missed = vec![];
    // Every sum until the first look is done, in a case that has all of them: dead latents, facts, planes, the auxiliary plane, candidates' gradients, the
    // part of b_pre, squares.
    for sum in 0..8 {
        let mut case = Case::new(17, 31, 300, 5);
        (case.t, case.spec.warmup.relaxation, case.spec.warmup.pool) = (0.5, Relaxation::Lapsum, 24);
        // One latent is dead, of the first rank.
        (case.spec.objective.aux_k, case.dead_every, case.steps) = (3, Some(300), 2);
        (case.spec.optimizer.clip_norm, case.l1) = (Some(1e-3), 0.4);
        let spoil = move |rank: &mut ThreadRank| rank.forgets = Some(sum);
        let agrees = std::panic::AssertUnwindSafe(|| case.agree_with(spoiled(2, 0, spoil), |_| ()));
        if std::panic::catch_unwind(agrees).is_ok() {
            missed.push(sum);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

#[test]
fn more_ranks_than_groups_of_latents_are_refused() {
    let (data, state) = Case::new(3, 4, 300, 5).start();
    let devices = (0..4).map(device::device).collect();
    let spec = ModelSpec::plain(5);
    let refused = Together::new(devices, &data, &spec, Precision::F32, &state, |_| {}).err().unwrap();
    assert!(refused.to_string().contains("--latents 300 are too few for 4 ranks"), "{refused}");
    assert_eq!(Shard::of(2, 3, 300).unwrap().latents(), 256..300);
}
