//! The same rows give the same bits whatever format they are in, and folders and patterns stand for their files.
#![allow(clippy::unwrap_used)] // Tests stop at what they do not expect.

mod data_fixtures;

use std::path::{Path, PathBuf};

use data_fixtures::*;
use half::{bf16, f16};
use topk_sae::data::{Embeddings, LoadOptions, data_files, files_behind, inspect};
use topk_sae::rows::Dtype;

const N: usize = 37;
const D: usize = 6;

/// Row-major bytes of the rows `rows` of [`value`], little-endian.
fn bytes(rows: std::ops::Range<usize>, dtype: Dtype) -> Vec<u8> {
    let value = |row, column| match dtype {
        Dtype::F16 => f16::from_f32(value(row, column)).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(value(row, column)).to_le_bytes().to_vec(),
        Dtype::F32 => value(row, column).to_le_bytes().to_vec(),
        Dtype::F64 => f64::from(value(row, column)).to_le_bytes().to_vec(),
    };
    rows.flat_map(|row| (0..D).flat_map(move |column| value(row, column))).collect()
}

/// A .npy file: its header as NumPy writes it, and `values`.
fn npy(path: &Path, descr: &str, fortran: bool, shape: &str, values: &[u8]) {
    let fortran = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': ({shape}), }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(values);
    std::fs::write(path, file).unwrap();
}

/// A .safetensors file of tensors, each a name, a type, a shape and values.
fn safetensors(path: &Path, tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]) {
    let tensors = tensors.iter().map(|(name, dtype, shape, values)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), values).unwrap())
    });
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

fn names() -> Vec<String> {
    (0..N).map(|row| format!("P{row:02}")).collect()
}

/// The values of a matrix, column after column.
fn by_columns(values: &[u8], size: usize) -> Vec<u8> {
    let at = |row: usize, column: usize| (row * D + column) * size;
    let value = |(column, row)| values[at(row, column)..at(row, column) + size].iter().copied();
    (0..D).flat_map(|column| (0..N).map(move |row| (column, row))).flat_map(value).collect()
}

#[test]
fn the_same_rows_give_the_same_bits_from_every_format() {
    for (dtype, descr, tensor) in [
        (Dtype::F16, "<f2", safetensors::Dtype::F16),
        (Dtype::Bf16, "|V2", safetensors::Dtype::BF16),
        (Dtype::F32, "<f4", safetensors::Dtype::F32),
        (Dtype::F64, "<f8", safetensors::Dtype::F64),
    ] {
        let folder = Folder::new();
        let values = bytes(0..N, dtype);
        let ids: Vec<String> = names();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let hdf5 = folder.file("rows.h5", |file| {
            match dtype {
                Dtype::F16 => matrix(file, "x", 0, N, D, false, f16::from_f32),
                Dtype::Bf16 => raw(file, "x", &[N as u64, D as u64], &FileType::Bf16, &values),
                Dtype::F32 => matrix(file, "x", 0, N, D, false, |v| v),
                Dtype::F64 => matrix(file, "x", 0, N, D, false, f64::from),
            }
            strings(file, "ids", &ids);
        });
        let text = ids.join("\n");
        let bfloat16 = LoadOptions { bfloat16: true, ..LoadOptions::default() };
        let options = if dtype == Dtype::Bf16 { bfloat16 } else { LoadOptions::default() };
        let meant = load(&[&hdf5]).unwrap();
        assert_eq!((meant.dtype(), meant.n_rows(), meant.d_in()), (dtype, N, D));

        let shape = format!("{N}, {D}");
        let (plain, columns, tensors, many) = (
            folder.path("plain.npy"),
            folder.path("columns.npy"),
            folder.path("tensors.safetensors"),
            folder.path("many.safetensors"),
        );
        npy(&plain, descr, false, &shape, &values);
        npy(&columns, descr, true, &shape, &by_columns(&values, dtype.size()));
        safetensors(&tensors, &[("x", tensor, &[N, D], &values)]);
        let rows: Vec<&[u8]> = values.chunks_exact(D * dtype.size()).collect();
        let each: Vec<_> = ids.iter().zip(&rows).map(|(id, row)| (*id, tensor, &[D][..], *row)).collect();
        safetensors(&many, &each);
        for (path, ids) in
            [(&plain, "plain.npy.ids.txt"), (&columns, "columns.ids.txt"), (&tensors, "tensors.ids.txt")]
        {
            std::fs::write(folder.path(ids), &text).unwrap();
            let data = load_with(&[path], &options).unwrap();
            assert_eq!(
                data.fingerprint().unwrap(),
                meant.fingerprint().unwrap(),
                "{} {dtype}",
                path.display()
            );
            assert!(data.warnings().is_empty());
            assert_eq!(files_behind(path), [folder.path(ids)]);
        }
        let data = load_with(&[&many], &options).unwrap();
        assert_eq!(
            data.fingerprint().unwrap(),
            meant.fingerprint().unwrap(),
            "a tensor for each id, {dtype}"
        );
    }
}

#[test]
fn ids_of_an_array_are_in_a_file_or_its_name_or_numbers() {
    let folder = Folder::new();
    let path = folder.path("a.npy");
    npy(&path, "<f4", false, &format!("{N}, {D}"), &bytes(0..N, Dtype::F32));
    let with =
        |ids: &str| load_with(&[&path], &LoadOptions { ids: Some(ids.into()), ..LoadOptions::default() });
    assert_eq!(ids(&load(&[&path]).unwrap())[36], "a:36");

    let text = folder.path("mine.txt");
    std::fs::write(&text, names().join("\r\n") + "\r\n").unwrap();
    assert_eq!(ids(&with(text.to_str().unwrap()).unwrap()), names());
    let array = folder.path("mine.npy");
    let letters = |id: &String| id.chars().flat_map(|c| (c as u32).to_le_bytes()).collect::<Vec<u8>>();
    npy(&array, "<U3", false, &format!("{N},"), &names().iter().flat_map(letters).collect::<Vec<_>>());
    assert_eq!(ids(&with(array.to_str().unwrap()).unwrap()), names());
    npy(&array, "|S3", false, &format!("{N},"), &names().concat().into_bytes());
    assert_eq!(ids(&with(array.to_str().unwrap()).unwrap()), names());
    let numbers: Vec<u8> = (0..N as u32).flat_map(|n| (n + 200).to_le_bytes()).collect();
    npy(&array, "<u4", false, &format!("{N},"), &numbers);
    assert_eq!(ids(&with(array.to_str().unwrap()).unwrap())[1], "201");

    // All rows of the file are one protein's.
    let data = with("file").unwrap();
    assert_eq!((data.index().n_groups(), data.index().row_id(4)), (1, "a:5".to_owned()));
    assert_eq!(data.index().pieces()[0].layout, "residues per id");

    // A file of ids beside the array is taken by itself, but for `row`.
    std::fs::write(folder.path("a.ids.txt"), names().join("\n")).unwrap();
    assert_eq!(ids(&load(&[&path]).unwrap()), names());
    assert_eq!(ids(&with("row").unwrap())[0], "a:0");
    std::fs::write(folder.path("a.npy.ids.txt"), names().join("\n")).unwrap();
    message(load(&[&path]), &path, &["has ids in", "and in", "--ids "]);
    std::fs::remove_file(folder.path("a.npy.ids.txt")).unwrap();
    std::fs::write(folder.path("a.ids.txt"), format!("id\n{}", names().join("\n"))).unwrap();
    message(load(&[&path]), &folder.path("a.ids.txt"), &["38 ids for 37 rows", "first line a title"]);
    message(with("nowhere.txt"), Path::new("nowhere.txt"), &["cannot read"]);
}

#[test]
fn a_folder_and_a_pattern_stand_for_their_files() {
    let folder = Folder::new();
    let shards = folder.path("shards");
    std::fs::create_dir(&shards).unwrap();
    let shard = |name: &str, rows: std::ops::Range<usize>| {
        let path = shards.join(name);
        npy(&path, "<f4", false, &format!("{}, {D}", rows.len()), &bytes(rows, Dtype::F32));
        path
    };
    let (first, second) = (shard("s0.npy", 0..20), shard("s1.npy", 20..N));
    std::fs::write(shards.join("s0.ids.txt"), names()[..20].join("\n")).unwrap();
    let both = load(&[&first, &second]).unwrap();
    assert_eq!(
        (both.n_rows(), both.index().row_id(3), both.index().row_id(20)),
        (N, "P03".into(), "s1:0".into())
    );
    let pattern = shards.join("s?.npy");
    for given in [&shards, &pattern] {
        let data = load(&[given]).unwrap();
        assert_eq!(data.fingerprint().unwrap(), both.fingerprint().unwrap(), "{}", given.display());
        assert!(data.warnings().is_empty());
    }
    assert_eq!(data_files(std::slice::from_ref(&shards)).unwrap().paths, [first.clone(), second.clone()]);
    let summary = inspect(&shards, &LoadOptions::default()).unwrap();
    assert_eq!((summary.n_files, summary.n_rows, summary.d_in), (2, N, D));

    // What is no data is named; what begins with a dot is not looked at.
    std::fs::write(shards.join("notes.md"), "about").unwrap();
    std::fs::write(shards.join(".hidden"), "x").unwrap();
    let data = load(&[&shards]).unwrap();
    assert_eq!(data.fingerprint().unwrap(), both.fingerprint().unwrap());
    assert!(data.warnings()[0].contains("1 of its entries is no data and is skipped, the first notes.md"));
    folder.file("shards/more.h5", |file| matrix(file, "x", 0, 2, D, false, |v: f32| v));
    message(load(&[&shards]), &shards, &["several formats", "*.h5' (1 file)", "*.npy' (2 files)"]);
    message(load(&[&folder.path("")]), &folder.path(""), &["holds no data files", "shards"]);
    let none: PathBuf = shards.join("*.parquet");
    message(load(&[&none]), &none, &["is neither a file nor a pattern that matches one"]);
}

#[test]
fn files_that_look_like_a_protein_each_are_warned_of() {
    let folder = Folder::new();
    let rows = bytes(0..N, Dtype::F32);
    let paths: Vec<PathBuf> = (1..=3)
        .map(|n| {
            let path = folder.path(&format!("P{n}.npy"));
            npy(&path, "<f4", false, &format!("{n}, {D}"), &rows[..n * D * 4]);
            path
        })
        .collect();
    let all: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let told = |data: &Embeddings| data.warnings().iter().any(|warning| warning.contains("add --ids file"));
    assert!(told(&load(&all).unwrap()));
    // Shards have one length, but for the last.
    assert!(!told(&load(&all[..2]).unwrap()));
    let options = LoadOptions { ids: Some("file".into()), ..LoadOptions::default() };
    let data = load_with(&all, &options).unwrap();
    assert!(!told(&data));
    assert_eq!(data.index().n_groups(), 3);
}

#[test]
fn damaged_and_foreign_headers_are_refused() {
    let folder = Folder::new();
    let path = folder.path("a.npy");
    let rows = bytes(0..N, Dtype::F32);
    let shape = format!("{N}, {D}");
    npy(&path, "<f4", false, &shape, &rows[..rows.len() - 1]);
    message(load(&[&path]), &path, &["cut short"]);
    npy(&path, "<f4", true, &shape, &rows[..rows.len() - 1]);
    message(load(&[&path]), &path, &["cut short"]);
    npy(&path, "<f4", false, "4611686018427387904, 4", &rows);
    message(load(&[&path]), &path, &["at most 4294967295 can be used"]);
    npy(&path, "<f4", false, "4000000000, 1000", &rows);
    message(load(&[&path]), &path, &["cut short"]);
    npy(&path, "<f8", false, "2, 4611686018427387904", &rows);
    message(load(&[&path]), &path, &["impossible shape"]);
    npy(&path, "<f4", false, "3000000, 3", &rows);
    message(load(&[&path]), &path, &["cut short"]);
    npy(&path, "<f4", true, "2, 3, 37", &rows);
    message(load(&[&path]), &path, &["3 axes in Fortran's order", "numpy.ascontiguousarray"]);
    npy(&path, "|O", false, "4,", &rows);
    message(load(&[&path]), &path, &["Python objects"]);
    npy(&path, "<i4", false, &shape, &rows);
    message(load(&[&path]), &path, &["integers"]);
    npy(&path, &format!("<f4', {}'", "(".repeat(100)), false, &shape, &rows);
    message(load(&[&path]), &path, &["damaged .npy header"]);
    std::fs::write(&path, b"\x93NUMPY\x01\x00\xff\xff").unwrap();
    message(load(&[&path]), &path, &["damaged .npy header"]);

    let path = folder.path("a.safetensors");
    std::fs::write(&path, b"\x20\0\0\0\0\0\0\0{\"x\":{\"dtype\":\"F32\"").unwrap();
    message(load(&[&path]), &path, &["damaged .safetensors header"]);
    safetensors(&path, &[("x", safetensors::Dtype::F32, &[N, D], &rows)]);
    let mut cut = std::fs::read(&path).unwrap();
    cut.pop();
    std::fs::write(&path, cut).unwrap();
    message(load(&[&path]), &path, &["cut short"]);
    safetensors(&path, &[("a.weight", safetensors::Dtype::F32, &[N, D], &rows)]);
    message(load(&[&path]), &path, &["weights of a network"]);
}

#[test]
fn more_files_than_may_be_open_by_default_are_read() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("vectors")).unwrap();
    let rows = bytes(0..1, Dtype::F32);
    for n in 0..1100 {
        npy(&folder.path(&format!("vectors/P{n:04}.npy")), "<f4", false, &format!("{D},"), &rows);
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a structure that outlives both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = 1024.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    let data = Embeddings::load(&[folder.path("vectors")], &LoadOptions::default());
    if limit.rlim_max < 2300 {
        assert!(data.unwrap_err().to_string().contains("`ulimit -n "));
    } else {
        assert_eq!(data.unwrap().n_rows(), 1100);
    }
}
