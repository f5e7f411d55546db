//! NumPy's `.npz`: a zip with one `.npy` per array, as `numpy.savez` and `savez_compressed` write it.

use super::tensors::{Loaded, Tensors, wrong};
use super::transpose;
use crate::error::{Error, Result};
use npyz::{DType, NpyFile, Order, TypeChar};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;

/// Reads all arrays, as float32.
///
/// # Errors
/// A file that cannot be read, is no such archive or damaged; an array that is not of floats or integers, or has more than
/// two axes in Fortran's order.
pub fn read(path: &Path) -> Result<Tensors> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut zip = ZipArchive::new(BufReader::new(file))
        .map_err(|e| wrong(path, format!("is no zip that numpy.savez writes, or is damaged ({e})")))?;
    let mut found = Tensors { path: path.to_owned(), ..Tensors::default() };
    for at in 0..zip.len() {
        let entry = zip.by_index(at).map_err(|e| wrong(path, format!("is damaged ({e})")))?;
        let file = entry.name().map_err(|e| wrong(path, format!("is damaged ({e})")))?.into_owned();
        let Some(name) = file.strip_suffix(".npy") else {
            return Err(wrong(path, format!("holds {file}, which is no array")));
        };
        let loaded = array(entry).map_err(|what| wrong(path, format!("{what} at {name}")))?;
        found.tensors.insert(name.to_owned(), loaded);
    }
    Ok(found)
}

/// The values of an array in row-major order. The error goes before "at NAME".
fn array(file: impl Read) -> std::result::Result<Loaded, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("is damaged ({e})");
    let file = NpyFile::new(file).map_err(|e| damaged(&e))?;
    let shape = file.shape().iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<Vec<_>, _>>();
    let shape = shape.map_err(|e| damaged(&e))?;
    let kind = match file.dtype() {
        DType::Plain(kind) => (kind.type_char(), kind.size_field()),
        _ => return Err("holds records".into()),
    };
    let order = file.order();
    macro_rules! values {
        ($type:ty, $convert:expr) => {
            file.data::<$type>()
                .map_err(|e| damaged(&e))?
                .map(|v| v.map($convert))
                .collect::<std::io::Result<Vec<f32>>>()
                .map_err(|e| damaged(&e))?
        };
    }
    let values = match kind {
        (TypeChar::Float, 2) => values!(half::f16, half::f16::to_f32),
        (TypeChar::Float, 4) => values!(f32, |v| v),
        (TypeChar::Float, 8) => values!(f64, |v| v as f32),
        (TypeChar::Int, 4) => values!(i32, |v| v as f32),
        (TypeChar::Int, 8) => values!(i64, |v| v as f32),
        _ => return Err("holds values that are no real numbers".into()),
    };
    match (order, &shape[..]) {
        (Order::Fortran, &[rows, columns]) => {
            // As it lies there it is the transpose, row-major.
            Ok(Loaded { values: transpose(&values, columns, rows), shape })
        }
        (Order::Fortran, [_, _, _, ..]) => Err("is in Fortran's order and has more than two axes".into()),
        _ => Ok(Loaded { shape, values }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use npyz::WriterBuilder;
    use std::io::Write;
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    fn npy<T: npyz::AutoSerialize + Copy>(values: &[T], shape: &[u64], order: Order) -> Vec<u8> {
        let mut bytes = vec![];
        let options = npyz::WriteOptions::new().default_dtype().shape(shape).order(order);
        let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
        writer.extend(values.iter().copied()).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn npz(entries: &[(&str, &[u8])], method: CompressionMethod) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".npz").tempfile().unwrap();
        let mut zip = ZipWriter::new(file.reopen().unwrap());
        for (name, bytes) in entries {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        file
    }

    #[test]
    fn arrays_are_read_stored_or_compressed_in_either_order_and_any_precision() {
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let rows = npy(&values, &[2, 3], Order::C);
        let columns = npy(&[1.0f32, 4.0, 2.0, 5.0, 3.0, 6.0], &[2, 3], Order::Fortran);
        let doubles = npy(&[0.5f64, -0.25], &[2], Order::C);
        let whole = npy(&[7i64], &[], Order::C);
        let entries: [(&str, &[u8]); 4] =
            [("a.npy", &rows), ("b.npy", &columns), ("c.npy", &doubles), ("d.npy", &whole)];
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let file = npz(&entries, method);
            let found = Tensors::read(file.path()).unwrap().tensors;
            let want = Loaded { shape: vec![2, 3], values: values.to_vec() };
            assert_eq!((&found["a"], &found["b"]), (&want, &want));
            assert_eq!(found["c"], Loaded { shape: vec![2], values: vec![0.5, -0.25] });
            assert_eq!(found["d"], Loaded { shape: vec![], values: vec![7.0] });
        }
    }

    #[test]
    fn what_is_no_archive_of_arrays_is_an_error_of_one_line() {
        let whole = npy(&[1.0f32, 2.0], &[2], Order::C);
        let cases: [(&str, &[u8], &str); 3] = [
            ("a.npy", &whole[..whole.len() - 1], "is damaged"),
            ("a.npy", b"no array", "is damaged"),
            ("a.txt", &whole, "a.txt, which is no array"),
        ];
        for (name, bytes, want) in cases {
            let file = npz(&[(name, bytes)], CompressionMethod::Stored);
            let error = read(file.path()).unwrap_err().to_string();
            assert!(error.contains(want) && error.lines().count() == 1, "{error}");
        }
        let file = npz(&[("a.npy", &whole)], CompressionMethod::Stored);
        let bytes = std::fs::read(file.path()).unwrap();
        std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
        assert!(read(file.path()).unwrap_err().to_string().contains("numpy.savez"));
    }
}
