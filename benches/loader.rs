//! Reading rows from a file as training does, beside a plain parallel read of the same file:
//! `cargo bench --bench loader -- [MEGABYTES [FOLDER]]`. The system's cache of the file is dropped before each turn.
//!
//! One epoch in windows, `--memory` a quarter of the file; each batch of 2048 rows is gathered into one buffer. No model
//! is trained: with one, the reading is beside the steps.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::f16;
use rayon::prelude::*;
use topk_sae::data::{Embeddings, LoadOptions};
use topk_sae::error::Result;
use topk_sae::rows::{BatchOrder, RowSource};

const D: usize = 1024;
const BATCH: usize = 2048;
const TURNS: usize = 5;
/// Bytes that a thread of the plain read takes at a time, as the loader does.
const PIECE: u64 = 4 << 20;

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Values that gzip makes somewhat smaller.
fn value(i: usize) -> f16 {
    let bits = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    f16::from_f32(bits as f32 / 64.0 - 2.0)
}

fn write_npy(path: &Path, rows: usize) -> Outcome<()> {
    let header = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {D}), }}");
    let mut file = std::io::BufWriter::new(File::create(path)?);
    file.write_all(b"\x93NUMPY\x01\x00")?;
    file.write_all(&(header.len() as u16 + 1).to_le_bytes())?;
    writeln!(file, "{header}")?;
    for row in 0..rows {
        let values: Vec<u8> = (row * D..(row + 1) * D).flat_map(|i| value(i).to_le_bytes()).collect();
        file.write_all(&values)?;
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

fn write_gzip(path: &Path, rows: usize) -> Outcome<()> {
    let file = hdf5::File::create(path)?;
    let set = file.new_dataset::<f16>().chunk((256, D)).shuffle().deflate(1).shape((rows, D)).create("x")?;
    for first in (0..rows).step_by(2560) {
        let n = (rows - first).min(2560);
        let values: Vec<f16> = (first * D..(first + n) * D).map(value).collect();
        let values = ndarray::Array2::from_shape_vec((n, D), values)?;
        set.write_slice(&values, (first..first + n, ..))?;
    }
    drop(set);
    file.close()?;
    File::open(path)?.sync_all()?;
    Ok(())
}

/// Drops what the system has of a file in its cache.
fn forget(path: &Path) -> Outcome<()> {
    let file = File::open(path)?;
    // SAFETY: an open file; the call takes no memory of ours.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if code == 0 { Ok(()) } else { Err(format!("the cache of {} stays: {code}", path.display()).into()) }
}

/// Seconds of a read of all bytes, in parallel.
fn plain(path: &Path) -> Outcome<f64> {
    forget(path)?;
    let began = Instant::now();
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let pieces: Vec<u64> = (0..len).step_by(PIECE as usize).collect();
    pieces.par_iter().try_for_each_init(
        || vec![0u8; PIECE as usize],
        |buffer, &start| file.read_exact_at(&mut buffer[..PIECE.min(len - start) as usize], start),
    )?;
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds of the first pass, and of one epoch.
fn loader(path: &Path, memory: u64) -> Outcome<(f64, f64)> {
    forget(path)?;
    let began = Instant::now();
    let data = Embeddings::load_within(&[path.to_owned()], &LoadOptions::default(), memory)?;
    let first_pass = began.elapsed().as_secs_f64();
    assert!(data.is_streamed());
    forget(path)?;
    let began = Instant::now();
    epoch(&data)?;
    Ok((first_pass, began.elapsed().as_secs_f64()))
}

fn epoch(data: &Embeddings) -> Result<()> {
    let rows: Vec<u32> = (0..data.n_rows() as u32).collect();
    let steps = (rows.len() / BATCH) as u64;
    let window = data.window().unwrap_or(rows.len());
    let mut order = BatchOrder::in_windows(rows, BATCH, 1, window, |row| data.block_of(row));
    let mut batch = vec![0u8; BATCH * D * data.dtype().size()];
    let mut held = Default::default();
    for step in 0..steps {
        let blocks = order.blocks(step, steps);
        if blocks != held {
            data.hold(&blocks.0, &blocks.1)?;
            held = blocks;
        }
        data.gather_stored(order.batch(step), &mut batch)?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Outcome<()> {
    // `cargo bench` and `cargo test` add options of their own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    // As `sae` does: memory that was given back is zeroed page by page by the system when it is taken again.
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two numbers and changes nothing but when memory is given back.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
    let megabytes: usize = args.first().map_or(Ok(1024), |text| text.parse())?;
    let place = args.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(place)?;
    let rows = megabytes * 1_000_000 / (2 * D);
    let memory = (rows * 2 * D / 4) as u64;
    println!(
        "{rows} rows of {D} float16, --memory {} MB, {} threads, {TURNS} turns",
        memory / 1_000_000,
        rayon::current_num_threads()
    );
    println!(
        "\n| file | MB | plain read, MB/s | epoch, MB/s of rows | first pass, MB/s of rows | epoch / plain | first pass / plain |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    type Write = fn(&Path, usize) -> Outcome<()>;
    for (name, write) in [("rows.npy", write_npy as Write), ("gzip.h5", write_gzip)] {
        let path = folder.path().join(name);
        write(&path, rows)?;
        let bytes = path.metadata()?.len() as f64;
        let mut turns = vec![];
        for _ in 0..TURNS {
            let plain = plain(&path)?;
            let (first, epoch) = loader(&path, memory)?;
            turns.push((plain, first, epoch));
        }
        let of = |f: fn(&(f64, f64, f64)) -> f64| median(turns.iter().map(f).collect());
        let (plain, first, epoch) = (of(|t| t.0), of(|t| t.1), of(|t| t.2));
        let values = (rows * 2 * D) as f64;
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} |",
            bytes / 1e6,
            bytes / 1e6 / plain,
            values / 1e6 / epoch,
            values / 1e6 / first,
            of(|t| t.0 / t.2),
            of(|t| t.0 / t.1),
        );
        std::fs::remove_file(&path)?;
    }
    Ok(())
}
