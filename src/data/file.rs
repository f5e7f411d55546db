//! An open data file of any format, and what is said of its datasets.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::flat::Flat;
use super::h5;
use super::kind::Stored;
use super::signature::{self, Format};
#[cfg(feature = "parquet")]
use super::table::Table;
use super::view::View;
use crate::error::{Error, Result};

/// An open file, once for its format and once for plain reads at known offsets.
pub(super) struct File {
    pub path: PathBuf,
    pub raw: std::fs::File,
    pub len: u64,
    pub store: Store,
}

/// The format of a file, and what reads it.
pub(super) enum Store {
    Hdf5 {
        hdf: hdf5::File,
        /// Offsets in headers are those of the file, eight bytes long.
        plain: bool,
        /// The library's number of this file.
        number: u64,
    },
    Flat(Flat),
    #[cfg(feature = "parquet")]
    Table(Table),
}

/// What a dataset holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Float(Stored),
    Text,
    /// Floats of a format that is not read.
    OddFloat(String),
    Integer {
        /// Bytes of a value.
        size: usize,
    },
    /// Values of 16 bits whose type nobody says, as h5py writes bfloat16.
    Opaque16,
    Other(&'static str),
}

impl Kind {
    /// Whether values may be the bits of bfloat16 numbers.
    pub fn may_be_bfloat16(&self) -> bool {
        matches!(self, Self::Integer { size: 2 } | Self::Opaque16)
    }
}

/// Where the values are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// Contiguous and uncompressed, from this byte of the file on.
    At(u64),
    /// Chunked, compressed, compact, external, virtual or never written: the format's library reads it.
    Library,
}

/// One dataset and how to get at it.
#[derive(Clone, Debug)]
pub(super) struct Dataset {
    /// From the root, without the leading slash.
    pub path: String,
    pub shape: Vec<u64>,
    pub kind: Kind,
    pub place: Place,
}

impl File {
    pub fn open(path: &Path) -> Result<Self> {
        let raw = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        let meta = raw.metadata().map_err(Error::io(path, "open"))?;
        let len = meta.len();
        let store = match signature::format(path, &raw, &meta)? {
            Format::Hdf5 => h5::open(path, &raw, len)?,
            Format::Npy => Store::Flat(Flat::npy(path, &raw, len)?),
            #[cfg(feature = "parquet")]
            Format::Parquet => Store::Table(Table::open(path, &raw)?),
            Format::Safetensors => Store::Flat(Flat::safetensors(path, &raw)?),
        };
        Ok(Self { path: path.to_owned(), raw, len, store })
    }

    /// The file for its library, if it is HDF5.
    pub fn hdf(&self) -> Option<&hdf5::File> {
        match &self.store {
            Store::Hdf5 { hdf, .. } => Some(hdf),
            _ => None,
        }
    }

    /// Whether it is HDF5 whose headers can be read without the library.
    pub fn is_plain(&self) -> bool {
        matches!(self.store, Store::Hdf5 { plain: true, .. })
    }

    /// Whether the first axis of a matrix, as the file has it, are the columns.
    pub fn columns_first(&self) -> bool {
        matches!(&self.store, Store::Flat(flat) if flat.columns_first)
    }

    /// Whether its one dataset has no name but the file's.
    pub fn is_named_by_its_path(&self) -> bool {
        matches!(&self.store, Store::Flat(flat) if flat.name == ".npy")
    }

    /// Reads the rows `rows` of a dataset as `view` sees it, without conversion, column by column where the view is
    /// transposed; `out` must be exactly their size. `size` is that of a value.
    pub fn read_rows(
        &self,
        dataset: &Dataset,
        view: &View,
        rows: Range<u64>,
        size: usize,
        out: &mut [u8],
    ) -> Result<()> {
        match &self.store {
            Store::Hdf5 { .. } => match self.read_chunks(dataset, view, rows.clone(), size, out)? {
                Some(()) => Ok(()),
                None => self.read_slab(dataset, view, rows, size, out),
            },
            Store::Flat(_) => self.read_strided(dataset, view, rows, size, out),
            #[cfg(feature = "parquet")]
            Store::Table(table) => self.read_lists(table, dataset, view, rows, out),
        }
    }

    /// Reads a dataset of integers.
    pub fn read_integers(&self, dataset: &Dataset) -> Result<Vec<i64>> {
        match &self.store {
            Store::Hdf5 { .. } => self.read_integers_of(dataset),
            Store::Flat(flat) => self.read_flat_integers(flat, dataset),
            #[cfg(feature = "parquet")]
            Store::Table(table) => self.read_table_integers(table, dataset),
        }
    }

    /// Reads a dataset of texts as bytes.
    pub fn read_strings(&self, dataset: &Dataset) -> Result<Vec<Vec<u8>>> {
        match &self.store {
            Store::Hdf5 { .. } => self.read_strings_of(dataset),
            // These formats have no texts.
            Store::Flat(_) => Ok(vec![]),
            #[cfg(feature = "parquet")]
            Store::Table(table) => self.read_table_strings(table, dataset),
        }
    }

    /// The datasets, where the header lists them all; `None` for HDF5, whose groups are searched.
    pub fn listed(&self) -> Option<&[Dataset]> {
        match &self.store {
            Store::Hdf5 { .. } => None,
            Store::Flat(flat) => Some(&flat.datasets),
            #[cfg(feature = "parquet")]
            Store::Table(table) => Some(&table.datasets),
        }
    }

    /// How the values of a dataset are stored, for people.
    pub fn storage(&self, dataset: &Dataset) -> String {
        match &self.store {
            Store::Hdf5 { hdf, .. } => h5::storage(hdf, &dataset.path),
            Store::Flat(flat) => flat.name.to_owned(),
            #[cfg(feature = "parquet")]
            Store::Table(_) => "Parquet".to_owned(),
        }
    }
}

/// `dataset "/x"`, as errors write it.
pub(super) fn place(dataset: &Dataset) -> String {
    format!("dataset \"/{}\"", dataset.path)
}
