//! Times the loading of a data file and prints JSON: `load_time FILE...`.
//! `benches/load_vs_h5py.py` runs it in turns with h5py.

use std::path::PathBuf;
use std::time::Instant;

use topk_sae::data::{Embeddings, LoadOptions};

fn main() -> topk_sae::error::Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let start = Instant::now();
    let data = Embeddings::load(&paths, &LoadOptions::default())?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "n_rows": data.n_rows(),
            "d_in": data.d_in(),
            "dtype": data.dtype(),
            "layout": data.sources()[0].layout,
            "fingerprint": format!("{:016x}", data.fingerprint()),
            "first_id": data.row_id(0),
            "skipped": data.skipped().total(),
        })
    );
    Ok(())
}
