//! PyTorch's `.pt`: a zip with stored entries, `<name>/data.pkl` (see [`super::pickle`]) and a file of little-endian
//! values for each storage, `<name>/data/0` and on (`torch/serialization.py`, version 3).

use super::pickle::{Reader, TensorAt, Value, Writer};
use super::tensors::{Loaded, Tensors, to_f32, wrong};
use crate::error::{Error, Result};
use crate::files;
use safetensors::Dtype;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// Names inside the archive begin with this.
const ROOT: &str = "archive";
/// A pickle of a state dict has some kilobytes.
const MOST_PICKLE: u64 = 1 << 24;

/// What can be written under a name.
pub enum Item<'a> {
    /// A tensor of this shape; `dtype` F32, I32 or I64, little-endian bytes.
    Tensor(Dtype, Vec<usize>, &'a [u8]),
    /// A Python int.
    Int(usize),
    /// A Python str.
    Text(&'a str),
    /// A dict.
    Dict(Vec<(&'a str, Item<'a>)>),
}

impl<'a> Item<'a> {
    /// A float32 tensor.
    pub fn f32(shape: Vec<usize>, values: &'a [f32]) -> Self {
        Self::Tensor(Dtype::F32, shape, bytemuck::cast_slice(values))
    }
}

/// Writes a dict that `torch.load(path, weights_only=True)` gives back, whole or not at all.
///
/// # Errors
/// As the disk gives them.
pub fn write(path: &Path, items: &[(&str, Item<'_>)]) -> Result<()> {
    let (mut pickle, mut storages) = (Writer::new(), vec![]);
    add(&mut pickle, &mut storages, items)?;
    let bytes = archive(&pickle.finish(), &storages)
        .map_err(|e| Error::Failed(format!("{} cannot be written: {e}", path.display())))?;
    files::write_whole(path, &bytes)
}

fn add<'a>(pickle: &mut Writer, storages: &mut Vec<&'a [u8]>, items: &[(&str, Item<'a>)]) -> Result<()> {
    for (name, item) in items {
        match item {
            Item::Tensor(dtype, shape, bytes) => {
                let storage = match dtype {
                    Dtype::F32 => "FloatStorage",
                    Dtype::I32 => "IntStorage",
                    Dtype::I64 => "LongStorage",
                    other => return Err(Error::Failed(format!("{name}: {other:?} is not written to a .pt"))),
                };
                pickle.text(name);
                pickle.tensor(storage, &storages.len().to_string(), shape);
                storages.push(bytes);
            }
            Item::Int(value) => {
                pickle.text(name);
                pickle.int(*value);
            }
            Item::Text(text) => {
                pickle.text(name);
                pickle.text(text);
            }
            Item::Dict(inner) => {
                pickle.begin(name);
                add(pickle, storages, inner)?;
                pickle.end();
            }
        }
    }
    Ok(())
}

fn archive(pickle: &[u8], storages: &[&[u8]]) -> zip::result::ZipResult<Vec<u8>> {
    // PyTorch maps files into memory where entries begin at multiples of 64 bytes. No clock: the same model, the
    // same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .with_alignment(64);
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let mut put = |name: String, bytes: &[u8]| -> zip::result::ZipResult<()> {
        zip.start_file(format!("{ROOT}/{name}"), options.large_file(bytes.len() >= 1 << 32))?;
        Ok(zip.write_all(bytes)?)
    };
    put("data.pkl".into(), pickle)?;
    put("byteorder".into(), b"little")?;
    for (i, bytes) in storages.iter().enumerate() {
        put(format!("data/{i}"), bytes)?;
    }
    put("version".into(), b"3\n")?;
    Ok(zip.finish()?.into_inner())
}

/// Reads a state dict.
///
/// # Errors
/// A file that is no such archive, holds anything but tensors, numbers and texts in dicts, or is damaged.
pub fn read(path: &Path) -> Result<Tensors> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|e| {
        wrong(path, format!("is no zip that torch.save writes ({e}); a file older than PyTorch 1.6: load and save it again there"))
    })?;
    let name =
        zip.file_names().flatten().find(|n| n.ends_with("/data.pkl")).map(std::borrow::Cow::into_owned);
    let root = name.as_deref().and_then(|n| n.strip_suffix("data.pkl")).map(str::to_owned);
    let root = root.ok_or_else(|| wrong(path, "has no data.pkl: it was not written by torch.save".into()))?;
    if let Ok(order) = entry(&mut zip, &format!("{root}byteorder"), 16)
        && order != b"little"
    {
        return Err(wrong(path, "is big-endian".into()));
    }
    let explain = |what: String| {
        wrong(
            path,
            format!(
                "cannot be read (its pickle {what}); in Python: from safetensors.torch import save_file; \
                 save_file(model.state_dict(), 'ae.safetensors')"
            ),
        )
    };
    let pickle = entry(&mut zip, &format!("{root}data.pkl"), MOST_PICKLE).map_err(|e| wrong(path, e))?;
    let value = Reader::read(&pickle).map_err(explain)?;
    let mut found = Tensors { path: path.to_owned(), ..Tensors::default() };
    flatten(&mut found, &mut zip, &root, "", &value).map_err(|e| wrong(path, e))?;
    Ok(found)
}

type Zip = ZipArchive<BufReader<File>>;

fn entry(zip: &mut Zip, name: &str, most: u64) -> std::result::Result<Vec<u8>, String> {
    let file = zip.by_name(name).map_err(|e| format!("has no {name}: {e}"))?;
    if file.size() > most {
        return Err(format!("has {} bytes in {name}, more than a state dict needs", file.size()));
    }
    let mut bytes = vec![];
    file.take(most).read_to_end(&mut bytes).map_err(|e| format!("is damaged at {name}: {e}"))?;
    Ok(bytes)
}

fn flatten(
    found: &mut Tensors,
    zip: &mut Zip,
    root: &str,
    prefix: &str,
    value: &Value,
) -> std::result::Result<(), String> {
    let Value::Dict(pairs) = value else { return Err("holds no state dict".into()) };
    for (key, value) in pairs.iter() {
        let Value::Text(key) = key else { return Err("holds a dict whose keys are no names".into()) };
        let name = format!("{prefix}{key}");
        match value {
            Value::Tensor(at) => {
                let loaded = load(zip, root, at).map_err(|e| format!("{name}: {e}"))?;
                found.tensors.insert(name, loaded);
            }
            Value::Int(v) => drop(found.numbers.insert(name, *v)),
            Value::Text(v) => drop(found.texts.insert(name, v.to_string())),
            // One level: OpenAI's activation. No state dict has more.
            Value::Dict(_) if prefix.is_empty() => flatten(found, zip, root, &format!("{name}."), value)?,
            Value::None | Value::Bool(_) | Value::Float(_) => {}
            _ => return Err(format!("holds {name}, which is neither tensor, number nor text")),
        }
    }
    Ok(())
}

/// The values of a tensor in row-major order, whatever its strides: a transposed view is stored as it is.
fn load(zip: &mut Zip, root: &str, at: &TensorAt) -> std::result::Result<Loaded, String> {
    let dtype = match at.storage.as_str() {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        other => return Err(format!("{other} holds no real numbers")),
    };
    let bytes = entry(zip, &format!("{root}data/{}", at.key), u64::MAX)?;
    let stored = to_f32(dtype, &bytes).ok_or("its values are cut")?;
    let outside = || format!("{} values do not hold a tensor {:?}", stored.len(), at.shape);
    let count = at.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).ok_or_else(outside)?;
    let mut last = at.offset;
    for (&size, &stride) in at.shape.iter().zip(&at.strides) {
        let reach = size.saturating_sub(1).checked_mul(stride).and_then(|r| r.checked_add(last));
        last = reach.ok_or_else(outside)?;
    }
    // A tensor larger than its storage repeats values (stride 0): nothing that is trained does.
    if count > stored.len() || (count > 0 && last >= stored.len()) {
        return Err(outside());
    }
    let mut values = Vec::with_capacity(count);
    let mut index = vec![0; at.shape.len()];
    let mut position = at.offset;
    for _ in 0..count {
        values.push(stored[position]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            position += at.strides[axis];
            if index[axis] < at.shape[axis] {
                break;
            }
            position -= at.strides[axis] * at.shape[axis];
            index[axis] = 0;
        }
    }
    Ok(Loaded { shape: at.shape.clone(), values })
}
