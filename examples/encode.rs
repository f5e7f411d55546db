//! Encodes rows with a trained model: `cargo run --release --example encode -- model.safetensors`.

use std::path::PathBuf;
use std::sync::Arc;
use topk_sae::backend::{Selected, open};
use topk_sae::error::Result;
use topk_sae::model::{TrainState, Weights, file};
use topk_sae::rows::{Resident, Values};
use topk_sae::spec::{ModelSpec, Precision};

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("model.safetensors"), PathBuf::from);
    let (params, meta) = file::load(&path)?;
    let d = meta.architecture.d_in;
    // Two rows of D values: here a wave and its half.
    let wave: Vec<f32> = (0..2 * d).map(|i| (i as f32 * 0.7).sin() / (1 + i / d) as f32).collect();
    let rows = Arc::new(Resident::new(Values::F32(wave.into()), d)?);

    let spec = ModelSpec::to_run(meta.architecture.forward);
    let mut backend = open(Selected::Cpu, rows, spec, Precision::F32, TrainState::start(params, false))?;
    let codes = backend.encode(&[0, 1], Weights::Last)?;
    for row in 0..2 {
        let (latents, values) = codes.row(row);
        println!("row {row}: latents {latents:?} with {values:?}");
    }
    Ok(())
}
