//! Times the loading of a data file and prints JSON: `load_time FILE...`.
//! `sum` is that of all values, each times its row's number from 1, to check them elsewhere.
//! `benches/load_vs_h5py.py` runs it in turns with h5py.

use std::path::PathBuf;
use std::time::Instant;

use topk_sae::data::{Embeddings, LoadOptions};

fn main() -> topk_sae::error::Result<()> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let start = Instant::now();
    let data = Embeddings::load(&paths, &LoadOptions::default())?;
    let seconds = start.elapsed().as_secs_f64();
    let mut row = vec![0.0; data.d_in()];
    let mut sum = 0.0;
    for index in 0..data.n_rows() {
        data.row_into(index, &mut row);
        sum += row.iter().map(|&value| f64::from(value)).sum::<f64>() * (index + 1) as f64;
    }
    println!(
        "{}",
        serde_json::json!({
            "seconds": seconds,
            "n_rows": data.n_rows(),
            "d_in": data.d_in(),
            "dtype": data.dtype(),
            "layout": data.index().pieces()[0].layout,
            "fingerprint": format!("{:016x}", data.fingerprint()?),
            "first_id": data.index().row_id(0),
            "sum": sum,
            "skipped": data.skipped().total(),
        })
    );
    Ok(())
}
