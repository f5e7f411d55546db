//! Files whose header says where each tensor's values lie: `.npy` and `.safetensors`.

use std::collections::HashSet;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::file::{Dataset, File, Kind, Place, place};
use super::kind::Stored;
use super::view::View;
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt;
use crate::rows::Dtype;

/// Longest header of a .npy file that is read; NumPy's own limit for files it does not trust is 10,000 bytes.
const LONGEST_NPY: u64 = 1 << 16;

/// What the header says.
pub(super) struct Flat {
    /// The format, for people.
    pub name: &'static str,
    /// In the order of their names' bytes.
    pub datasets: Vec<Dataset>,
    /// The array is in Fortran's order: its shape is given here as it lies in the file, the last axis first.
    pub columns_first: bool,
    /// Names of the datasets whose integers have no sign.
    unsigned: HashSet<String>,
}

impl Flat {
    /// The header of a .npy file; its one dataset has the file's name, without the ending.
    pub fn npy(path: &Path, raw: &std::fs::File, len: u64) -> Result<Self> {
        let wrong = |what: String| Error::data(path, "", what);
        let damaged = |why: &dyn std::fmt::Display| {
            wrong(format!("has a damaged .npy header ({}); write or copy it again", first_line(why)))
        };
        let start = read_at(path, raw, 0, len.min(LONGEST_NPY) as usize)?;
        // Bytes before the header's text, and those of the text; version 1 has two bytes for the latter.
        let (before, text) = match start.get(6..12) {
            Some(&[1, _, low, high, ..]) => (10, u64::from(u16::from_le_bytes([low, high]))),
            Some(&[_, _, a, b, c, d]) => (12, u64::from(u32::from_le_bytes([a, b, c, d]))),
            _ => return Err(damaged(&"cut short")),
        };
        let offset = before + text;
        let Some(header) = start.get(..offset as usize) else {
            return Err(damaged(&"it is cut short, or too long"));
        };
        // The parser goes one call deeper for each bracket; the plain header has two.
        if header.iter().filter(|byte| b"([{".contains(byte)).count() > 64 {
            return Err(damaged(&"it is not that of an array of numbers"));
        }
        let header = NpyHeader::from_reader(header).map_err(|error| damaged(&error))?;
        let mut shape = header.shape().to_vec();
        let columns_first = header.order() == Order::Fortran && shape.len() > 1;
        if columns_first && shape.len() > 2 {
            return Err(wrong(format!(
                "holds an array of {} axes in Fortran's order; write it again with `numpy.save(\"new.npy\", numpy.ascontiguousarray(a))`",
                shape.len()
            )));
        }
        if columns_first {
            shape.reverse();
        }
        let DType::Plain(number) = header.dtype() else {
            return Err(wrong(
                "holds records with named fields; write their numbers as one array of floats, with numpy.save"
                    .into(),
            ));
        };
        let big_endian = number.endianness() == Endianness::Big;
        let size = number.size_field() as usize;
        let float = |dtype| Kind::Float(Stored { dtype, big_endian });
        let kind = match (number.type_char(), size) {
            (TypeChar::Float, 2) => float(Dtype::F16),
            (TypeChar::Float, 4) => float(Dtype::F32),
            (TypeChar::Float, 8) => float(Dtype::F64),
            (TypeChar::Float, _) => Kind::OddFloat(format!("floats of {size} bytes")),
            // NumPy has no bfloat16: ml_dtypes' is saved as bytes without a meaning.
            (TypeChar::Int | TypeChar::Uint, _) if big_endian => Kind::Other("big-endian integers"),
            (TypeChar::Int | TypeChar::Uint, _) | (TypeChar::RawData, 2) => Kind::Integer { size },
            (TypeChar::Object, _) => Kind::Other("Python objects"),
            (TypeChar::ByteStr | TypeChar::UnicodeStr, _) => Kind::Other("text"),
            (TypeChar::Bool, _) => Kind::Other("truth values"),
            (TypeChar::Complex, _) => Kind::Other("complex numbers"),
            _ => Kind::Other("values that are not numbers"),
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let unsigned = (number.type_char() == TypeChar::Uint).then(|| stem.clone()).into_iter().collect();
        let dataset = Dataset { path: stem, shape, kind, place: Place::At(offset) };
        Ok(Self { name: ".npy", datasets: vec![dataset], columns_first, unsigned })
    }

    /// The header of a .safetensors file; its datasets have the tensors' names.
    pub fn safetensors(path: &Path, raw: &std::fs::File) -> Result<Self> {
        let (header, start) = files::safetensors_header(path, raw)?;
        if files::is_model(&header) {
            let what = "is a model that `sae train` wrote; give the embeddings that it is to be used on";
            return Err(Error::data(path, "", what));
        }
        let mut unsigned = HashSet::new();
        let mut datasets = vec![];
        for (name, info) in header.tensors() {
            use safetensors::Dtype as In;
            let float = |dtype| Kind::Float(Stored { dtype, big_endian: false });
            let name = name.trim_matches('/').to_owned();
            let kind = match info.dtype {
                In::F16 => float(Dtype::F16),
                In::BF16 => float(Dtype::Bf16),
                In::F32 => float(Dtype::F32),
                In::F64 => float(Dtype::F64),
                In::I8 | In::I16 | In::I32 | In::I64 => Kind::Integer { size: info.dtype.bitsize() / 8 },
                In::U8 | In::U16 | In::U32 | In::U64 => {
                    unsigned.insert(name.clone());
                    Kind::Integer { size: info.dtype.bitsize() / 8 }
                }
                In::BOOL => Kind::Other("truth values"),
                In::C64 => Kind::Other("complex numbers"),
                other => Kind::OddFloat(format!("floats of the type {other:?}")),
            };
            let shape = info.shape.iter().map(|&n| n as u64).collect();
            let at = start + info.data_offsets.0 as u64;
            datasets.push(Dataset { path: name, shape, kind, place: Place::At(at) });
        }
        datasets.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Ok(Self { name: ".safetensors", datasets, columns_first: false, unsigned })
    }
}

/// The first line of a library's answer, which may draw the place below it.
pub(super) fn first_line(why: &dyn std::fmt::Display) -> String {
    why.to_string().lines().next().unwrap_or_default().trim_end().to_owned()
}

fn read_at(path: &Path, raw: &std::fs::File, at: u64, n: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; n];
    raw.read_exact_at(&mut bytes, at).map_err(Error::io(path, "read"))?;
    Ok(bytes)
}

impl File {
    /// Reads rows whose values do not lie one after another, as [`File::read_rows`] has them.
    pub(super) fn read_strided(
        &self,
        dataset: &Dataset,
        view: &View,
        rows: Range<u64>,
        size: usize,
        out: &mut [u8],
    ) -> Result<()> {
        let (Place::At(offset), Some(strides)) = (dataset.place, View::strides(&dataset.shape)) else {
            return Err(self.cut_short(dataset));
        };
        let fixed = view.offset(&strides);
        let columns = (strides[view.columns], 0..view.width(&dataset.shape));
        let rows = (view.rows.map_or(0, |axis| strides[axis]), rows);
        // In the order of the file: the axis of the larger steps is gone over outside.
        let (outer, inner) = if view.is_transposed() { (columns, rows) } else { (rows, columns) };
        let n_inner = (inner.1.end - inner.1.start) as usize;
        if n_inner == 0 {
            return Ok(());
        }
        let mut line = vec![0; ((n_inner - 1) * inner.0 as usize + 1) * size];
        for (at, out) in outer.1.zip(out.chunks_exact_mut(n_inner * size)) {
            interrupt::check()?;
            let first = fixed + at * outer.0 + inner.1.start * inner.0;
            self.raw
                .read_exact_at(&mut line, offset + first * size as u64)
                .map_err(Error::io(&self.path, "read"))?;
            for (value, from) in out.chunks_exact_mut(size).zip(line.chunks(inner.0 as usize * size)) {
                value.copy_from_slice(&from[..size]);
            }
        }
        Ok(())
    }

    pub(super) fn read_flat_integers(&self, flat: &Flat, dataset: &Dataset) -> Result<Vec<i64>> {
        let (Place::At(offset), Kind::Integer { size }) = (dataset.place, &dataset.kind) else {
            return Ok(vec![]);
        };
        let n = dataset.shape.iter().try_fold(*size as u64, |n, &axis| n.checked_mul(axis));
        let Some(n) = n.filter(|&n| offset.checked_add(n).is_some_and(|end| end <= self.len)) else {
            return Err(self.cut_short(dataset));
        };
        let bytes = read_at(&self.path, &self.raw, offset, n as usize)?;
        let signed = !flat.unsigned.contains(&dataset.path);
        let value = |bytes: &[u8]| {
            let negative = signed && bytes.last().is_some_and(|&byte| byte >= 0x80);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            i64::from_le_bytes(wide)
        };
        Ok(bytes.chunks_exact(*size).map(value).collect())
    }

    fn cut_short(&self, dataset: &Dataset) -> Error {
        let what = format!(
            "its values end past the file's {} bytes; the file is cut short: download or copy it again",
            self.len
        );
        Error::data(&self.path, place(dataset), what)
    }
}
