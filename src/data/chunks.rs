//! Chunks of HDF5 datasets, read and unpacked on several threads: the library does one after the other, under its lock.
//!
//! The library says where a chunk lies in the file; its bytes are read from there, and what gzip and the shuffle filter did
//! to them is undone here. Everything else is left to the library: other filters, chunks that were never written, and
//! whatever is damaged, for which it has the better words.

use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use flate2::{Decompress, FlushDecompress, Status};
use hdf5::sync::sync;
use hdf5_sys::{h5d, h5p, h5s, h5t};
use rayon::prelude::*;

use super::file::{Dataset, File, Store};
use super::h5::Id;
use super::view::View;
use crate::error::Result;
use crate::interrupt::Requests;

/// Largest chunk that is unpacked here.
const LARGEST: u64 = 1 << 30;
/// Largest buffer that a thread keeps for its next chunk.
const MOST_KEPT: usize = 8 << 20;

thread_local! {
    /// A chunk as it is in the file, and half unpacked: new memory for each would take longer than to unpack it.
    static BUFFERS: RefCell<[Vec<u8>; 2]> = const { RefCell::new([vec![], vec![]]) };
}

/// The library's numbers of filters.
const DEFLATE: i32 = 1;
const SHUFFLE: i32 = 2;

/// How a matrix is chunked.
#[derive(Clone, Debug, PartialEq)]
struct Layout {
    rows: u64,
    columns: u64,
    /// Bytes of a value.
    size: usize,
    /// In the order in which they were applied.
    filters: Vec<Filter>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Filter {
    Deflate,
    Shuffle,
}

/// Where the bytes of a chunk are.
type Extent = Range<u64>;

/// Rows of one row of chunks, and where these are.
struct Band<'a> {
    /// Rows within the chunks.
    rows: Range<usize>,
    extents: &'a [Extent],
    out: &'a mut [u8],
}

impl Layout {
    fn bytes(&self) -> usize {
        (self.rows * self.columns) as usize * self.size
    }

    /// The layout of an open dataset of two axes; `None` where the library must read it.
    fn of(object: &Id, size: usize) -> Option<Self> {
        // SAFETY: live ids; `axes` and `value` have room for as many as the library is told.
        unsafe {
            let list = Id::new(h5d::H5Dget_create_plist(object.0)).ok()?;
            if h5p::H5Pget_layout(list.0) != h5d::H5D_layout_t::H5D_CHUNKED {
                return None;
            }
            let mut axes = [0u64; 2];
            let mut options = 0;
            // Chunks at the edge may be stored without filters, if a file asks for it.
            let usual = h5p::H5Pget_chunk_opts(list.0, &mut options) >= 0 && options == 0;
            if h5p::H5Pget_chunk(list.0, 2, axes.as_mut_ptr()) != 2 || !usual {
                return None;
            }
            let mut filters = vec![];
            for number in 0..u32::try_from(h5p::H5Pget_nfilters(list.0)).ok()? {
                let (mut flags, mut n, mut value, mut config) = (0, 1, [0u32; 1], 0);
                let (no_name, of) = (std::ptr::null_mut(), value.as_mut_ptr());
                match h5p::H5Pget_filter2(list.0, number, &mut flags, &mut n, of, 0, no_name, &mut config) {
                    DEFLATE => filters.push(Filter::Deflate),
                    SHUFFLE if n >= 1 && value[0] as usize == size => filters.push(Filter::Shuffle),
                    _ => return None,
                }
            }
            let [rows, columns] = axes;
            let bytes = rows.checked_mul(columns)?.checked_mul(size as u64)?;
            (1..=LARGEST).contains(&bytes).then_some(Self { rows, columns, size, filters })
        }
    }

    /// The bytes of a chunk from what the file has of it; `None` if that is damaged.
    fn unpack<'a>(&self, stored: &'a mut Vec<u8>, other: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let (mut now, mut next) = (stored, other);
        for filter in self.filters.iter().rev() {
            next.resize(self.bytes(), 0);
            match filter {
                Filter::Deflate => inflate(now, next)?,
                Filter::Shuffle => unshuffle(now, next, self.size)?,
            }
            (now, next) = (next, now);
        }
        (now.len() == self.bytes()).then_some(now)
    }

    /// Fills the rows of a band of a matrix of `width` columns; `None` where the library must.
    fn fill(
        &self,
        file: &std::fs::File,
        width: usize,
        band: Band<'_>,
        buffers: &mut [Vec<u8>; 2],
    ) -> Option<()> {
        let Band { rows, extents, out } = band;
        let [stored, other] = buffers;
        let row = width * self.size;
        for (n, extent) in extents.iter().enumerate() {
            let bytes = usize::try_from(extent.end - extent.start).ok()?;
            stored.resize(bytes, 0);
            file.read_exact_at(stored, extent.start).ok()?;
            let chunk = self.unpack(stored, other)?;
            let columns = self.columns as usize;
            let first = n * columns * self.size;
            let part = row.min(first + columns * self.size) - first;
            for (from, to) in
                chunk.chunks_exact(columns * self.size).skip(rows.start).zip(out.chunks_exact_mut(row))
            {
                to[first..first + part].copy_from_slice(&from[..part]);
            }
        }
        Some(())
    }
}

fn inflate(from: &[u8], to: &mut [u8]) -> Option<()> {
    let mut stream = Decompress::new(true);
    let ended = stream.decompress(from, to, FlushDecompress::Finish).ok()?;
    (ended == Status::StreamEnd && stream.total_out() == to.len() as u64).then_some(())
}

/// Undoes the shuffle filter: the first bytes of all values came first, then the second ones, and so on.
fn unshuffle(from: &[u8], to: &mut [u8], size: usize) -> Option<()> {
    if from.len() != to.len() || size == 0 || !to.len().is_multiple_of(size) {
        return None;
    }
    let n = to.len() / size;
    for (byte, from) in from.chunks_exact(n.max(1)).enumerate() {
        to.iter_mut().skip(byte).step_by(size).zip(from).for_each(|(to, &from)| *to = from);
    }
    Some(())
}

impl File {
    /// Rows that are unpacked together: those of a chunk of an HDF5 matrix that is read here, or of a group of a table.
    pub(super) fn chunk_rows(&self, dataset: &Dataset, view: &View, size: usize) -> Option<u64> {
        if let Some(rows) = self.group_rows() {
            return Some(rows);
        }
        sync(|| Some(self.chunked(dataset, view, size)?.1.rows))
    }

    /// Rows of a group of a table, which one thread decodes.
    pub(super) fn group_rows(&self) -> Option<u64> {
        match &self.store {
            #[cfg(feature = "parquet")]
            Store::Table(table) => table.group_rows(),
            _ => None,
        }
    }

    /// The open dataset and its layout; the library's lock is held.
    fn chunked(&self, dataset: &Dataset, view: &View, size: usize) -> Option<(Id, Layout)> {
        let Store::Hdf5 { plain: true, number, .. } = &self.store else { return None };
        let [rows, columns] = dataset.shape[..] else { return None };
        if view.rows != Some(0) || view.columns != 1 || self.identity(&dataset.path)?.0 != *number {
            return None;
        }
        let object = self.open_object(&dataset.path).ok()?;
        let mut shape = [0u64; 2];
        // SAFETY: live ids; `shape` has room for two axes, of which there are as many.
        unsafe {
            let kind = Id::new(h5d::H5Dget_type(object.0)).ok()?;
            let space = Id::new(h5d::H5Dget_space(object.0)).ok()?;
            if h5t::H5Tget_size(kind.0) != size
                || h5s::H5Sget_simple_extent_ndims(space.0) != 2
                || h5s::H5Sget_simple_extent_dims(space.0, shape.as_mut_ptr(), std::ptr::null_mut()) != 2
            {
                return None;
            }
        }
        let layout = Layout::of(&object, size)?;
        (shape == [rows, columns]).then_some((object, layout))
    }

    /// Reads rows as [`File::read_rows`] does, chunk by chunk on several threads; `None` where the library must.
    pub(super) fn read_chunks(
        &self,
        dataset: &Dataset,
        view: &View,
        rows: Range<u64>,
        size: usize,
        out: &mut [u8],
    ) -> Result<Option<()>> {
        let width = view.width(&dataset.shape) as usize;
        let found = sync(|| {
            let (object, layout) = self.chunked(dataset, view, size)?;
            let bands = rows.start / layout.rows..rows.end.div_ceil(layout.rows);
            let across = (width as u64).div_ceil(layout.columns);
            let mut extents = vec![];
            for (band, column) in bands.flat_map(|band| (0..across).map(move |column| (band, column))) {
                extents.push(self.extent(&object, [band * layout.rows, column * layout.columns])?);
            }
            Some((layout, extents, across as usize))
        });
        let Some((layout, extents, across)) = found else { return Ok(None) };
        if across == 0 || out.len() as u64 != (rows.end - rows.start) * (width * size) as u64 {
            return Ok(None);
        }
        let (mut bands, mut rest, mut first) = (vec![], out, rows.start);
        for extents in extents.chunks(across) {
            let within = (first % layout.rows) as usize;
            let n = (layout.rows - within as u64).min(rows.end - first) as usize;
            let (out, after) = rest.split_at_mut(n * width * size);
            bands.push(Band { rows: within..within + n, extents, out });
            (rest, first) = (after, first + n as u64);
        }
        let requests = Requests::here();
        let each = bands.into_par_iter().map(|band| {
            requests.check()?;
            Ok(BUFFERS.with_borrow_mut(|buffers| {
                let filled = layout.fill(&self.raw, width, band, buffers);
                buffers
                    .iter_mut()
                    .filter(|buffer| buffer.len() > MOST_KEPT)
                    .for_each(|buffer| *buffer = vec![]);
                filled
            }))
        });
        let filled: Result<Option<Vec<()>>> =
            each.collect::<Result<Vec<Option<()>>>>().map(|all| all.into_iter().collect());
        Ok(filled?.map(drop))
    }

    /// Where the chunk with the value `at` first is; `None` where there is none, or one that skipped a filter.
    fn extent(&self, object: &Id, at: [u64; 2]) -> Option<Extent> {
        let (mut skipped, mut address, mut bytes) = (0, 0, 0);
        // SAFETY: a live id of a dataset of two axes, which `at` has; three places to write to.
        let code = unsafe {
            h5d::H5Dget_chunk_info_by_coord(object.0, at.as_ptr(), &mut skipped, &mut address, &mut bytes)
        };
        let end = address.checked_add(bytes).filter(|&end| end <= self.len)?;
        (code >= 0 && skipped == 0 && bytes > 0).then_some(address..end)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::LoadOptions;
    use crate::data::reading::plan;

    const N: usize = 100;
    const D: usize = 24;

    fn value(i: usize) -> f32 {
        ((i * 7919) % 1013) as f32 / 8.0
    }

    /// Whether rows of a matrix that `make` describes are read here, and equal what the library reads.
    fn reads(make: impl FnOnce(hdf5::DatasetBuilderEmpty) -> hdf5::DatasetBuilderEmpty) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.h5");
        let file = hdf5::File::create(&path).unwrap();
        let dataset = make(file.new_dataset::<f32>()).shape((N, D)).create("x").unwrap();
        let values: Vec<f32> = (0..N * D).map(value).collect();
        dataset.as_writer().write_raw(&values).unwrap();
        drop(dataset);
        file.close().unwrap();
        let plan = plan(&path, &LoadOptions::default()).unwrap();
        let (file, piece) = (&plan.file, &plan.pieces[0]);
        let mut here = true;
        for (first, end) in [(0, N), (0, 1), (99, 100), (7, 8), (8, 9), (3, 64), (50, 50)] {
            let mut out = vec![7u8; (end - first) * D * 4];
            let read = file
                .read_chunks(&plan.datasets[piece.at], &piece.view, first as u64..end as u64, 4, &mut out)
                .unwrap();
            here &= read.is_some() || first == end;
            let meant: Vec<u8> = (first * D..end * D).flat_map(|i| value(i).to_ne_bytes()).collect();
            assert!(read.is_none() || out == meant, "{first}..{end}");
        }
        here
    }

    #[test]
    fn chunks_of_any_shape_are_read_here_where_their_filters_are_known() {
        for chunk in [(8, D), (1, D), (N, D), (7, 5), (33, 23), (3, 1)] {
            assert!(reads(|b| b.chunk(chunk)), "{chunk:?}");
            assert!(reads(|b| b.chunk(chunk).deflate(4)), "{chunk:?}");
            assert!(reads(|b| b.chunk(chunk).shuffle()), "{chunk:?}");
            assert!(reads(|b| b.chunk(chunk).shuffle().deflate(9)), "{chunk:?}");
        }
        assert!(!reads(|b| b));
        assert!(!reads(|b| b.chunk((8, D)).fletcher32()));
        assert!(!reads(|b| b.chunk((8, D)).lzf()));
    }

    #[test]
    fn what_is_damaged_is_left_to_the_library() {
        let mut packed = vec![];
        let mut stream = flate2::Compress::new(flate2::Compression::fast(), true);
        packed.reserve(1000);
        stream.compress_vec(&[5; 64], &mut packed, flate2::FlushCompress::Finish).unwrap();
        assert!(inflate(&packed, &mut [0; 64]).is_some());
        for (from, n) in
            [(&packed[..], 63), (&packed[..], 65), (&packed[..packed.len() - 5], 64), (&[1, 2, 3], 64)]
        {
            assert!(inflate(from, &mut vec![0; n]).is_none(), "{n}");
        }
        let mut flipped = packed.clone();
        *flipped.last_mut().unwrap() ^= 1;
        assert!(inflate(&flipped, &mut [0; 64]).is_none(), "its checksum is wrong");
        assert!(unshuffle(&[1, 2, 3], &mut [0; 4], 4).is_none());
        assert!(unshuffle(&[1, 2, 3], &mut [0; 3], 2).is_none());
    }
}
