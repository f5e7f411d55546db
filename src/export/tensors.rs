//! Tensors and settings read from files that are not ours: every one is asked for by name and shape.

use super::{npz, pt};
use crate::error::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A tensor, converted to float32.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// What a file of tensors holds. Nested names are joined with dots.
#[derive(Debug, Default)]
pub struct Tensors {
    /// The file.
    pub path: PathBuf,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Loaded>,
    /// Whole numbers (`.pt` alone).
    pub numbers: BTreeMap<String, i64>,
    /// Texts (`.pt` alone).
    pub texts: BTreeMap<String, String>,
}

/// [`Error::Model`] for something that our model cannot be.
pub fn not_representable(path: &Path, what: &str) -> Error {
    wrong(path, format!("has {what}, which cannot be made a model of sae"))
}

/// [`Error::Model`].
pub fn wrong(path: &Path, what: String) -> Error {
    Error::Model { path: path.to_owned(), what }
}

/// Values of little-endian bytes as float32; `None` for a type that holds no real numbers, or cut bytes.
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    macro_rules! read {
        ($type:ty, $size:literal, $convert:expr) => {{
            let chunks = bytes.chunks_exact($size);
            if !chunks.remainder().is_empty() {
                return None;
            }
            let values = chunks.filter_map(|b| <[u8; $size]>::try_from(b).ok());
            values.map(|b| $convert(<$type>::from_le_bytes(b))).collect()
        }};
    }
    Some(match dtype {
        Dtype::F32 => read!(f32, 4, |v| v),
        Dtype::F64 => read!(f64, 8, |v| v as f32),
        Dtype::F16 => read!(half::f16, 2, half::f16::to_f32),
        Dtype::BF16 => read!(half::bf16, 2, half::bf16::to_f32),
        Dtype::I32 => read!(i32, 4, |v| v as f32),
        Dtype::I64 => read!(i64, 8, |v| v as f32),
        _ => return None,
    })
}

impl Tensors {
    /// Reads a safetensors file, or a `.pt` or `.npz` by its ending.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or holds types that are not numbers.
    pub fn read(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "pt" || e == "pth") {
            return pt::read(path);
        }
        if path.extension().is_some_and(|e| e == "npz") {
            return npz::read(path);
        }
        let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|e| wrong(path, format!("is no safetensors file, or is damaged ({e})")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = to_f32(view.dtype(), view.data())
                .ok_or_else(|| not_representable(path, &format!("{name} of type {:?}", view.dtype())))?;
            tensors.insert(name, Loaded { shape: view.shape().to_vec(), values });
        }
        Ok(Self { path: path.to_owned(), tensors, ..Self::default() })
    }

    fn pop(&mut self, name: &str) -> Result<Loaded> {
        if let Some(found) = self.tensors.remove(name) {
            return Ok(found);
        }
        let others: Vec<&str> = self.tensors.keys().map(String::as_str).take(12).collect();
        let others = if others.is_empty() { String::new() } else { format!(", but {}", others.join(", ")) };
        Err(wrong(&self.path, format!("has no tensor {name}{others}; is --format right?")))
    }

    /// The tensor `name`, which must have this shape and finite values.
    ///
    /// # Errors
    /// None of that name or another shape; NaN or infinity.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let found = self.pop(name)?;
        if found.shape != shape {
            return Err(wrong(&self.path, format!("{name} is {:?}, not {shape:?}", found.shape)));
        }
        self.finite(name, found.values)
    }

    /// A matrix with its rows and columns.
    ///
    /// # Errors
    /// As [`Self::take`]; no values at all.
    pub fn matrix(&mut self, name: &str) -> Result<(usize, usize, Vec<f32>)> {
        let found = self.pop(name)?;
        match found.shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => {
                Ok((rows, columns, self.finite(name, found.values)?))
            }
            _ => Err(wrong(&self.path, format!("{name} is {:?}, not a matrix", found.shape))),
        }
    }

    fn finite(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        if values.iter().all(|v| v.is_finite()) {
            return Ok(values);
        }
        Err(wrong(&self.path, format!("{name} holds NaN or infinity")))
    }

    /// A tensor of one value that may be missing.
    pub fn scalar(&mut self, name: &str) -> Option<f32> {
        self.tensors.remove(name).and_then(|t| t.values.first().copied())
    }

    /// Fails if tensors, or numbers and texts beside them, are left that nothing asked for: they may change what the
    /// model computes.
    ///
    /// # Errors
    /// The names that are neither in `known`, which change nothing, nor in `ignored`, which a person has looked at.
    pub fn nothing_left(&self, known: &[&str], ignored: &[String]) -> Result<()> {
        let names = self.tensors.keys().chain(self.numbers.keys()).chain(self.texts.keys());
        not_understood(&self.path, names.filter(|name| !known.contains(&name.as_str())), ignored)
    }
}

/// Fails unless all `names` are in `ignored`.
fn not_understood<'a>(
    path: &Path,
    names: impl Iterator<Item = &'a String>,
    ignored: &[String],
) -> Result<()> {
    let names: Vec<&str> = names.filter(|name| !ignored.contains(name)).map(String::as_str).collect();
    if names.is_empty() {
        return Ok(());
    }
    Err(wrong(
        path,
        format!(
            "has {}, which may change the codes and is not understood here; if it does not, add `--ignore {}`",
            names.join(", "),
            names.join(",")
        ),
    ))
}

/// A JSON object of settings.
#[derive(Debug)]
pub struct ForeignSettings {
    path: PathBuf,
    values: serde_json::Map<String, serde_json::Value>,
}

impl ForeignSettings {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is no JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let values = serde_json::from_slice(&text)
            .map_err(|e| wrong(path, format!("is not a JSON object of settings: {e}")))?;
        Ok(Self { path: path.to_owned(), values })
    }

    fn get<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&serde_json::Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.values.get(key) {
            None | Some(serde_json::Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(wrong(&self.path, format!("`{key}` is {value}, not {kind}"))),
            },
        }
    }

    /// A text.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.get(key, "a text", |v| v.as_str().map(str::to_owned))
    }

    /// A whole number, at least 0.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    /// A number, finite and at least 0.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number of at least 0", |v| v.as_f64().filter(|v| v.is_finite() && *v >= 0.0))
    }

    /// A list of whole numbers, at least 0.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let count = |v: &serde_json::Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        self.get(key, "a list of whole numbers", |v| v.as_array()?.iter().map(count).collect())
    }

    /// True or false.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", serde_json::Value::as_bool)
    }

    /// Fails if there are settings of other names than those in `known`: they may change what the model computes. One
    /// that is null, false, empty or "none" switches nothing on.
    ///
    /// # Errors
    /// The names that are not in `ignored`, which a person has looked at.
    pub fn nothing_else(&self, known: &[&str], ignored: &[String]) -> Result<()> {
        use serde_json::Value;
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty() || text == "none",
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        let others =
            self.values.iter().filter(|(name, value)| !known.contains(&name.as_str()) && !off(value));
        not_understood(&self.path, others.map(|(name, _)| name), ignored)
    }

    /// Whether there is a setting of that name that is not null.
    pub fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    /// Settings inside settings.
    ///
    /// # Errors
    /// Something else under that name.
    pub fn inner(&self, key: &str) -> Result<Option<Self>> {
        let inner = self.get(key, "an object", |v| v.as_object().cloned())?;
        Ok(inner.map(|values| Self { path: self.path.clone(), values }))
    }
}
