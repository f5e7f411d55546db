//! Where codes are written: HDF5 or a table.

use crate::backend::Codes;
use crate::data::{brief, library_name};
use crate::error::{Error, Result};
use crate::model::file::ModelMeta;
use crate::spec::{Choice, Inference, choices};
use crate::text::tsv;
use hdf5::types::VarLenUnicode;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Rows or entries in a chunk of a dataset, about: some 256 KiB.
const CHUNK_VALUES: usize = 1 << 16;

choices! {
    /// How codes are written.
    pub enum CodeFormat {
        /// HDF5: (N, k) indices and values, or compressed sparse rows
        H5 = "h5",
        /// A table of id, latent and value, one line per active latent
        Tsv = "tsv",
    }
}

/// What the file says of the model.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    model: String,
    width: usize,
    d_in: usize,
    /// How codes are made.
    inference: Inference,
    /// Latents of the prefix that is kept alone, where it is one.
    prefix: Option<usize>,
    /// The fixed number of places per row; `None` where rows have as many entries as they have active latents.
    pub k: Option<usize>,
    /// k of training, whatever the inference.
    trained_k: usize,
}

impl Shape {
    /// Of the model called `model`.
    pub fn new(meta: &ModelMeta, model: String, prefix: Option<usize>) -> Self {
        let k =
            (meta.architecture.forward.inference == Inference::Topk).then_some(meta.architecture.forward.k);
        Self {
            model,
            width: meta.architecture.n_latents,
            d_in: meta.architecture.d_in,
            inference: meta.architecture.forward.inference,
            prefix,
            k,
            trained_k: meta.architecture.forward.k,
        }
    }
}

/// A file of codes that is being written.
pub(super) struct Sink {
    /// Named in errors: the temporary file's name helps nobody.
    shown: PathBuf,
    file: File,
    rows: usize,
    active: usize,
}

enum File {
    Hdf5(Box<Hdf5>),
    Table(BufWriter<std::fs::File>),
}

struct Hdf5 {
    file: hdf5::File,
    ids: hdf5::Dataset,
    indices: hdf5::Dataset,
    values: hdf5::Dataset,
    /// Places per row, or where rows begin.
    rows: Rows,
}

enum Rows {
    Fixed(usize),
    Compressed(hdf5::Dataset),
}

impl Sink {
    /// Begins an HDF5 file at `path` that will be called `shown`.
    ///
    /// # Errors
    /// A file that cannot be made.
    pub fn hdf5(path: &Path, shown: &Path, shape: &Shape) -> Result<Self> {
        let file = Hdf5::create(path, shape).map_err(refused(shown))?;
        Ok(Self::new(shown, File::Hdf5(Box::new(file))))
    }

    /// Begins a table in `file` that will be called `shown`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn table(file: &std::fs::File, shown: &Path) -> Result<Self> {
        let begin = || {
            let mut file = BufWriter::new(file.try_clone()?);
            file.write_all(b"id\tlatent\tvalue\n").map(|()| file)
        };
        Ok(Self::new(shown, File::Table(begin().map_err(Error::io(shown, "write"))?)))
    }

    fn new(shown: &Path, file: File) -> Self {
        Self { shown: shown.to_owned(), file, rows: 0, active: 0 }
    }

    /// Adds rows with their ids.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn add(&mut self, ids: &[String], codes: &Codes) -> Result<()> {
        match &mut self.file {
            File::Hdf5(file) => {
                file.add(ids, codes, self.rows, self.active).map_err(refused(&self.shown))?;
            }
            File::Table(file) => {
                write_lines(file, ids, codes).map_err(Error::io(&self.shown, "write"))?;
            }
        }
        self.rows += codes.n_rows();
        self.active += codes.indices.len();
        Ok(())
    }

    /// Ends the file; rows and active latents written.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn finish(self) -> Result<(u64, u64)> {
        match self.file {
            File::Hdf5(file) => file.file.flush().map_err(refused(&self.shown))?,
            File::Table(mut file) => file.flush().map_err(Error::io(&self.shown, "write"))?,
        }
        Ok((self.rows as u64, self.active as u64))
    }
}

/// An error of the library on the file `path`.
fn refused(path: &Path) -> impl FnOnce(hdf5::Error) -> Error {
    let path = path.to_owned();
    move |error| {
        let why = brief(&error);
        // The library passes on what the system said: `..., errno = 28, error message = ...`.
        let digits = why.split_once("errno = ").map(|(_, rest)| rest.split(',').next().unwrap_or(rest));
        match digits.and_then(|digits| digits.trim().parse().ok()) {
            Some(errno) => Error::io(&path, "write")(std::io::Error::from_raw_os_error(errno)),
            None => Error::Failed(format!(
                "{}: HDF5 cannot write it ({why}); name another place with --out",
                path.display()
            )),
        }
    }
}

/// A line an active latent; values with as many digits as give the same float32 again.
fn write_lines(file: &mut impl Write, ids: &[String], codes: &Codes) -> std::io::Result<()> {
    for (i, id) in ids.iter().enumerate() {
        let (latents, values) = codes.row(i);
        let id = tsv::field(id);
        for (latent, value) in latents.iter().zip(values) {
            writeln!(file, "{id}\t{latent}\t{value}")?;
        }
    }
    Ok(())
}

impl Hdf5 {
    fn create(path: &Path, shape: &Shape) -> hdf5::Result<Self> {
        let there = std::fs::File::open(path).map_err(|e| hdf5::Error::from(e.to_string()))?;
        let file = hdf5::File::create(library_name(path, &there))?;
        let text = |name: &str, value: &str| -> hdf5::Result<()> {
            let value: VarLenUnicode = value.parse().map_err(|_| "an attribute holds a NUL")?;
            file.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&value)
        };
        let number = |name: &str, value: usize| -> hdf5::Result<()> {
            file.new_attr::<u64>().create(name)?.write_scalar(&(value as u64))
        };
        text("model", &shape.model)?;
        text("version", concat!("sae ", env!("CARGO_PKG_VERSION")))?;
        text("inference", shape.inference.name())?;
        if let Some(prefix) = shape.prefix {
            number("prefix", prefix)?;
        }
        number("k", shape.trained_k)?;
        number("width", shape.width)?;
        number("d_in", shape.d_in)?;
        let ids = file.new_dataset::<VarLenUnicode>().chunk(4096).shape(0..).create("ids")?;
        let (indices, values, rows) = match shape.k {
            Some(k) => {
                let chunk = ((CHUNK_VALUES / k).max(1), k);
                let indices = file.new_dataset::<u32>().chunk(chunk).shape((0.., k)).create("indices")?;
                let values = file.new_dataset::<f32>().chunk(chunk).shape((0.., k)).create("values")?;
                (indices, values, Rows::Fixed(k))
            }
            None => {
                let indices = file.new_dataset::<u32>().chunk(CHUNK_VALUES).shape(0..).create("indices")?;
                let values = file.new_dataset::<f32>().chunk(CHUNK_VALUES).shape(0..).create("data")?;
                let indptr = file.new_dataset::<u64>().chunk(4096).shape(0..).create("indptr")?;
                indptr.resize(1)?;
                indptr.write_slice(&[0u64], 0..1)?;
                (indices, values, Rows::Compressed(indptr))
            }
        };
        Ok(Self { file, ids, indices, values, rows })
    }

    /// Adds rows after `rows` rows with `active` entries.
    fn add(&self, ids: &[String], codes: &Codes, rows: usize, active: usize) -> hdf5::Result<()> {
        let (n, entries) = (codes.n_rows(), codes.indices.len());
        let text =
            |id: &String| id.parse::<VarLenUnicode>().map_err(|_| hdf5::Error::from("an id holds a NUL"));
        let texts = ids.iter().map(text).collect::<hdf5::Result<Vec<_>>>()?;
        self.ids.resize(rows + n)?;
        self.ids.write_slice(&texts, rows..rows + n)?;
        match &self.rows {
            Rows::Fixed(k) => {
                // Places that a row leaves free hold latent 0 with value 0, which adds nothing to a sparse matrix.
                let (mut indices, mut values) = (vec![0u32; n * k], vec![0f32; n * k]);
                for i in 0..n {
                    let (latents, numbers) = codes.row(i);
                    indices[i * k..i * k + latents.len()].copy_from_slice(latents);
                    values[i * k..i * k + latents.len()].copy_from_slice(numbers);
                }
                let wrong = |_| hdf5::Error::from("rows of another length");
                let indices = ndarray::ArrayView2::from_shape((n, *k), &indices).map_err(wrong)?;
                let values = ndarray::ArrayView2::from_shape((n, *k), &values).map_err(wrong)?;
                self.indices.resize((rows + n, *k))?;
                self.values.resize((rows + n, *k))?;
                self.indices.write_slice(indices, (rows..rows + n, ..))?;
                self.values.write_slice(values, (rows..rows + n, ..))
            }
            Rows::Compressed(indptr) => {
                let ends: Vec<u64> = codes.indptr[1..].iter().map(|end| end + active as u64).collect();
                indptr.resize(rows + n + 1)?;
                indptr.write_slice(&ends, rows + 1..rows + n + 1)?;
                if entries == 0 {
                    return Ok(());
                }
                self.indices.resize(active + entries)?;
                self.values.resize(active + entries)?;
                self.indices.write_slice(&codes.indices, active..active + entries)?;
                self.values.write_slice(&codes.values, active..active + entries)
            }
        }
    }
}
