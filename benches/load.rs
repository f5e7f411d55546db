//! Loading, row conversion and batch order: `cargo bench --bench load`.
//! `load_vs_h5py.py` compares the loading with h5py's.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use topk_sae::data::{Embeddings, LoadOptions};
use topk_sae::rows::{BatchOrder, Split};

const D_IN: usize = 1024;

fn values(row: usize) -> Vec<f16> {
    let value = |column| f16::from_f32(((row * 31 + column * 17) % 255) as f32 / 128.0 - 1.0);
    (0..D_IN).map(value).collect()
}

fn loading(c: &mut Criterion) {
    const N_ROWS: usize = 5000;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vectors = folder.path().join("vectors.h5");
    let file = hdf5::File::create(&vectors).expect("a new file");
    for row in 0..N_ROWS {
        let builder = file.new_dataset_builder();
        builder.with_data(&values(row)).create(format!("P{row:05}").as_str()).expect("a dataset");
    }
    file.close().expect("written");
    let matrix = folder.path().join("matrix.h5");
    let file = hdf5::File::create(&matrix).expect("a new file");
    let all: Vec<f16> = (0..N_ROWS).flat_map(values).collect();
    let dataset = file.new_dataset::<f16>().shape((N_ROWS, D_IN)).create("x").expect("a dataset");
    dataset.as_writer().write_raw(&all).expect("written");
    file.close().expect("written");

    let mut group = c.benchmark_group("load 5000 x 1024 float16");
    group.throughput(Throughput::Elements(N_ROWS as u64));
    for (name, path) in [("one vector per id", vectors), ("matrix", matrix)] {
        let paths = [path];
        group.bench_function(name, |b| {
            b.iter(|| Embeddings::load(&paths, &LoadOptions::default()).expect("loads"));
        });
    }
    group.finish();
}

fn rows_and_order(c: &mut Criterion) {
    const N_ROWS: usize = 20_000;
    let ids = (0..N_ROWS).map(|row| format!("P{row:05}")).collect();
    let rows = (0..N_ROWS * 16).map(|i| i as f32).collect();
    let data = Embeddings::from_rows(ids, 16, rows).expect("rows");
    c.bench_function("split 20000 ids", |b| b.iter(|| Split::new(black_box(data.index()), 1)));
    let split = Split::new(data.index(), 1);
    c.bench_function("one epoch of batches of 128", |b| {
        b.iter_batched(
            || BatchOrder::new(split.train.clone(), 128, 1),
            |mut order| {
                for step in 0..(split.train.len() / 128) as u64 {
                    black_box(order.batch(step));
                }
            },
            BatchSize::SmallInput,
        );
    });
    let mut out = vec![0.0; 16];
    c.bench_function("row_into of 16 float32", |b| {
        b.iter(|| data.row_into(black_box(777), black_box(&mut out)));
    });
}

criterion_group!(benches, loading, rows_and_order);
criterion_main!(benches);
