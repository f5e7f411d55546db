//! Trains a model on rows that are in memory, and writes it: `cargo run --release --example train_in_memory -- model.safetensors`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use topk_sae::backend::Selected;
use topk_sae::config::Options;
use topk_sae::error::Result;
use topk_sae::model::file;
use topk_sae::rows::{Resident, RowIndex, Split, Values};
use topk_sae::train::metrics::MetricRow;
use topk_sae::train::{Observer, Trainer, resolve};

/// Rows, N, and their width, D.
const ROWS: usize = 2000;
const WIDTH: usize = 32;

/// Prints each evaluation.
struct Print;

impl Observer for Print {
    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        if let Some(MetricRow { step, val: Some(val), .. }) = rows.last() {
            println!("step {step}: validation FVU {:.4}", val.fvu);
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("model.safetensors"), PathBuf::from);
    let rows = Arc::new(Resident::new(Values::F32(sums_of_directions().into()), WIDTH)?);
    // The split goes by ids, as the command's does.
    let index = RowIndex::of_ids((0..ROWS).map(|row| format!("row{row}")).collect());
    let split = Split::new(&index, 0);
    let options = Options {
        latents: Some(128),
        k: Some(3),
        steps: Some(600),
        eval_every: Some(150),
        ..Options::default()
    };
    let config = resolve(&options, rows.as_ref(), &split)?;

    let mut print = Print;
    let mut trainer = Trainer::new(config.training(), rows, split, Selected::Cpu)?.observe(&mut print);
    let trained = trainer.run(&AtomicBool::new(false))?;
    let meta = config.model_meta(trained.steps, &trained.train_mean);
    file::save(&path, &*trainer.weights()?, &meta)?;
    println!("{} after {} steps; {:.0} rows/s", path.display(), trained.steps, trained.rows_per_second);
    Ok(())
}

/// Rows that are each a sum of 3 of 64 directions, from a counter: the same on every machine.
fn sums_of_directions() -> Vec<f32> {
    let mut state = 1u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let directions: Vec<f32> = (0..64 * WIDTH).map(|_| next() as f32 / (1u64 << 30) as f32 - 1.0).collect();
    let mut rows = vec![0.0; ROWS * WIDTH];
    for row in rows.chunks_exact_mut(WIDTH) {
        for _ in 0..3 {
            let (direction, length) = (next() as usize % 64, 0.5 + next() as f32 / (1u64 << 31) as f32);
            row.iter_mut().zip(&directions[direction * WIDTH..]).for_each(|(x, v)| *x += length * v);
        }
    }
    rows
}
