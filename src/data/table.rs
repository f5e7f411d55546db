//! Parquet tables with a column of lists of floats, one list a row.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};

use bytes::Bytes;
use parquet::basic::{LogicalType, Type};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{
    ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::file::{Dataset, File, Kind, Place, place};
use super::flat::first_line;
use super::kind::Stored;
use super::view::View;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::rows::Dtype;
use crate::text::tsv::quoted_path;

/// Rows that are decoded at a time.
const BATCH: usize = 1024;

const NESTED: &str = "lists of lists";

/// An open file that several threads read at once, each at its own place.
#[derive(Clone)]
struct Shared(Arc<std::fs::File>);

/// A place in it.
struct From {
    file: Shared,
    at: u64,
}

impl Length for Shared {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }
}

impl Read for From {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.0.read_at(out, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl ChunkReader for Shared {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(From { file: self.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // A damaged file may ask for more than there is, and than the memory holds.
        if start.checked_add(length as u64).is_none_or(|end| end > self.len()) {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} on are not there")));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// A place in a group that is being decoded.
struct Cursor {
    group: usize,
    column: usize,
    /// Number of the next row.
    row: u64,
    /// A [`ColumnReaderImpl`] of the column's type.
    reader: Box<dyn Any + Send>,
}

/// An open table.
pub(super) struct Table {
    reader: SerializedFileReader<Shared>,
    /// Where the last read ended within a group: one that begins there need not decode the group from its start.
    cursor: Mutex<Option<Cursor>>,
    /// Columns, in the order of their names' bytes.
    pub datasets: Vec<Dataset>,
    /// Number of each column among those that Parquet stores.
    columns: HashMap<String, usize>,
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let why = first_line(why);
    let what = format!(
        "cannot be read as Parquet ({why}); write it again, for example with pandas: `pandas.read_parquet({:?}).to_parquet(\"new.parquet\")`",
        path.display().to_string()
    );
    Error::data(path, "", what)
}

/// What `f` gives; an error where it panics, as the decoder of the crate does on some damaged files.
fn guarded<R>(path: &Path, f: impl FnOnce() -> Result<R>) -> Result<R> {
    thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    // Such a panic is told as an error, not by the hook.
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
    GUARDED.set(false);
    result.unwrap_or_else(|_| Err(unreadable(path, &"it is damaged")))
}

impl Table {
    /// The columns of the table, by its footer: no values are read.
    pub fn open(path: &Path, raw: &std::fs::File) -> Result<Self> {
        let raw = Shared(Arc::new(raw.try_clone().map_err(Error::io(path, "open"))?));
        let reader =
            guarded(path, || SerializedFileReader::new(raw).map_err(|error| unreadable(path, &error)))?;
        let meta = reader.metadata();
        let n_rows = u64::try_from(meta.file_metadata().num_rows())
            .map_err(|_| unreadable(path, &"a negative number of rows"))?;
        let (mut datasets, mut columns, mut single) = (vec![], HashMap::new(), 0);
        for (at, column) in meta.file_metadata().schema_descr().columns().iter().enumerate() {
            let mut name = column.path().parts().to_vec();
            // A list is a group of a group of its values.
            let list = column.max_rep_level() == 1 && name.len() > 2;
            if list {
                name.truncate(name.len() - 2);
            }
            let name = name.join("/");
            let floats = floats(column);
            let (shape, kind) = match (floats, column.physical_type()) {
                (Some(dtype), _) if list => {
                    let chunks = meta.row_groups().iter().map(|group| group.column(at).num_values());
                    let n_values = chunks.map(|n| u64::try_from(n).unwrap_or(0)).fold(0, u64::saturating_add);
                    let width = n_values / n_rows.max(1);
                    if width * n_rows != n_values {
                        return Err(unlike(path, &name));
                    }
                    (
                        vec![n_rows, width],
                        Kind::Float(Stored { dtype, big_endian: cfg!(target_endian = "big") }),
                    )
                }
                (_, Type::BYTE_ARRAY) if column.max_rep_level() == 0 => (vec![n_rows], Kind::Text),
                (_, Type::INT32) if column.max_rep_level() == 0 => (vec![n_rows], Kind::Integer { size: 4 }),
                (_, Type::INT64) if column.max_rep_level() == 0 => (vec![n_rows], Kind::Integer { size: 8 }),
                (Some(_), _) if column.max_rep_level() == 0 => {
                    single += 1;
                    (vec![n_rows], Kind::Other("one float a row"))
                }
                (Some(_), _) => (vec![n_rows], Kind::Other(NESTED)),
                _ => (vec![n_rows], Kind::Other("values that are not numbers")),
            };
            columns.insert(name.clone(), at);
            datasets.push(Dataset { path: name, shape, kind, place: Place::Library });
        }
        let has_lists = datasets.iter().any(|d| matches!(d.kind, Kind::Float(_)));
        let nested = datasets.iter().find(|d| d.kind == Kind::Other(NESTED));
        if let Some(nested) = nested.filter(|_| !has_lists) {
            let what = format!(
                "has lists of lists in column \"{0}\"; if they are residues, write one dataset for each protein to HDF5: `python3 -c 'import h5py, numpy, pandas; f = h5py.File(\"new.h5\", \"w\"); [f.create_dataset(str(i), data=numpy.stack(x)) for i, x in pandas.read_parquet({1:?})[[\"ID\", {0:?}]].to_numpy()]'`",
                nested.path.split('/').next().unwrap_or_default(),
                path.display().to_string()
            );
            return Err(Error::data(path, "", what));
        }
        if single > 1 && !has_lists {
            let what = format!(
                "is a table with a column for each of {single} values, not one column of lists; write them as one array: `python3 -c 'import numpy, pandas; numpy.save(\"rows.npy\", pandas.read_parquet({:?}).select_dtypes(\"float\").to_numpy())'`",
                path.display().to_string()
            );
            return Err(Error::data(path, "", what));
        }
        datasets.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Ok(Self { reader, cursor: Mutex::default(), datasets, columns })
    }

    /// Rows of a group, which is decoded from its start; `None` where groups differ.
    pub fn group_rows(&self) -> Option<u64> {
        let groups = self.reader.metadata().row_groups();
        let rows = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).ok().filter(|&rows| rows > 0);
        let (last, first) = groups.split_last()?;
        let most = first.first().map_or_else(|| rows(last), rows)?;
        let alike =
            first.iter().all(|group| rows(group) == Some(most)) && rows(last).is_some_and(|n| n <= most);
        alike.then_some(most)
    }

    /// Decodes the rows `rows` of the column `name` and gives them to `take` in stretches: the number of the first row, how
    /// many, the values, and for lists where each begins among them (0 begins one).
    fn each<T: DataType>(
        &self,
        path: &Path,
        name: &str,
        rows: Range<u64>,
        mut take: impl FnMut(Stretch<'_, T::T>) -> Result<()>,
    ) -> Result<()> {
        let Some(&column) = self.columns.get(name) else { return Ok(()) };
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let highest = schema.column(column).max_def_level();
        guarded(path, || self.decode::<T>(path, column, rows, highest, &mut take))
    }

    fn decode<T: DataType>(
        &self,
        path: &Path,
        column: usize,
        rows: Range<u64>,
        highest: i16,
        take: &mut dyn FnMut(Stretch<'_, T::T>) -> Result<()>,
    ) -> Result<()> {
        let wrong = |error: parquet::errors::ParquetError| unreadable(path, &error);
        let mut start = 0u64;
        for group in 0..self.reader.num_row_groups() {
            let reader = self.reader.get_row_group(group).map_err(wrong)?;
            let n = u64::try_from(reader.metadata().num_rows()).unwrap_or(0);
            let (from, to) = (rows.start.clamp(start, start + n), rows.end.clamp(start, start + n));
            if from < to {
                let here =
                    |cursor: &mut Cursor| (cursor.group, cursor.column, cursor.row) == (group, column, from);
                let left = self.cursor.lock().unwrap_or_else(PoisonError::into_inner).take_if(here);
                let left = left.and_then(|cursor| cursor.reader.downcast::<ColumnReaderImpl<T>>().ok());
                let mut chunk = match left {
                    Some(chunk) => chunk,
                    None => {
                        let chunk = reader.get_column_reader(column).map_err(wrong)?;
                        let mut chunk = Box::new(get_typed_column_reader::<T>(chunk));
                        chunk.skip_records((from - start) as usize).map_err(wrong)?;
                        chunk
                    }
                };
                let mut row = from;
                let (mut values, mut present, mut lists) = (vec![], vec![], vec![]);
                while row < to {
                    interrupt::check()?;
                    values.clear();
                    present.clear();
                    lists.clear();
                    let most = ((to - row) as usize).min(BATCH);
                    let (n, ..) = chunk
                        .read_records(most, Some(&mut present), Some(&mut lists), &mut values)
                        .map_err(wrong)?;
                    if n == 0 || n > most {
                        return Err(unreadable(path, &"a group has fewer rows than it says"));
                    }
                    take(Stretch { highest, row, n, values: &values, present: &present, lists: &lists })?;
                    row += n as u64;
                }
                if to < start + n {
                    let cursor = Cursor { group, column, row: to, reader: chunk };
                    *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor);
                }
            }
            start += n;
        }
        if rows.end > start {
            return Err(unreadable(path, &"it has fewer rows than it says"));
        }
        Ok(())
    }
}

/// Rows that were decoded.
struct Stretch<'a, T> {
    /// Number of the first.
    row: u64,
    n: usize,
    values: &'a [T],
    /// The definition level of a value that is there.
    highest: i16,
    /// Definition levels: lower than that where a value, or a list, is missing; none where none can be.
    present: &'a [i16],
    /// Repetition levels: 0 begins a row.
    lists: &'a [i16],
}

/// The type of a column of floats.
fn floats(column: &ColumnDescriptor) -> Option<Dtype> {
    match column.physical_type() {
        Type::FLOAT => Some(Dtype::F32),
        Type::DOUBLE => Some(Dtype::F64),
        Type::FIXED_LEN_BYTE_ARRAY if column.logical_type_ref() == Some(&LogicalType::Float16) => {
            Some(Dtype::F16)
        }
        _ => None,
    }
}

fn unlike(path: &Path, column: &str) -> Error {
    let what = format!(
        "its lists are not all of one length; if they are residues, write one dataset for each protein to HDF5; see `python3 -c 'import pandas; print(pandas.read_parquet({:?})[{column:?}].str.len().describe())'`",
        path.display().to_string()
    );
    Error::data(path, format!("column \"{column}\""), what)
}

impl File {
    pub(super) fn read_lists(
        &self,
        table: &Table,
        dataset: &Dataset,
        view: &View,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        if view.rows != Some(0) {
            let what = format!(
                "its lists are its rows: leave out --index and --transpose, as in `sae inspect {}`",
                quoted_path(&self.path)
            );
            return Err(Error::data(&self.path, place(dataset), what));
        }
        let width = view.width(&dataset.shape) as usize;
        let Kind::Float(stored) = dataset.kind else { return Ok(()) };
        let size = stored.dtype.size();
        let mut rest = out;
        // `bytes` gives the values of a stretch, one after another.
        let mut put = |n: usize, bytes: &[u8]| {
            let (now, after) = std::mem::take(&mut rest).split_at_mut(n * width * size);
            now.copy_from_slice(bytes);
            rest = after;
        };
        let path = self.path.as_path();
        match stored.dtype {
            Dtype::F64 => table.each::<DoubleType>(path, &dataset.path, rows, |s| {
                s.check_lists(self, dataset, width)?;
                put(s.n, bytemuck::cast_slice(s.values));
                Ok(())
            }),
            Dtype::F32 => table.each::<FloatType>(path, &dataset.path, rows, |s| {
                s.check_lists(self, dataset, width)?;
                put(s.n, bytemuck::cast_slice(s.values));
                Ok(())
            }),
            Dtype::F16 | Dtype::Bf16 => table.each::<FixedLenByteArrayType>(path, &dataset.path, rows, |s| {
                s.check_lists(self, dataset, width)?;
                let number = |value: &parquet::data_type::FixedLenByteArray| {
                    let bytes = value.data().try_into().unwrap_or([0xff; 2]);
                    u16::from_le_bytes(bytes).to_ne_bytes()
                };
                let bytes: Vec<u8> = s.values.iter().flat_map(number).collect();
                put(s.n, &bytes);
                Ok(())
            }),
        }
    }

    pub(super) fn read_table_integers(&self, table: &Table, dataset: &Dataset) -> Result<Vec<i64>> {
        let (path, rows) = (self.path.as_path(), 0..dataset.shape[0]);
        let mut all = vec![];
        match dataset.kind {
            Kind::Integer { size: 4 } => table.each::<Int32Type>(path, &dataset.path, rows, |s| {
                s.check_one_each(self, dataset)?;
                all.extend(s.values.iter().map(|&value| i64::from(value)));
                Ok(())
            })?,
            _ => table.each::<Int64Type>(path, &dataset.path, rows, |s| {
                s.check_one_each(self, dataset)?;
                all.extend_from_slice(s.values);
                Ok(())
            })?,
        }
        Ok(all)
    }

    pub(super) fn read_table_strings(&self, table: &Table, dataset: &Dataset) -> Result<Vec<Vec<u8>>> {
        let mut all = vec![];
        table.each::<ByteArrayType>(&self.path, &dataset.path, 0..dataset.shape[0], |s| {
            let mut values = s.values.iter().map(|value| value.data().to_vec());
            if s.values.len() == s.n {
                all.extend(values);
            } else {
                // A missing text is an empty one.
                let mut text = |&level: &i16| if level == s.highest { values.next() } else { None };
                all.extend(s.present.iter().map(|level| text(level).unwrap_or_default()));
            }
            Ok(())
        })?;
        Ok(all)
    }
}

impl<T> Stretch<'_, T> {
    fn check_one_each(&self, file: &File, dataset: &Dataset) -> Result<()> {
        if self.values.len() == self.n {
            return Ok(());
        }
        let missing = self.present.iter().position(|&level| level < self.highest).unwrap_or(0);
        Err(self.missing(file, dataset, missing))
    }

    /// Every row is a list of `width` values.
    fn check_lists(&self, file: &File, dataset: &Dataset, width: usize) -> Result<()> {
        let begins = |(at, &level): (usize, &i16)| (level == 0) == (at % width.max(1) == 0);
        let whole = self.values.len() == self.n * width && self.lists.len() == self.values.len();
        if whole && self.lists.iter().enumerate().all(begins) {
            return Ok(());
        }
        if let Some(at) = self.present.iter().position(|&level| level < self.highest) {
            let row = self.lists[..=at].iter().filter(|&&level| level == 0).count() - 1;
            return Err(self.missing(file, dataset, row));
        }
        Err(unlike(&file.path, &dataset.path))
    }

    fn missing(&self, file: &File, dataset: &Dataset, row: usize) -> Error {
        let at = format!("column \"{}\", row {}", dataset.path, self.row + row as u64);
        Error::data(
            &file.path,
            at,
            "a value or list is missing; fill it or leave the row out, for example with pandas' dropna",
        )
    }
}
