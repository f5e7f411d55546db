//! The library without a command line: a training in memory, its observers, its errors, and a backend that moves
//! between threads.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/runs.rs"]
mod runs;

use runs::{Place, sae_ok, tensors};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use topk_sae::backend::{Backend, Selected, StepPlan, open};
use topk_sae::config::Options;
use topk_sae::data::{Embeddings, LoadOptions};
use topk_sae::error::{Error, Result};
use topk_sae::model::TrainState;
use topk_sae::noise::Noise;
use topk_sae::rows::{Dtype, Resident, RowSource, Split, Values};
use topk_sae::spec::{Precision, Training};
use topk_sae::train::metrics::MetricRow;
use topk_sae::train::{Observer, Progress, StepReport, Store, Trainer, resolve};

fn options(early_stop: u64) -> Options {
    Options {
        latents: Some(64),
        k: Some(4),
        steps: Some(400),
        batch_size: Some(topk_sae::config::NumberOr::Number(32)),
        lr: Some(topk_sae::config::NumberOr::Number(0.02)),
        anneal_steps: Some(20),
        eval_every: Some(20),
        early_stop: Some(early_stop),
        ..Options::default()
    }
}

#[derive(Default)]
struct Seen {
    steps: u64,
    evaluations: usize,
    ended: bool,
    /// Set once so many steps are done.
    stop_at: Option<(u64, Arc<AtomicBool>)>,
}

impl Observer for Seen {
    fn stepped(&mut self, report: &StepReport) {
        assert!(report.done > self.steps && report.done <= report.total && report.loss.is_finite());
        self.steps = report.done;
        if let Some((at, stop)) = &self.stop_at {
            stop.store(report.done >= *at, Ordering::Relaxed);
        }
    }

    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        self.evaluations += 1;
        assert_eq!(rows.len(), self.evaluations);
        Ok(())
    }

    fn steps_ended(&mut self) {
        self.ended = true;
    }
}

#[test]
fn a_training_in_memory_gives_the_model_of_the_command_and_prints_nothing() {
    let place = Place::with_data(300, 16);
    let args = ["--latents=64", "-k=4", "--steps=400", "--batch-size=32", "--lr=0.02", "--anneal-steps=20"];
    let more = ["--eval-every=20", "--early-stop=2", "--device=cpu", "--quiet"];
    sae_ok([&["train", &place.name("data.h5"), "--out", &place.name("run")], &args[..], &more].concat());
    let data = Arc::new(Embeddings::load(&[place.path("data.h5")], &LoadOptions::default()).unwrap());
    let split = Split::new(data.index(), 0);
    let config = resolve(&options(2), data.as_ref(), &split).unwrap();
    let mut seen = Seen::default();
    let mut trainer = Trainer::new(config.training(), data, split, Selected::Cpu).unwrap().observe(&mut seen);
    let trained = trainer.run(&AtomicBool::new(false)).unwrap();
    let weights = trainer.weights().unwrap().into_owned();
    drop(trainer);
    assert!(seen.ended && seen.steps > trained.steps, "the best model is not the last: {trained:?}");
    assert_eq!((Some(trained.steps), trained.metrics.len()), (trained.best_step, seen.evaluations));
    let file = tensors(&place.path("run/model.safetensors"));
    for (name, _, values) in weights.tensors() {
        let (_, bytes) = file.iter().find(|(n, _)| n == name).unwrap();
        assert_eq!(bytemuck::cast_slice::<f32, u8>(values), bytes, "{name}");
    }
}

#[test]
fn a_training_is_stopped_by_its_flag_and_refuses_what_does_not_fit() {
    let values: Vec<f32> = (0..200 * 8).map(|i| (i as f32 * 0.61).sin() + (i / 8 % 5) as f32).collect();
    let rows: Arc<dyn RowSource> = Arc::new(Resident::new(Values::F32(values.into()), 8).unwrap());
    let split = Split { train: (0..160).collect(), val: (160..180).collect(), test: (180..200).collect() };
    let config = resolve(&options(0), rows.as_ref(), &split).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut seen = Seen { stop_at: Some((40, stop.clone())), ..Seen::default() };
    let mut trainer = Trainer::new(config.training(), rows.clone(), split.clone(), Selected::Cpu)
        .unwrap()
        .observe(&mut seen);
    assert!(matches!(trainer.run(&stop), Err(Error::Interrupted(_))));
    drop(trainer);
    assert!(seen.ended && seen.steps >= 40 && seen.steps < 400, "{}", seen.steps);

    let new = |training, split| {
        Trainer::new(training, rows.clone(), split, Selected::Cpu).err().unwrap().to_string()
    };
    let error = new(Training { d_in: 9, ..config.training() }, split.clone());
    assert!(error.contains("8 values") && error.contains("takes 9"), "{error}");
    let error = new(config.training(), Split { train: vec![200], ..split.clone() });
    assert!(error.contains("row 200"), "{error}");
    let error = new(config.training(), Split { train: vec![], ..split });
    assert!(error.contains("empty"), "{error}");
}

/// Rows in windows of 40, and what becomes of bringing one into memory.
struct Windows(Resident, Box<dyn Fn() -> Result<()> + Send + Sync>);

impl RowSource for Windows {
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
        self.0.read_stored(row, out)
    }

    fn window(&self) -> Option<usize> {
        Some(40)
    }

    fn block_of(&self, row: u32) -> u32 {
        row / 10
    }

    fn hold(&self, _: &[u32], _: &[u32]) -> Result<()> {
        self.1()
    }
}

#[test]
fn a_training_reports_how_long_it_waits_for_its_rows() {
    #[derive(Default)]
    struct Waits(Vec<f64>);
    impl Observer for Waits {
        fn stepped(&mut self, report: &StepReport) {
            self.0.push(report.waiting);
        }
    }
    let values: Vec<f32> = (0..200 * 8).map(|i| (i as f32 * 0.61).sin() + (i / 8 % 5) as f32).collect();
    let rows = Resident::new(Values::F32(values.into()), 8).unwrap();
    let split = Split { train: (0..160).collect(), val: (160..180).collect(), test: (180..200).collect() };
    let config = resolve(&options(0), &rows, &split).unwrap();
    let training = Training {
        schedule: topk_sae::spec::Schedule { steps: 40, ..config.training().schedule },
        ..config.training()
    };
    let takes_a_while = || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    };
    let sources: [Arc<dyn RowSource>; 2] =
        [Arc::new(rows.clone()), Arc::new(Windows(rows, Box::new(takes_a_while)))];
    for (slow, source) in sources.into_iter().enumerate() {
        let mut waits = Waits::default();
        let mut trainer =
            Trainer::new(training.clone(), source, split.clone(), Selected::Cpu).unwrap().observe(&mut waits);
        trainer.run(&AtomicBool::new(false)).unwrap();
        drop(trainer);
        // Steps of 32 rows change the window nearly each time; nothing waits for rows in memory, however slow the machine.
        let waited = waits.0.iter().filter(|share| **share > 0.0 && **share <= 1.0).count();
        assert_eq!(waited, if slow == 1 { waits.0.len() } else { 0 }, "{:?}", waits.0);
        assert!(!waits.0.is_empty());
    }
}

/// A source whose rows cannot be read from one on.
struct Broken(Resident, u32);

impl RowSource for Broken {
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
        match rows.iter().find(|row| **row >= self.1) {
            Some(row) => Err(Error::Failed(format!("the disk lost row {row}"))),
            None => self.0.read(rows, out),
        }
    }

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.0.read_stored(row, out)
    }
}

#[test]
fn what_a_source_cannot_read_is_the_error_and_no_panic() {
    let values: Vec<f32> = (0..200 * 8).map(|i| (i as f32 * 0.61).sin() + (i / 8 % 5) as f32).collect();
    let rows = Resident::new(Values::F32(values.into()), 8).unwrap();
    let split = Split { train: (0..160).collect(), val: (160..200).collect(), test: vec![] };
    let config = resolve(&options(0), &rows, &split).unwrap();
    // The mean row is read first, then the batches, then the validation rows.
    for lost in [3, 170] {
        let source = Arc::new(Broken(rows.clone(), lost));
        let run = Trainer::new(config.training(), source, split.clone(), Selected::Cpu)
            .and_then(|mut trainer| trainer.run(&AtomicBool::new(false)));
        assert!(run.unwrap_err().to_string().contains("the disk lost row"));
    }
}

#[test]
fn a_training_that_is_stopped_while_it_reads_rows_keeps_what_it_has() {
    struct Kept(Arc<std::sync::Mutex<Vec<u64>>>);
    impl Store for Kept {
        fn save(&mut self, state: &TrainState, progress: &Progress) -> Result<()> {
            assert_eq!(state.step, progress.step);
            self.0.lock().unwrap().push(progress.step);
            Ok(())
        }
        fn restore_best(&mut self, _: &mut dyn Backend) -> Result<u64> {
            Err(Error::Failed("there is none".into()))
        }
        fn kept(&self) -> String {
            "nothing".into()
        }
    }
    let values: Vec<f32> = (0..200 * 8).map(|i| (i as f32 * 0.61).sin() + (i / 8 % 5) as f32).collect();
    let rows = Resident::new(Values::F32(values.into()), 8).unwrap();
    let split = Split { train: (0..160).collect(), val: (160..200).collect(), test: vec![] };
    let config = resolve(&options(0), &rows, &split).unwrap();
    // A signal comes while the third window is read.
    let windows = std::sync::atomic::AtomicUsize::new(0);
    let read = move || match windows.fetch_add(1, Ordering::Relaxed) {
        2 => Err(Error::Interrupted("interrupted; nothing was written".into())),
        _ => Ok(()),
    };
    let source = Arc::new(Windows(rows, Box::new(read)));
    let kept = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let mut trainer =
        Trainer::new(config.training(), source, split, Selected::Cpu).unwrap().keep_in(Kept(kept.clone()));
    let error = trainer.run(&AtomicBool::new(false)).unwrap_err();
    let kept = kept.lock().unwrap();
    assert!(kept.len() == 1 && kept[0] > 0, "{kept:?}");
    assert!(
        matches!(&error, Error::Interrupted(what) if *what == format!("interrupted at step {}", kept[0])),
        "{error}"
    );
}

#[test]
fn a_backend_moves_between_threads() {
    let values: Vec<f32> = (0..64 * 8).map(|i| (i as f32 * 0.61).sin()).collect();
    let rows = Arc::new(Resident::new(Values::F32(values.into()), 8).unwrap());
    let split = Split { train: (0..64).collect(), ..Split::default() };
    let config = resolve(&Options { early_stop: Some(0), ..options(0) }, rows.as_ref(), &split).unwrap();
    let start = TrainState::zeros(8, 64, false, true);
    let plan =
        StepPlan { step: 0, alpha: 1.0, tau: 0.1, lr: 0.01, l1: 0.0, noise: Noise::Philox { seed: 1 } };
    let mut backend = open(Selected::Cpu, rows, config.spec, Precision::F32, start).unwrap();
    backend.step(&[0, 1, 2], &plan).unwrap();
    let stats = std::thread::spawn(move || {
        backend.step(&[3, 4, 5], &StepPlan { step: 1, ..plan }).unwrap();
        backend.collect().unwrap()
    });
    assert_eq!(stats.join().unwrap().len(), 2);
}
