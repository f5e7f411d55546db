//! Small HDF5 files for the data tests.
#![allow(dead_code)] // Each test file uses a part.

#[path = "../data_fixtures/streamed.rs"]
mod streamed;

use std::ffi::CString;
use std::path::{Path, PathBuf};

use hdf5::sync::sync;
use hdf5_sys::{h5d, h5p, h5s, h5t};
use topk_sae::data::{BadRows, DataFiles, Embeddings, LoadOptions};
use topk_sae::error::Error;

/// A folder that goes away at the end of a test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes the file `name` with what `fill` writes.
    pub fn file(&self, name: &str, fill: impl FnOnce(&hdf5::File)) -> PathBuf {
        let path = self.path(name);
        let file = hdf5::File::create(&path).expect("a new file");
        fill(&file);
        file.close().expect("written");
        path
    }
}

/// The value of row `row`, column `column` that fixtures hold: exact in every type.
pub fn value(row: usize, column: usize) -> f32 {
    (row * 8 + column) as f32 - 16.0
}

/// A 1-D dataset with the values of row `row`.
pub fn vector<T: hdf5::H5Type>(
    group: &hdf5::Group,
    name: &str,
    row: usize,
    width: usize,
    convert: impl Fn(f32) -> T,
) {
    let values: Vec<T> = (0..width).map(|column| convert(value(row, column))).collect();
    group.new_dataset_builder().with_data(&values).create(name).expect("a dataset");
}

/// A matrix with rows `first..first + n`.
pub fn matrix<T: hdf5::H5Type>(
    group: &hdf5::Group,
    name: &str,
    first: usize,
    n: usize,
    width: usize,
    gzip: bool,
    convert: impl Fn(f32) -> T,
) {
    let builder =
        if gzip { group.new_dataset::<T>().chunk((2, width)).deflate(4) } else { group.new_dataset::<T>() };
    let dataset = builder.shape((n, width)).create(name).expect("a dataset");
    let values: Vec<T> = (0..n * width).map(|i| convert(value(first + i / width, i % width))).collect();
    dataset.as_writer().write_raw(&values).expect("written");
}

/// Variable-length strings.
pub fn strings(group: &hdf5::Group, name: &str, texts: &[&str]) {
    use hdf5::types::VarLenUnicode;
    let values: Vec<VarLenUnicode> = texts.iter().map(|text| text.parse().expect("no NUL")).collect();
    group.new_dataset_builder().with_data(&values).create(name).expect("a dataset");
}

/// Strings of 12 bytes each.
pub fn fixed_strings(group: &hdf5::Group, name: &str, texts: &[&str]) {
    use hdf5::types::FixedAscii;
    let values: Vec<FixedAscii<12>> =
        texts.iter().map(|text| FixedAscii::from_ascii(text).expect("ASCII")).collect();
    group.new_dataset_builder().with_data(&values).create(name).expect("a dataset");
}

/// A float type that the hdf5 crate has no Rust type for.
pub enum FileType {
    F32Be,
    F64Be,
    F16Be,
    Bf16,
    /// 24 bits, which nothing reads.
    Odd,
}

/// A dataset of such a type from raw bytes.
pub fn raw(file: &hdf5::File, name: &str, shape: &[u64], kind: &FileType, bytes: &[u8]) {
    let name = CString::new(name).expect("no NUL");
    let n: u64 = shape.iter().product();
    // SAFETY: ids come from the calls just before; `bytes` is checked to hold `n` values.
    sync(|| unsafe {
        let base = match kind {
            FileType::F32Be => *h5t::H5T_IEEE_F32BE,
            FileType::F64Be => *h5t::H5T_IEEE_F64BE,
            FileType::F16Be => *h5t::H5T_IEEE_F32BE,
            FileType::Bf16 | FileType::Odd => *h5t::H5T_IEEE_F32LE,
        };
        let id = h5t::H5Tcopy(base);
        match kind {
            FileType::F16Be => {
                h5t::H5Tset_fields(id, 15, 10, 5, 0, 10);
                h5t::H5Tset_size(id, 2);
                h5t::H5Tset_ebias(id, 15);
            }
            FileType::Bf16 => {
                h5t::H5Tset_fields(id, 15, 7, 8, 0, 7);
                h5t::H5Tset_size(id, 2);
                h5t::H5Tset_ebias(id, 127);
            }
            FileType::Odd => {
                h5t::H5Tset_fields(id, 23, 15, 8, 0, 15);
                h5t::H5Tset_size(id, 3);
                h5t::H5Tset_ebias(id, 127);
            }
            _ => {}
        }
        assert_eq!(n as usize * h5t::H5Tget_size(id), bytes.len());
        let space = h5s::H5Screate_simple(shape.len() as i32, shape.as_ptr(), std::ptr::null());
        let list = h5p::H5P_DEFAULT;
        let set = h5d::H5Dcreate2(file.id(), name.as_ptr(), id, space, list, list, list);
        assert!(set > 0);
        let all = h5s::H5S_ALL;
        assert!(h5d::H5Dwrite(set, id, all, all, list, bytes.as_ptr().cast()) >= 0);
        h5d::H5Dclose(set);
        h5s::H5Sclose(space);
        h5t::H5Tclose(id);
    });
}

/// A (2, 4) float32 matrix in one chunk that says it went through the filter `id`, which is not installed.
pub fn filtered(file: &hdf5::File, name: &str, id: i32) {
    let name = CString::new(name).expect("no NUL");
    let chunk = [0u8; 32];
    // SAFETY: ids come from the calls just before; two axes are given, and 32 bytes.
    sync(|| unsafe {
        let space = h5s::H5Screate_simple(2, [2u64, 4].as_ptr(), std::ptr::null());
        let create = h5p::H5Pcreate(*h5p::H5P_CLS_DATASET_CREATE);
        assert!(h5p::H5Pset_chunk(create, 2, [2u64, 4].as_ptr()) >= 0);
        // Optional, or the dataset could not be made without it.
        let optional = 1;
        assert!(h5p::H5Pset_filter(create, id, optional, 0, std::ptr::null()) >= 0);
        let list = h5p::H5P_DEFAULT;
        let kind = *h5t::H5T_IEEE_F32LE;
        let set = h5d::H5Dcreate2(file.id(), name.as_ptr(), kind, space, list, create, list);
        assert!(set > 0);
        let written = h5d::H5Dwrite_chunk(set, list, 0, [0u64, 0].as_ptr(), 32, chunk.as_ptr().cast());
        assert!(written >= 0);
        h5d::H5Dclose(set);
        h5p::H5Pclose(create);
        h5s::H5Sclose(space);
    });
}

pub fn load(paths: &[&Path]) -> Result<Embeddings, Error> {
    load_with(paths, &LoadOptions::default())
}

pub fn load_with(paths: &[&Path], options: &LoadOptions) -> Result<Embeddings, Error> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let whole = Embeddings::load(&paths, options);
    comes_in_blocks_too(&paths, options, whole.as_ref().ok());
    streamed::stays_in_files_too(&paths, options, whole.as_ref());
    whole
}

/// Fails unless the same rows come block by block, or are refused there too.
fn comes_in_blocks_too(paths: &[PathBuf], options: &LoadOptions, whole: Option<&Embeddings>) {
    let small = whole.is_none_or(|data| data.n_rows() < 2000);
    for bytes in [1, 100, 1 << 20].into_iter().filter(|&bytes| small || bytes > 100) {
        let read = || -> Result<usize, Error> {
            let files = DataFiles::open(paths, options)?;
            let mut blocks = files.blocks(bytes)?;
            let mut at = 0;
            while let Some(block) = blocks.next_block()? {
                for n in 0..block.n_rows() {
                    let Some(data) = whole else { continue };
                    assert_eq!(
                        (block.index().row_id(n), row(&block, n)),
                        (data.index().row_id(at + n), row(data, at + n))
                    );
                    let group =
                        |data: &Embeddings, row| data.index().group_id(data.index().group_of(row)).to_owned();
                    assert_eq!(group(&block, n), group(data, at + n));
                    assert_eq!((block.d_in(), block.dtype()), (data.d_in(), data.dtype()));
                }
                at += block.n_rows();
            }
            let skipped = whole.map(Embeddings::skipped);
            assert!(skipped.is_none_or(|s| s == blocks.skipped()), "{skipped:?} {:?}", blocks.skipped());
            assert_eq!(blocks.rows_done(), blocks.n_rows());
            Ok(at)
        };
        match (read(), whole) {
            (Ok(rows), Some(data)) => assert_eq!(rows, data.n_rows()),
            // Where nothing is left, the caller tells.
            (Ok(rows), None) => assert_eq!(rows, 0, "{paths:?} was refused as a whole"),
            (Err(error), Some(_)) => panic!("{paths:?} was refused in blocks: {error}"),
            (Err(_), None) => {}
        }
    }
}

pub fn skipping() -> LoadOptions {
    LoadOptions { bad_rows: BadRows::SkipAll, ..LoadOptions::default() }
}

pub fn dataset(name: &str) -> LoadOptions {
    LoadOptions { dataset: Some(name.to_owned()), ..LoadOptions::default() }
}

pub fn ids(data: &Embeddings) -> Vec<String> {
    (0..data.n_rows()).map(|row| data.index().row_id(row)).collect()
}

pub fn row(data: &Embeddings, row: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.d_in()];
    data.row_into(row, &mut out);
    out
}

/// Asserts that row `index` holds the values of fixture row `fixture`.
pub fn assert_row(data: &Embeddings, index: usize, fixture: usize) {
    let expected: Vec<f32> = (0..data.d_in()).map(|column| value(fixture, column)).collect();
    assert_eq!(row(data, index), expected, "row {index}");
}

/// The message of the error, which must be one line, name the file and hold all `parts`.
pub fn message(result: Result<Embeddings, Error>, path: &Path, parts: &[&str]) -> String {
    let error = result.expect_err("an error").to_string();
    assert!(!error.contains('\n'), "more than one line: {error}");
    assert!(error.len() < 600, "long: {error}");
    let path = path.display().to_string();
    for part in parts.iter().chain([&path.as_str()]) {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    error
}
