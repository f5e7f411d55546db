//! Rows on their way to the card, beside its work: the same bits in every order of copies and kernels that the events
//! allow, copies that are never later than they could be, and no wait of the host for a step.
//!
//! The stand-in draws the order by a seed, and leaves a wait out where it is asked to, to see that this is found.

use super::{SIZES, compiler, inside, inside_with, well};
use crate::runs::{Place, low_rank, same_run};
use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use topk_sae::backend::{Asks, Selected, StepPlan, open};
use topk_sae::config::{NumberOr, Options};
use topk_sae::error::Result;
use topk_sae::model::TrainState;
use topk_sae::noise::Noise;
use topk_sae::rows::{Dtype, Resident, RowSource, Split, Values};
use topk_sae::spec::{Precision, Training};
use topk_sae::train::{Trainer, resolve};

/// No room for the data beside the 8 MiB of cuBLAS and the buffers of some thousand rows.
const LITTLE: [(&str, &str); 2] = [("MEMORY", "9000000"), ("CARD", "Stand-in=8.6")];

/// Sources of the rows: in memory, and in their file, 3,840 bytes in windows of 750.
const SOURCES: [&[&str]; 2] = [&["--eval-every=12"], &["--memory=1500", "--eval-every=5"]];

/// Whether a run whose rows travel, with a setting of the stand-in, ends well with the bits of `whole`.
fn same(place: &Place, whole: &Path, args: &[&str], settings: &[(&str, &str)]) -> bool {
    let settings = [&LITTLE[..], settings].concat();
    let output = place.train(&settings, "cuda", "travelling", &[args, &["--overwrite"]].concat());
    let model = |run: &Path| std::fs::read(run.join("model.safetensors")).unwrap();
    output.status.success() && model(&place.path("travelling")) == model(whole)
}

#[test]
fn rows_that_travel_give_the_same_bits_in_every_order_of_copies_and_kernels() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    for source in SOURCES {
        let args = [&SIZES[..], source].concat();
        let whole = place.trained(&[], "cuda", "whole", &[&args[..], &["--overwrite"]].concat());
        for seed in ["1", "2", "3", "4", "5", "6"] {
            let settings = [&LITTLE[..], &[("SEED", seed)]].concat();
            let run = place.trained(&settings, "cuda", "run", &[&args[..], &["--overwrite"]].concat());
            same_run(&whole, &run);
            for left in ["bytes left", "pinned blocks left", "streams left"] {
                assert_eq!(place.counts()[left], 0, "{left}");
            }
            // All of them together, through two messages.
            same_run(
                &whole,
                &place.trained(&[("SEED", seed)], "cuda", "run", &[&args[..], &["--overwrite"]].concat()),
            );
        }
    }
}

#[test]
fn a_wait_that_is_missing_is_found() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    let args = [&SIZES[..], SOURCES[0]].concat();
    let whole = place.trained(&[], "cuda", "whole", &args);
    assert!(same(&place, &whole, &args, &[]));
    for defect in ["kernels do not wait", "copies do not wait", "the host does not wait"] {
        let seeds = ["0", "1", "2", "3", "4", "5", "6"];
        let found =
            seeds.iter().filter(|seed| !same(&place, &whole, &args, &[("DEFECT", defect), ("SEED", seed)]));
        let found: Vec<_> = found.collect();
        eprintln!("{defect}: found with the seeds {found:?}");
        assert!(!found.is_empty(), "{defect}");
    }
}

/// A sweep of two models, which must be those of their single runs, trained together or not; how many copies went to the
/// card, and in the single runs.
fn sweep_of_two(place: &Place, settings: &[(&str, &str)], options: &[&str], together: bool) -> (u64, u64) {
    let args = [&SIZES[..1], &SIZES[2..], options].concat();
    let copies = || place.counts()["cuMemcpyHtoDAsync_v2"];
    let mut single = vec![];
    for k in ["2", "4"] {
        let out = format!("alone-{k}");
        let own = ["-k", k, "--overwrite"];
        well(&place.train(settings, "cuda", &out, &[&args[..], &own].concat()));
        single.push(copies());
    }
    let (data, out) = (place.name("data.h5"), place.name("sweep"));
    let sweep = ["sweep", &data, "--out", &out, "--device=cuda", "--k=2,4"];
    let output = place.sae(settings, &[&sweep[..], &args].concat());
    well(&output);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(if together { "[1-2/2] k=2 k=4" } else { "[1/2] k=2" }), "{told}");
    for k in ["2", "4"] {
        same_run(&place.path(&format!("alone-{k}")), &place.path(&format!("sweep/k={k}")));
    }
    for left in ["bytes left", "pinned blocks left", "streams left"] {
        assert_eq!(place.counts()[left], 0, "{left}");
    }
    std::fs::remove_dir_all(place.path("sweep")).unwrap();
    (copies(), single.iter().sum())
}

#[test]
fn a_sweep_sends_its_rows_once_and_takes_turns_where_they_travel() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    for source in SOURCES {
        // All rows are one message, which the second model finds on the card.
        let (together, alone) = sweep_of_two(&place, &[], source, source == SOURCES[1]);
        assert_eq!(together + 1, alone);
        // One that has no room for them, nor for two models.
        let (together, alone) = sweep_of_two(&place, &LITTLE, source, false);
        assert_eq!(together, alone);
    }
    // One with room for two models, and not for 102 MB of rows.
    let place = Place::with_data(400_000, 64);
    let options = ["--memory=2M", "--eval-every=12", "--eval-rows=64", "--final-rows=64"];
    for seed in ["1", "2"] {
        let settings = [("MEMORY", "132000000"), ("SEED", seed)];
        let (together, alone) = sweep_of_two(&place, &settings, &options, true);
        assert_eq!(together, alone);
    }
}

/// What 40 steps whose rows travel add to the counts of the stand-in.
fn added(place: &Place, settings: &[(&str, &str)]) -> impl Fn(&str) -> i64 + use<> {
    let count = |steps: &str| {
        let rare = ["--eval-every=1000", "--checkpoint-every=1000", "--overwrite", steps];
        let settings = [&LITTLE[..], settings].concat();
        well(&place.train(&settings, "cuda", "run", &[&SIZES[..3], &rare].concat()));
        place.counts()
    };
    let (few, many) = (count("--steps=100"), count("--steps=140"));
    let get = |counts: &HashMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or(0) as i64;
    move |name| get(&many, name) - get(&few, name)
}

/// The stand-in has a model of time, in which a step takes 100 ticks.
#[test]
fn a_copy_is_made_beside_the_step_before_and_the_host_waits_for_no_step() {
    if !compiler::nvrtc() {
        return;
    }
    let place = Place::with_data(60, 16);
    // As fast as the slower of the two, and not as both one after the other.
    for (copy, ticks) in [("90", 100), ("150", 150)] {
        let added = added(&place, &[("COPY", copy)]);
        assert_eq!(added("ticks"), 40 * ticks, "{copy}");
        assert_eq!(added("cuGraphLaunch"), 40);
        // A step's numbers, and its rows.
        assert_eq!(added("cuMemcpyHtoDAsync_v2"), 80);
        assert_eq!(added("bytes sent beside kernels"), 40 * 16 * 16 * 4);
        let never = ["cuMemAlloc_v2", "cuMemHostAlloc", "cuStreamBeginCapture_v2", "cuCtxSynchronize"];
        for name in never {
            assert_eq!(added(name), 0, "{name}");
        }
        // The host waits for copies two messages before, and where it fetches the losses of many steps, by the clock.
        assert_eq!(added("cuStreamSynchronize"), added("cuMemcpyDtoHAsync_v2"));
    }
    let one_by_one = added(&place, &[("COPY", "90"), ("DEFECT", "copies come in turn")]);
    assert_eq!(one_by_one("ticks"), 40 * 190);
}

/// Rows in blocks of ten, of which 30 may be in memory; counts what is asked of it, and keeps what a card has of it if it is
/// to.
struct Counted(Resident, AtomicUsize, Option<Mutex<Vec<Arc<dyn Any + Send + Sync>>>>);

impl RowSource for Counted {
    fn n_rows(&self) -> usize {
        self.0.n_rows()
    }

    fn d_in(&self) -> usize {
        self.0.d_in()
    }

    fn dtype(&self) -> Dtype {
        self.0.dtype()
    }

    fn read(&self, rows: &[u32], out: &mut [f32]) -> Result<()> {
        self.0.read(rows, out)
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.read_stored(row, out)
    }

    fn window(&self) -> Option<usize> {
        Some(30)
    }

    fn block_of(&self, row: u32) -> u32 {
        row / 10
    }

    fn hold(&self, _: &[u32], _: &[u32]) -> Result<()> {
        self.1.fetch_add(1000, Ordering::Relaxed);
        Ok(())
    }

    fn keep(&self, _: &[u32]) -> Result<()> {
        self.1.fetch_add(1_000_000, Ordering::Relaxed);
        Ok(())
    }

    fn lend(&self, rows: Arc<dyn Any + Send + Sync>) {
        self.2.iter().for_each(|kept| kept.lock().unwrap().push(rows.clone()));
    }
}

/// 200 rows with a split and a training on them.
fn counted() -> (Arc<Counted>, Split, Training) {
    let values = low_rank(200, 8);
    let rows = Resident::new(Values::F32(values.into()), 8).unwrap();
    let rows = Arc::new(Counted(rows, AtomicUsize::new(0), None));
    let split = Split { train: (0..160).collect(), val: (160..180).collect(), test: (180..200).collect() };
    let options = Options {
        latents: Some(64),
        k: Some(4),
        steps: Some(30),
        batch_size: Some(NumberOr::Number(32)),
        eval_every: Some(10),
        ..Options::default()
    };
    let training = resolve(&options, rows.as_ref(), &split).unwrap().training();
    (rows, split, training)
}

#[test]
fn rows_that_the_card_holds_are_read_and_sent_once() {
    if !inside("feeding::rows_that_the_card_holds_are_read_and_sent_once") {
        return;
    }
    let (rows, split, training) = counted();
    for (device, more) in [(Selected::Cuda(0), false), (Selected::Cpu, true)] {
        let mut trainer = Trainer::new(training.clone(), rows.clone(), split.clone(), device).unwrap();
        let before = rows.1.load(Ordering::Relaxed);
        trainer.run(&AtomicBool::new(false)).unwrap();
        assert_eq!(rows.1.load(Ordering::Relaxed) > before, more, "{device}");
        // Each row once, before and after which the blocks of the one message are held and given up.
        assert_eq!(before, 200 + 2 * 1000, "{device}");
    }
}

#[test]
fn rows_that_were_announced_and_did_not_come_leave_nothing_behind() {
    let little = [&LITTLE[..], &[("SEED", "1")]].concat();
    if !inside_with("feeding::rows_that_were_announced_and_did_not_come_leave_nothing_behind", &little) {
        return;
    }
    let (rows, _, training) = counted();
    let plan = |step| {
        let noise = Noise::Philox { seed: 1 };
        StepPlan { step, alpha: 1.0, tau: 0.1, lr: 0.01, l1: 0.0, noise }
    };
    let new = || {
        let start = TrainState::zeros(8, 64, training.tied, training.model.optimizer.ema.is_some());
        open(Selected::Cuda(0), rows.clone(), training.model.clone(), Precision::F32, start).unwrap()
    };
    let batch = |step: u32| (0..32).map(|i| (i * 7 + step * 5) % 200).collect::<Vec<u32>>();
    let losses = |announced: &[&[u32]]| {
        let mut backend = new();
        assert_eq!(backend.asks_for_rows(), Asks::Ahead);
        // Some batches come twice in a row.
        for step in 0..6 {
            backend.step(&batch(step / 2), &plan(u64::from(step))).unwrap();
            announced.iter().for_each(|rows| backend.expect(rows).unwrap());
        }
        // Its memory goes while copies to it are queued.
        let other = backend.collect().unwrap();
        announced.iter().for_each(|rows| backend.expect(rows).unwrap());
        backend.set_data(rows.clone()).unwrap();
        backend.step(&batch(6), &plan(6)).unwrap();
        announced.iter().for_each(|rows| backend.expect(rows).unwrap());
        let all = [other, backend.collect().unwrap()].concat();
        assert!(backend.idle().unwrap() >= 0.0);
        assert_eq!(backend.idle().unwrap(), 0.0, "it was just asked for");
        all.iter().map(|stats| stats.loss).collect::<Vec<f64>>()
    };
    let expected = losses(&[]);
    assert!(expected.len() == 7 && expected.iter().all(|loss| loss.is_finite()));
    for announced in [&[&[1, 2, 3][..]][..], &[&[1, 2], &[9; 32], &[4]]] {
        assert_eq!(losses(announced), expected);
    }
    // The driver is told of no row that is not there.
    let mut backend = new();
    backend.step(&batch(0), &plan(0)).unwrap();
    assert!(backend.expect(&[200]).unwrap_err().to_string().contains("row 200"));
    backend.expect(&batch(1)).unwrap();
}

#[test]
fn trainings_on_the_same_rows_share_those_on_the_card_while_one_of_them_is_alive() {
    if !inside("feeding::trainings_on_the_same_rows_share_those_on_the_card_while_one_of_them_is_alive") {
        return;
    }
    let (rows, split, training) = counted();
    let new = |rows: &Arc<Counted>| {
        Trainer::new(training.clone(), rows.clone(), split.clone(), Selected::Cuda(0)).unwrap()
    };
    let run = |mut trainer: Trainer<'_>| {
        trainer.run(&AtomicBool::new(false)).unwrap();
        trainer.weights().unwrap().into_owned()
    };
    let sent = |rows: &Counted| rows.1.load(Ordering::Relaxed) % 1000;
    let alone = run(new(&rows));
    assert_eq!(sent(&rows), 200);
    // Nobody has them any more: they are sent again, once for three.
    let [first, second, third] = [new(&rows), new(&rows), new(&rows)];
    assert_eq!(sent(&rows), 400);
    // Rows like these from another source are other rows.
    let (others, ..) = counted();
    let other = new(&others);
    assert_eq!((sent(&rows), sent(&others)), (400, 200));
    // Those that sent the rows go first.
    for trainer in [first, second, other, third] {
        assert!(run(trainer) == alone);
    }
    // A source that keeps them has them sent once for trainings one after the other, as a sweep's.
    let kept = Counted(Resident::clone(&rows.0), AtomicUsize::new(0), Some(Mutex::default()));
    let kept = Arc::new(kept);
    for _ in 0..3 {
        assert!(run(new(&kept)) == alone);
        assert_eq!(sent(&kept), 200);
    }
    assert_eq!(kept.2.as_ref().unwrap().lock().unwrap().len(), 1);
}
