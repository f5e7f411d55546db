//! The inverted index against a sort.

use crate::common::device::device;
use topk_sae::backend::cuda::buffer::Buffer;
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::launch;
use topk_sae::backend::cuda::work::{Sizes, WorkBuffers};
use topk_sae::noise::philox4x32;
use topk_sae::rows::Dtype;
use topk_sae::spec::{ModelSpec, Precision};

/// Fails unless each latent's entries come back in order of rows, from lists with `k` places per row and from lists
/// without gaps. `latent` names the e-th latent of row n; a row must not name one twice.
pub fn check(
    device: &mut dyn Device,
    n: usize,
    m: usize,
    k: usize,
    latent: &dyn Fn(usize, usize) -> u32,
    held: &dyn Fn(usize) -> u32,
) {
    let count: Vec<u32> = (0..n).map(held).collect();
    let apart: Vec<u32> = (0..n).map(|row| (row * k) as u32).collect();
    let packed: Vec<u32> = (0..n).map(|row| count[..row].iter().sum()).collect();
    for first in [apart, packed] {
        check_lists(device, (m, k), latent, &first, &count);
    }
}

/// As [`check`], for rows whose entries start at `first`.
fn check_lists(
    device: &mut dyn Device,
    (m, k): (usize, usize),
    latent: &dyn Fn(usize, usize) -> u32,
    first: &[u32],
    count: &[u32],
) {
    let n = count.len();
    let spec = ModelSpec::plain(k);
    let sizes = Sizes::new(&spec, 2, m, true, Precision::F32, Dtype::F32).unwrap();
    let mut work = WorkBuffers::new(device, &sizes, n).unwrap();
    // Places that hold no entry name a latent that is not there.
    let mut index = vec![u32::MAX; n * k];
    let mut row_of = vec![0; n * k];
    for (row, (&first, &count)) in first.iter().zip(count).enumerate() {
        for e in 0..count as usize {
            index[first as usize + e] = latent(row, e);
            row_of[first as usize + e] = row as u32;
        }
    }
    work.main.index.write(device, &index).unwrap();
    work.main.first.write(device, first).unwrap();
    work.main.count.write(device, count).unwrap();
    let WorkBuffers { main, totals, cursor, unordered, .. } = &mut work;
    launch::index(device, &sizes, n, main, totals, cursor, unordered).unwrap();
    let mut want: Vec<(u32, u32)> =
        index.iter().enumerate().filter(|e| *e.1 != u32::MAX).map(|(at, &j)| (j, at as u32)).collect();
    want.sort_unstable();
    let read = |b: &Buffer<u32>, len: usize, device: &mut dyn Device| b.read(device, len).unwrap();
    let offsets = read(&work.main.offsets, m + 1, device);
    let slots = read(&work.main.slots, want.len(), device);
    assert_eq!(slots, want.iter().map(|e| e.1).collect::<Vec<u32>>(), "N {n} M {m} k {k}");
    let rows = read(&work.main.row, n * k, device);
    assert!(slots.iter().all(|&at| rows[at as usize] == row_of[at as usize]), "N {n} M {m} k {k}");
    for j in 0..=m as u32 {
        assert_eq!(offsets[j as usize] as usize, want.iter().filter(|e| e.0 < j).count(), "latent {j}");
    }
    let held = |j: usize| (offsets[j + 1] - offsets[j]) as usize;
    let cost = work.main.cost.read(device, m + 1).unwrap();
    assert_eq!(cost[0], 0);
    let check_cost = |j: usize, entries: usize| {
        assert_eq!(cost[j + 1] - cost[j], 9 + entries as u64, "N {n} M {m} k {k}: latent {j}");
    };
    let Some(runs) = &work.main.runs else {
        (0..m).for_each(|j| check_cost(j, held(j)));
        // A row holds a latent once: no list is so long that it would be cut.
        return assert!(n <= 32.max(2 * n * k / m + 32), "N {n} M {m} k {k}");
    };
    let mut latents = vec![];
    let mut left = true;
    let mut first = vec![];
    for j in (0..m).filter(|&j| held(j) > runs.length) {
        first.push((j, latents.len()));
        let cut = held(j).div_ceil(runs.length);
        // Runs as long as there is room for all of a list.
        left &= latents.len() + cut <= runs.most;
        if !left {
            break;
        }
        latents.extend(std::iter::repeat_n(j as u32, cut));
    }
    let got = read(&runs.first, m + 1, device);
    assert_eq!(got[m] as usize, latents.len(), "N {n} M {m} k {k}");
    assert_eq!(read(&runs.latent, latents.len(), device), latents, "N {n} M {m} k {k}");
    let in_runs = |j: usize| latents.iter().filter(|&&of| of as usize == j).count();
    (0..m).for_each(|j| check_cost(j, if in_runs(j) > 0 { in_runs(j) } else { held(j) }));
    for (j, first) in first {
        assert_eq!(got[j] as usize, first, "N {n} M {m} k {k}: latent {j}");
    }
}

/// Lists that are cut, of one entry less than is, and that fill their runs; and more of them than there is room for.
#[test]
fn long_lists_are_cut_into_runs() {
    let some = |row: usize, e: usize| {
        [2, if row % 5 < 2 { 3 } else { 4 }, if row < 64 { 6 } else { 7 }, if row < 32 { 8 } else { 9 }][e]
    };
    for n in [32, 33, 65, 1000] {
        check(device(0).as_mut(), n, 5000, 4, &some, &|_| 4);
    }
    let many = |row: usize, e: usize| (20 * (row / 80) + e) as u32;
    check(device(0).as_mut(), 400, 5000, 20, &many, &|_| 20);
}

#[test]
fn entries_come_back_by_latent_and_row() {
    for (n, m, k) in [(1, 1, 1), (5, 7, 3), (33, 64, 32), (40, 33, 33), (300, 100, 7), (64, 4097, 5)] {
        let latent = |row: usize, e: usize| {
            let start = philox4x32([row as u32, 9, 9, 9], [1, 1])[0] as usize % m;
            ((start + e) % m) as u32
        };
        let held = |row: usize| (row % (k + 1)) as u32;
        check(device(0).as_mut(), n, m, k, &latent, &held);
    }
}

#[test]
fn a_latent_of_every_row_is_ordered_beyond_one_map_of_rows() {
    let latent = |row: usize, e: usize| if e == 0 { 3 } else { 4 + (row % 3) as u32 };
    check(device(0).as_mut(), 9000, 8, 2, &latent, &|_| 2);
}
