//! Rows that stay in their files beside the same rows in memory.

use std::path::PathBuf;
use topk_sae::data::{Embeddings, LoadOptions};
use topk_sae::error::Error;
use topk_sae::rows::RowSource;

/// Fails unless rows that stay in their files are the same, or are refused there too.
pub fn stays_in_files_too(paths: &[PathBuf], options: &LoadOptions, whole: Result<&Embeddings, &Error>) {
    let small = whole.is_ok_and(|data| data.n_rows() < 2000);
    for memory in [0, 100, 3000, 1 << 18].into_iter().filter(|&memory| small || memory > 3000) {
        let data = match (Embeddings::load_within(paths, options, memory), whole) {
            (Ok(data), Ok(_)) => data,
            (Err(error), Err(meant)) => {
                assert_eq!(error.to_string(), meant.to_string());
                return;
            }
            (Ok(_), Err(error)) => panic!("{paths:?} is refused in memory alone: {error}"),
            (Err(error), Ok(_)) => panic!("{paths:?} is refused in its files alone: {error}"),
        };
        let Ok(meant) = whole else { return };
        assert!(data.is_streamed() || meant.bytes() as u64 <= memory);
        assert_eq!((data.n_rows(), data.d_in(), data.dtype()), (meant.n_rows(), meant.d_in(), meant.dtype()));
        assert_eq!((data.index(), data.skipped()), (meant.index(), meant.skipped()));
        assert_eq!((data.warnings(), data.zero_rows()), (meant.warnings(), meant.zero_rows()));
        same_values(&data, meant);
    }
}

/// Compares all rows: one by one, in a strange order, with blocks and rows in memory, and as they are stored.
fn same_values(data: &Embeddings, meant: &Embeddings) {
    let (n, d) = (meant.n_rows(), meant.d_in());
    let strange: Vec<u32> = (0..n as u32).map(|row| (u64::from(row) * 7919 % n as u64) as u32).collect();
    let read = |data: &Embeddings, rows: &[u32]| {
        let mut out = vec![0.0f32; rows.len() * d];
        data.read(rows, &mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    let want = read(meant, &strange);
    let stored = |data: &Embeddings, row: u32| {
        let size = if data.dtype().size() == 8 { 4 } else { data.dtype().size() };
        let mut out = vec![0; d * size];
        data.read_stored(row, &mut out).unwrap();
        out
    };
    assert!(read(data, &strange) == want);
    let last = data.block_of(n as u32 - 1);
    let blocks: Vec<u32> = (0..=last).collect();
    assert!((1..n as u32).all(|row| data.block_of(row - 1) <= data.block_of(row)));
    for kept in [&[][..], &strange[..n.min(5)]] {
        data.keep(kept).unwrap();
        // A few blocks at a time, some of which came while others were in use.
        for (now, next) in blocks.chunks(3).zip(blocks.chunks(3).skip(1).chain([&[][..]])) {
            data.hold(now, next).unwrap();
        }
        data.hold(&blocks[..blocks.len() / 2], &blocks[blocks.len() / 2..]).unwrap();
        for &row in strange.iter().take(50) {
            assert_eq!(stored(data, row), stored(meant, row), "row {row}");
        }
        assert!(read(data, &strange) == want);
        let gathered = |data: &Embeddings| {
            let mut out = vec![0; stored(data, 0).len() * strange.len()];
            data.gather_stored(&strange, &mut out).unwrap();
            out
        };
        assert!(gathered(data) == gathered(meant));
        data.hold(&blocks, &[]).unwrap();
        assert!(read(data, &strange) == want);
        data.hold(&[], &[]).unwrap();
    }
    assert!(data.fingerprint().unwrap() == data.fingerprint().unwrap());
}
